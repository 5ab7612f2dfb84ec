//! How a process calls services: deadlines, connections, balancing, breakers, retries, fallback.

use std::time::Duration;

use super::super::types::Balancer;
use super::{EVERY_ROLE, Kind, Role};

section! {
    /// How this process calls services. Most defaults come from systems that run at scale; each names its source.
    Client as client, read by EVERY_ROLE, defaults of role:

    /// Time for a whole request. A caller can shorten it by `x-request-timeout-ms` (HTTP) or `grpc-timeout` (gRPC),
    /// and cannot extend it. A timeout counts against an instance only if the attempt had nine tenths of this time: a
    /// caller in a hurry says nothing about it. So all roles should have the same.
    "client.deadline_ms" => deadline: Duration = Duration::from_secs(2), Kind::milliseconds(1, 600_000);

    /// Time to open one connection to an instance, up to its answer to the health watch. (The default is
    /// linkerd2-proxy's.)
    "client.connect_timeout_ms" => connect_timeout: Duration =
        Duration::from_secs(1), Kind::milliseconds(10, 60_000);

    /// Longest wait between two attempts to connect to an instance that is down. The first wait is 50 ms.
    "client.reconnect_cap_ms" => reconnect_cap: Duration =
        Duration::from_secs(1), Kind::milliseconds(100, 60_000);

    /// Silence of an instance on a connection after which it gets an HTTP/2 ping. Twice in this time it is asked for
    /// its health, so that one that answers gets no pings: servers of grpc-go close a connection with too many.
    "client.keepalive_ms" => keepalive: Duration = Duration::from_secs(5), Kind::milliseconds(100, 600_000);

    /// Time after which a connection with an unanswered ping is closed.
    "client.keepalive_timeout_ms" => keepalive_timeout: Duration =
        Duration::from_secs(2), Kind::milliseconds(100, 60_000);

    /// Most HTTP/2 connections to each instance, from each thread (`runtime.threads`). The first is always open; a
    /// further one is opened when each open one has 8 calls in flight. Measured with 64 calls in flight, two
    /// connections carry 1.2 times (through the gateway) to 1.9 times (the client alone) the requests/s of one; four
    /// carry no more than two.
    "client.connections" => connections: usize = 2, Kind::number(1, 16);

    /// Life of a connection, varied at random by 20 %. The next connection is open before calls leave the old one.
    /// So load spreads again after the hosts behind an address have changed (gRPC A9).
    "client.connection_age_s" => connection_age: Duration = Duration::from_mins(30), Kind::seconds(1, 86_400);

    /// Most calls in flight at one instance. Above it other instances are called, or the call fails at once. The
    /// default is what one of our services accepts on one connection.
    "client.max_in_flight" => max_in_flight: usize = 1024, Kind::number(1, 100_000);

    /// How the next instance is chosen: `peak_ewma` takes the less loaded of two random instances, `round_robin`
    /// each in turn.
    "client.balancer" => balancer: Balancer = Balancer::PeakEwma, Kind::choice(Balancer::NAMES);

    /// Time in which an observed latency or failure decays to a third (1/e) for the balancer. linkerd's 10 s would
    /// keep calls away for a minute from an instance that once took a second. An instance that stays bad is left to
    /// the breaker.
    "client.ewma_decay_ms" => ewma_decay: Duration = Duration::from_secs(1), Kind::milliseconds(100, 600_000);

    /// Latency that the balancer assumes for an instance whose answers are all failures or pushback; for a share
    /// of such answers, that share of it. (The default is that of linkerd2-proxy's load biaser.)
    "client.penalty_ms" => penalty: Duration = Duration::from_secs(5), Kind::milliseconds(0, 60_000);

    /// Time in which a new or returned instance is brought to its full share of calls. It begins with 10 % (Envoy's
    /// slow start).
    "client.slow_start_ms" => slow_start: Duration = Duration::from_secs(2), Kind::milliseconds(0, 600_000);

    /// Consecutive failures that open the breaker of an instance and method. (The default is Finagle's and Envoy's.)
    "client.breaker_failures" => breaker_failures: u32 = 5, Kind::number(1, 1000);

    /// Share of good answers in the last 10 s below which a breaker opens; 0 turns this off. (The default is
    /// Finagle's and linkerd2-proxy's.)
    "client.breaker_success_percent" => breaker_success_percent: u32 = 80, Kind::percent(0, 99);

    /// Answers in the last 10 s that `client.breaker_success_percent` needs to be judged. (The default is
    /// linkerd2-proxy's.)
    "client.breaker_min_calls" => breaker_min_calls: u32 = 5, Kind::number(1, 1000);

    /// Time a breaker stays open at first. It doubles each time, with up to half of it as jitter. (The default is
    /// linkerd2-proxy's.)
    "client.breaker_backoff_ms" => breaker_backoff: Duration =
        Duration::from_secs(1), Kind::milliseconds(100, 60_000);

    /// Longest time a breaker stays open before one call tries the instance again. For the only instance of a
    /// service it is at most 2000. (The default is linkerd2-proxy's.)
    "client.breaker_backoff_cap_ms" => breaker_backoff_cap: Duration =
        Duration::from_mins(1), Kind::milliseconds(100, 600_000);

    /// Most attempts of one call, the first included. (gRPC A6 allows 5.)
    "client.attempts" => attempts: u32 = 3, Kind::number(1, 5);

    /// When a read takes longer than this share of the answers to the same rpc in the last 15 to 30 s did, another
    /// instance is asked as well, and the first good answer wins (a hedge). 0 turns hedges off. There are none before
    /// 50 answers.
    "client.hedge_after_percent" => hedge_after_percent: u32 = 99, Kind::percent(0, 100);

    /// Least time after which a hedge is sent.
    "client.hedge_min_delay_ms" => hedge_min_delay: Duration =
        Duration::from_millis(10), Kind::milliseconds(1, 600_000);

    /// Longest time after which a hedge is sent, if there is one at all.
    "client.hedge_max_delay_ms" => hedge_max_delay: Duration =
        Duration::from_secs(1), Kind::milliseconds(1, 600_000);

    /// Hedges that the good answers of a service earn for it, as a share of these answers in 10 s; two are always
    /// allowed. 0 turns hedges off. Each hedge is taken from the retry budget, too.
    "client.hedge_budget_percent" => hedge_budget_percent: u32 = 5, Kind::percent(0, 100);

    /// Longest wait before the second attempt; twice that before the third. The wait is random, at least half of
    /// it.
    "client.retry_backoff_ms" => retry_backoff: Duration =
        Duration::from_millis(10), Kind::milliseconds(0, 10_000);

    /// Retries that the calls of a service earn for it, as a share of the calls. (The default is Finagle's and
    /// Envoy's.)
    "client.retry_budget_percent" => retry_budget_percent: u32 = 20, Kind::percent(0, 100);

    /// Retries of a service that are always allowed. (The default is Finagle's.)
    "client.retry_budget_per_second" => retry_budget_per_second: u32 = 10, Kind::per_second(0, 1000);

    /// Memory for the last good answers, which are used when a service cannot answer. 0 turns this off.
    "client.fallback_kib" => fallback_kib: usize = 8 * 1024, Kind::kibibytes(0, 1_048_576);

    /// Age up to which an earlier answer is used.
    "client.fallback_age_s" => fallback_age: Duration = Duration::from_mins(10), Kind::seconds(1, 86_400);
}
