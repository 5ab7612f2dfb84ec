//! Tokens that must open nothing.

use microservice_app::gateway::ROUTES;
use serde_json::{Value, json};

use super::{Secured, refusal};
use crate::kit::token::{AUDIENCE, ISSUER, Signer, base64url, claims, now, with};

/// Returns a token that is signed by HMAC with a text as its secret.
fn hs256(head: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = format!("{}.{}", base64url(head.to_string()), base64url(claims.to_string()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    format!("{message}.{}", base64url(ring::hmac::sign(&key, message.as_bytes())))
}

/// The token, with another signature.
fn signed_with(token: &str, signature: &[u8]) -> String {
    format!("{}.{}", token.rsplit_once('.').unwrap().0, base64url(signature))
}

struct Keys {
    es: Signer,
    ed: Signer,
    rs: Signer,
}

impl Keys {
    fn new() -> Self {
        Self { es: Signer::es256("es"), ed: Signer::eddsa("ed"), rs: Signer::rs256("rs") }
    }

    /// Tokens whose signature says nothing, and why each is refused.
    fn forged(&self) -> Vec<(&'static str, String, &'static str)> {
        let (es, ed, rs) = (&self.es, &self.ed, &self.rs);
        let stranger = Signer::es256("es");
        let good = es.token("123");
        let (claims, others) = (claims("123"), claims("1"));
        let head = |members: Value| with(es.head(), &members);
        let none = format!(
            "{}.{}.",
            base64url(head(json!({"alg": "none"})).to_string()),
            base64url(claims.to_string())
        );
        let mut forged = vec![
            ("alg none", none.clone(), "malformed"),
            ("alg none, signed", none + "AAAA", "malformed"),
            ("a stranger's key with our kid", stranger.token("123"), "signature"),
            (
                "the stranger's key in the head",
                stranger.sign(&head(json!({"jwk": stranger.jwk()})), &claims),
                "signature",
            ),
            (
                "a URL of keys in the head",
                stranger.sign(&head(json!({"jku": "http://127.0.0.1:1/"})), &claims),
                "signature",
            ),
            ("another kid", es.sign(&head(json!({"kid": "ed"})), &claims), "algorithm"),
            ("an unknown kid", es.sign(&head(json!({"kid": "../../es"})), &claims), "unknown_key"),
            ("an empty kid", es.sign(&head(json!({"kid": ""})), &claims), "unknown_key"),
            ("no kid", es.sign(&head(json!({"kid": null})), &claims), "no_key_named"),
            ("a kid that is a number", es.sign(&head(json!({"kid": 1})), &claims), "malformed"),
            ("EdDSA by an RSA kid", ed.sign(&with(ed.head(), &json!({"kid": "rs"})), &claims), "algorithm"),
            ("RS256 said, P-256 key", es.sign(&head(json!({"alg": "RS256"})), &claims), "algorithm"),
            ("PS256 said", rs.sign(&with(rs.head(), &json!({"alg": "PS256"})), &claims), "algorithm"),
            ("RS512 said", rs.sign(&with(rs.head(), &json!({"alg": "RS512"})), &claims), "algorithm"),
            ("zeros", signed_with(&good, &[0; 64]), "signature"),
            ("no signature", signed_with(&good, &[]), "signature"),
            ("half a signature", signed_with(&good, &[1; 32]), "signature"),
            ("a DER signature", signed_with(&good, &[0x30, 6, 2, 1, 1, 2, 1, 1]), "signature"),
            (
                "other claims",
                {
                    let parts: Vec<_> = good.split('.').collect();
                    format!("{}.{}.{}", parts[0], base64url(others.to_string()), parts[2])
                },
                "signature",
            ),
        ];
        // the public key as the secret of HMAC, in the forms in which people have it
        for key in [es, rs] {
            let jwk = key.jwk();
            let secrets = [jwk.to_string(), jwk["x"].to_string(), jwk["n"].to_string(), String::new()];
            for secret in secrets {
                let head = with(key.head(), &json!({"alg": "HS256"}));
                forged.push((
                    "HS256 with a public key",
                    hs256(&head, &claims, secret.as_bytes()),
                    "algorithm",
                ));
            }
        }
        forged
    }

    /// Tokens of the right key for something else.
    fn unfit(&self) -> Vec<(&'static str, String, &'static str)> {
        let es = &self.es;
        let head = |members: Value| es.sign(&with(es.head(), &members), &claims("123"));
        let body = |members: Value| es.sign(&es.head(), &with(claims("123"), &members));
        let (past, future) = (now() - 40, now() + 3600);
        let good = es.token("123");
        vec![
            ("typ of a logout token", head(json!({"typ": "logout+jwt"})), "purpose"),
            ("typ of a DPoP proof", head(json!({"typ": "dpop+jwt"})), "purpose"),
            ("crit", head(json!({"crit": ["exp"], "exp": 1})), "purpose"),
            ("b64", head(json!({"crit": ["b64"], "b64": false})), "purpose"),
            ("an empty crit", head(json!({"crit": []})), "purpose"),
            ("expired", body(json!({"exp": past})), "expired"),
            ("exp of 1970", body(json!({"exp": 0})), "expired"),
            ("no exp", body(json!({"exp": null})), "claims"),
            ("exp as text", body(json!({"exp": future.to_string()})), "claims"),
            ("exp as a word", body(json!({"exp": "never"})), "claims"),
            ("exp as a list", body(json!({"exp": [future]})), "claims"),
            ("a negative exp", body(json!({"exp": -1})), "claims"),
            ("not yet", body(json!({"nbf": future})), "not_yet_valid"),
            ("nbf as text", body(json!({"nbf": future.to_string()})), "claims"),
            ("nbf as a list", body(json!({"nbf": [0]})), "claims"),
            ("no iss", body(json!({"iss": null})), "claims"),
            ("another iss", body(json!({"iss": "https://evil.example/"})), "issuer"),
            ("iss without its slash", body(json!({"iss": ISSUER.trim_end_matches('/')})), "issuer"),
            ("two iss", body(json!({"iss": ["https://evil.example/", ISSUER]})), "claims"),
            ("no aud", body(json!({"aud": null})), "claims"),
            ("another aud", body(json!({"aud": "other"})), "audience"),
            ("other auds", body(json!({"aud": ["a", "b"]})), "audience"),
            ("aud in part", body(json!({"aud": format!("{AUDIENCE}-2")})), "audience"),
            ("no auds", body(json!({"aud": []})), "audience"),
            ("aud as a number", body(json!({"aud": 1})), "claims"),
            ("no sub", body(json!({"sub": null})), "claims"),
            ("an empty sub", body(json!({"sub": ""})), "claims"),
            ("sub as a number", body(json!({"sub": 123})), "claims"),
            ("a long sub", body(json!({"sub": "x".repeat(256)})), "claims"),
            (
                "exp twice",
                es.sign_text(
                    &es.head().to_string(),
                    &format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"123","exp":0,"exp":{future}}}"#),
                ),
                "claims",
            ),
            (
                "sub twice",
                es.sign_text(
                    &es.head().to_string(),
                    &format!(
                        r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"1","sub":"123","exp":{future}}}"#
                    ),
                ),
                "claims",
            ),
            ("claims that are no object", es.sign_text(&es.head().to_string(), "[]"), "claims"),
            ("claims that are no JSON", es.sign_text(&es.head().to_string(), "{"), "claims"),
            ("a head that is no JSON", es.sign_text("{", "{}"), "malformed"),
            (
                "alg twice",
                es.sign_text(r#"{"alg":"none","alg":"ES256","kid":"es"}"#, &claims("123").to_string()),
                "malformed",
            ),
            ("no alg", es.sign_text(r#"{"kid":"es"}"#, &claims("123").to_string()), "malformed"),
            ("two parts", good.rsplit_once('.').unwrap().0.to_owned(), "malformed"),
            ("four parts", format!("{good}.x"), "malformed"),
            ("five parts", format!("{good}.x.y"), "malformed"),
            ("padding", format!("{good}="), "malformed"),
            ("nothing", String::new(), "malformed"),
            ("dots", "..".to_owned(), "malformed"),
            ("a blank inside", good.replacen('.', " .", 1), "malformed"),
            ("too long", body(json!({"pad": "x".repeat(8192)})), "too_long"),
            ("far too long", "x".repeat(60_000), "too_long"),
        ]
    }
}

#[tokio::test]
async fn a_token_that_is_wrong_in_one_place_opens_nothing() {
    let keys = Keys::new();
    let secured = Secured::start(&[&keys.es, &keys.ed, &keys.rs], |_| {}).await;
    for good in [&keys.es, &keys.ed, &keys.rs] {
        assert_eq!(secured.list(&good.token("123")).await.status, 200, "{}", good.kid);
    }
    for aud in [json!(AUDIENCE), json!(["x", AUDIENCE]), json!("another")] {
        let token = keys.es.sign(&keys.es.head(), &with(claims("123"), &json!({"aud": aud})));
        assert_eq!(secured.list(&token).await.status, 200, "{aud}");
    }
    for typ in [json!(null), json!("JWT"), json!("AT+JWT"), json!("application/at+jwt")] {
        let token = keys.es.sign(&with(keys.es.head(), &json!({"typ": typ})), &claims("123"));
        assert_eq!(secured.list(&token).await.status, 200, "{typ}");
    }
    for (what, token, reason) in keys.forged().into_iter().chain(keys.unfit()) {
        let before = secured.refused(reason).await;
        // twice: what was refused is not remembered as good
        for _ in 0..2 {
            let answer = secured.list(&token).await;
            let (status, kind, challenge) = refusal(&answer);
            assert_eq!((status, kind.as_str()), (401, "unauthorized"), "{what}");
            assert!(
                challenge.contains("error=\"invalid_token\", error_description=\""),
                "{what}: {challenge}"
            );
            // nothing of the token comes back
            assert!(
                !answer.body.contains("eyJ") && !answer.body.contains("issuer.example"),
                "{what}: {answer:?}"
            );
        }
        let counted = secured.refused(reason).await - before;
        assert!((counted - 2.0).abs() < f64::EPSILON, "{what}: {counted} of {reason}");
    }
    // after all that, what is right is right
    assert_eq!(secured.list(&keys.ed.token("9")).await.status, 200);
}

#[tokio::test]
async fn a_token_comes_in_its_header_and_once() {
    let key = Signer::eddsa("a");
    let secured = Secured::start(&[&key], |_| {}).await;
    let (path, token) = ("/api/topic/list", key.token("123"));
    let bearer = format!("Bearer {token}");
    for scheme in ["bearer", "BEARER"] {
        assert_eq!(secured.ask("GET", path, "", &[&format!("{scheme} {token}")]).await.status, 200);
    }
    assert_eq!(secured.ask("GET", path, "", &[&format!("Bearer   {token}")]).await.status, 200);
    for authorization in [&[&bearer[..], &bearer], &[&bearer, "Bearer x"], &["Basic eDp5", &bearer]] {
        let answer = secured.ask("GET", path, "", authorization).await;
        let (status, kind, challenge) = refusal(&answer);
        assert_eq!(
            (status, kind.as_str(), answer.json()["field"].as_str()),
            (400, "bad_request", Some("authorization"))
        );
        assert!(challenge.contains("error=\"invalid_request\""), "{challenge}");
    }
    let basic = format!("Basic {token}");
    for other in [&basic[..], &token, "", "Bearertoken", "Digest username=x", "\u{e9}"] {
        let (status, _, challenge) = refusal(&secured.ask("GET", path, "", &[other]).await);
        assert_eq!(status, 401, "{other}");
        assert!(!challenge.contains("error=") || other == "\u{e9}", "{other}: {challenge}");
    }
    // elsewhere it is an unknown parameter, and its value is not shown
    let query = secured.ask("GET", &format!("{path}?access_token={token}"), "", &[&bearer]).await;
    assert_eq!((query.status.as_u16(), query.json()["field"].as_str()), (400, Some("access_token")));
    assert!(!query.body.contains("eyJ"));
    // a body is not read for a caller without a token
    let large = "x".repeat(200_000);
    for route in ROUTES.iter().filter(|route| route.method == http::Method::PUT) {
        assert_eq!(secured.ask("PUT", route.path, &large, &[]).await.status, 401, "{}", route.path);
    }
}
