//! The files with a certificate, its key and the authorities that are trusted.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::leaf::{Leaf, Period};
use crate::credentials::{Source, Unusable};

/// The files that the settings name.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate, and those between it and its authority.
    pub certificate: Source,
    /// The key of the certificate.
    pub key: Source,
    /// The authorities of the peers, where peers show certificates.
    pub authorities: Option<Source>,
}

/// What the files hold. It has a private key, so it has no `Debug`. Cheap to clone.
#[derive(Clone)]
pub struct Material {
    /// The certificate with its chain and its key, which fit each other.
    pub own: Arc<CertifiedKey>,
    /// What the certificate says.
    pub leaf: Leaf,
    /// The authorities of the peers.
    pub authorities: Authorities,
}

/// The authorities of the peers. Cheap to clone.
#[derive(Clone)]
pub struct Authorities {
    /// Those that are valid now.
    pub valid: Arc<RootCertStore>,
    /// All that the file holds, each with the time in which it is valid.
    listed: Arc<[(CertificateDer<'static>, Period)]>,
    /// When the file was read.
    at: SystemTime,
}

impl Files {
    /// Returns the files.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        [&self.certificate, &self.key].into_iter().chain(&self.authorities)
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should, a certificate that is not valid now, or a key
    /// that is not its own.
    pub fn read(&self, now: SystemTime) -> Result<Material, Unusable> {
        let authorities = self.read_authorities(now)?;
        if let Some(source) = self.authorities.as_ref().filter(|_| authorities.valid.is_empty()) {
            return Err(source.refuse("has no authority that is valid now"));
        }
        let chain = self.certificate.chain()?;
        let first = chain.first().ok_or_else(|| self.certificate.refuse("holds no certificate"))?;
        let leaf = Leaf::read(first).map_err(|fault| self.certificate.refuse(fault))?;
        check_validity(leaf.period, now).map_err(|reason| self.certificate.refuse(reason))?;
        let own = CertifiedKey::from_der(chain, self.key.private_key()?, &ring::default_provider());
        let own =
            own.map_err(|error| self.key.refuse(format_args!("does not fit the certificate: {error}")))?;
        Ok(Material { own: Arc::new(own), leaf, authorities })
    }

    /// Reads the file with the authorities alone. None of them need be valid now.
    ///
    /// # Errors
    /// When it cannot be read or does not hold certificates.
    pub fn read_authorities(&self, now: SystemTime) -> Result<Authorities, Unusable> {
        let mut listed = Vec::new();
        if let Some(source) = &self.authorities {
            for certificate in source.authorities()? {
                let period = Leaf::read(&certificate).map_err(|fault| source.refuse(fault))?.period;
                RootCertStore::empty().add(certificate.clone()).map_err(|error| source.refuse(error))?;
                listed.push((certificate, period));
            }
        }
        Ok(Authorities::of(listed.into(), now))
    }
}

impl Material {
    /// Returns true if the files held the same certificates and authorities, those that are valid included.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.own.cert == other.own.cert && self.authorities == other.authorities
    }
}

impl Authorities {
    /// Returns those of a list that are valid at a time: one that has expired is as good as one that has left.
    fn of(listed: Arc<[(CertificateDer<'static>, Period)]>, at: SystemTime) -> Self {
        let valid = listed.iter().filter(|(_, period)| is_valid(*period, at));
        let mut store = RootCertStore::empty();
        // each of them was taken before
        store.add_parsable_certificates(valid.map(|(certificate, _)| certificate.clone()));
        Self { valid: Arc::new(store), listed, at }
    }

    /// Returns those of the same list that are valid at another time.
    #[must_use]
    pub fn at(&self, time: SystemTime) -> Self {
        Self::of(self.listed.clone(), time)
    }

    /// Returns when the authority is valid that expires first; if none is valid now, that which expired last.
    #[must_use]
    pub fn first_to_expire(&self) -> Option<Period> {
        let first = self.valid().map(|(_, period)| *period).min_by_key(|period| period.to);
        let begun = self.listed.iter().map(|(_, period)| *period).filter(|period| period.from <= self.at);
        first.or_else(|| begun.max_by_key(|period| period.to))
    }

    /// Returns when the next of the authorities becomes valid, or the first of them expires.
    #[must_use]
    pub fn changes_at(&self) -> Option<SystemTime> {
        let change = |period: &Period| if is_valid(*period, self.at) { period.to } else { period.from };
        self.listed.iter().map(|(_, period)| change(period)).filter(|change| *change >= self.at).min()
    }

    /// Returns the authorities that are valid now.
    fn valid(&self) -> impl Iterator<Item = &(CertificateDer<'static>, Period)> {
        self.listed.iter().filter(|(_, period)| is_valid(*period, self.at))
    }
}

/// They are the same if the file was, and if the same of them are valid.
impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.listed == other.listed && self.valid().eq(other.valid())
    }
}

fn is_valid(period: Period, now: SystemTime) -> bool {
    check_validity(period, now).is_ok()
}

fn check_validity(period: Period, now: SystemTime) -> Result<(), String> {
    let seconds = |from: SystemTime, to: SystemTime| to.duration_since(from).map_or(0, |time| time.as_secs());
    if now > period.to {
        return Err(format!("expired {} s ago", seconds(period.to, now)));
    }
    if now < period.from {
        return Err(format!("is not valid yet, but in {} s", seconds(now, period.from)));
    }
    Ok(())
}
