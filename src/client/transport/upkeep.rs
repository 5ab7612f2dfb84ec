//! The task that keeps one connection to an instance: opens it, follows it, opens it again with backoff, and replaces
//! it in time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::error::chain;
use crate::backoff::Backoff;
use crate::client::transport::health::{self, WatchedConnection};
use crate::client::transport::slots::{Connections, OpenConnection, Slot};
use crate::client::transport::state::ConnectionState;

/// The first wait before connecting again; the longest is `client.reconnect_cap_ms`.
const FIRST_RECONNECT_WAIT: Duration = Duration::from_millis(50);
/// After a connection lasted this long the next attempts begin with the first wait again. Also the least time
/// between two attempts to reconnect without a wait after connections on which no call was answered: a peer that
/// closes every connection at once is not asked in a loop.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Time for an answer on a connection that is suspected to be dead. After half of it the peer is asked on another one.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);
/// Least time between two health checks of a suspect connection.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Time in which a connection may still be replaced after its peer's certificate has ceased to count.
const LAST_REPLACEMENT: Duration = Duration::from_secs(1);

/// Keeps the connection of one slot open. Never returns.
pub async fn keep_connected(connections: Arc<Connections>, index: usize) {
    static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
    let Some(slot) = connections.slots.get(index) else {
        return;
    };
    let mut backoff = Backoff::new(FIRST_RECONNECT_WAIT, connections.dialer.settings.reconnect_cap);
    let mut successor = None;
    let mut last_at_once: Option<Instant> = None;
    loop {
        if index > 0 && successor.is_none() {
            connections.grow.notified().await;
        }
        let opened = match successor.take() {
            Some(opened) => Ok(opened),
            None => health::open(&connections.addr, &connections.dialer).await,
        };
        let error = match opened {
            Ok(opened) => {
                let begun = Instant::now();
                match offer(&connections, slot, opened, NEXT_NUMBER.fetch_add(1, Relaxed)).await {
                    Ok(next) => {
                        connections.metrics.replaced.inc();
                        successor = Some(next);
                        continue;
                    }
                    Err(Lost { error, answered }) => {
                        connections.metrics.lost.inc();
                        if begun.elapsed() > STABLE_AFTER {
                            backoff.reset();
                        }
                        let first = last_at_once.is_none_or(|last| last.elapsed() > STABLE_AFTER);
                        if index == 0 && (answered || first) {
                            last_at_once = Some(Instant::now());
                            tracing::debug!(
                                addr = connections.addr,
                                error,
                                "connection lost, opening another"
                            );
                            connections.note_error(error);
                            connections.set_state(slot, ConnectionState::Connecting);
                            continue;
                        }
                        error
                    }
                }
            }
            Err(error) => error,
        };
        let before = connections.set_state(slot, ConnectionState::Down);
        if before != ConnectionState::Down && connections.state() == ConnectionState::Down {
            tracing::info!(addr = connections.addr, error, "instance is down");
        }
        connections.note_error(error);
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// A connection that was lost.
struct Lost {
    /// Why, for operators.
    error: String,
    /// True if a call on it was answered.
    answered: bool,
}

/// Offers one connection to callers until it ends, which is an error, or until its successor is open.
async fn offer(
    connections: &Connections,
    slot: &Slot,
    opened: WatchedConnection,
    number: u64,
) -> Result<WatchedConnection, Lost> {
    let (addr, identity) = (&connections.addr, &connections.dialer.identity);
    let WatchedConnection { sender, mut ended, watch, validity } = opened;
    if !connections.state().is_connected() {
        (connections.events.on_connect)(watch.instance().as_deref());
    }
    connections.metrics.opened.inc();
    let open = Arc::new(OpenConnection {
        sender: sender.clone(),
        number,
        calls: AtomicUsize::new(0),
        answered: AtomicBool::new(false),
        suspect: Arc::default(),
    });
    slot.open.store(Some(open.clone()));
    let _offer = connections.dialer.connector.offer(addr, number, sender.clone());
    match watch.wrong_service() {
        Some(found) => connections.set_wrong_service(slot, found),
        None => {
            connections.set_state(slot, ConnectionState::Up);
        }
    }
    let aged = async {
        let age = connections.dialer.settings.connection_age.mul_f64(crate::random::range(0.8..=1.2));
        tokio::time::sleep(age).await;
        open_successor(connections).await
    };
    let outdated = async {
        let Some(validity) = &validity else {
            return std::future::pending().await;
        };
        validity.is_outdated().await;
        open_successor(connections).await
    };
    let invalid = async {
        let Some(validity) = &validity else {
            return std::future::pending().await;
        };
        let error = validity.ended().await;
        // its successor may be on its way
        tokio::time::sleep(LAST_REPLACEMENT).await;
        error
    };
    let silent = async {
        let another = until_silent(connections, &open).await;
        tracing::info!(addr, "a connection does not respond, opening another");
        if let Some(another) = another {
            return another; // the peer itself responds
        }
        connections.set_unresponsive(slot);
        open_successor(connections).await
    };
    let report = |serving| connections.set_health(slot, serving);
    let silence = connections.dialer.settings.keepalive;
    let result = tokio::select! {
        result = &mut ended => result,
        never = health::follow(watch, sender.clone(), addr, identity, report) => match never {},
        never = health::keep_heard(sender, addr, identity, silence) => match never {},
        // an old one that cannot be replaced may have become silent
        successor = aged => return Ok(successor),
        successor = outdated => return Ok(successor),
        error = invalid => {
            slot.open.store(None);
            return Err(Lost { error, answered: open.answered.load(Relaxed) });
        }
        successor = silent => return Ok(successor),
    };
    slot.open.store(None);
    let error = match result {
        Ok(Ok(())) => "closed by the peer".to_owned(),
        Ok(Err(error)) => chain(&error),
        Err(error) => chain(&error),
    };
    Err(Lost { error, answered: open.answered.load(Relaxed) })
}

/// Returns once a connection is suspect and does not answer a health check, with another connection if the peer has
/// answered on that. A check waits where the peer's limit of streams is reached by slow calls, so one that takes long says
/// nothing of the peer.
async fn until_silent(connections: &Connections, open: &OpenConnection) -> Option<WatchedConnection> {
    let (addr, dialer) = (&connections.addr, &connections.dialer);
    loop {
        open.suspect.notified().await;
        let another = async {
            tokio::time::sleep(CHECK_TIMEOUT / 2).await;
            match health::open(addr, dialer).await {
                Ok(another) => another,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            answers = health::answers(open.sender.clone(), addr, &dialer.identity, CHECK_TIMEOUT) => {
                if !answers {
                    return None;
                }
            }
            another = another => return Some(another),
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Opens the connection that replaces another one; tries until it succeeds.
async fn open_successor(connections: &Connections) -> WatchedConnection {
    let mut backoff = Backoff::new(FIRST_RECONNECT_WAIT, connections.dialer.settings.reconnect_cap);
    loop {
        match health::open(&connections.addr, &connections.dialer).await {
            Ok(opened) => return opened,
            Err(error) => {
                tracing::debug!(addr = connections.addr, error, "a connection cannot be replaced yet");
            }
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}
