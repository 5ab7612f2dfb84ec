//! Files with passwords and certificates, as settings name them. What a file holds is never told.

pub mod follow;

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};

/// Largest file that is read, bytes: several times the bundle of all public authorities.
const LONGEST: u64 = 1 << 20;
/// Longest subject of a certificate that an error names, characters.
const MAX_SUBJECT: usize = 256;

/// A file that cannot be used. The text names the setting and the path, never what the file holds.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {}: {reason}", path.display())]
pub struct Unusable {
    key: &'static str,
    path: PathBuf,
    reason: String,
}

/// A file that a setting names.
#[derive(Clone, Debug)]
pub struct Source {
    key: &'static str,
    path: PathBuf,
}

/// The versions of some files, `None` for one that cannot be examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<Option<Version>>);

/// Device, inode, length, and time of the last change: seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Stamp {
    /// Returns the current versions. It makes a few calls of `stat`, which follow links: a link that leads to another file
    /// is another version.
    pub fn of<'a>(sources: impl IntoIterator<Item = &'a Source>) -> Self {
        let version = |source: &Source| {
            let it = std::fs::metadata(&source.path).ok()?;
            Some((it.dev(), it.ino(), it.len(), it.ctime(), it.ctime_nsec()))
        };
        Self(sources.into_iter().map(version).collect())
    }
}

/// Returns the directory of relative names, if there is one: `$CREDENTIALS_DIRECTORY`, which systemd sets.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

impl Source {
    /// Takes a name from the setting `key`; a relative one is below `directory` if it is given. Opens nothing.
    #[must_use]
    pub fn new(key: &'static str, path: &Path, directory: Option<&Path>) -> Self {
        let path = directory.map_or_else(|| path.to_owned(), |directory| directory.join(path));
        Self { key, path }
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the error that the file cannot be used.
    pub fn refuse(&self, reason: impl std::fmt::Display) -> Unusable {
        Unusable { key: self.key, path: self.path.clone(), reason: reason.to_string() }
    }

    /// Returns the password in the file: all of it but the line ends after it.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or is not UTF-8.
    pub fn password(&self) -> Result<String, Unusable> {
        let text = String::from_utf8(self.read()?).map_err(|_| self.refuse("is not UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(self.refuse("is empty"));
        }
        Ok(password.to_owned())
    }

    /// Returns the content of the file.
    ///
    /// # Errors
    /// When the file cannot be read, or is longer than 1 MiB.
    pub fn read(&self) -> Result<Vec<u8>, Unusable> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&self.path);
        match file.and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)) {
            Err(error) => Err(self.refuse(error)),
            Ok(length) if length as u64 > LONGEST => {
                Err(self.refuse(format_args!("is longer than {LONGEST} bytes")))
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// Returns the certificates in the file, in their order.
    ///
    /// # Errors
    /// When the file cannot be read, or holds none in PEM form.
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>, Unusable> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        match read {
            Ok(chain) if chain.is_empty() => Err(self.refuse("holds no certificate in PEM form")),
            Ok(chain) => Ok(chain),
            Err(_) => Err(self.refuse("is damaged PEM")),
        }
    }

    /// Returns the certificates in the file, each of which must be that of an authority: whoever has the key of what is
    /// trusted here can make a certificate for any name.
    ///
    /// # Errors
    /// Those of [`Self::chain`], and the first certificate that may not sign others.
    pub fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, Unusable> {
        self.anchors(|_| false)
    }

    /// The same, and certificates that `pinned` takes although they are no authority's.
    fn anchors(
        &self,
        pinned: impl Fn(&Certificate) -> bool,
    ) -> Result<Vec<CertificateDer<'static>>, Unusable> {
        let chain = self.chain()?;
        for certificate in &chain {
            let read = Certificate::from_der(certificate)
                .map_err(|_| self.refuse("holds a certificate that cannot be read"))?;
            if !is_authority(&read) && !pinned(&read) {
                let subject: String = read.tbs_certificate.subject.to_string();
                let subject: String = subject.chars().filter(|c| !c.is_control()).take(MAX_SUBJECT).collect();
                return Err(self.refuse(format_args!("holds `{subject}`, which is no authority (cA)")));
            }
        }
        Ok(chain)
    }

    /// Returns the private key in the file.
    ///
    /// # Errors
    /// When the file cannot be read, or holds none in PEM form.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, Unusable> {
        let key = PrivateKeyDer::from_pem_slice(&self.read()?);
        key.map_err(|_| self.refuse("holds no private key in PEM form"))
    }
}

/// Returns true if a certificate says that its key may sign others (RFC 5280, 4.2.1.3 and 4.2.1.9).
fn is_authority(certificate: &Certificate) -> bool {
    let certificate = &certificate.tbs_certificate;
    let (Ok(constraints), Ok(usage)) = (certificate.get::<BasicConstraints>(), certificate.get::<KeyUsage>())
    else {
        return false;
    };
    constraints.is_some_and(|(_, constraints)| constraints.ca)
        && usage.is_none_or(|(_, usage)| usage.key_cert_sign())
}

/// Returns true if a certificate names no other issuer.
fn is_self_signed(certificate: &Certificate) -> bool {
    certificate.tbs_certificate.subject == certificate.tbs_certificate.issuer
}

/// Reads what a client needs for TLS: the authorities that it trusts, and, if it has one, its own certificate with the
/// key. The certificate that a server has signed for itself is taken, too: that is how a single database is often set up.
///
/// # Errors
/// The first file that cannot be read or does not hold what it should.
pub fn tls(authorities: &Source, own: Option<(&Source, &Source)>) -> Result<ClientConfig, Unusable> {
    let mut roots = RootCertStore::empty();
    for authority in authorities.anchors(is_self_signed)? {
        roots.add(authority).map_err(|error| authorities.refuse(error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| authorities.refuse(error))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = own else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, private) = (certificate.chain()?, key.private_key()?);
    builder.with_client_auth_cert(chain, private).map_err(|error| key.refuse(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_file_without_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let file = Source::new("store.password_file", Path::new("password"), Some(dir.path()));
        let refusal = || file.password().unwrap_err().to_string();
        assert!(refusal().starts_with("`store.password_file`: "), "{}", refusal());
        assert!(refusal().contains("/password: No such file"), "{}", refusal());
        for (text, want) in [("se cret", "se cret"), ("secret\n", "secret"), (" s\r\n", " s")] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(file.password().unwrap(), want);
        }
        std::fs::write(file.path(), "\n").unwrap();
        assert!(refusal().ends_with("/password: is empty"), "{}", refusal());
        std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
        assert!(refusal().contains("UTF-8"), "{}", refusal());
    }

    #[test]
    fn a_file_without_what_it_should_hold_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let source = |key, name| Source::new(key, Path::new(name), Some(dir.path()));
        let (ca, cert, key) =
            (source("ca_file", "ca"), source("cert_file", "cert"), source("key_file", "key"));
        let refusal = || tls(&ca, Some((&cert, &key))).map(|_| ()).expect_err("a refusal").to_string();
        for name in ["ca", "cert", "key"] {
            write(name, "nonsense");
        }
        assert!(refusal().ends_with("/ca: holds no certificate in PEM form"), "{}", refusal());
        let (one, other) = (make(), make());
        write("ca", &one.0);
        write("cert", &one.0);
        write("key", &one.0);
        assert!(refusal().ends_with("/key: holds no private key in PEM form"), "{}", refusal());
        write("key", &other.1);
        assert!(refusal().starts_with("`key_file`: "), "{}", refusal());
        write("key", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n");
        let text = refusal();
        assert!(text.starts_with("`key_file`: ") && !text.contains("hunter2"), "{text}");
        write("key", &one.1);
        assert!(tls(&ca, Some((&cert, &key))).is_ok() && tls(&ca, None).is_ok());
        write("cert", &one.0.replace("-----END", "+++++END"));
        assert!(refusal().starts_with("`cert_file`: "), "{}", refusal());
        write("ca", &"-".repeat(usize::try_from(LONGEST).unwrap() + 1));
        assert!(refusal().ends_with("/ca: is longer than 1048576 bytes"), "{}", refusal());
    }

    /// Whoever has the key of a certificate that is trusted can make others of any name.
    #[test]
    fn what_is_trusted_is_an_authority() {
        use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
        let dir = tempfile::tempdir().unwrap();
        let file = Source::new("tls.ca_file", Path::new("ca"), Some(dir.path()));
        let params = |name: &str, is_ca: IsCa, usages: &[KeyUsagePurpose]| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            (params.is_ca, params.key_usages) = (is_ca, usages.to_vec());
            params
        };
        let ca = || IsCa::Ca(BasicConstraints::Unconstrained);
        let (key, sign) = (KeyPair::generate().unwrap(), KeyUsagePurpose::KeyCertSign);
        let authority = params("authority", ca(), std::slice::from_ref(&sign));
        let (root, issuer) = (authority.self_signed(&key).unwrap().pem(), Issuer::new(authority, &key));
        let signed = |name: &str, is_ca: IsCa, usages: &[KeyUsagePurpose]| {
            params(name, is_ca, usages).signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().pem()
        };
        let own = |name: &str, is_ca: IsCa| {
            params(name, is_ca, &[]).self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
        };
        let signature = KeyUsagePurpose::DigitalSignature;
        // and whether it is taken for a server that has signed its own certificate
        for (name, pem, taken, pinned) in [
            ("root", root.clone(), true, true),
            ("intermediate", signed("intermediate", ca(), &[sign]), true, true),
            ("usages unsaid", own("usages unsaid", ca()), true, true),
            ("leaf", signed("leaf", IsCa::NoCa, &[]), false, false),
            ("explicit", signed("explicit", IsCa::ExplicitNoCa, &[]), false, false),
            ("signs nothing", signed("signs nothing", ca(), &[signature]), false, false),
            ("own", own("own", IsCa::NoCa), false, true),
        ] {
            std::fs::write(file.path(), format!("{root}{pem}")).unwrap();
            for (read, wanted) in
                [(file.authorities().map(|_| ()), taken), (tls(&file, None).map(|_| ()), pinned)]
            {
                let want = format!("/ca: holds `CN={name}`, which is no authority (cA)");
                match read {
                    Ok(()) => assert!(wanted, "{name} is taken"),
                    Err(error) => assert!(!wanted && error.to_string().ends_with(&want), "{name}: {error}"),
                }
            }
        }
    }

    fn make() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }
}
