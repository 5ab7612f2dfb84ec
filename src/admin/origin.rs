//! Keeps web pages away from the admin listener. A browser on this host reaches loopback for any page: by a plain link, or
//! under a name of the page's own that was rebound to 127.0.0.1, which makes the page and the listener one site.
//!
//! Metrics, health and the list of targets (`FOR_ANY_HOST`) are answered under any name, since Prometheus and load balancers
//! use names that nobody configures here: a rebound page can read them. Everything else has to be asked for by address, as `localhost`, or by a name of this
//! process; a page cannot choose these.

use http::{HeaderName, Request, StatusCode, header};

use super::reply::Refusal;
use crate::server::strict::{asked_host, is_known_host};

/// Targets that have no effect and that monitoring asks for; `*` is the server itself.
const FOR_ANY_HOST: [&str; 5] = ["/metrics", "/livez", "/readyz", "/sd/targets", "*"];
/// Where GET has an effect, which a page could have by an image or a link.
pub const PROFILES: &str = "/debug/pprof/";
/// What a browser says of the page that makes it ask: `same-origin`, `none` (the user typed the address), or another site.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Returns true for a request that is answered under any name, and to whoever shows no token.
#[must_use]
pub fn is_for_any_host<B>(request: &Request<B>) -> bool {
    FOR_ANY_HOST.contains(&request.uri().path())
}

/// Refuses what a page of another site asks for. `names` are those of this process, under one of which it must be asked
/// unless it is `for_any_host`.
///
/// # Errors
/// 403 for a foreign origin, 421 for a name that is none of this process.
pub fn check<B>(request: &Request<B>, for_any_host: bool, names: &[String]) -> Result<(), Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let host = asked_host(request);
    // `null` is foreign too
    let own = |origin: &str| {
        host.is_some_and(|host| {
            origin.strip_prefix("http://").is_some_and(|from| from.eq_ignore_ascii_case(host))
        })
    };
    if !headers.get_all(header::ORIGIN).iter().all(|origin| origin.to_str().is_ok_and(own)) {
        return Err(Refusal(
            StatusCode::FORBIDDEN,
            "origin: pages of other sites are not answered".to_owned(),
        ));
    }
    if for_any_host {
        return Ok(());
    }
    let elsewhere = |site: &http::HeaderValue| site != "same-origin" && site != "none";
    if uri.path().starts_with(PROFILES) && headers.get_all(FETCH_SITE).iter().any(elsewhere) {
        let reason = "sec-fetch-site: pages of other sites are not answered";
        return Err(Refusal(StatusCode::FORBIDDEN, reason.to_owned()));
    }
    match host {
        Some(host) if !is_known_host(host, names) => {
            let reason = "host: must be an address, localhost, or a name of this process";
            Err(Refusal(StatusCode::MISDIRECTED_REQUEST, reason.to_owned()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the status for a GET; 200 if it is not refused.
    fn status(path: &str, headers: &[(&str, &str)]) -> u16 {
        let request =
            headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        let request = request.body(()).unwrap();
        match check(&request, is_for_any_host(&request), &["node-0.example".to_owned()]) {
            Ok(()) => 200,
            Err(Refusal(status, _)) => status.as_u16(),
        }
    }

    #[test]
    fn the_host_has_to_be_an_address_or_a_name_of_this_process() {
        for host in
            ["127.0.0.1:6060", "10.0.0.7", "[::1]:6060", "localhost:6060", "LocalHost", "node-0.example:6060"]
        {
            for path in ["/status", "/loglevel", "/debug/pprof/profile", "/nowhere", "/metrics"] {
                assert_eq!(status(path, &[("host", host)]), 200, "{host} {path}");
            }
        }
        for host in
            ["evil.example:6060", "localhost.evil.example", "127.0.0.1.evil.example", "node-0", "2130706433"]
        {
            for path in ["/status", "/loglevel", "/debug/pprof/profile", "/nowhere", "/"] {
                assert_eq!(status(path, &[("host", host)]), 421, "{host} {path}");
            }
            for path in FOR_ANY_HOST {
                assert_eq!(status(path, &[("host", host)]), 200, "{host} {path}");
            }
        }
        assert_eq!(status("http://evil.example/status", &[("host", "localhost")]), 421);
        assert_eq!(status("/status", &[]), 200, "HTTP/1.0");
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let local = ("host", "localhost:6060");
        for path in ["/status", "/metrics", "/loglevel"] {
            for origin in
                ["http://evil.example", "null", "http://localhost:3000", "https://localhost:6060", "x"]
            {
                assert_eq!(status(path, &[local, ("origin", origin)]), 403, "{origin} {path}");
            }
            assert_eq!(status(path, &[local, ("origin", "http://localhost:6060")]), 200);
        }
        // a rebound name: the page and the listener are one origin
        let rebound = [("host", "evil.example:6060"), ("origin", "http://evil.example:6060")];
        assert_eq!(status("/loglevel", &rebound), 421);
        for (site, expected) in [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
        {
            assert_eq!(
                status("/debug/pprof/profile", &[local, ("sec-fetch-site", site)]),
                expected,
                "{site}"
            );
            assert_eq!(status("/status", &[local, ("sec-fetch-site", site)]), 200, "a link to it");
        }
    }
}
