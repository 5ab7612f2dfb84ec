//! Names in certificates: of whom a certificate is, and whom a service answers.

use std::fmt;
use std::str::FromStr;

use super::role::Role;
use super::shown::shown;
use super::value::by_text;

/// How an identity of SPIFFE begins.
const SPIFFE: &str = "spiffe://";
/// How a DNS name begins where both kinds of names may stand.
const DNS: &str = "dns:";
/// Longest identity of SPIFFE, bytes (SPIFFE-ID, 2.3).
const MAX_SPIFFE: usize = 2048;
/// Longest name of a trust domain, bytes (SPIFFE-ID, 2.3); also that of a DNS name (RFC 1035, 2.3.4).
const MAX_DOMAIN: usize = 255;

/// The trust domain of a system: the host of its identities, `prod.example`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The form of its text.
    pub const FORM: &str = "a name of lower-case letters, digits, `.`, `-` and `_`";

    /// Returns the identity of a role in it.
    #[must_use]
    pub fn identity_of(&self, role: Role) -> Identity {
        Identity::Spiffe(format!("{SPIFFE}{}/{}", self.0, role.name()))
    }
}

impl FromStr for TrustDomain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if !text.is_empty() && text.len() <= MAX_DOMAIN && text.chars().all(fits) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{}` is no trust domain, want {}", shown(text), Self::FORM))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a certificate gives its holder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A URI name of SPIFFE, `spiffe://prod.example/feed`.
    Spiffe(String),
    /// A DNS name, without a wildcard.
    Dns(String),
}

impl Identity {
    /// The form of its text.
    pub const FORM: &str = "spiffe://domain/path or dns:name";

    /// Returns the identity of a URI name.
    ///
    /// # Errors
    /// What is wrong with it by the rules of SPIFFE.
    pub fn of_uri(uri: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` is no identity of SPIFFE: {why}", shown(uri));
        let rest = uri.strip_prefix(SPIFFE).ok_or_else(|| wrong("it does not begin with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| wrong("it has no path"))?;
        domain.parse::<TrustDomain>().map_err(|_| wrong("its trust domain is none"))?;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(fits);
        if uri.len() > MAX_SPIFFE || !path.split('/').all(segment) {
            return Err(wrong("its path is none"));
        }
        Ok(Self::Spiffe(uri.to_owned()))
    }

    /// Returns the identity of a DNS name; `None` for a pattern and for what is no name.
    #[must_use]
    pub fn of_dns(name: &str) -> Option<Self> {
        let label = |label: &str| {
            !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        let fits = name.len() <= MAX_DOMAIN && name.split('.').all(label);
        fits.then(|| Self::Dns(name.to_ascii_lowercase()))
    }

    /// Returns the trust domain of an identity of SPIFFE.
    #[must_use]
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        let Self::Spiffe(uri) = self else { return None };
        uri.strip_prefix(SPIFFE)?.split('/').next()?.parse().ok()
    }
}

impl FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix(DNS) {
            let identity = Self::of_dns(name);
            return identity.ok_or_else(|| format!("`{}` is no DNS name", shown(name)));
        }
        if text.starts_with(SPIFFE) {
            return Self::of_uri(text);
        }
        Err(format!("`{}` is no identity, want {}", shown(text), Self::FORM))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(uri) => f.write_str(uri),
            Self::Dns(name) => write!(f, "{DNS}{name}"),
        }
    }
}

/// One that a service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A role, by the identity that the system gives it.
    Role(Role),
    /// Anybody else.
    Identity(Identity),
}

impl Caller {
    /// The form of its text.
    pub const FORM: &str = "apigateway, feed, profile, topic, spiffe://domain/path or dns:name";
}

impl FromStr for Caller {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(role) = role_of(text) {
            return Ok(Self::Role(role));
        }
        let parsed = text.parse().map(Self::Identity);
        parsed.map_err(|_: String| format!("`{}` is no caller, want {}", shown(text), Self::FORM))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => f.write_str(role.name()),
            Self::Identity(identity) => identity.fmt(f),
        }
    }
}

/// A role whose certificate has another name than the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRole {
    /// The role.
    pub role: Role,
    /// The name in its certificate.
    pub identity: Identity,
}

impl NamedRole {
    /// The form of its text.
    pub const FORM: &str = "role=spiffe://domain/path or role=dns:name";
}

impl FromStr for NamedRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` names no role, want {}", shown(text), Self::FORM);
        let (role, identity) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self { role: role_of(role).ok_or_else(wrong)?, identity: identity.parse()? })
    }
}

impl fmt::Display for NamedRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.role.name(), self.identity)
    }
}

fn role_of(name: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|role| *role != Role::Up && role.name() == name)
}

by_text!(TrustDomain, Identity, Caller, NamedRole);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_of_spiffe_or_a_dns_name() {
        for text in ["spiffe://prod.example/feed", "spiffe://a/b/c-D_e.f", "dns:feed.prod.example"] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
        assert_eq!("dns:FEED.example".parse::<Identity>().unwrap(), Identity::Dns("feed.example".to_owned()));
        for text in [
            "",
            "feed",
            "dns:",
            "dns:*.example",
            "dns:a..b",
            "spiffe://",
            "spiffe://prod.example",
            "spiffe://prod.example/",
            "spiffe://prod.example/feed/",
            "spiffe://prod.example//feed",
            "spiffe://prod.example/../feed",
            "spiffe://Prod.example/feed",
            "spiffe://user@prod.example/feed",
            "spiffe://prod.example:80/feed",
            "spiffe://prod.example/feed?x",
            "spiffe://prod.example/f%65ed",
            "https://prod.example/feed",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
        assert!(format!("spiffe://a/{}", "b".repeat(MAX_SPIFFE)).parse::<Identity>().is_err());
    }

    #[test]
    fn a_role_has_an_identity_in_a_trust_domain() {
        let domain: TrustDomain = "prod.example".parse().unwrap();
        let feed = domain.identity_of(Role::Feed);
        assert_eq!(feed.to_string(), "spiffe://prod.example/feed");
        assert_eq!(feed.trust_domain(), Some(domain));
        assert!("".parse::<TrustDomain>().is_err() && "a/b".parse::<TrustDomain>().is_err());
    }

    #[test]
    fn callers_and_named_roles_are_read() {
        assert_eq!("profile".parse::<Caller>().unwrap(), Caller::Role(Role::Profile));
        let operator: Caller = "dns:operator.example".parse().unwrap();
        assert_eq!(operator.to_string(), "dns:operator.example");
        assert!("up".parse::<Caller>().is_err() && "gateway".parse::<Caller>().is_err());
        let named: NamedRole = "feed=dns:feed.example".parse().unwrap();
        assert_eq!((named.role, named.to_string().as_str()), (Role::Feed, "feed=dns:feed.example"));
        for text in ["feed", "feed=", "feed=feed", "up=dns:a", "=dns:a"] {
            assert!(text.parse::<NamedRole>().is_err(), "{text}");
        }
    }
}
