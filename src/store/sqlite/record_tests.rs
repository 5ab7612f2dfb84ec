//! What a group commit does for each of its callers, and what a read costs whatever there is.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rusqlite::{Connection, StatementStatus, ToSql, params};

use super::super::error::StoreError;
use super::super::traits::FeedStore as _;
use super::records::{ANY, NEWEST, PROFILE as PROFILE_OF, TOPIC as TOPIC_OF, TOPICS};
use super::schema::Schema;
use super::{FEED, PROFILE, Sqlite, TOPIC};
use crate::api::proto::feed::FeedRecord;

/// A store, and another connection to its file.
fn store(dir: &tempfile::TempDir, schema: &'static Schema) -> (Sqlite, Connection) {
    let path = dir.path().join("test.db");
    let store = Sqlite::open(&path, schema).unwrap();
    let other = Connection::open(&path).unwrap();
    other.busy_timeout(Duration::from_secs(5)).unwrap();
    (store, other)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

fn record(id: i64, content: &str) -> FeedRecord {
    FeedRecord { id, user_id: 7, content: content.to_owned() }
}

/// Makes writes as one group commit: all of them queue while another program holds the lock, behind a first one that
/// waits for it.
async fn together<T>(
    store: &Sqlite,
    other: &Connection,
    writes: impl IntoIterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        other.execute_batch("COMMIT").unwrap();
    };
    let first = store.create(record(i64::MAX, "first"), soon());
    let (first, results, ()) = tokio::join!(first, join_all(writes), release);
    first.unwrap();
    results
}

#[tokio::test]
async fn a_row_that_is_refused_fails_its_caller_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (store, other) = store(&dir, &FEED);
    // no row that a service lets through breaks a rule of the tables, so this is one more
    let rule = "CREATE TRIGGER rule BEFORE INSERT ON feeds WHEN NEW.content = 'bad'
        BEGIN SELECT RAISE(ABORT, 'a bad row'); END";
    other.execute_batch(rule).unwrap();
    let content = |id: i64| if id % 10 == 3 { "bad" } else { "good" };
    let writes = (1..=100).map(|id| store.create(record(id, content(id)), soon()));
    let results = together(&store, &other, writes).await;
    for (id, result) in (1..=100).zip(results) {
        match result {
            Ok(()) => assert_eq!(content(id), "good", "{id}"),
            Err(StoreError::Failed(reason)) => {
                assert_eq!((content(id), reason.as_str()), ("bad", "a bad row"), "{id}");
            }
            Err(error) => panic!("{id}: {error}"),
        }
    }
    let kept = store.newest(7, 1000, i64::MAX).await.unwrap().unwrap().feeds;
    assert_eq!(kept.len(), 90);
    assert!(kept.iter().all(|feed| feed.content == "good"));
}

#[tokio::test]
async fn writes_of_one_key_keep_their_order_and_each_caller_has_its_own_result() {
    let dir = tempfile::tempdir().unwrap();
    let (store, other) = store(&dir, &FEED);
    // writing and deleting in turn: each delete but the first finds what was written just before. They are few enough
    // for one turn of a task, in which they queue in this order.
    let writes = (0..100).map(async |step| {
        if step % 2 == 0 {
            return store.delete(7, 1, soon()).await.unwrap();
        }
        store.create(record(1, &step.to_string()), soon()).await.unwrap();
        true
    });
    let results = together(&store, &other, writes).await;
    assert_eq!(results.iter().position(|found| *found), Some(1));
    assert_eq!(results.iter().filter(|found| **found).count(), 99);
    let page = store.newest(7, 1, i64::MAX).await.unwrap().unwrap();
    assert_eq!(page.feeds[0].content, "99");
}

/// Returns how SQLite means to answer a query.
fn plan(db: &Connection, query: &str) -> Vec<String> {
    let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
    let filled = vec![1; explain.parameter_count()];
    let step = |row: &rusqlite::Row<'_>| row.get("detail");
    explain.query_map(rusqlite::params_from_iter(filled), step).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_read_searches_by_its_key_and_sorts_nothing() {
    for (schema, query, expected) in [
        (&FEED, NEWEST, "SEARCH feeds USING PRIMARY KEY (user_id=? AND id<?)"),
        (&FEED, ANY, "SEARCH feeds USING PRIMARY KEY (user_id=?)"),
        (&PROFILE, PROFILE_OF, "SEARCH profiles USING INTEGER PRIMARY KEY (rowid=?)"),
        (&TOPIC, TOPIC_OF, "SEARCH topics USING INTEGER PRIMARY KEY (rowid=?)"),
        (&TOPIC, TOPICS, "SEARCH topics USING INTEGER PRIMARY KEY (rowid>?)"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (_store, db) = store(&dir, schema);
        assert_eq!(plan(&db, query), [expected], "{query}");
    }
}

/// Runs a query to its end; returns the rows and the steps of SQLite's machine.
fn steps(db: &Connection, query: &str, params: &[&dyn ToSql]) -> (usize, i32) {
    let mut statement = db.prepare(query).unwrap();
    let rows = statement.query(params).unwrap().mapped(|_| Ok(())).count();
    (rows, statement.get_status(StatementStatus::VmStep))
}

#[test]
fn a_read_takes_as_many_steps_whatever_there_is() {
    let mut costs = Vec::new();
    for feeds in [1_000, 200_000] {
        let dir = tempfile::tempdir().unwrap();
        let (_store, db) = store(&dir, &FEED);
        // half of them are of one user, the others of many
        let fill =
            "INSERT INTO feeds WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
            SELECT CASE WHEN n % 2 = 0 THEN 7 ELSE 8 + n / 100 END, n, 'x' FROM n";
        db.execute(fill, params![feeds]).unwrap();
        let newest = |user: i64, highest: i64| steps(&db, NEWEST, params![user, highest, 20]);
        costs.push([newest(7, i64::MAX), newest(7, feeds / 2), newest(8, i64::MAX), newest(6, i64::MAX)]);
        assert_eq!(steps(&db, ANY, params![7]).0, 1);
    }
    assert_eq!(costs[0].map(|(rows, _)| rows), [20, 20, 20, 0]);
    assert_eq!(costs[0], costs[1]);
}
