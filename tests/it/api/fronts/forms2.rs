//! Requests over HTTP/2 that say in HTTP/1.1 what they do not say in HTTP/2: line ends in fields, framing of HTTP/1.1, lengths
//! that are not those of the frames, targets and hosts that two readers see differently (RFC 9113, 8.1 to 8.3).

use crate::kit::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, fields, frame};

/// A request on one stream.
pub struct Form {
    pub name: String,
    /// True if RFC 9113 has it refused.
    pub malformed: bool,
    head: Vec<(Vec<u8>, Vec<u8>)>,
    /// `None` if the head ends the request.
    body: Option<Vec<u8>>,
    trailers: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

/// A field.
type Field<'a> = (&'a [u8], &'a [u8]);

fn owned(given: &[Field<'_>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    given.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn packed(given: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    fields(&given.iter().map(|(name, value)| (&name[..], &value[..])).collect::<Vec<_>>())
}

impl Form {
    /// Returns its frames, for a scheme.
    pub fn frames(&self, stream: u32, scheme: &str) -> Vec<u8> {
        let mut head = self.head.clone();
        for (name, value) in &mut head {
            if name == b":scheme" && value.is_empty() {
                *value = scheme.as_bytes().to_vec();
            }
        }
        let end = if self.body.is_none() { END_STREAM } else { 0 };
        let mut frames = frame(HEADERS, END_HEADERS | end, stream, &packed(&head));
        if let Some(body) = &self.body {
            let end = if self.trailers.is_none() { END_STREAM } else { 0 };
            frames.extend(frame(DATA, end, stream, body));
        }
        if let Some(trailers) = &self.trailers {
            frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &packed(trailers)));
        }
        frames
    }
}

/// What every request of these begins with; an empty scheme is that of the listener.
fn pseudo<'a>(method: &'a [u8], path: &'a [u8]) -> [Field<'a>; 4] {
    [(b":method", method), (b":scheme", b""), (b":authority", b"x"), (b":path", path)]
}

fn read(name: &str, malformed: bool, more: &[Field<'_>]) -> Form {
    let head = owned(&[&pseudo(b"GET", b"/api/topic/list"), more].concat());
    Form { name: name.to_owned(), malformed, head, body: None, trailers: None }
}

/// A write with a body, which an honest request may have as well.
fn write(name: &str, malformed: bool, more: &[Field<'_>], body: &[u8]) -> Form {
    let head = owned(&[&pseudo(b"PUT", b"/api/feed/create_feed"), more].concat());
    Form { name: name.to_owned(), malformed, head, body: Some(body.to_vec()), trailers: None }
}

/// A request whose pseudo-header fields are these.
fn raw(name: &str, malformed: bool, head: &[Field<'_>]) -> Form {
    Form { name: name.to_owned(), malformed, head: owned(head), body: None, trailers: None }
}

/// Returns every form, those that have a body with this one.
pub fn all(body: &[u8]) -> Vec<Form> {
    [values(), names(), framing(body), lengths(body), targets(), hosts(), order(), trailers(body)]
        .into_iter()
        .flatten()
        .collect()
}

fn values() -> Vec<Form> {
    let hidden = b"b\r\n\r\nGET /api/topic/view?topic_id=666 HTTP/1.1\r\nhost: x\r\n\r\n";
    vec![
        read("nothing odd", false, &[(b"a", b"b")]),
        read("CR LF and a length in a value", true, &[(b"a", b"b\r\ncontent-length: 5")]),
        read("CR LF and chunks in a value", true, &[(b"a", b"b\r\ntransfer-encoding: chunked")]),
        read("LF in a value", true, &[(b"a", b"b\ncontent-length: 5")]),
        read("CR in a value", true, &[(b"a", b"b\rcontent-length: 5")]),
        read("NUL in a value", true, &[(b"a", b"b\0c")]),
        read("a request in a value", true, &[(b"a", hidden)]),
        read("a request in a cookie", true, &[(b"cookie", hidden)]),
        read("a request in the agent", true, &[(b"user-agent", hidden)]),
        read("raw bytes in a value", false, &[(b"a", b"\xe9\xff")]),
    ]
}

fn names() -> Vec<Form> {
    vec![
        read("CR LF in a name", true, &[(b"a\r\ntransfer-encoding: chunked\r\nb", b"c")]),
        read("LF in a name", true, &[(b"a\nb", b"c")]),
        read("a colon in a name", true, &[(b"transfer-encoding: chunked\r\na:", b"c")]),
        read("a colon and a value in a name", true, &[(b"content-length:5", b"c")]),
        read("a name in capitals", true, &[(b"Content-Length", b"5")]),
        read("a blank behind a name", true, &[(b"transfer-encoding ", b"chunked")]),
        read("a blank in a name", true, &[(b"a b", b"c")]),
        read("a tab in a name", true, &[(b"content-length\t", b"5")]),
        read("NUL in a name", true, &[(b"content-length\0", b"5")]),
        read("no name", true, &[(b"", b"c")]),
        read("an underscore in a name", false, &[(b"transfer_encoding", b"chunked")]),
        read("a raw byte in a name", true, &[(b"a\xe9", b"c")]),
    ]
}

/// Fields of one connection of HTTP/1.1, which HTTP/2 does not have (RFC 9113, 8.2.2).
fn framing(body: &[u8]) -> Vec<Form> {
    let chunks = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat();
    let ends_early = [b"0\r\n\r\n", body].concat();
    let length = ends_early.len().to_string();
    let length = length.as_bytes();
    vec![
        write("chunks", true, &[(b"transfer-encoding", b"chunked")], &chunks),
        write("chunks that end early", true, &[(b"transfer-encoding", b"chunked")], &ends_early),
        write(
            "chunks and a length",
            true,
            &[(b"transfer-encoding", b"chunked"), (b"content-length", length)],
            &ends_early,
        ),
        write("an unknown coding", true, &[(b"transfer-encoding", b"x")], body),
        write("identity", true, &[(b"transfer-encoding", b"identity")], body),
        read("chunks without a body", true, &[(b"transfer-encoding", b"chunked")]),
        read("connection: close", true, &[(b"connection", b"close")]),
        write(
            "a length named by Connection",
            true,
            &[(b"connection", b"content-length"), (b"content-length", length)],
            &ends_early,
        ),
        read("keep-alive", true, &[(b"keep-alive", b"timeout=5")]),
        read("proxy-connection", true, &[(b"proxy-connection", b"keep-alive")]),
        read("an upgrade", true, &[(b"upgrade", b"h2c")]),
        read("te: chunked", true, &[(b"te", b"chunked")]),
        read("te: trailers", false, &[(b"te", b"trailers")]),
        write("expect", false, &[(b"expect", b"100-continue")], body),
    ]
}

/// RFC 9113, 8.1.1: a length is the sum of the frames.
fn lengths(body: &[u8]) -> Vec<Form> {
    let n = body.len();
    let named = |name: &str, malformed: bool, value: String| {
        write(&format!("length, {name}"), malformed, &[(b"content-length", value.as_bytes())], body)
    };
    let both = |name: &str, one: usize, two: usize| {
        let (one, two) = (one.to_string(), two.to_string());
        let given = [(&b"content-length"[..], one.as_bytes()), (b"content-length", two.as_bytes())];
        write(&format!("length, {name}"), true, &given, body)
    };
    let five = [(&b"content-length"[..], &b"5"[..])];
    let mut without = write("length, of no body", true, &five, b"");
    without.body = None;
    vec![
        named("that of the body", false, n.to_string()),
        named("longer", true, (n + 5).to_string()),
        named("shorter", true, (n - 5).to_string()),
        named("0", true, "0".to_owned()),
        named("a plus", true, format!("+{n}")),
        named("a minus", true, format!("-{n}")),
        named("hexadecimal", true, format!("0x{n:x}")),
        named("a list", true, format!("{n}, {n}")),
        named("over 64 bits", true, format!("{}", u128::from(u64::MAX) + 1 + n as u128)),
        named("empty", true, String::new()),
        both("twice, different", n, 0),
        both("twice, the other way", 0, n),
        without,
        read("length, of a read", true, &five),
        write("length, none", false, &[], body),
    ]
}

/// `:path`, `:method` and `:scheme`, of which a proxy makes the first line of a request.
fn targets() -> Vec<Form> {
    let path = |name: &str, malformed: bool, path: &[u8]| {
        raw(&format!("path, {name}"), malformed, &pseudo(b"GET", path))
    };
    let method = |name: &str, method: &[u8]| {
        raw(&format!("method, {name}"), true, &pseudo(method, b"/api/topic/list"))
    };
    let scheme = |name: &str, scheme: &[u8]| {
        let [method, _, authority, path] = pseudo(b"GET", b"/api/topic/list");
        raw(&format!("scheme, {name}"), true, &[method, (b":scheme", scheme), authority, path])
    };
    vec![
        path("a line behind it", true, b"/api/topic/list HTTP/1.1\r\nx: y"),
        path("a request behind it", true, b"/api/topic/list HTTP/1.1\r\nhost: x\r\n\r\nGET /b"),
        path("a blank", true, b"/api/topic/list HTTP/1.0"),
        path("a tab", true, b"/api/topic/list\tHTTP/1.0"),
        path("LF", true, b"/api/topic/list\nx: y"),
        path("NUL", true, b"/api/topic/list\0"),
        path("empty", true, b""),
        path("an asterisk", true, b"*"),
        path("of another host", true, b"http://y/api/topic/list"),
        path("without a slash", true, b"api/topic/list"),
        path("two slashes", false, b"//y/api/topic/list"),
        path("a fragment", true, b"/api/topic/list#x"),
        path("escaped line ends", false, b"/api/topic/list?a%0d%0a%0d%0aGET%20/b"),
        path("raw bytes", true, b"/api/topic/list?\xe9"),
        method("a line behind it", b"GET /b HTTP/1.1\r\nhost: x\r\n\r\nGET"),
        method("a blank", b"GET /b"),
        method("LF", b"GET\nx: y"),
        method("empty", b""),
        scheme("a line behind it", b"http\r\nx: y"),
        scheme("a host", b"http://y/?"),
        scheme("ftp", b"ftp"),
        raw("a tunnel", true, &[(b":method", b"CONNECT"), (b":authority", b"x:80")]),
        raw("a tunnel with a path", true, &pseudo(b"CONNECT", b"/api/topic/list")),
    ]
}

/// `:authority` and `host`, of which a proxy makes one.
fn hosts() -> Vec<Form> {
    const AUTHORITY: &[u8] = b":authority";
    const HOST: &[u8] = b"host";
    let [method, scheme, _, path] = pseudo(b"GET", b"/api/topic/list");
    let authority = |name: &str, malformed: bool, given: &[Field<'_>]| {
        let mut head = vec![method, scheme, path];
        let (before, behind): (Vec<_>, Vec<_>) = given.iter().partition(|(name, _)| name.starts_with(b":"));
        head.splice(2..2, before);
        head.extend(behind);
        raw(&format!("host, {name}"), malformed, &head)
    };
    vec![
        authority("the same", false, &[(AUTHORITY, b"x"), (HOST, b"x")]),
        authority("another", true, &[(AUTHORITY, b"x"), (HOST, b"y")]),
        authority("alone", false, &[(HOST, b"x")]),
        authority("none", true, &[]),
        authority("two", true, &[(AUTHORITY, b"x"), (HOST, b"x"), (HOST, b"y")]),
        authority("two authorities", true, &[(AUTHORITY, b"x"), (AUTHORITY, b"y")]),
        authority("a list", true, &[(AUTHORITY, b"x, y")]),
        authority("a user", true, &[(AUTHORITY, b"u@x")]),
        authority("a path", true, &[(AUTHORITY, b"x/y")]),
        authority("a blank", true, &[(AUTHORITY, b"x y")]),
        authority("a line behind it", true, &[(AUTHORITY, b"x\r\ntransfer-encoding: chunked")]),
        authority("empty", true, &[(AUTHORITY, b"")]),
        authority("empty, beside a host", true, &[(AUTHORITY, b""), (HOST, b"y")]),
    ]
}

/// RFC 9113, 8.3: pseudo-header fields are those that it names, each once, before all others.
fn order() -> Vec<Form> {
    let [method, scheme, authority, path] = pseudo(b"GET", b"/api/topic/list");
    vec![
        raw("a path behind a field", true, &[method, scheme, authority, (b"a", b"b"), path]),
        raw("two paths", true, &[method, scheme, authority, path, (b":path", b"/b")]),
        raw("two methods", true, &[method, (b":method", b"PUT"), scheme, authority, path]),
        raw("two schemes", true, &[method, scheme, (b":scheme", b"ftp"), authority, path]),
        raw("no method", true, &[scheme, authority, path]),
        raw("no scheme", true, &[method, authority, path]),
        raw("no path", true, &[method, scheme, authority]),
        raw("an unknown one", true, &[method, scheme, authority, path, (b":x", b"y")]),
        raw("one of answers", true, &[method, scheme, authority, path, (b":status", b"200")]),
        raw("a protocol", true, &[method, scheme, authority, path, (b":protocol", b"websocket")]),
        raw(
            "a line of a request as a field",
            true,
            &[method, scheme, authority, path, (b":\r\n\r\nGET /b HTTP/1.1\r\nx", b"y")],
        ),
    ]
}

fn trailers(body: &[u8]) -> Vec<Form> {
    let with = |name: &str, malformed: bool, trailers: &[Field<'_>]| Form {
        trailers: Some(owned(trailers)),
        ..write(&format!("trailers, {name}"), malformed, &[], body)
    };
    vec![
        with("nothing odd", false, &[(b"a", b"b")]),
        with("a path", true, &[(b":path", b"/b")]),
        with("a line end", true, &[(b"a", b"b\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n")]),
        with("chunks", true, &[(b"transfer-encoding", b"chunked")]),
        with("a length", false, &[(b"content-length", b"5")]),
        with("a host", false, &[(b"host", b"y")]),
    ]
}
