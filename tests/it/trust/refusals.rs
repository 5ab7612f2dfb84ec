//! Who a service refuses.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::rustls::{HandshakeKind, version};

use crate::kit::authority::Authority;
use crate::kit::mesh::{HOUR, Mesh, ask, ask_over, client, client13, connect, uri};
use crate::kit::system::Role;
use crate::kit::wait_for;

async fn refused(feed: &Role, reason: &str) -> f64 {
    let series = format!("tls_refused_total{{purpose=\"grpc\",reason=\"{reason}\",side=\"server\"}}");
    feed.metric(&series).await
}

/// Asks with the certificate `name` and expects a refusal, which is counted by its reason.
async fn is_refused(mesh: &Mesh, feed: &Role, name: &str, reason: &str, alert: &str) {
    let before = refused(feed, reason).await;
    let error = ask(feed.addr, client13(mesh.path(), name)).await.expect_err(name);
    assert!(error.contains(alert), "{name}: {error}");
    wait_for("it is counted", || async { (refused(feed, reason).await >= before + 1.0).then_some(()) }).await;
}

#[tokio::test]
async fn a_service_takes_calls_of_its_callers_only() {
    let mesh = Mesh::start().await;
    let mut feed = mesh.role("feed", "strict", &[]);
    for caller in ["apigateway", "profile"] {
        ask(feed.addr, client13(mesh.path(), caller)).await.expect(caller);
    }
    let issue = |name: &str, uri: &str, change: fn(&mut CertificateParams)| {
        mesh.authority.issue_identity(mesh.path(), name, uri, HOUR, change);
    };
    let gateway = &uri("apigateway");
    issue("stranger", "spiffe://test.example/stranger", |_| {});
    issue("foreign", "spiffe://other.example/apigateway", |_| {});
    issue("longer", &format!("{gateway}/x"), |_| {});
    issue("case", "spiffe://test.example/Apigateway", |_| {});
    issue("other", "https://test.example/apigateway", |_| {});
    for name in ["topic", "feed", "stranger", "foreign", "longer", "case", "other"] {
        is_refused(&mesh, &feed, name, "identity", "AccessDenied").await;
    }
    // the name of a DNS name or of the subject is no identity of a role
    mesh.authority.issue_identity(mesh.path(), "dns", gateway, HOUR, |p| {
        p.subject_alt_names = vec![SanType::DnsName("apigateway".try_into().unwrap())];
    });
    is_refused(&mesh, &feed, "dns", "identity", "AccessDenied").await;

    issue("signs", gateway, |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign));
    issue("lists", gateway, |p| p.key_usages.push(KeyUsagePurpose::CrlSign));
    issue("useless", gateway, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    issue("unused", gateway, |p| p.key_usages.clear());
    issue("two", gateway, |p| {
        p.subject_alt_names.push(SanType::URI("spiffe://test.example/x".try_into().unwrap()));
    });
    for name in ["signs", "lists", "useless", "unused", "two"] {
        is_refused(&mesh, &feed, name, "leaf", "AccessDenied").await;
    }
    // webpki refuses it before we look
    issue("authority", gateway, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    is_refused(&mesh, &feed, "authority", "untrusted", "alert").await;
    issue("early", gateway, |p| p.not_before = (SystemTime::now() + HOUR / 2).into());
    is_refused(&mesh, &feed, "early", "expired", "CertificateExpired").await;
    issue("late", gateway, |p| p.not_after = (SystemTime::now() - Duration::from_mins(1)).into());
    is_refused(&mesh, &feed, "late", "expired", "CertificateExpired").await;
    Authority::new("one").issue_identity(mesh.path(), "unknown", gateway, HOUR, |_| {});
    is_refused(&mesh, &feed, "unknown", "untrusted", "alert").await;

    let before = refused(&feed, "no_certificate").await;
    let error = ask(feed.addr, client(mesh.path(), None, &version::TLS13)).await.unwrap_err();
    assert!(error.contains("CertificateRequired"), "{error}");
    assert!(refused(&feed, "no_certificate").await > before);
    let error = ask(feed.addr, client(mesh.path(), Some("apigateway"), &version::TLS12)).await.unwrap_err();
    assert!(error.contains("ProtocolVersion"), "{error}");
    let plain = TcpStream::connect(feed.addr).await.unwrap();
    ask_over(plain).await.unwrap_err();
    wait_for("plaintext is counted", || async { (refused(&feed, "plaintext").await >= 1.0).then_some(()) })
        .await;
    // who was refused is said, once in a while
    let line = feed
        .process
        .wait_for_log("a refusal", |line| line["message"] == "a peer is refused for its certificate");
    assert_eq!(line["peer"], uri("topic"), "{line}");
    assert_eq!(line["reason"], "identity", "{line}");
    ask(feed.addr, client13(mesh.path(), "apigateway")).await.expect("it still serves");
}

#[tokio::test]
async fn callers_are_who_the_settings_say() {
    let mesh = Mesh::start().await;
    mesh.authority.issue_identity(mesh.path(), "operator", "urn:x", HOUR, |p| {
        p.subject_alt_names = vec![SanType::DnsName("Operator.example".try_into().unwrap())];
    });
    let allow = [("MSA__GRPC__ALLOW", "topic,dns:operator.example,spiffe://test.example/tool")];
    let feed = mesh.role("feed", "strict", &allow);
    mesh.authority.issue_identity(mesh.path(), "tool", &uri("tool"), HOUR, |_| {});
    for name in ["topic", "operator", "tool"] {
        ask(feed.addr, client13(mesh.path(), name)).await.expect(name);
    }
    for name in ["apigateway", "profile"] {
        is_refused(&mesh, &feed, name, "identity", "AccessDenied").await;
    }
}

/// A resumed handshake skips the check of the client's certificate.
#[tokio::test]
async fn no_session_is_resumed() {
    let mesh = Mesh::start().await;
    let feed = mesh.role("feed", "strict", &[]);
    let config = client13(mesh.path(), "apigateway");
    for _ in 0..3 {
        let mut stream = connect(feed.addr, config.clone()).await.unwrap();
        // tickets would come with the first bytes
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read_u8()).await;
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
        ask(feed.addr, config.clone()).await.unwrap();
    }
}

/// Peers that begin a handshake and say no more hold up nobody, and not for ever.
#[tokio::test]
async fn silent_handshakes_hold_up_nobody() {
    let mesh = Mesh::start().await;
    for mode in ["strict", "permissive"] {
        let feed = mesh.role("feed", mode, &[]);
        let mut silent = Vec::new();
        for _ in 0..700 {
            silent.push(TcpStream::connect(feed.addr).await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        for _ in 0..3 {
            ask(feed.addr, client13(mesh.path(), "apigateway")).await.unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{mode}: {:?}", begun.elapsed());
        wait_for("they end", || async {
            let ended = refused(&feed, "timeout").await + refused(&feed, "overload").await;
            (ended >= 700.0).then_some(())
        })
        .await;
        assert!(refused(&feed, "overload").await >= 1.0);
        for mut stream in silent {
            assert!(matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)));
        }
    }
}
