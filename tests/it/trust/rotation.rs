//! Certificates that are replaced, cannot be used, or end. Row F41 replaces them a hundred times.

use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use tokio::time::{Instant, sleep};

use crate::kit::authority::{Authority, replace};
use crate::kit::http::get;
use crate::kit::load::Load;
use crate::kit::mesh::{HOUR, Mesh, ask, client13, connect};
use crate::kit::system::Role;
use crate::kit::wait_for;

const LIST: &str = "/api/topic/list";

fn read(mesh: &Mesh, name: &str) -> String {
    std::fs::read_to_string(mesh.path().join(name)).unwrap()
}

async fn wait_until(time: SystemTime) {
    sleep(time.duration_since(SystemTime::now()).unwrap_or_default()).await;
}

/// Opens a connection over which nothing is asked, and returns what waits for its end.
async fn idle(mesh: &Mesh, topic: &Role, name: &str) -> impl Future<Output = Result<(), h2::Error>> + use<> {
    let stream = connect(topic.addr, client13(mesh.path(), name)).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    async move {
        let _held = sender;
        // whose last words are lost when both ends close is chance
        connection.await.or_else(|error| if error.is_io() { Ok(()) } else { Err(error) })
    }
}

/// A certificate without its key, as it is found between two writes, and everything else that is wrong with a set.
#[tokio::test]
async fn what_does_not_fit_leaves_the_last_good_set_in_use() {
    let mesh = Mesh::start().await;
    let mut topic = mesh.role("topic", "strict", &[]);
    let (cert, key) = (read(&mesh, "topic.pem"), read(&mesh, "topic.key"));
    let feed = read(&mesh, "feed.pem");
    // as an authority makes it whose template knows clients only
    let uri = "spiffe://test.example/topic";
    mesh.authority.issue_identity(mesh.path(), "client", uri, HOUR, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    for (cert, key, what) in [
        (&*feed, &*key, "does not fit the certificate"),
        (&feed, &read(&mesh, "feed.key"), "others know this process as spiffe://test.example/topic"),
        (&cert[..cert.len() / 2], &key, "damaged PEM"),
        (&cert, "", "holds no private key"),
        (&read(&mesh, "client.pem"), &read(&mesh, "client.key"), "serverAuth is not among them"),
    ] {
        replace(&mesh.path().join("topic.pem"), cert);
        replace(&mesh.path().join("topic.key"), key);
        let told = |line: &serde_json::Value| {
            line["error"].as_str().is_some_and(|error| error.contains(what))
                && line["message"]
                    == "certificates have changed and cannot be used, going on with those from before"
        };
        let line = topic.process.wait_for_log(what, told);
        assert_eq!(line["level"], "WARN");
        ask(topic.addr, client13(mesh.path(), "apigateway")).await.expect(what);
        assert!(topic.metric("tls_files_unusable{purpose=\"grpc\"}").await > 0.5);
        assert_eq!(topic.process.count_logs(told), 1, "it is said once");
    }
    assert!(topic.metric("tls_reloads_total{purpose=\"grpc\",result=\"failed\"}").await > 4.5);
    mesh.issue(&mesh.authority, "topic", 2 * HOUR);
    wait_for("the next good one is used", || async {
        (topic.metric("tls_files_unusable{purpose=\"grpc\"}").await < 0.5).then_some(())
    })
    .await;
    let expiry = topic.metric("tls_certificate_expiry_timestamp_seconds{certificate=\"own\"").await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((expiry - now - 7200.0).abs() < 60.0, "{expiry} at {now}");
}

/// The connections that stand when a certificate ends are replaced before, on both sides.
#[tokio::test]
async fn connections_are_replaced_before_a_certificate_ends() {
    let mesh = Mesh::start().await;
    let life = Duration::from_secs(12);
    let end = SystemTime::now() + life;
    mesh.issue_all(&mesh.authority, life);
    let _topic = mesh.role("topic", "strict", &[]);
    let gateway = mesh.role("apigateway", "strict", &[]);
    gateway.wait_for_certain("topic", 1).await;
    let load = Load::get(gateway.addr, 100.0, LIST).start();
    wait_until(end - Duration::from_secs(4)).await;
    mesh.issue_all(&mesh.authority, HOUR);
    wait_until(end + Duration::from_secs(4)).await;
    let record = load.finish().await;
    assert_eq!((record.failed().len(), record.unsent), (0, 0), "{}", record.failures());
    assert!(record.calls.len() > 500);
    assert!(gateway.metric("client_connections_total{event=\"replaced\",service=\"topic\"}").await >= 1.0);
}

/// Nobody has replaced it: what is open ends gracefully on both sides, and nothing new is opened.
#[tokio::test]
async fn a_connection_ends_with_the_certificate_of_its_peer() {
    let mesh = Mesh::start().await;
    let life = Duration::from_secs(9);
    let end = SystemTime::now() + life;
    mesh.issue(&mesh.authority, "topic", life);
    mesh.authority.issue_identity(mesh.path(), "short", "spiffe://test.example/apigateway", life, |_| {});
    let mut topic = mesh.role("topic", "strict", &[]);
    let gateway = mesh.role("apigateway", "strict", &[]);
    gateway.wait_for_certain("topic", 1).await;
    let (short, long) = (idle(&mesh, &topic, "short").await, idle(&mesh, &topic, "apigateway").await);
    let long = tokio::spawn(long);
    assert_eq!(get(gateway.addr, LIST).await.status, 200);
    tokio::time::timeout(life + Duration::from_secs(10), short).await.expect("it ends").expect("gracefully");
    assert!(SystemTime::now() >= end, "not before");
    topic.process.wait_for_log("it says so", |line| {
        line["message"] == "a connection has outlived the certificate of its peer, ending it"
    });
    assert!(!long.is_finished(), "that of a caller with a longer one goes on");
    wait_for("the caller has no connection any more", || async {
        let endpoint = gateway.endpoint("topic", topic.addr).await?;
        let error = endpoint["last_error"].as_str()?.to_owned();
        (endpoint["state"] == "down" && error.contains("xpired")).then_some(())
    })
    .await;
    assert_eq!(get(gateway.addr, LIST).await.degraded(), "stale", "an earlier answer is left");
    mesh.issue(&mesh.authority, "topic", HOUR);
    wait_for("a new certificate brings it back", || async {
        (get(gateway.addr, LIST).await.degraded().is_empty()).then_some(())
    })
    .await;
}

/// An authority that is taken out of the file is trusted no more, also on connections that are open.
#[tokio::test]
async fn connections_end_when_their_authority_leaves() {
    let mesh = Mesh::start().await;
    let next = Authority::new("two");
    let topic = mesh.role("topic", "strict", &[]);
    let old = tokio::spawn(idle(&mesh, &topic, "apigateway").await);
    let begun = Instant::now();
    mesh.trust(&[&mesh.authority, &next]);
    mesh.issue_all(&next, HOUR);
    wait_for("the new certificate is shown", || async {
        let used = topic.metric("tls_reloads_total{purpose=\"grpc\",result=\"ok\"}").await;
        (used >= 1.0).then_some(())
    })
    .await;
    ask(topic.addr, client13(mesh.path(), "apigateway")).await.expect("of the next authority");
    mesh.authority.issue_identity(mesh.path(), "late", "spiffe://test.example/apigateway", HOUR, |_| {});
    ask(topic.addr, client13(mesh.path(), "late")).await.expect("both are trusted");
    sleep(Duration::from_secs(3)).await;
    assert!(!old.is_finished());
    mesh.trust(&[&next]);
    let ended = tokio::time::timeout(Duration::from_secs(10), old).await.expect("it ends").unwrap();
    ended.expect("gracefully");
    assert!(begun.elapsed() > Duration::from_secs(3));
    let error = ask(topic.addr, client13(mesh.path(), "late")).await.unwrap_err();
    assert!(error.contains("UnknownCA"), "{error}");
}

/// What else is wrong with the files must not keep an authority in use that has lost its key.
#[tokio::test]
async fn an_authority_leaves_though_the_certificate_cannot_be_used() {
    let mesh = Mesh::start().await;
    let next = Authority::new("two");
    let mut topic = mesh.role("topic", "strict", &[]);
    let old = idle(&mesh, &topic, "apigateway").await;
    replace(&mesh.path().join("topic.key"), "");
    mesh.trust(&[&next]);
    topic.process.wait_for_log("it says so", |line| {
        line["message"] == "the authorities have changed, using them with the certificate from before"
    });
    tokio::time::timeout(Duration::from_secs(10), old).await.expect("it ends").expect("gracefully");
    let error = ask(topic.addr, client13(mesh.path(), "apigateway")).await.unwrap_err();
    assert!(error.contains("UnknownCA"), "{error}");
    wait_for("it says that its key cannot be used", || async {
        (topic.metric("tls_files_unusable{purpose=\"grpc\"}").await > 0.5).then_some(())
    })
    .await;
    // and the other way round
    mesh.issue(&next, "apigateway", HOUR);
    ask(topic.addr, client13(mesh.path(), "apigateway")).await.expect("of the next authority");
}

/// Nobody is trusted then, until there is another one.
#[tokio::test]
async fn nobody_is_trusted_once_the_last_authority_has_expired() {
    let mesh = Mesh::start().await;
    let life = Duration::from_secs(8);
    let end = SystemTime::now() + life;
    let short = Authority::lasting("short", life);
    mesh.trust(&[&short]);
    mesh.issue_all(&short, HOUR);
    let topic = mesh.role("topic", "strict", &[]);
    let old = idle(&mesh, &topic, "apigateway").await;
    tokio::time::timeout(life + Duration::from_secs(10), old).await.expect("it ends").expect("gracefully");
    assert!(SystemTime::now() >= end, "not before");
    let error = ask(topic.addr, client13(mesh.path(), "apigateway")).await.unwrap_err();
    assert!(error.contains("UnknownCA"), "{error}");
    mesh.trust(&[&mesh.authority]);
    mesh.issue_all(&mesh.authority, HOUR);
    wait_for("another one is trusted", || async {
        ask(topic.addr, client13(mesh.path(), "apigateway")).await.ok()
    })
    .await;
}

/// By the same authority: the name that a caller has to have is another one now.
#[tokio::test]
async fn connections_end_when_the_name_of_their_caller_counts_no_more() {
    let mesh = Mesh::start().await;
    let topic = mesh.role("topic", "strict", &[]);
    let old = idle(&mesh, &topic, "apigateway").await;
    let renamed = |role: &str| {
        let uri = format!("spiffe://other.example/{role}");
        mesh.authority.issue_identity(mesh.path(), role, &uri, HOUR, |_| {});
    };
    renamed("topic");
    tokio::time::timeout(Duration::from_secs(10), old).await.expect("it ends").expect("gracefully");
    renamed("apigateway");
    ask(topic.addr, client13(mesh.path(), "apigateway")).await.expect("by its new name");
}
