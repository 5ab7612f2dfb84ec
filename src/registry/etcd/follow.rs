//! Follows etcd: a session lists and watches, and after any failure a new one begins.

use std::sync::Arc;

use tokio::time::Instant;

use super::access::Access;
use super::failure::{UNREACHABLE, Waits, has_lasted};
use super::limbo::{self, Probe};
use super::reader::Reader;
use super::snapshot;
use super::stable_view::StableView;
use crate::config::Registry;
use crate::registry::view::Publisher;

/// Follows etcd until nobody reads the view any more.
pub async fn follow(settings: Arc<Registry>, access: Arc<Access>, publisher: Publisher, probe: Probe) {
    let stable = StableView::restore(&settings, publisher);
    let keep_snapshot = async {
        match &settings.snapshot_file {
            Some(path) => snapshot::keep(path, stable.subscribe()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stable.closed() => {}
        () = follow_etcd(&settings, &access, &stable) => {}
        () = stable.publish() => {}
        () = limbo::probe(&stable, probe) => {}
        () = keep_snapshot => {}
    }
}

async fn follow_etcd(settings: &Registry, access: &Access, stable: &StableView) {
    let mut waits = Waits::new(settings);
    let mut reader = Reader::default();
    let mut first = true;
    let mut link = None;
    let mut connected = access.connected();
    loop {
        reader.listed = false;
        connected.mark_unchanged();
        let begun = Instant::now();
        let failure = match Box::pin(reader.connected(settings, access, link.take(), stable)).await {
            Ok(renewed) => {
                link = Some(renewed);
                continue;
            }
            Err(failure) => failure,
        };
        let error = failure.to_string();
        if reader.listed && has_lasted(settings, begun) {
            waits.reset();
        }
        let wait = waits.after(&failure);
        if reader.listed {
            tracing::warn!(error, "lost the registry, keeping the last view");
        } else if first {
            let hint = failure.is_of_connecting().then_some(UNREACHABLE);
            tracing::warn!(error, hint, "the registry cannot be reached yet");
        } else {
            // one line for an outage, not one every second
            tracing::debug!(error, ?wait, "the registry cannot be reached");
        }
        first = false;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // the registration of this process has found etcd
            _ = connected.changed(), if failure.is_of_connecting() => {}
        }
    }
}
