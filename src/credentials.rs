//! Files with passwords and certificates, as settings name them. What a file holds is never told.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Largest file that is read, bytes: several times the bundle of all public authorities.
const LONGEST: u64 = 1 << 20;

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

    /// Returns the private key in the file.
    ///
    /// # Errors
    /// When the file cannot be read, or holds none in PEM form.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, Unusable> {
        let key = PrivateKeyDer::from_pem_slice(&self.read()?);
        key.map_err(|_| self.refuse("holds no private key in PEM form"))
    }
}

/// Reads what a client needs for TLS: the authorities that it trusts, and, if it has one, its own certificate with the
/// key.
///
/// # Errors
/// The first file that cannot be read or does not hold what it should.
pub fn tls(authorities: &Source, own: Option<(&Source, &Source)>) -> Result<ClientConfig, Unusable> {
    let mut roots = RootCertStore::empty();
    for authority in authorities.chain()? {
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

    fn make() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }
}
