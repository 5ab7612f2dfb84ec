//! The credentials for etcd: certificate, key and password of this process, and the authorities that it trusts. All of
//! them come from files, which are read again for each connection, so a replaced file needs no restart.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::tls::{Part, Tls};
use crate::config::Registry;

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

/// The files that the settings name.
pub struct Files {
    ca: Option<Source>,
    cert: Option<Source>,
    key: Option<Source>,
    server_name: Option<String>,
    user: Option<String>,
    password: Option<Source>,
}

struct Source {
    key: &'static str,
    path: PathBuf,
}

/// The content of the files. It holds secrets, so it has no `Debug`.
pub struct Credentials {
    /// `None` without https.
    pub tls: Option<Tls>,
    /// User and password.
    pub user: Option<(String, String)>,
}

/// The version of each file, `None` for one that cannot be examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Vec<Option<Version>>);

/// Device, inode, length, and time of the last change: seconds and nanoseconds.
type Version = (u64, u64, u64, i64, i64);

impl Files {
    /// Takes the names from the settings; relative ones are below `directory` if it is given. Opens nothing.
    pub fn new(settings: &Registry, directory: Option<&Path>) -> Self {
        let source = |key, path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            let path = directory.map_or_else(|| path.clone(), |directory| directory.join(path));
            Some(Source { key, path })
        };
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
        let stamp = |source: &Source| {
            let it = std::fs::metadata(&source.path).ok()?;
            Some((it.dev(), it.ino(), it.len(), it.ctime(), it.ctime_nsec()))
        };
        Stamp(self.all().map(stamp).collect())
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
        let authorities = ca.read()?;
        let pair = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((cert, cert.read()?, key, key.read()?)),
            _ => None,
        };
        let own = pair.as_ref().map(|(_, cert, _, key)| (cert.as_slice(), key.as_slice()));
        Tls::new(&authorities, own, self.server_name.as_deref()).map_err(|(part, reason)| {
            let source = match (part, &pair) {
                (Part::Certificate, Some((cert, ..))) => cert,
                (Part::Key, Some((_, _, key, _))) => key,
                _ => ca,
            };
            source.refuse(reason)
        })
    }
}

impl Source {
    fn refuse(&self, reason: impl Into<String>) -> Unusable {
        Unusable { key: self.key, path: self.path.clone(), reason: reason.into() }
    }

    fn read(&self) -> Result<Vec<u8>, Unusable> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&self.path);
        let read = file.and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
        match read {
            Err(error) => Err(self.refuse(error.to_string())),
            Ok(length) if length as u64 > LONGEST => {
                Err(self.refuse(format!("is longer than {LONGEST} bytes")))
            }
            Ok(_) => Ok(bytes),
        }
    }

    fn password(&self) -> Result<String, Unusable> {
        let text = String::from_utf8(self.read()?).map_err(|_| self.refuse("is not UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(self.refuse("is empty"));
        }
        Ok(password.to_owned())
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

    fn refusal(files: &Files) -> String {
        files.read().err().expect("a refusal").to_string()
    }

    #[test]
    fn a_password_is_the_file_without_line_ends() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path(), |s| {
            s.user = Some("app".to_owned());
            s.password_file = Some("password".into());
        });
        assert!(refusal(&files).starts_with("`registry.password_file`: "), "{}", refusal(&files));
        assert!(refusal(&files).contains("/password: No such file"), "{}", refusal(&files));
        for (text, want) in [("se cret", "se cret"), ("secret\n", "secret"), (" s\r\n", " s")] {
            std::fs::write(dir.path().join("password"), text).unwrap();
            assert_eq!(files.read().unwrap().user.unwrap(), ("app".to_owned(), want.to_owned()));
        }
        std::fs::write(dir.path().join("password"), "\n").unwrap();
        assert!(refusal(&files).ends_with("/password: is empty"), "{}", refusal(&files));
        std::fs::write(dir.path().join("password"), [0xff, 0xfe]).unwrap();
        assert!(refusal(&files).contains("UTF-8"), "{}", refusal(&files));
    }

    #[test]
    fn a_file_without_what_it_should_hold_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let files = files(dir.path(), |s| {
            s.ca_file = Some("ca".into());
            s.cert_file = Some("cert".into());
            s.key_file = Some("key".into());
        });
        for name in ["ca", "cert", "key"] {
            write(name, "nonsense");
        }
        assert!(refusal(&files).ends_with("/ca: holds no certificate in PEM form"), "{}", refusal(&files));
        let (one, other) = (make(), make());
        write("ca", &one.0);
        write("cert", &one.0);
        write("key", &one.0);
        assert!(refusal(&files).ends_with("/key: holds no private key in PEM form"), "{}", refusal(&files));
        write("key", &other.1);
        assert!(refusal(&files).starts_with("`registry.key_file`: "), "{}", refusal(&files));
        write("key", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n");
        let text = refusal(&files);
        assert!(text.starts_with("`registry.key_file`: ") && !text.contains("hunter2"), "{text}");
        write("key", &one.1);
        assert!(files.read().unwrap().tls.is_some());
        write("ca", &"-".repeat(usize::try_from(LONGEST).unwrap() + 1));
        assert!(refusal(&files).ends_with("/ca: is longer than 1048576 bytes"), "{}", refusal(&files));
    }

    fn make() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
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
