//! The gRPC listener of a service: address, limits, timeouts.

use std::time::Duration;

use super::super::identity::Caller;
use super::super::types::{HostPort, ListenAddr, TlsMode};
use super::{EVERY_ROLE, Kind, Role, SERVICES, SERVICES_AND_UP};

section! {
    /// The gRPC listener of a service.
    Grpc as grpc, read by SERVICES_AND_UP, defaults of role:

    /// Address of the gRPC listener. `:port` and `[::]:port` are every interface, with IPv6 and IPv4; `0.0.0.0:port` has
    /// IPv4 only. Port 0 takes a free port.
    "grpc.addr" read by SERVICES => addr: ListenAddr = ListenAddr::any(match role {
        Role::Profile => 8083,
        Role::Topic => 8084,
        // the gateway and `up` have no listener of their own here
        Role::Feed | Role::Apigateway | Role::Up => 8082,
    }), Kind::text(ListenAddr::FORM);

    /// Address that is registered for others to call. Port 0 stands for the bound port. Without it, the bound
    /// address is registered if it is a specific one, else the source address of the route to etcd. An address of this
    /// host of a family, IPv4 or IPv6, that `grpc.addr` does not have is refused.
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

    /// Whether the calls between the gateway and the services are encrypted, with certificates on both ends. `off` is
    /// plaintext. `strict` is TLS and nothing else. `permissive` is for the change from one to the other: a
    /// service takes both, and a caller speaks TLS with each service that does. `up`, one process on loopback, knows `off`
    /// only.
    "grpc.tls" read by EVERY_ROLE => tls: TlsMode = TlsMode::Off, Kind::choice(TlsMode::NAMES);

    /// Who may call the service where it speaks TLS: roles, and any other identities. Health checks and reflection are
    /// under the same rule. The default is the roles that call the service.
    "grpc.allow" read by SERVICES => allow: Vec<Caller> = match role {
        Role::Feed => vec![Caller::Role(Role::Apigateway), Caller::Role(Role::Profile)],
        Role::Profile | Role::Topic => vec![Caller::Role(Role::Apigateway)],
        Role::Apigateway | Role::Up => Vec::new(),
    }, Kind::list(Caller::FORM);
}
