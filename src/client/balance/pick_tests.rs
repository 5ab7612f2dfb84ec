//! Picks among instances that only look connected: nothing here yields to the tasks that would connect.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::client::balance::testing::{endpoints, trip};
use crate::client::call::testing;
use crate::client::transport::state::ConnectionState;

const RPC: Rpc = Rpc::ListTopics;
const MS: Duration = Duration::from_millis(1);

/// Lets time pass, in which the tasks run that fail to connect to these addresses.
async fn pass(usable: &[Arc<Endpoint>], time: Duration) {
    tokio::time::advance(time).await;
    for endpoint in usable {
        endpoint.pretend(ConnectionState::Up);
    }
}

fn call() -> Call {
    testing::call(RPC, Duration::from_secs(1))
}

/// Returns how often each instance is picked.
fn picks(picker: &Picker, call: &Call, usable: &[Arc<Endpoint>], count: usize) -> Vec<usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..count {
        let (endpoint, _) = picker.pick(call, usable).expect("one can be called");
        endpoint.load.note_call(Instant::now());
        *counts.entry(endpoint.number).or_insert(0) += 1;
    }
    usable.iter().map(|endpoint| counts.get(&endpoint.number).copied().unwrap_or(0)).collect()
}

#[tokio::test(start_paused = true)]
async fn equals_share_evenly() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        for count in [1, 2, 3, 10] {
            let usable = endpoints(count, |_| {});
            let counts = picks(&balancer.into(), &call(), &usable, 10_000);
            let fair = 10_000 / count;
            assert!(counts.iter().all(|n| (fair * 8 / 10..=fair * 12 / 10).contains(n)), "{counts:?}");
        }
    }
}

/// If it took one, every first attempt of the next calls would go to the instance that fails.
#[tokio::test(start_paused = true)]
async fn the_attempt_after_a_failure_takes_no_turn() {
    let (picker, usable) = (Picker::from(Balancer::RoundRobin), endpoints(2, |_| {}));
    let mut first_attempts = [0, 0];
    for _ in 0..10 {
        let (first, _) = picker.pick(&call(), &usable).unwrap();
        first_attempts[usize::from(first.number == usable[1].number)] += 1;
        if first.number == usable[1].number {
            let retry = Call { tried: vec![first.number], ..call() };
            assert_eq!(picker.pick(&retry, &usable).unwrap().0.number, usable[0].number);
        }
    }
    assert_eq!(first_attempts, [5, 5]);
}

#[tokio::test(start_paused = true)]
async fn calls_go_where_the_load_is_least() {
    let usable = endpoints(4, |_| {});
    usable[0].load.observe(RPC, 50 * MS, false);
    usable[1].load.observe(RPC, MS, false);
    let held: Vec<_> = (0..3).map(|_| usable[1].hold()).collect();
    usable[2].load.observe(RPC, MS, true);
    let counts = picks(&Picker::PeakEwma, &call(), &usable, 1000);
    // each of these is picked only in a pair with one that is worse still
    assert_eq!(counts[2], 0, "the one that fails fast: {counts:?}");
    assert!(counts[0] < 250 && counts[3] > 400, "{counts:?}");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn tried_instances_and_open_breakers_come_last() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        let picker = Picker::from(balancer);
        let usable = endpoints(3, |_| {});
        trip(&usable[0]);
        let tried = Call { tried: vec![usable[1].number], ..call() };
        assert_eq!(picks(&picker, &tried, &usable, 50), [0, 0, 50]);
        let tried = Call { tried: vec![usable[1].number, usable[2].number], ..call() };
        let counts = picks(&picker, &tried, &usable, 50);
        assert_eq!(counts[0], 0, "an open one before one that was tried");
        // in one method only
        let other = testing::call(Rpc::GetTopic, Duration::from_secs(1));
        assert!(picks(&picker, &other, &usable, 100)[0] > 0);
        // panic mode: the one whose probe is due first
        trip(&usable[1]);
        pass(&usable, MS).await;
        trip(&usable[2]);
        let probe_times: Vec<_> = usable.iter().map(|e| e.breakers.probe_at(RPC)).collect();
        let (chosen, suitability) = picker.pick(&call(), &usable).unwrap();
        assert_eq!(
            (chosen.breakers.probe_at(RPC), suitability),
            (*probe_times.iter().min().unwrap(), Suitability::BreakerOpen)
        );
        // a probe is sent at once, although the load of its instance looks bad
        pass(&usable, Duration::from_secs(2)).await;
        usable[0].load.observe(RPC, 900 * MS, true);
        let (_, suitability) = picker.pick(&call(), &usable).unwrap();
        assert_eq!(suitability, Suitability::ProbeDue);
    }
}

/// A hedge that went to the instance it races, or to one that is likely to fail, would be of no use.
#[tokio::test(start_paused = true)]
async fn a_hedge_goes_to_another_instance_and_is_no_probe() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        let picker = Picker::from(balancer);
        let usable = endpoints(3, |_| {});
        trip(&usable[0]);
        pass(&usable, Duration::from_secs(2)).await;
        let probes = (0..50).filter(|_| picker.pick(&call(), &usable).unwrap().1 == Suitability::ProbeDue);
        assert!(probes.count() > 0, "another attempt may be the probe");
        let hedge = Call { hedge: true, tried: vec![usable[1].number], ..call() };
        assert_eq!(picks(&picker, &hedge, &usable, 50), [0, 0, 50]);
        let first = Call { hedge: false, ..hedge.clone() };
        assert!(has_place_for_hedge(&first, &usable));
        // if there is nothing else, the first attempt goes on alone
        usable[2].pretend(ConnectionState::Down);
        assert!(picker.pick(&hedge, &usable).is_none());
        assert!(!has_place_for_hedge(&first, &usable));
    }
}

#[tokio::test(start_paused = true)]
async fn full_and_disconnected_instances_are_not_picked() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        let picker = Picker::from(balancer);
        assert!(picker.pick(&call(), &[]).is_none());
        let usable = endpoints(3, |settings| settings.max_in_flight = 1);
        usable[0].pretend(ConnectionState::Down);
        let held = usable[1].hold();
        assert_eq!(picks(&picker, &call(), &usable, 50), [0, 0, 50]);
        usable[2].pretend(ConnectionState::WrongService);
        assert!(picker.pick(&call(), &usable).is_none());
        drop(held);
        assert_eq!(picks(&picker, &call(), &usable, 50), [0, 50, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_instance_gets_its_share_gradually() {
    let usable = endpoints(2, |_| {});
    picks(&Picker::PeakEwma, &call(), &usable, 10);
    pass(&usable, Duration::from_mins(1)).await;
    // the other one has calls in flight, so that the new one would get all
    usable[1].load.reset();
    let hold: Vec<_> = (0..50).map(|_| usable[0].hold()).collect();
    let share = || picks(&Picker::PeakEwma, &call(), &usable, 2000)[1];
    let first = share();
    assert!((120..300).contains(&first), "{first} of 2000, want a tenth");
    pass(&usable, Duration::from_millis(1001)).await;
    let half = share();
    assert!((850..1150).contains(&half), "{half} of 2000, want a half");
    pass(&usable, Duration::from_millis(1001)).await;
    assert!(share() >= 1990);
    drop(hold);
}

/// A pick costs the same however many there are.
#[tokio::test]
async fn a_pick_among_a_thousand_is_quick() {
    let cost = |count| {
        let usable = endpoints(count, |_| {});
        let picker = Picker::PeakEwma;
        let call = Call { framed: Bytes::new(), ..call() };
        for endpoint in &usable {
            endpoint.load.observe(RPC, MS, false);
        }
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let begun = Instant::now();
            for _ in 0..1000 {
                std::hint::black_box(picker.pick(&call, &usable));
            }
            best = best.min(begun.elapsed() / 1000);
        }
        best
    };
    let (few, many) = (cost(3), cost(1000));
    eprintln!("a pick: {few:?} among 3, {many:?} among 1000");
    // this build is not optimised; optimised it takes a tenth of it
    assert!(many < Duration::from_micros(20), "{many:?}");
    assert!(many < few * 4 + Duration::from_micros(1), "{few:?} for 3, {many:?} for 1000");
}
