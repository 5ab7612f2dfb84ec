//! Probes the instances in limbo: the registry no longer lists them, and only they know whether they serve.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::Instant;

use super::stable_view::StableView;
use crate::registry::instance::Instance;

/// Time between two probes of an instance, and longest time for the answer.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// Asks an instance whether it serves; `Err` holds the reason why not. The caller limits the time.
pub type Probe = Arc<dyn Fn(Arc<Instance>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Probes whatever is in limbo, also while etcd is away. Never returns.
pub async fn probe(stable: &StableView, probe: Probe) {
    loop {
        stable.doubted().await;
        loop {
            let doubted = stable.in_limbo();
            if doubted.is_empty() {
                break;
            }
            let next = Instant::now() + PROBE_EVERY;
            let probes = doubted.into_iter().map(|instance| {
                let answer = probe(instance.clone());
                async move { (tokio::time::timeout(PROBE_EVERY, answer).await, instance) }
            });
            for (answer, instance) in join_all(probes).await {
                let reason = match answer {
                    Ok(Ok(())) => continue,
                    Ok(Err(reason)) => reason,
                    Err(_) => "no answer".to_owned(),
                };
                let (service, addr) = (&instance.service, &instance.addr);
                tracing::info!(service, addr, reason, "gave up an instance that the registry had lost");
                stable.give_up(service, addr);
            }
            tokio::time::sleep_until(next).await;
        }
    }
}
