//! Messages whose end two readers may see in two places. The classes are those of Http11Probe and of the HTTP Garden.

/// A request that hides in the body of another one.
pub const INNER: &str = "GET /api/topic/view?topic_id=666 HTTP/1.1\r\nhost: x\r\n\r\n";
const FEED: &str = r#"{"id":1,"user_id":1,"content":"x"}"#;

/// Its name, and the bytes.
pub type Form = (String, String);

fn put(name: impl Into<String>, lines: &str, body: &str) -> Form {
    (name.into(), format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\n{lines}\r\n{body}"))
}

/// Returns every form.
pub fn all() -> Vec<Form> {
    [codings(), lengths(), chunks(), lines(), bodies_of_reads(), others()].concat()
}

/// Both framings, and what only some readers take for chunked. With each the body ends for one reader where the hidden
/// request begins, and for the other behind it.
fn codings() -> Vec<Form> {
    const CODINGS: [(&str, &str); 26] = [
        ("plain", "transfer-encoding: chunked"),
        ("in capitals", "Transfer-Encoding: CHUNKED"),
        ("in mixed case", "Transfer-Encoding: cHuNkEd"),
        ("a leading comma", "transfer-encoding: , chunked"),
        ("a trailing comma", "transfer-encoding: chunked,"),
        ("twice in a line", "transfer-encoding: chunked, chunked"),
        ("twice in two lines", "transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
        ("identity in a second line", "transfer-encoding: chunked\r\ntransfer-encoding: identity"),
        ("identity in a first line", "transfer-encoding: identity\r\ntransfer-encoding: chunked"),
        ("an unknown coding before", "transfer-encoding: x, chunked"),
        ("gzip before", "transfer-encoding: gzip, chunked"),
        ("not the last", "transfer-encoding: chunked, gzip"),
        ("identity", "transfer-encoding: identity"),
        ("an unknown coding", "transfer-encoding: xchunked"),
        ("empty", "transfer-encoding:"),
        ("parameters", "transfer-encoding: chunked;a=b"),
        ("quotes", "transfer-encoding: \"chunked\""),
        ("a trailing blank", "transfer-encoding: chunked "),
        ("a tab before", "transfer-encoding:\tchunked"),
        ("a blank before the colon", "transfer-encoding : chunked"),
        ("a tab before the colon", "transfer-encoding\t: chunked"),
        ("a vertical tab", "transfer-encoding: \u{b}chunked"),
        ("a form feed", "transfer-encoding: chunked\u{c}"),
        ("a NUL", "transfer-encoding: chunked\0"),
        ("folded", "transfer-encoding:\r\n chunked"),
        ("an underscore", "transfer_encoding: chunked"),
    ];
    let mut forms = Vec::new();
    for (name, line) in CODINGS {
        let ends_early = format!("0\r\n\r\n{INNER}");
        let length = ends_early.len();
        forms.push(put(
            format!("CL.TE, {name}"),
            &format!("content-length: {length}\r\n{line}\r\n"),
            &ends_early,
        ));
        forms.push(put(format!("TE.CL, {name}"), &format!("{line}\r\ncontent-length: 4\r\n"), &chunk(INNER)));
        forms.push(put(format!("TE alone, {name}"), &format!("{line}\r\n"), &chunk(INNER)));
        let old = format!(
            "PUT /api/feed/create_feed HTTP/1.0\r\nhost: x\r\nconnection: keep-alive\r\n{line}\r\n\r\n"
        );
        forms.push((format!("TE over HTTP/1.0, {name}"), old + &chunk(INNER)));
    }
    forms
}

/// One chunk, and the last one.
fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len())
}

/// A length that only some readers take, of a body that holds a request.
fn lengths() -> Vec<Form> {
    let n = INNER.len();
    let values = [
        ("a plus", format!("+{n}")),
        ("a minus", format!("-{n}")),
        ("minus nothing", "-0".to_owned()),
        ("leading zeros", format!("000{n}")),
        ("hexadecimal", format!("0x{n:x}")),
        ("octal", format!("0o{n:o}")),
        ("an underscore", format!("{}_{}", n / 10, n % 10)),
        ("a blank inside", format!("{} {}", n / 10, n % 10)),
        ("a trailing blank", format!("{n} ")),
        ("many blanks before", format!("   {n}")),
        ("a tab before", format!("\t{n}")),
        ("a fraction", format!("{n}.0")),
        ("letters", format!("{n}abc")),
        ("empty", String::new()),
        ("two zeros", "00".to_owned()),
        ("over 64 bits", format!("{}", u128::from(u64::MAX) + 1 + n as u128)),
        ("the same in a list", format!("{n}, {n}")),
        ("three in a list", format!("{n},{n},{n}")),
        ("others in a list", format!("0, {n}")),
        ("the same twice", format!("{n}\r\ncontent-length: {n}")),
        ("0 before", format!("0\r\ncontent-length: {n}")),
        ("0 behind", format!("{n}\r\ncontent-length: 0")),
        ("a longer one behind", format!("0\r\nContent-Length: {}", n + 4)),
        ("folded", format!("\r\n {n}")),
        ("a second value folded", format!("0\r\n {n}")),
    ];
    let mut forms: Vec<_> = values
        .into_iter()
        .map(|(name, value)| put(format!("length, {name}"), &format!("content-length: {value}\r\n"), INNER))
        .collect();
    for (name, header) in [
        ("a blank before the colon", "content-length :"),
        ("a tab before the colon", "content-length\t:"),
        ("an underscore", "content_length:"),
        ("a NUL in its name", "content\0-length:"),
        ("a blank in front", " content-length:"),
    ] {
        forms.push(put(format!("length, {name}"), &format!("{header} {n}\r\n"), INNER));
    }
    forms
}

/// Chunks whose size or end two readers may see differently.
fn chunks() -> Vec<Form> {
    let n = INNER.len();
    let plain = chunk(INNER);
    let size = format!("{n:x}");
    let sized = |text: &str| plain.replacen(&size, text, 1);
    let bodies = [
        ("plain", chunk(FEED)),
        ("a prefix", sized(&format!("0x{size}"))),
        ("a plus", sized(&format!("+{size}"))),
        ("a minus", sized(&format!("-{size}"))),
        ("an underscore", sized(&format!("{}_{}", &size[..1], &size[1..]))),
        ("a leading blank", format!(" {plain}")),
        ("a trailing blank", sized(&format!("{size} "))),
        ("a trailing tab", sized(&format!("{size}\t"))),
        ("many zeros", sized(&format!("00000000000000000000{size}"))),
        ("over 64 bits", sized(&format!("10000000000000000{size}"))),
        ("over 32 bits", sized(&format!("1000000{size}"))),
        ("letters", sized(&format!("{size}g"))),
        ("no size", format!("\r\n{plain}")),
        ("an extension", sized(&format!("{size};a=b"))),
        ("a semicolon", sized(&format!("{size};"))),
        ("LF in an extension", sized(&format!("{size};a\nb"))),
        ("CR in an extension", sized(&format!("{size};a\rb"))),
        ("a control character in an extension", sized(&format!("{size};a\u{1}b"))),
        ("an extension that is no token", sized(&format!("{size};[=]"))),
        ("an extension with quotes", sized(&format!("{size};a=\"\\\"b\""))),
        ("a size line that ends with LF", plain.replacen("\r\n", "\n", 1)),
        ("a size line that ends with CR", plain.replacen("\r\n", "\r", 1)),
        ("LF behind a chunk", format!("{size}\r\n{INNER}\n0\r\n\r\n")),
        ("CR behind a chunk", format!("{size}\r\n{INNER}\r0\r\n\r\n")),
        ("nothing behind a chunk", format!("{size}\r\n{INNER}0\r\n\r\n")),
        ("longer than its size", format!("2\r\n{INNER}\r\n0\r\n\r\n")),
        ("the end with LF", format!("2\r\n{{}}\r\n0\n\n{INNER}")),
        ("the end with CR", format!("2\r\n{{}}\r\n0\r\r{INNER}")),
        ("the end without an empty line", format!("2\r\n{{}}\r\n0\r\n{INNER}")),
        ("a size of zeros", format!("2\r\n{{}}\r\n0000\r\n\r\n{INNER}")),
        ("a trailer of framing", format!("2\r\n{{}}\r\n0\r\ncontent-length: {n}\r\n\r\n{INNER}")),
        ("a trailer of chunks", format!("2\r\n{{}}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n{INNER}")),
        ("a trailer of Host", "2\r\n{}\r\n0\r\nhost: y\r\nauthorization: z\r\n\r\n".to_owned()),
        ("a trailer that ends with LF", format!("2\r\n{{}}\r\n0\r\na: b\n\n{INNER}")),
        ("a folded trailer", "2\r\n{}\r\n0\r\na: b\r\n c\r\n\r\n".to_owned()),
        ("a trailer without a colon", "2\r\n{}\r\n0\r\nab\r\n\r\n".to_owned()),
        ("two chunks in one line", format!("2\r\n{{}}2\r\n{{}}\r\n0\r\n\r\n{INNER}")),
        ("no last chunk", format!("2\r\n{{}}\r\n{INNER}")),
    ];
    let form = |(name, body): (&str, String)| {
        put(format!("chunks, {name}"), "transfer-encoding: chunked\r\n", &body)
    };
    bodies.into_iter().map(form).collect()
}

/// Heads whose lines two readers may end differently.
fn lines() -> Vec<Form> {
    let n = INNER.len();
    let head = |name: &str, head: String| (format!("lines, {name}"), format!("{head}{INNER}"));
    vec![
        head("LF", format!("PUT /api/feed/create_feed HTTP/1.1\nhost: x\ncontent-length: {n}\n\n")),
        head(
            "LF before a length",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\na: b\ncontent-length: {n}\r\n\r\n"),
        ),
        head(
            "CR before a length",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\na: b\rcontent-length: {n}\r\n\r\n"),
        ),
        head(
            "NUL before a length",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\na: b\0content-length: {n}\r\n\r\n"),
        ),
        head(
            "CR CR LF",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\r\nhost: x\r\r\ncontent-length: {n}\r\r\n\r\r\n"),
        ),
        head(
            "an end of LF CR LF",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: {n}\n\r\n"),
        ),
        head(
            "a blank line of blanks",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length: {n}\r\n \r\n\r\n"),
        ),
        head(
            "a folded field",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\na: b\r\n\tcontent-length: {n}\r\n\r\n"),
        ),
        head(
            "a field without a colon",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\ncontent-length {n}\r\n\r\n"),
        ),
        head(
            "a field without a name",
            format!("PUT /api/feed/create_feed HTTP/1.1\r\nhost: x\r\n: content-length: {n}\r\n\r\n"),
        ),
        head("HTTP/0.9", "GET /api/topic/list\r\n".to_owned()),
        head("a version in lower case", "GET /api/topic/list http/1.1\r\nhost: x\r\n\r\n".to_owned()),
        head("a version with zeros", "GET /api/topic/list HTTP/01.01\r\nhost: x\r\n\r\n".to_owned()),
        head(
            "HTTP/1.2",
            format!("PUT /api/feed/create_feed HTTP/1.2\r\nhost: x\r\ncontent-length: {n}\r\n\r\n"),
        ),
        head("HTTP/2.0", "GET /api/topic/list HTTP/2.0\r\nhost: x\r\n\r\n".to_owned()),
        head(
            "a request inside of the target",
            "GET /api/topic/list?a HTTP/1.1\r\nx: /b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        ),
        head(
            "escaped line ends in the target",
            "GET /api/topic/list?a%0d%0a%0d%0aGET%20/b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        ),
        head(
            "raw bytes in the target",
            "GET /api/topic/list?\u{e9}\u{a0} HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        ),
    ]
}

/// Bodies of requests that have none, and what a reader does with them that it does not want.
fn bodies_of_reads() -> Vec<Form> {
    let n = INNER.len();
    let mut forms = Vec::new();
    for request in [
        "GET /api/topic/list",
        "HEAD /api/topic/list",
        "OPTIONS /api/topic/list",
        "OPTIONS *",
        "TRACE /x",
        "DELETE /api/feed/delete_feed?user_id=1&id=1",
        "GET /nowhere",
        "PUT /nowhere",
        "GET /docs",
        "CONNECT x:80",
    ] {
        let head = format!("{request} HTTP/1.1\r\nhost: x\r\n");
        forms.push((format!("a length, {request}"), format!("{head}content-length: {n}\r\n\r\n{INNER}")));
        forms.push((
            format!("chunks, {request}"),
            format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk(INNER)),
        ));
        forms.push((
            format!("expect, {request}"),
            format!("{head}expect: 100-continue\r\ncontent-length: {n}\r\n\r\n{INNER}"),
        ));
        forms.push((
            format!("a prefix, {request}"),
            format!("{head}content-length: {}\r\n\r\nGET /inner HTTP/1.1\r\nx: ", 24),
        ));
    }
    forms
}

fn others() -> Vec<Form> {
    let n = INNER.len();
    let get = |name: &str, lines: String| {
        (name.to_owned(), format!("GET /api/topic/list HTTP/1.1\r\n{lines}\r\n{INNER}"))
    };
    vec![
        get("two hosts", "host: x\r\nhost: y\r\n".to_owned()),
        get("a list of hosts", "host: x, y\r\n".to_owned()),
        get("no host", String::new()),
        get("a length named by Connection", format!("host: x\r\nconnection: close, content-length\r\ncontent-length: {n}\r\n")),
        get("chunks named by Connection", "host: x\r\nconnection: transfer-encoding\r\ntransfer-encoding: chunked\r\n".to_owned()),
        get("an upgrade to HTTP/2", "host: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n".to_owned()),
        get("an upgrade to websocket", "host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n".to_owned()),
        ("another host in the target".to_owned(), format!("GET http://y/api/topic/list HTTP/1.1\r\nhost: x\r\n\r\n{INNER}")),
        ("an unknown expectation".to_owned(), put("", &format!("expect: 200-ok\r\ncontent-length: {n}\r\n"), INNER).1),
        ("expect twice".to_owned(), put("", &format!("expect: 100-continue\r\nexpect: 100-continue\r\ncontent-length: {n}\r\n"), INNER).1),
        ("expect without a body".to_owned(), put("", "expect: 100-continue\r\n", INNER).1),
        ("a length over the limit".to_owned(), put("", "content-length: 99999999\r\n", INNER).1),
        ("requests one after another".to_owned(), INNER.repeat(3)),
    ]
}
