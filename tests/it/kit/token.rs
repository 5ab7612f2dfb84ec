//! An issuer of tokens: keys, key sets, and tokens that are right or wrong in one place.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::authority::replace;

pub const ISSUER: &str = "https://issuer.example/";
pub const AUDIENCE: &str = "microservice-app";

/// A key of the issuer.
pub struct Signer {
    pub kid: String,
    key: Key,
}

enum Key {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(Box<RsaKeyPair>),
}

impl Signer {
    pub fn es256(kid: &str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).expect("a key");
        Self { kid: kid.to_owned(), key: Key::Es256(key) }
    }

    pub fn eddsa(kid: &str) -> Self {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let key = Ed25519KeyPair::from_pkcs8(made.as_ref()).expect("a key");
        Self { kid: kid.to_owned(), key: Key::EdDsa(key) }
    }

    pub fn rs256(kid: &str) -> Self {
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .output()
            .expect("openssl is installed");
        let der = PrivatePkcs8KeyDer::from_pem_slice(&made.stdout).expect("a key");
        let key = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("a key");
        Self { kid: kid.to_owned(), key: Key::Rs256(Box::new(key)) }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Es256(_) => "ES256",
            Key::EdDsa(_) => "EdDSA",
            Key::Rs256(_) => "RS256",
        }
    }

    /// Returns the public key as a member of a key set.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Key::Es256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)})
            }
            Key::EdDsa(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key())}),
            Key::Rs256(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "n": base64url(public.n), "e": base64url(public.e)})
            }
        };
        jwk["kid"] = json!(self.kid);
        jwk["alg"] = json!(self.algorithm());
        jwk["use"] = json!("sig");
        jwk
    }

    /// Returns the head of its tokens.
    pub fn head(&self) -> Value {
        json!({"alg": self.algorithm(), "typ": "at+jwt", "kid": self.kid})
    }

    /// Returns a token of a user that is valid for ten minutes.
    pub fn token(&self, sub: &str) -> String {
        self.sign(&self.head(), &claims(sub))
    }

    /// Returns a token of this content.
    pub fn sign(&self, head: &Value, claims: &Value) -> String {
        self.sign_text(&head.to_string(), &claims.to_string())
    }

    /// Returns a token of this content, which may be no JSON.
    pub fn sign_text(&self, head: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64url(head), base64url(claims));
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Es256(key) => key.sign(&random, message.as_bytes()).expect("a signature").as_ref().to_vec(),
            Key::EdDsa(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            Key::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature)
                    .expect("a signature");
                signature
            }
        };
        format!("{message}.{}", base64url(signature))
    }
}

/// Returns the claims of a token that is valid for ten minutes.
pub fn claims(sub: &str) -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": sub, "exp": now() + 600, "iat": now()})
}

/// Returns a value with other members; `null` takes one out.
pub fn with(mut value: Value, members: &Value) -> Value {
    for (name, member) in members.as_object().expect("members") {
        if member.is_null() {
            value.as_object_mut().expect("an object").remove(name);
        } else {
            value[name.as_str()] = member.clone();
        }
    }
    value
}

/// Returns seconds since 1970.
pub fn now() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs().cast_signed()
}

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Replaces a key set.
pub fn publish(file: &Path, keys: &[&Signer]) {
    let keys: Vec<_> = keys.iter().map(|signer| signer.jwk()).collect();
    replace(file, &json!({"keys": keys}).to_string());
}

/// A directory with a key set in it.
pub struct KeyFile {
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl KeyFile {
    pub fn new(keys: &[&Signer]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("jwks.json");
        publish(&path, keys);
        Self { path, _dir: dir }
    }
}
