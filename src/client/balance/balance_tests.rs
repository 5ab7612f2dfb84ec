//! Picks among instances that only look connected: nothing here yields to the tasks that would connect.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::HeaderValue;
use tokio::sync::Notify;

use super::*;
use crate::client::balance::ejection::Ejection;
use crate::client::balance::endpoint::Common;
use crate::client::call::testing;
use crate::client::metrics::Metrics;
use crate::config;
use crate::registry::Instance;

const RPC: Rpc = Rpc::ListTopics;
const MS: Duration = Duration::from_millis(1);

fn instances(count: usize, change: impl FnOnce(&mut config::Client)) -> Vec<Arc<Endpoint>> {
    let mut settings = config::Client::default();
    change(&mut settings);
    let meters = Arc::new(Metrics::register(&prometheus::Registry::new()).unwrap().service("topic"));
    let common = Common {
        service: "topic",
        identity: HeaderValue::from_static("/services/topic"),
        settings: Arc::new(settings),
        ejection: Arc::new(Ejection::unbounded(meters.breaker_refused.clone())),
        meters,
        changed: Arc::new(Notify::new()),
    };
    let open = |port| {
        let endpoint =
            Endpoint::open(Arc::new(Instance::bare("topic", &format!("127.0.0.1:{port}"))), &common);
        endpoint.pretend(State::Up);
        Arc::new(endpoint)
    };
    (0..count).map(open).collect()
}

/// Lets time pass. That is when the tasks run that find nobody at these addresses.
async fn pass(usable: &[Arc<Endpoint>], time: Duration) {
    tokio::time::advance(time).await;
    for endpoint in usable {
        endpoint.pretend(State::Up);
    }
}

fn call() -> Call {
    testing::call(RPC, Duration::from_secs(1))
}

fn trip(endpoint: &Endpoint) {
    while let Some(permit) = endpoint.breakers.admit(RPC, false) {
        endpoint.breakers.record(&permit, true, None);
    }
}

/// Returns how often each instance is picked.
fn picks(balance: &Balance, call: &Call, usable: &[Arc<Endpoint>], count: usize) -> Vec<usize> {
    let mut picked = BTreeMap::new();
    for _ in 0..count {
        let (endpoint, _) = balance.pick(call, usable).expect("somebody");
        endpoint.load.begin(Instant::now());
        *picked.entry(endpoint.number).or_insert(0) += 1;
    }
    usable.iter().map(|endpoint| picked.get(&endpoint.number).copied().unwrap_or(0)).collect()
}

#[tokio::test(start_paused = true)]
async fn equals_share_evenly() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        for count in [1, 2, 3, 10] {
            let usable = instances(count, |_| {});
            let picked = picks(&balancer.into(), &call(), &usable, 10_000);
            let fair = 10_000 / count;
            assert!(picked.iter().all(|n| (fair * 8 / 10..=fair * 12 / 10).contains(n)), "{picked:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn load_goes_where_it_is_least() {
    let usable = instances(4, |_| {});
    usable[0].load.observe(RPC, 50 * MS, false);
    let held: Vec<_> = (0..3).map(|_| usable[1].hold()).collect();
    usable[2].load.observe(RPC, MS, true);
    let picked = picks(&Balance::PeakEwma, &call(), &usable, 1000);
    // only its rival in a pair that is worse still loses against each of these
    assert_eq!(picked[2], 0, "the one that fails fast: {picked:?}");
    assert!(picked[0] < 250 && picked[3] > 400, "{picked:?}");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_was_tried_or_is_open_comes_last() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        let balance = Balance::from(balancer);
        let usable = instances(3, |_| {});
        trip(&usable[0]);
        let tried = Call { tried: vec![usable[1].number], ..call() };
        assert_eq!(picks(&balance, &tried, &usable, 50), [0, 0, 50]);
        let tried = Call { tried: vec![usable[1].number, usable[2].number], ..call() };
        let picked = picks(&balance, &tried, &usable, 50);
        assert_eq!(picked[0], 0, "an open one before one that was tried");
        // in one method only
        let other = testing::call(Rpc::GetTopic, Duration::from_secs(1));
        assert!(picks(&balance, &other, &usable, 100)[0] > 0);
        // panic: the one that is due first
        trip(&usable[1]);
        pass(&usable, MS).await;
        trip(&usable[2]);
        let dues: Vec<_> = usable.iter().map(|e| e.breakers.due(RPC)).collect();
        let (picked, fit) = balance.pick(&call(), &usable).unwrap();
        assert_eq!((picked.breakers.due(RPC), fit), (*dues.iter().min().unwrap(), Fit::Open));
        // a probe is sent at once, though its instance looks bad
        pass(&usable, Duration::from_secs(2)).await;
        usable[0].load.observe(RPC, 900 * MS, true);
        let (_, fit) = balance.pick(&call(), &usable).unwrap();
        assert_eq!(fit, Fit::Probe);
    }
}

#[tokio::test(start_paused = true)]
async fn the_full_and_the_lost_are_not_picked() {
    for balancer in [Balancer::PeakEwma, Balancer::RoundRobin] {
        let balance = Balance::from(balancer);
        assert!(balance.pick(&call(), &[]).is_none());
        let usable = instances(3, |settings| settings.max_in_flight = 1);
        usable[0].pretend(State::Down);
        let held = usable[1].hold();
        assert_eq!(picks(&balance, &call(), &usable, 50), [0, 0, 50]);
        usable[2].pretend(State::WrongService);
        assert!(balance.pick(&call(), &usable).is_none());
        drop(held);
        assert_eq!(picks(&balance, &call(), &usable, 50), [0, 50, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_comes_to_its_share_bit_by_bit() {
    let usable = instances(2, |_| {});
    picks(&Balance::PeakEwma, &call(), &usable, 10);
    pass(&usable, Duration::from_mins(1)).await;
    // the other one has calls in flight, so that the newcomer would get all
    usable[1].load.reset();
    let hold: Vec<_> = (0..50).map(|_| usable[0].hold()).collect();
    let share = || picks(&Balance::PeakEwma, &call(), &usable, 2000)[1];
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
        let usable = instances(count, |_| {});
        let balance = Balance::PeakEwma;
        let call = Call { framed: Bytes::new(), ..call() };
        for endpoint in &usable {
            endpoint.load.observe(RPC, MS, false);
        }
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let begun = std::time::Instant::now();
            for _ in 0..1000 {
                std::hint::black_box(balance.pick(&call, &usable));
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
