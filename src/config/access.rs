//! The rules of `http.auth.policy`: who may use an operation of the API.

use std::fmt;
use std::str::FromStr;

use super::shown::shown;
use super::value::by_text;

/// Every operation of the API, and whether it has a `user_id`. A test compares them with the routes of the gateway.
pub const OPERATIONS: [(&str, bool); 8] = [
    ("create_feed", true),
    ("get_feeds", true),
    ("delete_feed", true),
    ("put_profile", true),
    ("get_profile", true),
    ("put_topic", false),
    ("get_topic", false),
    ("list_topics", false),
];

/// Longest name of a scope, bytes.
const MAX_SCOPE: usize = 128;

/// Who may use an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody. A token is not looked at.
    Public,
    /// Who has a valid token.
    Token,
    /// Whose token has the `user_id` of the request as its `sub`.
    Owner,
    /// Whose token has this scope.
    Scope(String),
}

/// The rule of one operation, `delete_feed=owner`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// One of [`OPERATIONS`].
    pub operation: &'static str,
    /// Who may use it.
    pub access: Access,
}

impl AccessRule {
    /// The form of its text.
    pub const FORM: &str = "operation=public, operation=token, operation=owner or operation=scope:NAME";
}

impl FromStr for AccessRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` is no rule: {why}; want {}", shown(text), Self::FORM);
        let (name, access) = text.split_once('=').ok_or_else(|| wrong("it has no `=`"))?;
        let (name, access) = (name.trim(), access.trim());
        let known = OPERATIONS.iter().find(|(known, _)| *known == name);
        let (operation, has_user) = known.ok_or_else(|| {
            let known: Vec<_> = OPERATIONS.iter().map(|(known, _)| *known).collect();
            wrong(&format!("the operations are {}", known.join(", ")))
        })?;
        let access = match (access, access.strip_prefix("scope:")) {
            ("public", _) => Access::Public,
            ("token", _) => Access::Token,
            ("owner", _) if *has_user => Access::Owner,
            ("owner", _) => return Err(wrong("a topic belongs to no user")),
            (_, Some(scope)) if is_scope(scope) => Access::Scope(scope.to_owned()),
            (_, Some(_)) => {
                return Err(wrong(
                    "a scope is 1 to 128 visible ASCII characters without quotes and backslashes",
                ));
            }
            _ => return Err(wrong("nobody is called so")),
        };
        Ok(Self { operation, access })
    }
}

/// `scope-token` of RFC 6749, 3.3.
fn is_scope(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    (1..=MAX_SCOPE).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public => f.write_str("public"),
            Self::Token => f.write_str("token"),
            Self::Owner => f.write_str("owner"),
            Self::Scope(scope) => write!(f, "scope:{scope}"),
        }
    }
}

impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.operation, self.access)
    }
}

by_text!(AccessRule);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_an_operation_and_who_may_use_it() {
        for text in
            ["get_feeds=public", "get_topic=token", "put_profile=owner", "put_topic=scope:topics.write"]
        {
            assert_eq!(text.parse::<AccessRule>().unwrap().to_string(), text);
        }
        assert_eq!(" get_feeds = public ".parse::<AccessRule>().unwrap().to_string(), "get_feeds=public");
        let long = format!("put_topic=scope:{}", "x".repeat(129));
        for (text, why) in [
            ("get_feeds", "no `=`"),
            ("", "no `=`"),
            ("nothing=token", "the operations are create_feed, "),
            ("/api/feed/get_feeds=token", "the operations are"),
            ("GET_FEEDS=token", "the operations are"),
            ("get_feeds=", "nobody"),
            ("get_feeds=Token", "nobody"),
            ("get_feeds=admin", "nobody"),
            ("put_topic=owner", "belongs to no user"),
            ("put_topic=scope:", "a scope is"),
            ("put_topic=scope:a b", "a scope is"),
            ("put_topic=scope:a\"b", "a scope is"),
            ("put_topic=scope:\u{e9}", "a scope is"),
            (long.as_str(), "a scope is"),
        ] {
            let error = text.parse::<AccessRule>().expect_err(text);
            assert!(error.contains(why) && error.contains(AccessRule::FORM), "{text}: {error}");
        }
    }
}
