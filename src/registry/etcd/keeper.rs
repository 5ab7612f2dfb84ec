//! Decides which changes of the registry are believed, so that trouble in the registry does not empty the view.
//!
//! Additions apply at once, and so do removals of instances that were `draining`. A removal that is more likely the
//! registry's fault than the instance's puts the instance into **limbo**: it stays in the view and is probed. It leaves
//! the view with its first failed probe; the limbo ends when it returns to the registry. These removals are suspicious:
//!
//! - the last instance of a service,
//! - more than half of the instances of a service within a second (an etcd that was frozen deletes every expired key in
//!   the instant it wakes up),
//! - whatever is missing from a list of another cluster, of a lower revision, or without any instance.
//!
//! This file does no input or output and reads no clock: its callers pass the time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::instance::{Instance, Instances};
use crate::registry::vanished::Vanished;
use crate::registry::view::View;

/// Removals within this time count as one event.
const WINDOW: Duration = Duration::from_secs(1);

/// The stabilised view.
#[derive(Debug, Default)]
pub struct Keeper {
    /// What the registry holds, as far as it has been observed.
    observed: BTreeMap<String, Arc<Instances>>,
    /// Removed from the registry, but still in the view; by service and address.
    limbo: BTreeMap<(String, String), Arc<Instance>>,
    /// Removals without `draining` of the last [`WINDOW`].
    recent: VecDeque<(Instant, Arc<Instance>)>,
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
    pub fn list(
        &mut self,
        cluster_id: u64,
        revision: i64,
        older: bool,
        listed: Vec<Instance>,
        now: Instant,
    ) -> bool {
        let known = self.revision > 0;
        let reset = known && (older || cluster_id != self.cluster_id || revision < self.revision);
        if reset {
            self.epoch += 1;
        }
        (self.cluster_id, self.revision) = (cluster_id, revision);
        let suspicious = reset || listed.is_empty();
        let before = std::mem::take(&mut self.observed);
        for instance in listed {
            self.add(instance);
        }
        let vanished: Vec<_> = before
            .values()
            .flat_map(|instances| instances.values())
            .filter(|old| !self.has(&old.service, &old.addr))
            .cloned()
            .collect();
        for instance in vanished {
            if suspicious && !instance.draining {
                self.doubt(instance);
            } else {
                self.note(instance, now);
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
    pub fn delete(&mut self, service: &str, addr: &str, now: Instant) {
        let Some(instances) = self.observed.get_mut(service) else { return };
        let removed = Arc::make_mut(instances).remove(addr);
        if instances.is_empty() {
            self.observed.remove(service);
        }
        if let Some(instance) = removed {
            self.note(instance, now);
        }
    }

    /// Applies a failed probe: the instance leaves the view.
    pub fn give_up(&mut self, service: &str, addr: &str, now: Instant) {
        if let Some(instance) = self.limbo.remove(&(service.to_owned(), addr.to_owned())) {
            Arc::make_mut(&mut self.vanished).remember(instance, now);
        }
        // its end is certain: it must not come back into limbo when others vanish
        self.recent.retain(|(_, i)| (i.service.as_str(), i.addr.as_str()) != (service, addr));
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

    /// Notes a removal, and decides whether it and the other recent ones are suspicious.
    fn note(&mut self, instance: Arc<Instance>, now: Instant) {
        if instance.draining {
            return;
        }
        while self.recent.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.recent.pop_front();
        }
        Arc::make_mut(&mut self.vanished).remember(instance.clone(), now);
        let service = instance.service.clone();
        self.recent.push_back((now, instance));
        let left = self.observed.get(&service).map_or(0, |instances| instances.len());
        if self.recent.len() <= left {
            return; // not even all recent removals together are more than half
        }
        let removed: Vec<_> = self
            .recent
            .iter()
            .map(|(_, instance)| instance)
            .filter(|i| i.service == service && !self.has(&i.service, &i.addr))
            .cloned()
            .collect();
        if removed.len() > left {
            // more than half of those that existed within the window, or the last one
            for instance in removed {
                self.doubt(instance);
            }
        }
    }

    /// Forgets that anything vanished at the admin address of an instance.
    fn unvanish(&mut self, instance: &Instance) {
        // readers share it, so it is copied only if it changes
        if self.vanished.is_replaced_by(instance) {
            Arc::make_mut(&mut self.vanished).replace(instance);
        }
    }

    fn doubt(&mut self, instance: Arc<Instance>) {
        if self.vanished.contains(&instance) {
            Arc::make_mut(&mut self.vanished).forget(&instance);
        }
        self.limbo.insert((instance.service.clone(), instance.addr.clone()), instance);
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

    fn keeper(addrs: &[&str]) -> (Keeper, Instant) {
        let (mut keeper, now) = (Keeper::default(), Instant::now());
        assert!(!keeper.list(1, 10, false, addrs.iter().map(|a| instance(a)).collect(), now));
        (keeper, now)
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
    fn a_minority_leaves_at_once() {
        let (mut keeper, now) = keeper(&["a", "b", "c"]);
        keeper.delete("feed", "a", now);
        assert_eq!(shown(&keeper), "b c");
        // a second one, later: again one of two
        keeper.delete("feed", "b", now + 2 * WINDOW);
        assert_eq!(shown(&keeper), "c");
    }

    #[test]
    fn the_last_instance_and_a_majority_within_a_second_go_into_limbo() {
        let (mut alone, now) = keeper(&["a"]);
        alone.delete("feed", "a", now);
        assert_eq!(shown(&alone), "a?");

        let (mut many, now) = keeper(&["a", "b", "c", "d", "e"]);
        many.delete("feed", "a", now);
        many.delete("feed", "b", now);
        assert_eq!(shown(&many), "c d e");
        // the third makes it a majority: the two before go into limbo too
        many.delete("feed", "c", now + WINDOW);
        assert_eq!(shown(&many), "a? b? c? d e");
    }

    #[test]
    fn draining_instances_leave_at_once_even_the_last() {
        let (mut keeper, now) = keeper(&["a"]);
        keeper.put(Instance { draining: true, ..instance("a") });
        keeper.delete("feed", "a", now);
        assert_eq!(shown(&keeper), "");
        keeper.advance(12);
        keeper.advance(11);
        assert_eq!(keeper.view().revision, 12);
    }

    #[test]
    fn limbo_ends_by_return_or_by_a_failed_probe() {
        let (mut keeper, now) = keeper(&["a", "b"]);
        keeper.delete("feed", "a", now);
        keeper.delete("feed", "b", now);
        assert_eq!(shown(&keeper), "a? b?");
        keeper.put(instance("a"));
        keeper.give_up("feed", "b", now);
        assert_eq!(shown(&keeper), "a");
        // neither counts as a recent removal any more
        keeper.put(instance("c"));
        keeper.delete("feed", "c", now);
        assert_eq!(shown(&keeper), "a");
    }

    #[test]
    fn a_list_of_another_cluster_or_an_older_state_is_a_reset_and_removes_no_instance() {
        for (cluster, revision, older) in [(2, 99, false), (1, 3, false), (1, 10, true)] {
            let (mut keeper, now) = keeper(&["a", "b", "c"]);
            assert!(keeper.list(cluster, revision, older, vec![instance("a")], now));
            assert_eq!(shown(&keeper), "a b? c?");
            let view = keeper.view();
            assert_eq!((view.cluster_id, view.revision, view.epoch), (cluster, revision, 1));
        }
    }

    #[test]
    fn an_empty_list_removes_no_instance_but_a_later_one_is_believed() {
        let (mut keeper, now) = keeper(&["a", "b", "c"]);
        assert!(!keeper.list(1, 11, false, Vec::new(), now));
        assert_eq!(shown(&keeper), "a? b? c?");
        let (mut keeper, now) = self::keeper(&["a", "b", "c"]);
        assert!(!keeper.list(1, 11, false, vec![instance("b"), instance("c")], now));
        assert_eq!(shown(&keeper), "b c");
        assert!(!keeper.list(1, 12, false, vec![instance("d")], now + 2 * WINDOW));
        assert_eq!(shown(&keeper), "b? c? d", "two of three at once");
    }

    /// Addresses of those that vanished.
    fn vanished(keeper: &Keeper, now: Instant) -> String {
        let view = keeper.view();
        let gone = view.vanished.iter(now).flat_map(|(_, instances)| instances);
        gone.map(|instance| instance.addr.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn an_instance_that_leaves_without_draining_has_vanished() {
        let (mut keeper, now) = keeper(&["a", "b", "c", "d"]);
        // both in one step: a reader of the view may see neither
        keeper.put(Instance { draining: true, ..instance("a") });
        keeper.delete("feed", "a", now);
        keeper.delete("feed", "b", now);
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("c d".to_owned(), "b".to_owned()));
        // a majority: all of them are in the view again
        keeper.delete("feed", "c", now);
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("b? c? d".to_owned(), String::new()));
        keeper.give_up("feed", "b", now);
        keeper.give_up("feed", "c", now);
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("d".to_owned(), "b c".to_owned()));
        keeper.put(instance("c"));
        assert_eq!((shown(&keeper), vanished(&keeper, now)), ("c d".to_owned(), "b".to_owned()));
        // also what a list no longer has, if the list is to be believed
        keeper.list(1, 12, false, vec![instance("c")], now + 2 * WINDOW);
        assert_eq!(vanished(&keeper, now), "b d");
    }

    #[test]
    fn a_view_from_disk_is_compared_with_the_first_list() {
        let (old, now) = keeper(&["a", "b"]);
        let mut restored = Keeper::restored(&old.view());
        assert_eq!(shown(&restored), "a b");
        assert!(!restored.list(1, 20, false, vec![instance("b")], now));
        assert_eq!(shown(&restored), "b");
    }
}
