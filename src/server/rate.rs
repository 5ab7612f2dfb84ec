//! The rate limit of each client, requests a second: one GCRA bucket of `governor` a client.
//!
//! A client is an address; of IPv6 the first 64 bits, because a single customer is given that many. Behind a
//! trusted proxy it is the address that the proxies report in `X-Forwarded-For`; from other peers that header
//! is not read. At most [`MAX_CLIENTS`] clients have a bucket of their own. While all of those are in use, new
//! clients share [`SHARED`] buckets, chosen by a hash that callers cannot predict: the limit still holds, and
//! known clients keep their own buckets.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};
use http::{HeaderMap, HeaderName};
use tokio::time::Instant;

use crate::config;

pub const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Most hops of `X-Forwarded-For` that are read, from the right.
pub const MAX_HOPS: usize = 16;
/// Most clients with a bucket of their own, some 3 MB.
const MAX_CLIENTS: usize = 65_536;
/// Buckets that all other clients share.
const SHARED: usize = 1024;
/// Number of clients up to which full buckets are not looked for and removed.
const FEW: usize = 1024;
/// Least time between two clean-ups.
const CLEAN_PAUSE: Duration = Duration::from_secs(1);

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    V4(Ipv4Addr),
    /// The first 64 bits.
    V6(u64),
}

impl From<IpAddr> for Key {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => Self::V6(u64::try_from(ip.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

/// tokio's time, counted from the making of this clock.
#[derive(Clone, Debug)]
pub struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// The rate limit of each client.
pub struct RateLimit<C: Clock = TokioClock> {
    limiter: RateLimiter<Key, Store, C, NoOpMiddleware<C::Instant>>,
    clients: Arc<Clients>,
    proxies: Vec<config::Network>,
}

impl RateLimit {
    /// Returns the limit of the settings, `None` if they set none.
    #[must_use]
    pub fn new(settings: &config::Http) -> Option<Self> {
        Self::with_clock(settings, MAX_CLIENTS, TokioClock(Instant::now()))
    }
}

impl<C: Clock> RateLimit<C> {
    fn with_clock(settings: &config::Http, max: usize, clock: C) -> Option<Self> {
        let rate = NonZeroU32::new(settings.rate_limit)?;
        let quota = Quota::per_second(rate).allow_burst(NonZeroU32::new(settings.rate_burst)?);
        let clients = Arc::new(Clients::new(max));
        let limiter = RateLimiter::new(quota, Store(clients.clone()), clock);
        Some(Self { limiter, clients, proxies: settings.trusted_proxies.clone() })
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When the client is over its limit: how long it should wait.
    pub fn check(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), Duration> {
        let key = Key::from(self.client(peer, headers));
        if self.clients.clean.swap(false, Relaxed) {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(&key).map_err(|until| until.wait_time_from(self.limiter.clock().now()))
    }

    /// Returns the client of a request. Where a trusted hop names no address, that hop is the client.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let trusted = |ip: IpAddr| self.proxies.iter().any(|proxy| proxy.contains(ip));
        let mut client = peer.to_canonical();
        if !trusted(client) {
            return client;
        }
        // each proxy appends to the last line, or adds a line below it
        let lines = headers.get_all(FORWARDED).iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
        for hop in hops.take(MAX_HOPS) {
            let Some(ip) = address(hop) else { break };
            client = ip;
            if !trusted(ip) {
                break;
            }
        }
        client
    }
}

/// Returns the address of a hop: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]:4711`.
fn address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim();
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(hop);
    let ip = bare.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()))?;
    Some(ip.to_canonical())
}

/// The buckets by client, in governor's representation; bounded.
struct Clients {
    max: usize,
    /// Not seeded by [`crate::random`], which callers might predict.
    hasher: RandomState,
    /// True if a clean-up is due.
    clean: AtomicBool,
    known: Mutex<Known>,
}

struct Known {
    own: HashMap<Key, Nanos>,
    shared: Vec<Option<Nanos>>,
    /// The number of clients at which those with a full bucket are forgotten.
    clean_at: usize,
    /// When that was done last.
    cleaned: Option<Instant>,
}

impl Clients {
    fn new(max: usize) -> Self {
        let known = Known { own: HashMap::new(), shared: vec![None; SHARED], clean_at: FEW, cleaned: None };
        Self {
            max,
            hasher: RandomState::new(),
            clean: AtomicBool::new(false),
            known: Mutex::new(Known { clean_at: FEW.min(max), ..known }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared_bucket(&self, key: &Key) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARED as u64).unwrap_or_default()
    }
}

/// Implements governor's store with [`Clients`].
struct Store(Arc<Clients>);

impl StateStore for Store {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let clients = &self.0;
        let mut known = clients.lock();
        if let Some(state) = known.own.get_mut(key) {
            let (outcome, next) = measure(Some(*state))?;
            *state = next;
            return Ok(outcome);
        }
        if known.own.len() >= known.clean_at && known.cleaned.is_none_or(|at| at.elapsed() >= CLEAN_PAUSE) {
            clients.clean.store(true, Relaxed);
        }
        if known.own.len() < clients.max {
            let (outcome, first) = measure(None)?;
            known.own.insert(*key, first);
            return Ok(outcome);
        }
        let Some(state) = known.shared.get_mut(clients.shared_bucket(key)) else {
            return measure(None).map(|(outcome, _)| outcome); // there is a bucket for every remainder
        };
        let (outcome, next) = measure(*state)?;
        *state = Some(next);
        Ok(outcome)
    }
}

impl ShrinkableKeyedStateStore<Key> for Store {
    fn retain_recent(&self, drop_below: Nanos) {
        let mut known = self.0.lock();
        known.own.retain(|_, state| *state > drop_below);
        known.clean_at = (known.own.len() * 2).clamp(FEW, self.0.max.max(FEW)).min(self.0.max);
        known.cleaned = Some(Instant::now());
    }

    fn len(&self) -> usize {
        self.0.lock().own.len()
    }

    fn is_empty(&self) -> bool {
        self.0.lock().own.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn rate(limit: u32, burst: u32, max: usize) -> (RateLimit<FakeRelativeClock>, FakeRelativeClock) {
        let proxies = ["10.0.0.0/8", "192.168.0.1", "fd00::/8"];
        let settings = config::Http {
            rate_limit: limit,
            rate_burst: burst,
            trusted_proxies: proxies.iter().map(|text| text.parse().unwrap()).collect(),
            ..config::Http::default()
        };
        let clock = FakeRelativeClock::default();
        (RateLimit::with_clock(&settings, max, clock.clone()).unwrap(), clock)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn accepted(rate: &RateLimit<FakeRelativeClock>, from: IpAddr, times: usize) -> usize {
        (0..times).filter(|_| rate.check(from, &HeaderMap::new()).is_ok()).count()
    }

    #[test]
    fn no_limit_is_the_default() {
        assert!(RateLimit::new(&config::Http::default()).is_none());
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (rate, clock) = rate(10, 5, 100);
        let (a, b) = (ip("192.0.2.1"), ip("192.0.2.2"));
        assert_eq!(accepted(&rate, a, 100), 5);
        let wait = rate.check(a, &HeaderMap::new()).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");
        assert_eq!(accepted(&rate, b, 100), 5, "another client has a bucket of its own");
        clock.advance(Duration::from_millis(300));
        assert_eq!(accepted(&rate, a, 100), 3);
        clock.advance(Duration::from_mins(1));
        assert_eq!(accepted(&rate, a, 100), 5, "no more than the burst is saved up");
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_mapped_address_is_ipv4() {
        let (rate, _) = rate(1, 4, 100);
        assert_eq!(accepted(&rate, ip("2001:db8:0:1::1"), 3), 3);
        assert_eq!(accepted(&rate, ip("2001:db8:0:1:ffff::2"), 3), 1);
        assert_eq!(accepted(&rate, ip("2001:db8:0:2::1"), 3), 3);
        assert_eq!(accepted(&rate, ip("192.0.2.1"), 3), 3);
        assert_eq!(accepted(&rate, ip("::ffff:192.0.2.1"), 3), 1);
    }

    #[test]
    fn the_client_is_the_one_that_the_proxies_report() {
        let (rate, _) = rate(1, 1, 100);
        let cases: &[(&str, &[&str], &str)] = &[
            // the header of a peer that is not a trusted proxy is ignored
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.1", &["198.51.100.1"], "192.0.2.1"),
            ("192.0.2.1", &["10.0.0.1"], "192.0.2.1"),
            // what is left of the first untrusted address comes from that client
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1,192.168.0.1,fd00::5"], "198.51.100.1"),
            // several lines are one list
            ("10.0.0.1", &["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.1", "10.0.0.2, 10.0.0.3"], "198.51.100.1"),
            // forms
            ("10.0.0.1", &[" 198.51.100.1:4711 "], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            // behind garbage the client is the hop that passed it on
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.1,"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, 1.2.3.4.5"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, [::1"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1", "\u{e9}"], "10.0.0.1"),
            // trusted proxies only
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ];
        for (peer, lines, want) in cases {
            let mut headers = HeaderMap::new();
            for line in *lines {
                headers.append(FORWARDED, http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            assert_eq!(rate.client(ip(peer), &headers), ip(want), "{peer} {lines:?}");
        }
        let mut headers = HeaderMap::new();
        let endless = vec!["10.0.0.2"; 10_000].join(",");
        headers.append(FORWARDED, format!("198.51.100.1,{endless}").parse().unwrap());
        assert_eq!(rate.client(ip("10.0.0.1"), &headers), ip("10.0.0.2"), "only so many hops are read");
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_the_limit_holds() {
        let (rate, clock) = rate(1, 2, 2000);
        let client = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
        for n in 0..2000 {
            assert_eq!(accepted(&rate, client(n), 1), 1);
        }
        // new clients pass as far as the shared buckets allow
        let others = (10_000..60_000).filter(|n| rate.check(client(*n), &HeaderMap::new()).is_ok());
        let through = others.count();
        assert!((SHARED..=2 * SHARED).contains(&through), "{through}");
        assert_eq!(rate.limiter.len(), 2000);
        assert_eq!(accepted(&rate, client(5), 5), 1, "a known client keeps its own bucket");
        // clients that send nothing are forgotten
        clock.advance(Duration::from_mins(1));
        rate.clients.lock().cleaned = None;
        assert_eq!(accepted(&rate, client(70_000), 2), 2, "a new one by now");
        assert_eq!(accepted(&rate, client(70_001), 2), 2);
        assert!(rate.limiter.len() <= 3, "{}", rate.limiter.len());
    }
}
