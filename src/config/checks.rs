//! The checks that one definition cannot express: forms of single texts, and keys that must fit together.
//! No check opens a file or a socket.

use std::path::PathBuf;

use super::log_filter;
use super::role::Role;
use super::settings::{Http, Registry, Settings, Store};
use super::shown::shown;
use super::store_url::StoreUrl;
use super::types::{HostPort, TlsMode};
use super::value::out_of_range;

const ENDPOINTS: &str = "registry.endpoints";
/// How an endpoint with TLS begins.
const HTTPS: &str = "https://";

/// The key that is wrong, and why.
type Wrong = (&'static str, String);

/// Checks the settings of a role as a whole.
pub(super) fn check(role: Role, settings: &Settings) -> Result<(), Wrong> {
    log_level(settings)?;
    keepalive_fits_ttl(&settings.registry)?;
    prefix(&settings.registry)?;
    access(&settings.registry)?;
    store(role, &settings.store)?;
    https(role, &settings.http)?;
    auth(role, &settings.http)?;
    if settings.admin.token_file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
        return Err(("admin.token_file", "is empty; leave it out to have none".to_owned()));
    }
    role_has_a_registry(role, &settings.registry)?;
    tls(role, settings)?;
    advertise_address(role, settings)
}

fn log_level(settings: &Settings) -> Result<(), Wrong> {
    log_filter::parse(&settings.log.level).map(|_| ()).map_err(|reason| ("log.level", reason))
}

/// With at least two renewals in the life of a lease, one may be lost.
fn keepalive_fits_ttl(registry: &Registry) -> Result<(), Wrong> {
    if registry.keepalive <= registry.ttl / 2 {
        return Ok(());
    }
    let max = u64::try_from((registry.ttl / 2).as_millis()).unwrap_or(u64::MAX);
    Err(("registry.keepalive_ms", out_of_range(registry.keepalive.as_millis(), 100, max)))
}

/// A prefix without `/` makes keys from which grpc-go makes a valid `:authority`, `services-feed`.
fn prefix(registry: &Registry) -> Result<(), Wrong> {
    let prefix = &registry.prefix;
    let path = prefix.len() >= 2 && prefix.starts_with('/') && prefix.ends_with('/');
    let unreserved = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name = prefix.starts_with(|c: char| c.is_ascii_alphanumeric())
        && prefix.ends_with(['-', '.', '_'])
        && prefix.chars().all(unreserved);
    if path || name {
        return Ok(());
    }
    let want = "begin and end with `/`, with a name between, or be letters, digits, `-`, `.` and `_`, the last one not \
                a letter or digit";
    Err(("registry.prefix", format!("{:?} must {want}", shown(prefix))))
}

fn role_has_a_registry(role: Role, registry: &Registry) -> Result<(), Wrong> {
    if role == Role::Up || !registry.endpoints.is_empty() {
        return Ok(());
    }
    Err((ENDPOINTS, "is empty: a role on its own needs etcd to be found, and to find others".to_owned()))
}

fn advertise_address(role: Role, settings: &Settings) -> Result<(), Wrong> {
    const KEY: &str = "grpc.advertise_addr";
    let Some(addr) = &settings.grpc.advertise_addr else {
        return Ok(());
    };
    if role == Role::Up && addr.port != 0 {
        return Err((KEY, "every service of `up` would register the same port; leave it 0".to_owned()));
    }
    if !callable_from(&addr.host, settings.registry.is_remote()) {
        return Err((KEY, format!("{addr} cannot be called from another host, and etcd is remote")));
    }
    Ok(())
}

/// Checks the certificate of the gateway.
fn https(role: Role, http: &Http) -> Result<(), Wrong> {
    const CERT: &str = "http.tls.cert_file";
    const KEY: &str = "http.tls.key_file";
    if !matches!(role, Role::Apigateway | Role::Up) {
        return Ok(());
    }
    for (key, path) in [(CERT, &http.tls_cert_file), (KEY, &http.tls_key_file)] {
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err((key, "is empty; leave it out to have none".to_owned()));
        }
    }
    match (&http.tls_cert_file, &http.tls_key_file) {
        (Some(_), None) => Err((KEY, format!("is missing, and {CERT} is set: both or none"))),
        (None, Some(_)) => Err((CERT, format!("is missing, and {KEY} is set: both or none"))),
        (None, None) if !http.hsts.is_zero() => {
            let reason =
                format!("is set, but {CERT} is not: browsers ignore it without TLS, and a proxy has its own");
            Err(("http.hsts_s", reason))
        }
        _ => Ok(()),
    }
}

/// Checks what callers of the gateway need.
fn auth(role: Role, http: &Http) -> Result<(), Wrong> {
    const FILE: &str = "http.auth.jwks_file";
    const ISSUER: &str = "http.auth.issuer";
    const AUDIENCE: &str = "http.auth.audience";
    const POLICY: &str = "http.auth.policy";
    if !matches!(role, Role::Apigateway | Role::Up) {
        return Ok(());
    }
    let issuer = http.auth_issuer.as_deref();
    let empty = "is empty; leave it out to have none";
    let Some(file) = &http.auth_jwks_file else {
        let set = [
            (ISSUER, issuer.is_some()),
            (AUDIENCE, !http.auth_audience.is_empty()),
            (POLICY, !http.auth_policy.is_empty()),
        ];
        let set = set.into_iter().find(|(_, is_set)| *is_set);
        // a policy that nobody enforces would be taken for one that holds
        return set.map_or(Ok(()), |(key, _)| {
            Err((key, format!("is set, but {FILE} is not: no token is examined")))
        });
    };
    if file.as_os_str().is_empty() {
        return Err((FILE, empty.to_owned()));
    }
    let missing = |what: &str| format!("is missing, and {FILE} is set: tokens for {what} would be accepted");
    match issuer {
        None => return Err((ISSUER, missing("this key set of any issuer"))),
        Some("") => return Err((ISSUER, empty.to_owned())),
        Some(_) => {}
    }
    if http.auth_audience.is_empty() {
        return Err((AUDIENCE, missing("other programs")));
    }
    if http.auth_audience.iter().any(String::is_empty) {
        return Err((AUDIENCE, "has an empty value".to_owned()));
    }
    if let Some(rule) = repeated(&http.auth_policy, |rule| rule.operation) {
        return Err((POLICY, format!("has two rules for {}", rule.operation)));
    }
    Ok(())
}

/// Returns the first of a list whose key an earlier one has.
fn repeated<T, K: PartialEq>(list: &[T], key: impl Fn(&T) -> K) -> Option<&T> {
    let is_repeated =
        |(at, item): &(usize, &T)| list.iter().take(*at).any(|earlier| key(earlier) == key(item));
    list.iter().enumerate().find(is_repeated).map(|(_, item)| item)
}

/// Checks how etcd is reached.
fn access(registry: &Registry) -> Result<(), Wrong> {
    let mut https = None;
    for endpoint in &registry.endpoints {
        endpoint_host(endpoint).map_err(|reason| (ENDPOINTS, reason))?;
        let this = endpoint.starts_with(HTTPS);
        if *https.get_or_insert(this) != this {
            let reason = "has endpoints with https and such without; want all with TLS or all without";
            return Err((ENDPOINTS, reason.to_owned()));
        }
    }
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.as_os_str().is_empty());
    let text = |text: &Option<String>| text.as_ref().map(String::is_empty);
    let ca = ("registry.ca_file", path(&registry.ca_file));
    let cert = ("registry.cert_file", path(&registry.cert_file));
    let key = ("registry.key_file", path(&registry.key_file));
    let name = ("registry.tls_server_name", text(&registry.tls_server_name));
    let user = ("registry.user", text(&registry.user));
    let password = ("registry.password_file", path(&registry.password_file));
    for (key, is_empty) in [ca, cert, key, name, user, password] {
        if is_empty == Some(true) {
            return Err((key, "is empty; leave it out to have none".to_owned()));
        }
    }
    for (one, other) in [(cert, key), (user, password)] {
        for (there, missing) in [(one, other), (other, one)] {
            if there.1.is_some() && missing.1.is_none() {
                return Err((missing.0, format!("is missing, and {} is set: both or none", there.0)));
            }
        }
    }
    if let Some(server_name) = &registry.tls_server_name
        && format!("{server_name}:1").parse::<HostPort>().is_err()
    {
        return Err((name.0, format!("{:?} is not a name", shown(server_name))));
    }
    match https {
        Some(true) if registry.ca_file.is_none() => {
            let reason = "is missing, and etcd is reached by https: name a file with the certificate of \
                          the authority that etcd's certificate comes from";
            Err((ca.0, reason.to_owned()))
        }
        Some(false) => match [ca, cert, key, name].into_iter().find(|(_, set)| set.is_some()) {
            Some((key, _)) => {
                Err((key, format!("is for TLS, but {ENDPOINTS} has no https://; say https://host:port")))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Checks how the parts of the system speak to each other.
fn tls(role: Role, settings: &Settings) -> Result<(), Wrong> {
    let (grpc, tls) = (&settings.grpc, &settings.tls);
    let files = [
        ("tls.cert_file", &tls.cert_file, "the certificate of this process"),
        ("tls.key_file", &tls.key_file, "the key of its certificate"),
        (
            "tls.ca_file",
            &tls.ca_file,
            "the certificate of the authority that the others' certificates come from",
        ),
    ];
    for (key, path, _) in files {
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err((key, "is empty; leave it out to have none".to_owned()));
        }
    }
    if grpc.tls == TlsMode::Off {
        return Ok(());
    }
    if role == Role::Up {
        let reason =
            "one process with every role has no certificate for each; run each role as a process, or say off";
        return Err(("grpc.tls", reason.to_owned()));
    }
    if let Some((key, _, what)) = files.into_iter().find(|(_, path, _)| path.is_none()) {
        return Err((key, format!("is missing, and `grpc.tls` is {}: name a file with {what}", grpc.tls)));
    }
    if let Some(named) = repeated(&tls.names, |named| named.role) {
        return Err(("tls.names", format!("names {} twice", named.role.name())));
    }
    if Role::SERVICES.contains(&role) && grpc.allow.is_empty() {
        return Err(("grpc.allow", "is empty: nobody could call the service".to_owned()));
    }
    Ok(())
}

/// Checks how PostgreSQL is reached.
fn store(role: Role, store: &Store) -> Result<(), Wrong> {
    if !Role::SERVICES.contains(&role) {
        return Ok(());
    }
    let is_empty = |path: &Option<PathBuf>| path.as_ref().map(|path| path.as_os_str().is_empty());
    let password = ("store.password_file", is_empty(&store.password_file));
    let ca = ("store.ca_file", is_empty(&store.ca_file));
    let cert = ("store.cert_file", is_empty(&store.cert_file));
    let key = ("store.key_file", is_empty(&store.key_file));
    let files = [password, ca, cert, key];
    if let Some((key, _)) = files.iter().find(|(_, is_empty)| *is_empty == Some(true)) {
        return Err((key, "is empty; leave it out to have none".to_owned()));
    }
    let StoreUrl::Postgres(url) = &store.url else {
        let set = files.into_iter().find(|(_, set)| set.is_some());
        return set.map_or(Ok(()), |(key, _)| {
            Err((key, format!("is for PostgreSQL, but `store.url` is {}", store.url)))
        });
    };
    if let (Some((there, _)), Some((missing, _))) =
        ([cert, key].iter().find(|f| f.1.is_some()), [cert, key].iter().find(|f| f.1.is_none()))
    {
        return Err((missing, format!("is missing, and {there} is set: both or none")));
    }
    match store.ca_file {
        None if url.requires_tls() => Err((
            ca.0,
            "is missing, and `store.url` requires TLS: name a file with the certificate of the authority that \
             PostgreSQL's certificate comes from"
                .to_owned(),
        )),
        Some(_) if url.refuses_tls() => {
            Err((ca.0, "is for TLS, but `store.url` has sslmode=disable".to_owned()))
        }
        None if store.cert_file.is_some() => Err((ca.0, format!("is missing, and {} is set, which is for TLS", cert.0))),
        _ => Ok(()),
    }
}

impl Registry {
    /// Returns true if an endpoint of etcd is on another host.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.endpoints.iter().filter_map(|e| endpoint_host(e).ok()).any(|host| !is_loopback(&host))
    }
}

/// Returns the `host:port` of an endpoint of etcd.
#[must_use]
pub fn bare_endpoint(endpoint: &str) -> &str {
    let bare = endpoint.strip_prefix(HTTPS).or_else(|| endpoint.strip_prefix("http://"));
    bare.unwrap_or(endpoint).trim_end_matches('/')
}

/// Returns the host of etcd's `https://host:port`, `http://host:port` or `host:port`.
fn endpoint_host(endpoint: &str) -> Result<String, String> {
    let parsed: Result<HostPort, String> = bare_endpoint(endpoint).parse();
    match parsed {
        Ok(addr) if addr.port != 0 => Ok(addr.host),
        _ => {
            Err(format!("{:?} is not an etcd address, want host:port or https://host:port", shown(endpoint)))
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_matches(['[', ']']);
    bare == "localhost" || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Returns false for an address that callers elsewhere can certainly not reach.
fn callable_from(host: &str, remote: bool) -> bool {
    let bare = host.trim_matches(['[', ']']);
    let unspecified = bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified());
    !(unspecified || remote && is_loopback(host))
}
