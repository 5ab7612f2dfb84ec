//! The two ends of a copy. A directory stands for the files that `up` keeps in one: `feed.db`, `profile.db`, `topic.db`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::super::bulk::{Export, Import, Service};
use super::super::error::StoreError;
use super::super::sqlite::bulk::{self as sqlite, Snapshot, Target};
use crate::config::StoreUrl;

/// A store that is copied from.
#[derive(Clone, Debug)]
pub struct From {
    url: StoreUrl,
}

/// A store that is copied to.
#[derive(Clone, Debug)]
pub struct To {
    url: StoreUrl,
    /// A path is that of a directory with a file for each service.
    directory: bool,
}

impl From {
    /// Returns the source with an URL.
    #[must_use]
    pub const fn new(url: StoreUrl) -> Self {
        Self { url }
    }

    /// Returns the services whose records it has.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn services(&self) -> Result<Vec<Service>, StoreError> {
        match &self.url {
            StoreUrl::Memory => Err(no_memory()),
            StoreUrl::Sqlite(path) if path.is_dir() => {
                let there = |service: &Service| file(path, *service).exists();
                let services: Vec<_> = Service::ALL.into_iter().filter(there).collect();
                if services.is_empty() {
                    return Err(refuse(path, "has none of the files feed.db, profile.db and topic.db"));
                }
                Ok(services)
            }
            StoreUrl::Sqlite(path) => Ok(vec![sqlite::service_of(path).map_err(|why| refuse(path, &why))?]),
        }
    }

    /// Opens the records of a service.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(&self, service: Service) -> Result<Box<dyn Export>, StoreError> {
        match &self.url {
            StoreUrl::Memory => Err(no_memory()),
            StoreUrl::Sqlite(path) => {
                let path = if path.is_dir() { file(path, service) } else { path.clone() };
                let opened = Snapshot::open(&path, service).map_err(|why| refuse(&path, &why))?;
                Ok(Box::new(opened))
            }
        }
    }

    fn is_directory(&self) -> bool {
        matches!(&self.url, StoreUrl::Sqlite(path) if path.is_dir())
    }
}

impl To {
    /// Returns the target with an URL, for the records of some services of a source. Makes its directory if it has to be
    /// one and is not there.
    ///
    /// # Errors
    /// [`StoreError::Open`], also if it is the source itself.
    pub fn new(url: StoreUrl, from: &From, services: &[Service]) -> Result<Self, StoreError> {
        let StoreUrl::Sqlite(path) = &url else {
            return Err(no_memory());
        };
        let directory = path.is_dir()
            || path.as_os_str().as_encoded_bytes().ends_with(b"/")
            || services.len() > 1
            || from.is_directory();
        if directory {
            std::fs::create_dir_all(path).map_err(|error| {
                refuse(path, &format!("is no directory for the files of the services: {error}"))
            })?;
        }
        let to = Self { url, directory };
        to.differs_from(from, services)?;
        Ok(to)
    }

    fn differs_from(&self, from: &From, services: &[Service]) -> Result<(), StoreError> {
        let same = |a: &Path, b: &Path| match (a.metadata(), b.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        if let (StoreUrl::Sqlite(a), StoreUrl::Sqlite(b)) = (&from.url, &self.url) {
            for service in services {
                let a = if a.is_dir() { file(a, *service) } else { a.clone() };
                let b = if self.directory { file(b, *service) } else { b.clone() };
                if same(&a, &b) {
                    return Err(refuse(&b, "is also the source"));
                }
            }
        }
        Ok(())
    }

    /// Opens the records of a service. Makes and migrates the store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(&self, service: Service) -> Result<Box<dyn Import>, StoreError> {
        match &self.url {
            StoreUrl::Memory => Err(no_memory()),
            StoreUrl::Sqlite(path) => {
                let path = if self.directory { file(path, service) } else { path.clone() };
                let opened = Target::open(&path, service).map_err(|why| refuse(&path, &why))?;
                Ok(Box::new(opened))
            }
        }
    }
}

/// Returns the file of a service in a directory, as `up` names it.
fn file(directory: &Path, service: Service) -> PathBuf {
    directory.join(format!("{}.db", service.name()))
}

fn refuse(path: &Path, reason: &str) -> StoreError {
    StoreError::Open { path: path.display().to_string(), reason: reason.to_owned() }
}

fn no_memory() -> StoreError {
    StoreError::Open { path: "memory:".to_owned(), reason: "has no records for another process".to_owned() }
}
