//! One token: a JWT (RFC 7519, 8725) that a key has signed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation, decode, decode_header};

use super::key_set::Key;
use super::refusal::{MAX_TOKEN, Refusal};
use super::verified::{Claims, Verified};
use crate::config::{self, Access};

/// The types of tokens that are for an API (RFC 9068, 2.1). Others, such as `logout+jwt`, have the same issuer.
const TYPES: [&str; 4] = ["jwt", "at+jwt", "application/jwt", "application/at+jwt"];

/// What tokens must have.
#[derive(Debug)]
pub struct Rules {
    /// Without the algorithms, which a key adds.
    validation: Validation,
    leeway: Duration,
    /// The scopes that the policy names.
    scopes: Vec<Arc<str>>,
}

/// Reads the head of a token. Nothing in it is believed; it says which key to try.
///
/// # Errors
/// When it is not the head of a JWT, or of one that is for something else.
pub fn head(token: &str) -> Result<Header, Refusal> {
    if token.len() > MAX_TOKEN {
        return Err(Refusal::TooLong);
    }
    let head = decode_header(token).map_err(|_| Refusal::Malformed)?;
    let typed = head.typ.as_ref().is_none_or(|given| TYPES.iter().any(|typ| typ.eq_ignore_ascii_case(given)));
    // `crit`: who does not understand it must not accept the token (RFC 7515, 4.1.11), and nothing is understood
    if !typed || head.crit.is_some() {
        return Err(Refusal::Purpose);
    }
    Ok(head)
}

impl Rules {
    /// Takes the rules from the settings, which have an issuer and an audience, and from the access to the routes.
    pub fn new(settings: &config::Http, policy: &[Access]) -> Self {
        let mut validation = Validation::default();
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(settings.auth_issuer.as_slice());
        validation.set_audience(&settings.auth_audience);
        // the same rule has to hold for tokens that are remembered: see `Verified::check`
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let scope = |access: &Access| match access {
            Access::Scope(scope) => Some(scope.as_str().into()),
            Access::Public | Access::Token | Access::Owner => None,
        };
        let scopes = policy.iter().filter_map(scope).collect();
        Self { validation, leeway: settings.auth_leeway, scopes }
    }

    /// Verifies a token with its key. The times are not compared, see [`Verified::check`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, token: &str, head: &Header, key: &Key) -> Result<Verified, Refusal> {
        if head.alg != key.algorithm {
            return Err(Refusal::Algorithm);
        }
        let validation = Validation { algorithms: vec![key.algorithm], ..self.validation.clone() };
        let claims: Claims = match decode(token, &key.decoding, &validation) {
            Ok(decoded) => decoded.claims,
            Err(error) => {
                return Err(match error.kind() {
                    ErrorKind::InvalidSignature => Refusal::Signature,
                    ErrorKind::InvalidIssuer => Refusal::Issuer,
                    ErrorKind::InvalidAudience => Refusal::Audience,
                    ErrorKind::InvalidAlgorithm => Refusal::Algorithm,
                    ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) => Refusal::Claims,
                    _ => Refusal::Malformed,
                });
            }
        };
        // the library takes a list that has the issuer among others
        if self.validation.iss.as_ref().is_none_or(|known| !known.contains(&claims.iss)) {
            return Err(Refusal::Issuer);
        }
        Verified::new(&claims, &self.scopes)
    }

    /// Returns by how much the clocks of the issuer and of this host may differ.
    pub const fn leeway(&self) -> Duration {
        self.leeway
    }
}

/// Returns the time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
