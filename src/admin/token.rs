//! The token of the admin listener (`admin.token_file`): whoever asks for more than monitoring does has to show it.
//!
//! The token closes, it opens nothing: what is for callers on this host only stays so. It is asked of them as well, because
//! a proxy or a forwarded port on this host makes everybody a caller on this host.

use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, Request, StatusCode, header};
use prometheus::IntCounter;
use ring::hmac;
use ring::rand::SystemRandom;
use warp::reply::Response;

use super::origin::PROFILES;
use super::reply::text;
use crate::config::Admin;
use crate::credentials::follow::{Follower, Look};
use crate::credentials::{self, Source, Unusable};

/// Lengths of a token, bytes. Whoever can guess a shorter one needs no other way in.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;
/// What a program shows.
const BEARER: HeaderValue = HeaderValue::from_static("Bearer realm=\"microservice-app admin\"");
/// What a browser asks its user for: any name, and the token as the password.
const BASIC: HeaderValue =
    HeaderValue::from_static("Basic realm=\"microservice-app admin\", charset=\"UTF-8\"");

/// The token.
pub struct Token {
    file: Source,
    held: Mutex<Held>,
    refused: IntCounter,
}

struct Held {
    follower: Follower,
    hash: Hash,
}

/// A keyed hash of the token. Two hashes are compared in constant time, and tell nothing of the length.
struct Hash {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl Token {
    /// Reads the token; none without `admin.token_file`. `refused` counts who does not show it.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn open(settings: &Admin, refused: IntCounter) -> Result<Option<Self>, Unusable> {
        let Some(path) = &settings.token_file else { return Ok(None) };
        let file = Source::new("admin.token_file", path, credentials::directory().as_deref());
        let (follower, hash) = Follower::start([&file], || Hash::read(&file))?;
        Ok(Some(Self { file, held: Mutex::new(Held { follower, hash }), refused }))
    }

    /// Returns the answer to a request that has to show the token, if it does not.
    pub fn refuse<B>(&self, request: &Request<B>) -> Option<Response> {
        // a browser adds a password by itself, also to what a page of another site makes it ask for
        let has_effect = !request.method().is_safe() || request.uri().path().starts_with(PROFILES);
        if given(request).is_some_and(|given| (given.on_purpose || !has_effect) && self.is(&given.secret)) {
            return None;
        }
        self.refused.inc();
        let detail = "the token of admin.token_file is missing or wrong\n".to_owned();
        let mut response = text(StatusCode::UNAUTHORIZED, detail);
        let headers = response.headers_mut();
        headers.append(header::WWW_AUTHENTICATE, BEARER);
        if !has_effect && request.method() != Method::OPTIONS {
            headers.append(header::WWW_AUTHENTICATE, BASIC);
        }
        Some(response)
    }

    fn is(&self, secret: &[u8]) -> bool {
        let mut held = self.lock();
        match held.follower.look(false, || Hash::read(&self.file)) {
            Look::Unchanged | Look::Failed { news: false, .. } => {}
            Look::Read(hash) => {
                held.hash = hash;
                tracing::info!("the token of the admin listener was read again");
            }
            Look::Failed { error, news: true } => {
                tracing::error!(%error, "the token of the admin listener stays as it was");
            }
        }
        held.hash.is(secret)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hash {
    fn read(file: &Source) -> Result<Self, Unusable> {
        let token = file.password()?;
        if !LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let (least, most) = (LENGTH.start(), LENGTH.end());
            return Err(file.refuse(format_args!(
                "a token has {least} to {most} visible ASCII characters without blanks"
            )));
        }
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| file.refuse("the system gives no random numbers"))?;
        Ok(Self { tag: hmac::sign(&key, token.as_bytes()), key })
    }

    fn is(&self, secret: &[u8]) -> bool {
        hmac::verify(&self.key, secret, self.tag.as_ref()).is_ok()
    }
}

/// What a request shows.
struct Given {
    secret: Vec<u8>,
    /// False if a browser may have added it by itself.
    on_purpose: bool,
}

/// Returns what a request shows; nothing if it shows two things.
fn given<B>(request: &Request<B>) -> Option<Given> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
    let secret = secret.trim_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Given { secret: secret.into(), on_purpose: true });
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(secret).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(Given { secret: pair.get(colon + 1..)?.into(), on_purpose: false })
}
