//! The public keys of the issuer, a JSON Web Key Set (RFC 7517), and the tokens that they have verified.
//!
//! The algorithm of a token comes from its key: P-256 verifies ES256, Ed25519 EdDSA, RSA RS256, and nothing else.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use lru::LruCache;
use serde_json::Value;

use super::refusal::Refusal;
use super::verified::Verified;

/// Members of a key that nobody but its owner may have: the private parts of pairs (RFC 7518, 6.2.2 and 6.3.2; `priv` of newer
/// kinds), and a key that both sides have. Whoever reads them can make tokens.
const SECRET: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "priv", "k"];
/// Most keys of a set. Issuers have two or three at a time.
const MAX_KEYS: usize = 64;
/// Longest `kid`, bytes.
const MAX_KID: usize = 256;
/// Lengths of RSA keys that are used, bytes: 2048 to 8192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Most verified tokens that are remembered. One takes less than 1 KiB, so 4 MiB are enough for all.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// One key.
#[derive(Debug)]
pub struct Key {
    id: Option<String>,
    /// What it verifies with.
    pub decoding: DecodingKey,
    /// The only algorithm that its tokens may have.
    pub algorithm: Algorithm,
}

/// The keys of one version of the file.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Keys in the file that are not used.
    pub ignored: usize,
    /// Tokens that these keys have verified: a key that leaves takes them along.
    verified: Mutex<LruCache<Digest, Arc<Verified>>>,
}

impl KeySet {
    /// Reads a set. Keys of other kinds than the three, and keys that are not for signatures, are ignored. A set without keys
    /// is one, too: that is how the last key is taken back.
    ///
    /// # Errors
    /// Why the file cannot be used; no part of it is shown.
    pub fn read(file: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(file).map_err(|_| "is not JSON".to_owned())?;
        let given = set.get("keys").and_then(Value::as_array);
        let given = given.ok_or_else(|| "has no list `keys`, so it is no JSON Web Key Set".to_owned())?;
        if given.len() > MAX_KEYS {
            return Err(format!("has over {MAX_KEYS} keys"));
        }
        if given.iter().any(|key| SECRET.iter().any(|part| key.get(part).is_some())) {
            return Err("holds a private key, which belongs to the issuer alone".to_owned());
        }
        let keys: Vec<_> = given.iter().filter_map(Key::read).collect();
        for (at, key) in keys.iter().enumerate() {
            if key.id.is_some() && keys.iter().take(at).any(|earlier| earlier.id == key.id) {
                return Err("has two keys with the same `kid`".to_owned());
            }
        }
        let ignored = given.len() - keys.len();
        Ok(Self { keys, ignored, verified: Mutex::new(LruCache::new(REMEMBERED)) })
    }

    /// Returns how many keys are used.
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns the key of a token: that with its `kid`. Without a `kid` it is clear only if there is no other key.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, id: Option<&str>) -> Result<&Key, Refusal> {
        match (id, self.keys.as_slice()) {
            (Some(id), keys) => {
                keys.iter().find(|key| key.id.as_deref() == Some(id)).ok_or(Refusal::UnknownKey)
            }
            (None, [only]) => Ok(only),
            (None, []) => Err(Refusal::UnknownKey),
            (None, _) => Err(Refusal::NoKeyNamed),
        }
    }

    /// Returns what is known of a token that was verified before.
    pub fn recall(&self, token: &Digest) -> Option<Arc<Verified>> {
        self.lock().get(token).cloned()
    }

    /// Remembers a verified token, in the place of the one that was used least recently.
    pub fn remember(&self, token: Digest, verified: Arc<Verified>) {
        self.lock().put(token, verified);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<Digest, Arc<Verified>>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Key {
    /// Returns a key if tokens can be verified with it.
    fn read(json: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json.clone()).ok()?;
        let common = &jwk.common;
        let for_signatures = common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature)
            && common.key_operations.as_ref().is_none_or(|of| of.contains(&KeyOperations::Verify));
        if !for_signatures || common.key_id.as_ref().is_some_and(|id| id.len() > MAX_KID) {
            return None;
        }
        let (algorithm, stated) = match &jwk.algorithm {
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(curve) if curve.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            // among them symmetric ones: who can verify with such a key can sign with it
            _ => return None,
        };
        if common.key_algorithm.is_some_and(|given| given != stated) {
            return None;
        }
        let decoding = sound(DecodingKey::from_jwk(&jwk).ok()?)?;
        Some(Self { id: common.key_id.clone(), decoding, algorithm })
    }
}

/// Returns a key if it has the form that its kind has to have.
fn sound(key: DecodingKey) -> Option<DecodingKey> {
    match key.kind() {
        // an uncompressed point of P-256, or 32 bytes of Ed25519
        DecodingKeyKind::SecretOrDer(bytes) => {
            (bytes.len() == 65 && bytes.first() == Some(&4) || bytes.len() == 32).then_some(key)
        }
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            // some issuers write them with zeros before, which ring refuses
            let (n, e) = (without_zeros(n), without_zeros(e));
            let fits = RSA_BYTES.contains(&n.len()) && (1..=5).contains(&e.len());
            fits.then(|| DecodingKey::from_rsa_raw_components(n, e))
        }
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
#[path = "key_set_tests.rs"]
mod tests;
