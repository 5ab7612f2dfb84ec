//! Limbo: what the registry has removed without `draining` is probed, and only its own silence takes it out of the view.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use microservice_app::client::{Connector, probe};
use microservice_app::config;
use microservice_app::registry::{Instance, Probe};
use tokio::time::{Instant, sleep};

use crate::kit::authority::Authority;
use crate::kit::etcd::Etcd;
use crate::kit::fake::Fake;
use crate::kit::mesh::acceptor;
use crate::kit::peer::{self, Peer};
use crate::kit::relay::{Faults, Relay};
use crate::kit::secure::Secure;
use crate::kit::system::Role;
use crate::kit::wait_for;

/// Returns what a gateway shows of the instances of a service: address and whether in limbo.
async fn listed(gateway: &Role, service: &str) -> Vec<(String, bool)> {
    let status = gateway.status().await;
    let listed = status["registry"]["services"][service].as_array().cloned().unwrap_or_default();
    listed.iter().map(|i| (i["addr"].as_str().unwrap().to_owned(), i["limbo"] == true)).collect()
}

/// A gateway and one of two instances lose their way to etcd, and nothing else: they go on serving.
#[tokio::test]
async fn who_is_cut_off_from_etcd_alone_stays_in_the_view_until_it_dies() {
    let etcd = Etcd::start().await;
    let way = Relay::start(etcd.addr, 1).await;
    let (near, far) = (etcd.addr.to_string(), way.addr.to_string());
    let gateway = Role::gateway(&near);
    let [_other] = Role::services(&near, "topic");
    let [mut topic] = Role::services(&far, "topic");
    let mut second = Role::gateway(&far);
    let (authority, dir) = (Authority::new("edge"), tempfile::tempdir().unwrap());
    authority.issue(dir.path(), "gateway", &["gateway.example"], Duration::from_hours(1));
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (cert, key) = (file("gateway.pem"), file("gateway.key"));
    let with_tls = [("MSA__HTTP__TLS__CERT_FILE", cert.as_str()), ("MSA__HTTP__TLS__KEY_FILE", key.as_str())];
    let mut secured = Role::start(&far, "apigateway", "127.0.0.1:0", &with_tls);
    gateway.wait_for_certain("topic", 2).await;
    wait_for("all gateways are known", || async {
        (listed(&gateway, "apigateway").await.len() == 3).then_some(())
    })
    .await;
    way.set(Faults::cut());
    let is_doubted = async |service: &str, addr: SocketAddr| {
        listed(&gateway, service).await.contains(&(addr.to_string(), true))
    };
    wait_for("all are in limbo", || async {
        let mut doubted = is_doubted("topic", topic.addr).await;
        for gateway in [second.addr, secured.addr] {
            doubted &= is_doubted("apigateway", gateway).await;
        }
        doubted.then_some(())
    })
    .await;
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(is_doubted("topic", topic.addr).await, "the instance serves");
        assert!(is_doubted("apigateway", second.addr).await, "the gateway serves");
        assert!(is_doubted("apigateway", secured.addr).await, "the gateway serves over TLS");
        sleep(Duration::from_millis(20)).await;
    }
    topic.process.kill();
    second.process.kill();
    secured.process.kill();
    let died = Instant::now();
    wait_for("the dead have left", || async {
        let left = listed(&gateway, "topic").await.len() + listed(&gateway, "apigateway").await.len();
        (left == 2).then_some(())
    })
    .await;
    assert!(died.elapsed() < Duration::from_secs(2), "{:?}", died.elapsed());
}

/// Speaks gRPC, has no health service, and knows no rpc but those below a path.
async fn without_health(known: &'static str) -> Peer {
    peer::server(move |request, mut respond| async move {
        let code = match request.uri().path().strip_prefix(known) {
            Some(_) => tonic::Code::NotFound,
            None => tonic::Code::Unimplemented,
        };
        peer::say(&mut respond, code, &[]);
    })
    .await
}

/// Answers every request over TLS, as any web server may.
async fn any_over_tls(authority: &Authority, dir: &Path) -> Peer {
    authority.issue(dir, "other", &["other.example"], Duration::from_hours(1));
    peer::secured_http1(acceptor(dir, "other", b"http/1.1")).await
}

/// Says that it serves, as any gRPC server may, and does not say who it is.
async fn any_healthy() -> Peer {
    peer::server(move |_, mut respond| async move {
        let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut body = respond.send_response(head, false).unwrap();
        body.send_data(bytes::Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        body.send_trailers(trailers).unwrap();
    })
    .await
}

/// An address is used again by a server that has nothing to do with the instance that was there.
#[tokio::test]
async fn a_probe_is_passed_by_the_service_that_was_registered_and_by_no_other() {
    let nobody = crate::kit::free_addr();
    let (foreign, original) = (without_health("/other.Other/").await, without_health("/topic.Topic/").await);
    let (any, fake) = (any_healthy().await, Fake::start().await);
    let app = crate::kit::app::App::start().await;
    let secure = Secure::start(|_| {}).await;
    let other = any_over_tls(&secure.authority, secure.dir.path()).await;
    let gateway = app.addresses.of(config::Role::Apigateway).unwrap();
    let feed = app.addresses.of(config::Role::Feed).unwrap();
    let probe: Probe = probe(config::Client::default(), "/services/".to_owned(), Connector::default());
    for (what, service, id, addr, passes) in [
        ("ours, and serves", "topic", "1", fake.addr, true),
        ("ours, of another service", "topic", "1", feed, false),
        ("ours was there, now a foreign server without health service", "topic", "1", foreign.addr, false),
        ("ours was there, now any healthy server", "topic", "1", any.addr, false),
        ("ours was there, now a gateway", "topic", "1", gateway, false),
        ("another implementation that serves", "topic", "", any.addr, true),
        ("another implementation without health service", "topic", "", original.addr, true),
        ("that was there, now a foreign server", "topic", "", foreign.addr, false),
        ("a gateway", "apigateway", "1", gateway, true),
        ("a gateway was there, now a service", "apigateway", "1", feed, false),
        ("a gateway was there, now another HTTP server", "apigateway", "1", app.addresses.admin, false),
        ("a gateway with TLS", "apigateway", "1", secure.addr(), true),
        ("a gateway was there, now another HTTPS server", "apigateway", "1", other.addr, false),
        ("a gateway was there, now nobody", "apigateway", "1", nobody, false),
    ] {
        let instance = Instance { id: id.to_owned(), ..Instance::bare(service, &addr.to_string()) };
        let answer = tokio::time::timeout(Duration::from_secs(5), probe(Arc::new(instance))).await;
        let answer = answer.unwrap_or_else(|_| Err("no answer".to_owned()));
        assert_eq!(answer.is_ok(), passes, "{what}: {answer:?}");
    }
}

/// Keys that come and go by the hundred must not cost a connection each. But no answer on a connection that calls use
/// proves nothing: it may be dead alone.
#[tokio::test]
async fn an_instance_in_limbo_is_asked_on_the_connection_that_calls_use_and_then_on_another() {
    let (etcd, fake) = (Etcd::start().await, Fake::start().await);
    let relay = Relay::start(fake.addr, 1).await;
    let gateway = Role::gateway(&etcd.addr.to_string());
    let (addr, mut client) = (relay.addr.to_string(), etcd.client().await);
    let key = format!("/services/topic/{addr}");
    client.put(key.as_str(), addr.as_str(), None).await.unwrap();
    gateway.wait_for_certain("topic", 1).await;
    wait_for("it is connected", || async { (relay.opened() > 0).then_some(()) }).await;
    sleep(Duration::from_millis(200)).await;
    let opened = relay.opened();
    client.delete(key.as_str(), None).await.unwrap();
    let in_limbo = async || listed(&gateway, "topic").await == [(addr.clone(), true)];
    wait_for("it is in limbo", || async { in_limbo().await.then_some(()) }).await;
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(relay.opened(), opened, "four probes");
    relay.half_open();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(in_limbo().await, "it serves");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(relay.opened() > opened, "it was asked on another connection");
    relay.set(Faults::cut());
    wait_for("it has left", || async { listed(&gateway, "topic").await.is_empty().then_some(()) }).await;
}
