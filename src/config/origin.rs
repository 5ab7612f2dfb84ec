//! The origins of `http.cors_origins`.

use std::fmt;
use std::str::FromStr;

use http::Uri;

use super::shown::shown;
use super::value::by_text;

/// The origin of a page as its browser names it in the header `Origin`: `https://app.example`, `http://localhost:3000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// The form of its text.
    pub const FORM: &str =
        "an origin as browsers name it: http://host, https://host, with the port unless it is 80 or 443";

    /// Returns its text, which is equal to the header of a page of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = String;

    /// Accepts what a browser can send, so that nothing is set that no page can match.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` is no origin: {why}; want {}", shown(text), Self::FORM);
        if text == "*" || text == "null" {
            return Err(wrong("each origin is named"));
        }
        let uri: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong("it has no scheme or no host"));
        };
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(wrong("pages come by http or https")),
        };
        if authority.as_str().contains('@') {
            return Err(wrong("it must not contain a user or a password"));
        }
        if authority.host().is_empty() {
            return Err(wrong("it has no host"));
        }
        if authority.host().contains('*') {
            return Err(wrong("it has to be exact, without a pattern"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") | None => String::new(),
            // 0 and what is over 65535 are ports of no page
            Some(_) => match authority.port_u16() {
                Some(0) | None => return Err(wrong("its port is none")),
                Some(port) if port == default => return Err(wrong("browsers leave this port out")),
                Some(port) => format!(":{port}"),
            },
        };
        let origin = format!("{scheme}://{}{port}", authority.host().to_ascii_lowercase());
        if text == origin {
            return Ok(Self(origin));
        }
        Err(wrong(&format!("want {origin}")))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(Origin);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for text in
            ["https://app.example", "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:8080"]
        {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("*", "each origin is named"),
            ("null", "each origin is named"),
            ("app.example", "no scheme"),
            ("//app.example", "no scheme"),
            ("ftp://app.example", "http or https"),
            ("https://", "not a URL"),
            ("https://*.app.example", "without a pattern"),
            ("https://user@app.example", "user"),
            ("https://app.example/", "want https://app.example"),
            ("https://app.example/path", "want https://app.example"),
            ("https://app.example?x", "want https://app.example"),
            ("https://App.example", "want https://app.example"),
            ("https://app.example:443", "leave this port out"),
            ("http://app.example:80", "leave this port out"),
            ("http://app.example:080", "leave this port out"),
            ("http://app.example:03000", "want http://app.example:3000"),
            ("http://app.example:", "port"),
            ("http://app.example:0", "port"),
            ("http://app.example:70000", "its port is none"),
        ] {
            let error = text.parse::<Origin>().expect_err(text);
            // what may hold a password is not shown
            assert!(error.contains(why) && error.contains(text) != text.contains('@'), "{text}: {error}");
        }
    }
}
