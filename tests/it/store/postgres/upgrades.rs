//! A newer version that migrates the schema, beside a store of this one that goes on. The newer version is one of these tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use microservice_app::config::StoreUrl;
use microservice_app::store::{self, FeedStore, StoreError};
use tokio_util::sync::CancellationToken;

use super::super::contract::{at, metrics, record, soon};
use super::schema::wait_until_migrated;
use super::{MS, feed, found, wait_for_session, wait_until_well};
use crate::kit::postgres::Postgres;
use crate::kit::relay::{Faults, Relay};
use crate::kit::{free_addr, wait_for};

const FIRST: (&str, &str) =
    ("V1__feeds", include_str!("../../../../src/store/postgres/migrations/feed/V1__feeds.sql"));
/// Programs of version 1 can work with it.
const COMPATIBLE: &[(&str, &str)] = &[FIRST, ("V2__notes", include_str!("migrations/V2__notes.sql"))];
/// They cannot.
const INCOMPATIBLE: &[(&str, &str)] = &[FIRST, ("V2__stars", include_str!("migrations/V2__stars.sql"))];
/// It fails once it has locked the table.
const FAILING: &[(&str, &str)] = &[
    FIRST,
    ("V2__nowhere", "ALTER TABLE feed.feeds ADD COLUMN note text; INSERT INTO feed.nowhere VALUES (1)"),
];
/// It takes 50 s with the table locked.
const LONG: &[(&str, &str)] =
    &[FIRST, ("V2__long", "ALTER TABLE feed.feeds ADD COLUMN note text; SELECT pg_sleep(50)")];

/// How long locks are looked at, and the largest share of that time in which calls may have to wait for the migrations: each
/// try takes 0.5 s, the second after 1 to 2 s, the third after 2 to 4 s and so on. A busy machine may stand still in one.
const WATCHED: Duration = Duration::from_secs(5);
const HELD_UP: f64 = 0.5;

/// Opens the store of a newer version.
async fn newer(server: &Postgres, migrations: &'static [(&str, &str)]) -> Arc<dyn FeedStore> {
    newer_at(&server.url(), migrations).await
}

async fn newer_at(url: &str, migrations: &'static [(&str, &str)]) -> Arc<dyn FeedStore> {
    let settings = at(url);
    let StoreUrl::Postgres(url) = &settings.url else { panic!("{:?}", settings.url) };
    store::feed_migrated_by(url, &settings, migrations, &metrics()).await.unwrap()
}

/// Writes and reads until it is told to stop; returns how often. No call may fail.
async fn use_on(store: Arc<dyn FeedStore>, user: i64, stop: CancellationToken) -> i64 {
    let mut made = 0;
    while !stop.is_cancelled() {
        store.create(record(user, made + 1, "x"), soon()).await.unwrap();
        made += 1;
        let page = store.newest(user, 1, 0).await.unwrap().unwrap();
        assert_eq!(page.feeds, [record(user, made, "x")]);
    }
    made
}

async fn versions(admin: &tokio_postgres::Client) -> Vec<i32> {
    let rows = admin.query("SELECT version FROM feed.migrations ORDER BY version", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Ends the sessions of all stores, so that they look at the schema again.
async fn end_sessions(admin: &tokio_postgres::Client) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    admin.execute(end, &[]).await.unwrap();
}

#[tokio::test]
async fn a_store_goes_on_while_a_newer_version_migrates_and_afterwards() {
    let server = Postgres::start().await;
    let (old, admin, stop) = (feed(&server.url()).await, server.admin().await, CancellationToken::new());
    let users = [1, 2, 3, 4];
    let used = users.map(|user| tokio::spawn(use_on(old.clone(), user, stop.clone())));
    wait_for("they are at work", || async { (found(old.as_ref(), 4).await.len() > 10).then_some(()) }).await;

    let new = newer(&server, COMPATIBLE).await;
    wait_until_migrated(new.as_ref()).await;
    assert_eq!(versions(&admin).await, [1, 2]);
    new.create(record(7, 1, "new"), soon()).await.unwrap();
    old.create(record(7, 2, "old"), soon()).await.unwrap();
    let before = found(new.as_ref(), 4).await.len();
    wait_for("they go on", || async { (found(new.as_ref(), 4).await.len() > before).then_some(()) }).await;
    stop.cancel();
    for (user, used) in users.into_iter().zip(used) {
        let made = used.await.unwrap();
        let want: Vec<_> = ((made - 999).max(1)..=made).collect();
        assert_eq!(found(new.as_ref(), user).await, want, "nothing is lost");
    }
    for store in [&old, &new] {
        assert_eq!(store.warnings(), [""; 0]);
        assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
    }
    let notes = admin.query("SELECT DISTINCT note FROM feed.feeds", &[]).await.unwrap();
    assert_eq!(notes.iter().map(|row| row.get(0)).collect::<Vec<String>>(), [""]);

    // at its next connection the old one meets the newer schema
    end_sessions(&admin).await;
    let told = "store postgres: schema feed is of version 2, newer than this program's 1";
    wait_for("it says so", || async { (old.warnings() == [told]).then_some(()) }).await;
    old.usable().await.unwrap();
    old.create(record(7, 3, "old"), soon()).await.unwrap();
    assert_eq!(found(old.as_ref(), 7).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_version_that_older_programs_cannot_work_with_fails_their_health() {
    let server = Postgres::start().await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    let new = newer(&server, INCOMPATIBLE).await;
    wait_until_well(new.as_ref()).await;
    // over the connection that it has: no fault of the caller, another instance may do better
    let refused = old.create(record(7, 2, "x"), soon()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Failed(_)), "{refused}");
    end_sessions(&admin).await;
    let why = wait_for("its health fails", || async { old.usable().await.err() }).await.to_string();
    assert!(why.contains("schema feed is of version 2, this program knows versions up to 1"), "{why}");
    wait_until_well(new.as_ref()).await;
    new.usable().await.unwrap();
    assert_eq!(found(new.as_ref(), 7).await, [1]);
}

#[tokio::test]
async fn a_migration_that_waits_for_a_table_holds_up_hardly_anybody() {
    // it tells of each wait that is longer than what ends an autovacuum
    let server = Postgres::start_with(&["log_lock_waits = on", "deadlock_timeout = 1s"]).await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    let reader = server.admin().await;
    reader.batch_execute("BEGIN; SELECT * FROM feed.feeds").await.unwrap();
    // looks whether the migrations want the table; who reads or writes then waits behind them
    let watch = async {
        let waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
                     AND relation = 'feed.feeds'::regclass";
        let (begun, mut looks, mut held_up) = (Instant::now(), 0, 0);
        while begun.elapsed() < WATCHED {
            looks += 1;
            held_up += usize::from(!admin.query(waits, &[]).await.unwrap().is_empty());
            tokio::time::sleep(10 * MS).await;
        }
        (looks, held_up)
    };
    let (new, (looks, held_up)) = futures_util::join!(newer(&server, COMPATIBLE), watch);
    assert!(held_up > 0, "nobody wanted the table in {looks} looks");
    let share = f64::from(u32::try_from(held_up).unwrap()) / f64::from(looks);
    assert!(share < HELD_UP, "calls are held up in {share} of the time");
    let tries = server.log().matches("canceling statement due to lock timeout").count();
    assert!((2..=4).contains(&tries), "{tries} tries");
    let long = server.log().matches("still waiting for AccessExclusiveLock").count();
    assert_eq!(long, 0, "no try waits as for an autovacuum");
    let why = "not migrated the schema yet: others use a table";
    wait_for("reads tell why they cannot be made", || async {
        new.warnings().iter().any(|line| line.contains(why)).then_some(())
    })
    .await;
    // the older one can be used meanwhile, and its place is not to be taken yet
    let unhealthy = new.usable().await.unwrap_err().to_string();
    assert!(
        unhealthy.contains("others use a table") || unhealthy.contains("is being migrated"),
        "{unhealthy}"
    );
    old.usable().await.unwrap();
    assert_eq!(versions(&admin).await, [1]);

    reader.batch_execute("COMMIT").await.unwrap();
    wait_until_migrated(new.as_ref()).await;
    new.usable().await.unwrap();
    assert_eq!(versions(&admin).await, [1, 2]);
    assert_eq!(found(new.as_ref(), 7).await, [1]);
}

#[tokio::test]
async fn a_migration_does_not_wait_for_the_end_of_an_autovacuum() {
    let server = Postgres::start_with(&["autovacuum_naptime = 1s"]).await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    // one that would take minutes
    let slow =
        "ALTER TABLE feed.feeds SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1,
                  autovacuum_vacuum_insert_threshold = 0, autovacuum_vacuum_insert_scale_factor = 0);
                INSERT INTO feed.feeds (user_id, id, content)
                  SELECT 8, g, repeat('x', 100) FROM generate_series(1, 20000) AS g";
    admin.batch_execute(slow).await.unwrap();
    let vacuums = "SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = 'feed.feeds'::regclass";
    wait_for("an autovacuum is at work", || async {
        (!admin.query(vacuums, &[]).await.unwrap().is_empty()).then_some(())
    })
    .await;
    let new = newer(&server, COMPATIBLE).await;
    wait_until_migrated(new.as_ref()).await;
    assert_eq!(versions(&admin).await, [1, 2]);
    assert!(server.log().contains("canceling autovacuum task"), "{}", server.log());
}

#[tokio::test]
async fn a_migration_that_is_ended_for_its_time_is_not_begun_again_at_once() {
    let server = Postgres::start().await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    let reader = server.admin().await;
    reader.batch_execute("BEGIN; SELECT * FROM feed.feeds").await.unwrap();
    // as its time limit does, which is a minute
    let cancel =
        "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted AND relation = 'feed.feeds'::regclass";
    let cancelled = wait_for("a migration is cancelled", || async {
        (!admin.query(cancel, &[]).await.unwrap().is_empty()).then_some(())
    });
    let (slow, ()) = futures_util::join!(newer(&server, COMPATIBLE), cancelled);
    let why = "a migration took longer than 60s, or was cancelled";
    wait_for("it says so", || async { slow.warnings().iter().any(|line| line.contains(why)).then_some(()) })
        .await;
    let unhealthy = slow.usable().await.unwrap_err().to_string();
    assert!(unhealthy.contains(why), "{unhealthy}");
    reader.batch_execute("COMMIT").await.unwrap();
    tokio::time::sleep(3000 * MS).await;
    assert_eq!(versions(&admin).await, [1], "{}", server.log());
    // what another one has made is used at once
    let other = newer(&server, COMPATIBLE).await;
    wait_until_well(other.as_ref()).await;
    wait_until_well(slow.as_ref()).await;
    slow.usable().await.unwrap();
    assert_eq!(versions(&admin).await, [1, 2]);
}

#[tokio::test]
async fn a_migration_that_fails_is_not_begun_again_at_once() {
    let server = Postgres::start().await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    let new = newer(&server, FAILING).await;
    let why = r#"relation "feed.nowhere" does not exist"#;
    wait_for("it says so", || async { new.warnings().iter().any(|line| line.contains(why)).then_some(()) })
        .await;
    let unhealthy = new.usable().await.unwrap_err().to_string();
    assert!(unhealthy.contains(why), "{unhealthy}");
    tokio::time::sleep(3000 * MS).await;
    assert_eq!(server.log().matches(why).count(), 1, "tries: {}", server.log());
    assert_eq!(versions(&admin).await, [1]);
    old.create(record(7, 2, "x"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_migration_whose_program_is_gone_frees_the_table() {
    let server = Postgres::start().await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    let new = newer(&server, LONG).await;
    wait_for_session(&admin, "wait_event = 'PgSleep'").await;
    // as the end of its process does
    drop(new);
    wait_for("the older one writes again", || async { old.create(record(7, 2, "x"), soon()).await.ok() })
        .await;
    assert_eq!(versions(&admin).await, [1]);
    assert!(server.log().contains("connection to client lost"), "{}", server.log());
}

#[tokio::test]
async fn a_migration_whose_program_stands_still_frees_the_table() {
    let server = Postgres::start().await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    let relay = Relay::start(server.addr, 7).await;
    let reader = server.admin().await;
    reader.batch_execute("BEGIN; SELECT * FROM feed.feeds").await.unwrap();
    // it has the lock of the migrations, and wants the table
    let waits = async {
        wait_for_session(&admin, "wait_event_type = 'Lock' AND query LIKE '%note%'").await;
        relay.set(Faults::cut());
        reader.batch_execute("COMMIT").await.unwrap();
    };
    let url = Postgres::url_at(&[relay.addr]);
    let (new, ()) = futures_util::join!(newer_at(&url, COMPATIBLE), waits);
    let why = "due to idle-in-transaction timeout";
    wait_for("its session is ended", || async { server.log().contains(why).then_some(()) }).await;
    old.create(record(7, 2, "x"), soon()).await.unwrap();
    assert_eq!(versions(&admin).await, [1]);
    drop(new);
}

#[tokio::test]
async fn a_row_of_the_migrations_that_cannot_be_read_is_named() {
    let server = Postgres::start().await;
    let (old, admin) = (feed(&server.url()).await, server.admin().await);
    old.create(record(7, 1, "x"), soon()).await.unwrap();
    drop(old);
    let new = newer(&server, COMPATIBLE).await;
    wait_until_well(new.as_ref()).await;
    let unmade = "DELETE FROM feed.migrations WHERE version = 2; ALTER TABLE feed.feeds DROP note;
                  CREATE TABLE kept AS SELECT * FROM feed.migrations";
    admin.batch_execute(unmade).await.unwrap();
    let table = "feed.migrations is not as this service makes it: ";
    for (change, told) in [
        ("applied_on = NULL", "column applied_on of version 1 holds no time"),
        ("applied_on = 'yesterday'", "column applied_on of version 1 holds no time"),
        ("checksum = NULL", "column checksum of version 1 holds no number"),
        ("checksum = '-1'", "column checksum of version 1 holds no number"),
        ("name = NULL", "column name of version 1 holds no text"),
    ] {
        admin.batch_execute(&format!("UPDATE feed.migrations SET {change}")).await.unwrap();
        end_sessions(&admin).await;
        let why = wait_for("its health fails", || async { new.usable().await.err() }).await.to_string();
        assert!(why.contains(table) && why.contains(told), "{change}: {why}");
        let right = "DELETE FROM feed.migrations; INSERT INTO feed.migrations SELECT * FROM kept";
        admin.batch_execute(right).await.unwrap();
        wait_until_well(new.as_ref()).await;
        new.usable().await.unwrap();
        admin
            .batch_execute("DELETE FROM feed.migrations WHERE version = 2; ALTER TABLE feed.feeds DROP note")
            .await
            .unwrap();
    }
    assert_eq!(found(new.as_ref(), 7).await, [1]);
}

#[tokio::test]
async fn a_server_that_freezes_amid_a_migration_is_left_for_its_successor() {
    let mut first = Postgres::start().await;
    feed(&first.url()).await.create(record(7, 1, "x"), soon()).await.unwrap();
    let second = first.promote_copy(free_addr()).await;
    let relay = Relay::start(second.addr, 7).await;
    relay.set(Faults { refuse: true, ..Faults::default() });
    let (reader, admin) = (first.admin().await, first.admin().await);
    reader.batch_execute("BEGIN; SELECT * FROM feed.feeds").await.unwrap();
    let waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'feed.feeds'::regclass";
    let freeze = async {
        wait_for("a migration waits for its table", || async {
            (!admin.query(waits, &[]).await.unwrap().is_empty()).then_some(())
        })
        .await;
        first.freeze();
        relay.heal();
    };
    let url = Postgres::url_at(&[first.addr, relay.addr]);
    let (new, ()) = futures_util::join!(newer_at(&url, COMPATIBLE), freeze);
    wait_for("it has migrated the other one", || async { new.warnings().is_empty().then_some(()) }).await;
    assert_eq!(versions(&second.admin().await).await, [1, 2]);
    new.create(record(7, 2, "x"), soon()).await.unwrap();
    first.thaw();
}
