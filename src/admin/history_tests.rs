use super::*;

/// Returns readings in which a route has `count` answers within 5 ms, and one in a hundred of them failed after 40 ms.
fn totals(name: &str, count: u64, refused: u64) -> Totals {
    let slow = count / 100;
    let buckets = [(5000, count - slow), (50_000, slow)].into_iter().collect();
    let answered = Answered { count, failed: slow, buckets };
    Totals { answered: [(name.to_owned(), answered)].into_iter().collect(), refused }
}

fn calls(refused_by_budget: u64, fallbacks: u64) -> BTreeMap<&'static str, CallTotals> {
    [("feed", CallTotals { retries: 0, refused_by_budget, fallbacks })].into_iter().collect()
}

#[test]
fn rates_are_of_the_last_minute_and_lines_of_five() {
    let (history, begun) = (History::default(), Instant::now());
    let add = |step: u64, totals, calls| {
        history.ring().add(begun + PERIOD * u32::try_from(step).unwrap(), totals, calls)
    };
    assert_eq!(add(0, totals("/a", 7000, 9), calls(0, 0)), 0, "what was before is of no time");
    for step in 1..=20 {
        add(step, totals("/a", 7000 + 500 * step, 9), calls(0, step));
    }
    let budgets = [("feed", (3, 120))].into_iter().collect();
    let traffic = history.ring().traffic(&budgets);
    assert_eq!((traffic.health, traffic.seconds, traffic.refused), (Health::Ok, 60, 0));
    let route = &traffic.routes[0];
    assert_eq!((route.name.as_str(), route.per_second, route.failed), ("/a", 100.0, 0.01));
    assert_eq!(route.p99_ms, Some(5.0));
    let feed = &traffic.calls[0];
    assert_eq!((feed.retries, feed.budget, feed.fallbacks), (3, 120, 12));
    let lines = history.lines();
    assert_eq!(
        (lines["/a"].answers.len(), lines["/a"].answers[19], lines["/a"].failed[19]),
        (20, 100.0, 1.0)
    );

    // requests are refused, and another route is asked for
    assert_eq!(add(21, totals("/b", 100, 59), calls(4, 20)), 50);
    let traffic = history.ring().traffic(&budgets);
    assert_eq!(traffic.health, Health::Warn);
    let reasons = [
        "overloaded: 50 requests were refused in the last 10 s",
        "feed: the budget of retries is used up, 4 were not made",
    ];
    assert_eq!(traffic.reasons, reasons);
    let lines = history.lines();
    assert_eq!((lines["/b"].answers.len(), lines["/b"].answers[20]), (21, 20.0));
    assert_eq!((lines["/a"].answers.len(), lines["/a"].answers[20]), (21, 0.0));
}

#[test]
fn what_is_kept_is_bounded_and_ends() {
    let (history, begun) = (History::default(), Instant::now());
    for step in 0..200_u32 {
        let name = if step < 100 { "/a" } else { "/b" };
        history.ring().add(begun + PERIOD * step, totals(name, 1000 + u64::from(step), 0), calls(0, 0));
    }
    assert_eq!(history.ring().samples.len(), KEPT);
    let names: Vec<_> = history.lines().into_keys().collect();
    assert_eq!(names, ["/b"], "nobody has asked for /a for five minutes");
    // nothing happens any more
    for step in 200..300_u32 {
        history.ring().add(begun + PERIOD * step, totals("/b", 1199, 0), calls(0, 0));
    }
    assert!(history.lines().is_empty());
    let traffic = history.ring().traffic(&BTreeMap::new());
    assert_eq!((traffic.routes.len(), traffic.health, traffic.seconds), (0, Health::Ok, 60));
}

#[test]
fn a_quantile_is_estimated_as_prometheus_does() {
    let of = |buckets: &[(u64, u64)], count| quantile(&buckets.iter().copied().collect(), count, 0.99);
    assert_eq!(of(&[], 0), None);
    // 99 % of the way through the bucket from 2.5 to 5 ms
    assert!((of(&[(5000, 100)], 100).unwrap() - 4.975).abs() < 1e-9);
    assert!((of(&[(500, 90), (10_000, 10)], 100).unwrap() - 9.5).abs() < 1e-9);
    assert_eq!(of(&[(500, 1)], 100), None, "above the last edge");
}
