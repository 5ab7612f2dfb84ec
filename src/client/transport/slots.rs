//! What the tasks that keep the connections to one instance share with its callers: a slot for each connection, its
//! state, and the calls on it. It opens nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::transport::connection::{Dialer, RequestSender};
use crate::client::transport::state::ConnectionState;

/// A call that was given up after this long without an answer makes its connection suspect. Shorter ones say
/// nothing: their callers were in a hurry.
const SUSPECT_AFTER: Duration = Duration::from_millis(100);

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

/// What the tasks of a pool share with its callers.
pub struct Connections {
    /// The instance's address.
    pub addr: String,
    /// Opens connections.
    pub dialer: Dialer,
    /// One for each connection that there may be.
    pub slots: Box<[Slot]>,
    /// Notified when the open connections have many calls in flight.
    pub grow: Notify,
    /// What last went wrong.
    pub last_error: ArcSwapOption<String>,
    /// Called when something changes.
    pub events: PoolEvents,
    /// What is counted.
    pub metrics: ConnectionMetrics,
}

/// The place of one connection.
#[derive(Default)]
pub struct Slot {
    /// The connection, while there is one.
    pub open: ArcSwapOption<OpenConnection>,
    /// A [`ConnectionState`].
    pub state: AtomicU8,
}

impl Slot {
    /// Returns the state. A connection that hyper has closed is not up any more, although the task of the slot may
    /// not have seen its end yet.
    pub fn state(&self) -> ConnectionState {
        match ConnectionState::of(self.state.load(Acquire)) {
            state if state.is_connected() && self.is_closed() => ConnectionState::Connecting,
            state => state,
        }
    }

    fn is_closed(&self) -> bool {
        self.open.load().as_ref().is_some_and(|open| open.sender.is_closed())
    }
}

/// A connection that can be used.
pub struct OpenConnection {
    /// Sends requests on it.
    pub sender: RequestSender,
    /// Distinguishes it from every other connection of this process.
    pub number: u64,
    /// Calls in flight.
    pub calls: AtomicUsize,
    /// True once a call on it was answered.
    pub answered: AtomicBool,
    /// Notified when a call on it was given up or is slow: either its handler is slow or the connection is dead.
    pub suspect: Arc<Notify>,
}

/// One call on a connection, from pick to end.
pub struct CallOnConnection {
    connection: Arc<OpenConnection>,
    begun: Instant,
    ended: bool,
}

impl CallOnConnection {
    /// Begins a call on a connection.
    pub fn new(connection: Arc<OpenConnection>) -> Self {
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

    /// Notes that the exchange has ended, and whether with an answer of the peer. A call that is dropped before was
    /// given up.
    pub fn set_ended(&mut self, answered: bool) {
        self.ended = true;
        if answered && !self.connection.answered.load(Relaxed) {
            self.connection.answered.store(true, Relaxed);
        }
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

impl Connections {
    /// Returns the slots without a connection: the first one is being opened.
    pub fn new(addr: String, dialer: Dialer, events: PoolEvents, metrics: ConnectionMetrics) -> Self {
        let slots: Box<[Slot]> = (0..dialer.settings.connections.max(1)).map(|_| Slot::default()).collect();
        // further connections may never be wanted, so the instance must not look as if it still connected
        slots.iter().skip(1).for_each(|slot| slot.state.store(ConnectionState::Down as u8, Relaxed));
        let (grow, last_error) = (Notify::new(), ArcSwapOption::empty());
        Self { addr, dialer, slots, grow, last_error, events, metrics }
    }

    /// Returns whether the instance can be called.
    pub fn state(&self) -> ConnectionState {
        ConnectionState::combined(self.slots.iter().map(Slot::state))
    }

    /// Notes what went wrong.
    pub fn note_error(&self, error: String) {
        self.last_error.store(Some(Arc::new(error)));
    }

    /// Sets the state of one connection; returns the previous one.
    pub fn set_state(&self, slot: &Slot, state: ConnectionState) -> ConnectionState {
        let before = slot.state.swap(state as u8, AcqRel);
        if before != state as u8 {
            self.events.changed.notify_one();
        }
        ConnectionState::of(before)
    }

    /// Notes what the instance says of its health on one connection.
    pub fn set_health(&self, slot: &Slot, serving: bool) {
        if slot.state() != ConnectionState::WrongService {
            self.set_state(slot, if serving { ConnectionState::Up } else { ConnectionState::NotServing });
        }
    }

    /// Notes that the peer does not answer a health check on one connection.
    pub fn set_unresponsive(&self, slot: &Slot) {
        if slot.state() == ConnectionState::Up {
            self.set_state(slot, ConnectionState::Unresponsive);
        }
    }

    /// Notes that the peer of one connection is another service.
    pub fn set_wrong_service(&self, slot: &Slot, found: &HeaderValue) {
        if self.set_state(slot, ConnectionState::WrongService) != ConnectionState::WrongService {
            let (addr, wanted) = (&self.addr, &self.dialer.identity);
            tracing::warn!(addr, ?wanted, ?found, "another service answers at this address");
        }
    }
}
