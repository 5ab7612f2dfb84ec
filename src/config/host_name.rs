//! The names of `http.hosts`.

use std::str::FromStr;

use super::shown::shown;
use super::value::by_text;

/// Longest name, bytes (RFC 1035).
const LONGEST: usize = 253;

/// The name of a host, in lower case: `api.example`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// The form of its text.
    pub const FORM: &str = "the name of a host in lower case, without a port";
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = String;

    /// Accepts what `Host` can be, without the port, so that nothing is set that no request can match.
    fn from_str(text: &str) -> Result<Self, String> {
        let part = |part: &str| {
            (1..=63).contains(&part.len())
                && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        };
        if text.len() <= LONGEST && text.split('.').all(part) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{}` is no name; want {}", shown(text), Self::FORM))
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(HostName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_no_port_and_no_pattern() {
        for name in ["api.example", "gateway", "a-b.c_d.example", "xn--bcher-kva.example", "1.example"] {
            assert_eq!(name.parse::<HostName>().unwrap().as_ref(), name);
        }
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            "API.example",
            "api.example.",
            "api.example:80",
            "*.example",
            "http://api.example",
            &long,
        ] {
            assert!(text.parse::<HostName>().unwrap_err().contains(HostName::FORM), "{text}");
        }
    }
}
