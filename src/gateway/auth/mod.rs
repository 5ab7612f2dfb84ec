//! Who may call: bearer tokens (RFC 6750) and the access that each route gives (`http.auth`). Nothing here runs unless
//! `http.auth.jwks_file` is set.
//!
//! A token is verified once and then remembered by its hash, with its times, for as long as its key is in use: a signature
//! costs about as much as the rest of a request.

mod key_set;
mod keys;
pub mod owner;
mod provider;
pub mod refusal;
mod token;
mod verified;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use tokio_util::task::AbortOnDropHandle;

use self::keys::Keys;
use self::owner::Owner;
use self::refusal::{MAX_TOKEN, Refusal};
use self::token::Rules;
use self::verified::Verified;
use super::metrics::{AuthMetrics, Metrics};
use super::problem::Problem;
use super::routes::{ROUTES, Route};
use crate::config::{Access, Http};
use crate::credentials::{self, Source, Unusable};

/// The access to the routes.
pub struct Auth {
    keys: Arc<Keys>,
    rules: Rules,
    /// The access to each route, in the order of [`ROUTES`].
    policy: Vec<Access>,
    metrics: Arc<AuthMetrics>,
    _follow: AbortOnDropHandle<()>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The `sub` of the token, as a header carries it.
    pub subject: HeaderValue,
    /// What is still to be checked once the request has been read.
    pub owner: Option<Owner>,
}

impl Auth {
    /// Reads the keys, and follows their file from then on; nothing without `http.auth.jwks_file`. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn start(settings: &Http, metrics: &Metrics) -> Result<Option<Arc<Self>>, Unusable> {
        let Some(path) = &settings.auth_jwks_file else { return Ok(None) };
        provider::install();
        let file = Source::new("http.auth.jwks_file", path, credentials::directory().as_deref());
        let metrics = metrics.auth();
        let keys = Arc::new(Keys::new(file, metrics.clone())?);
        let policy = ROUTES.iter().map(|route| {
            let rule = settings.auth_policy.iter().find(|rule| rule.operation == route.name);
            rule.map_or_else(|| route.access.clone(), |rule| rule.access.clone())
        });
        let policy: Vec<_> = policy.collect();
        Ok(Some(Arc::new(Self {
            rules: Rules::new(settings, &policy),
            policy,
            metrics,
            _follow: AbortOnDropHandle::new(tokio::spawn(keys.clone().follow())),
            keys,
        })))
    }

    /// Returns who may use a route.
    pub fn access(&self, route: &Route) -> &Access {
        let at = ROUTES.iter().position(|known| std::ptr::eq(known, route));
        // every route is in the table
        at.and_then(|at| self.policy.get(at)).unwrap_or(&Access::Token)
    }

    /// Decides whether a request for a route may go on, as far as its head tells. Returns who asks; nobody for a route
    /// that is public.
    ///
    /// # Errors
    /// 401 for a token that is missing or not valid, 403 for one without the right.
    pub async fn check(&self, route: &Route, headers: &HeaderMap) -> Result<Option<Caller>, Problem> {
        let access = self.access(route);
        let scope = match access {
            Access::Public => return Ok(None),
            Access::Scope(scope) => Some(scope.as_str()),
            Access::Token | Access::Owner => None,
        };
        let refuse = |refusal: Refusal| {
            self.metrics.refused(refusal);
            Problem::no_access(refusal, scope)
        };
        let token = bearer(headers).map_err(refuse)?;
        let verified = self.verify(token).await.map_err(refuse)?;
        if scope.is_some_and(|scope| !verified.has_scope(scope)) {
            return Err(refuse(Refusal::Scope));
        }
        let owner = (*access == Access::Owner).then(|| Owner::new(verified.user_id, self.metrics.clone()));
        Ok(Some(Caller { subject: verified.subject.clone(), owner }))
    }

    async fn verify(&self, token: &str) -> Result<Arc<Verified>, Refusal> {
        let leeway = self.rules.leeway();
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let digest = digest.as_ref().try_into().map_err(|_| Refusal::Malformed)?;
        let mut keys = self.keys.get();
        if let Some(known) = keys.recall(&digest) {
            return known.check(token::now(), leeway).map(|()| known);
        }
        let head = token::head(token)?;
        let id = head.kid.as_deref();
        if matches!(keys.find(id), Err(Refusal::UnknownKey)) {
            keys = self.keys.refreshed().await;
        }
        let verified = self.rules.verify(token, &head, keys.find(id)?)?;
        verified.check(token::now(), leeway)?;
        let verified = Arc::new(verified);
        keys.remember(digest, verified.clone());
        Ok(verified)
    }
}

/// Returns the token of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = given.next() else { return Err(Refusal::Missing) };
    if given.next().is_some() {
        return Err(Refusal::Repeated);
    }
    let text = value.to_str().map_err(|_| Refusal::Malformed)?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::Missing);
    }
    let token = token.trim_matches(' ');
    if token.len() > MAX_TOKEN {
        return Err(Refusal::TooLong);
    }
    Ok(token)
}
