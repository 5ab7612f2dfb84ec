//! Bad requests, each with its exact status, field and content type. None is a 500, none is accepted.

use crate::kit::app::App;
use crate::kit::http::{parse, raw};
use std::fmt::Write as _;
use std::time::Duration;

const FEED: &str = "/api/feed/create_feed";
const WHOLE: &str = r#"{"id":1,"user_id":1,"content":"x"}"#;
const PROFILE: &str = "/api/profile/put_profile";
const TOPIC: &str = "/api/topic/put_topic";

/// What must come back: a problem body with this status and field.
enum Want {
    Problem(u16, Option<&'static str>),
    /// Only a status: hyper refuses it before our first filter.
    Bare(u16),
    /// Nothing: the connection is closed.
    Closed,
}
use Want::{Bare, Closed, Problem};

fn message(head: &str, body: &[u8]) -> Vec<u8> {
    let mut out = head.replace('\n', "\r\n").into_bytes();
    out.extend_from_slice(body);
    out
}

fn get(target: &str) -> Vec<u8> {
    message(&format!("GET {target} HTTP/1.1\nhost: x\nconnection: close\n\n"), b"")
}

fn with_method(method: &str, target: &str) -> Vec<u8> {
    message(&format!("{method} {target} HTTP/1.1\nhost: x\ncontent-length: 0\nconnection: close\n\n"), b"")
}

fn put(target: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head =
        format!("PUT {target} HTTP/1.1\nhost: x\ncontent-length: {}\nconnection: close\n\n", body.len());
    message(&head, body)
}

fn with_header(target: &str, header: &str) -> Vec<u8> {
    message(&format!("GET {target} HTTP/1.1\nhost: x\n{header}\nconnection: close\n\n"), b"")
}

/// A PUT of a whole feed with further header lines.
fn put_with(header: &str) -> Vec<u8> {
    let head = format!(
        "PUT {FEED} HTTP/1.1\nhost: x\ncontent-length: {}\n{header}\nconnection: close\n\n",
        WHOLE.len()
    );
    message(&head, WHOLE.as_bytes())
}

/// Many members with distinct names.
fn members(count: usize) -> String {
    let each: Vec<_> = (0..count).map(|n| format!("\"{n:x}\":1")).collect();
    each.join(",")
}

/// A feed with one member replaced.
fn feed(id: &str, user_id: &str, content: &str) -> Vec<u8> {
    put(FEED, format!(r#"{{"id":{id},"user_id":{user_id},"content":{content}}}"#))
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<(&'static str, Vec<u8>, Want)> {
    let bad = |field| Problem(400, Some(field));
    let long = |n: usize| format!("\"{}\"", "x".repeat(n));
    let mut cases = vec![
        // malformed JSON
        ("empty body", put(FEED, ""), bad("body")),
        ("not JSON", put(FEED, "hello"), bad("body")),
        ("cut off", put(FEED, r#"{"id":1,"user_id":"#), bad("body")),
        ("trailing comma", put(FEED, r#"{"id":1,}"#), bad("body")),
        ("two objects", put(FEED, r#"{"id":1,"user_id":1,"content":"x"}{}"#), bad("body")),
        ("single quotes", put(FEED, "{'id':1}"), bad("body")),
        ("an array", put(FEED, "[1,2]"), bad("body")),
        ("null", put(FEED, "null"), bad("body")),
        ("a number", put(FEED, "1"), bad("body")),
        ("a lone surrogate", feed("1", "1", r#""\ud800""#), bad("body")),
        ("a raw NUL byte", put(FEED, b"{\"id\":1,\"user_id\":1,\"content\":\"a\0b\"}"), bad("body")),
        (
            "invalid UTF-8 in the body",
            put(FEED, b"{\"id\":1,\"user_id\":1,\"content\":\"\xff\"}"),
            bad("body"),
        ),
        ("deep nesting", put(FEED, "[".repeat(10_000)), bad("body")),
        ("form data", put(FEED, "id=1&user_id=1&content=x"), bad("body")),
        // wrong types and ranges
        ("id as text", feed("\"1\"", "1", "\"x\""), bad("id")),
        ("id as float", feed("1.5", "1", "\"x\""), bad("id")),
        ("id as a float of 2^53", feed("9007199254740992.0", "1", "\"x\""), bad("id")),
        ("id with a negative exponent", feed("15e-1", "1", "\"x\""), bad("id")),
        ("id as bool", feed("true", "1", "\"x\""), bad("id")),
        ("id null", feed("null", "1", "\"x\""), bad("id")),
        ("id an object", feed("{}", "1", "\"x\""), bad("id")),
        ("id zero", feed("0", "1", "\"x\""), bad("id")),
        ("id negative", feed("-1", "1", "\"x\""), bad("id")),
        ("id over i64", feed("9223372036854775808", "1", "\"x\""), bad("id")),
        ("id far over i64", feed("99999999999999999999999", "1", "\"x\""), bad("id")),
        ("id with an exponent over i64", feed("1e19", "1", "\"x\""), bad("id")),
        ("id over any float", feed("1e999", "1", "\"x\""), bad("body")),
        ("user_id zero", feed("1", "0", "\"x\""), bad("user_id")),
        ("user_id as text", feed("1", "\"1\"", "\"x\""), bad("user_id")),
        ("content as number", feed("1", "1", "7"), bad("content")),
        ("content null", feed("1", "1", "null"), bad("content")),
        ("content too long", feed("1", "1", &long(32 * 1024 + 1)), bad("content")),
        ("content with U+0000", feed("1", "1", r#""a\u0000b""#), bad("content")),
        // missing, doubled and unknown members
        ("id missing", put(FEED, r#"{"user_id":1,"content":"x"}"#), bad("id")),
        ("user_id missing", put(FEED, r#"{"id":1,"content":"x"}"#), bad("user_id")),
        ("content missing", put(FEED, r#"{"id":1,"user_id":1}"#), bad("content")),
        ("id twice", put(FEED, r#"{"id":1,"id":2,"user_id":1,"content":"x"}"#), bad("id")),
        ("20000 members", put(FEED, format!("{{{}}}", members(20_000))), bad("body")),
        ("unknown member", put(FEED, r#"{"id":1,"user_id":1,"content":"x","tags":[]}"#), bad("tags")),
        // the other writers
        ("name missing", put(PROFILE, r#"{"user_id":1,"company":"","title":""}"#), bad("name")),
        (
            "name too long",
            put(PROFILE, format!(r#"{{"user_id":1,"name":{},"company":"","title":""}}"#, long(257))),
            bad("name"),
        ),
        (
            "company as list",
            put(PROFILE, r#"{"user_id":1,"name":"","company":[],"title":""}"#),
            bad("company"),
        ),
        (
            "title with U+0000",
            put(PROFILE, r#"{"user_id":1,"name":"","company":"","title":"\u0000"}"#),
            bad("title"),
        ),
        (
            "profile user_id negative",
            put(PROFILE, r#"{"user_id":-5,"name":"","company":"","title":""}"#),
            bad("user_id"),
        ),
        ("topic_id missing", put(TOPIC, r#"{"subject":"s","content":"c"}"#), bad("topic_id")),
        (
            "subject too long",
            put(TOPIC, format!(r#"{{"topic_id":1,"subject":{},"content":""}}"#, long(257))),
            bad("subject"),
        ),
        (
            "topic content too long",
            put(TOPIC, format!(r#"{{"topic_id":1,"subject":"","content":{}}}"#, long(32 * 1024 + 1))),
            bad("content"),
        ),
        // query parameters
        ("user_id missing in query", get("/api/feed/get_feeds"), bad("user_id")),
        ("user_id empty", get("/api/feed/get_feeds?user_id="), bad("user_id")),
        ("user_id without value", get("/api/feed/get_feeds?user_id"), bad("user_id")),
        ("user_id not a number", get("/api/feed/get_feeds?user_id=abc"), bad("user_id")),
        ("user_id with plus", get("/api/feed/get_feeds?user_id=%2B1"), bad("user_id")),
        ("user_id with space", get("/api/feed/get_feeds?user_id=+1"), bad("user_id")),
        ("user_id hex", get("/api/feed/get_feeds?user_id=0x1"), bad("user_id")),
        ("user_id zero in query", get("/api/feed/get_feeds?user_id=0"), bad("user_id")),
        ("user_id over i64 in query", get("/api/feed/get_feeds?user_id=9223372036854775808"), bad("user_id")),
        ("user_id twice", get("/api/feed/get_feeds?user_id=1&user_id=1"), bad("user_id")),
        ("user_id twice by escape", get("/api/feed/get_feeds?user_id=1&%75ser_id=1"), bad("user_id")),
        ("size too large", get("/api/feed/get_feeds?user_id=1&size=1001"), bad("size")),
        ("size negative", get("/api/feed/get_feeds?user_id=1&size=-1"), bad("size")),
        ("size float", get("/api/feed/get_feeds?user_id=1&size=1.0"), bad("size")),
        ("before zero", get("/api/feed/get_feeds?user_id=1&before=0"), bad("before")),
        ("before negative", get("/api/feed/get_feeds?user_id=1&before=-1"), bad("before")),
        ("100 parameters", get(&format!("/api/topic/list?{}", "a=1&".repeat(100))), bad("query")),
        ("unknown parameter", get("/api/feed/get_feeds?user_id=1&page=2"), bad("page")),
        ("escaped invalid UTF-8", get("/api/feed/get_feeds?user_id=%ff"), bad("user_id")),
        ("escaped invalid UTF-8 in a name", get("/api/feed/get_feeds?%ff=1"), bad("query")),
        ("escaped NUL", get("/api/feed/get_feeds?user_id=1%00"), bad("user_id")),
        ("profile without user_id", get("/api/profile/get_profile"), bad("user_id")),
        ("topic_id not a number", get("/api/topic/view?topic_id=one"), bad("topic_id")),
        ("after negative", get("/api/topic/list?after=-1"), bad("after")),
        ("topic size too large", get("/api/topic/list?size=5000"), bad("size")),
        ("delete without id", with_method("DELETE", "/api/feed/delete_feed?user_id=1"), bad("id")),
        ("delete id zero", with_method("DELETE", "/api/feed/delete_feed?user_id=1&id=0"), bad("id")),
        // headers
        (
            "timeout zero",
            with_header("/api/topic/list", "x-request-timeout-ms: 0"),
            bad("x-request-timeout-ms"),
        ),
        (
            "timeout text",
            with_header("/api/topic/list", "x-request-timeout-ms: soon"),
            bad("x-request-timeout-ms"),
        ),
        (
            "timeout too long",
            with_header("/api/topic/list", "x-request-timeout-ms: 600001"),
            bad("x-request-timeout-ms"),
        ),
        (
            "timeout with a sign",
            with_header("/api/topic/list", "x-request-timeout-ms: +5"),
            bad("x-request-timeout-ms"),
        ),
        (
            "timeout twice",
            with_header("/api/topic/list", "x-request-timeout-ms: 5\nx-request-timeout-ms: 5"),
            bad("x-request-timeout-ms"),
        ),
        // nothing there
        ("unknown user", get("/api/feed/get_feeds?user_id=404404"), Problem(404, None)),
        ("unknown user, no size", get("/api/feed/get_feeds?user_id=404404&size=0"), Problem(404, None)),
        ("unknown profile", get("/api/profile/get_profile?user_id=404404"), Problem(404, None)),
        ("unknown topic", get("/api/topic/view?topic_id=404404"), Problem(404, None)),
        (
            "delete what is not there",
            with_method("DELETE", "/api/feed/delete_feed?user_id=404404&id=1"),
            Problem(404, None),
        ),
        ("unknown route", get("/api/feed"), Problem(404, None)),
        ("root", get("/"), Problem(404, None)),
        ("trailing slash", get("/api/topic/list/"), Problem(404, None)),
        ("doubled slash", get("/api//topic/list"), Problem(404, None)),
        ("dots", get("/api/topic/../topic/list"), Problem(404, None)),
        ("case", get("/API/topic/list"), Problem(404, None)),
        ("escaped path", get("/api/topic/%6cist"), Problem(404, None)),
        // wrong method
        ("POST to create", with_method("POST", FEED), Problem(405, None)),
        ("GET of create", get(FEED), Problem(405, None)),
        ("PUT of get", put("/api/feed/get_feeds?user_id=1", "{}"), Problem(405, None)),
        ("an invented method", with_method("FROB", "/api/topic/list"), Problem(405, None)),
        // too much
        ("body over 256 KiB", put(FEED, "x".repeat(256 * 1024 + 1)), Problem(413, None)),
        ("long query", get(&format!("/api/topic/list?size=1&{}", "a".repeat(9000))), Problem(414, None)),
        ("long path", get(&format!("/{}", "a".repeat(9000))), Problem(414, None)),
        ("URI over hyper's limit", get(&format!("/{}", "a".repeat(70_000))), Bare(414)),
        ("header bomb", with_header("/api/topic/list", &format!("x: {}", "a".repeat(200_000))), Bare(431)),
        // at once; with reads without a bound it would be taken
        (
            "head over 144 KiB",
            with_header("/api/topic/list", &format!("x: {}", "a".repeat(150_000))),
            Bare(431),
        ),
        // a target without a path
        ("a host for a target", message("GET example.com:80 HTTP/1.1\nhost: x\n\n", b""), bad("target")),
        ("a tunnel", message("CONNECT example.com:80 HTTP/1.1\nhost: x\n\n", b""), bad("target")),
        // not HTTP
        ("NUL in the request line", message("GET /\0 HTTP/1.1\nhost: x\n\n", b""), Bare(400)),
        (
            "raw bytes in the path",
            [b"GET /\xff\xfe".as_slice(), b" HTTP/1.1\r\nhost: x\r\n\r\n"].concat(),
            Bare(400),
        ),
        ("NUL in a header", message("GET / HTTP/1.1\nhost: a\0b\n\n", b""), Bare(400)),
        ("no HTTP at all", message("hello\n\n", b""), Bare(400)),
        ("an unknown version", message("GET / HTTP/9.9\nhost: x\n\n", b""), Bare(400)),
        ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), Bare(400)),
        (
            "length not a number",
            message("PUT /api/feed/create_feed HTTP/1.1\nhost: x\ncontent-length: ten\n\n", b""),
            Bare(400),
        ),
        (
            "two lengths",
            message(
                "PUT /api/feed/create_feed HTTP/1.1\nhost: x\ncontent-length: 1\ncontent-length: 2\n\n",
                b"{}",
            ),
            Bare(400),
        ),
        (
            "a garbled chunk",
            message("PUT /api/feed/create_feed HTTP/1.1\nhost: x\ntransfer-encoding: chunked\n\nzz\n", b""),
            bad("body"),
        ),
    ];
    cases.extend(unsupported());
    let many = (0..200).fold(String::new(), |mut lines, n| {
        let _ = writeln!(lines, "x-{n}: 1");
        lines
    });
    cases.push(("too many headers", with_header("/api/topic/list", many.trim_end()), Bare(431)));
    // slow: the rest never comes
    cases.push(("slow headers", b"GET / HTTP/1.1\r\nhost:".to_vec(), Closed));
    cases.push(("nothing at all", Vec::new(), Closed));
    let part = message("PUT /api/feed/create_feed HTTP/1.1\nhost: x\ncontent-length: 100\n\n", b"{\"id\":");
    cases.push(("slow body", part, Problem(408, None)));
    cases
}

/// What would change the meaning of a request, and is not supported: the rest of each request is right.
fn unsupported() -> Vec<(&'static str, Vec<u8>, Want)> {
    let bad = |field| Problem(400, Some(field));
    let with_body = |method: &str, target: &str, framing: &str, body: &str| {
        let head = format!("{method} {target} HTTP/1.1\nhost: x\n{framing}\nconnection: close\n\n");
        message(&head, body.as_bytes())
    };
    let list = "/api/topic/list";
    let delete = "/api/feed/delete_feed?user_id=1&id=1";
    let delete_with = |header: &str| {
        message(&format!("DELETE {delete} HTTP/1.1\nhost: x\n{header}\nconnection: close\n\n"), b"")
    };
    let coding = Some("content-encoding");
    vec![
        ("query on PUT", put(&format!("{FEED}?dry_run=true"), WHOLE), bad("dry_run")),
        ("query on PUT, without value", put(&format!("{FEED}?dry_run"), WHOLE), bad("dry_run")),
        ("query on PUT that repeats a member", put(&format!("{FEED}?id=2"), WHOLE), bad("id")),
        ("an override in the query", put(&format!("{FEED}?_method=DELETE"), WHOLE), bad("_method")),
        ("body on GET", with_body("GET", list, "content-length: 2", "{}"), bad("body")),
        (
            "chunked body on GET",
            with_body("GET", list, "transfer-encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
            bad("body"),
        ),
        ("body on DELETE", with_body("DELETE", delete, "content-length: 7", "{\"id\":2}"), bad("body")),
        ("If-Match on PUT", put_with("if-match: \"a\""), bad("if-match")),
        ("If-Match: * on PUT", put_with("if-match: *"), bad("if-match")),
        ("If-None-Match on PUT", put_with("if-none-match: \"a\""), bad("if-none-match")),
        ("If-None-Match: * on PUT", put_with("if-none-match: *"), bad("if-none-match")),
        (
            "If-Unmodified-Since on PUT",
            put_with("if-unmodified-since: Sat, 29 Oct 1994 19:43:31 GMT"),
            bad("if-unmodified-since"),
        ),
        ("If-Match on DELETE", delete_with("if-match: \"a\""), bad("if-match")),
        ("If-None-Match on DELETE", delete_with("if-none-match: *"), bad("if-none-match")),
        ("If-Match on GET", with_header(list, "if-match: \"a\""), bad("if-match")),
        ("Content-Range on PUT", put_with("content-range: bytes 0-9/100"), bad("content-range")),
        ("Content-Range on GET", with_header(list, "content-range: bytes 0-9/100"), bad("content-range")),
        ("an unknown expectation", with_header(list, "expect: 200-ok"), Problem(417, Some("expect"))),
        ("two expectations", put_with("expect: 100-continue, x"), Problem(417, Some("expect"))),
        (
            "an unknown expectation of a second line",
            put_with("expect: 100-continue\nexpect: x"),
            Problem(417, Some("expect")),
        ),
        ("a body that is said to be compressed", put_with("content-encoding: gzip"), Problem(415, coding)),
        (
            "a body in two codings",
            put_with("content-encoding: identity\ncontent-encoding: br"),
            Problem(415, coding),
        ),
        (
            "a method override on PUT",
            put_with("x-http-method-override: DELETE"),
            bad("x-http-method-override"),
        ),
        ("a method override on GET", with_header(list, "x-http-method: PUT"), bad("x-http-method")),
        ("a method override on DELETE", delete_with("x-method-override: GET"), bad("x-method-override")),
        // the form of a request; api/rfc9112.rs has all of it
        ("no host", message(&format!("GET {list} HTTP/1.1\nconnection: close\n\n"), b""), bad("host")),
        ("two hosts", message(&format!("GET {list} HTTP/1.1\nhost: x\nhost: y\n\n"), b""), bad("host")),
        (
            "another scheme",
            message(&format!("GET https://x{list} HTTP/1.1\nhost: x\n\n"), b""),
            Problem(421, Some("target")),
        ),
        (
            "a transfer coding",
            with_body(
                "PUT",
                FEED,
                "transfer-encoding: gzip, chunked",
                &format!("22\r\n{WHOLE}\r\n0\r\n\r\n"),
            ),
            bad("transfer-encoding"),
        ),
    ]
}

fn check(raw: &str, want: &Want) -> Result<(), String> {
    let (status, headers, body) = parse(raw);
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let expect = |what: &str, ok: bool| if ok { Ok(()) } else { Err(format!("{what} in {raw:?}")) };
    match want {
        Closed => expect("an answer where none should be", raw.is_empty()),
        Bare(wanted) => expect(&format!("not a bare {wanted}"), status == *wanted && body.is_empty()),
        Problem(wanted, field) => {
            expect(&format!("not {wanted}"), status == *wanted)?;
            expect("wrong type", header("content-type") == "application/problem+json")?;
            expect("no x-request-id", !header("x-request-id").is_empty())?;
            let body: serde_json::Value =
                serde_json::from_str(&body).map_err(|e| format!("{e} in {raw:?}"))?;
            expect("status differs in the body", body["status"] == *wanted)?;
            expect(&format!("field is not {field:?}"), body["field"].as_str() == *field)?;
            expect("trace differs", body["trace_id"] == header("x-b3-traceid"))?;
            expect("no title or detail", body["title"].is_string() && body["detail"].is_string())?;
            let kind = body["type"].as_str().unwrap_or_default();
            expect("no type", kind.starts_with("urn:microservice-app:problem:"))?;
            expect("405 without Allow", *wanted != 405 || !header("allow").is_empty())
        }
    }
}

#[tokio::test]
async fn every_bad_request_gets_its_exact_answer() {
    let app = App::start_with(|settings| {
        settings.http.header_timeout = Duration::from_millis(700);
        settings.http.body_timeout = Duration::from_millis(700);
    })
    .await;
    let gateway = app.gateway();
    let cases = cases();
    assert!(cases.len() >= 60);
    let runs = cases.iter().map(|(name, bytes, want)| async move {
        let answer = raw(gateway, bytes).await;
        check(&answer, want).map_err(|error| format!("{name}: {error}"))
    });
    let results = futures_util::future::join_all(runs).await;
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
    // and nothing of it was written
    assert_eq!(crate::kit::http::get(gateway, "/api/feed/get_feeds?user_id=1").await.status, 404);
    assert_eq!(
        crate::kit::http::get(gateway, "/api/topic/list").await.json()["topics"],
        serde_json::json!([])
    );
}

/// What RFC 9110 lets a server ignore, because the request means the same without it.
#[tokio::test]
async fn what_changes_nothing_is_ignored() {
    let app = App::start().await;
    let date = "Sat, 29 Oct 1994 19:43:31 GMT";
    let get = |header: &str| with_header("/api/topic/list", header);
    let trailers = format!("22\r\n{WHOLE}\r\n0\r\ncontent-length: 1\r\nif-match: *\r\n\r\n");
    let chunked = format!("PUT {FEED} HTTP/1.1\nhost: x\ntransfer-encoding: chunked\nconnection: close\n\n");
    let requests = [
        get("range: bytes=0-9"),
        get(&format!("range: bytes=0-9\nif-range: {date}")),
        get("if-none-match: *"),
        get(&format!("if-modified-since: {date}")),
        get(&format!("if-unmodified-since: {date}")),
        get("accept: text/xml"),
        get("accept-encoding: identity;q=0"),
        get("content-length: 0"),
        get("expect: 100-continue"),
        get("prefer: return=minimal"),
        get("connection: upgrade\nupgrade: h2c"),
        get("te: gzip\ntrailer: x"),
        put_with("content-type: text/plain\ncontent-type: application/json"),
        put_with("content-encoding: identity"),
        put_with("range: bytes=0-9"),
        put_with(&format!("if-modified-since: {date}")),
        put_with("expect: 100-Continue"),
        put(&format!("{FEED}?"), WHOLE),
        put(&format!("{FEED}?&"), WHOLE),
        message(&chunked, trailers.as_bytes()),
    ];
    for request in requests {
        let answer = raw(app.gateway(), &request).await;
        let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
        assert_eq!(parse(answer).0, 200, "{} {answer}", String::from_utf8_lossy(&request));
    }
}

#[tokio::test]
async fn the_admin_port_refuses_a_target_without_a_path() {
    let app = App::start().await;
    for request in ["GET example.com:80", "CONNECT example.com:80"] {
        let answer = raw(
            app.addresses.admin,
            &message(&format!("{request} HTTP/1.1\nhost: x\nconnection: close\n\n"), b""),
        )
        .await;
        let (status, _, body) = parse(&answer);
        assert_eq!((status, body.as_str()), (400, "target: must be a path\n"), "{request}");
    }
}
