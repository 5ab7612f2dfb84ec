//! Which address an instance advertises. The address that it listens on is not enough: `0.0.0.0` or `127.0.0.1`, called
//! from another host, is that host itself.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{HostPort, Registry, bare_endpoint};

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

/// Returns the address to advertise for a service that is bound to `bound`: the configured one, else the bound one if
/// it is specific, else the source address of the route to the registry.
///
/// # Errors
/// [`NoAddress`] if there is no route to the registry, or if the result could not be called from the
/// registry's host.
pub fn service(
    bound: SocketAddr,
    configured: Option<&HostPort>,
    registry: &Registry,
) -> Result<String, NoAddress> {
    let refuse = |reason: &str| NoAddress { bound, reason: reason.to_owned(), key: "grpc.advertise_addr" };
    let remote = registry.is_remote();
    if let Some(addr) = configured {
        return Ok(addr.with_port(bound.port()));
    }
    if !bound.ip().is_unspecified() {
        if bound.ip().is_loopback() && remote {
            return Err(refuse("it is a loopback address and etcd is remote"));
        }
        return Ok(bound.to_string());
    }
    let source = route_source(&registry.endpoints).map_err(|e| refuse(&e))?;
    if source.is_loopback() {
        if remote {
            return Err(refuse("the route to etcd has a loopback source"));
        }
        tracing::warn!(
            addr = %SocketAddr::new(source, bound.port()),
            "etcd is on this host, so the advertised address is a loopback address that other hosts cannot call; set grpc.advertise_addr if they have to"
        );
    }
    Ok(SocketAddr::new(source, bound.port()).to_string())
}

/// Returns the address to advertise for an admin listener, `None` if others cannot reach it.
#[must_use]
pub fn admin(
    bound: SocketAddr,
    configured: Option<&HostPort>,
    service_addr: &str,
    registry: &Registry,
) -> Option<String> {
    if let Some(addr) = configured {
        return Some(addr.with_port(bound.port()));
    }
    if bound.ip().is_loopback() && registry.is_remote() {
        return None;
    }
    if bound.ip().is_unspecified() {
        let (host, _) = service_addr.rsplit_once(':')?;
        return Some(format!("{host}:{}", bound.port()));
    }
    Some(bound.to_string())
}

/// Waits until the registry's name resolves and a route to it exists, at most `limit`. At boot, or while a container
/// network starts, that may take a while. Does not wait for etcd itself.
pub async fn wait_for_route(registry: &Registry, limit: Duration) {
    let begun = Instant::now();
    let mut logged = false;
    while begun.elapsed() < limit {
        let endpoints = registry.endpoints.clone();
        match tokio::task::spawn_blocking(move || route_source(&endpoints)).await {
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

/// Returns the source address that the kernel would use towards the first endpoint it has a route to.
/// Sends nothing.
fn route_source(endpoints: &[String]) -> Result<IpAddr, String> {
    let mut reason = "no registry is configured".to_owned();
    for endpoint in endpoints {
        let addrs = match bare_endpoint(endpoint).to_socket_addrs() {
            Ok(addrs) => addrs,
            Err(e) => {
                reason = format!("{endpoint}: {e}");
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
                Ok(source) => return Ok(source.ip()),
                Err(e) => reason = format!("no route to {endpoint}: {e}"),
            }
        }
    }
    Err(reason)
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
        let given: HostPort = "feed.example:0".parse().unwrap();
        assert_eq!(service(addr("0.0.0.0:8082"), Some(&given), &remote).unwrap(), "feed.example:8082");
        assert_eq!(service(addr("10.1.2.3:8082"), None, &remote).unwrap(), "10.1.2.3:8082");
        assert_eq!(service(addr("0.0.0.0:8082"), None, &local).unwrap(), "127.0.0.1:8082");
        assert_eq!(service(addr("127.0.0.1:8082"), None, &local).unwrap(), "127.0.0.1:8082");
        let error = service(addr("127.0.0.1:8082"), None, &remote).unwrap_err().to_string();
        assert!(error.contains("set grpc.advertise_addr"), "{error}");
        assert!(service(addr("0.0.0.0:8082"), None, &registry("no.such.name.invalid:1")).is_err());
    }

    #[test]
    fn a_loopback_admin_address_is_not_advertised_to_other_hosts() {
        let addr = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (local, remote) = (registry("127.0.0.1:2379"), registry("192.0.2.1:2379"));
        assert_eq!(admin(addr("127.0.0.1:6062"), None, "10.0.0.1:8082", &remote), None);
        assert_eq!(admin(addr("127.0.0.1:6062"), None, "127.0.0.1:8082", &local).unwrap(), "127.0.0.1:6062");
        assert_eq!(admin(addr("0.0.0.0:6062"), None, "10.0.0.1:8082", &remote).unwrap(), "10.0.0.1:6062");
        assert_eq!(admin(addr("[::]:6062"), None, "[::1]:8082", &local).unwrap(), "[::1]:6062");
    }
}
