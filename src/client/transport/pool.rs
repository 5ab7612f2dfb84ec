//! The connections to one instance. Each is kept by a task that opens it, follows it, opens it again with
//! backoff, and replaces it in time. The first one is always wanted; further ones are opened when each open
//! connection has several calls in flight (gRPC proposal A105 does so when streams run out).
//!
//! tonic's channel hides what is needed here: whether a connection is up, and whether a failed call was ever
//! sent. So the connections are hyper's.
//!
//! A connection counts as up only once the peer has answered a health watch on it, even if with a refusal: a
//! socket that is bound but not served accepts connections, too. A connection on which an HTTP/2 ping stays
//! unanswered is closed. One that is old, or on which a call was given up and a health check then stays
//! unanswered, is replaced: calls move to its successor once that is open, and calls in flight on it finish. Until
//! then a connection that does not respond gets new calls only if there is no other one, to any instance.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::error::chain;
use crate::backoff::Backoff;
use crate::client::transport::connection::{Dialer, RequestSender};
use crate::client::transport::health::{self, WatchedConnection};
use crate::client::transport::state::ConnectionState;

/// The first wait before connecting again; the longest is `client.reconnect_cap_ms`.
const FIRST_RECONNECT_WAIT: Duration = Duration::from_millis(50);
/// After a connection lasted this long the next attempts begin with the first wait again.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Calls in flight on every open connection at which one more is opened, if there may be more.
const CALLS_BEFORE_GROWTH: usize = 8;
/// A call that was given up after this long without an answer makes its connection suspect. Shorter ones say
/// nothing: their callers were in a hurry.
const SUSPECT_AFTER: Duration = Duration::from_millis(100);
/// Least time between two health checks of a suspect connection.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Called with the id of an instance, if it sent one.
pub type OnConnect = dyn Fn(Option<&str>) + Send + Sync;

/// How the user of a pool learns what happens to its connections.
pub struct PoolEvents {
    /// Notified whenever the state of a connection changes.
    pub changed: Arc<Notify>,
    /// Called when an instance that was not connected has connected.
    pub on_connect: Box<OnConnect>,
}

/// `client_connections_total` of one service.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    /// Opened.
    pub opened: IntCounter,
    /// Lost: broken, or closed by the peer.
    pub lost: IntCounter,
    /// Replaced because of their age, or because they did not respond.
    pub replaced: IntCounter,
}

/// The connections to one instance. Their tasks end when it is dropped; calls in flight still finish.
pub struct Pool {
    connections: Arc<Connections>,
    _tasks: DropGuard,
}

/// What the tasks of a pool share with its callers.
struct Connections {
    addr: String,
    dialer: Dialer,
    slots: Box<[Slot]>,
    /// Notified when the open connections have many calls in flight.
    grow: Notify,
    last_error: ArcSwapOption<String>,
    events: PoolEvents,
    metrics: ConnectionMetrics,
}

/// The place of one connection.
#[derive(Default)]
struct Slot {
    open: ArcSwapOption<OpenConnection>,
    /// A [`ConnectionState`].
    state: AtomicU8,
}

impl Slot {
    fn state(&self) -> ConnectionState {
        ConnectionState::of(self.state.load(Acquire))
    }
}

/// A connection that can be used.
struct OpenConnection {
    sender: RequestSender,
    /// Distinguishes it from every other connection of this process.
    number: u64,
    calls: AtomicUsize,
    /// Notified when a call on it was given up or is slow: either its handler is slow or the connection is dead.
    suspect: Arc<Notify>,
}

/// One call on a connection, from pick to end.
pub struct CallOnConnection {
    connection: Arc<OpenConnection>,
    begun: Instant,
    ended: bool,
}

impl CallOnConnection {
    fn new(connection: Arc<OpenConnection>) -> Self {
        connection.calls.fetch_add(1, Relaxed);
        Self { connection, begun: Instant::now(), ended: false }
    }

    /// Returns what sends requests on the connection.
    #[must_use]
    pub fn sender(&self) -> RequestSender {
        self.connection.sender.clone()
    }

    /// Returns the number that distinguishes the connection from every other one of this process.
    #[must_use]
    pub fn connection_number(&self) -> u64 {
        self.connection.number
    }

    /// Returns what to notify to have the connection checked.
    #[must_use]
    pub fn suspect(&self) -> Arc<Notify> {
        self.connection.suspect.clone()
    }

    /// Notes that the exchange has ended. A call that is dropped before was given up.
    pub const fn set_ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for CallOnConnection {
    fn drop(&mut self) {
        self.connection.calls.fetch_sub(1, Relaxed);
        if !self.ended && self.begun.elapsed() >= SUSPECT_AFTER {
            self.connection.suspect.notify_one();
        }
    }
}

impl Pool {
    /// Begins to connect.
    #[must_use]
    pub fn open(addr: String, dialer: Dialer, events: PoolEvents, metrics: ConnectionMetrics) -> Self {
        let slots: Box<[Slot]> = (0..dialer.settings.connections.max(1)).map(|_| Slot::default()).collect();
        // further connections may never be wanted, so the instance must not look as if it still connected
        slots.iter().skip(1).for_each(|slot| slot.state.store(ConnectionState::Down as u8, Relaxed));
        let (grow, last_error) = (Notify::new(), ArcSwapOption::empty());
        let connections = Arc::new(Connections { addr, dialer, slots, grow, last_error, events, metrics });
        let stop = CancellationToken::new();
        for index in 0..connections.slots.len() {
            let task = keep_connected(connections.clone(), index);
            tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        }
        Self { connections, _tasks: stop.drop_guard() }
    }

    /// Returns the instance's address.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.connections.addr
    }

    /// Returns which service the instance must be, `<key prefix><service>`.
    #[must_use]
    pub fn identity(&self) -> &HeaderValue {
        &self.connections.dialer.identity
    }

    /// Returns whether the instance can be called.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.connections.state()
    }

    /// Returns how many connections are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.connections.slots.iter().filter(|slot| slot.open.load().is_some()).count()
    }

    /// Returns what last went wrong, with the connection or with a call.
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<String>> {
        self.connections.last_error.load_full()
    }

    /// Notes what went wrong with a call.
    pub fn note_error(&self, error: String) {
        self.connections.last_error.store(Some(Arc::new(error)));
    }

    /// Notes that the peer is another service: it gets no calls until it connects anew.
    pub fn note_wrong_service(&self, other: &HeaderValue) {
        let open = self.connections.slots.iter().filter(|slot| slot.open.load().is_some());
        open.for_each(|slot| self.connections.set_wrong_service(slot, other));
    }

    /// Sets the state of every connection, without one.
    #[cfg(test)]
    pub fn pretend(&self, state: ConnectionState) {
        let slots = self.connections.slots.iter();
        slots.for_each(|slot| slot.state.store(state as u8, std::sync::atomic::Ordering::Release));
    }

    /// Picks the open connection with the fewest calls, if possible one that responds; `None` if there is none.
    #[must_use]
    pub fn pick(&self) -> Option<CallOnConnection> {
        let slots = &self.connections.slots;
        let open = slots.iter().filter_map(|slot| Some((slot.state(), slot.open.load_full()?)));
        let (_, best) = open.min_by_key(|(state, connection)| {
            (*state == ConnectionState::Unresponsive, connection.calls.load(Relaxed))
        })?;
        if best.calls.load(Relaxed) >= CALLS_BEFORE_GROWTH
            && slots.iter().any(|slot| slot.open.load().is_none())
        {
            self.connections.grow.notify_one();
        }
        Some(CallOnConnection::new(best))
    }
}

impl Connections {
    fn state(&self) -> ConnectionState {
        ConnectionState::combined(self.slots.iter().map(Slot::state))
    }

    /// Sets the state of one connection; returns the previous one.
    fn set_state(&self, slot: &Slot, state: ConnectionState) -> ConnectionState {
        let before = slot.state.swap(state as u8, AcqRel);
        if before != state as u8 {
            self.events.changed.notify_one();
        }
        ConnectionState::of(before)
    }

    /// Notes what the instance says of its health on one connection.
    fn set_health(&self, slot: &Slot, serving: bool) {
        if slot.state() != ConnectionState::WrongService {
            self.set_state(slot, if serving { ConnectionState::Up } else { ConnectionState::NotServing });
        }
    }

    /// Notes that the peer does not answer a health check on one connection.
    fn set_unresponsive(&self, slot: &Slot) {
        if slot.state() == ConnectionState::Up {
            self.set_state(slot, ConnectionState::Unresponsive);
        }
    }

    fn set_wrong_service(&self, slot: &Slot, found: &HeaderValue) {
        if self.set_state(slot, ConnectionState::WrongService) != ConnectionState::WrongService {
            let (addr, wanted) = (&self.addr, &self.dialer.identity);
            tracing::warn!(addr, ?wanted, ?found, "another service answers at this address");
        }
    }
}

/// Keeps the connection of one slot open. Never returns.
async fn keep_connected(connections: Arc<Connections>, index: usize) {
    static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
    let Some(slot) = connections.slots.get(index) else {
        return;
    };
    let mut backoff = Backoff::new(FIRST_RECONNECT_WAIT, connections.dialer.settings.reconnect_cap);
    let mut successor = None;
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
                    Err(error) => {
                        connections.metrics.lost.inc();
                        if begun.elapsed() > STABLE_AFTER {
                            backoff.reset();
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
        connections.last_error.store(Some(Arc::new(error)));
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Offers one connection to callers until it ends, which is an error, or until its successor is open.
async fn offer(
    connections: &Connections,
    slot: &Slot,
    opened: WatchedConnection,
    number: u64,
) -> Result<WatchedConnection, String> {
    let (addr, identity) = (&connections.addr, &connections.dialer.identity);
    let WatchedConnection { sender, mut ended, watch } = opened;
    if !connections.state().is_connected() {
        (connections.events.on_connect)(watch.instance().as_deref());
    }
    connections.metrics.opened.inc();
    let (calls, suspect) = (AtomicUsize::new(0), Arc::default());
    let open = Arc::new(OpenConnection { sender: sender.clone(), number, calls, suspect });
    slot.open.store(Some(open.clone()));
    match watch.wrong_service() {
        Some(found) => connections.set_wrong_service(slot, found),
        None => {
            connections.set_state(slot, ConnectionState::Up);
        }
    }
    let replacement = async {
        let age = connections.dialer.settings.connection_age.mul_f64(crate::random::range(0.8..=1.2));
        tokio::select! {
            () = tokio::time::sleep(age) => {}
            () = unresponsive(connections, &open) => {
                tracing::info!(addr, "a connection does not respond, opening another");
                connections.set_unresponsive(slot);
            }
        }
        open_successor(connections).await
    };
    let report = |serving| connections.set_health(slot, serving);
    let result = tokio::select! {
        result = &mut ended => result,
        never = health::follow(watch, sender, addr, identity, report) => match never {},
        successor = replacement => return Ok(successor),
    };
    slot.open.store(None);
    Err(match result {
        Ok(Ok(())) => "closed by the peer".to_owned(),
        Ok(Err(error)) => chain(&error),
        Err(error) => chain(&error),
    })
}

/// Returns once a connection is suspect and does not answer a health check either.
async fn unresponsive(connections: &Connections, open: &OpenConnection) {
    loop {
        open.suspect.notified().await;
        if !health::answers(open.sender.clone(), &connections.addr, &connections.dialer.identity).await {
            return;
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
