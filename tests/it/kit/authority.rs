//! Certificate authorities that live as long as a test, and certificates that may live shorter.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// An authority.
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::make(params(&[], name))
    }

    /// Makes one that is valid from an hour ago for another `life`.
    pub fn lasting(name: &str, life: Duration) -> Self {
        let mut params = params(&[], name);
        params.not_after = (SystemTime::now() + life).into();
        Self::make(params)
    }

    fn make(mut params: CertificateParams) -> Self {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Returns its certificate, PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Writes `NAME.pem` and `NAME.key`, valid for both sides of a connection to these names and
    /// addresses, from an hour ago for another `life`.
    pub fn issue(&self, dir: &Path, name: &str, names: &[&str], life: Duration) {
        let mut params = params(names, name);
        params.not_after = (SystemTime::now() + life).into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(dir, name, &params);
    }

    /// Writes `NAME.pem` and `NAME.key` of a role, with a URI name of SPIFFE, valid from an hour ago for another `life`.
    /// `change` makes of it what it should not be.
    pub fn issue_identity(
        &self,
        dir: &Path,
        name: &str,
        uri: &str,
        life: Duration,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let mut params = params(&[], name);
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
        params.not_after = (SystemTime::now() + life).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        self.sign(dir, name, &params);
    }

    fn sign(&self, dir: &Path, name: &str, params: &CertificateParams) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        replace(&dir.join(format!("{name}.key")), &key.serialize_pem());
        replace(&dir.join(format!("{name}.pem")), &certificate.pem());
    }
}

/// Writes a file as an administrator should: it is the old one or the new one, never half of it.
pub fn replace(path: &Path, text: &str) {
    let next = path.with_added_extension("next");
    std::fs::write(&next, text).expect("a file");
    std::fs::rename(&next, path).expect("a file");
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("valid names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (SystemTime::now() - Duration::from_hours(1)).into();
    params
}
