//! The admin listener of every role.

use std::path::PathBuf;

use super::super::link::Link;
use super::super::types::{HostPort, ListenAddr};
use super::{EVERY_ROLE, Kind, Role};

section! {
    /// The second listener of every role, for operators: the page of the system, metrics, health, status.
    Admin as admin, read by EVERY_ROLE, defaults of role:

    /// Address of the admin listener: `/` (the page of the system), `/metrics`, `/livez`, `/readyz`, `/status`. Port 0 takes a free port.
    "admin.addr" => addr: ListenAddr = ListenAddr::loopback(match role {
        Role::Apigateway | Role::Up => 6060,
        Role::Feed => 6062,
        Role::Profile => 6063,
        Role::Topic => 6064,
    }), Kind::text(ListenAddr::FORM);

    /// Address of the admin listener that is registered for Prometheus. Port 0 stands for the bound port. Without
    /// it, the address is chosen as for `grpc.advertise_addr`, and a loopback address is not registered in an etcd
    /// on another host. An address of a family that `admin.addr` does not have is not registered either.
    "admin.advertise_addr" => advertise_addr: Option<HostPort> = None, Kind::text(HostPort::FORM);

    /// Grafana with this system's dashboards. The page of the system links to it.
    "admin.grafana_url" => grafana_url: Option<Link> = None, Kind::text(Link::FORM);

    /// Prometheus that scrapes this process. The page of the system links to it.
    "admin.prometheus_url" => prometheus_url: Option<Link> = None, Kind::text(Link::FORM);

    /// Zipkin that has this system's traces, as a browser reaches it. The page of the system links to it, and finds a
    /// trace there by its id.
    "admin.zipkin_url" => zipkin_url: Option<Link> = None, Kind::text(Link::FORM);

    /// File with the token that everything needs which changes the process or reveals more than monitoring reads: the page of
    /// the system, `/status`, `/trace`, `/loglevel` and profiles. Without it, they are for everybody who reaches the listener,
    /// and PUT and CPU profiles for callers on this host. The file is read again when it changes.
    "admin.token_file" => token_file: Option<PathBuf> = None, Kind::text("a path");

    /// Most open connections.
    "admin.max_connections" => max_connections: usize = 256, Kind::number(1, 100_000);
}
