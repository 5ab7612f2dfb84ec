//! Probes the instances in limbo: the registry no longer lists them, and only they know whether they serve.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::stable_view::StableView;
use crate::registry::instance::Instance;

/// Time between two probes of an instance.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Longest time for the answer. A host that is overloaded may need half a second, and trouble in etcd often has the same
/// cause; the dead are to leave within a second.
const PROBE_LIMIT: Duration = Duration::from_millis(900);
/// A probe that ends so much after its time limit was held up by this process, which was stopped or overloaded.
const OWN_PAUSE: Duration = Duration::from_millis(20);
/// Most probes at the same time: each is a connection. A thousand silent instances are found dead in 4 s.
const MAX_PROBES: usize = 256;

/// Asks an instance whether it serves; `Err` holds the reason why not. The caller limits the time.
pub type Probe = Arc<dyn Fn(Arc<Instance>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Probes whatever is in limbo, each instance by itself, also while etcd is away. Never returns.
pub async fn probe(stable: &StableView, probe: Probe) {
    let permits = Semaphore::new(MAX_PROBES);
    let mut running = BTreeSet::new();
    let mut probes = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(key) = probes.next() => {
                running.remove(&key);
            }
            () = stable.doubted() => {}
        }
        for instance in stable.in_limbo() {
            let key = (instance.service.clone(), instance.addr.clone());
            if running.insert(key.clone()) {
                let (probe, permits) = (&probe, &permits);
                probes.push(async move {
                    until_decided(stable, probe, permits, instance).await;
                    key
                });
            }
        }
    }
}

/// Probes one instance until it is no longer in limbo, which its first failed probe brings about.
async fn until_decided(stable: &StableView, probe: &Probe, permits: &Semaphore, instance: Arc<Instance>) {
    let mut excused = false;
    while stable.doubts(&instance) {
        // the semaphore is never closed
        let permit = permits.acquire().await;
        let begun = Instant::now();
        let answer = tokio::time::timeout(PROBE_LIMIT, probe(instance.clone())).await;
        drop(permit);
        let reason = match answer {
            Ok(Ok(())) => {
                excused = false;
                tokio::time::sleep_until(begun + PROBE_EVERY).await;
                continue;
            }
            Ok(Err(reason)) => reason,
            Err(_) => "no answer".to_owned(),
        };
        // the answer may have come while this process was stopped: the instance is asked once more
        if begun.elapsed() > PROBE_LIMIT + OWN_PAUSE && !std::mem::replace(&mut excused, true) {
            continue;
        }
        let (service, addr) = (&instance.service, &instance.addr);
        tracing::info!(service, addr, reason, "gave up an instance that the registry had lost");
        stable.give_up(service, addr);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::config;
    use crate::registry::view::Publisher;

    /// Returns a view in which so many instances are in limbo.
    fn in_limbo(instances: usize) -> StableView {
        let stable = StableView::restore(&config::Registry::default(), Publisher::new().0);
        let listed = (0..instances).map(|n| Instance::bare("feed", &format!("10.0.0.1:{n}"))).collect();
        stable.change(|keeper| keeper.list(1, 1, false, listed));
        stable.change(|keeper| keeper.list(1, 2, false, Vec::new()));
        assert_eq!(stable.in_limbo().len(), instances);
        stable
    }

    async fn probe_for(stable: &StableView, time: Duration, probe: Probe) {
        tokio::time::timeout(time, super::probe(stable, probe)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_instance_leaves_at_once_beside_silent_ones() {
        let stable = in_limbo(3);
        let probe: Probe = Arc::new(|instance| {
            Box::pin(async move {
                match instance.addr.as_str() {
                    "10.0.0.1:0" => Ok(()),
                    "10.0.0.1:1" => Err("refused".to_owned()),
                    _ => std::future::pending().await,
                }
            })
        });
        probe_for(&stable, PROBE_LIMIT / 10, probe.clone()).await;
        assert_eq!(stable.in_limbo().len(), 2);
        // those that enter limbo meanwhile do not wait for the silent one either
        stable.change(|keeper| keeper.put(Instance::bare("feed", "10.0.0.1:1")));
        let both = async {
            tokio::time::sleep(PROBE_LIMIT / 10).await;
            stable.change(|keeper| keeper.delete("feed", "10.0.0.1:1"));
            tokio::time::sleep(PROBE_LIMIT / 10).await;
            assert_eq!(stable.in_limbo().len(), 2);
        };
        tokio::join!(both, probe_for(&stable, 4 * PROBE_LIMIT, probe));
        assert_eq!(stable.in_limbo().len(), 1, "the silent one has left, the one that serves has not");
    }

    #[tokio::test(start_paused = true)]
    async fn probes_are_bounded_and_none_is_left_out() {
        let stable = in_limbo(1000);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let probe: Probe = {
            let (now, most) = (now.clone(), most.clone());
            Arc::new(move |_| {
                let guard = counted(now.clone());
                most.fetch_max(now.load(Relaxed), Relaxed);
                Box::pin(async move {
                    let _guard = guard;
                    std::future::pending().await
                })
            })
        };
        probe_for(&stable, 4 * PROBE_LIMIT + OWN_PAUSE, probe).await;
        assert_eq!((most.load(Relaxed), stable.in_limbo().len()), (MAX_PROBES, 0));
    }

    /// Counts one probe until it is dropped.
    struct Counted(Arc<AtomicUsize>);

    fn counted(now: Arc<AtomicUsize>) -> Counted {
        now.fetch_add(1, Relaxed);
        Counted(now)
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_this_process_is_not_the_instances_fault() {
        let stable = in_limbo(1);
        let asked = Arc::new(AtomicUsize::new(0));
        let probe: Probe = {
            let asked = asked.clone();
            Arc::new(move |_| {
                let number = asked.fetch_add(1, Relaxed);
                Box::pin(async move {
                    if number == 0 {
                        // everything is late, the time limit too
                        tokio::time::advance(2 * PROBE_LIMIT).await;
                        std::future::pending::<()>().await;
                    }
                    Ok(())
                })
            })
        };
        probe_for(&stable, 4 * PROBE_LIMIT, probe).await;
        assert!(asked.load(Relaxed) > 1);
        assert_eq!(stable.in_limbo().len(), 1);
    }
}
