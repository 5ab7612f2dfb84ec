//! The listeners: HTTP of the gateway, gRPC of a service, the admin listener of each.

use std::time::Duration;

use super::super::types::{HostPort, ListenAddr, Network};
use super::{EVERY_ROLE, GATEWAYS, Kind, Role, SERVICES, SERVICES_AND_UP};

section! {
    /// The HTTP listener of the gateway.
    Http as http, read by GATEWAYS, defaults of role:

    /// Address of the HTTP listener. Port 0 takes a free port.
    "http.addr" => addr: ListenAddr = match role {
        Role::Up => ListenAddr::loopback(8080),
        _ => ListenAddr::any(8080),
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
    /// body to the end of its answer; in the worst case each holds about 6 MiB. The default keeps the wait short:
    /// a request costs a gateway less than 0.5 ms, so 1024 of them take at most a quarter of the default deadline.
    /// (Envoy's `max_requests` is 1024 too.)
    "http.max_in_flight" => max_in_flight: usize = 1024, Kind::number(1, 1_000_000);

    /// Requests a second that one client may send on average; further requests are answered 429. 0 is no limit. A
    /// client is an IPv4 address or an IPv6 network of 64 bits.
    "http.rate_limit" => rate_limit: u32 = 0, Kind::per_second(0, 1_000_000);

    /// Requests that a client may send at once after a quiet time, when `http.rate_limit` is set.
    "http.rate_burst" => rate_burst: u32 = 100, Kind::number(1, 1_000_000);

    /// Proxies in front of the gateway. In a request from one of them, the client is the right-most address of
    /// `X-Forwarded-For` that is not in this list. The header of any other sender is ignored.
    "http.trusted_proxies" => trusted_proxies: Vec<Network> = Vec::new(), Kind::list(Network::FORM);
}

section! {
    /// The gRPC listener of a service.
    Grpc as grpc, read by SERVICES_AND_UP, defaults of role:

    /// Address of the gRPC listener. Port 0 takes a free port.
    "grpc.addr" read by SERVICES => addr: ListenAddr = ListenAddr::any(match role {
        Role::Profile => 8083,
        Role::Topic => 8084,
        _ => 8082,
    }), Kind::text(ListenAddr::FORM);

    /// Address that is registered for others to call. Port 0 stands for the bound port. Without it, the bound
    /// address is registered if it is a specific one, else the source address of the route to etcd.
    "grpc.advertise_addr" => advertise_addr: Option<HostPort> = None, Kind::text(HostPort::FORM);

    /// Most open connections. At the limit, a new connection replaces the one that has been idle longest. If none
    /// is idle, the new connection waits in the backlog.
    "grpc.max_connections" => max_connections: usize = 10_000, Kind::number(1, 1_000_000);

    /// Most calls at the same time on one connection.
    "grpc.max_concurrent_streams" => max_concurrent_streams: u32 = 1024, Kind::number(1, 100_000);

    /// Most calls in progress. Further calls are refused at once with UNAVAILABLE and `grpc-retry-pushback-ms`.
    /// Health checks and reflection do not count and are not refused. The default keeps the wait short: a store
    /// call takes less than 1 ms of a service's thread, so 512 of them take at most a quarter of the default
    /// deadline.
    "grpc.max_in_flight" => max_in_flight: usize = 512, Kind::number(1, 1_000_000);

    /// Time in which a client must accept some bytes of its answers. Then the connection is closed.
    "grpc.write_timeout_ms" => write_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(1000, 600_000);
}

section! {
    /// The second listener of every role, for operators: metrics, health, status.
    Admin as admin, read by EVERY_ROLE, defaults of role:

    /// Address of the admin listener: `/metrics`, `/livez`, `/readyz`, `/status`. Port 0 takes a free port.
    "admin.addr" => addr: ListenAddr = ListenAddr::loopback(match role {
        Role::Apigateway | Role::Up => 6060,
        Role::Feed => 6062,
        Role::Profile => 6063,
        Role::Topic => 6064,
    }), Kind::text(ListenAddr::FORM);

    /// Address of the admin listener that is registered for Prometheus. Port 0 stands for the bound port. Without
    /// it, the address is chosen as for `grpc.advertise_addr`, and a loopback address is not registered in an etcd
    /// on another host.
    "admin.advertise_addr" => advertise_addr: Option<HostPort> = None, Kind::text(HostPort::FORM);

    /// Most open connections.
    "admin.max_connections" => max_connections: usize = 256, Kind::number(1, 100_000);
}
