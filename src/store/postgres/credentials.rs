//! The password and the certificates for PostgreSQL. They come from files, which are read again for each connection, so
//! a replaced file needs no restart.

use std::path::PathBuf;

use tokio_rustls::rustls::ClientConfig;

use crate::config::Store;
use crate::credentials::{self, Source, Unusable};

/// The files that the settings name.
#[derive(Clone, Debug)]
pub struct Files {
    password: Option<Source>,
    ca: Option<Source>,
    own: Option<(Source, Source)>,
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
        let directory = credentials::directory();
        let source = |key, path: &Option<PathBuf>| {
            path.as_ref().map(|path| Source::new(key, path, directory.as_deref()))
        };
        Self {
            password: source("store.password_file", &settings.password_file),
            ca: source("store.ca_file", &settings.ca_file),
            own: source("store.cert_file", &settings.cert_file)
                .zip(source("store.key_file", &settings.key_file)),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should.
    pub fn read(&self) -> Result<Credentials, Unusable> {
        let password = self.password.as_ref().map(Source::password).transpose()?;
        let own = self.own.as_ref().map(|(certificate, key)| (certificate, key));
        let tls = self.ca.as_ref().map(|ca| credentials::tls(ca, own)).transpose()?;
        Ok(Credentials { password, tls })
    }
}
