//! The schema and the statements of each service. Every key and index begins with the column by which a cluster
//! distributes the rows, and every statement on one user or topic names it.
//!
//! A write carries the time until which it may begin, by the clock of the server: what was held up on its way does not
//! come after what its caller has written since. The limits of the session end its waits for records (`commit.rs`).

use super::super::bulk;
use super::schema::Schema;
use super::sql;

/// What a service has in the database.
#[derive(Debug)]
pub struct Service {
    pub schema: Schema,
    pub table: &'static bulk::Table,
    /// The statements beside those that write records, from [`GET`] on.
    others: &'static [&'static str],
}

/// The number of the statement that writes records, the same in every service.
pub const PUT: usize = 0;
/// The number of the statement that writes one record, which costs the server less than [`PUT`] with one.
pub const PUT_ONE: usize = 1;
/// The number of the statement that reads one record or the newest ones.
pub const GET: usize = 2;
/// Topics: a page of summaries.
pub const LIST: usize = 3;
/// Feeds: whether a user has any.
pub const ANY: usize = 3;
/// Feeds: deletes some.
pub const DELETE: usize = 4;
/// Feeds: looks whether some could be inserted, for a transaction that is rolled back.
pub const PROBE: usize = 5;

impl Service {
    /// Returns the same service with other migrations.
    pub const fn migrated_by(&self, migrations: &'static [(&'static str, &'static str)]) -> Self {
        let Schema { name, lock, .. } = self.schema;
        Self { schema: Schema { name, lock, migrations }, table: self.table, others: self.others }
    }

    /// Returns the statements, by their numbers.
    pub fn statements(&self) -> Vec<String> {
        let (schema, table) = (self.schema.name, self.table);
        let writes = [sql::put_many(schema, table), sql::put_one(schema, table)];
        writes.into_iter().chain(self.others.iter().map(|text| (*text).to_owned())).collect()
    }
}

/// Feeds.
pub static FEED: Service = Service {
    schema: Schema {
        name: "feed",
        lock: 1,
        migrations: &[("V1__feeds", include_str!("migrations/feed/V1__feeds.sql"))],
    },
    table: bulk::Service::Feed.table(),
    others: &[
        // the content of the first record over the limit is not read: that it is there says enough. One without a content is
        // read like any other, so that it is an error
        "SELECT id, CASE WHEN bytes <= $4 THEN content ELSE '' END, bytes > $4 AS is_rest
         FROM (
             SELECT id, content, sum(coalesce(octet_length(content), 0))
                 OVER (ORDER BY id DESC ROWS UNBOUNDED PRECEDING) AS bytes
             FROM feed.feeds WHERE user_id = $1 AND id <= $2 ORDER BY id DESC LIMIT $3
         ) AS newest
         WHERE bytes - coalesce(octet_length(content), 0) <= $4 ORDER BY id DESC",
        "SELECT 1 FROM feed.feeds WHERE user_id = $1 LIMIT 1",
        // the time is looked at apart: a cluster refuses to ask for it where rows are deleted
        "WITH w AS MATERIALIZED (
             SELECT user_id, id FROM unnest($1::bigint[], $2::bigint[]) AS w (user_id, id)
             WHERE clock_timestamp() < $3::timestamptz
         )
         DELETE FROM feed.feeds AS f USING w WHERE f.user_id = w.user_id AND f.id = w.id
         RETURNING f.user_id, f.id",
        "INSERT INTO feed.feeds (user_id, id, content)
         SELECT w.user_id, w.id, ''
         FROM unnest($1::bigint[], $2::bigint[]) AS w (user_id, id)
         WHERE clock_timestamp() < $3::timestamptz
         ON CONFLICT (user_id, id) DO NOTHING
         RETURNING user_id, id",
    ],
};

/// Profiles.
pub static PROFILE: Service = Service {
    schema: Schema {
        name: "profile",
        lock: 2,
        migrations: &[("V1__profiles", include_str!("migrations/profile/V1__profiles.sql"))],
    },
    table: bulk::Service::Profile.table(),
    others: &["SELECT name, company, title FROM profile.profiles WHERE user_id = $1"],
};

/// Topics.
pub static TOPIC: Service = Service {
    schema: Schema {
        name: "topic",
        lock: 3,
        migrations: &[("V1__topics", include_str!("migrations/topic/V1__topics.sql"))],
    },
    table: bulk::Service::Topic.table(),
    others: &[
        "SELECT subject, content FROM topic.topics WHERE topic_id = $1",
        "SELECT topic_id, subject FROM topic.topics WHERE topic_id > $1 ORDER BY topic_id LIMIT $2",
    ],
};

#[cfg(test)]
mod tests {
    use refinery::Migration;

    use super::*;

    /// A database that has made a migration refuses a program in which it reads otherwise. So a script never changes once it is
    /// released; a change is a new one.
    #[test]
    fn released_migrations_stay_as_they_are() {
        let first = [&FEED, &PROFILE, &TOPIC].map(|service| {
            let (name, script) = service.schema.migrations[0];
            Migration::unapplied(name, script).unwrap().checksum()
        });
        assert_eq!(
            first,
            [10_044_695_733_268_214_501, 11_380_347_702_782_601_748, 13_604_415_171_858_285_561]
        );
    }
}
