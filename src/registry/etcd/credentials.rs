//! The credentials for etcd: certificate, key and password of this process, and the authorities that it trusts. All of
//! them come from files, which are read again for each connection, so a replaced file needs no restart.

use std::path::{Path, PathBuf};

use super::tls::Tls;
use crate::config::Registry;
use crate::credentials::{self, Source, Stamp, Unusable};

/// The files that the settings name.
pub struct Files {
    ca: Option<Source>,
    cert: Option<Source>,
    key: Option<Source>,
    server_name: Option<String>,
    user: Option<String>,
    password: Option<Source>,
}

/// The content of the files. It holds secrets, so it has no `Debug`.
pub struct Credentials {
    /// `None` without https.
    pub tls: Option<Tls>,
    /// User and password.
    pub user: Option<(String, String)>,
}

impl Files {
    /// Takes the names from the settings; relative ones are below `directory` if it is given. Opens nothing.
    pub fn new(settings: &Registry, directory: Option<&Path>) -> Self {
        let source =
            |key, path: &Option<PathBuf>| path.as_ref().map(|path| Source::new(key, path, directory));
        Self {
            ca: source("registry.ca_file", &settings.ca_file),
            cert: source("registry.cert_file", &settings.cert_file),
            key: source("registry.key_file", &settings.key_file),
            server_name: settings.tls_server_name.clone(),
            user: settings.user.clone(),
            password: source("registry.password_file", &settings.password_file),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        [&self.ca, &self.cert, &self.key, &self.password].into_iter().flatten()
    }

    /// Returns true if the settings name no file, so that nothing can change.
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Returns the current versions. It makes a few calls of `stat`, which are not worth a thread.
    pub fn stamp(&self) -> Stamp {
        Stamp::of(self.all())
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it should.
    pub fn read(&self) -> Result<Credentials, Unusable> {
        let user = match (&self.user, &self.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.password()?)),
            _ => None,
        };
        let tls = self.ca.as_ref().map(|ca| self.tls(ca)).transpose()?;
        Ok(Credentials { tls, user })
    }

    fn tls(&self, ca: &Source) -> Result<Tls, Unusable> {
        let own = self.cert.as_ref().zip(self.key.as_ref());
        let config = credentials::tls(ca, own)?;
        Tls::new(config, self.server_name.as_deref()).map_err(|reason| ca.refuse(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, change: impl FnOnce(&mut Registry)) -> Files {
        let mut settings = Registry::default();
        change(&mut settings);
        Files::new(&settings, Some(dir))
    }

    #[test]
    fn a_file_is_named_by_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |change: fn(&mut Registry)| {
            let text = files(dir.path(), change).read().err().expect("a refusal").to_string();
            text.split(": ").next().unwrap_or_default().to_owned()
        };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("ca"), made.cert.pem()).unwrap();
        let ca: fn(&mut Registry) = |s| s.ca_file = Some("absent".into());
        let cert: fn(&mut Registry) = |s| {
            s.ca_file = Some("ca".into());
            s.cert_file = Some("absent".into());
            s.key_file = Some("ca".into());
        };
        let key: fn(&mut Registry) = |s| {
            s.ca_file = Some("ca".into());
            s.cert_file = Some("ca".into());
            s.key_file = Some("ca".into());
        };
        let password: fn(&mut Registry) = |s| {
            s.user = Some("app".to_owned());
            s.password_file = Some("absent".into());
        };
        for (change, name) in [(ca, "ca"), (cert, "cert"), (key, "key"), (password, "password")] {
            assert_eq!(refusal(change), format!("`registry.{name}_file`"));
        }
    }

    #[test]
    fn a_replaced_file_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), |s| s.password_file = Some("password".into()));
        let absent = files.stamp();
        std::fs::write(dir.path().join("password"), "one").unwrap();
        let one = files.stamp();
        assert_ne!(absent, one);
        assert_eq!(one, files.stamp());
        std::fs::write(dir.path().join("next"), "two").unwrap();
        std::fs::rename(dir.path().join("next"), dir.path().join("password")).unwrap();
        assert_ne!(one, files.stamp());
        assert!(!files.is_empty() && self::files(dir.path(), |_| {}).is_empty());
    }
}
