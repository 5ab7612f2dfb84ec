//! What RFC 9112 lets no HTTP/1 server accept, as far as hyper accepts it: one check of every request's head before the
//! routes of the gateway and of the admin listener. hyper refuses the rest by itself; `tests/it/api/rfc9112.rs` has the
//! list, rule by rule.

use std::net::{IpAddr, Ipv6Addr};

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Version, header};

/// Why a request is malformed. After the answer its connection has to be closed: what follows may not begin where this
/// program thinks that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// 400, or 421 for a scheme or a name that this listener does not serve.
    pub status: StatusCode,
    /// The header that is wrong, or `target`.
    pub field: &'static str,
    /// Lower case, no full stop.
    pub detail: &'static str,
}

impl Malformed {
    const fn new(field: &'static str, detail: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, field, detail }
    }
}

/// Checks the head of a request at a listener of `scheme`.
///
/// # Errors
/// The first rule that it breaks.
pub fn check<B>(request: &Request<B>, scheme: &Scheme) -> Result<(), Malformed> {
    check_transfer_encoding(request)?;
    check_host(request)?;
    check_target(request, scheme)
}

/// Section 6.1. The only coding is `chunked`, once. RFC 9112 would have 501 for a coding that is not supported, but a
/// caller's mistake must not count as this program's failure.
fn check_transfer_encoding<B>(request: &Request<B>) -> Result<(), Malformed> {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if chunked(coding) => Ok(()),
        _ => Err(Malformed::new("transfer-encoding", "must be chunked, once")),
    }
}

/// Section 3.2. HTTP/1.1 needs a Host, HTTP/1.0 may have one. On HTTP/2 `:authority` takes its place, and one beside it must be
/// the same (RFC 9113, 8.3.1).
fn check_host<B>(request: &Request<B>) -> Result<(), Malformed> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let authority = request.uri().authority().filter(|_| request.version() == Version::HTTP_2);
    match (hosts.next(), hosts.next()) {
        (None, _) if authority.is_some() => Ok(()),
        (Some(host), None)
            if authority
                .is_some_and(|known| !host.as_bytes().eq_ignore_ascii_case(known.as_str().as_bytes())) =>
        {
            Err(Malformed::new("host", "is another one than the authority of the request"))
        }
        (None, _) if request.version() == Version::HTTP_10 => Ok(()),
        (None, _) => Err(Malformed::new("host", "is missing")),
        (Some(_), Some(_)) => Err(Malformed::new("host", "is given twice")),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err(Malformed::new("host", "must be a host, with or without a port")),
    }
}

/// Sections 3.2.1 to 3.2.4, and RFC 9110, 4.2.4 and 7.4.
fn check_target<B>(request: &Request<B>, served: &Scheme) -> Result<(), Malformed> {
    let uri = request.uri();
    let path = uri.path();
    // `CONNECT host:port` and `GET host:port`, on which warp's path filter panics (warp#1166)
    if path.is_empty() || path == "*" && request.method() != Method::OPTIONS {
        return Err(Malformed::new("target", "must be a path"));
    }
    if uri.scheme().is_some_and(|scheme| scheme != served) {
        let status = StatusCode::MISDIRECTED_REQUEST;
        let https = *served == Scheme::HTTPS;
        let detail = if https { "only https is served here" } else { "only http is served here" };
        return Err(Malformed { status, field: "target", detail });
    }
    match uri.authority().map(Authority::as_str) {
        Some(authority) if !is_host(authority.as_bytes()) => {
            Err(Malformed::new("target", "must name a host, with or without a port"))
        }
        _ => Ok(()),
    }
}

/// Returns true for `OPTIONS *`, which asks about the server and not about a path (RFC 9110, 9.3.7). The request must have
/// passed [`check`].
#[must_use]
pub fn asks_about_the_server<B>(request: &Request<B>) -> bool {
    request.uri().path() == "*"
}

/// Returns the host that a request asks, with its port if it has one: a target that names a host counts more than the field
/// (RFC 9112, 3.2.2). Only HTTP/1.0 needs none, and no browser speaks it.
#[must_use]
pub fn asked_host<B>(request: &Request<B>) -> Option<&str> {
    let given = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().map(Authority::as_str).or(given)
}

/// Returns true if the host of a `Host` field is an address, `localhost` or one of these names. A web page whose own name was
/// given the address of this listener (DNS rebinding) cannot choose any of them.
#[must_use]
pub fn is_known_host(host: &str, names: &[impl AsRef<str>]) -> bool {
    let name = host_name(host);
    // an absolute name may end with a dot
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || names.iter().any(|known| name.eq_ignore_ascii_case(known.as_ref()))
}

/// Checks the name under which a listener is asked; without `names` every one is taken. The request must have passed
/// [`check`].
///
/// # Errors
/// 421 for another name.
pub fn check_name<B>(request: &Request<B>, names: &[impl AsRef<str>]) -> Result<(), Malformed> {
    if names.is_empty() || asked_host(request).is_none_or(|host| is_known_host(host, names)) {
        return Ok(());
    }
    let detail = "must be an address, localhost, or a name of this gateway";
    Err(Malformed { status: StatusCode::MISDIRECTED_REQUEST, field: "host", detail })
}

/// Returns the host of a `Host` field, without the port and without the brackets of an IPv6 address.
#[must_use]
pub fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Returns true for `uri-host [ ":" port ]` of RFC 9110, 7.2. A comma, which RFC 3986 allows in a name, is how two
/// fields look that something on the way has joined.
fn is_host(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let (valid, rest) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        (address.parse::<Ipv6Addr>().is_ok(), rest)
    } else {
        let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        (is_name(name.as_bytes()), rest)
    };
    valid && rest.strip_prefix(':').map_or(rest.is_empty(), is_port)
}

/// `reg-name` of RFC 3986, not empty and without a comma.
fn is_name(mut name: &[u8]) -> bool {
    if name.is_empty() {
        return false;
    }
    loop {
        name = match name {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte) => rest,
            _ => return false,
        };
    }
}

fn is_port(port: &str) -> bool {
    port.is_empty() || port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for valid in [
            "x",
            "x:",
            "x:80",
            "a-b.example",
            "127.0.0.1:65535",
            "[::1]",
            "[::1]:80",
            "[::ffff:10.0.0.1]",
            "x%41~_",
        ] {
            assert!(is_host(valid.as_bytes()), "{valid}");
        }
        for invalid in [
            "",
            ":80",
            "x:65536",
            "x:+1",
            "x:a",
            "x:1:2",
            "::1",
            "[::1",
            "[::1]80",
            "[x]",
            "[::1%25eth0]",
            "u@x",
            "x/",
            "x?",
            "x#",
            "x,y",
            "x y",
            "x%4",
            "x%zz",
            "\u{e9}",
            "http://x",
            "x\\y",
        ] {
            assert!(!is_host(invalid.as_bytes()), "{invalid}");
        }
        assert!(!is_host(b"\xff"));
    }

    #[test]
    fn the_name_of_a_host_has_neither_port_nor_brackets() {
        let names = ["x", "x:80", "10.0.0.1:80", "[::1]", "[::1]:80"].map(host_name);
        assert_eq!(names, ["x", "x", "10.0.0.1", "::1", "::1"]);
    }
}
