//! One token: a JWT (RFC 7519, 8725) that a key has signed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation, decode, decode_header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;

use super::key_set::Key;
use super::refusal::{MAX_TOKEN, Refusal};
use crate::config;

/// Longest `sub`, bytes (OpenID Connect Core, 2).
const MAX_SUBJECT: usize = 255;
/// The types of tokens that are for an API (RFC 9068, 2.1). Others, such as `logout+jwt`, have the same issuer.
const TYPES: [&str; 4] = ["jwt", "at+jwt", "application/jwt", "application/at+jwt"];
/// What a subject does not keep as it is in a header; everything that is not ASCII is escaped as well.
const ESCAPED: AsciiSet = CONTROLS.add(b' ').add(b'%');

/// What tokens must have.
#[derive(Debug)]
pub struct Rules {
    /// Without the algorithms, which a key adds.
    validation: Validation,
    leeway: Duration,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    scope: Option<String>,
    /// The scopes as Okta and Entra write them.
    scp: Option<Scp>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scp {
    Text(String),
    List(Vec<String>),
}

/// What a token says, once a key has verified it.
#[derive(Debug)]
pub struct Verified {
    /// The `sub`, as a header carries it.
    pub subject: HeaderValue,
    /// The user that the token belongs to, if its `sub` is the id of one.
    pub user_id: Option<i64>,
    scopes: Vec<String>,
    /// Seconds since 1970.
    exp: f64,
    nbf: Option<f64>,
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
    /// Takes the rules from the settings, which have an issuer and an audience.
    pub fn new(settings: &config::Http) -> Self {
        let mut validation = Validation::default();
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(settings.auth_issuer.as_slice());
        validation.set_audience(&settings.auth_audience);
        // the same rule has to hold for tokens that are remembered: see `Verified::check`
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        Self { validation, leeway: settings.auth_leeway }
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
        let claims: Claims = match decode(token, &key.key, &validation) {
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
        if !(1..=MAX_SUBJECT).contains(&claims.sub.len()) {
            return Err(Refusal::Claims);
        }
        Verified::new(claims)
    }

    /// Returns the time from which on a token is not valid any more, and that before which it is not valid yet.
    pub const fn leeway(&self) -> Duration {
        self.leeway
    }
}

impl Verified {
    fn new(claims: Claims) -> Result<Self, Refusal> {
        let subject: String = utf8_percent_encode(&claims.sub, &ESCAPED).collect();
        let mut subject = HeaderValue::from_str(&subject).map_err(|_| Refusal::Claims)?;
        subject.set_sensitive(true);
        // `+5` and `05` are not how an id is written
        let user_id = claims.sub.parse().ok().filter(|id: &i64| id.to_string() == claims.sub);
        let mut scopes = split(claims.scope.as_deref().unwrap_or_default());
        match claims.scp {
            Some(Scp::Text(text)) => scopes.extend(split(&text)),
            Some(Scp::List(list)) => scopes.extend(list),
            None => {}
        }
        Ok(Self { subject, user_id, scopes, exp: claims.exp, nbf: claims.nbf })
    }

    /// Returns true if it has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|given| given == scope)
    }

    /// Compares its times with `now`, since 1970.
    ///
    /// # Errors
    /// When it is not valid yet, or not any more.
    pub fn check(&self, now: Duration, leeway: Duration) -> Result<(), Refusal> {
        let (now, leeway) = (now.as_secs_f64(), leeway.as_secs_f64());
        // RFC 7519, 4.1.4: not on or after `exp`
        if now >= self.exp + leeway {
            return Err(Refusal::Expired);
        }
        if self.nbf.is_some_and(|nbf| now + leeway < nbf) {
            return Err(Refusal::NotYetValid);
        }
        Ok(())
    }
}

fn split(scopes: &str) -> Vec<String> {
    scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

/// Returns the time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn verified(claims: &Value) -> Result<Verified, Refusal> {
        let mut whole = json!({"iss": "i", "sub": "123", "exp": 1000});
        whole.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        Verified::new(serde_json::from_value(whole).unwrap())
    }

    #[test]
    fn a_token_counts_to_the_edge_of_the_leeway_and_not_beyond() {
        let token = verified(&json!({"nbf": 500})).unwrap();
        let (leeway, ms) = (Duration::from_secs(30), Duration::from_millis);
        for (now, want) in [
            (469_999, Err(Refusal::NotYetValid)),
            (470_000, Ok(())),
            (1_029_999, Ok(())),
            (1_030_000, Err(Refusal::Expired)),
        ] {
            assert_eq!(token.check(ms(now), leeway), want, "{now}");
        }
        assert_eq!(token.check(ms(499_999), Duration::ZERO), Err(Refusal::NotYetValid));
        assert_eq!(token.check(ms(999_999), Duration::ZERO), Ok(()));
        assert_eq!(token.check(ms(1_000_000), Duration::ZERO), Err(Refusal::Expired));
        // NumericDate may have a fraction, and no `nbf` is always
        let token = verified(&json!({"exp": 1000.5})).unwrap();
        assert_eq!(token.check(ms(1_000_499), Duration::ZERO), Ok(()));
        assert_eq!(token.check(ms(1_000_500), Duration::ZERO), Err(Refusal::Expired));
        assert_eq!(token.check(Duration::ZERO, Duration::ZERO), Ok(()));
        for exp in [-1.0, 0.0, -1e300] {
            assert_eq!(
                verified(&json!({"exp": exp})).unwrap().check(ms(1), Duration::ZERO),
                Err(Refusal::Expired)
            );
        }
    }

    #[test]
    fn a_user_is_an_id_as_it_is_written() {
        let user = |sub: &str| verified(&json!({"sub": sub})).unwrap().user_id;
        assert_eq!(
            [user("123"), user("9223372036854775807"), user("-5")],
            [Some(123), Some(i64::MAX), Some(-5)]
        );
        for other in
            ["+123", "0123", " 123", "123 ", "1e2", "123.0", "9223372036854775808", "\u{661}", "ada", "-0"]
        {
            assert_eq!(user(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_subject_fits_into_a_header() {
        for (sub, header) in [
            ("auth0|5f7c8ec7c33c6c004bbafe82", "auth0|5f7c8ec7c33c6c004bbafe82"),
            ("a b%\r\n\u{e9}", "a%20b%25%0D%0A%C3%A9"),
        ] {
            let token = verified(&json!({"sub": sub})).unwrap();
            assert_eq!(token.subject, header);
            assert!(token.subject.is_sensitive());
        }
    }

    #[test]
    fn scopes_are_read_in_the_forms_that_issuers_write() {
        for claims in [
            json!({"scope": "a b:c"}),
            json!({"scp": "b:c a"}),
            json!({"scp": ["a", "b:c"]}),
            json!({"scope": " a ", "scp": ["b:c"]}),
        ] {
            let token = verified(&claims).unwrap();
            assert!(token.has_scope("a") && token.has_scope("b:c"), "{claims}");
            assert!(!token.has_scope("b") && !token.has_scope("") && !token.has_scope("A"), "{claims}");
        }
        assert!(!verified(&json!({})).unwrap().has_scope("a"));
    }
}
