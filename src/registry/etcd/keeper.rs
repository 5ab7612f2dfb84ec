//! Decides which changes of the registry are believed, so that trouble in the registry does not empty the view.
//!
//! Additions apply at once, and so do removals of instances that were `draining`. Every other removal puts the instance
//! into **limbo**: it stays in the view and is probed. It leaves the view with its first failed probe; the limbo ends
//! when it returns to the registry. For only the instance knows whether it has died: an etcd that was frozen deletes
//! every expired key in the instant it wakes up, one that wakes up for a moment deletes some of them, one that was wiped
//! or restored lists none or others, and an instance that is cut off from etcd alone may serve all the time. A dead
//! instance fails its probe at once, or within the time limit of the probe.
//!
//! This file does no input or output and reads no clock: its callers pass the time.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::registry::instance::{Instance, Instances};
use crate::registry::vanished::Vanished;
use crate::registry::view::View;

/// The stabilised view.
#[derive(Debug, Default)]
pub struct Keeper {
    /// What the registry holds, as far as it has been observed.
    observed: BTreeMap<String, Arc<Instances>>,
    /// Removed from the registry, but still in the view; by service and address.
    limbo: BTreeMap<(String, String), Arc<Instance>>,
    /// Removed without `draining`, and no longer in the view.
    vanished: Arc<Vanished>,
    cluster_id: u64,
    revision: i64,
    epoch: u64,
    /// Number of keys below the prefix that cannot be read as instances.
    pub ignored: usize,
}

impl Keeper {
    /// Returns a keeper that begins with a view from disk.
    #[must_use]
    pub fn restored(view: &View) -> Self {
        Self {
            observed: view.services.clone(),
            cluster_id: view.cluster_id,
            revision: view.revision,
            epoch: view.epoch,
            ..Self::default()
        }
    }

    /// Returns the view to publish.
    #[must_use]
    pub fn view(&self) -> View {
        let mut services = self.observed.clone();
        for ((service, addr), instance) in &self.limbo {
            let instances = services.entry(service.clone()).or_default();
            Arc::make_mut(instances).insert(addr.clone(), instance.clone());
        }
        View {
            cluster_id: self.cluster_id,
            revision: self.revision,
            epoch: self.epoch,
            services,
            limbo: self.limbo.keys().cloned().collect(),
            vanished: self.vanished.clone(),
            ignored: self.ignored,
        }
    }

    /// Applies a whole list. Returns true if the list is not a later state of what was observed before: it is of another
    /// cluster, or of a lower revision (a wiped etcd keeps its cluster id). `older` means that the last modification of
    /// some key in it is older than the one that was observed.
    pub fn list(&mut self, cluster_id: u64, revision: i64, older: bool, listed: Vec<Instance>) -> bool {
        let known = self.revision > 0;
        let reset = known && (older || cluster_id != self.cluster_id || revision < self.revision);
        if reset {
            self.epoch += 1;
        }
        (self.cluster_id, self.revision) = (cluster_id, revision);
        let before = std::mem::take(&mut self.observed);
        for instance in listed {
            self.add(instance);
        }
        for old in before.values().flat_map(|instances| instances.values()) {
            if !self.has(&old.service, &old.addr) {
                self.doubt(old.clone());
            }
        }
        reset
    }

    /// Notes the revision of an event, also of one whose key cannot be read.
    pub fn advance(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// Applies a put of the registry.
    pub fn put(&mut self, instance: Instance) {
        self.add(instance);
    }

    /// Applies a delete of the registry.
    pub fn delete(&mut self, service: &str, addr: &str) {
        let Some(instances) = self.observed.get_mut(service) else { return };
        let removed = Arc::make_mut(instances).remove(addr);
        if instances.is_empty() {
            self.observed.remove(service);
        }
        if let Some(instance) = removed {
            self.doubt(instance);
        }
    }

    /// Applies a failed probe: the instance leaves the view.
    pub fn give_up(&mut self, service: &str, addr: &str, now: Instant) {
        if let Some(instance) = self.limbo.remove(&(service.to_owned(), addr.to_owned())) {
            Arc::make_mut(&mut self.vanished).remember(instance, now);
        }
    }

    /// Returns whether an instance is in limbo.
    pub fn doubts(&self, service: &str, addr: &str) -> bool {
        self.limbo.contains_key(&(service.to_owned(), addr.to_owned()))
    }

    /// Returns the instances in limbo.
    pub fn in_limbo(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.limbo.values()
    }

    fn has(&self, service: &str, addr: &str) -> bool {
        self.observed.get(service).is_some_and(|instances| instances.contains_key(addr))
    }

    fn add(&mut self, instance: Instance) {
        self.limbo.remove(&(instance.service.clone(), instance.addr.clone()));
        self.unvanish(&instance);
        let instances = self.observed.entry(instance.service.clone()).or_default();
        Arc::make_mut(instances).insert(instance.addr.clone(), Arc::new(instance));
    }

    /// Forgets that anything vanished at the admin address of an instance.
    fn unvanish(&mut self, instance: &Instance) {
        // readers share it, so it is copied only if it changes
        if self.vanished.is_replaced_by(instance) {
            Arc::make_mut(&mut self.vanished).replace(instance);
        }
    }

    /// Puts an instance that the registry has removed into limbo, unless it had said that it leaves.
    fn doubt(&mut self, instance: Arc<Instance>) {
        if !instance.draining {
            self.limbo.insert((instance.service.clone(), instance.addr.clone()), instance);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(addr: &str) -> Instance {
        Instance {
            id: addr.to_owned(),
            admin: Some(format!("admin-{addr}:1")),
            ..Instance::bare("feed", addr)
        }
    }

    fn keeper(addrs: &[&str]) -> Keeper {
        let mut keeper = Keeper::default();
        assert!(!keeper.list(1, 10, false, addrs.iter().map(|a| instance(a)).collect()));
        keeper
    }

    /// Addresses in the view, those in limbo marked by a `?`.
    fn shown(keeper: &Keeper) -> String {
        let view = keeper.view();
        let mut out = Vec::new();
        for addr in view.instances("feed").into_iter().flat_map(|instances| instances.keys()) {
            let doubted = view.limbo.contains(&("feed".to_owned(), addr.clone()));
            out.push(if doubted { format!("{addr}?") } else { addr.clone() });
        }
        out.join(" ")
    }

    #[test]
    fn every_instance_that_is_removed_goes_into_limbo() {
        let mut keeper = keeper(&["a", "b", "c"]);
        // one of three, then one of two, then the last
        for (addr, want) in [("a", "a? b c"), ("b", "a? b? c"), ("c", "a? b? c?")] {
            keeper.delete("feed", addr);
            assert_eq!(shown(&keeper), want);
        }
    }

    #[test]
    fn one_that_comes_and_goes_takes_no_other_with_it() {
        let (mut keeper, now) = (keeper(&["a", "b", "c", "d"]), Instant::now());
        keeper.delete("feed", "b");
        keeper.give_up("feed", "b", now);
        for _ in 0..3 {
            keeper.delete("feed", "a");
            keeper.put(instance("a"));
        }
        assert_eq!(shown(&keeper), "a c d", "b is dead and stays so");
    }

    #[test]
    fn draining_instances_leave_at_once_even_the_last() {
        let mut keeper = keeper(&["a", "b"]);
        for addr in ["a", "b"] {
            keeper.put(Instance { draining: true, ..instance(addr) });
        }
        keeper.delete("feed", "a");
        keeper.list(1, 11, false, Vec::new());
        assert_eq!(shown(&keeper), "");
        keeper.advance(12);
        keeper.advance(11);
        assert_eq!(keeper.view().revision, 12);
    }

    #[test]
    fn limbo_ends_by_return_or_by_a_failed_probe() {
        let mut keeper = keeper(&["a", "b"]);
        keeper.delete("feed", "a");
        keeper.delete("feed", "b");
        assert_eq!(shown(&keeper), "a? b?");
        keeper.put(instance("a"));
        keeper.give_up("feed", "a", Instant::now());
        assert_eq!(shown(&keeper), "a b?", "a probe that ends late says nothing of one that has returned");
        keeper.give_up("feed", "b", Instant::now());
        assert_eq!(shown(&keeper), "a");
    }

    #[test]
    fn a_list_of_another_cluster_or_an_older_state_is_a_reset_and_removes_no_instance() {
        for (cluster, revision, older) in [(2, 99, false), (1, 3, false), (1, 10, true)] {
            let mut keeper = keeper(&["a", "b", "c"]);
            assert!(keeper.list(cluster, revision, older, vec![instance("a")]));
            assert_eq!(shown(&keeper), "a b? c?");
            let view = keeper.view();
            assert_eq!((view.cluster_id, view.revision, view.epoch), (cluster, revision, 1));
        }
    }

    #[test]
    fn no_list_removes_an_instance() {
        for (listed, want) in [(&["b", "c"][..], "a? b c"), (&["d"], "a? b? c? d"), (&[], "a? b? c?")] {
            let mut keeper = keeper(&["a", "b", "c"]);
            assert!(!keeper.list(1, 11, false, listed.iter().map(|a| instance(a)).collect()));
            assert_eq!(shown(&keeper), want);
        }
    }

    /// Addresses of those that vanished.
    fn vanished(keeper: &Keeper, now: Instant) -> String {
        let view = keeper.view();
        let gone = view.vanished.iter(now).flat_map(|(_, instances)| instances);
        gone.map(|instance| instance.addr.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_instance_that_leaves_without_draining_has_vanished() {
        let (mut keeper, now) = (keeper(&["a", "b", "c"]), Instant::now());
        // both in one step: a reader of the view may see neither
        keeper.put(Instance { draining: true, ..instance("a") });
        keeper.delete("feed", "a");
        keeper.delete("feed", "b");
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("b? c".to_owned(), String::new()));
        keeper.give_up("feed", "b", now);
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("c".to_owned(), "b".to_owned()));
        keeper.put(instance("b"));
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("b c".to_owned(), String::new()));
    }

    #[test]
    fn a_view_from_disk_is_compared_with_the_first_list() {
        let mut restored = Keeper::restored(&keeper(&["a", "b"]).view());
        assert_eq!(shown(&restored), "a b");
        assert!(!restored.list(1, 20, false, vec![instance("b")]));
        assert_eq!(shown(&restored), "a? b");
    }
}
