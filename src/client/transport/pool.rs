//! The connections to one instance. Each is kept by a task that opens it, follows it, opens it again with
//! backoff, and replaces it in time. The first one is always wanted; further ones are opened when each open
//! connection has several calls in flight (gRPC proposal A105 does so when streams run out).
//!
//! tonic's channel hides what is needed here: whether a connection is up, and whether a failed call was ever
//! sent. So the connections are hyper's.
//!
//! A connection that is lost is opened again at once, without a backoff: the instance was alive a moment ago. Until
//! that attempt fails the instance counts as connecting, and calls that have no other one wait for it.
//!
//! A connection counts as up only once the peer has answered a health watch on it, even if with a refusal: a
//! socket that is bound but not served accepts connections, too. A connection on which an HTTP/2 ping stays
//! unanswered is closed. One that is old, or on which a call was given up and a health check then stays
//! unanswered, is replaced: calls move to its successor once that is open, and calls in flight on it finish. Until
//! then a connection that does not respond gets new calls only if there is no other one, to any instance.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::HeaderValue;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::transport::connection::Dialer;
use crate::client::transport::slots::{CallOnConnection, ConnectionMetrics, Connections, PoolEvents};
use crate::client::transport::state::ConnectionState;
use crate::client::transport::upkeep::keep_connected;

/// Calls in flight on every open connection at which one more is opened, if there may be more.
const CALLS_BEFORE_GROWTH: usize = 8;
/// The connections to one instance. Their tasks end when it is dropped; calls in flight still finish.
pub struct Pool {
    connections: Arc<Connections>,
    _tasks: DropGuard,
}

impl Pool {
    /// Begins to connect.
    #[must_use]
    pub fn open(addr: String, dialer: Dialer, events: PoolEvents, metrics: ConnectionMetrics) -> Self {
        let connections = Arc::new(Connections::new(addr, dialer, events, metrics));
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
        self.connections.note_error(error);
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
        let open = open.filter(|(_, connection)| !connection.sender.is_closed());
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
