//! The command `copy-store`.

use std::path::PathBuf;
use std::str::FromStr as _;

use clap::{Args, ValueEnum};

use crate::app::copy::Options;
use crate::config::{self, ConfigError, Role, Source, Store, StoreUrl};
use crate::store::bulk::{OnConflict, Service};

pub(super) const LONG_ABOUT: &str = "\
Copy the records of one store to another, and check them: `sqlite:PATH` to `postgres://USER@HOST/DATABASE` to move one \
machine's data to a shared database, or the other way round, or between two of a kind. A PATH that is a directory \
stands for the files that `up` keeps in it: feed.db, profile.db and topic.db. The password and the certificates for \
PostgreSQL come from files that the settings name, as for a service: `store.password_file` and the like, in the file \
of --config or as MSA__STORE__PASSWORD_FILE.

The records of a service are copied as they are at the moment when their copy begins, whatever is written meanwhile. \
FROM is only read. TO may have other records, and may be in use: each page of 250 records is one transaction. Without \
--on-conflict, a record that both have with different content ends the copy, so that nothing newer is replaced by \
something older. Records that are in TO only are left there.

At the end every record of FROM is compared with TO. The command may be repeated at any time: what is there already is \
compared and not written again.";

pub(super) const AFTER_HELP: &str = "\
Examples:
  microservice-app copy-store sqlite:data postgres://app@db.example/msa --config feed.toml
  microservice-app copy-store postgres://app@db.example/msa sqlite:feed.db --service feed

Exit status: 0 if every record of FROM is in TO, 1 if a store failed or a record differs, 2 for wrong flags or settings, 130 after \
SIGINT, SIGTERM or SIGHUP (the page that was being written is finished; a second signal ends it at once).";

/// Arguments of `copy-store`.
#[derive(Debug, Args)]
pub struct CopyStore {
    // as texts: the parser of flags would print one that it refuses, and with it a password
    /// The store to read.
    from: String,
    /// The store to write.
    to: String,
    /// Copy only the records of this service (may be given several times) [default: every service of FROM].
    #[arg(long, value_enum, value_name = "SERVICE")]
    service: Vec<Service>,
    /// Settings file (TOML) of a service: what its section `store` says of PostgreSQL, but for the URL.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The same for FROM alone [default: that of --config].
    #[arg(long, value_name = "FILE")]
    from_config: Option<PathBuf>,
    /// What to do with a record that TO has with different content.
    #[arg(long, value_enum, default_value = "stop", value_name = "WHAT")]
    on_conflict: OnConflict,
}

impl CopyStore {
    /// Returns what is to be copied, and how the two stores are reached.
    ///
    /// # Errors
    /// What is wrong in the settings for PostgreSQL.
    pub fn options(&self) -> Result<Options, ConfigError> {
        let mut services = self.service.clone();
        services.sort_unstable();
        services.dedup();
        Ok(Options {
            from: settings(&self.from, "FROM", self.from_config.as_ref().or(self.config.as_ref()))?,
            to: settings(&self.to, "TO", self.config.as_ref())?,
            services,
            on_conflict: self.on_conflict,
        })
    }
}

/// Returns how a store is reached: PostgreSQL by the settings of a service, a file by its name alone.
fn settings(url: &str, argument: &str, file: Option<&PathBuf>) -> Result<Store, ConfigError> {
    let wrong = |reason| ConfigError::Value { key: "store.url", origin: argument.to_owned(), reason };
    match StoreUrl::from_str(url).map_err(wrong)? {
        StoreUrl::Memory => {
            Err(wrong("another process has no access to the records in `memory:`".to_owned()))
        }
        url @ StoreUrl::Sqlite(_) => Ok(Store { url, ..Store::default() }),
        StoreUrl::Postgres(_) => {
            let flags = vec![("store.url", "FROM or TO", url.to_owned())];
            let source = Source { file: file.cloned(), flags, env: None };
            // the three services have the same settings of the store
            config::load(Role::Feed, &source).map(|settings| settings.store)
        }
    }
}

impl ValueEnum for Service {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

impl ValueEnum for OnConflict {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Stop, Self::Keep, Self::Overwrite]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        let value = clap::builder::PossibleValue::new;
        Some(match self {
            Self::Stop => {
                value("stop").help("End with status 1 and name the record; nothing of its page is written")
            }
            Self::Keep => value("keep").help("Leave the record of TO as it is, and count it"),
            Self::Overwrite => value("overwrite").help("Replace it by the record of FROM"),
        })
    }
}
