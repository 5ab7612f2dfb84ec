//! Whom a caller refuses.

use std::time::Duration;

use http::StatusCode;

use crate::kit::authority::{Authority, replace};
use crate::kit::http::get;
use crate::kit::mesh::{HOUR, Mesh, uri};
use crate::kit::system::Role;
use crate::kit::wait_for;

const FEEDS: &str = "/api/feed/get_feeds?user_id=7";

/// Returns what the gateway says of the only feed that it knows, once its connection has failed with a text.
async fn fails_with(gateway: &Role, feed: &Role, text: &str) {
    wait_for("the connection fails", || async {
        let endpoint = gateway.endpoint("feed", feed.addr).await?;
        let error = endpoint["last_error"].as_str()?.to_owned();
        (endpoint["state"] == "down" && error.contains(text)).then_some(())
    })
    .await;
    assert_eq!(get(gateway.addr, FEEDS).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

async fn refused(gateway: &Role, reason: &str) -> f64 {
    gateway
        .metric(&format!("tls_refused_total{{purpose=\"grpc\",reason=\"{reason}\",side=\"client\"}}"))
        .await
}

/// Another service that has a certificate of the same authority, and says that it is feed.
#[tokio::test]
async fn a_caller_calls_only_the_service_that_it_means() {
    let mesh = Mesh::start().await;
    let mut gateway = mesh.role("apigateway", "strict", &[]);
    // its certificate is good for a topic; the settings let it believe that it is feed's
    let topic = uri("topic");
    let named = format!("feed={topic}");
    let (cert, key) = (mesh.path().join("topic.pem"), mesh.path().join("topic.key"));
    let impostor = mesh.role(
        "feed",
        "strict",
        &[
            ("MSA__TLS__NAMES", &named),
            ("MSA__TLS__CERT_FILE", cert.to_str().unwrap()),
            ("MSA__TLS__KEY_FILE", key.to_str().unwrap()),
        ],
    );
    fails_with(&gateway, &impostor, "ApplicationVerificationFailure").await;
    assert!(refused(&gateway, "identity").await >= 1.0);
    let line = gateway
        .process
        .wait_for_log("a refusal", |line| line["message"] == "a peer is refused for its certificate");
    assert_eq!(
        (line["peer"].as_str(), line["want"].as_str()),
        (Some(&*topic), Some(&*uri("feed"))),
        "{line}"
    );
    // the other side counts that its certificate was refused
    assert!(
        impostor.metric("tls_refused_total{purpose=\"grpc\",reason=\"ours\",side=\"server\"}").await >= 1.0
    );
    drop(impostor);
    let feed = mesh.role("feed", "strict", &[]);
    wait_for("it is called", || async { (get(gateway.addr, FEEDS).await.status == 404).then_some(()) }).await;
    assert!(
        gateway.metric("tls_connections_total{purpose=\"grpc\",side=\"client\",transport=\"tls\"}").await
            >= 1.0
    );
    drop(feed);
}

/// Even while plaintext is allowed, a peer that speaks TLS and is somebody else gets no plaintext.
#[tokio::test]
async fn a_permissive_caller_does_not_fall_back_from_a_wrong_certificate() {
    let mesh = Mesh::start().await;
    let gateway = mesh.role("apigateway", "permissive", &[]);
    // of an authority that the gateway does not know
    let other = Authority::new("other");
    other.issue_identity(mesh.path(), "feed", &uri("feed"), HOUR, |_| {});
    let feed = mesh.role("feed", "permissive", &[]);
    fails_with(&gateway, &feed, "UnknownIssuer").await;
    assert!(refused(&gateway, "untrusted").await >= 1.0);
    assert!(
        gateway
            .metric("tls_connections_total{purpose=\"grpc\",side=\"client\",transport=\"plaintext\"}")
            .await
            < 0.5
    );
}

/// The refusal of a service reaches its caller's operator.
#[tokio::test]
async fn a_caller_that_is_refused_says_so() {
    let mesh = Mesh::start().await;
    let gateway = mesh.role("apigateway", "strict", &[]);
    let feed = mesh.role("feed", "strict", &[("MSA__GRPC__ALLOW", "profile")]);
    fails_with(&gateway, &feed, "AccessDenied").await;
}

/// A process whose certificate is another role's, or has expired, does not start.
#[tokio::test]
async fn a_certificate_that_nobody_would_believe_is_an_error_at_the_start() {
    let mesh = Mesh::start().await;
    mesh.authority.issue_identity(mesh.path(), "late", &uri("feed"), HOUR, |p| {
        p.not_after = (std::time::SystemTime::now() - Duration::from_mins(1)).into();
    });
    mesh.authority.issue_identity(mesh.path(), "signs", &uri("feed"), HOUR, |p| {
        p.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign);
    });
    mesh.authority.issue_identity(mesh.path(), "nameless", "urn:x", HOUR, |p| p.subject_alt_names.clear());
    let cases = [
        (
            "topic",
            "is of spiffe://test.example/topic, and others know this process as spiffe://test.example/feed",
        ),
        ("late", "expired 60 s ago"),
        ("signs", "keyCertSign"),
        ("nameless", "set `tls.trust_domain`"),
        ("absent", "No such file"),
    ];
    for (name, want) in cases {
        let env = mesh.env(name, "strict");
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (mut process, _) = Role::launch(&mesh.etcd.addr.to_string(), "feed", "127.0.0.1:0", &env);
        let status = process.wait(crate::kit::SOON);
        let word = process.seen.iter().filter_map(|line| line.as_str()).collect::<Vec<_>>().join("\n");
        assert!(
            !status.success() && word.contains("`tls.cert_file`") && word.contains(want),
            "{name}: {word}"
        );
    }
}

/// Who has the key of a certificate that is trusted could make one of every role. A leaf is not trusted, wherever it comes
/// from.
#[tokio::test]
async fn a_certificate_that_is_no_authority_is_not_trusted() {
    let mesh = Mesh::start().await;
    let (authority, leaf) =
        (mesh.authority.pem(), std::fs::read_to_string(mesh.path().join("topic.pem")).unwrap());
    let gateway = mesh.role("apigateway", "strict", &[]);
    let feed = mesh.role("feed", "strict", &[]);
    wait_for("it is called", || async { (get(gateway.addr, FEEDS).await.status == 404).then_some(()) }).await;
    replace(&mesh.path().join("ca.pem"), &format!("{authority}{leaf}"));
    let unusable = "tls_files_unusable{purpose=\"grpc\"}";
    wait_for("it is told", || async { (feed.metric(unusable).await > 0.5).then_some(()) }).await;
    assert_eq!(get(gateway.addr, FEEDS).await.status, 404, "the last good set is in use");
    let env = mesh.env("feed", "strict");
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (mut process, _) = Role::launch(&mesh.etcd.addr.to_string(), "feed", "127.0.0.1:0", &env);
    let status = process.wait(crate::kit::SOON);
    let word = process.seen.iter().filter_map(|line| line.as_str()).collect::<Vec<_>>().join("\n");
    let want = "ca.pem: holds `CN=topic`, which is no authority (cA)";
    assert!(!status.success() && word.contains("`tls.ca_file`: ") && word.contains(want), "{word}");
}
