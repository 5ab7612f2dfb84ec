//! RFC 9112 rule by rule, as bytes on a socket: what a server must refuse is refused on both HTTP/1.1 listeners, and
//! what it must take is taken. Each message is followed by a second request on the same connection, which shows
//! whether the connection was closed after the first answer.

use crate::kit::app::App;
use crate::kit::http::{parse, raw};

/// What happens to a message and to the request that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// It is refused with this status, and the connection is closed.
    Refused(u16),
    /// It is answered with 200, and so is the next request.
    Served,
    /// It is answered with 200, and the connection is closed.
    ServedThenClosed,
}
use Want::{Refused, Served, ServedThenClosed};

/// Which listeners a message is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// The gateway and the admin port; `{}` stands for a path that answers 200.
    Both,
    /// The gateway only: the message has a body.
    Gateway,
}
use At::{Both, Gateway};

const FEED: &str = r#"{"id":1,"user_id":1,"content":"x"}"#;

struct Row {
    /// The section of RFC 9112, and what is sent.
    name: &'static str,
    at: At,
    message: String,
    want: Want,
}

/// A head without a body: `lines` follow the request line.
fn head(name: &'static str, request_line: &str, lines: &str, want: Want) -> Row {
    Row { name, at: Both, message: format!("{request_line}\r\n{lines}\r\n"), want }
}

/// A GET with these header lines.
fn get(name: &'static str, lines: &str, want: Want) -> Row {
    head(name, "GET {} HTTP/1.1", lines, want)
}

/// A PUT with these header lines and this body, each as it is.
fn put(name: &'static str, lines: &str, body: &str, want: Want) -> Row {
    let message = format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\n{lines}\r\n{body}");
    Row { name, at: Gateway, message, want }
}

/// A chunked PUT.
fn chunked(name: &'static str, body: &str, want: Want) -> Row {
    put(name, "transfer-encoding: chunked\r\n", body, want)
}

/// The feed as one chunk; `extension` follows its size.
fn chunk(extension: &str) -> String {
    format!("{:x}{extension}\r\n{FEED}\r\n0\r\n\r\n", FEED.len())
}

fn line_rows() -> Vec<Row> {
    vec![
        get("a plain request", "host: x\r\n", Served),
        // 2.2, message parsing
        head("2.2 an empty line before the request", "\r\nGET {} HTTP/1.1", "host: x\r\n", Served),
        Row {
            name: "2.2 lines end with LF",
            at: Both,
            message: "GET {} HTTP/1.1\nhost: x\n\n".to_owned(),
            want: Served,
        },
        head("2.2 a bare CR for a line end", "GET {} HTTP/1.1\rhost: x", "", Refused(400)),
        get("2.2 a bare CR in a field value", "host: x\r\na: b\rc\r\n", Refused(400)),
        get("2.2 whitespace before the first field", " host: x\r\n", Refused(400)),
        get("2.2 a NUL in a field value", "host: x\r\na: b\0c\r\n", Refused(400)),
        // 2.3, the version
        head("2.3 HTTP/1.0 without Host", "GET {} HTTP/1.0", "", ServedThenClosed),
        head("2.3 a version in lower case", "GET {} http/1.1", "host: x\r\n", Refused(400)),
        head("2.3 a version without a minor number", "GET {} HTTP/1", "host: x\r\n", Refused(400)),
        head("2.3 a version with leading zeros", "GET {} HTTP/01.01", "host: x\r\n", Refused(400)),
        head("2.3 a version with whitespace", "GET {} HTTP/ 1.1", "host: x\r\n", Refused(400)),
        head("2.3 a major version that is not spoken", "GET {} HTTP/3.0", "host: x\r\n", Refused(400)),
        head("2.3 no version", "GET {}", "host: x\r\n", Refused(400)),
        // 3, the request line
        head("3 two blanks", "GET  {} HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3 a tab for a blank", "GET\t{} HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3 a leading blank", " GET {} HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3 a trailing blank", "GET {} HTTP/1.1 ", "host: x\r\n", Refused(400)),
        head("3.1 a method that is no token", "GE(T {} HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3.2 no target", "GET HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3.2 a blank in the target", "GET {} x HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3.2.2 the absolute form", "GET http://x{} HTTP/1.1", "host: x\r\n", Served),
        head("3.2.2 the absolute form counts, not Host", "GET http://x{} HTTP/1.1", "host: y\r\n", Served),
        head("3.2.2 the absolute form needs Host too", "GET http://x{} HTTP/1.1", "", Refused(400)),
        head(
            "3.2.2 user information in the target",
            "GET http://u:p@x{} HTTP/1.1",
            "host: x\r\n",
            Refused(400),
        ),
        head(
            "3.2.2 a scheme that is not spoken here",
            "GET https://x{} HTTP/1.1",
            "host: x\r\n",
            Refused(421),
        ),
        head("3.2.3 the authority form without CONNECT", "GET x:80 HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3.2.3 CONNECT", "CONNECT x:80 HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3.2.4 the asterisk form without OPTIONS", "GET * HTTP/1.1", "host: x\r\n", Refused(400)),
        head("3.2.4 the asterisk form of OPTIONS", "OPTIONS * HTTP/1.1", "host: x\r\n", Served),
        head("3.2.4 a query after the asterisk", "OPTIONS *?x HTTP/1.1", "host: x\r\n", Refused(400)),
    ]
}

fn host_rows() -> Vec<Row> {
    vec![
        get("3.2 no Host", "", Refused(400)),
        get("3.2 Host twice", "host: x\r\nhost: y\r\n", Refused(400)),
        get("3.2 the same Host twice", "host: x\r\nhost: x\r\n", Refused(400)),
        get("3.2 an empty Host", "host:\r\n", Refused(400)),
        get("3.2 two hosts in one field", "host: x, y\r\n", Refused(400)),
        get("3.2 two hosts in one field without a blank", "host: x,y\r\n", Refused(400)),
        get("3.2 a Host with user information", "host: u@x\r\n", Refused(400)),
        get("3.2 a Host with a path", "host: x/y\r\n", Refused(400)),
        get("3.2 a Host with a scheme", "host: http://x\r\n", Refused(400)),
        get("3.2 a Host with a blank", "host: x y\r\n", Refused(400)),
        get("3.2 a Host with a port that is no number", "host: x:http\r\n", Refused(400)),
        get("3.2 a Host with a port out of range", "host: x:65536\r\n", Refused(400)),
        get("3.2 a Host with only a port", "host: :80\r\n", Refused(400)),
        get("3.2 a Host with a broken escape", "host: x%4\r\n", Refused(400)),
        get("3.2 a Host of raw bytes", "host: \u{e9}\r\n", Refused(400)),
        get("3.2 an IPv6 address without brackets", "host: ::1\r\n", Refused(400)),
        get("3.2 brackets around no IPv6 address", "host: [x]\r\n", Refused(400)),
        get("3.2 a name and a port", "host: a-b.example:8080\r\n", Served),
        get("3.2 an empty port", "host: x:\r\n", Served),
        get("3.2 an IPv4 address", "host: 127.0.0.1:80\r\n", Served),
        get("3.2 an IPv6 address", "host: [::1]:80\r\n", Served),
        get("3.2 an escaped name", "host: x%41_~\r\n", Served),
        head("3.2 Host twice on HTTP/1.0", "GET {} HTTP/1.0", "host: x\r\nhost: y\r\n", Refused(400)),
        head("3.2 a malformed Host on HTTP/1.0", "GET {} HTTP/1.0", "host: x/y\r\n", Refused(400)),
    ]
}

fn field_rows() -> Vec<Row> {
    vec![
        get("5 a field without a name", "host: x\r\n: y\r\n", Refused(400)),
        get("5 a field name that is no token", "host: x\r\na[b]: y\r\n", Refused(400)),
        get("5 a field without a colon", "host: x\r\nab\r\n", Refused(400)),
        get("5.1 a blank before the colon", "host : x\r\n", Refused(400)),
        get("5.1 a tab before the colon", "host\t: x\r\n", Refused(400)),
        get("5.1 whitespace around a value", "host: \t x \t\r\n", Served),
        get("5.5 a control character in a value", "host: x\r\na: b\u{1}c\r\n", Refused(400)),
        get("5.5 DEL in a value", "host: x\r\na: b\u{7f}c\r\n", Refused(400)),
        get("5.5 raw bytes in a value", "host: x\r\na: \u{e9}\r\n", Served),
        get("5.1 a field name of raw bytes", "host: x\r\n\u{e9}: b\r\n", Refused(400)),
        get("5.2 a folded line", "host: x\r\na: b\r\n c\r\n", Refused(400)),
        get("5.2 a folded Host", "host:\r\n x\r\n", Refused(400)),
    ]
}

fn framing_rows() -> Vec<Row> {
    let both = |lines: &str| format!("{lines}\r\n0\r\n\r\n");
    let te =
        |name, value: &str| put(name, &format!("transfer-encoding: {value}\r\n"), &chunk(""), Refused(400));
    let length = |name, value: &str| put(name, &format!("content-length: {value}\r\n"), FEED, Refused(400));
    let coded = "transfer-encoding: chunked\r\n";
    let sized = "content-length: 4\r\n";
    vec![
        // 6.1, Transfer-Encoding
        put("6.1 chunked", coded, &chunk(""), Served),
        put("6.1 chunked in capitals", "Transfer-Encoding: CHUNKED\r\n", &chunk(""), Served),
        te("6.1 a coding that is not supported, then chunked", "gzip, chunked"),
        te("6.1 chunked twice", "chunked, chunked"),
        te("6.1 chunked in two lines", "chunked\r\ntransfer-encoding: chunked"),
        te("6.1 an unknown coding in a line of its own", "x\r\ntransfer-encoding: chunked"),
        te("6.1 an empty member before chunked", ", chunked"),
        te("6.1 identity", "identity, chunked"),
        te("6.1 an unknown coding", "xchunked"),
        te("6.3 chunked is not the last coding", "chunked, gzip"),
        te("6.1 an empty value", ""),
        te("6.1 quotes", "\"chunked\""),
        te("6.1 a vertical tab", "\u{b}chunked"),
        te("7 chunked with parameters", "chunked;a=b"),
        put("6.1 a length and chunked", &format!("{sized}{coded}"), &chunk(""), ServedThenClosed),
        put("6.1 chunked and a length", &format!("{coded}{sized}"), &chunk(""), ServedThenClosed),
        Row {
            name: "6.1 chunked on HTTP/1.0",
            at: Gateway,
            message: format!("PUT /api/feed/create_feed HTTP/1.0\r\nhost: x\r\n{}", both(coded)),
            want: Refused(400),
        },
        // 6.2 and 6.3, Content-Length
        put("6.2 a length", &format!("content-length: {}\r\n", FEED.len()), FEED, Served),
        put(
            "6.3 the same length twice",
            &format!("content-length: {0}\r\ncontent-length: {0}\r\n", FEED.len()),
            FEED,
            Served,
        ),
        length("6.3 two lengths", "1\r\ncontent-length: 2"),
        length("6.3 a list of lengths", "34, 34"),
        length("6.3 a length with a sign", "+34"),
        length("6.3 a negative length", "-1"),
        length("6.3 a hexadecimal length", "0x22"),
        length("6.3 an underscore in a length", "3_4"),
        length("6.3 a blank in a length", "3 4"),
        length("6.3 an empty length", ""),
        length("6.3 a length over 64 bits", "99999999999999999999"),
    ]
}

fn chunk_rows() -> Vec<Row> {
    let refused = |name, body: &str| chunked(name, body, Refused(400));
    vec![
        chunked(
            "7.1 two chunks",
            &format!("1\r\n{{\r\n{:X}\r\n{}\r\n000\r\n\r\n", FEED.len() - 1, &FEED[1..]),
            Served,
        ),
        refused("7.1 a size with a prefix", &chunk("").replacen("22", "0x22", 1)),
        refused("7.1 a size with an underscore", &chunk("").replacen("22", "2_2", 1)),
        refused("7.1 a negative size", "-1\r\nx\r\n0\r\n\r\n"),
        refused("7.1 a blank before a size", &format!(" {}", chunk(""))),
        refused("7.1 no size", &format!("\r\n{FEED}\r\n0\r\n\r\n")),
        refused("7.1 a size over 64 bits", "ffffffffffffffff0\r\nx\r\n"),
        refused("7.1 a size line that ends with LF", &chunk("").replacen("\r\n", "\n", 1)),
        refused("7.1 a size line that ends with CR", &chunk("").replacen("\r\n", "\r", 1)),
        refused("7.1 no CRLF after a chunk", &format!("{:x}\r\n{FEED}0\r\n\r\n", FEED.len())),
        refused("7.1 LF after a chunk", &format!("{:x}\r\n{FEED}\n0\r\n\r\n", FEED.len())),
        refused("7.1 a chunk longer than its size", &format!("3\r\n{FEED}\r\n0\r\n\r\n")),
        chunked("7.1.1 an extension", &chunk(";a=b"), Served),
        chunked("7.1.1 an extension with quotes", &chunk("; a=\"b c\""), Served),
        refused("7.1.1 LF in an extension", &chunk(";a\nb")),
        refused("7.1.1 CR in an extension", &chunk(";a\rb")),
        refused("7.1.1 extensions without end", &chunk(&format!(";{}", "a".repeat(20_000)))),
        chunked("7.1.2 trailers", &chunk("").replacen("0\r\n", "0\r\nx-a: b\r\nhost: y\r\n", 1), Served),
        refused(
            "7.1.2 a trailer with a blank before its colon",
            &chunk("").replacen("0\r\n", "0\r\na : b\r\n", 1),
        ),
    ]
}

/// What hyper and http drop before the gateway can see it. RFC 9112 wants a 400 for these; docs/api.md names them.
fn lost_rows() -> Vec<Row> {
    vec![
        head("3.2 a fragment in the target", "GET {}#x HTTP/1.1", "host: x\r\n", Served),
        chunked("7.1.1 a semicolon without an extension", &chunk(";"), Served),
        chunked("7.1.1 a NUL in an extension", &chunk(";a\0b"), Served),
        chunked("7.1 blanks after a size", &chunk("  "), Served),
    ]
}

fn connection_rows() -> Vec<Row> {
    vec![
        get("9.3 a connection persists", "host: x\r\n", Served),
        get("9.6 close", "host: x\r\nconnection: close\r\n", ServedThenClosed),
        get("9.6 close among others", "host: x\r\nconnection: a, Close\r\n", ServedThenClosed),
        get(
            "9.6 close in a second line",
            "host: x\r\nconnection: keep-alive\r\nconnection: close\r\n",
            ServedThenClosed,
        ),
        head("9.3 HTTP/1.0 does not persist", "GET {} HTTP/1.0", "host: x\r\n", ServedThenClosed),
        head(
            "9.3 HTTP/1.0 with keep-alive",
            "GET {} HTTP/1.0",
            "host: x\r\nconnection: keep-alive\r\n",
            Served,
        ),
    ]
}

/// Returns what happened, or the answers if that is none of the known outcomes.
fn outcome(answers: &str) -> Result<Want, String> {
    let (first, _, _) = parse(answers);
    let starts: Vec<_> = answers.match_indices("HTTP/1.").collect();
    match (first, starts.len()) {
        (200, 1) => Ok(ServedThenClosed),
        (200, 2) if answers[starts[1].0..].get(8..).is_some_and(|rest| rest.starts_with(" 200")) => {
            Ok(Served)
        }
        (status @ 400.., 1) => Ok(Refused(status)),
        _ => Err(format!("{answers:?}")),
    }
}

/// Returns the status of each answer.
fn statuses(answers: &str) -> Vec<&str> {
    let starts = answers.match_indices("HTTP/1.1 ").map(|(at, start)| at + start.len());
    starts.map(|at| answers.get(at..at + 3).unwrap_or_default()).collect()
}

/// What a request carries is never taken for the next request, whether or not its body is read.
#[tokio::test]
async fn a_body_is_never_read_as_a_request() {
    let app = App::start().await;
    let inner = "GET /inner HTTP/1.1\r\nhost: x\r\n\r\n";
    let next = "GET /api/topic/list HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for (request, first) in [
        ("GET /api/topic/list", "400"),
        ("HEAD /api/topic/list", "400"),
        ("DELETE /api/feed/delete_feed?user_id=1&id=1", "400"),
        ("OPTIONS /api/topic/list", "400"),
        ("OPTIONS *", "400"),
        ("TRACE /api/topic/list", "405"),
        ("GET /unknown", "404"),
        ("PUT /api/feed/create_feed", "400"),
        ("PUT /api/feed/create_feed?x", "400"),
    ] {
        let sized = format!("content-length: {}\r\n\r\n{inner}", inner.len());
        let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
        let expecting = format!("expect: 100-continue\r\n{sized}");
        for rest in [sized, chunked, expecting] {
            let answers =
                raw(app.gateway(), format!("{request} HTTP/1.1\r\nhost: x\r\n{rest}{next}").as_bytes()).await;
            let mut seen = statuses(&answers);
            seen.retain(|status| *status != "100");
            assert!(seen == [first] || seen == [first, "200"], "{request} {rest:?}: {answers}");
        }
    }
}

#[tokio::test]
async fn each_rule_of_rfc_9112_holds_on_both_listeners() {
    let app = App::start().await;
    let rows: Vec<_> = [
        line_rows(),
        host_rows(),
        field_rows(),
        framing_rows(),
        chunk_rows(),
        lost_rows(),
        connection_rows(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let listeners = [("gateway", app.gateway(), "/api/topic/list"), ("admin", app.addresses.admin, "/livez")];
    let mut failed = Vec::new();
    for (listener, addr, path) in listeners {
        let next = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        for row in rows.iter().filter(|row| row.at == Both || listener == "gateway") {
            // of a body, braces are part
            let message = if row.at == Both { row.message.replace("{}", path) } else { row.message.clone() };
            let got = outcome(&raw(addr, (message + &next).as_bytes()).await);
            if got != Ok(row.want) {
                failed.push(format!("{listener}: {}: wanted {:?}, got {got:?}", row.name, row.want));
            }
        }
    }
    assert!(failed.is_empty(), "{}:\n{}", failed.len(), failed.join("\n"));
}

/// RFC 9110, 9.3.7: the asterisk form asks about the server as a whole, and the answer has no content.
#[tokio::test]
async fn options_of_the_server_lists_its_methods() {
    let app = App::start().await;
    for (addr, allow) in
        [(app.gateway(), "DELETE, GET, HEAD, OPTIONS, PUT"), (app.addresses.admin, "GET, HEAD, OPTIONS, PUT")]
    {
        let answer = raw(addr, b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let (status, headers, body) = parse(&answer);
        assert_eq!((status, body), (200, String::new()), "{answer}");
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!((value("allow"), value("content-length")), (Some(allow), Some("0")), "{answer}");
    }
}
