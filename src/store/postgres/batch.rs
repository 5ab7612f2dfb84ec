//! One group commit: which writes go into which statement.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio_postgres::types::ToSql;

use super::super::records::{Profile, Topic};
use super::service::{DELETE, PUT, PUT_ONE};
use crate::api::proto::feed::FeedRecord;

/// One write.
#[derive(Clone, Debug)]
pub enum Write {
    /// Writes a feed.
    PutFeed(FeedRecord),
    /// Deletes a feed.
    DeleteFeed {
        /// First part of its key.
        user_id: i64,
        /// Second part of its key.
        id: i64,
    },
    /// Writes a profile.
    PutProfile(Profile),
    /// Writes a topic.
    PutTopic(Topic),
}

/// The key of a record; the second part is 0 for profiles and topics.
pub type Key = (i64, i64);

impl Write {
    /// Returns the key of the record.
    pub const fn key(&self) -> Key {
        match self {
            Self::PutFeed(feed) => (feed.user_id, feed.id),
            Self::DeleteFeed { user_id, id } => (*user_id, *id),
            Self::PutProfile(profile) => (profile.user_id, 0),
            Self::PutTopic(topic) => (topic.topic_id, 0),
        }
    }

    /// Returns the length of its texts, bytes.
    pub const fn bytes(&self) -> usize {
        match self {
            Self::PutFeed(feed) => feed.content.len(),
            Self::DeleteFeed { .. } => 0,
            Self::PutProfile(profile) => profile.name.len() + profile.company.len() + profile.title.len(),
            Self::PutTopic(topic) => topic.subject.len() + topic.content.len(),
        }
    }

    /// Returns its texts, in the order of the columns of the table.
    fn texts(&self) -> Vec<&String> {
        match self {
            Self::PutFeed(feed) => vec![&feed.content],
            Self::DeleteFeed { .. } => Vec::new(),
            Self::PutProfile(profile) => vec![&profile.name, &profile.company, &profile.title],
            Self::PutTopic(topic) => vec![&topic.subject, &topic.content],
        }
    }

    /// Returns how many columns its key has.
    const fn key_columns(&self) -> usize {
        match self {
            Self::PutFeed(_) | Self::DeleteFeed { .. } => 2,
            Self::PutProfile(_) | Self::PutTopic(_) => 1,
        }
    }

    /// Returns the number of its statement.
    const fn statement(&self) -> usize {
        match self {
            Self::PutFeed(_) | Self::PutProfile(_) | Self::PutTopic(_) => PUT,
            Self::DeleteFeed { .. } => DELETE,
        }
    }
}

/// A parameter of a statement.
pub type Parameter = Box<dyn ToSql + Sync + Send>;

/// One statement of a transaction.
pub struct Command {
    /// The number of the statement.
    pub statement: usize,
    /// A value for each column, of several writes an array, and the time until which it may begin.
    pub parameters: Vec<Parameter>,
    /// The numbers of its writes, in the order of their keys.
    pub writes: Vec<usize>,
}

/// Returns the statements that make these writes, in order. Each key occurs once in the statements of a run, so that the
/// order of the writes of one key is kept, and each deletion learns whether the record was there. Keys are sorted, so that
/// transactions that meet lock rows in the same order.
pub fn commands(writes: &[(&Write, SystemTime)]) -> Vec<Command> {
    let mut seen: HashMap<Key, usize> = HashMap::with_capacity(writes.len());
    let mut placed: Vec<(usize, usize, Key, usize)> = Vec::with_capacity(writes.len());
    for (number, (write, _)) in writes.iter().enumerate() {
        let run = seen.entry(write.key()).or_default();
        placed.push((*run, write.statement(), write.key(), number));
        *run += 1;
    }
    placed.sort_unstable();
    let same_statement =
        |a: &(usize, usize, Key, usize), b: &(usize, usize, Key, usize)| (a.0, a.1) == (b.0, b.1);
    placed
        .chunk_by(same_statement)
        .map(|chunk| {
            let numbers: Vec<usize> = chunk.iter().map(|placed| placed.3).collect();
            let chosen: Vec<_> = numbers.iter().filter_map(|number| writes.get(*number)).collect();
            let (statement, parameters) = match (chunk.first().map_or(PUT, |placed| placed.1), &chosen[..]) {
                (PUT, [one]) => (PUT_ONE, values(one)),
                (statement, several) => (statement, columns(several)),
            };
            Command { statement, parameters, writes: numbers }
        })
        .collect()
}

/// Returns the values of one write.
fn values((write, until): &(&Write, SystemTime)) -> Vec<Parameter> {
    let (first, second) = write.key();
    let numbers = [first, second].into_iter().take(write.key_columns()).map(|n| Box::new(n) as Parameter);
    let texts = write.texts().into_iter().map(|text| Box::new(text.clone()) as Parameter);
    numbers.chain(texts).chain([Box::new(*until) as Parameter]).collect()
}

/// Returns the columns of writes of the same kind.
fn columns(writes: &[&(&Write, SystemTime)]) -> Vec<Parameter> {
    let mut numbers: [Vec<i64>; 2] = Default::default();
    let mut texts: [Vec<String>; 3] = Default::default();
    let mut until = Vec::with_capacity(writes.len());
    let (mut keys, mut fields) = (1, 0);
    for (write, time) in writes {
        let (first, second) = write.key();
        let row = write.texts();
        (keys, fields) = (write.key_columns(), row.len());
        for (column, value) in numbers.iter_mut().zip([first, second]) {
            column.push(value);
        }
        for (column, text) in texts.iter_mut().zip(row) {
            column.push(text.clone());
        }
        until.push(*time);
    }
    let numbers = numbers.into_iter().take(keys).map(|column| Box::new(column) as Parameter);
    let texts = texts.into_iter().take(fields).map(|column| Box::new(column) as Parameter);
    numbers.chain(texts).chain([Box::new(until) as Parameter]).collect()
}
