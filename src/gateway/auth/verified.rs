//! What a token says, once a key has verified it, and until when.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;

use super::refusal::Refusal;

/// Longest `sub`, bytes (OpenID Connect Core, 2).
const MAX_SUBJECT: usize = 255;
/// What a subject does not keep as it is in a header; everything that is not ASCII is escaped as well.
const ESCAPED: AsciiSet = CONTROLS.add(b' ').add(b'%');

/// The claims that are read, beside `aud`.
#[derive(Deserialize)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
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
    /// Those of its scopes that a policy names. The others may be long, and decide nothing.
    scopes: Vec<Arc<str>>,
    /// Seconds since 1970.
    exp: f64,
    nbf: Option<f64>,
}

impl Verified {
    /// Takes the claims of a token. Of its scopes those are kept that are `known`.
    ///
    /// # Errors
    /// When its `sub` is empty or too long.
    pub fn new(claims: &Claims, known: &[Arc<str>]) -> Result<Self, Refusal> {
        if !(1..=MAX_SUBJECT).contains(&claims.sub.len()) {
            return Err(Refusal::Claims);
        }
        let subject: String = utf8_percent_encode(&claims.sub, &ESCAPED).collect();
        let mut subject = HeaderValue::from_str(&subject).map_err(|_| Refusal::Claims)?;
        subject.set_sensitive(true);
        // `+5` and `05` are not how an id is written
        let user_id = claims.sub.parse().ok().filter(|id: &i64| id.to_string() == claims.sub);
        let given = |scope: &str| {
            let among = |list: &str| list.split(' ').any(|given| given == scope);
            claims.scope.as_deref().is_some_and(among)
                || match &claims.scp {
                    Some(Scp::Text(text)) => among(text),
                    Some(Scp::List(list)) => list.iter().any(|given| given == scope),
                    None => false,
                }
        };
        let scopes = known.iter().filter(|scope| given(scope)).cloned().collect();
        Ok(Self { subject, user_id, scopes, exp: claims.exp, nbf: claims.nbf })
    }

    /// Returns true if it has this scope, which a policy names.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|given| **given == *scope)
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The scopes of a policy.
    fn known() -> [Arc<str>; 4] {
        ["a", "b:c", "b", "A"].map(Arc::from)
    }

    fn verified(claims: &Value) -> Result<Verified, Refusal> {
        let mut whole = json!({"iss": "i", "sub": "123", "exp": 1000});
        whole.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        Verified::new(&serde_json::from_value(whole).unwrap(), &known())
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

    /// 4096 tokens are remembered, and the issuer decides what is in them.
    #[test]
    fn what_is_remembered_of_a_token_is_bounded() {
        let many: Vec<_> = (0..1000).map(|n| format!("scope-{n}")).chain(["a".to_owned()]).collect();
        let token = verified(&json!({"sub": "\u{e9}".repeat(127), "scope": "x".repeat(4000), "scp": many}));
        let token = token.unwrap();
        assert!(token.has_scope("a") && !token.has_scope("scope-7"));
        let bytes = size_of_val(&token) + token.subject.len() + size_of_val(token.scopes.as_slice());
        assert!(token.subject.len() == 762 && bytes < 1024, "{bytes}");
    }
}
