//! Why a request is refused for want of a right, and what its caller is told (RFC 6750, 3).

use http::HeaderValue;

/// Longest token, bytes.
pub const MAX_TOKEN: usize = 8 * 1024;
/// Named in every challenge.
const REALM: &str = "microservice-app";

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no token.
    Missing,
    /// It has two tokens.
    Repeated,
    /// The token is no JWT.
    Malformed,
    /// The token is too long.
    TooLong,
    /// The token names no key, and there are several.
    NoKeyNamed,
    /// No key has the name that the token has.
    UnknownKey,
    /// The token has another algorithm than its key.
    Algorithm,
    /// The token is for another purpose, or asks for what is not understood.
    Purpose,
    /// The key does not verify the signature.
    Signature,
    /// A claim is missing or has a wrong form.
    Claims,
    /// It comes from another issuer.
    Issuer,
    /// It is for another audience.
    Audience,
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It lacks the scope.
    Scope,
    /// It belongs to another user.
    Owner,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::Missing,
        Self::Repeated,
        Self::Malformed,
        Self::TooLong,
        Self::NoKeyNamed,
        Self::UnknownKey,
        Self::Algorithm,
        Self::Purpose,
        Self::Signature,
        Self::Claims,
        Self::Issuer,
        Self::Audience,
        Self::Expired,
        Self::NotYetValid,
        Self::Scope,
        Self::Owner,
    ];

    /// Returns the value of the label `reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::NoKeyNamed => "no_key_named",
            Self::UnknownKey => "unknown_key",
            Self::Algorithm => "algorithm",
            Self::Purpose => "purpose",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Scope => "scope",
            Self::Owner => "owner",
        }
    }

    /// Returns what the caller is told.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Missing => "this operation needs a bearer token",
            Self::Repeated => "must be given once",
            Self::Malformed => "the token is no JWT",
            Self::TooLong => "the token is too long",
            Self::NoKeyNamed => "the token names no key (kid)",
            Self::UnknownKey => "the key of the token (kid) is not known",
            Self::Algorithm => "the token does not have the algorithm of its key",
            Self::Purpose => "the token is of a type that is not accepted here",
            Self::Signature => "the signature of the token is wrong",
            Self::Claims => "exp, iss, aud or sub of the token is missing or malformed",
            Self::Issuer => "the token is of another issuer",
            Self::Audience => "the token is for another audience",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::Scope => "the token lacks the scope of this operation",
            Self::Owner => "the token belongs to another user",
        }
    }

    /// Returns the value of `WWW-Authenticate`. `scope` is what the operation needs, if it needs one.
    #[must_use]
    pub fn challenge(self, scope: Option<&str>) -> HeaderValue {
        let error = match self {
            // RFC 6750, 3.1: no error for a request without a token
            Self::Missing => None,
            Self::Repeated => Some("invalid_request"),
            Self::Scope | Self::Owner => Some("insufficient_scope"),
            _ => Some("invalid_token"),
        };
        let mut text = format!("Bearer realm=\"{REALM}\"");
        if let Some(error) = error {
            text.extend([", error=\"", error, "\", error_description=\"", self.detail(), "\""]);
        }
        if let Some(scope) = scope {
            text.extend([", scope=\"", scope, "\""]);
        }
        // a scope is visible ASCII without quotes
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer"))
    }
}
