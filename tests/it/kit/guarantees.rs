//! The guarantees of the design, each as one validator over what a run recorded. Every kind of test uses
//! these and no test words a guarantee its own way. Each returns what broke it; a record in which nothing
//! happened proves nothing and breaks it too. The tests below show that each can fail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::load::{Call, Outcome, Record};

/// What broke a guarantee, the first few of them.
pub type Verdict = Result<(), String>;

/// Judges what was found among `seen` observations.
fn verdict<T: std::fmt::Debug>(guarantee: &str, seen: usize, broken: &[T]) -> Verdict {
    let first = &broken[..broken.len().min(3)];
    match (seen, broken) {
        (0, _) => Err(format!("{guarantee}: nothing was observed")),
        (_, []) => Ok(()),
        _ => Err(format!("{guarantee}: {} times, {first:?}", broken.len())),
    }
}

/// G1, no ghost: no call is answered by an instance that was sent later than `allowed` after that
/// instance ended (a dead one with its lease, a draining one with the word). `ended` is by instance id.
/// Measured from the caller: what was sent so late cannot have been routed by an old view.
pub fn no_ghost(record: &Record, ended: &BTreeMap<String, Instant>, allowed: Duration) -> Verdict {
    let late = |call: &&Call| ended.get(&call.instance).is_some_and(|at| call.sent > *at + allowed);
    // a call that does not say who answered it cannot be judged
    let told = record.calls.iter().filter(|call| !call.instance.is_empty()).count();
    verdict("G1 ghost", told, &record.calls.iter().filter(late).collect::<Vec<_>>())
}

/// What a process showed of its view at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Instant,
    pub cluster_id: u64,
    pub revision: i64,
    pub epoch: u64,
    /// Addresses by service, those in limbo too.
    pub instances: BTreeSet<(String, String)>,
}

/// G2, no premature death: every instance that was alive all the time is in every sample.
pub fn no_premature_death(samples: &[Sample], alive: &BTreeSet<(String, String)>) -> Verdict {
    let missing = samples.iter().filter_map(|sample| {
        let gone: Vec<_> = alive.difference(&sample.instances).collect();
        (!gone.is_empty()).then(|| format!("{gone:?} missing at revision {}", sample.revision))
    });
    verdict("G2 premature death", samples.len().min(alive.len()), &missing.collect::<Vec<_>>())
}

/// G3, no stop loss: a planned stop fails no call. Calls that were sent again because their connection
/// was closed before any byte of an answer are no failures; [`Record::again`] counts them.
pub fn no_stop_loss(record: &Record) -> Verdict {
    verdict("G3 stop loss", record.calls.len(), &record.failed())
}

/// Counters of one client for one service at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Amplification {
    pub at: Instant,
    pub requests: f64,
    pub attempts: f64,
}

/// G4, bounded amplification: over any 10 s attempts <= 1.2 x requests + 100.
pub fn bounded_amplification(samples: &[Amplification]) -> Verdict {
    let mut broken = Vec::new();
    for (n, from) in samples.iter().enumerate() {
        // the window that ends with the last sample within 10 s
        let within = samples[n..].iter().take_while(|to| to.at - from.at <= Duration::from_secs(10));
        if let Some(to) = within.last() {
            let (requests, attempts) = (to.requests - from.requests, to.attempts - from.attempts);
            if attempts > 1.2 * requests + 100.0 {
                broken.push(format!("{attempts} attempts for {requests} requests in {:?}", to.at - from.at));
            }
        }
    }
    // a window has two ends
    verdict("G4 amplification", samples.len().saturating_sub(1), &broken)
}

/// One write of a record by its only writer.
#[derive(Clone, Debug)]
pub struct Write {
    pub key: i64,
    /// Grows with each write of the key.
    pub version: u64,
    pub acknowledged: bool,
}

/// G5, no double effect: what is read in the end is the last acknowledged write of each key or one that
/// was tried after it: no earlier one came again, none that was acknowledged is lost.
pub fn no_double_effect(writes: &[Write], found: &BTreeMap<i64, u64>) -> Verdict {
    let mut bounds = BTreeMap::<i64, (u64, u64)>::new();
    for write in writes {
        let (acknowledged, tried) = bounds.entry(write.key).or_default();
        *tried = (*tried).max(write.version);
        if write.acknowledged {
            *acknowledged = (*acknowledged).max(write.version);
        }
    }
    let wrong = bounds.iter().filter_map(|(key, (acknowledged, tried))| {
        let read = found.get(key).copied().unwrap_or(0);
        let fits = (*acknowledged..=*tried).contains(&read);
        (!fits).then(|| format!("key {key} reads {read}, want {acknowledged} to {tried}"))
    });
    verdict("G5 double effect", writes.len(), &wrong.collect::<Vec<_>>())
}

/// G6, bounded wait: 99.9 % of calls end by their time limit + 10 ms, all by + 100 ms. The driver's own
/// lateness is not counted.
pub fn bounded_wait(record: &Record) -> Verdict {
    let mut over: Vec<_> =
        record.calls.iter().map(|call| (call.ended - call.sent).saturating_sub(record.limit)).collect();
    over.sort_unstable();
    let Some(worst) = over.last().copied() else {
        return Err("G6 wait: nothing was observed".to_owned());
    };
    let quantile = super::quantile(&mut over, 0.999);
    if quantile > Duration::from_millis(10) || worst > Duration::from_millis(100) {
        return Err(format!("G6 wait: p99.9 is {quantile:?} over the limit, the longest {worst:?}"));
    }
    Ok(())
}

/// G7, monotone view: within an epoch the cluster stays the same and the revision never goes back; the
/// epoch itself never does.
pub fn monotone_view(samples: &[Sample]) -> Verdict {
    let back = samples.windows(2).filter_map(|pair| {
        let (a, b) = (&pair[0], &pair[1]);
        let same = a.epoch == b.epoch;
        // the first word of the registry ends the state of knowing nothing
        let known = a.revision > 0;
        let wrong =
            b.epoch < a.epoch || known && same && (b.cluster_id != a.cluster_id || b.revision < a.revision);
        wrong.then(|| format!("{}/{} then {}/{}", a.epoch, a.revision, b.epoch, b.revision))
    });
    verdict("G7 view went back", samples.len().saturating_sub(1), &back.collect::<Vec<_>>())
}

/// G8, honest health: while a process says that it is ready, a call that needs nothing but this process
/// succeeds. Each pair is what readiness said and how such a call, made just after, ended.
pub fn honest_health(asked: &[(bool, Outcome)]) -> Verdict {
    let lies = asked.iter().filter(|(ready, outcome)| {
        *ready && !matches!(outcome, Outcome::Status(status) if status.as_u16() < 500)
    });
    let ready = asked.iter().filter(|(ready, _)| *ready).count();
    verdict("G8 dishonest health", ready, &lies.collect::<Vec<_>>())
}

/// G9, telemetry is free to fail: with the collector or standard error in trouble no call fails that did not without.
pub fn telemetry_is_free_to_fail(with_trouble: &Record) -> Verdict {
    verdict("G9 telemetry fails calls", with_trouble.calls.len(), &with_trouble.failed())
}

/// G10, restart equals continue: no connection is refused over a restart, and every write that was
/// acknowledged before a crash is found after it.
pub fn restart_equals_continue(
    record: &Record,
    acknowledged: &BTreeSet<i64>,
    found: &BTreeSet<i64>,
) -> Verdict {
    let refused = record.calls.iter().filter(|call| matches!(call.outcome, Outcome::Refused(_)));
    let calls = record.calls.len();
    verdict("G10 refused", calls, &refused.collect::<Vec<_>>())?;
    verdict("G10 lost", calls, &acknowledged.difference(found).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn call(sent: Instant, took: Duration, outcome: Outcome, instance: &str) -> Call {
        Call {
            number: 0,
            due: sent,
            sent,
            ended: sent + took,
            outcome,
            instance: instance.to_owned(),
            degraded: None,
            no_hint: false,
            again: false,
        }
    }

    fn record(calls: Vec<Call>) -> Record {
        Record { calls, unsent: 0, limit: 1000 * MS }
    }

    fn status(code: u16) -> Outcome {
        Outcome::Status(http::StatusCode::from_u16(code).unwrap())
    }

    #[test]
    fn a_record_of_nothing_proves_nothing() {
        let (empty, none) = (record(Vec::new()), BTreeSet::new());
        let now = Instant::now();
        let anonymous = record(vec![call(now, MS, status(200), "")]);
        let alive = BTreeSet::from([("feed".to_owned(), "a".to_owned())]);
        let one = [sample(7, 0, 5, &["a"])];
        let amplification = [Amplification { at: now, requests: 0.0, attempts: 0.0 }];
        for (guarantee, verdict) in [
            ("G1", no_ghost(&anonymous, &BTreeMap::new(), MS)),
            ("G2", no_premature_death(&[], &alive)),
            ("G2, nobody is alive", no_premature_death(&one, &BTreeSet::new())),
            ("G3", no_stop_loss(&empty)),
            ("G4", bounded_amplification(&amplification)),
            ("G5", no_double_effect(&[], &BTreeMap::new())),
            ("G6", bounded_wait(&empty)),
            ("G7", monotone_view(&one)),
            ("G8", honest_health(&[(false, status(200))])),
            ("G9", telemetry_is_free_to_fail(&empty)),
            ("G10", restart_equals_continue(&empty, &none, &none)),
        ] {
            assert!(verdict.is_err_and(|why| why.ends_with("nothing was observed")), "{guarantee}");
        }
    }

    #[test]
    fn g1_sees_a_call_to_the_dead() {
        let begun = Instant::now();
        let ended = BTreeMap::from([("a".to_owned(), begun)]);
        let good = record(vec![
            call(begun + 400 * MS, MS, status(200), "a"),
            call(begun + 900 * MS, MS, status(200), "b"),
        ]);
        no_ghost(&good, &ended, 500 * MS).unwrap();
        let bad = record(vec![call(begun + 501 * MS, MS, status(200), "a")]);
        no_ghost(&bad, &ended, 500 * MS).unwrap_err();
    }

    fn sample(cluster_id: u64, epoch: u64, revision: i64, addrs: &[&str]) -> Sample {
        let instances = addrs.iter().map(|addr| ("feed".to_owned(), (*addr).to_owned())).collect();
        Sample { at: Instant::now(), cluster_id, revision, epoch, instances }
    }

    #[test]
    fn g2_sees_a_live_instance_leave() {
        let alive = BTreeSet::from([("feed".to_owned(), "a".to_owned())]);
        no_premature_death(&[sample(1, 0, 1, &["a", "b"]), sample(1, 0, 2, &["a"])], &alive).unwrap();
        no_premature_death(&[sample(1, 0, 1, &["a"]), sample(1, 0, 2, &["b"])], &alive).unwrap_err();
    }

    #[test]
    fn g3_and_g9_see_a_failed_call_and_no_refusal_of_the_request() {
        let now = Instant::now();
        let good = record(vec![call(now, MS, status(200), ""), call(now, MS, status(404), "")]);
        no_stop_loss(&good).unwrap();
        telemetry_is_free_to_fail(&good).unwrap();
        for outcome in [status(503), status(429), Outcome::Broken(String::new()), Outcome::Silence] {
            let bad = record(vec![call(now, MS, outcome, "")]);
            no_stop_loss(&bad).unwrap_err();
            telemetry_is_free_to_fail(&bad).unwrap_err();
        }
    }

    #[test]
    fn g4_sees_a_storm_of_retries_in_any_window() {
        let begun = Instant::now();
        let at = |s: u32, requests: f64, attempts: f64| Amplification {
            at: begun + s * 1000 * MS,
            requests,
            attempts,
        };
        bounded_amplification(&[at(0, 0.0, 0.0), at(10, 1000.0, 1300.0), at(20, 2000.0, 2600.0)]).unwrap();
        bounded_amplification(&[at(0, 0.0, 0.0), at(10, 1000.0, 1000.0), at(20, 2000.0, 2301.0)])
            .unwrap_err();
    }

    #[test]
    fn g5_sees_an_old_write_come_again_and_a_lost_one() {
        let write = |version, acknowledged| Write { key: 1, version, acknowledged };
        let writes = [write(1, true), write(2, true), write(3, false)];
        for (read, fits) in [(1, false), (2, true), (3, true), (4, false)] {
            assert_eq!(no_double_effect(&writes, &BTreeMap::from([(1, read)])).is_ok(), fits, "{read}");
        }
        no_double_effect(&writes, &BTreeMap::new()).unwrap_err();
    }

    #[test]
    fn g6_sees_calls_that_outlive_their_limit() {
        let now = Instant::now();
        let mut calls: Vec<_> = (0..2000).map(|_| call(now, 1009 * MS, status(504), "")).collect();
        bounded_wait(&record(calls.clone())).unwrap();
        calls[0].ended = now + 1099 * MS;
        bounded_wait(&record(calls.clone())).unwrap();
        calls[1].ended = now + 1101 * MS;
        bounded_wait(&record(calls.clone())).unwrap_err();
        calls[..3].iter_mut().for_each(|call| call.ended = now + 1011 * MS);
        bounded_wait(&record(calls)).unwrap_err();
    }

    #[test]
    fn g7_sees_a_view_go_back_and_accepts_an_announced_reset() {
        monotone_view(&[
            sample(0, 0, 0, &[]),
            sample(7, 0, 5, &[]),
            sample(7, 0, 5, &[]),
            sample(8, 1, 2, &[]),
        ])
        .unwrap();
        monotone_view(&[sample(7, 0, 5, &[]), sample(7, 0, 4, &[])]).unwrap_err();
        monotone_view(&[sample(7, 0, 5, &[]), sample(8, 0, 6, &[])]).unwrap_err();
        monotone_view(&[sample(7, 1, 5, &[]), sample(7, 0, 6, &[])]).unwrap_err();
    }

    #[test]
    fn g8_sees_a_lie() {
        honest_health(&[(true, status(200)), (true, status(404)), (false, Outcome::Silence)]).unwrap();
        honest_health(&[(true, status(503))]).unwrap_err();
    }

    #[test]
    fn g10_sees_a_refused_connection_and_a_lost_write() {
        let now = Instant::now();
        let (one, none) = (BTreeSet::from([1]), BTreeSet::new());
        let good = record(vec![call(now, MS, status(200), "")]);
        restart_equals_continue(&good, &one, &one).unwrap();
        restart_equals_continue(&good, &one, &none).unwrap_err();
        let bad = record(vec![call(now, MS, Outcome::Refused(String::new()), "")]);
        restart_equals_continue(&bad, &none, &none).unwrap_err();
    }
}
