//! The HTTP listener of the gateway: address, limits, timeouts, proxies.

use std::time::Duration;

use super::super::origin::Origin;
use super::super::types::{ListenAddr, Network, Switch};
use super::{GATEWAYS, Kind, Role};

section! {
    /// The HTTP listener of the gateway.
    Http as http, read by GATEWAYS, defaults of role:

    /// Address of the HTTP listener. `:port` and `[::]:port` are every interface, with IPv6 and IPv4; `0.0.0.0:port` has
    /// IPv4 only. Port 0 takes a free port.
    "http.addr" => addr: ListenAddr = match role {
        Role::Up => ListenAddr::loopback(8080),
        Role::Apigateway | Role::Feed | Role::Profile | Role::Topic => ListenAddr::any(8080),
    }, Kind::text(ListenAddr::FORM);

    /// Most open connections. At the limit, a new connection replaces the one that has been idle longest. If none
    /// is idle, the new connection waits in the backlog.
    "http.max_connections" => max_connections: usize = 10_000, Kind::number(1, 1_000_000);

    /// Time a client has to send the head of a request, and time a kept-alive connection may stay idle. Then the
    /// connection is closed.
    "http.header_timeout_ms" => header_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(100, 600_000);

    /// Time a client has to send the whole body of a request. Then the answer is 408.
    "http.body_timeout_ms" => body_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(100, 600_000);

    /// Time in which a client must accept some bytes of an answer. Then the connection is closed. (The kernel needs
    /// 200 ms to repeat a lost packet.)
    "http.write_timeout_ms" => write_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(1000, 600_000);

    /// Most requests in progress. Further requests are answered 503 at once. A request counts from the end of its
    /// body until its answer is ready to be sent; in the worst case each holds about 6 MiB. The default keeps the
    /// wait short: a request costs a gateway less than 0.5 ms, so 1024 of them take at most a quarter of the default
    /// deadline. (Envoy's `max_requests` is 1024 too.)
    "http.max_in_flight" => max_in_flight: usize = 1024, Kind::number(1, 1_000_000);

    /// Requests a second that one client may send on average; further requests are answered 429. 0 is no limit. A
    /// client is an IPv4 address or an IPv6 network of 64 bits.
    "http.rate_limit" => rate_limit: u32 = 0, Kind::per_second(0, 1_000_000);

    /// Requests that a client may send at once after a quiet time, when `http.rate_limit` is set.
    "http.rate_burst" => rate_burst: u32 = 100, Kind::number(1, 1_000_000);

    /// Proxies in front of the gateway. In a request from one of them, the client is the right-most address of
    /// `X-Forwarded-For` that is not in this list. The header of any other sender is ignored.
    "http.trusted_proxies" => trusted_proxies: Vec<Network> = Vec::new(), Kind::list(Network::FORM);

    /// Whether the gateway serves the page of its API, `/docs`, and the description that it is made from,
    /// `/openapi.json`. With `off` these paths are unknown.
    "http.docs" => docs: Switch = Switch::On, Kind::choice(Switch::NAMES);

    /// Origins of web pages whose scripts may call the gateway (CORS). A page of any other origin cannot read answers,
    /// and cannot write. The page at `/docs` needs no entry.
    "http.cors_origins" => cors_origins: Vec<Origin> = Vec::new(), Kind::list(Origin::FORM);
}
