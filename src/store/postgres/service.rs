//! The schema and the statements of each service. Every key and index begins with the column by which a cluster
//! distributes the rows, and every statement on one user or topic names it.
//!
//! A write carries the time until which it may begin, by the clock of the server: what was held up on its way does not
//! come after what its caller has written since. The limits of the session end its waits for records (`commit.rs`).

use super::schema::Schema;

/// What a service has in the database.
#[derive(Debug)]
pub struct Service {
    pub schema: Schema,
    /// The statements, by the numbers below.
    pub statements: &'static [&'static str],
}

/// The number of the statement that writes records, the same in every service.
pub const PUT: usize = 0;
/// The number of the statement that reads one record or the newest ones.
pub const GET: usize = 1;
/// Topics: a page of summaries.
pub const LIST: usize = 2;
/// Feeds: whether a user has any.
pub const ANY: usize = 2;
/// Feeds: deletes some.
pub const DELETE: usize = 3;
/// Feeds: looks whether some could be inserted, for a transaction that is rolled back.
pub const PROBE: usize = 4;

/// Feeds.
pub static FEED: Service = Service {
    schema: Schema {
        name: "feed",
        lock: 1,
        migrations: &[("V1__feeds", include_str!("migrations/feed/V1__feeds.sql"))],
    },
    statements: &[
        "INSERT INTO feed.feeds (user_id, id, content)
         SELECT w.user_id, w.id, w.content
         FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::timestamptz[]) AS w (user_id, id, content, until)
         WHERE clock_timestamp() < w.until
         ON CONFLICT (user_id, id) DO UPDATE SET content = excluded.content
         RETURNING user_id, id",
        // the content of the first record over the limit is not read: that it is there says enough
        "SELECT id, CASE WHEN bytes <= $4 THEN content END
         FROM (
             SELECT id, content, sum(octet_length(content)) OVER (ORDER BY id DESC ROWS UNBOUNDED PRECEDING) AS bytes
             FROM feed.feeds WHERE user_id = $1 AND id <= $2 ORDER BY id DESC LIMIT $3
         ) AS newest
         WHERE bytes - octet_length(content) <= $4 ORDER BY id DESC",
        "SELECT 1 FROM feed.feeds WHERE user_id = $1 LIMIT 1",
        "DELETE FROM feed.feeds AS f
         USING unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) AS w (user_id, id, until)
         WHERE f.user_id = w.user_id AND f.id = w.id AND clock_timestamp() < w.until
         RETURNING f.user_id, f.id",
        "INSERT INTO feed.feeds (user_id, id, content)
         SELECT w.user_id, w.id, ''
         FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) AS w (user_id, id, until)
         WHERE clock_timestamp() < w.until
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
    statements: &[
        "INSERT INTO profile.profiles (user_id, name, company, title)
         SELECT w.user_id, w.name, w.company, w.title
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
              AS w (user_id, name, company, title, until)
         WHERE clock_timestamp() < w.until
         ON CONFLICT (user_id) DO UPDATE
         SET name = excluded.name, company = excluded.company, title = excluded.title
         RETURNING user_id, 0::bigint",
        "SELECT name, company, title FROM profile.profiles WHERE user_id = $1",
    ],
};

/// Topics.
pub static TOPIC: Service = Service {
    schema: Schema {
        name: "topic",
        lock: 3,
        migrations: &[("V1__topics", include_str!("migrations/topic/V1__topics.sql"))],
    },
    statements: &[
        "INSERT INTO topic.topics (topic_id, subject, content)
         SELECT w.topic_id, w.subject, w.content
         FROM unnest($1::bigint[], $2::text[], $3::text[], $4::timestamptz[]) AS w (topic_id, subject, content, until)
         WHERE clock_timestamp() < w.until
         ON CONFLICT (topic_id) DO UPDATE SET subject = excluded.subject, content = excluded.content
         RETURNING topic_id, 0::bigint",
        "SELECT subject, content FROM topic.topics WHERE topic_id = $1",
        "SELECT topic_id, subject FROM topic.topics WHERE topic_id > $1 ORDER BY topic_id LIMIT $2",
    ],
};
