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
    /// When a role has no identity, because there is no trust domain either, or one that calls others shares its own.
    pub fn new(domain: Option<&TrustDomain>, named: &[NamedRole], own: &Leaf) -> Result<Self, String> {
        let of_leaf = || own.identities().find_map(|identity| identity.trust_domain());
        let domain = domain.cloned().or_else(of_leaf);
        let identity = |role: Role| {
            let named = named.iter().find(|named| named.role == role).map(|named| named.identity.clone());
            named.or_else(|| Some(domain.as_ref()?.identity_of(role)))
        };
        let all = ROLES.into_iter().map(|role| Some((role.name(), identity(role)?)));
        let all: Option<BTreeMap<_, _>> = all.collect();
        let all = all.ok_or_else(|| {
            format!("holds no URI name of SPIFFE ({own}): set `tls.trust_domain`, or name each role in `tls.names`")
        })?;
        // a service that is taken over must not call others as the gateway or as profile
        for caller in ROLES.into_iter().filter(|role| role.calls_services()) {
            let (caller, name) = (caller.name(), &all[caller.name()]);
            if let Some((other, _)) = all.iter().find(|(role, other)| **role != caller && *other == name) {
                return Err(format!(
                    "cannot be that of a role that calls others: `tls.names` makes {name} both {caller} and {other}"
                ));
            }
        }
        Ok(Self(all))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf() -> Leaf {
        let params = rcgen::CertificateParams::new(vec!["app.example".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        Leaf::read(params.self_signed(&key).unwrap().der()).unwrap()
    }

    fn names(domain: Option<&str>, named: &[&str]) -> Result<Names, String> {
        let domain = domain.map(|domain| domain.parse().unwrap());
        let named: Vec<_> = named.iter().map(|named| named.parse().unwrap()).collect();
        Names::new(domain.as_ref(), &named, &leaf())
    }

    #[test]
    fn a_role_that_calls_others_has_a_name_of_its_own() {
        let names = |named: &[&str]| names(Some("prod"), named).map(|_| ());
        assert_eq!(names(&[]), Ok(()));
        assert_eq!(names(&["feed=dns:app.example", "topic=dns:app.example"]), Ok(()));
        for named in [
            ["apigateway=dns:app.example", "topic=dns:app.example"].as_slice(),
            &["profile=dns:app.example", "apigateway=dns:app.example"],
            &["topic=spiffe://prod/profile"],
        ] {
            let error = names(named).unwrap_err();
            assert!(error.contains("cannot be that of a role that calls others"), "{error}");
        }
    }

    #[test]
    fn each_role_needs_a_name() {
        let error = names(None, &["feed=dns:app.example"]).unwrap_err();
        assert!(error.contains("set `tls.trust_domain`, or name each role in `tls.names`"), "{error}");
    }
}
