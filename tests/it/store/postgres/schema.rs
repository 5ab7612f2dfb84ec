//! Migrations, and databases that are not ours.

use microservice_app::store::{self, FeedStore};

use super::super::contract::{at, metrics, record, soon};
use super::{MS, feed, found, open, wait_until_well};
use crate::kit::postgres::{Postgres, connect};
use crate::kit::relay::{Faults, Relay};
use crate::kit::{wait_for, wait_long_for};

/// Waits for the next try of migrations that have met a table in use, which comes ever later, after 20 s at most.
pub async fn wait_until_migrated(store: &dyn FeedStore) {
    wait_long_for("the store is well", || async { store.warnings().is_empty().then_some(()) }).await;
}

/// The lock under which the schema of feeds is migrated, and its end.
pub const LOCK: &str = "SELECT pg_advisory_lock(7172961, 1)";
pub const UNLOCK: &str = "SELECT pg_advisory_unlock(7172961, 1)";

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
async fn tables_with_other_columns_are_somebody_elses() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    let ours = "SET ROLE app; CREATE SCHEMA feed; CREATE TABLE feed.migrations (version int4);
                CREATE TABLE feed.feeds (user_id int8, id int8, content text, PRIMARY KEY (user_id, id));
                CREATE TABLE feed.compatibility (version int4, oldest int4);
                INSERT INTO feed.migrations VALUES (1)";
    for (change, told) in [
        ("DROP TABLE feed.migrations; CREATE TABLE feed.migrations (version text)", "feed.migrations"),
        ("ALTER TABLE feed.migrations ALTER version TYPE int8", "feed.migrations"),
        ("ALTER TABLE feed.migrations RENAME version TO number", "feed.migrations"),
        ("ALTER TABLE feed.migrations ALTER version TYPE point USING point(0, 0)", "feed.migrations"),
        (
            "UPDATE feed.migrations SET version = 9; ALTER TABLE feed.compatibility ALTER oldest TYPE int8;
             INSERT INTO feed.compatibility VALUES (9, 1)",
            "feed.compatibility",
        ),
        ("UPDATE feed.migrations SET version = 9; DROP TABLE feed.compatibility", "feed.compatibility"),
        ("ALTER TABLE feed.feeds ALTER id TYPE int4", "column id"),
        ("ALTER TABLE feed.feeds ALTER content TYPE bytea USING ''", "column"),
        ("ALTER TABLE feed.feeds DROP content", "content"),
    ] {
        admin.batch_execute(&format!("DROP SCHEMA IF EXISTS feed CASCADE; {ours}; {change}")).await.unwrap();
        let opened = open(&at(&server.url())).await;
        let refused = opened.err().unwrap_or_else(|| panic!("{change}: no refusal")).to_string();
        assert!(refused.contains(told), "{change}: {refused}");
    }
}

#[tokio::test]
async fn a_schema_that_is_replaced_under_a_service_fails_its_health_until_it_is_back() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    admin.batch_execute("ALTER TABLE feed.migrations ALTER version TYPE text").await.unwrap();
    admin.execute(end, &[]).await.unwrap();
    let why = wait_for("its health fails", || async { store.usable().await.err() }).await.to_string();
    assert!(why.contains("feed.migrations"), "{why}");
    admin
        .batch_execute("ALTER TABLE feed.migrations ALTER version TYPE int4 USING version::int4")
        .await
        .unwrap();
    wait_for("it is well", || async { store.usable().await.ok() }).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    assert_eq!(found(store.as_ref(), 7).await, [1]);
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
    other.batch_execute(LOCK).await.unwrap();
    let store = feed(&server.url()).await;
    let told = store.warnings();
    assert!(
        told[0].contains("the schema is being migrated") && told[1].contains("not connected yet"),
        "{told:?}"
    );
    let unhealthy = store.usable().await.unwrap_err().to_string();
    assert!(unhealthy.contains("the schema is being migrated"), "{unhealthy}");
    other.batch_execute(UNLOCK).await.unwrap();
    wait_until_well(store.as_ref()).await;
    store.usable().await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_schema_that_is_not_migrated_is_not_usable_while_the_database_is_away() {
    let server = Postgres::start().await;
    let other = connect(server.addr, "app", "msa").await.unwrap();
    other.batch_execute(LOCK).await.unwrap();
    let relay = Relay::start(server.addr, 7).await;
    let store = feed(&Postgres::url_at(&[relay.addr])).await;
    let waits = "the schema is being migrated";
    let unhealthy = store.usable().await.unwrap_err().to_string();
    assert!(unhealthy.contains(waits), "{unhealthy}");
    relay.set(Faults { refuse: true, ..Faults::default() });
    relay.reset();
    wait_for("its connection fails", || async { (!store.warnings()[0].contains(waits)).then_some(()) }).await;
    store.usable().await.unwrap_err();
    relay.heal();
    other.batch_execute(UNLOCK).await.unwrap();
    wait_until_well(store.as_ref()).await;
    store.usable().await.unwrap();
}

#[tokio::test]
async fn migrations_do_not_wait_long_for_a_table_that_others_use() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    let begun = "SET ROLE app; CREATE SCHEMA feed; CREATE TABLE feed.migrations
                 (version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255))";
    admin.batch_execute(begun).await.unwrap();
    admin.batch_execute("BEGIN; LOCK TABLE feed.migrations IN SHARE MODE").await.unwrap();
    let store = feed(&server.url()).await;
    let waits = || async { store.warnings().into_iter().find(|line| line.contains("others use a table")) };
    let told = wait_for("it says why", waits).await;
    assert!(told.contains("lock timeout"), "{told}");
    // nobody else waits behind it for longer than that
    let longest = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8 FROM pg_locks \
                   WHERE NOT granted AND relation = 'feed.migrations'::regclass";
    let other = server.admin().await;
    for _ in 0..40 {
        let waited: f64 = other.query_one(longest, &[]).await.unwrap().get(0);
        // the limit, and what a busy machine adds
        assert!(waited < 3.0, "{waited} s");
        tokio::time::sleep(100 * MS).await;
    }
    admin.batch_execute("COMMIT").await.unwrap();
    wait_until_migrated(store.as_ref()).await;
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
