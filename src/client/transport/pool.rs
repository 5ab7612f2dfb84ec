//! The HTTP/2 connections to one instance, each kept by a task: opened, watched, opened again with backoff,
//! and replaced in time. The first is always there; further ones are opened when each has several calls in
//! flight (gRPC proposal A105 does so when streams run out).
//!
//! tonic's channel hides what matters here: whether a connection is up, and whether a failed call ever
//! left this host. So the connections are hyper's.
//!
//! A connection counts only once the peer has said something on it (its answer to a health watch, even a
//! refusal): a socket that is bound but not served accepts connections too. One on which a ping stays
//! unanswered is given up. One that is old, or on which a call was given up and a health check then stays
//! unanswered, is replaced: its successor is open before calls leave it, and what is in flight on it finishes.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use prometheus::IntCounter;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::error::chain;
use crate::backoff::Backoff;
use crate::client::transport::connection::{Opened, open};
use crate::config;

/// The first wait before connecting again.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// A connection that lasted this long was a good one: the next tries begin with the first wait again.
const STEADY: Duration = Duration::from_secs(1);
/// Calls in flight on every open connection at which one more is opened, if there may be more.
const CROWDED: usize = 8;
/// A call that was given up after this long, unanswered, raises a doubt about its connection.
const PATIENCE: Duration = Duration::from_millis(100);
/// Least time between two looks at a doubted connection.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whether an instance can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The first connection is being opened.
    Connecting = 0,
    /// Connected.
    Up = 1,
    /// The last try to connect failed, or the connection broke.
    Down = 2,
    /// Connected, but its health says that it does not serve.
    NotServing = 3,
    /// Connected, but another service answers at this address.
    WrongService = 4,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Connecting, Self::Up, Self::Down, Self::NotServing, Self::WrongService];

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Connecting,
            1 => Self::Up,
            3 => Self::NotServing,
            4 => Self::WrongService,
            _ => Self::Down,
        }
    }

    /// Returns the word for it in `/status` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down => "down",
            Self::NotServing => "not_serving",
            Self::WrongService => "wrong_service",
        }
    }

    /// Returns the one of two that a caller has more trouble with.
    #[must_use]
    pub const fn worse(self, other: Self) -> Self {
        const fn trouble(state: State) -> u8 {
            match state {
                State::Up => 0,
                State::Connecting => 1,
                State::NotServing => 2,
                State::Down => 3,
                State::WrongService => 4,
            }
        }
        if trouble(other) > trouble(self) { other } else { self }
    }

    /// What several connections say together: the most telling one counts.
    const fn rank(self) -> u8 {
        match self {
            Self::Down => 0,
            Self::Connecting => 1,
            Self::Up => 2,
            Self::NotServing => 3,
            Self::WrongService => 4,
        }
    }
}

/// Takes the id of an instance that has come (back), if it gave one.
pub type Arrived = dyn Fn(Option<&str>) + Send + Sync;

/// What is told of a pool to those who use it.
pub struct Told {
    /// Notified whenever the state of an instance changes.
    pub changed: Arc<Notify>,
    /// Called with the peer's id when an instance that was not there has come (back).
    pub arrived: Box<Arrived>,
    /// What is counted.
    pub meters: Connections,
}

/// `client_connections_total` of one service.
#[derive(Clone, Debug)]
pub struct Connections {
    /// Opened.
    pub opened: IntCounter,
    /// Lost: broken, or closed by the peer.
    pub lost: IntCounter,
    /// Replaced because of their age.
    pub replaced: IntCounter,
}

/// The connections to one instance. Their tasks end when it is dropped; calls in flight still finish.
pub struct Pool {
    pub(in crate::client) shared: Arc<Shared>,
    _tasks: DropGuard,
}

/// What the tasks share with those who call.
pub(in crate::client) struct Shared {
    pub(in crate::client) addr: String,
    /// Which service it must be, `<key prefix><service>`.
    pub(in crate::client) identity: HeaderValue,
    slots: Box<[Slot]>,
    /// There are more calls than the open connections carry well.
    crowded: Notify,
    last_error: ArcSwapOption<String>,
    told: Told,
}

/// The place of one connection.
#[derive(Default)]
pub(in crate::client) struct Slot {
    live: ArcSwapOption<Live>,
    state: AtomicU8,
}

/// A connection that can be used.
pub(in crate::client) struct Live {
    pub(in crate::client) sender: SendRequest<Full<Bytes>>,
    /// Sets it apart from every other one of this process.
    pub(in crate::client) number: u64,
    calls: AtomicUsize,
    /// A call on it was given up: is it the handler that is slow, or the connection that is dead?
    doubted: Notify,
}

/// A call on a connection.
pub(in crate::client) struct OnConnection {
    pub(in crate::client) live: Arc<Live>,
    begun: Instant,
    ended: bool,
}

impl OnConnection {
    fn new(live: Arc<Live>) -> Self {
        live.calls.fetch_add(1, Relaxed);
        Self { live, begun: Instant::now(), ended: false }
    }

    /// Notes that the call came to an end by itself.
    pub(in crate::client) const fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for OnConnection {
    fn drop(&mut self) {
        self.live.calls.fetch_sub(1, Relaxed);
        if !self.ended && self.begun.elapsed() >= PATIENCE {
            self.live.doubted.notify_one();
        }
    }
}

impl Pool {
    /// Begins to connect.
    #[must_use]
    pub fn open(addr: String, identity: HeaderValue, settings: &Arc<config::Client>, told: Told) -> Self {
        let slots: Box<[Slot]> = (0..settings.connections.max(1)).map(|_| Slot::default()).collect();
        // those after the first may never be wanted
        slots.iter().skip(1).for_each(|slot| slot.state.store(State::Down as u8, Relaxed));
        let (crowded, last_error) = (Notify::new(), ArcSwapOption::empty());
        let shared = Arc::new(Shared { addr, identity, slots, crowded, last_error, told });
        let stop = CancellationToken::new();
        for slot in 0..shared.slots.len() {
            let task = keep(shared.clone(), slot, settings.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        }
        Self { shared, _tasks: stop.drop_guard() }
    }

    /// Returns whether the instance can be called.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Returns how many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.slots.iter().filter(|slot| slot.live.load().is_some()).count()
    }

    /// Returns what last went wrong, with the connection or with a call.
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<String>> {
        self.shared.last_error.load_full()
    }

    /// Notes what went wrong with a call.
    pub fn note(&self, error: String) {
        self.shared.last_error.store(Some(Arc::new(error)));
    }

    /// Notes that the peer is another service: no call goes there until its connection is a new one.
    pub fn is_another_service(&self, other: &HeaderValue) {
        let slots = self.shared.slots.iter().enumerate().filter(|(_, slot)| slot.live.load().is_some());
        slots.for_each(|(slot, _)| self.shared.wrong_service(slot, other));
    }

    /// Makes it look as if it were connected.
    #[cfg(test)]
    pub(in crate::client) fn pretend(&self, state: State) {
        self.shared
            .slots
            .iter()
            .for_each(|slot| slot.state.store(state as u8, std::sync::atomic::Ordering::Release));
    }

    /// Returns the open connection with the fewest calls.
    pub(in crate::client) fn pick(&self) -> Option<OnConnection> {
        let slots = &self.shared.slots;
        let live = slots.iter().filter_map(|slot| slot.live.load_full());
        let best = live.min_by_key(|live| live.calls.load(Relaxed))?;
        if best.calls.load(Relaxed) >= CROWDED && slots.iter().any(|slot| slot.live.load().is_none()) {
            self.shared.crowded.notify_one();
        }
        Some(OnConnection::new(best))
    }
}

impl Shared {
    fn state(&self) -> State {
        let states = self.slots.iter().map(|slot| State::of(slot.state.load(Acquire)));
        states.max_by_key(|state| state.rank()).unwrap_or(State::Down)
    }

    fn slot(&self, slot: usize) -> Option<&Slot> {
        self.slots.get(slot)
    }

    /// Sets the state of one connection; returns the one before.
    fn set(&self, slot: usize, state: State) -> State {
        let Some(slot) = self.slot(slot) else {
            return state;
        };
        let before = slot.state.swap(state as u8, AcqRel);
        if before != state as u8 {
            self.told.changed.notify_one();
        }
        State::of(before)
    }

    /// Notes what the instance says of its health.
    pub(in crate::client) fn health(&self, slot: usize, serving: bool) {
        let now = self.slot(slot).map_or(State::Down, |slot| State::of(slot.state.load(Acquire)));
        if now != State::WrongService {
            self.set(slot, if serving { State::Up } else { State::NotServing });
        }
    }

    fn wrong_service(&self, slot: usize, found: &HeaderValue) {
        if self.set(slot, State::WrongService) != State::WrongService {
            tracing::warn!(self.addr, wanted = ?self.identity, ?found, "another service answers at this address");
        }
    }
}

/// Keeps one connection open, for ever, and follows the instance's health on it.
async fn keep(shared: Arc<Shared>, slot: usize, settings: Arc<config::Client>) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut backoff = Backoff::new(FIRST_WAIT, settings.reconnect_cap);
    let mut successor = None;
    loop {
        if slot > 0 && successor.is_none() {
            shared.crowded.notified().await;
        }
        let opened = match successor.take() {
            Some(opened) => Ok(opened),
            None => open(&shared.addr, &shared.identity, &settings).await,
        };
        let error = match opened {
            Ok(opened) => {
                let begun = Instant::now();
                match live(&shared, slot, opened, &settings, NEXT.fetch_add(1, Relaxed)).await {
                    Ok(next) => {
                        shared.told.meters.replaced.inc();
                        successor = Some(next);
                        continue;
                    }
                    Err(error) => {
                        shared.told.meters.lost.inc();
                        if begun.elapsed() > STEADY {
                            backoff.reset();
                        }
                        error
                    }
                }
            }
            Err(error) => error,
        };
        if shared.set(slot, State::Down) != State::Down && shared.state() == State::Down {
            tracing::info!(shared.addr, error, "instance is down");
        }
        shared.last_error.store(Some(Arc::new(error)));
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Offers one connection to callers until it ends, which is an error, or until its successor is open.
async fn live(
    shared: &Shared,
    slot: usize,
    opened: Opened,
    settings: &config::Client,
    number: u64,
) -> Result<Opened, String> {
    let Opened { sender, mut ended, greeting } = opened;
    if !matches!(shared.state(), State::Up | State::NotServing) {
        (shared.told.arrived)(greeting.instance().as_deref());
    }
    shared.told.meters.opened.inc();
    let (calls, doubted) = (AtomicUsize::new(0), Notify::new());
    let live = Arc::new(Live { sender: sender.clone(), number, calls, doubted });
    if let Some(place) = shared.slot(slot) {
        place.live.store(Some(live.clone()));
    }
    match greeting.wrong_service() {
        Some(found) => shared.wrong_service(slot, found),
        None => {
            shared.set(slot, State::Up);
        }
    }
    let replacement = async {
        let age = settings.connection_age.mul_f64(crate::random::range(0.8..=1.2));
        tokio::select! {
            () = tokio::time::sleep(age) => {}
            () = silent(shared, &live) => tracing::info!(shared.addr, "a connection is silent, opening another"),
        }
        successor(shared, settings).await
    };
    let result = tokio::select! {
        result = &mut ended => result,
        never = crate::client::transport::health::follow(greeting, sender, shared, slot) => match never {},
        successor = replacement => return Ok(successor),
    };
    if let Some(place) = shared.slot(slot) {
        place.live.store(None);
    }
    Err(match result {
        Ok(Ok(())) => "closed by the peer".to_owned(),
        Ok(Err(error)) => chain(&error),
        Err(error) => chain(&error),
    })
}

/// Returns when a doubt about a connection proved right: it does not even answer a health check.
async fn silent(shared: &Shared, live: &Live) {
    loop {
        live.doubted.notified().await;
        if !crate::client::transport::health::answers(live.sender.clone(), &shared.addr, &shared.identity)
            .await
        {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Opens the connection that takes another one's place, which serves until that has worked.
async fn successor(shared: &Shared, settings: &config::Client) -> Opened {
    let mut backoff = Backoff::new(FIRST_WAIT, settings.reconnect_cap);
    loop {
        match open(&shared.addr, &shared.identity, settings).await {
            Ok(opened) => return opened,
            Err(error) => tracing::debug!(shared.addr, error, "a connection cannot be replaced yet"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}
