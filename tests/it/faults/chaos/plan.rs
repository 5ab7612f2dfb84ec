//! What happens in one run of chaos, decided by its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The services, each with [`INSTANCES`] instances over one store file.
pub const SERVICES: [&str; 3] = ["feed", "profile", "topic"];
/// Instances of each service.
pub const INSTANCES: usize = 2;

/// What a fault happens to. One target has one fault at a time; different targets have theirs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An instance of a service, both by number.
    Instance(usize, usize),
    Gateway(usize),
    /// A member of etcd.
    Etcd(usize),
    /// What etcd stores.
    Registry,
    /// The store file of a service.
    Store(usize),
}

/// A fault. What it took away comes back at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL, later started again.
    Kill,
    /// SIGSTOP, later SIGCONT.
    Freeze,
    /// SIGTERM, later started again.
    Stop,
    /// As [`Self::Kill`], and the view on disk is garbage when it starts again.
    DamageView,
    /// etcd loses its data.
    Wipe,
    /// etcd forgets its history.
    Compact,
    /// The lease of an instance is revoked.
    RevokeLease(usize, usize),
    /// The key of an instance is deleted.
    DeleteKey(usize, usize),
    /// Another program holds the write lock of the store file.
    Lock,
}

/// One fault in time.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub begin: Duration,
    pub end: Duration,
    pub target: Target,
    pub kind: Kind,
}

/// The schedule of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Members of etcd, 1 or 3.
    pub members: usize,
    /// Gateways, 1 or 2.
    pub gateways: usize,
    /// In the order of their beginnings.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Returns the schedule of a seed: a fault about every 0.6 s, each for at most 3 s.
    pub fn new(seed: u64, time: Duration) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let members = if random.random_bool(0.5) { 3 } else { 1 };
        let gateways = random.random_range(1..=2);
        let (mut steps, mut free) = (Vec::new(), BTreeMap::new());
        let mut begin = Duration::from_millis(500);
        while begin < time {
            let (target, kind) = fault(&mut random, members, gateways);
            let lasts = Duration::from_millis(random.random_range(50..3000));
            if free.get(&target).is_none_or(|end| *end < begin) {
                let end = (begin + lasts).min(time);
                steps.push(Step { begin, end, target, kind });
                // a moment to come back before the next fault
                free.insert(target, end + Duration::from_millis(300));
            }
            begin += Duration::from_millis(random.random_range(50..1150));
        }
        Self { seed, members, gateways, steps }
    }

    /// Returns the instances that are alive all the time.
    pub fn untouched(&self) -> BTreeSet<(usize, usize)> {
        let all = (0..SERVICES.len()).flat_map(|service| (0..INSTANCES).map(move |index| (service, index)));
        let touched = |(service, index): (usize, usize)| {
            self.steps.iter().any(|step| step.target == Target::Instance(service, index))
        };
        all.filter(|instance| !touched(*instance)).collect()
    }
}

fn fault(random: &mut StdRng, members: usize, gateways: usize) -> (Target, Kind) {
    let (service, index) = (random.random_range(0..SERVICES.len()), random.random_range(0..INSTANCES));
    let gateway = Target::Gateway(random.random_range(0..gateways));
    let member = Target::Etcd(random.random_range(0..members));
    let instance = Target::Instance(service, index);
    match random.random_range(0..20) {
        0..3 => (instance, Kind::Kill),
        3..6 => (instance, Kind::Freeze),
        6..8 => (instance, Kind::Stop),
        8 => (gateway, Kind::Kill),
        9 => (gateway, Kind::Freeze),
        10 => (gateway, Kind::Stop),
        11 => (gateway, Kind::DamageView),
        12 => (member, Kind::Kill),
        13 | 14 => (member, Kind::Freeze),
        // three members do not lose their data together
        15 if members == 1 => (member, Kind::Wipe),
        15 | 16 => (Target::Registry, Kind::Compact),
        17 => (Target::Registry, Kind::RevokeLease(service, index)),
        18 => (Target::Registry, Kind::DeleteKey(service, index)),
        _ => (Target::Store(service), Kind::Lock),
    }
}

#[test]
fn a_seed_decides_the_whole_schedule() {
    let minute = Duration::from_mins(1);
    let text = |seed| format!("{:?}", Plan::new(seed, minute));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
    for seed in 0..50 {
        let plan = Plan::new(seed, minute);
        assert!((50..150).contains(&plan.steps.len()), "{plan:?}");
        for (n, step) in plan.steps.iter().enumerate() {
            assert!(step.begin < step.end && step.end <= minute, "{step:?}");
            let later = plan.steps[n + 1..].iter().find(|later| later.target == step.target);
            assert!(later.is_none_or(|later| later.begin > step.end), "{step:?} {later:?}");
        }
    }
}
