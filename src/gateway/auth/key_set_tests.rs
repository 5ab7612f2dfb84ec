use serde_json::json;

use super::*;

/// The key of RFC 7515, A.3.
fn p256() -> Value {
    json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"})
}

/// The key of RFC 8037, A.2.
fn ed25519() -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwaaPJHURdI"})
}

/// A key with a modulus of so many bytes, which is no product of two primes.
fn rsa(bytes: usize) -> Value {
    let base64 = "_".repeat(bytes * 4 / 3) + ["", "", "w"][bytes % 3];
    let base64 = if bytes % 3 == 1 { base64 + "w" } else { base64 };
    json!({"kty": "RSA", "n": base64, "e": "AQAB"})
}

fn with(mut key: Value, members: &Value) -> Value {
    key.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    key
}

fn read(keys: &[Value]) -> Result<KeySet, String> {
    KeySet::read(json!({"keys": keys}).to_string().as_bytes())
}

/// The algorithms of the keys that are used.
fn algorithms(keys: &[Value]) -> Vec<Algorithm> {
    read(keys).map(|set| set.keys.iter().map(|key| key.algorithm).collect()).unwrap_or_default()
}

#[test]
fn the_algorithm_comes_from_the_key() {
    use Algorithm::{ES256, EdDSA, RS256};
    assert_eq!(algorithms(&[p256(), ed25519(), rsa(256)]), [ES256, EdDSA, RS256]);
    for (key, members) in [
        (p256(), json!({"use": "sig", "alg": "ES256", "kid": "a"})),
        (ed25519(), json!({"alg": "EdDSA", "key_ops": ["verify"]})),
        (rsa(512), json!({"alg": "RS256", "x5t": "abc", "x-own": {"a": 1}})),
    ] {
        assert_eq!(algorithms(&[with(key.clone(), &members)]), algorithms(&[key]), "{members}");
    }
}

#[test]
fn keys_that_cannot_verify_are_ignored() {
    let bad = [
        with(p256(), &json!({"alg": "ES384"})),
        with(p256(), &json!({"alg": "RS256"})),
        with(p256(), &json!({"crv": "P-384"})),
        with(p256(), &json!({"crv": "secp256k1"})),
        with(p256(), &json!({"x": "AAAA"})),
        with(p256(), &json!({"y": null})),
        with(p256(), &json!({"use": "enc"})),
        with(ed25519(), &json!({"crv": "X25519"})),
        with(ed25519(), &json!({"x": "AAAA"})),
        with(rsa(256), &json!({"alg": "PS256"})),
        with(rsa(256), &json!({"alg": "HS256"})),
        with(rsa(256), &json!({"key_ops": ["encrypt"]})),
        with(rsa(256), &json!({"kid": "x".repeat(257)})),
        with(rsa(256), &json!({"e": ""})),
        rsa(255),
        rsa(1025),
        json!({"kty": "oct", "alg": "HS256"}),
        json!({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}),
        json!({"kty": "EC"}),
        json!({}),
        json!(7),
    ];
    for key in &bad {
        let set = read(std::slice::from_ref(key)).unwrap();
        assert_eq!((set.len(), set.ignored), (0, 1), "{key}");
    }
    let mut mixed = bad.to_vec();
    mixed.push(p256());
    let set = read(&mixed).unwrap();
    assert_eq!((set.len(), set.ignored), (1, bad.len()));
}

#[test]
fn zeros_before_the_modulus_are_left_out() {
    let Value::String(plain) = rsa(258)["n"].clone() else { panic!("a text") };
    let key = read(&[with(rsa(258), &json!({"n": format!("AAAA{plain}"), "e": "AAEAAQ"}))]).unwrap();
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.keys[0].decoding.kind() else {
        panic!("an RSA key")
    };
    assert_eq!((n.len(), e.as_slice()), (258, &[1, 0, 1][..]));
}

#[test]
fn a_file_that_cannot_be_used_says_why_and_shows_nothing() {
    let kid = json!({"kid": "a"});
    let twice = json!({"keys": [with(p256(), &kid), with(ed25519(), &kid)]});
    let private = json!({"keys": [p256(), with(ed25519(), &json!({"d": "hunter2"}))]});
    let shared = json!({"keys": [p256(), {"kty": "oct", "alg": "HS256", "k": "hunter2"}]});
    let many = json!({"keys": vec![p256(); 65]});
    for (text, why) in [
        ("", "is not JSON"),
        ("hunter2", "is not JSON"),
        ("{\"keys\": [", "is not JSON"),
        ("[]", "no list `keys`"),
        ("{}", "no list `keys`"),
        ("{\"keys\": {}}", "no list `keys`"),
        (&p256().to_string(), "no list `keys`"),
        (&twice.to_string(), "two keys with the same `kid`"),
        (&private.to_string(), "holds a private key"),
        (&shared.to_string(), "holds a private key"),
        (&many.to_string(), "over 64 keys"),
    ] {
        let error = KeySet::read(text.as_bytes()).unwrap_err();
        assert!(error.contains(why) && !error.contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn a_kid_is_that_key_alone_and_none_is_clear_only_with_one_key() {
    let named = |kid: &str| with(p256(), &json!({"kid": kid}));
    let find = |set: &KeySet, kid: Option<&str>| set.find(kid).map_or(Some("?".into()), |key| key.id.clone());
    let one = read(&[named("a")]).unwrap();
    assert_eq!(find(&one, Some("a")).as_deref(), Some("a"));
    assert_eq!(find(&one, None).as_deref(), Some("a"));
    assert_eq!(one.find(Some("b")).unwrap_err(), Refusal::UnknownKey);
    assert_eq!(one.find(Some("")).unwrap_err(), Refusal::UnknownKey);
    let two = read(&[named("a"), with(ed25519(), &json!({"kid": "b"}))]).unwrap();
    assert_eq!(find(&two, Some("b")).as_deref(), Some("b"));
    assert_eq!(two.find(None).unwrap_err(), Refusal::NoKeyNamed);
    let none = read(&[]).unwrap();
    for kid in [None, Some("a")] {
        assert_eq!(none.find(kid).unwrap_err(), Refusal::UnknownKey);
    }
    // a key without a name is no answer to a name
    let nameless = read(&[p256()]).unwrap();
    assert_eq!(nameless.find(Some("a")).unwrap_err(), Refusal::UnknownKey);
    assert_eq!(find(&nameless, None), None);
    assert_eq!(read(&[p256(), ed25519()]).unwrap().find(None).unwrap_err(), Refusal::NoKeyNamed);
}
