//! The files with a certificate, its key and the authorities that are trusted.

use std::time::SystemTime;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::sign::CertifiedKey;

use super::leaf::{Leaf, Period};
use crate::credentials::{Source, Stamp, Unusable};

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

/// What the files hold. It has a private key, so it has no `Debug`.
pub struct Material {
    /// The certificate with its chain and its key, which fit each other.
    pub own: std::sync::Arc<CertifiedKey>,
    /// What the certificate says.
    pub leaf: Leaf,
    /// The authorities that are valid now.
    pub authorities: RootCertStore,
    /// When the one that expires first is valid.
    pub authority: Option<Period>,
    /// When the next of the authorities becomes valid, or the first of them expires.
    pub changes_at: Option<SystemTime>,
    /// All certificates that were read, to tell a changed file from one that was written again.
    content: Vec<CertificateDer<'static>>,
    /// Those of them that are authorities and valid now.
    trusted: Vec<CertificateDer<'static>>,
}

impl Files {
    /// Returns the current versions of the files.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp::of([&self.certificate, &self.key].into_iter().chain(&self.authorities))
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should, a certificate that is not valid now, or a key
    /// that is not its own.
    pub fn read(&self, now: SystemTime) -> Result<Material, Unusable> {
        let chain = self.certificate.chain()?;
        let first = chain.first().ok_or_else(|| self.certificate.refuse("holds no certificate"))?;
        let leaf = Leaf::read(first).map_err(|fault| self.certificate.refuse(fault))?;
        check_validity(leaf.period, now).map_err(|reason| self.certificate.refuse(reason))?;
        let mut content = chain.clone();
        let own = CertifiedKey::from_der(chain, self.key.private_key()?, &ring::default_provider());
        let own =
            own.map_err(|error| self.key.refuse(format_args!("does not fit the certificate: {error}")))?;
        let (mut authorities, mut periods) = (RootCertStore::empty(), Vec::new());
        let (mut trusted, mut changes_at) = (Vec::new(), None::<SystemTime>);
        if let Some(source) = &self.authorities {
            for certificate in source.chain()? {
                let said = Leaf::read(&certificate).map_err(|fault| source.refuse(fault))?;
                content.push(certificate.clone());
                // an authority that has expired is as good as one that has left
                let valid = check_validity(said.period, now).is_ok();
                if valid {
                    trusted.push(certificate.clone());
                    authorities.add(certificate).map_err(|error| source.refuse(error))?;
                    periods.push(said.period);
                }
                let change = if valid { said.period.to } else { said.period.from };
                if change >= now {
                    changes_at = Some(changes_at.map_or(change, |first| first.min(change)));
                }
            }
            if authorities.is_empty() {
                return Err(source.refuse("has no authority that is valid now"));
            }
        }
        let authority = periods.into_iter().min_by_key(|period: &Period| period.to);
        let own = std::sync::Arc::new(own);
        Ok(Material { own, leaf, authorities, authority, changes_at, content, trusted })
    }
}

impl Material {
    /// Returns true if the files held the same certificates and authorities, those that are valid included.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.content == other.content && self.trusted == other.trusted
    }
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
