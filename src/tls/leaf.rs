//! What a certificate says of its holder: names, validity, and what its key is for.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

use crate::config::Identity;

/// Most names of a certificate between the parts of the system. They are compared one by one.
const MAX_NAMES: usize = 100;

/// The time in which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its begin.
    pub from: SystemTime,
    /// Its end.
    pub to: SystemTime,
}

/// What a certificate says of its holder.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Its URI names.
    uris: Vec<String>,
    /// Its DNS names.
    dns: Vec<String>,
    /// When it is valid.
    pub period: Period,
    authority: bool,
    usage: Option<KeyUsage>,
    /// What it may be shown for; everything if it does not say.
    purposes: Option<Vec<ObjectIdentifier>>,
}

/// Why a certificate is none of a holder by the rules of SPIFFE (X509-SVID, 4 and 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Malformed,
    /// It is that of an authority.
    #[error("the certificate is an authority's (cA)")]
    Authority,
    /// Its key may sign certificates or lists of revoked ones.
    #[error("the certificate's key may sign certificates (keyCertSign or cRLSign)")]
    Signs,
    /// Its key may not sign a handshake.
    #[error("the certificate lacks the key usage digitalSignature")]
    NoSignature,
    /// It names several holders.
    #[error("the certificate has more than one URI name")]
    Ambiguous,
    /// It has more names than anybody compares.
    #[error("the certificate has more than {MAX_NAMES} names")]
    Names,
    /// It is not for those who call.
    #[error("the certificate has extended key usages, and clientAuth is not among them")]
    NotForClients,
    /// It is not for those who are called.
    #[error("the certificate has extended key usages, and serverAuth is not among them")]
    NotForServers,
}

impl Leaf {
    /// Reads a certificate. What it says is not believed before its chain was verified.
    ///
    /// # Errors
    /// [`Fault::Malformed`].
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, Fault> {
        let read = Certificate::from_der(certificate).map_err(|_| Fault::Malformed)?.tbs_certificate;
        let names = read.get::<SubjectAltName>().map_err(|_| Fault::Malformed)?;
        let (mut uris, mut dns) = (Vec::new(), Vec::new());
        let names = names.map(|(_, SubjectAltName(names))| names).unwrap_or_default();
        for name in names {
            match name {
                GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.to_string()),
                GeneralName::DnsName(name) => dns.push(name.to_string()),
                _ => {}
            }
        }
        let authority = read.get::<BasicConstraints>().map_err(|_| Fault::Malformed)?;
        let usage = read.get::<KeyUsage>().map_err(|_| Fault::Malformed)?;
        let purposes = read.get::<ExtendedKeyUsage>().map_err(|_| Fault::Malformed)?;
        let time = |time: x509_cert::time::Time| UNIX_EPOCH.checked_add(time.to_unix_duration());
        Ok(Self {
            uris,
            dns,
            period: Period {
                from: time(read.validity.not_before).ok_or(Fault::Malformed)?,
                to: time(read.validity.not_after).ok_or(Fault::Malformed)?,
            },
            authority: authority.is_some_and(|(_, constraints)| constraints.ca),
            usage: usage.map(|(_, usage)| usage),
            purposes: purposes.map(|(_, ExtendedKeyUsage(purposes))| purposes),
        })
    }

    /// Checks that it is of a holder, not of an authority, and names one holder only.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Fault> {
        if self.authority {
            return Err(Fault::Authority);
        }
        let usage = self.usage.as_ref().ok_or(Fault::NoSignature)?;
        if usage.key_cert_sign() || usage.crl_sign() {
            return Err(Fault::Signs);
        }
        if !usage.digital_signature() {
            return Err(Fault::NoSignature);
        }
        if self.uris.len() > 1 {
            return Err(Fault::Ambiguous);
        }
        if self.uris.len() + self.dns.len() > MAX_NAMES {
            return Err(Fault::Names);
        }
        Ok(())
    }

    /// Checks that others take it from a process that `calls` services, and from one that `is_called`.
    ///
    /// # Errors
    /// The purpose that it lacks.
    pub fn check_purposes(&self, calls: bool, is_called: bool) -> Result<(), Fault> {
        let Some(purposes) = &self.purposes else { return Ok(()) };
        if calls && !purposes.contains(&ID_KP_CLIENT_AUTH) {
            return Err(Fault::NotForClients);
        }
        if is_called && !purposes.contains(&ID_KP_SERVER_AUTH) {
            return Err(Fault::NotForServers);
        }
        Ok(())
    }

    /// Returns the identities that it gives its holder, that of SPIFFE first.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        let uris = self.uris.iter().filter_map(|uri| Identity::of_uri(uri).ok());
        uris.chain(self.dns.iter().filter_map(|name| Identity::of_dns(name)))
    }

    /// Returns true if one of its identities is this one.
    #[must_use]
    pub fn is(&self, identity: &Identity) -> bool {
        self.identities().any(|own| own == *identity)
    }
}

/// The names, for operators. A certificate is its authority's word, so they are shown whole, but not without end.
impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.uris.iter().chain(&self.dns).peekable();
        if names.peek().is_none() {
            return f.write_str("a certificate without a name");
        }
        for (n, name) in names.take(4).enumerate() {
            let name: String = name.chars().filter(|c| !c.is_control()).take(256).collect();
            write!(f, "{}{name}", if n > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::*;

    type Change = fn(&mut CertificateParams);

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::new(vec!["Feed.Example".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://prod/feed".try_into().unwrap()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_after = (UNIX_EPOCH + Duration::from_secs(2_000_000_000)).into();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Leaf::read(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn a_leaf_has_its_names_and_its_validity() {
        let leaf = made(|_| {});
        leaf.check().unwrap();
        let identities: Vec<_> = leaf.identities().map(|identity| identity.to_string()).collect();
        assert_eq!(identities, ["spiffe://prod/feed", "dns:feed.example"]);
        assert_eq!(leaf.period.to, UNIX_EPOCH + Duration::from_secs(2_000_000_000));
        assert!(leaf.is(&"spiffe://prod/feed".parse().unwrap()));
        assert!(!leaf.is(&"spiffe://prod/feeds".parse().unwrap()));
        assert_eq!(leaf.to_string(), "spiffe://prod/feed, Feed.Example");
    }

    #[test]
    fn each_rule_of_spiffe_is_checked() {
        let uri = || SanType::URI("spiffe://prod/topic".try_into().unwrap());
        let cases: [(Fault, Change); 5] = [
            (Fault::Authority, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            (Fault::Signs, |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            (Fault::Signs, |p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
            (Fault::NoSignature, |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
            (Fault::NoSignature, |p| p.key_usages.clear()),
        ];
        for (fault, change) in cases {
            assert_eq!(made(change).check(), Err(fault));
        }
        assert_eq!(made(|p| p.subject_alt_names.push(uri())).check(), Err(Fault::Ambiguous));
        assert_eq!(
            Leaf::read(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])).unwrap_err(),
            Fault::Malformed
        );
    }
}
