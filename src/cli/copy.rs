//! The command `copy-store`.

use std::str::FromStr as _;

use clap::{Args, ValueEnum};

use crate::app::copy::Options;
use crate::config::StoreUrl;
use crate::store::bulk::{OnConflict, Service};

pub(super) const LONG_ABOUT: &str = "\
Copy the records of one store to another, and check them: `sqlite:PATH` to move one machine's data to another \
file. A PATH that is a directory stands for the files that `up` keeps in it: feed.db, profile.db and topic.db.

What is copied is the state of FROM at the moment when the command begins, whatever is written meanwhile. FROM is only \
read. TO may have other records, and may be in use: each page of 500 records is one transaction. Without \
--on-conflict, a record that both have with different content ends the copy, so that nothing newer is replaced by \
something older. Records that are in TO only are left there.

At the end every record of FROM is compared with TO. The command may be repeated at any time: what is there already is \
compared and not written again.";

pub(super) const AFTER_HELP: &str = "\
Examples:
  microservice-app copy-store sqlite:data sqlite:/srv/data

Exit status: 0 if every record of FROM is in TO, 1 if a store failed or a record differs, 2 for wrong flags, 130 after \
SIGINT, SIGTERM or SIGHUP (the page that was being written is finished; a second signal ends it at once).";

/// Arguments of `copy-store`.
#[derive(Debug, Args)]
pub struct CopyStore {
    /// The store to read.
    #[arg(value_parser = store)]
    from: StoreUrl,
    /// The store to write.
    #[arg(value_parser = store)]
    to: StoreUrl,
    /// Copy only the records of this service (may be given several times) [default: every service of FROM].
    #[arg(long, value_enum, value_name = "SERVICE")]
    service: Vec<Service>,
    /// What to do with a record that TO has with different content.
    #[arg(long, value_enum, default_value = "stop", value_name = "WHAT")]
    on_conflict: OnConflict,
}

impl CopyStore {
    /// Returns what is to be copied.
    #[must_use]
    pub fn options(&self) -> Options {
        let mut services = self.service.clone();
        services.sort_unstable();
        services.dedup();
        Options { from: self.from.clone(), to: self.to.clone(), services, on_conflict: self.on_conflict }
    }
}

fn store(text: &str) -> Result<StoreUrl, String> {
    match StoreUrl::from_str(text)? {
        StoreUrl::Memory => Err("another process has no access to the records in it".to_owned()),
        url => Ok(url),
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
