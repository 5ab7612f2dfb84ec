//! Layers the settings and checks them; every error names the key and where its value came from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, File, FileFormat, Map, Value, ValueKind};

use super::types::HostPort;
use super::{Role, Settings};

const ENDPOINTS: &str = "registry.endpoints";
/// How an endpoint with TLS begins.
const HTTPS: &str = "https://";
/// The settings that are lists.
const LISTS: [&str; 2] = ["http.trusted_proxies", ENDPOINTS];

/// Why settings were refused. The text names the key and the file, variable or flag that set it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing, unreadable or not TOML.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file as given.
        path: PathBuf,
        /// What was wrong, with line and column where it is known.
        reason: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` in {origin}{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// The dotted key.
        key: String,
        /// Where it was set.
        origin: String,
        /// The most similar key that exists.
        nearest: Option<String>,
    },
    /// A value of the wrong type, form or range.
    #[error("`{key}` in {origin}: {reason}")]
    Value {
        /// The dotted key.
        key: String,
        /// Where it was set.
        origin: String,
        /// What was wrong and what is wanted.
        reason: String,
    },
}

/// The layers above the defaults.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The TOML file, if one was named.
    pub file: Option<PathBuf>,
    /// `(dotted key, flag, value)` of each flag that was given.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// The environment to read `MSA__SECTION__KEY` from; `None` means that of the process.
    pub env: Option<Map<String, String>>,
}

/// Returns the settings of `role`, layered and checked.
///
/// # Errors
/// The first wrong key, see [`ConfigError`].
pub fn load(role: Role, source: &Source) -> Result<Settings, ConfigError> {
    let layers = Layers::read(role, source)?;
    let known = leaves(&layers.defaults.cache);
    layers.check_keys(&known)?;
    for (key, default) in &known {
        layers.check_type(key, default)?;
    }
    let settings = layers.merged.clone().try_deserialize();
    let settings = settings.map_err(|e| layers.refuse("?", reason_of(&e)))?;
    validate(role, &settings, |key, reason| layers.refuse(key, reason))?;
    Ok(settings)
}

/// Returns every key with its value, in alphabetical order; an empty value means none.
#[must_use]
pub fn rows(settings: &Settings) -> Vec<(String, String)> {
    let tree = Config::try_from(settings).unwrap_or_default().cache;
    leaves(&tree)
        .into_iter()
        .map(|(key, value)| {
            let text = match value.kind {
                ValueKind::Nil => String::new(),
                ValueKind::Array(_) => {
                    let list: Vec<String> = value.try_deserialize().unwrap_or_default();
                    format!("{list:?}")
                }
                _ => value.into_string().unwrap_or_default(),
            };
            (key, text)
        })
        .collect()
}

/// The layers, kept apart so that an error can say where a value came from.
struct Layers<'a> {
    source: &'a Source,
    defaults: Config,
    file: Config,
    env: Config,
    merged: Config,
}

impl<'a> Layers<'a> {
    fn read(role: Role, source: &'a Source) -> Result<Self, ConfigError> {
        let environment = config::Environment::with_prefix("MSA")
            .prefix_separator("__")
            .separator("__")
            .source(source.env.clone());
        let build = |builder: config::ConfigBuilder<config::builder::DefaultState>| {
            builder.build().map_err(|e| ConfigError::Value {
                key: "?".to_owned(),
                origin: "the environment or a flag".to_owned(),
                reason: reason_of(&e),
            })
        };
        let mut layers = Self {
            source,
            defaults: defaults(role),
            file: source.file.as_deref().map_or_else(|| Ok(Config::default()), read_file)?,
            env: build(Config::builder().add_source(environment))?,
            merged: Config::default(),
        };
        let mut builder = Config::builder()
            .add_source(layers.defaults.clone())
            .add_source(layers.file.clone())
            .add_source(layers.env.clone());
        // a variable or a flag is one text; lists are split here
        let env = LISTS.map(|key| (key, layers.env.get_string(key).ok()));
        let texts = env.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)));
        for (key, value) in texts.chain(source.flags.iter().map(|(key, _, value)| (*key, value))) {
            let kind = if LISTS.contains(&key) { list(value) } else { ValueKind::String(value.clone()) };
            builder = match builder.set_override(key, Value::new(None, kind)) {
                Ok(builder) => builder,
                Err(e) => return Err(layers.refuse(key, reason_of(&e))),
            };
        }
        layers.merged = build(builder)?;
        Ok(layers)
    }

    /// Returns where the value of `key` came from.
    fn origin(&self, key: &str) -> String {
        if let Some((_, flag, _)) = self.source.flags.iter().find(|(name, _, _)| *name == key) {
            return format!("flag {flag}");
        }
        if self.env.get::<Value>(key).is_ok() {
            let name = key.to_uppercase().replace('.', "__");
            return format!("the environment variable MSA__{name}");
        }
        match &self.source.file {
            Some(path) if self.file.get::<Value>(key).is_ok() => path.display().to_string(),
            _ => "the defaults".to_owned(),
        }
    }

    fn refuse(&self, key: &str, reason: String) -> ConfigError {
        ConfigError::Value { key: key.to_owned(), origin: self.origin(key), reason }
    }

    fn check_keys(&self, known: &[(String, Value)]) -> Result<(), ConfigError> {
        for (key, _) in leaves(&self.merged.cache) {
            if known.iter().any(|(name, _)| *name == key) {
                continue;
            }
            let nearest = known
                .iter()
                .map(|(name, _)| (strsim::jaro_winkler(name, &key), name))
                .filter(|(score, _)| *score > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, name)| name.clone());
            return Err(ConfigError::UnknownKey { origin: self.origin(&key), key, nearest });
        }
        Ok(())
    }

    /// Checks the type of one key by reading the defaults with this one value in them; so the error
    /// can name the key whatever the type says of itself.
    fn check_type(&self, key: &str, default: &Value) -> Result<(), ConfigError> {
        let Ok(value) = self.merged.get::<Value>(key) else {
            return Ok(()); // unset
        };
        let number = matches!(default.kind, ValueKind::I64(_) | ValueKind::U64(_));
        if number && matches!(value.kind, ValueKind::Float(_) | ValueKind::Boolean(_)) {
            return Err(self.refuse(key, "want a whole number".to_owned()));
        }
        Config::builder()
            .add_source(self.defaults.clone())
            .set_override(key, value)
            .and_then(config::ConfigBuilder::<config::builder::DefaultState>::build)
            .and_then(Config::try_deserialize::<Settings>)
            .map(|_| ())
            .map_err(|e| self.refuse(key, reason_of(&e)))
    }
}

/// Splits a text at its commas.
fn list(text: &str) -> ValueKind {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    ValueKind::Array(parts.map(|part| Value::new(None, part)).collect())
}

fn defaults(role: Role) -> Config {
    // cannot fail: the settings are plain structs of strings and numbers; a test reads every role's
    Config::try_from(&Settings::for_role(role)).unwrap_or_default()
}

fn read_file(path: &Path) -> Result<Config, ConfigError> {
    let refuse = |reason: String| ConfigError::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build().map_err(|e| match e {
        config::ConfigError::FileParse { cause, .. } => refuse(cause.to_string()),
        other => refuse(other.to_string()),
    })
}

/// Returns the leaves of a tree, `section.key`, sorted.
fn leaves(tree: &Value) -> Vec<(String, Value)> {
    fn walk(at: &str, value: &Value, out: &mut Vec<(String, Value)>) {
        match &value.kind {
            ValueKind::Table(table) => {
                for (key, inner) in table {
                    let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                    walk(&path, inner, out);
                }
            }
            _ => out.push((at.to_owned(), value.clone())),
        }
    }
    let mut out = Vec::new();
    walk("", tree, &mut out);
    for list in LISTS {
        if out.len() > 1 && !out.iter().any(|(key, _)| key == list) {
            // `config` drops an empty list
            out.push((list.to_owned(), Value::new(None, Vec::<Value>::new())));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

/// Returns what is wrong, without the key and origin that [`ConfigError`] adds itself.
fn reason_of(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::Type { unexpected, expected, .. } => format!("{unexpected} is not {expected}"),
        config::ConfigError::At { error, .. } => reason_of(error),
        other => other.to_string(),
    }
}

/// Checks ranges and what keys mean together.
fn validate(
    role: Role,
    s: &Settings,
    refuse: impl Fn(&str, String) -> ConfigError,
) -> Result<(), ConfigError> {
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let ranges: [(&str, u64, u64, u64); 49] = [
        ("admin.max_connections", s.admin.max_connections as u64, 1, 100_000),
        ("client.attempt_timeout_ms", ms(s.client.attempt_timeout), 0, 600_000),
        ("client.attempts", u64::from(s.client.attempts), 1, 5),
        ("client.breaker_backoff_cap_ms", ms(s.client.breaker_backoff_cap), 100, 600_000),
        ("client.breaker_backoff_ms", ms(s.client.breaker_backoff), 100, 60_000),
        ("client.breaker_failures", u64::from(s.client.breaker_failures), 1, 1000),
        ("client.breaker_min_calls", u64::from(s.client.breaker_min_calls), 1, 1000),
        ("client.breaker_success_percent", u64::from(s.client.breaker_success_percent), 0, 99),
        ("client.connection_age_s", s.client.connection_age.as_secs(), 1, 86_400),
        ("client.connections", s.client.connections as u64, 1, 16),
        ("client.connect_timeout_ms", ms(s.client.connect_timeout), 10, 60_000),
        ("client.deadline_ms", ms(s.client.deadline), 1, 600_000),
        ("client.ewma_decay_ms", ms(s.client.ewma_decay), 100, 600_000),
        ("client.fallback_age_s", s.client.fallback_age.as_secs(), 1, 86_400),
        ("client.fallback_kib", s.client.fallback_kib as u64, 0, 1_048_576),
        ("client.keepalive_ms", ms(s.client.keepalive), 100, 600_000),
        ("client.keepalive_timeout_ms", ms(s.client.keepalive_timeout), 100, 60_000),
        ("client.max_in_flight", s.client.max_in_flight as u64, 1, 100_000),
        ("client.penalty_ms", ms(s.client.penalty), 0, 60_000),
        ("client.reconnect_cap_ms", ms(s.client.reconnect_cap), 100, 60_000),
        ("client.retry_backoff_ms", ms(s.client.retry_backoff), 0, 10_000),
        ("client.retry_budget_per_second", u64::from(s.client.retry_budget_per_second), 0, 1000),
        ("client.retry_budget_percent", u64::from(s.client.retry_budget_percent), 0, 100),
        ("client.slow_start_ms", ms(s.client.slow_start), 0, 600_000),
        ("grpc.max_connections", s.grpc.max_connections as u64, 1, 1_000_000),
        ("grpc.max_concurrent_streams", u64::from(s.grpc.max_concurrent_streams), 1, 100_000),
        ("grpc.max_in_flight", s.grpc.max_in_flight as u64, 1, 1_000_000),
        ("grpc.write_timeout_ms", ms(s.grpc.write_timeout), 1000, 600_000),
        ("http.body_timeout_ms", ms(s.http.body_timeout), 100, 600_000),
        ("http.header_timeout_ms", ms(s.http.header_timeout), 100, 600_000),
        ("http.max_connections", s.http.max_connections as u64, 1, 1_000_000),
        ("http.max_in_flight", s.http.max_in_flight as u64, 1, 1_000_000),
        ("http.rate_burst", u64::from(s.http.rate_burst), 1, 1_000_000),
        ("http.rate_limit", u64::from(s.http.rate_limit), 0, 1_000_000),
        ("http.write_timeout_ms", ms(s.http.write_timeout), 1000, 600_000),
        ("log.slow_ms", ms(s.log.slow), 0, 600_000),
        ("registry.backoff_cap_ms", ms(s.registry.backoff_cap), 100, 60_000),
        ("registry.ttl_s", s.registry.ttl.as_secs(), 1, 3600),
        ("registry.keepalive_ms", ms(s.registry.keepalive), 100, ms(s.registry.ttl) / 2),
        ("registry.relist_ms", ms(s.registry.relist), 1000, 3_600_000),
        ("registry.timeout_ms", ms(s.registry.timeout), 100, 60_000),
        ("registry.watch_silence_ms", ms(s.registry.watch_silence), 1000, 60_000),
        ("registry.weight", u64::from(s.registry.weight), 1, 1000),
        ("shutdown.announce_ms", ms(s.shutdown.announce), 0, 10_000),
        ("shutdown.grace_ms", ms(s.shutdown.grace), 0, 600_000),
        ("trace.queue", s.trace.queue as u64, 100, 1_000_000),
        ("up.feed_replicas", s.up.feed_replicas as u64, 0, 64),
        ("up.profile_replicas", s.up.profile_replicas as u64, 0, 64),
        ("up.topic_replicas", s.up.topic_replicas as u64, 0, 64),
    ];
    for (key, value, low, high) in ranges {
        if !(low..=high).contains(&value) {
            return Err(refuse(key, format!("{value} is out of range, want {low} to {high}")));
        }
    }
    let prefix = &s.registry.prefix;
    if prefix.len() < 2 || !prefix.starts_with('/') || !prefix.ends_with('/') {
        let reason = format!("{prefix:?} must begin and end with `/`, with a name between");
        return Err(refuse("registry.prefix", reason));
    }
    access(&s.registry).map_err(|(key, reason)| refuse(key, reason))?;
    if role != Role::Up && s.registry.endpoints.is_empty() {
        let reason = "is empty: a role on its own needs etcd to be found, and to find others".to_owned();
        return Err(refuse(ENDPOINTS, reason));
    }
    if role == Role::Up && s.grpc.advertise_addr.as_ref().is_some_and(|addr| addr.port != 0) {
        let reason = "every service of `up` would claim the same port; leave it 0".to_owned();
        return Err(refuse("grpc.advertise_addr", reason));
    }
    let remote = s.registry.is_remote();
    if let Some(addr) = &s.grpc.advertise_addr
        && !callable_from(&addr.host, remote)
    {
        let reason = format!("{addr} cannot be called from another host, and etcd is remote");
        return Err(refuse("grpc.advertise_addr", reason));
    }
    if let Err(reason) = crate::telemetry::log::filter::parse(&s.log.level) {
        return Err(refuse("log.level", reason));
    }
    if !(0.0..=1.0).contains(&s.trace.sample_ratio) {
        let reason = format!("{} is out of range, want 0 to 1", s.trace.sample_ratio);
        return Err(refuse("trace.sample_ratio", reason));
    }
    Ok(())
}

impl super::Registry {
    /// Returns true if an endpoint of etcd is on another host.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.endpoints.iter().filter_map(|e| endpoint_host(e).ok()).any(|host| !is_loopback(&host))
    }
}

/// Checks how etcd is reached; the error has the key that is wrong. Opens no file.
fn access(registry: &super::Registry) -> Result<(), (&'static str, String)> {
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
        return Err((name.0, format!("{server_name:?} is not a name")));
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

/// Returns the host of etcd's `https://host:port`, `http://host:port` or `host:port`.
fn endpoint_host(endpoint: &str) -> Result<String, String> {
    let parsed: Result<HostPort, String> = super::bare_endpoint(endpoint).parse();
    match parsed {
        Ok(addr) if addr.port != 0 => Ok(addr.host),
        _ => Err(format!("{endpoint:?} is not an etcd address, want host:port or https://host:port")),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_matches(['[', ']']);
    bare == "localhost" || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Returns false for an address that callers elsewhere can certainly not reach.
pub(super) fn callable_from(host: &str, remote: bool) -> bool {
    let bare = host.trim_matches(['[', ']']);
    let unspecified = bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_unspecified());
    !(unspecified || remote && is_loopback(host))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
