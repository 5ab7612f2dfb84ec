//! The HTTP listener of the gateway: address, limits, timeouts, proxies.

use std::path::PathBuf;
use std::time::Duration;

use super::super::access::AccessRule;
use super::super::host_name::HostName;
use super::super::origin::Origin;
use super::super::types::{ListenAddr, Network, Switch};
use super::{GATEWAYS, Kind, Role};

section! {
    /// The HTTP listener of the gateway.
    Http as http, read by GATEWAYS, defaults of role:

    /// Address of the HTTP listener. `:port` and `[::]:port` are every interface, with IPv6 and IPv4; `0.0.0.0:port` has
    /// IPv4 only. Port 0 takes a free port.
    "http.addr" => addr: ListenAddr = match role {
        Role::Up => ListenAddr::loopback(8080),
        Role::Apigateway | Role::Feed | Role::Profile | Role::Topic => ListenAddr::any(8080),
    }, Kind::text(ListenAddr::FORM);

    /// Most open connections. At the limit, a new connection replaces the one that has been idle longest. If none
    /// is idle, the new connection waits in the backlog.
    "http.max_connections" => max_connections: usize = 10_000, Kind::number(1, 1_000_000);

    /// Time a client has to send the head of a request, and time a kept-alive connection may stay idle. Then the
    /// connection is closed.
    "http.header_timeout_ms" => header_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(100, 600_000);

    /// Time a client has to send the whole body of a request. Then the answer is 408.
    "http.body_timeout_ms" => body_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(100, 600_000);

    /// Time in which a client must accept some bytes of an answer. Then the connection is closed. (The kernel needs
    /// 200 ms to repeat a lost packet.)
    "http.write_timeout_ms" => write_timeout: Duration =
        Duration::from_secs(10), Kind::milliseconds(1000, 600_000);

    /// Most requests in progress. Further requests are answered 503 at once. A request counts from the end of its
    /// body until its answer is ready to be sent; in the worst case each holds about 6 MiB. The default keeps the
    /// wait short: a request costs a gateway less than 0.5 ms, so 1024 of them take at most a quarter of the default
    /// deadline. (Envoy's `max_requests` is 1024 too.)
    "http.max_in_flight" => max_in_flight: usize = 1024, Kind::number(1, 1_000_000);

    /// Requests a second that one client may send on average; further requests are answered 429. 0 is no limit. A
    /// client is an IPv4 address or an IPv6 network of 64 bits.
    "http.rate_limit" => rate_limit: u32 = 0, Kind::per_second(0, 1_000_000);

    /// Requests that a client may send at once after a quiet time, when `http.rate_limit` is set.
    "http.rate_burst" => rate_burst: u32 = 100, Kind::number(1, 1_000_000);

    /// Proxies in front of the gateway. In a request from one of them, the client is the right-most address of
    /// `X-Forwarded-For` that is not in this list. The header of any other sender is ignored.
    "http.trusted_proxies" => trusted_proxies: Vec<Network> = Vec::new(), Kind::list(Network::FORM);

    /// Whether the gateway serves the page of its API, `/docs`, and the description that it is made from,
    /// `/openapi.json`. With `off` these paths are unknown.
    "http.docs" => docs: Switch = Switch::On, Kind::choice(Switch::NAMES);

    /// Names by which callers know this gateway: a request whose `Host` is neither one of them, nor an address, nor
    /// `localhost` is answered 421. Without any, every name is taken, also that of a web page that an attacker has given
    /// the gateway's address (DNS rebinding).
    "http.hosts" => hosts: Vec<HostName> = Vec::new(), Kind::list(HostName::FORM);

    /// Origins of web pages whose scripts may call the gateway (CORS). A page of any other origin cannot read answers,
    /// and cannot write. The page at `/docs` needs no entry.
    "http.cors_origins" => cors_origins: Vec<Origin> = Vec::new(), Kind::list(Origin::FORM);

    /// File with the certificate chain (PEM) that the gateway shows to callers. With it the gateway speaks HTTPS and nothing
    /// else: HTTP/1.1, or HTTP/2 where the caller can. Goes with `http.tls.key_file`. The files are read again when they
    /// change.
    "http.tls.cert_file" => tls_cert_file: Option<PathBuf> = None, Kind::text("a path");

    /// File with the private key (PEM) of `http.tls.cert_file`.
    "http.tls.key_file" => tls_key_file: Option<PathBuf> = None, Kind::text("a path");

    /// Time for which browsers are told to use nothing but HTTPS for this host (HSTS). 0 tells them nothing. Needs
    /// `http.tls.cert_file`.
    "http.hsts_s" => hsts: Duration = Duration::ZERO, Kind::seconds(0, 63_072_000);

    /// File with the public keys (a JSON Web Key Set) of the issuer of tokens. With it callers need a bearer token
    /// (JWT); without it the gateway asks nobody who they are. The file is read again when it changes.
    "http.auth.jwks_file" => auth_jwks_file: Option<PathBuf> = None, Kind::text("a path");

    /// What a token must have as its `iss`. Needed with `http.auth.jwks_file`.
    "http.auth.issuer" => auth_issuer: Option<String> = None, Kind::text("the `iss` of a token");

    /// What a token must have as its `aud`, or among its `aud`: one of these. Needed with `http.auth.jwks_file`.
    "http.auth.audience" => auth_audience: Vec<String> = Vec::new(), Kind::list("an `aud` of a token");

    /// How far the clocks of issuer and gateway may differ: a token counts this long after its `exp` and before its
    /// `nbf`.
    "http.auth.leeway_s" => auth_leeway: Duration = Duration::from_secs(30), Kind::seconds(0, 300);

    /// Who may use an operation: `public` is everybody, `token` who has a valid token, `owner` whose token has the
    /// `user_id` of the request as its `sub`, `scope:NAME` whose token has that scope. Without a rule, what writes
    /// records of a user is for the owner, and everything else for valid tokens.
    "http.auth.policy" => auth_policy: Vec<AccessRule> = Vec::new(), Kind::list(AccessRule::FORM);
}
