//! The roles of docs/storage.md with the least rights: what a service that was taken over can do in the database, tried.

use std::path::Path;
use std::process::{Command, Stdio};

use microservice_app::store::{self, Profile, Topic};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::super::contract::{at, metrics, record, soon};
use super::{feed, found, open, wait_until_well};
use crate::kit::postgres::{Postgres, connect, program};
use crate::kit::wait_for;

/// Returns the commands of a block of the page that begin so.
fn block(begins: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/storage.md");
    let page = std::fs::read_to_string(path).unwrap();
    let from = page.find(&format!("\n    {begins}")).unwrap_or_else(|| panic!("no block {begins}"));
    let lines = page[from + 1..].lines().map_while(|line| line.strip_prefix("    "));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Runs a block as the superuser does.
fn run(server: &Postgres, script: &str) {
    let psql = program("psql", Path::new("/"));
    let programs = Path::new(psql.get_program()).parent().unwrap().display().to_string();
    let mut command = Command::new("bash");
    command.args(["-ec", script]).stdin(Stdio::null());
    command.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
    command.env("PGHOST", server.addr.ip().to_string()).env("PGPORT", server.addr.port().to_string());
    let output = command.env("PGUSER", "postgres").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Tries a statement that has to be refused for want of a right.
async fn refused(client: &Client, statement: &str) -> Option<String> {
    match client.batch_execute(statement).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => None,
        Err(error) => Some(format!("{statement}: {error:?}")),
        Ok(()) => Some(format!("{statement}: it may")),
    }
}

/// Waits until all services have migrated.
async fn wait_for_tables(admin: &Client) {
    wait_for("all have migrated", || async {
        let tables = "SELECT count(*) FROM pg_tables WHERE tablename IN ('feeds', 'profiles', 'topics')";
        (admin.query_one(tables, &[]).await.unwrap().get::<_, i64>(0) == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_can_do_in_the_database_what_it_needs_and_nothing_more() {
    let server = Postgres::start().await;
    run(&server, &block("for s in feed profile topic; do # roles"));
    // the owner migrates
    let url = |role: &str| server.url().replace("app@", &format!("{role}@"));
    drop(feed(&url("feed_owner")).await);
    store::profile(&at(&url("profile_owner")), &metrics()).await.unwrap();
    store::topic(&at(&url("topic_owner")), &metrics()).await.unwrap();
    let admin = server.admin().await;
    wait_for_tables(&admin).await;
    run(&server, &block("for s in feed profile topic; do # rights"));

    let store = open(&at(&url("feed"))).await.unwrap();
    wait_until_well(store.as_ref()).await;
    assert_eq!(store.warnings(), [""; 0]);
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    store.create(record(7, 1, "y"), soon()).await.unwrap();
    store.create(record(7, 2, "x"), soon()).await.unwrap();
    assert!(store.delete(7, 1, soon()).await.unwrap());
    assert_eq!(found(store.as_ref(), 7).await, [2]);

    let taken_over = connect(server.addr, "feed", "msa").await.unwrap();
    let mut failed = Vec::new();
    for statement in [
        // the records of others
        "SELECT * FROM topic.topics",
        "INSERT INTO topic.topics VALUES (1, '', '')",
        "DELETE FROM profile.profiles",
        "DO $$ BEGIN LOCK TABLE topic.topics; END $$",
        "TRUNCATE topic.topics",
        // its own tables, beyond the records
        "TRUNCATE feed.feeds",
        "DROP TABLE feed.feeds",
        "ALTER TABLE feed.feeds ADD COLUMN x int",
        "CREATE INDEX ON feed.feeds (content)",
        "CREATE TABLE feed.other (id int)",
        "DROP SCHEMA feed CASCADE",
        "INSERT INTO feed.migrations VALUES (9, 'later', '2030-01-01T00:00:00Z', '1')",
        "UPDATE feed.compatibility SET version = 9",
        "GRANT SELECT ON feed.feeds TO topic WITH GRANT OPTION",
        // the database and the server
        "CREATE SCHEMA other",
        "CREATE TABLE public.other (id int)",
        "CREATE TEMPORARY TABLE other (id int)",
        "CREATE ROLE other",
        "CREATE DATABASE other",
        "SET ROLE feed_owner",
        "SET ROLE topic",
        "SET ROLE postgres",
        "SELECT * FROM pg_authid",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        "ALTER SYSTEM SET fsync = off",
        "CHECKPOINT",
    ] {
        // PostgreSQL takes a grant without a right as one of nothing, with a warning
        if statement.starts_with("GRANT") {
            let _ = taken_over.batch_execute(statement).await;
            continue;
        }
        failed.extend(refused(&taken_over, statement).await);
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // the other roles, and the owner of a schema, towards the schemas of others
    for (role, foreign) in [
        ("profile", "feed.feeds"),
        ("profile", "topic.topics"),
        ("topic", "feed.feeds"),
        ("topic", "profile.profiles"),
        ("feed_owner", "profile.profiles"),
        ("feed_owner", "topic.topics"),
    ] {
        let client = connect(server.addr, role, "msa").await.unwrap();
        for statement in [
            format!("SELECT * FROM {foreign}"),
            format!("DELETE FROM {foreign}"),
            format!("DROP TABLE {foreign}"),
            format!("CREATE TABLE {}.other (id int)", foreign.split_once('.').unwrap().0),
            "CREATE SCHEMA other".to_owned(),
            "SET ROLE topic_owner".to_owned(),
        ] {
            failed.extend(refused(&client, &statement).await.map(|found| format!("{role}: {found}")));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    // what these need, they may
    let profiles = store::profile(&at(&url("profile")), &metrics()).await.unwrap();
    let [name, company, title] = ["Ada", "Acme", "engineer"].map(str::to_owned);
    let ada = Profile { user_id: 7, name, company, title };
    profiles.put(ada.clone(), soon()).await.unwrap();
    assert_eq!(profiles.get(7).await.unwrap(), Some(ada));
    let topics = store::topic(&at(&url("topic")), &metrics()).await.unwrap();
    let topic = Topic { topic_id: 1, subject: "s".to_owned(), content: "c".to_owned() };
    topics.put(topic.clone(), soon()).await.unwrap();
    assert_eq!(topics.get(1).await.unwrap(), Some(topic));
    assert_eq!(topics.list(0, 10).await.unwrap().topics.len(), 1);
    let granted = "SELECT has_table_privilege('topic', 'feed.feeds', 'SELECT')";
    assert!(!admin.query_one(granted, &[]).await.unwrap().get::<_, bool>(0));
}

/// A database that one role has filled gets roles with the least rights while its services run.
#[tokio::test]
async fn schemas_that_are_there_get_owners_under_those_who_use_them() {
    let server = Postgres::start().await;
    let before = feed(&server.url()).await;
    let _profiles = store::profile(&at(&server.url()), &metrics()).await.unwrap();
    let _topics = store::topic(&at(&server.url()), &metrics()).await.unwrap();
    let admin = server.admin().await;
    wait_for_tables(&admin).await;
    wait_until_well(before.as_ref()).await;
    before.create(record(7, 1, "x"), soon()).await.unwrap();
    let url = server.url().replace("app@", "feed@");
    let new = async || {
        let store = open(&at(&url)).await.unwrap();
        let told = wait_for("what it finds", || async {
            let told = store.usable().await;
            (told.is_err() || store.warnings().is_empty()).then_some(told)
        });
        (told.await, store)
    };
    // with no more than a login it is not ready: it may not read the schema
    admin.batch_execute("CREATE ROLE feed LOGIN").await.unwrap();
    let told = new().await.0.unwrap_err().to_string();
    assert!(told.contains("permission denied"), "{told}");
    admin.batch_execute("DROP ROLE feed").await.unwrap();

    run(&server, &block("for s in feed profile topic; do # owners"));
    run(&server, &block("for s in feed profile topic; do # rights"));
    let (told, after) = new().await;
    told.unwrap();
    after.create(record(7, 2, "x"), soon()).await.unwrap();
    before.create(record(7, 3, "x"), soon()).await.unwrap();
    assert_eq!(found(after.as_ref(), 7).await, [1, 2, 3]);
    // it was app's once, and is nobody's but the owner's when that ends
    admin.batch_execute("REVOKE feed_owner, profile_owner, topic_owner FROM app").await.unwrap();
    let app = connect(server.addr, "app", "msa").await.unwrap();
    let statements =
        ["SELECT * FROM feed.feeds", "DROP TABLE topic.topics", "CREATE TABLE profile.other (id int)"];
    let mut failed = Vec::new();
    for statement in statements {
        failed.extend(refused(&app, statement).await);
    }
    let feed = connect(server.addr, "feed", "msa").await.unwrap();
    for statement in
        ["DROP TABLE feed.feeds", "SELECT * FROM topic.topics", "UPDATE feed.compatibility SET version = 9"]
    {
        failed.extend(refused(&feed, statement).await);
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
