//! Whether the statements suit a cluster that distributes the rows over several servers by the first column of the key.

use super::super::bulk;
use super::service::{FEED, PROFILE, Service, TOPIC};

/// Returns a statement in small letters, blanks as one.
fn plain(statement: &str) -> String {
    statement.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Returns why a statement could not be sent to the servers that have its rows.
fn fault(statement: &str, table: &str, column: &str) -> Option<String> {
    let text = plain(statement);
    let ends =
        |at: usize| !text[at + table.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_');
    let reads = text.match_indices(table).filter(|(at, _)| ends(*at)).count();
    if reads != 1 {
        return Some(format!("it names {table} {reads} times"));
    }
    // Citus refuses it: each shard would ask for itself
    if text.find("delete from").is_some_and(|at| text[at..].contains("clock_timestamp")) {
        return Some("it asks for the time where it deletes".to_owned());
    }
    if text.contains(" on conflict ") {
        return (!text.contains(&format!(" on conflict ({column}")))
            .then(|| "the conflict has another key".to_owned());
    }
    let equal = [format!(" where {column} = $1"), format!("f.{column} = w.{column}")];
    (!equal.iter().any(|equal| text.contains(equal))).then(|| format!("{column} is not given"))
}

fn faults(service: &Service, bulk: bulk::Service) -> Vec<String> {
    let (table, column) = (format!("{}.{}", service.schema.name, bulk.table().name), bulk.table().key[0]);
    let wrong = |statement: &&String| fault(statement, &table, column).is_some();
    service.statements().iter().filter(wrong).map(|statement| plain(statement)).collect()
}

#[test]
fn every_statement_on_feeds_and_profiles_gives_the_distribution_column() {
    assert_eq!(faults(&FEED, bulk::Service::Feed), [""; 0]);
    assert_eq!(faults(&PROFILE, bulk::Service::Profile), [""; 0]);
    // a list of topics is one of all topics: a table that every server has
    let lists = faults(&TOPIC, bulk::Service::Topic);
    assert!(lists.len() == 1 && lists[0].contains("order by topic_id limit"), "{lists:?}");
}

#[test]
fn a_statement_without_the_distribution_column_is_found() {
    for (statement, good) in [
        ("SELECT 1 FROM feed.feeds WHERE user_id = $1 LIMIT 1", true),
        ("SELECT 1 FROM feed.feeds WHERE id = $1", false),
        ("SELECT count(*) FROM feed.feeds", false),
        ("SELECT 1 FROM feed.feeds WHERE user_id = $1 AND id > (SELECT min(id) FROM feed.feeds)", false),
        ("INSERT INTO feed.feeds (user_id, id) SELECT 1, 2 ON CONFLICT (user_id, id) DO NOTHING", true),
        ("INSERT INTO feed.feeds (user_id, id) SELECT 1, 2 ON CONFLICT (id, user_id) DO NOTHING", false),
        ("DELETE FROM feed.feeds AS f USING w WHERE f.user_id = w.user_id AND f.id = w.id", true),
        ("DELETE FROM feed.feeds AS f USING w WHERE f.id = w.id", false),
        (
            "DELETE FROM feed.feeds AS f USING w WHERE f.user_id = w.user_id AND clock_timestamp() < w.until",
            false,
        ),
    ] {
        assert_eq!(fault(statement, "feed.feeds", "user_id").is_none(), good, "{statement}");
    }
}
