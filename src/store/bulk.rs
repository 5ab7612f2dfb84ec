//! Records of any service, page by page: what copying asks of a store.

use std::ops::AddAssign;

use tonic::async_trait;

use super::error::StoreError;

/// A service that has a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// Feeds.
    Feed,
    /// Profiles.
    Profile,
    /// Topics.
    Topic,
}

impl Service {
    /// Every service that has a store.
    pub const ALL: [Self; 3] = [Self::Feed, Self::Profile, Self::Topic];

    /// Returns the name of the service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Feed => "feed",
            Self::Profile => "profile",
            Self::Topic => "topic",
        }
    }

    /// Returns the table of the service, which is the same in every store.
    #[must_use]
    pub const fn table(self) -> &'static Table {
        match self {
            Self::Feed => &FEEDS,
            Self::Profile => &PROFILES,
            Self::Topic => &TOPICS,
        }
    }
}

/// The table of a service.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// The columns of its primary key, numbers.
    pub key: &'static [&'static str],
    /// Its other columns, texts.
    pub texts: &'static [&'static str],
}

static FEEDS: Table = Table { name: "feeds", key: &["user_id", "id"], texts: &["content"] };
static PROFILES: Table = Table { name: "profiles", key: &["user_id"], texts: &["name", "company", "title"] };
static TOPICS: Table = Table { name: "topics", key: &["topic_id"], texts: &["subject", "content"] };

impl Table {
    /// Returns the columns, those of the key first.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.key.iter().chain(self.texts).copied()
    }

    /// Returns the key that comes before every record.
    #[must_use]
    pub fn start(&self) -> Vec<i64> {
        vec![i64::MIN; self.key.len()]
    }

    /// Returns how a message names a key: `user_id 7, id 100`.
    #[must_use]
    pub fn name_of(&self, key: &[i64]) -> String {
        let parts = self.key.iter().zip(key).map(|(column, value)| format!("{column} {value}"));
        parts.collect::<Vec<_>>().join(", ")
    }
}

/// A record of any service, in the order of the columns of its [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The primary key.
    pub key: Vec<i64>,
    /// The other columns.
    pub texts: Vec<String>,
}

/// What is done with a record that the target has with other texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// Nothing of its page is written.
    Stop,
    /// The target's stays.
    Keep,
    /// The source's replaces it.
    Overwrite,
}

/// What happened to the records of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Records that were not there, and are now.
    pub copied: u64,
    /// Records that were there with the same texts.
    pub same: u64,
    /// Records that were there with other texts, and are as before.
    pub kept: u64,
    /// Records that were there with other texts, and have those of the source now.
    pub overwritten: u64,
}

impl AddAssign for Written {
    fn add_assign(&mut self, page: Self) {
        let Self { copied, same, kept, overwritten } = page;
        self.copied += copied;
        self.same += same;
        self.kept += kept;
        self.overwritten += overwritten;
    }
}

/// How the writing of a page ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is durable.
    Written(Written),
    /// Nothing was written, because of the record with this key; see [`OnConflict::Stop`].
    Differs(Vec<i64>),
}

/// A store that is copied from: all of its records as they were at one moment, whatever is written meanwhile.
#[async_trait]
pub trait Export: Send + Sync {
    /// Returns how many records there are.
    async fn count(&self) -> Result<u64, StoreError>;
    /// Returns the `limit` records with the lowest keys above `after`, in the order of their keys.
    async fn scan(&self, after: &[i64], limit: usize) -> Result<Vec<Record>, StoreError>;
}

/// A store that is copied to. Others may use it meanwhile.
#[async_trait]
pub trait Import: Send + Sync {
    /// Returns how many records there are now.
    async fn count(&self) -> Result<u64, StoreError>;
    /// Returns those records of some keys that are there now, in any order.
    async fn get_many(&self, keys: Vec<Vec<i64>>) -> Result<Vec<Record>, StoreError>;
    /// Writes a page in one transaction. Its keys are different from each other.
    async fn put_many(&self, page: Vec<Record>, on_conflict: OnConflict) -> Result<Put, StoreError>;
}
