//! The value type of settings that name a page for people.

use std::fmt;
use std::str::FromStr;

use http::Uri;

use super::shown::shown;
use super::value::by_text;

/// The address of a page for people: `http://host[:port][/path]`, or with https.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    text: String,
    origin: String,
}

impl Link {
    /// The form of its text.
    pub const FORM: &str = "http://host[:port][/path] or https://host[:port][/path]";

    /// Returns the address of a page below it; `path` begins with `/`.
    #[must_use]
    pub fn below(&self, path: &str) -> String {
        format!("{}{path}", self.text.trim_end_matches('/'))
    }

    /// Returns its scheme, host and port.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` is not a link: {why}; want {}", shown(text), Self::FORM);
        let uri: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        let origin = match (uri.scheme_str(), uri.authority()) {
            (Some(_), Some(host)) if host.as_str().contains('@') => {
                return Err(wrong("it must not contain a user or a password"));
            }
            (Some(scheme @ ("http" | "https")), Some(host)) if !host.host().is_empty() => {
                format!("{scheme}://{host}")
            }
            _ => return Err(wrong("it is not a URL of http or https")),
        };
        if uri.query().is_some() {
            return Err(wrong("it must not contain a query"));
        }
        Ok(Self { text: text.to_owned(), origin })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

by_text!(Link);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_http_and_holds_no_password() {
        let link: Link = "https://grafana.example:3000/d/msa/".parse().unwrap();
        assert_eq!(
            (link.origin(), link.to_string().as_str()),
            ("https://grafana.example:3000", "https://grafana.example:3000/d/msa/")
        );
        assert_eq!(link.below("/x"), "https://grafana.example:3000/d/msa/x");
        for wrong in [
            "",
            "grafana",
            "grafana.example:3000",
            "ftp://h/",
            "http://",
            "javascript:alert(1)",
            "http://u:p@h/",
            "http://h/?q=1",
        ] {
            let error = wrong.parse::<Link>().unwrap_err();
            assert!(error.contains("want http://host") && !error.contains("u:p"), "{wrong}: {error}");
        }
    }
}
