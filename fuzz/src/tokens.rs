//! What callers show and issuers publish: bearer tokens and sets of keys.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};
use microservice_app::config::{Http, Role, Settings};
use microservice_app::gateway::{Auth, Metrics, Problem, ROUTES};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::app::{answer_of, block_on};

const ISSUER: &str = "https://issuer.example/";
const AUDIENCE: &str = "microservice-app";
/// The head of an honest token.
const HEAD: &[u8] = br#"{"alg":"EdDSA","typ":"JWT","kid":"a"}"#;

/// A value of `authorization`. After the byte `c` the data are the claims of a token that is signed well, after `h` its head
/// and, behind a line end, its claims, after `b` a token, after anything else the whole value.
pub fn bearer_token(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let (value, signed) = match kind {
        b'c' => (bearer(&signed(HEAD, data)), Some((HEAD, data))),
        b'h' => {
            let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
            let (head, claims) = (&data[..end], data.get(end + 1..).unwrap_or_default());
            (bearer(&signed(head, claims)), Some((head, claims)))
        }
        b'b' => ([b"Bearer ", data].concat(), None),
        _ => (data.to_vec(), None),
    };
    let Ok(value) = HeaderValue::from_bytes(&value) else { return };
    if !is_accepted(auth(), value) {
        return;
    }
    let (head, claims) = signed.expect("a token that nobody has signed is not valid");
    let [head, claims] = match [head, claims].map(serde_json::from_slice::<Value>) {
        [Ok(head), Ok(claims)] => [head, claims],
        [Err(wrong), _] | [_, Err(wrong)] => {
            // a member that nobody reads may hold a string that is no text, no more
            let wrong = wrong.to_string();
            assert!(["unicode", "surrogate", "escape"].iter().any(|known| wrong.contains(known)), "{wrong}");
            return;
        }
    };
    assert!(head["alg"] == "EdDSA" && head.get("crit").is_none_or(Value::is_null), "{head}");
    assert!(head.get("kid").is_none_or(|kid| kid == "a" || kid.is_null()), "{head}");
    assert_eq!(claims["iss"], ISSUER, "{claims}");
    let audience = claims["aud"].as_array().map_or(vec![&claims["aud"]], |all| all.iter().collect());
    assert!(audience.iter().any(|known| **known == AUDIENCE), "{claims}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
    // the leeway, and what this test may take
    assert!(claims["exp"].as_f64().is_some_and(|exp| exp > now - 100.0), "{claims}");
    assert!(claims["nbf"].as_f64().is_none_or(|nbf| nbf < now + 100.0), "{claims}");
    assert!(claims["sub"].as_str().is_some_and(|sub| (1..=255).contains(&sub.len())), "{claims}");
}

/// A file of keys, as an issuer publishes it. Whatever is in it, nothing that is not signed is a token.
pub fn key_set(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keys");
    std::fs::write(&file, data).expect("a file");
    let auth = match block_on(async { Auth::start(&settings(file), metrics()) }) {
        Ok(auth) => auth.expect("keys are set"),
        Err(unusable) => {
            let text = unusable.to_string();
            assert!(text.starts_with("`http.auth.jwks_file`: ") && text.len() < 512, "{text}");
            return;
        }
    };
    let set: Value = serde_json::from_slice(data).expect("what is used is JSON");
    let keys = set["keys"].as_array().expect("a list of keys");
    assert!(
        (1..=64).contains(&keys.len())
            && keys.iter().all(|key| key.get("d").is_none() && key.get("k").is_none()),
        "{set}"
    );
    let claims = claims("1");
    for algorithm in ["none", "HS256", "ES256", "EdDSA", "RS256"] {
        let head = json!({"alg": algorithm, "kid": keys[0]["kid"]}).to_string();
        for token in [unsigned(head.as_bytes(), &claims), signed(head.as_bytes(), &claims)] {
            let value = HeaderValue::from_bytes(&bearer(&token)).expect("base64");
            // the key with which it is signed may be in the file
            let own = keys.iter().any(|key| key["x"] == public());
            assert!(own || !is_accepted(&auth, value), "{token} by {set}");
        }
    }
}

/// Returns whether a token is valid. A refusal is a problem with a challenge of bounded length.
fn is_accepted(auth: &Auth, authorization: HeaderValue) -> bool {
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization)]);
    let route = ROUTES.iter().find(|route| route.name == "list_topics").expect("a route");
    let problem: Problem = match block_on(auth.check(route, &headers)) {
        Ok(caller) => {
            let caller = caller.expect("the route is not public");
            assert!(caller.subject.is_sensitive() && (1..=3 * 255).contains(&caller.subject.len()));
            return true;
        }
        Err(problem) => problem,
    };
    let (head, body) = answer_of(problem);
    let challenge = head[header::WWW_AUTHENTICATE].as_bytes().to_vec();
    assert!(challenge.starts_with(b"Bearer ") && challenge.len() < 512, "{challenge:?}");
    assert_eq!(body["status"], 401, "{body}");
    false
}

fn bearer(token: &str) -> Vec<u8> {
    format!("Bearer {token}").into_bytes()
}

fn claims(subject: &str) -> Vec<u8> {
    let claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": 4_000_000_000_u64});
    claims.to_string().into_bytes()
}

/// Returns a token without a signature.
fn unsigned(head: &[u8], claims: &[u8]) -> String {
    [head, claims, b""].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

/// Returns a token that the issuer's key has signed.
fn signed(head: &[u8], claims: &[u8]) -> String {
    let message = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = key().sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Returns the key of the issuer, the same in every run.
fn key() -> &'static Ed25519KeyPair {
    static KEY: OnceLock<Ed25519KeyPair> = OnceLock::new();
    KEY.get_or_init(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed"))
}

/// Returns its public part, as a set of keys has it.
fn public() -> String {
    URL_SAFE_NO_PAD.encode(key().public_key())
}

/// Returns what the gateway knows of that issuer.
fn auth() -> &'static Arc<Auth> {
    static AUTH: OnceLock<(Arc<Auth>, tempfile::TempDir)> = OnceLock::new();
    let (auth, _) = AUTH.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let set = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": public()}]});
        let file = dir.path().join("keys");
        std::fs::write(&file, set.to_string()).expect("a file");
        let auth = block_on(async { Auth::start(&settings(file), metrics()) });
        let auth = auth.expect("a set of keys").expect("keys are set");
        let honest = HeaderValue::from_bytes(&bearer(&signed(HEAD, &claims("1")))).expect("base64");
        assert!(is_accepted(&auth, honest), "an honest token is refused");
        (auth, dir)
    });
    auth
}

fn settings(file: PathBuf) -> Http {
    Http {
        auth_jwks_file: Some(file),
        auth_issuer: Some(ISSUER.to_owned()),
        auth_audience: vec![AUDIENCE.to_owned()],
        ..Settings::for_role(Role::Apigateway).http
    }
}

fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::register(&prometheus::Registry::new()).expect("metrics"))
}
