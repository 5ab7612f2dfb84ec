//! The gateway with TLS: both versions of HTTP, certificates that change, and what others say of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::kit::browser::Browser;
use crate::kit::http::raw;
use crate::kit::secure::{LIFE, Secure, output, text};
use crate::kit::{SOON, skip, wait_for};

#[tokio::test]
async fn curl_speaks_both_versions_of_http_over_tls() {
    let secure = Secure::start(|settings| settings.http.hsts = Duration::from_hours(365 * 24)).await;
    let feed = r#"{"id":1,"user_id":5,"content":"hello"}"#;
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
        let (url, read) = (secure.url("/api/feed/create_feed"), secure.url("/api/feed/get_feeds?user_id=5"));
        let put = text(&secure.curl(&[flag, "-i", "-XPUT", &url, "-d", feed]).await);
        assert!(put.starts_with(&format!("{version} 200")) && put.ends_with("{}"), "{put}");
        let get = text(&secure.curl(&[flag, "-i", &read]).await);
        assert!(get.starts_with(&format!("{version} 200")) && get.contains("\"hello\""), "{get}");
        // also on answers that are refused
        for path in ["/api/feed/get_feeds", "/nothing"] {
            let answer = text(&secure.curl(&[flag, "-i", &secure.url(path)]).await);
            assert!(answer.contains("application/problem+json"), "{answer}");
            assert!(
                answer.to_lowercase().contains("strict-transport-security: max-age=31536000\r\n"),
                "{answer}"
            );
        }
        // a body that is refused does not cost the others their connection
        let large = secure.dir.path().join("large");
        std::fs::write(&large, "x".repeat(400 * 1024)).unwrap();
        let data = format!("@{}", large.display());
        let authority = secure.ca();
        let code = ["-o", "/dev/null", "-w", "%{http_code} "];
        let many = [
            &[flag][..],
            &code,
            &["-XPUT", &url, "--data-binary", &data, "--next", "--cacert", &authority],
            &[flag],
            &code,
            &[&read],
        ];
        let many = text(&secure.curl(&many.concat()).await);
        assert!(many.ends_with("200 ") && many.contains("413"), "{many}");
    }
    // what the page and the description say is the same as without TLS
    let docs = text(&secure.curl(&["-i", &secure.url("/docs")]).await);
    assert!(docs.starts_with("HTTP/2 200") && docs.contains("<title>API of"), "{docs}");
}

/// Nothing is served without TLS, by old versions, by weak ciphers, or for protocols that are not HTTP.
#[tokio::test]
async fn nothing_but_modern_tls_is_spoken() {
    let secure = Secure::start(|_| {}).await;
    let plain =
        raw(secure.addr(), b"GET /api/topic/list HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1 "), "{plain:?}");
    let handshake = async |args: &[&str]| {
        let mut command = Command::new("openssl");
        let addr = secure.addr().to_string();
        command.args(["s_client", "-connect", &addr, "-servername", "localhost", "-CAfile", &secure.ca()]);
        command.args(["-verify_return_error"]).args(args).stdin(std::process::Stdio::null());
        let output = output(command).await;
        (output.status.success(), text(&output))
    };
    for (args, taken) in [
        (&["-tls1_3"][..], true),
        (&["-tls1_2"], true),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], true),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], true),
        (&["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"], false),
        (&["-tls1", "-cipher", "DEFAULT:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "AES128-GCM-SHA256"], false),
        (&["-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"], false),
        (&["-alpn", "h2"], true),
        (&["-alpn", "http/1.1"], true),
        (&["-alpn", "ftp"], false),
    ] {
        let (done, said) = handshake(args).await;
        assert_eq!(done, taken, "{args:?}: {said}");
    }
    assert_eq!(secure.connect(&[]).await.unwrap().get_ref().1.alpn_protocol(), None);
    // no HSTS unless it is set
    let answer = text(&secure.curl(&["-i", &secure.url("/api/topic/list")]).await);
    assert!(answer.starts_with("HTTP/2 200") && !answer.contains("strict-transport"), "{answer}");
    assert!(secure.app.metric("tls_refused_total{purpose=\"http\"").await >= 5.0);
}

/// On HTTP/2 the authority is the host, and the scheme that of the listener.
#[tokio::test]
async fn an_http2_request_says_one_host_and_https() {
    let secure = Secure::start(|_| {}).await;
    let tls = secure.connect(&[b"h2"]).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
    tokio::spawn(connection);
    for (uri, host, status) in [
        ("https://localhost/api/topic/list", None, 200),
        ("https://localhost/api/topic/list", Some("LOCALHOST"), 200),
        ("https://localhost/api/topic/list", Some("other"), 400),
        ("http://localhost/api/topic/list", None, 421),
    ] {
        let mut request = http::Request::get(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        sender.ready().await.unwrap();
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{uri} {host:?}");
        answer.into_body().collect().await.unwrap();
    }
}

/// Peers that begin and do not go on hold up nobody, and are ended.
#[tokio::test]
async fn handshakes_that_stall_hold_up_nobody() {
    let secure = Secure::start(|_| {}).await;
    let mut stalled = Vec::new();
    for _ in 0..600 {
        stalled.push(TcpStream::connect(secure.addr()).await.unwrap());
    }
    let begun = std::time::Instant::now();
    let answer = text(&secure.curl(&["-i", &secure.url("/api/topic/list")]).await);
    assert!(answer.starts_with("HTTP/2 200"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let mut first = stalled.swap_remove(0);
    let ended = tokio::time::timeout(Duration::from_secs(10), first.read(&mut [0; 9])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
}

/// A connection over HTTP/2 that nobody uses ends as one over HTTP/1 does.
#[tokio::test]
async fn an_idle_connection_ends_on_both_versions() {
    let secure = Secure::start(|settings| settings.http.header_timeout = Duration::from_millis(500)).await;
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let mut tls = secure.connect(&[alpn]).await.unwrap();
        if alpn == b"h2" {
            tokio::io::AsyncWriteExt::write_all(
                &mut tls,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            )
            .await
            .unwrap();
        }
        let mut received = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), tls.read_to_end(&mut received)).await;
        assert!(ended.is_ok(), "{} stays open", String::from_utf8_lossy(alpn));
    }
}

/// A new certificate as soon as the last one is shown, and each connection is a new one.
#[tokio::test]
async fn certificates_are_replaced_without_a_failed_request() {
    const ROTATIONS: usize = 20;
    let secure = Secure::start(|_| {}).await;
    let (mut seen, mut asked) = (BTreeSet::new(), 0);
    let ask = async || {
        let tls = secure.connect(&[b"http/1.1"]).await?;
        let serial = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        let request = http::Request::get("/api/topic/list").header("host", "localhost");
        let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await;
        Ok::<_, std::io::Error>((answer.map_err(std::io::Error::other)?.status(), serial))
    };
    for _ in 0..ROTATIONS {
        // the key and the certificate are two files: between the two they do not fit
        secure.authority.issue(secure.dir.path(), "gateway", &["localhost", "127.0.0.1"], LIFE);
        let (known, begun) = (seen.len(), std::time::Instant::now());
        while seen.len() == known {
            let (status, certificate) = ask().await.unwrap_or_else(|error| panic!("after {asked}: {error}"));
            assert_eq!(status, 200);
            seen.insert(certificate);
            asked += 1;
            assert!(begun.elapsed() < SOON, "the certificate stays the same");
        }
    }
    // a pair that does not fit is not taken
    std::fs::write(secure.dir.path().join("gateway.key"), "nonsense").unwrap();
    wait_for("it is told", || async {
        (secure.app.metric("tls_files_unusable{purpose=\"http\"}").await > 0.5).then_some(())
    })
    .await;
    assert_eq!(ask().await.unwrap().0, 200);
}

#[tokio::test]
async fn a_browser_loads_the_page_over_https() {
    let Some(browser) = Browser::start("the page of the API over HTTPS in a browser").await else { return };
    let secure = Secure::start(|_| {}).await;
    browser.devtools("Security.setIgnoreCertificateErrors", serde_json::json!({"ignore": true})).await;
    browser.open(&secure.url("/docs")).await;
    browser
        .wait_until("the page is made", "return document.querySelectorAll('details.operation').length > 0")
        .await;
    let protocol = "return performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.script(protocol).await, "h2");
}

/// What testssl.sh may find, with its severity: this machine and the authority of the test are the reason, not the gateway.
const OF_THE_TEST: [(&str, &str); 5] = [
    // the OpenSSL of this machine lacks GOST
    ("engine_problem", "WARN"),
    // it hangs up before a ticket of TLS 1.3 has come, and then has none to try
    ("sessionresumption_ticket", "WARN"),
    // certificates live for an hour; of one that has expired it says CRITICAL
    ("cert_expirationStatus", "HIGH"),
    ("cert_notAfter", "HIGH"),
    // the authority publishes no revocations
    ("cert_revocation", "HIGH"),
];

/// testssl.sh tries what is known, and looks at the certificate and at what the gateway offers.
#[tokio::test]
async fn a_scanner_finds_nothing_weak() {
    const CHECK: &str = "a scanner finds nothing weak in the gateway's TLS";
    if !Path::new("/usr/bin/testssl").exists() {
        return skip(CHECK, "testssl.sh is not installed");
    }
    let secure = Secure::start(|settings| settings.http.hsts = Duration::from_hours(365 * 24)).await;
    let report = secure.dir.path().join("report.json");
    let mut command = Command::new("testssl");
    command.args([
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "--nodns",
        "none",
        "-p",
        "-s",
        "-f",
        "-U",
        "-P",
        "-h",
        "-S",
    ]);
    command
        .args(["--add-ca", &secure.ca(), "--jsonfile"])
        .arg(&report)
        .arg(format!("localhost:{}", secure.addr().port()));
    command.current_dir(secure.dir.path()).stdin(std::process::Stdio::null());
    let said = tokio::time::timeout(Duration::from_mins(5), output(command)).await.expect("it ends");
    let report = std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}: {}", text(&said)));
    let report: serde_json::Value =
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}"));
    let findings: Vec<_> = report.as_array().expect("findings").iter().collect();
    let found =
        |id: &str| findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("no {id}"));
    assert!(found("TLS1_3")["finding"].as_str().unwrap().starts_with("offered"));
    assert!(found("TLS1_1")["finding"].as_str().unwrap().starts_with("not offered"));
    assert_eq!(found("cert_chain_of_trust")["severity"], "OK");
    let bad = |severity: &str| ["LOW", "MEDIUM", "HIGH", "CRITICAL", "WARN"].contains(&severity);
    let judged = findings.iter().filter(|finding| {
        let (id, severity) = (finding["id"].as_str().unwrap(), finding["severity"].as_str().unwrap());
        bad(severity) && !OF_THE_TEST.contains(&(id, severity))
    });
    let bad: Vec<_> = judged.collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
