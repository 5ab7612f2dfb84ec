//! Notes what the process itself does not tell: instances that join and leave, a registry that is silent, the beginning of an
//! overload. It also takes the samples of [`History`](super::history::History).

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::MissedTickBehavior;

use super::history::PERIOD;
use super::readyz::STALE;
use super::state::State;
use crate::registry::{Instance, Instances, View, ViewHandle};
use crate::server::metrics::Metrics;
use crate::telemetry::events::{Events, Kind};

/// Most instances of one service that are named when the view changes; of more only the number is told.
const NAMED: usize = 4;

/// Observes the process for as long as it lives. Never returns.
///
/// *Cancellation*: nothing is lost.
pub async fn observe(state: Arc<State>, servers: Metrics) {
    let view = async {
        match state.view.clone() {
            Some(view) => follow(view, &state.events).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(sample(&state, &servers), view);
}

async fn sample(state: &State, servers: &Metrics) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut overloaded, mut silent) = (false, false);
    loop {
        tick.tick().await;
        let refused = state.history.sample(servers.totals(), &state.clients);
        match (overloaded, refused) {
            (false, 1..) => {
                state.events.note(Kind::Overload, format!("requests are refused, {refused} so far"));
            }
            (true, 0) => state.events.note(Kind::Overload, "no request is refused any more".to_owned()),
            _ => {}
        }
        overloaded = refused > 0;
        let Some(age) = state.view.as_ref().and_then(ViewHandle::age) else { continue };
        match (silent, age > STALE) {
            (false, true) => {
                state.events.note(Kind::Registry, "nothing is heard from the registry".to_owned());
            }
            (true, false) => state.events.note(Kind::Registry, "the registry is heard again".to_owned()),
            _ => {}
        }
        silent = age > STALE;
    }
}

/// Notes what changes in the view.
async fn follow(mut view: ViewHandle, events: &Events) {
    let mut before = view.take();
    while view.changed().await.is_ok() {
        let now = view.take();
        compare(&before, &now, events);
        before = now;
    }
    // the registry's task has ended: the process is stopping
    std::future::pending::<()>().await;
}

fn compare(before: &View, now: &View, events: &Events) {
    if now.epoch > before.epoch && before.is_known() {
        let text = "the view was reset: the registry is another cluster, or an older state of the same one";
        events.note(Kind::Registry, text.to_owned());
    }
    let none = Arc::<Instances>::default();
    let names: BTreeSet<_> = before.services.keys().chain(now.services.keys()).collect();
    for name in names {
        let of = |view: &View| view.services.get(name).unwrap_or(&none).clone();
        let (old, new) = (of(before), of(now));
        // a service in which nothing has changed is shared by both views
        if !Arc::ptr_eq(&old, &new) {
            instances(name, &old, &new, events);
        }
    }
    let limbo: Vec<_> =
        now.limbo.difference(&before.limbo).map(|(service, addr)| format!("{service} {addr}")).collect();
    tell(&limbo, "lost by the registry, still called (limbo)", events);
}

fn instances(service: &str, old: &Instances, new: &Instances, events: &Events) {
    let (mut joined, mut draining, mut restarted, mut left) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let named = |instance: &Arc<Instance>| format!("{service} {}", instance.addr);
    for (addr, instance) in new {
        match old.get(addr) {
            None => joined.push(named(instance)),
            Some(known) if known.id != instance.id => restarted.push(named(instance)),
            Some(known) if !known.draining && instance.draining => draining.push(named(instance)),
            Some(_) => {}
        }
    }
    left.extend(old.iter().filter(|(addr, _)| !new.contains_key(*addr)).map(|(_, instance)| named(instance)));
    for (who, what) in
        [(joined, "joined"), (restarted, "has another process"), (draining, "drains"), (left, "left")]
    {
        tell(&who, what, events);
    }
}

/// Notes what some instances do: each by itself, or their number if they are many.
fn tell(who: &[String], what: &str, events: &Events) {
    if who.len() > NAMED {
        let first = who.first().map_or("", String::as_str);
        events.note(Kind::Instance, format!("{first} and {} more: {what}", who.len() - 1));
        return;
    }
    for instance in who {
        events.note(Kind::Instance, format!("{instance}: {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(epoch: u64, limbo: &[&str], instances: &[(&str, &str, bool)]) -> View {
        let mut view = View { revision: 1, epoch, ..View::default() };
        for (addr, id, draining) in instances {
            let bare = Instance::bare("feed", addr);
            let instance = Instance { id: (*id).to_owned(), draining: *draining, ..bare };
            let feed = view.services.entry("feed".to_owned()).or_default();
            Arc::make_mut(feed).insert((*addr).to_owned(), Arc::new(instance));
        }
        view.limbo = limbo.iter().map(|addr| ("feed".to_owned(), (*addr).to_owned())).collect();
        view
    }

    /// Returns what is noted between two views, the oldest first.
    fn noted(before: &View, now: &View) -> Vec<String> {
        let events = Events::default();
        compare(before, now, &events);
        events.latest().into_iter().rev().map(|event| event.text.into_owned()).collect()
    }

    #[test]
    fn changes_of_the_view_are_events() {
        let empty = View::default();
        let two = view(0, &[], &[("a:1", "1", false), ("b:1", "2", false)]);
        assert_eq!(noted(&empty, &two), ["feed a:1: joined", "feed b:1: joined"]);
        assert!(noted(&two, &two.clone()).is_empty());
        let changed = view(1, &["b:1"], &[("a:1", "9", false), ("b:1", "2", false), ("c:1", "3", false)]);
        let reset = "the view was reset: the registry is another cluster, or an older state of the same one";
        assert_eq!(
            noted(&two, &changed),
            [
                reset,
                "feed c:1: joined",
                "feed a:1: has another process",
                "feed b:1: lost by the registry, still called (limbo)"
            ]
        );
        let drained = view(0, &[], &[("a:1", "1", true)]);
        assert_eq!(noted(&two, &drained), ["feed a:1: drains", "feed b:1: left"]);
        assert_eq!(noted(&drained, &empty), ["feed a:1: left"]);
        // a thousand at once do not push out everything else
        let addrs: Vec<_> = (0..1000).map(|n| format!("a:{n:04}")).collect();
        let many: Vec<_> = addrs.iter().map(|addr| (addr.as_str(), "1", false)).collect();
        assert_eq!(noted(&empty, &view(0, &[], &many)), ["feed a:0000 and 999 more: joined"]);
    }
}
