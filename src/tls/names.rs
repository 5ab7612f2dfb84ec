//! By which identity each role is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::leaf::Leaf;
use crate::config::{Caller, Identity, NamedRole, Role, TrustDomain};

/// The roles that have a certificate.
const ROLES: [Role; 4] = [Role::Apigateway, Role::Feed, Role::Profile, Role::Topic];

/// The identity of each role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(BTreeMap<&'static str, Identity>);

impl Names {
    /// Returns the identities of the roles: those of `named`, else those of the trust domain. Without one, that of the
    /// own certificate counts.
    ///
    /// # Errors
    /// When a role has no identity, because there is no trust domain either.
    pub fn new(domain: Option<&TrustDomain>, named: &[NamedRole], own: &Leaf) -> Result<Self, String> {
        let of_leaf = || own.identities().find_map(|identity| identity.trust_domain());
        let domain = domain.cloned().or_else(of_leaf);
        let identity = |role: Role| {
            let named =
                named.iter().rev().find(|named| named.role == role).map(|named| named.identity.clone());
            named.or_else(|| Some(domain.as_ref()?.identity_of(role)))
        };
        let all = ROLES.into_iter().map(|role| Some((role.name(), identity(role)?)));
        let all: Option<_> = all.collect();
        all.map(Self).ok_or_else(|| {
            format!("holds no URI name of SPIFFE ({own}): set `tls.trust_domain`, or name each role in `tls.names`")
        })
    }

    /// Returns the identity of a service.
    #[must_use]
    pub fn of_service(&self, name: &str) -> Option<&Identity> {
        self.0.get(name)
    }

    /// Returns the identities of callers.
    #[must_use]
    pub fn of_callers(&self, callers: &[Caller]) -> Arc<[Identity]> {
        let identity = |caller: &Caller| match caller {
            Caller::Role(role) => self.of_service(role.name()).cloned(),
            Caller::Identity(identity) => Some(identity.clone()),
        };
        callers.iter().filter_map(identity).collect()
    }
}
