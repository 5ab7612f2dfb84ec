//! The memory of instances that vanished without `draining`, which probably crashed.
//!
//! Prometheus has to go on scraping them, so that the failure is seen. The memory is kept where single events are still
//! seen: a published view combines several events, and may show neither the `draining` before a removal nor an
//! instance that came and went. It ends with the process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::instance::Instance;

/// How long an instance is remembered: long enough for an alert to fire and for somebody to look at it.
const KEEP: Duration = Duration::from_mins(10);
/// Most admin addresses that are remembered; the oldest are forgotten first.
const MAX_ADDRESSES: usize = 1024;
/// Most instances that are remembered for one admin address: as many as `up` can have.
const MAX_BEHIND: usize = 256;

/// Instances that vanished, by their admin address; those without one are not remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vanished(BTreeMap<String, Gone>);

/// The instances that had one admin address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gone {
    /// When the last of them vanished.
    at: Instant,
    instances: Vec<Arc<Instance>>,
}

impl Vanished {
    /// Remembers an instance, and forgets those that vanished too long ago.
    pub fn remember(&mut self, instance: Arc<Instance>, now: Instant) {
        let Some(admin) = instance.admin.clone() else { return };
        self.0.retain(|_, gone| is_fresh(gone, now));
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&admin) {
            let oldest = self.0.iter().min_by_key(|(_, gone)| gone.at).map(|(admin, _)| admin.clone());
            self.0.remove(&oldest.unwrap_or_default());
        }
        let gone = self.0.entry(admin).or_insert(Gone { at: now, instances: Vec::new() });
        gone.at = now;
        gone.instances.retain(|i| !is_same(i, &instance));
        if gone.instances.len() < MAX_BEHIND {
            gone.instances.push(instance);
        }
    }

    /// Returns whether [`Self::replace`] would forget anything.
    #[must_use]
    pub fn is_replaced_by(&self, instance: &Instance) -> bool {
        instance.admin.as_ref().is_some_and(|admin| self.0.contains_key(admin))
    }

    /// Forgets what was at the admin address of an instance that has come, or come back.
    pub fn replace(&mut self, instance: &Instance) {
        if let Some(admin) = &instance.admin {
            self.0.remove(admin);
        }
    }

    /// Returns the instances of the last 10 minutes, by admin address.
    pub fn iter(&self, now: Instant) -> impl Iterator<Item = (&str, &[Arc<Instance>])> {
        let fresh = self.0.iter().filter(move |(_, gone)| is_fresh(gone, now));
        fresh.map(|(admin, gone)| (admin.as_str(), gone.instances.as_slice()))
    }
}

fn is_same(one: &Instance, other: &Instance) -> bool {
    (&one.service, &one.addr) == (&other.service, &other.addr)
}

fn is_fresh(gone: &Gone, now: Instant) -> bool {
    now.duration_since(gone.at) < KEEP
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(admin: &str) -> Arc<Instance> {
        let bare = Instance::bare("feed", &format!("10.0.0.1:{}", admin.len()));
        Arc::new(Instance { admin: Some(admin.to_owned()), ..bare })
    }

    fn admins(vanished: &Vanished, now: Instant) -> Vec<String> {
        vanished.iter(now).map(|(admin, _)| admin.to_owned()).collect()
    }

    #[test]
    fn instances_are_remembered_for_ten_minutes() {
        let (mut vanished, now) = (Vanished::default(), Instant::now());
        vanished.remember(instance("a:1"), now);
        vanished.remember(Arc::new(Instance::bare("feed", "b:1")), now);
        let last = now + KEEP - Duration::from_millis(1);
        assert_eq!(admins(&vanished, last), ["a:1"]);
        assert_eq!(admins(&vanished, now + KEEP), [""; 0]);
        vanished.remember(instance("b:1"), now + KEEP);
        assert_eq!(vanished.0.len(), 1, "the old one is removed from memory");
    }

    #[test]
    fn an_instance_that_returns_is_forgotten() {
        let (mut vanished, now) = (Vanished::default(), Instant::now());
        vanished.remember(instance("a:1"), now);
        vanished.remember(instance("b:1"), now);
        let back = Instance { addr: "10.0.0.9:7".to_owned(), ..(*instance("a:1")).clone() };
        assert!(vanished.is_replaced_by(&back));
        vanished.replace(&back);
        assert!(!vanished.is_replaced_by(&back));
        assert_eq!(admins(&vanished, now), ["b:1"]);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_go_first() {
        let (mut vanished, now) = (Vanished::default(), Instant::now());
        for n in 0..2 * MAX_ADDRESSES {
            let at = now + Duration::from_millis(n as u64);
            vanished.remember(instance(&format!("h{n}:1")), at);
        }
        let left = admins(&vanished, now + Duration::from_mins(1));
        assert_eq!(left.len(), MAX_ADDRESSES);
        assert!(
            left.contains(&format!("h{}:1", 2 * MAX_ADDRESSES - 1)) && !left.contains(&"h0:1".to_owned())
        );
        for n in 0..2 * MAX_BEHIND {
            let one = Instance { addr: format!("10.0.0.1:{n}"), ..(*instance("a:1")).clone() };
            vanished.remember(Arc::new(one), now);
        }
        assert_eq!(vanished.0["a:1"].instances.len(), MAX_BEHIND);
    }
}
