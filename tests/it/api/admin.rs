//! Who may ask the admin port for what.

use std::net::SocketAddr;

use crate::kit::http::{parse, raw};
use crate::kit::process::Process;

/// Returns status and body of a request with these header lines.
async fn ask(admin: SocketAddr, request: &str, headers: &[&str]) -> (u16, String) {
    let headers = [headers, &["content-length: 0", "connection: close", ""]].concat().join("\r\n");
    let message = format!("{request} HTTP/1.1\r\n{headers}\r\n");
    let (status, _, body) = parse(&raw(admin, message.as_bytes()).await);
    (status, body)
}

/// Sets the log level under a Host, with further header lines.
async fn set_level(admin: SocketAddr, level: &str, headers: &str) -> u16 {
    let length = level.len();
    let message = format!(
        "PUT /loglevel HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{level}"
    );
    parse(&raw(admin, message.as_bytes()).await).0
}

#[tokio::test]
async fn a_web_page_changes_and_reads_nothing_on_the_admin_port() {
    let args = ["topic", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0"];
    let advertised = ["--advertise-addr", "topic-0.example:0"];
    let mut process = Process::start(&[&args[..], &advertised].concat());
    let (_, admin) = process.wait_for_role("topic");
    let (evil, page) = ("host: evil.example:6060", "origin: http://evil.example");

    // under a name that was rebound, from another page, from a sandboxed one
    assert_eq!(set_level(admin, "debug", &format!("{evil}\r\n")).await, 421);
    assert_eq!(
        set_level(admin, "debug", &format!("{evil}\r\norigin: http://evil.example:6060\r\n")).await,
        421
    );
    assert_eq!(set_level(admin, "debug", &format!("host: {admin}\r\n{page}\r\n")).await, 403);
    assert_eq!(set_level(admin, "debug", &format!("host: {admin}\r\norigin: null\r\n")).await, 403);
    let local = format!("host: localhost:{}", admin.port());
    assert_eq!(ask(admin, "GET /loglevel", &[&local]).await, (200, "info\n".to_owned()), "it is as it was");
    for path in ["/status", "/loglevel", "/debug/pprof/profile?seconds=1", "/debug/pprof/heap", "/nowhere"] {
        let (status, body) = ask(admin, &format!("GET {path}"), &[evil]).await;
        assert_eq!(status, 421, "{path}");
        assert_eq!(body, "host: must be an address, localhost, or a name of this process\n");
        assert_eq!(ask(admin, &format!("GET {path}"), &[&local, page]).await.0, 403, "{path}");
    }
    let (status, _) =
        ask(admin, "GET /debug/pprof/profile?seconds=1", &[&local, "sec-fetch-site: cross-site"]).await;
    assert_eq!(status, 403, "an image on a page");

    // monitoring uses names that nobody told this process; a page cannot read what it gets, unless by such a name
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(ask(admin, &format!("GET {path}"), &["host: feed-3.prod.example"]).await.0, 200, "{path}");
        assert_eq!(ask(admin, &format!("GET {path}"), &[&local, page]).await.0, 403, "{path}");
    }

    // operators: by address, as localhost, by the advertised name, by the name of the host
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for name in [
        admin.to_string(),
        "localhost".to_owned(),
        "[::1]:6060".to_owned(),
        "topic-0.example:6060".to_owned(),
        host,
    ] {
        assert_eq!(ask(admin, "GET /status", &[&format!("host: {name}")]).await.0, 200, "{name}");
        assert_eq!(set_level(admin, "info", &format!("host: {name}\r\n")).await, 200, "{name}");
    }
}
