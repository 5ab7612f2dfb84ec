//! The password and the certificates for PostgreSQL. They come from files, which are read again for each connection, so
//! a replaced file needs no restart.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::Store;

/// Largest file that is read, bytes: several times the bundle of all public authorities.
const LONGEST: u64 = 1 << 20;

/// The files that the settings name.
#[derive(Clone, Debug)]
pub struct Files {
    password: Option<File>,
    ca: Option<File>,
    own: Option<(File, File)>,
}

#[derive(Clone, Debug)]
struct File {
    /// The setting that names it.
    key: &'static str,
    path: PathBuf,
}

/// The content of the files. It holds secrets, so it has no `Debug`.
pub struct Credentials {
    pub password: Option<String>,
    /// `None` for connections without TLS.
    pub tls: Option<ClientConfig>,
}

impl Files {
    /// Takes the names from the settings; relative ones are below `$CREDENTIALS_DIRECTORY` if that is set. Opens nothing.
    pub fn new(settings: &Store) -> Self {
        let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let file = |key, path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            let path = directory.as_ref().map_or_else(|| path.clone(), |directory| directory.join(path));
            Some(File { key, path })
        };
        Self {
            password: file("store.password_file", &settings.password_file),
            ca: file("store.ca_file", &settings.ca_file),
            own: file("store.cert_file", &settings.cert_file).zip(file("store.key_file", &settings.key_file)),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should. The text names the setting and the path, never
    /// what the file holds.
    pub fn read(&self) -> Result<Credentials, String> {
        let password = self.password.as_ref().map(File::password).transpose()?;
        let tls = self.ca.as_ref().map(|ca| self.tls(ca)).transpose()?;
        Ok(Credentials { password, tls })
    }

    fn tls(&self, ca: &File) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        for authority in ca.chain()? {
            roots.add(authority).map_err(|error| ca.refuse(error))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ca.refuse(error))?
            .with_root_certificates(roots);
        let Some((cert, key)) = &self.own else {
            return Ok(builder.with_no_client_auth());
        };
        let private = PrivateKeyDer::from_pem_slice(&key.read()?);
        let private = private.map_err(|_| key.refuse("holds no private key in PEM form"))?;
        builder.with_client_auth_cert(cert.chain()?, private).map_err(|error| key.refuse(error))
    }
}

impl File {
    fn refuse(&self, reason: impl std::fmt::Display) -> String {
        format!("`{}`: {}: {reason}", self.key, self.path.display())
    }

    fn read(&self) -> Result<Vec<u8>, String> {
        read(&self.path).map_err(|reason| self.refuse(reason))
    }

    fn password(&self) -> Result<String, String> {
        let text = String::from_utf8(self.read()?).map_err(|_| self.refuse("is not UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(self.refuse("is empty"));
        }
        Ok(password.to_owned())
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        match read {
            Ok(chain) if chain.is_empty() => Err(self.refuse("holds no certificate in PEM form")),
            Ok(chain) => Ok(chain),
            Err(_) => Err(self.refuse("is damaged PEM")),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let length = file.and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    match length {
        Err(error) => Err(error.to_string()),
        Ok(length) if length as u64 > LONGEST => Err(format!("is longer than {LONGEST} bytes")),
        Ok(_) => Ok(bytes),
    }
}
