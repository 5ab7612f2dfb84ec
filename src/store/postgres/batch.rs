//! One group commit: which writes go into which statement.

use std::collections::HashMap;
use std::error::Error;
use std::time::SystemTime;

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type};

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

    /// Returns its texts, in the order of the columns of the table. Those that the table does not have are `None`.
    fn texts(&self) -> [Option<&str>; 3] {
        match self {
            Self::PutFeed(feed) => [Some(&feed.content), None, None],
            Self::DeleteFeed { .. } => [None; 3],
            Self::PutProfile(profile) => [Some(&profile.name), Some(&profile.company), Some(&profile.title)],
            Self::PutTopic(topic) => [Some(&topic.subject), Some(&topic.content), None],
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

/// A parameter of a statement. Texts are those of the writes: none is copied before it is sent.
#[derive(Debug)]
pub enum Parameter<'a> {
    /// A column of a key, of one write.
    Number(i64),
    /// A text of one write.
    Text(&'a str),
    /// A column of a key, of several writes.
    Numbers(Vec<i64>),
    /// A column of texts, of several writes.
    Texts(Vec<&'a str>),
    /// The time before which each write has to begin.
    Until(SystemTime),
}

impl Parameter<'_> {
    fn value(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Number(number) => number,
            Self::Text(text) => text,
            Self::Numbers(numbers) => numbers,
            Self::Texts(texts) => texts,
            Self::Until(time) => time,
        }
    }
}

impl ToSql for Parameter<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql_checked(ty, out)
    }

    /// The value is what checks the type, see [`Self::to_sql_checked`].
    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.value().to_sql_checked(ty, out)
    }
}

/// One statement of a transaction.
pub struct Command<'a> {
    /// The number of the statement.
    pub statement: usize,
    /// A value for each column, of several writes an array, and the time before which each write has to begin.
    pub parameters: Vec<Parameter<'a>>,
    /// The numbers of its writes, in the order of their keys.
    pub writes: Vec<usize>,
}

/// Returns the statements that make these writes, in order. Each key occurs once in the statements of a run, so that the
/// order of the writes of one key is kept, and each deletion learns whether the record was there. The keys of a run are
/// sorted, whether they are written or deleted, so that transactions that meet lock records in the same order. The later
/// runs have only keys that the first one has locked if none of them is written after its deletion. No write begins after
/// `until`.
pub fn commands<'a>(writes: &[&'a Write], until: SystemTime) -> Vec<Command<'a>> {
    if let [one] = writes {
        return vec![command(&[one], vec![0], until)];
    }
    let mut seen: HashMap<Key, usize> = HashMap::with_capacity(writes.len());
    let mut placed: Vec<(usize, Key, usize, usize)> = Vec::with_capacity(writes.len());
    for (number, write) in writes.iter().enumerate() {
        let run = seen.entry(write.key()).or_default();
        placed.push((*run, write.key(), write.statement(), number));
        *run += 1;
    }
    placed.sort_unstable();
    let same_statement =
        |a: &(usize, Key, usize, usize), b: &(usize, Key, usize, usize)| (a.0, a.2) == (b.0, b.2);
    placed
        .chunk_by(same_statement)
        .map(|chunk| {
            let numbers: Vec<usize> = chunk.iter().map(|placed| placed.3).collect();
            let chosen: Vec<_> = numbers.iter().filter_map(|number| writes.get(*number).copied()).collect();
            command(&chosen, numbers, until)
        })
        .collect()
}

/// Returns the statement of writes of the same kind with different keys.
fn command<'a>(chosen: &[&'a Write], numbers: Vec<usize>, until: SystemTime) -> Command<'a> {
    let (statement, mut parameters) = match chosen {
        [one] if one.statement() == PUT => (PUT_ONE, values(one)),
        several => (several.first().map_or(PUT, |write| write.statement()), columns(several)),
    };
    parameters.push(Parameter::Until(until));
    Command { statement, parameters, writes: numbers }
}

/// Columns of the widest table, and the time.
const PARAMETERS: usize = 5;

/// Returns the values of one write.
fn values(write: &Write) -> Vec<Parameter<'_>> {
    let mut values = Vec::with_capacity(PARAMETERS);
    let (first, second) = write.key();
    values.extend([first, second].into_iter().take(write.key_columns()).map(Parameter::Number));
    values.extend(write.texts().into_iter().flatten().map(Parameter::Text));
    values
}

/// Returns the columns of writes of the same kind.
fn columns<'a>(writes: &[&'a Write]) -> Vec<Parameter<'a>> {
    let mut numbers: [Vec<i64>; 2] = Default::default();
    let mut texts: [Vec<&str>; 3] = Default::default();
    let (mut keys, mut fields) = (1, 0);
    for write in writes {
        let (first, second) = write.key();
        let row = write.texts();
        (keys, fields) = (write.key_columns(), row.iter().flatten().count());
        for (column, value) in numbers.iter_mut().zip([first, second]) {
            column.push(value);
        }
        for (column, text) in texts.iter_mut().zip(row.into_iter().flatten()) {
            column.push(text);
        }
    }
    let numbers = numbers.into_iter().take(keys).map(Parameter::Numbers);
    let texts = texts.into_iter().take(fields).map(Parameter::Texts);
    numbers.chain(texts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(id: i64) -> Write {
        Write::PutFeed(FeedRecord { id, user_id: 7, content: "x".to_owned() })
    }

    fn delete(id: i64) -> Write {
        Write::DeleteFeed { user_id: 7, id }
    }

    /// Returns the statements and the ids in each, in order.
    fn order(writes: &[Write]) -> Vec<(usize, Vec<i64>)> {
        let writes: Vec<_> = writes.iter().collect();
        let ids =
            |command: &Command<'_>| command.writes.iter().map(|number| writes[*number].key().1).collect();
        let commands = commands(&writes, SystemTime::UNIX_EPOCH);
        commands.iter().map(|command| (command.statement, ids(command))).collect()
    }

    #[test]
    fn puts_and_deletions_lock_records_in_one_order() {
        for writes in [[put(5), delete(1)], [delete(5), put(1)]] {
            let ids: Vec<_> = order(&writes).into_iter().flat_map(|(_, ids)| ids).collect();
            assert_eq!(ids, [1, 5]);
        }
        let mixed = [put(9), delete(3), put(1), put(9), delete(4), put(2), delete(9)];
        let want = [
            (PUT, vec![1, 2]),
            (DELETE, vec![3, 4]),
            (PUT_ONE, vec![9]),
            (PUT_ONE, vec![9]),
            (DELETE, vec![9]),
        ];
        assert_eq!(order(&mixed), want);
        assert_eq!(order(&[put(3), put(1), put(2)]), [(PUT, vec![1, 2, 3])]);
    }
}
