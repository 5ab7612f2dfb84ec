//! Which address an instance advertises. The address that it listens on is not enough: `[::]`, `0.0.0.0` or `127.0.0.1`,
//! called from another host, is that host itself. And the route to the registry may be of the family that the instance
//! does not listen on.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{HostPort, Registry, bare_endpoint};
use crate::server::listener::Families;

/// Time between two searches for a route.
const ROUTE_RETRY: Duration = Duration::from_millis(500);

/// Why no address could be found.
#[derive(Debug, thiserror::Error)]
#[error("no address to advertise for {bound}: {reason}; set {key}")]
pub struct NoAddress {
    bound: SocketAddr,
    reason: String,
    key: &'static str,
}

/// Returns the address to advertise for a service that is bound to `bound` and takes connections of `families`: the
/// configured one, else the bound one if it is specific, else the source address of the route to the registry.
///
/// # Errors
/// [`NoAddress`] if there is no route to the registry, or if the result could not be called, at least not from the
/// registry's host.
pub fn service(
    bound: SocketAddr,
    families: Families,
    configured: Option<&HostPort>,
    registry: &Registry,
) -> Result<String, NoAddress> {
    let refuse = |reason: String| NoAddress { bound, reason, key: "grpc.advertise_addr" };
    let deaf = |ip: IpAddr, what: &str| NoAddress {
        bound,
        reason: format!("it listens on {}, and {what} is {ip}", families.name()),
        key: "grpc.addr or grpc.advertise_addr",
    };
    let remote = registry.is_remote();
    if let Some(addr) = configured {
        // an address of another machine may be that of a proxy, which calls here as it likes
        return match literal(&addr.host) {
            Some(ip) if !families.include(ip) && is_own(ip) => Err(deaf(ip, "grpc.advertise_addr")),
            _ => Ok(addr.with_port(bound.port())),
        };
    }
    if !bound.ip().is_unspecified() {
        if bound.ip().is_loopback() && remote {
            return Err(refuse("it is a loopback address and etcd is remote".to_owned()));
        }
        return Ok(bound.to_string());
    }
    let source = match route_source(&registry.endpoints, families) {
        Ok(source) if !families.include(source) => {
            return Err(deaf(source, "the source address of the route to etcd"));
        }
        source => source.map_err(refuse)?,
    };
    if source.is_loopback() {
        if remote {
            return Err(refuse("the route to etcd has a loopback source".to_owned()));
        }
        tracing::warn!(
            addr = %SocketAddr::new(source, bound.port()),
            "etcd is on this host, so the advertised address is a loopback address that other hosts cannot call; set grpc.advertise_addr if they have to"
        );
    }
    Ok(SocketAddr::new(source, bound.port()).to_string())
}

/// Returns the address to advertise for an admin listener.
///
/// # Errors
/// The reason why others cannot reach it.
pub fn admin(
    bound: SocketAddr,
    configured: Option<&HostPort>,
    service_addr: &str,
    registry: &Registry,
) -> Result<String, String> {
    if let Some(addr) = configured {
        return Ok(addr.with_port(bound.port()));
    }
    if bound.ip().is_loopback() && registry.is_remote() {
        return Err("the admin address is a loopback one and etcd is remote".to_owned());
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound.to_string());
    }
    let (host, _) = service_addr.rsplit_once(':').unwrap_or((service_addr, ""));
    let families = Families::of(bound);
    match literal(host) {
        Some(ip) if !families.include(ip) => Err(format!(
            "the admin listener takes {}, and the address of this instance is {ip}: set admin.addr or \
             admin.advertise_addr",
            families.name()
        )),
        _ => Ok(format!("{host}:{}", bound.port())),
    }
}

/// Returns the address that a host is, if it is no name.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Returns whether an address is one of this host.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Waits until the registry's name resolves and a route to it exists, at most `limit`. At boot, or while a container
/// network starts, that may take a while. Does not wait for etcd itself.
pub async fn wait_for_route(registry: &Registry, limit: Duration) {
    let begun = Instant::now();
    let mut logged = false;
    while begun.elapsed() < limit {
        let endpoints = registry.endpoints.clone();
        match tokio::task::spawn_blocking(move || route_source(&endpoints, Families::Both)).await {
            Ok(Err(reason)) => {
                if !std::mem::replace(&mut logged, true) {
                    tracing::warn!(reason, "waiting for a route to the registry");
                }
            }
            _ => return,
        }
        tokio::time::sleep(ROUTE_RETRY).await;
    }
}

/// Returns the source address that the kernel would use towards the first endpoint to which it has a route of `families`;
/// if there is none, towards the first one to which it has any. Sends nothing.
fn route_source(endpoints: &[String], families: Families) -> Result<IpAddr, String> {
    let mut other = Err("no registry is configured".to_owned());
    for endpoint in endpoints {
        let addrs = match bare_endpoint(endpoint).to_socket_addrs() {
            Ok(addrs) => addrs,
            Err(e) => {
                other = other.map_err(|_| format!("{endpoint}: {e}"));
                continue;
            }
        };
        for addr in addrs {
            let any: SocketAddr = match addr {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
            };
            let route = UdpSocket::bind(any).and_then(|s| s.connect(addr).and_then(|()| s.local_addr()));
            match route {
                Ok(source) if families.include(source.ip()) => return Ok(source.ip()),
                Ok(source) => other = other.or(Ok(source.ip())),
                Err(e) => other = other.map_err(|_| format!("no route to {endpoint}: {e}")),
            }
        }
    }
    other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(endpoint: &str) -> Registry {
        Registry { endpoints: vec![endpoint.to_owned()], ..Registry::default() }
    }

    #[test]
    fn the_address_is_one_that_others_can_call() {
        let local = registry("127.0.0.1:2379");
        let remote = registry("192.0.2.1:2379");
        let addr = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let at = |text, given: Option<&HostPort>, registry: &Registry| {
            let bound: SocketAddr = addr(text);
            service(bound, Families::of(bound), given, registry)
        };
        let given: HostPort = "feed.example:0".parse().unwrap();
        assert_eq!(at("0.0.0.0:8082", Some(&given), &remote).unwrap(), "feed.example:8082");
        assert_eq!(at("10.1.2.3:8082", None, &remote).unwrap(), "10.1.2.3:8082");
        assert_eq!(at("0.0.0.0:8082", None, &local).unwrap(), "127.0.0.1:8082");
        assert_eq!(at("127.0.0.1:8082", None, &local).unwrap(), "127.0.0.1:8082");
        let error = at("127.0.0.1:8082", None, &remote).unwrap_err().to_string();
        assert!(error.contains("set grpc.advertise_addr"), "{error}");
        assert!(at("0.0.0.0:8082", None, &registry("no.such.name.invalid:1")).is_err());
    }

    #[test]
    fn a_loopback_admin_address_is_not_advertised_to_other_hosts() {
        let addr = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (local, remote) = (registry("127.0.0.1:2379"), registry("192.0.2.1:2379"));
        let reason = admin(addr("127.0.0.1:6062"), None, "10.0.0.1:8082", &remote).unwrap_err();
        assert!(reason.contains("loopback"), "{reason}");
        assert_eq!(admin(addr("127.0.0.1:6062"), None, "127.0.0.1:8082", &local).unwrap(), "127.0.0.1:6062");
        assert_eq!(admin(addr("0.0.0.0:6062"), None, "10.0.0.1:8082", &remote).unwrap(), "10.0.0.1:6062");
        assert_eq!(admin(addr("[::]:6062"), None, "[::1]:8082", &local).unwrap(), "[::1]:6062");
        let reason = admin(addr("0.0.0.0:6062"), None, "[2001:db8::1]:8082", &remote).unwrap_err();
        assert!(reason.contains("IPv4 only") && reason.contains("2001:db8::1"), "{reason}");
        let name = admin(addr("0.0.0.0:6062"), None, "feed.example:8082", &remote);
        assert_eq!(name.unwrap(), "feed.example:6062");
    }

    #[test]
    fn a_route_of_a_family_that_is_bound_is_preferred_and_no_other_is_taken() {
        let both = ["[::1]:2379", "127.0.0.1:2379"].map(str::to_owned);
        let at = |text: &str, families, endpoints: &[String]| {
            let registry = Registry { endpoints: endpoints.to_vec(), ..Registry::default() };
            service(text.parse().unwrap(), families, None, &registry)
        };
        assert_eq!(at("0.0.0.0:8082", Families::V4, &both).unwrap(), "127.0.0.1:8082");
        assert_eq!(at("[::]:8082", Families::Both, &both[1..]).unwrap(), "127.0.0.1:8082");
        let error = at("[::]:8082", Families::V6, &both[1..]).unwrap_err().to_string();
        assert!(error.contains("IPv6 only") && error.contains("127.0.0.1; set grpc.addr"), "{error}");
    }

    #[test]
    fn an_address_of_another_machine_is_that_of_a_proxy() {
        let at = |host: &str| {
            let given: HostPort = format!("{host}:0").parse().unwrap();
            let bound = "10.1.2.3:8082".parse().unwrap();
            service(bound, Families::V4, Some(&given), &registry("192.0.2.1:2379"))
        };
        assert_eq!(at("[2001:db8::1]").unwrap(), "[2001:db8::1]:8082");
        assert_eq!(at("127.0.0.1").unwrap(), "127.0.0.1:8082");
    }
}
