//! The state machine on paused time.

use prometheus::IntCounter;
use tokio::time::advance;

use super::*;

const GET: Rpc = Rpc::GetFeeds;
const PUT: Rpc = Rpc::CreateFeed;
const MS: Duration = Duration::from_millis(1);

/// Breakers in a service of `all` instances, of which `open` others are open.
fn breakers(all: usize, open: usize) -> Breakers {
    let refused = IntCounter::new("x", "x").unwrap();
    let ejection = EjectionLimit::new(Box::new(move |_| (all, open)), refused);
    let settings = BreakerSettings::from(&config::Client::default());
    Breakers::new(settings, Arc::new(ejection), Transitions::default())
}

fn record(breakers: &Breakers, rpc: Rpc, failed: bool) {
    let permit = breakers.admit(rpc, false).expect("the breaker lets it through");
    breakers.record(&permit, failed, None);
}

fn state(breakers: &Breakers) -> BreakerState {
    breakers.state(GET, Instant::now())
}

fn opened(all: usize) -> Breakers {
    let breakers = breakers(all, 0);
    (0..5).for_each(|_| record(&breakers, GET, true));
    assert_eq!(state(&breakers), BreakerState::Open);
    breakers
}

/// Waits until the probe is due; returns how long that took.
async fn wait(breakers: &Breakers) -> Duration {
    let begun = Instant::now();
    while state(breakers) != BreakerState::ProbeDue {
        advance(10 * MS).await;
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn consecutive_failures_open_the_breaker_of_that_rpc() {
    let breakers = breakers(3, 0);
    for _ in 0..9 {
        // enough good answers between, so that their share does not open it
        (0..20).for_each(|_| record(&breakers, GET, false));
        (0..4).for_each(|_| record(&breakers, GET, true));
    }
    assert_eq!(state(&breakers), BreakerState::Closed);
    record(&breakers, GET, true);
    assert_eq!(state(&breakers), BreakerState::Open);
    assert!(breakers.admit(GET, false).is_none());
    assert_eq!(breakers.state(PUT, Instant::now()), BreakerState::Closed);
    record(&breakers, PUT, false);
}

#[tokio::test(start_paused = true)]
async fn a_small_share_of_good_answers_opens_it() {
    let breakers = breakers(3, 0);
    for n in 0..4 {
        record(&breakers, GET, n % 2 == 0);
    }
    assert_eq!(state(&breakers), BreakerState::Closed, "four answers say nothing yet");
    record(&breakers, GET, true);
    assert_eq!(state(&breakers), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn only_the_last_ten_seconds_count() {
    let breakers = breakers(3, 0);
    for _ in 0..100 {
        // one in six fails
        (0..5).for_each(|_| record(&breakers, GET, false));
        record(&breakers, GET, true);
        advance(500 * MS).await;
    }
    assert_eq!(state(&breakers), BreakerState::Closed);
    // after a pause earlier answers no longer count
    advance(Duration::from_secs(11)).await;
    for n in 0..5 {
        record(&breakers, GET, n % 2 == 0);
    }
    assert_eq!(state(&breakers), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn one_probe_at_a_time_decides() {
    let breakers = opened(3);
    wait(&breakers).await;
    let probe = breakers.admit(GET, false).unwrap();
    assert_eq!(state(&breakers), BreakerState::HalfOpen);
    assert!(breakers.admit(GET, false).is_none(), "only one probe at a time");
    breakers.record(&probe, true, None);
    assert_eq!(state(&breakers), BreakerState::Open);
    wait(&breakers).await;
    let probe = breakers.admit(GET, false).unwrap();
    assert!(breakers.record(&probe, false, None));
    assert_eq!(state(&breakers), BreakerState::Closed);
    // earlier failures are forgotten
    (0..4).for_each(|_| record(&breakers, GET, true));
    assert_eq!(state(&breakers), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn stragglers_and_forced_calls_do_not_count() {
    let breakers = breakers(3, 0);
    let stragglers: Vec<_> = (0..3).filter_map(|_| breakers.admit(GET, false)).collect();
    (0..5).for_each(|_| record(&breakers, GET, true));
    let forced = breakers.admit(GET, true).expect("a forced call is let through");
    breakers.record(&forced, false, None);
    breakers.record(&stragglers[0], false, None);
    assert_eq!(state(&breakers), BreakerState::Open);
    wait(&breakers).await;
    let probe = breakers.admit(GET, false).unwrap();
    breakers.record(&stragglers[1], false, None);
    breakers.release(&stragglers[2]);
    assert_eq!(state(&breakers), BreakerState::HalfOpen);
    breakers.record(&probe, true, None);
    assert_eq!(state(&breakers), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn stragglers_do_not_open_what_a_probe_has_closed() {
    let breakers = breakers(3, 0);
    let stragglers: Vec<_> = (0..9).filter_map(|_| breakers.admit(GET, false)).collect();
    (0..5).for_each(|_| record(&breakers, GET, true));
    wait(&breakers).await;
    record(&breakers, GET, false);
    for straggler in &stragglers {
        breakers.record(straggler, true, None);
    }
    assert_eq!(state(&breakers), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn after_a_probe_without_outcome_the_next_call_is_the_probe() {
    let breakers = opened(3);
    wait(&breakers).await;
    for _ in 0..3 {
        let probe = breakers.admit(GET, false).unwrap();
        breakers.release(&probe);
        assert_eq!(state(&breakers), BreakerState::ProbeDue);
    }
}

/// Else every call would begin with a probe that is too slow.
#[tokio::test(start_paused = true)]
async fn after_a_probe_that_was_too_slow_the_next_one_has_to_wait() {
    let breakers = opened(3);
    for _ in 0..3 {
        wait(&breakers).await;
        let probe = breakers.admit(GET, false).unwrap();
        breakers.release_later(&probe);
        assert_eq!(state(&breakers), BreakerState::Open);
        let waited = wait(&breakers).await;
        assert!((990 * MS..=1520 * MS).contains(&waited), "{waited:?}: the shortest backoff, each time");
    }
}

#[tokio::test(start_paused = true)]
async fn it_stays_open_twice_as_long_each_time_with_jitter() {
    let breakers = opened(3);
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let waited = wait(&breakers).await;
        let (low, high) = (Duration::from_secs(seconds), Duration::from_secs((seconds * 3 / 2 + 1).min(60)));
        assert!((low..=high + 20 * MS).contains(&(waited + 10 * MS)), "{waited:?}, want {low:?} to {high:?}");
        let probe = breakers.admit(GET, false).unwrap();
        breakers.record(&probe, true, None);
    }
    // one good probe does not reset the backoff
    wait(&breakers).await;
    record(&breakers, GET, false);
    (0..5).for_each(|_| record(&breakers, GET, true));
    assert!(wait(&breakers).await > Duration::from_secs(30));
    // but staying closed for a while does
    record(&breakers, GET, false);
    advance(BACKOFF_RESET_AFTER).await;
    (0..5).for_each(|_| record(&breakers, GET, true));
    assert!(wait(&breakers).await <= Duration::from_millis(1520));
}

#[tokio::test(start_paused = true)]
async fn at_most_half_are_open() {
    for (all, open, opens) in [(2, 0, true), (2, 1, false), (3, 1, false), (4, 1, true), (11, 5, false)] {
        let breakers = breakers(all, open);
        (0..5).for_each(|_| record(&breakers, GET, true));
        assert_eq!(state(&breakers) == BreakerState::Open, opens, "{open} of {all} are open");
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_instance_opens_by_consecutive_failures_alone_and_for_two_seconds() {
    let breakers = breakers(1, 0);
    for _ in 0..20 {
        (0..4).for_each(|_| record(&breakers, GET, true));
        record(&breakers, GET, false);
    }
    assert_eq!(state(&breakers), BreakerState::Closed, "20 % are good");
    (0..5).for_each(|_| record(&breakers, GET, true));
    for _ in 0..6 {
        breakers.bring_probe_forward(GET);
        assert!(wait(&breakers).await <= MAX_OPEN_SOLE_INSTANCE + 10 * MS);
        let probe = breakers.admit(GET, false).unwrap();
        breakers.record(&probe, true, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_counts_once() {
    let breakers = breakers(3, 0);
    let fail = |connection| {
        let permit = breakers.admit(GET, false).unwrap();
        breakers.record(&permit, true, Some(connection));
    };
    (0..100).for_each(|_| fail(1));
    assert_eq!(state(&breakers), BreakerState::Closed);
    (2..=5).for_each(fail);
    assert_eq!(state(&breakers), BreakerState::Open, "five consecutive broken connections");
}

#[tokio::test(start_paused = true)]
async fn a_new_process_begins_with_closed_breakers() {
    let breakers = opened(3);
    breakers.reset();
    assert_eq!(state(&breakers), BreakerState::Closed);
    record(&breakers, GET, true);
    assert_eq!(state(&breakers), BreakerState::Closed);
}

#[test]
fn a_window_forgets() {
    let mut window = Window::default();
    for second in 0..25 {
        window.add(second, second % 2 == 0);
    }
    assert_eq!(window.add(25, true), (6, 10));
    assert_eq!(window.add(26, true), (6, 10));
    assert_eq!(window.add(1_000_000, true), (1, 1));
    assert_eq!(window.add(3, true).1, 2, "a clock that goes back does no harm");
}
