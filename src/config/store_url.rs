//! Where the records of a service are: the type of `store.url`.

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::config::{Config, SslMode, TargetSessionAttrs};

use super::shown::{HIDDEN, shown};
use super::value::by_text;

/// Which store, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// In memory: lost when the process ends.
    Memory,
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A database of PostgreSQL, which instances on several hosts share.
    Postgres(PostgresUrl),
}

impl StoreUrl {
    /// The form of its text.
    pub const FORM: &str = "memory:, sqlite:PATH or postgres://USER@HOST:PORT,HOST:PORT/DATABASE";
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = shown(text);
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("sqlite", ":memory:")) => Err(format!("`{shown}` is no file: want {}", Self::FORM)),
            Some(("sqlite", path)) if is_uri(path) => Err(format!(
                "`{shown}` has a URI where a path is wanted: want {} (./PATH if a name begins with file:)",
                Self::FORM
            )),
            Some(("sqlite", path)) if !path.trim().is_empty() => Ok(Self::Sqlite(PathBuf::from(path))),
            Some(("postgres" | "postgresql", _)) => text.parse().map(Self::Postgres),
            // its scheme may be a wrong one for a database
            _ if text.contains("://") => Err(format!("`{HIDDEN}` is not a store: want {}", Self::FORM)),
            _ => Err(format!("`{shown}` is not a store: want {}", Self::FORM)),
        }
    }
}

/// Returns true for names that SQLite or other programs read as a URI: they would mean another file, or none.
fn is_uri(path: &str) -> bool {
    let scheme = path.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("file:"));
    let authority = path.starts_with("//") && !path.starts_with("///");
    scheme || authority || path.contains(['?', '#'])
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

by_text!(StoreUrl);

/// `postgres://USER@HOST:PORT,HOST:PORT/DATABASE`, with the parameters of libpq. It holds no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresUrl {
    text: String,
    config: Box<Config>,
}

impl PostgresUrl {
    /// Returns its parts.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Returns true if it asks for connections without TLS.
    #[must_use]
    pub fn refuses_tls(&self) -> bool {
        self.text.contains("sslmode=disable")
    }

    /// Returns true if it asks for TLS.
    #[must_use]
    pub fn requires_tls(&self) -> bool {
        self.config.get_ssl_mode() == SslMode::Require
    }
}

/// The error for a URL with a password.
const PASSWORD: &str = "the URL of PostgreSQL holds a password, which logs and lists of processes would show: write it \
                        into a file and name that in `store.password_file`";

/// The parameters of a URL that have an effect.
const PARAMETERS: [&str; 10] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "options",
    "port",
    "sslmode",
    "target_session_attrs",
    "user",
];
/// Longest `connect_timeout`: while a host may take so long, no other round over the hosts begins.
const LONGEST_CONNECT: Duration = Duration::from_secs(5);

impl FromStr for PostgresUrl {
    type Err = String;

    /// Parses a URL. No error quotes it, since it may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("the URL of PostgreSQL {why}: want {}", StoreUrl::FORM);
        let rest = ["postgres://", "postgresql://"].into_iter().find_map(|start| text.strip_prefix(start));
        let rest = rest.ok_or_else(|| wrong("cannot be read"))?;
        let user = rest.split_once('@').map(|(user, _)| user);
        // before it is parsed: a password with signs of its own looks like ports and parameters
        if user.is_some_and(|user| user.contains([':', '/', '?', '='])) {
            return Err(PASSWORD.to_owned());
        }
        // certificates are always verified, host name included
        let known = text.replace("sslmode=verify-full", "sslmode=require");
        let config: Config = known.parse().map_err(|error: tokio_postgres::Error| {
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            // without a user, what looks like the name of a parameter may be part of a password
            if user.is_some() { wrong(&format!("cannot be read ({cause})")) } else { wrong("cannot be read") }
        })?;
        if config.get_password().is_some() {
            return Err(PASSWORD.to_owned());
        }
        if config.get_user().is_none_or(str::is_empty) {
            return Err(wrong("names no user"));
        }
        if config.get_dbname().is_none_or(str::is_empty) {
            return Err(wrong("names no database"));
        }
        if config.get_hosts().is_empty() {
            return Err(wrong("names no host"));
        }
        if !matches!(config.get_ports().len(), 0 | 1) && config.get_ports().len() != config.get_hosts().len()
        {
            return Err(wrong("has another number of ports than of hosts"));
        }
        let parameters = text.split_once('?').map_or("", |(_, parameters)| parameters);
        let parameters = parameters.split('&').filter_map(|parameter| parameter.split_once('='));
        for (name, value) in parameters {
            match name {
                "sslmode" if value == "prefer" => {
                    return Err(wrong("has sslmode=prefer; it can be verify-full, require or disable"));
                }
                "connect_timeout"
                    if !config
                        .get_connect_timeout()
                        .is_some_and(|limit| (Duration::ZERO..=LONGEST_CONNECT).contains(limit)) =>
                {
                    return Err(wrong(&format!(
                        "has connect_timeout, which can be 1 to {}",
                        LONGEST_CONNECT.as_secs()
                    )));
                }
                name if PARAMETERS.contains(&name) => {}
                name => return Err(wrong(&format!("has the parameter `{name}`, which is not supported"))),
            }
        }
        match config.get_target_session_attrs() {
            TargetSessionAttrs::Any | TargetSessionAttrs::ReadWrite => {}
            _ => return Err(wrong("has target_session_attrs, which can only be read-write")),
        }
        Ok(Self { text: text.to_owned(), config: Box::new(config) })
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<StoreUrl>().unwrap_err()
    }

    #[test]
    fn a_url_of_postgresql_is_taken_as_it_is() {
        for text in [
            "postgres://app@db.example/msa",
            "postgresql://app@10.0.0.1:5432,10.0.0.2:5433/msa?target_session_attrs=read-write&sslmode=verify-full",
            "postgres://app@[::1]:5432/msa?application_name=x&options=-c%20work_mem%3D4MB",
            "postgres://app@%2Frun%2Fpostgresql/msa",
        ] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
        let url: PostgresUrl = "postgres://a@h1,h2:99/d?sslmode=verify-full".parse().unwrap();
        assert!(url.requires_tls());
        assert_eq!((url.config().get_hosts().len(), url.config().get_ports()), (2, &[5432, 99][..]));
    }

    #[test]
    fn a_url_without_a_user_a_database_or_a_host_is_refused() {
        assert!(refusal("postgres://db.example/msa").contains("names no user"));
        assert!(refusal("postgres://app@db.example").contains("names no database"));
        assert!(refusal("postgres://app@/msa").contains("names no host"));
        assert!(
            refusal("postgres://app@h/d?target_session_attrs=read-only").contains("target_session_attrs")
        );
        assert!(refusal("postgres://app@h/d?colour=red").contains("unknown option `colour`"));
    }

    #[test]
    fn a_parameter_that_would_have_no_effect_is_refused() {
        for parameter in [
            "hostaddr=10.0.0.1",
            "keepalives=1",
            "keepalives_idle=5",
            "keepalives_interval=5",
            "keepalives_retries=5",
            "tcp_user_timeout=5",
            "load_balance_hosts=random",
            "sslnegotiation=direct",
            "sslmode=prefer",
            "connect_timeout=0",
            "connect_timeout=6",
            "connect_timeout=30",
            "host%61ddr=10.0.0.1",
        ] {
            let refused = refusal(&format!("postgres://app@h/d?application_name=x&{parameter}"));
            let name = parameter.split('=').next().unwrap();
            assert!(refused.contains(name), "{parameter}: {refused}");
        }
        let url: PostgresUrl = "postgres://app@h/d?connect_timeout=5".parse().unwrap();
        assert_eq!(url.config().get_connect_timeout(), Some(&Duration::from_secs(5)));
        for taken in
            ["sslmode=disable", "channel_binding=require", "target_session_attrs=any", "options=-c%20x%3D1"]
        {
            format!("postgres://app@h/d?{taken}").parse::<StoreUrl>().unwrap();
        }
    }

    #[test]
    fn no_error_and_no_text_shows_a_password() {
        for text in [
            "postgres://app:hunter2@h/d",
            "postgres://app@h/d?password=hunter2",
            "postgres://app:hunter2@h/d?colour=red",
            "postgres://app:hunter2@h:port/d",
            "postgres:app:hunter2@h",
            "postgres://app:hunter2",
            "postgres://app:?hunter2=x@h/d",
            "postgres:hunter2=x",
            "postgres:host=h user=app password=hunter2 hunter2=x",
            "Postgres://app:hunter2@h/d",
            "pgsql://app:hunter2@h/d",
            "pgsql://app:hunter2",
            " postgres://app:hunter2@h/d",
            "jdbc:postgresql://h/d?user=app&password=hunter2",
            "JDBC:postgresql:d?PASSWORD=hunter2",
            "host=h user=app password=hunter2",
            "sqlite://app:hunter2@h/d",
            "sqlite:file:x?key=hunter2&password=hunter2",
            "app:hunter2@h/d",
        ] {
            assert!(!refusal(text).contains("hunter2"), "{text}: {}", refusal(text));
        }
        // what holds none is shown
        for text in ["feed.db", "sqllite:feed.db", "sqlite:feed.db?mode=ro", "mysql:"] {
            assert!(refusal(text).contains(text), "{text}: {}", refusal(text));
        }
        assert!(refusal("postgres://app:hunter2@h/d").contains("`store.password_file`"));
    }
}
