//! The two ends of a copy. A directory stands for the files that `up` keeps in one: `feed.db`, `profile.db`, `topic.db`.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::super::bulk::{Export, Import, Service};
use super::super::error::StoreError;
use super::super::{postgres, sqlite};
use crate::config::{PostgresUrl, Store, StoreUrl};

/// A store that is copied from.
#[derive(Clone, Debug)]
pub struct From {
    settings: Store,
}

/// A store that is copied to.
#[derive(Clone, Debug)]
pub struct To {
    settings: Store,
    /// A path is that of a directory with a file for each service.
    directory: bool,
}

impl From {
    /// Returns the source with these settings.
    #[must_use]
    pub const fn new(settings: Store) -> Self {
        Self { settings }
    }

    /// Returns the services whose records it has.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn services(&self) -> Result<Vec<Service>, StoreError> {
        match &self.settings.url {
            StoreUrl::Memory => Err(no_memory()),
            StoreUrl::Sqlite(path) if path.is_dir() => {
                let there = |service: &Service| file(path, *service).exists();
                let services: Vec<_> = Service::ALL.into_iter().filter(there).collect();
                if services.is_empty() {
                    return Err(refuse_path(path, "has none of the files feed.db, profile.db and topic.db"));
                }
                Ok(services)
            }
            StoreUrl::Sqlite(path) => {
                let found = sqlite::bulk::service_of(path).map_err(|why| refuse_path(path, &why))?;
                Ok(vec![found])
            }
            StoreUrl::Postgres(url) => {
                let services = postgres::bulk::services(url, &self.settings).await;
                let services = services.map_err(|why| refuse_url(url, why))?;
                if services.is_empty() {
                    let why = "has no records: none of the schemas feed, profile and topic has its table";
                    return Err(refuse_url(url, why.to_owned()));
                }
                Ok(services)
            }
        }
    }

    /// Opens the records of a service.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn open(&self, service: Service) -> Result<Box<dyn Export>, StoreError> {
        match &self.settings.url {
            StoreUrl::Memory => Err(no_memory()),
            StoreUrl::Sqlite(path) => {
                let path = if path.is_dir() { file(path, service) } else { path.clone() };
                let opened = sqlite::bulk::Snapshot::open(&path, service);
                Ok(Box::new(opened.map_err(|why| refuse_path(&path, &why))?))
            }
            StoreUrl::Postgres(url) => {
                let opened = postgres::bulk::Snapshot::open(url, &self.settings, service).await;
                Ok(Box::new(opened.map_err(|why| refuse_url(url, why))?))
            }
        }
    }

    fn is_directory(&self) -> bool {
        matches!(&self.settings.url, StoreUrl::Sqlite(path) if path.is_dir())
    }
}

impl To {
    /// Returns the target with these settings, for the records of some services of a source. Makes its directory if it has
    /// to be one and is not there.
    ///
    /// # Errors
    /// [`StoreError::Open`], also if it is the source itself.
    pub fn new(settings: Store, from: &From, services: &[Service]) -> Result<Self, StoreError> {
        let directory = match &settings.url {
            StoreUrl::Sqlite(path) => {
                path.is_dir()
                    || path.as_os_str().as_encoded_bytes().ends_with(b"/")
                    || services.len() > 1
                    || from.is_directory()
            }
            StoreUrl::Memory | StoreUrl::Postgres(_) => false,
        };
        if let (StoreUrl::Sqlite(path), true) = (&settings.url, directory) {
            std::fs::create_dir_all(path).map_err(|error| {
                refuse_path(path, &format!("is no directory for the files of the services: {error}"))
            })?;
        }
        let to = Self { settings, directory };
        to.differs_from(from, services)?;
        Ok(to)
    }

    fn differs_from(&self, from: &From, services: &[Service]) -> Result<(), StoreError> {
        match (&from.settings.url, &self.settings.url) {
            (StoreUrl::Sqlite(a), StoreUrl::Sqlite(b)) => {
                for service in services {
                    let a = if a.is_dir() { file(a, *service) } else { a.clone() };
                    let b = if self.directory { file(b, *service) } else { b.clone() };
                    if is_same_file(&a, &b) {
                        return Err(refuse_path(&b, "is also the source"));
                    }
                }
                Ok(())
            }
            (StoreUrl::Postgres(a), StoreUrl::Postgres(b)) if is_same_database(a, b) => {
                Err(refuse_url(b, "is also the source".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Opens the records of a service. Makes and migrates the store.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub async fn open(&self, service: Service) -> Result<Box<dyn Import>, StoreError> {
        match &self.settings.url {
            StoreUrl::Memory => Err(no_memory()),
            StoreUrl::Sqlite(path) => {
                let path = if self.directory { file(path, service) } else { path.clone() };
                let opened = sqlite::bulk::Target::open(&path, service);
                Ok(Box::new(opened.map_err(|why| refuse_path(&path, &why))?))
            }
            StoreUrl::Postgres(url) => {
                let opened = postgres::bulk::Target::open(url, &self.settings, service).await;
                Ok(Box::new(opened.map_err(|why| refuse_url(url, why))?))
            }
        }
    }
}

/// Returns the file of a service in a directory, as `up` names it.
fn file(directory: &Path, service: Service) -> PathBuf {
    directory.join(format!("{}.db", service.name()))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn is_same_database(a: &PostgresUrl, b: &PostgresUrl) -> bool {
    let place = |url: &PostgresUrl| {
        let config = url.config();
        (config.get_hosts().to_vec(), config.get_ports().to_vec(), config.get_dbname().map(str::to_owned))
    };
    place(a) == place(b)
}

fn refuse_path(path: &Path, reason: &str) -> StoreError {
    StoreError::Open { path: path.display().to_string(), reason: reason.to_owned() }
}

fn refuse_url(url: &PostgresUrl, reason: String) -> StoreError {
    StoreError::Open { path: url.to_string(), reason }
}

fn no_memory() -> StoreError {
    StoreError::Open { path: "memory:".to_owned(), reason: "has no records for another process".to_owned() }
}
