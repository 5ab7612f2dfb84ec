//! Migrations, and databases that are not ours.

use microservice_app::store;

use super::super::contract::{at, metrics, record, soon};
use super::{feed, found, open, wait_until_well};
use crate::kit::postgres::{Postgres, connect};

/// Writes a version into the history, as a newer program would.
const NEWER: &str = "INSERT INTO feed.migrations VALUES (9, 'later', '2030-01-01T00:00:00Z', '1')";

#[tokio::test]
async fn instances_that_start_together_migrate_once() {
    // a slow disk, so that the migrations of one overlap the start of the others
    let server = Postgres::start_with(&["commit_delay = 100000", "commit_siblings = 0"]).await;
    let settings = at(&server.url());
    let all = (0..6).map(|_| open(&settings));
    for store in futures_util::future::join_all(all).await {
        let store = store.unwrap();
        wait_until_well(store.as_ref()).await;
        assert_eq!(found(store.as_ref(), 7).await, [0_i64; 0]);
    }
    let admin = server.admin().await;
    let made = admin.query("SELECT version FROM feed.migrations", &[]).await.unwrap();
    assert_eq!(made.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [1]);
    // nobody met an error on the way
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_says_that_it_is_compatible() {
    let server = Postgres::start().await;
    let running = feed(&server.url()).await;
    let admin = server.admin().await;
    admin.batch_execute(NEWER).await.unwrap();
    let refused = open(&at(&server.url())).await.err().expect("a refusal").to_string();
    assert!(
        refused.contains("schema feed is of version 9, this program knows versions up to 1"),
        "{refused}"
    );
    assert!(refused.contains(&server.url()), "{refused}");
    // one that runs goes on
    running.create(record(7, 1, "x"), soon()).await.unwrap();
    running.usable().await.unwrap();

    for (said, accepted) in [("(9, 2)", false), ("(8, 1)", false), ("(9, 1)", true)] {
        admin
            .batch_execute(&format!(
                "TRUNCATE feed.compatibility; INSERT INTO feed.compatibility VALUES {said}"
            ))
            .await
            .unwrap();
        let opened = open(&at(&server.url())).await;
        assert_eq!(opened.is_ok(), accepted, "{said}");
        if let Ok(store) = opened {
            let told = "store postgres: schema feed is of version 9, newer than this program's 1";
            assert_eq!(store.warnings(), [told]);
            assert_eq!(found(store.as_ref(), 7).await, [1]);
        }
    }
}

#[tokio::test]
async fn a_schema_of_somebody_else_is_refused_as_it_is() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    admin.batch_execute("CREATE SCHEMA topic; CREATE TABLE topic.notes (text text)").await.unwrap();
    let refused = store::topic(&at(&server.url()), &metrics()).await.err().expect("a refusal").to_string();
    assert!(refused.contains("schema topic has tables, but none with migrations"), "{refused}");
    let tables = admin.query("SELECT 1 FROM pg_tables WHERE schemaname = 'topic'", &[]).await.unwrap();
    assert_eq!(tables.len(), 1);
}

#[tokio::test]
async fn a_role_that_can_create_nothing_uses_what_is_there() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    // an administrator makes the schema, and the migrations fill it
    admin
        .batch_execute("CREATE SCHEMA feed AUTHORIZATION app; REVOKE CREATE ON DATABASE msa FROM app")
        .await
        .unwrap();
    feed(&server.url()).await.create(record(7, 1, "x"), soon()).await.unwrap();
    admin
        .batch_execute(
            "CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA feed TO reader;
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA feed TO reader",
        )
        .await
        .unwrap();
    let store = feed(&server.url().replace("app@", "reader@")).await;
    assert_eq!(store.warnings(), [""; 0]);
    store.create(record(7, 2, "x"), soon()).await.unwrap();
    assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
}

#[tokio::test]
async fn a_start_waits_for_another_that_migrates() {
    let server = Postgres::start().await;
    let other = connect(server.addr, "app", "msa").await.unwrap();
    other.batch_execute("SELECT pg_advisory_lock(7172961, 1)").await.unwrap();
    let store = feed(&server.url()).await;
    let told = store.warnings();
    assert!(told.iter().all(|line| line.contains("not connected yet")) && !told.is_empty(), "{told:?}");
    other.batch_execute("SELECT pg_advisory_unlock(7172961, 1)").await.unwrap();
    wait_until_well(store.as_ref()).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_text_is_refused() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    let latin = "CREATE DATABASE latin OWNER app ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";
    admin.batch_execute(latin).await.unwrap();
    let refused =
        open(&at(&server.url().replace("/msa", "/latin"))).await.err().expect("a refusal").to_string();
    assert!(refused.contains("encoding LATIN1"), "{refused}");
}

#[tokio::test]
async fn tables_that_somebody_has_dropped_are_made_again() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let admin = server.admin().await;
    admin.batch_execute("DROP SCHEMA feed CASCADE").await.unwrap();
    store.create(record(7, 2, "y"), soon()).await.unwrap();
    wait_until_well(store.as_ref()).await;
    assert_eq!(found(store.as_ref(), 7).await, [2]);
}
