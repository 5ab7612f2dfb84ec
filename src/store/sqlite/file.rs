//! Notices that the files of a store were taken away while it is in use.
//!
//! SQLite goes on with a file that no longer has its name: its writes succeed, and are gone when the process ends. So
//! the names are looked up again before a write is acknowledged.
//!
//! The files are never opened here: closing any descriptor of a file drops the locks that SQLite holds on it.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::super::error::StoreError;

/// The database, its write-ahead log and the index of that, as they were when the store was opened.
#[derive(Debug)]
pub struct Files([File; 3]);

/// A name and what it stood for.
#[derive(Debug)]
struct File {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// True if it has a header from the start, so that it is never empty.
    has_header: bool,
}

impl Files {
    /// Returns the files of a store that is open.
    ///
    /// # Errors
    /// When one of them cannot be looked up.
    pub fn of(path: &Path) -> io::Result<Self> {
        // SQLite follows links, and puts the other files beside the real one
        let real = path.canonicalize()?;
        let beside = |suffix| {
            let mut name = OsString::from(&real);
            name.push(suffix);
            File::of(name.into(), false)
        };
        Ok(Self([File::of(path.to_owned(), true)?, beside("-wal")?, beside("-shm")?]))
    }

    /// Checks that each name still stands for the same file.
    ///
    /// # Errors
    /// [`StoreError::Lost`].
    pub fn check(&self) -> Result<(), StoreError> {
        self.0.iter().try_for_each(File::check)
    }
}

impl File {
    fn of(path: PathBuf, has_header: bool) -> io::Result<Self> {
        let found = path.metadata()?;
        Ok(Self { path, device: found.dev(), inode: found.ino(), has_header })
    }

    fn check(&self) -> Result<(), StoreError> {
        let change = match self.path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => "was removed".to_owned(),
            Err(error) => format!("cannot be looked up ({error})"),
            Ok(found) if (found.dev(), found.ino()) != (self.device, self.inode) => "was replaced".to_owned(),
            Ok(found) if self.has_header && found.len() == 0 => "was emptied".to_owned(),
            Ok(_) => return Ok(()),
        };
        Err(StoreError::Lost(format!("{} {change}", self.path.display())))
    }
}
