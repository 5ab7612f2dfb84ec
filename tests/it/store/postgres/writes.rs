//! Group commits: each caller its own result, bad rows, locks, deadlines, replication.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use microservice_app::config::Store;
use microservice_app::store::StoreError;

use super::super::contract::{at, record, soon};
use super::{MS, feed, found, open, sessions, wait_for_session, wait_until_well};
use crate::kit::SOON;
use crate::kit::postgres::{Postgres, connect};

/// The session that writes waits for a lock.
const LOCKED: &str = "wait_event_type = 'Lock'";
/// It waits for a standby.
const REPLICATING: &str = "wait_event = 'SyncRep'";

#[tokio::test]
async fn one_write_is_one_statement_and_many_are_few_transactions() {
    let server = Postgres::start_with(&["log_statement = all"]).await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    for id in 1..=3 {
        store.create(record(7, id, "x"), soon()).await.unwrap();
    }
    let log = server.log();
    assert_eq!(log.matches("INSERT INTO feed.feeds").count(), 3, "{log}");
    assert_eq!(log.matches("unnest").count(), 0, "a lone write needs no arrays: {log}");
    let alone = log[log.find("INSERT INTO feed.feeds").unwrap()..].matches("BEGIN").count();
    assert_eq!(alone, 0, "a lone write is its own transaction: {log}");

    // while the first waits for a lock, the others queue
    admin.batch_execute("BEGIN; LOCK TABLE feed.feeds IN EXCLUSIVE MODE").await.unwrap();
    let first = store.create(record(8, 1, "x"), soon());
    let rest = async {
        wait_for_session(&admin, LOCKED).await;
        let creates = (2..=200).map(|id| store.create(record(8, id, "x"), soon()));
        futures_util::join!(join_all(creates), admin.batch_execute("COMMIT")).0
    };
    let (first, rest) = futures_util::join!(first, rest);
    first.unwrap();
    for result in rest {
        result.unwrap();
    }
    let statements = server.log().matches("INSERT INTO feed.feeds").count() - 3;
    // the first is repeated each 100 ms
    assert!((2..=6).contains(&statements), "{statements} statements for 200 writes");
    assert_eq!(found(store.as_ref(), 8).await.len(), 200);
}

#[tokio::test]
async fn a_bad_row_fails_alone_also_at_the_commit() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    let before = sessions(&admin).await;
    for rule in [
        "ALTER TABLE feed.feeds ADD CONSTRAINT bad CHECK (content <> 'bad')",
        "ALTER TABLE feed.feeds DROP CONSTRAINT bad;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF NEW.content = 'bad' THEN RAISE integrity_constraint_violation; END IF; RETURN NEW; END $$;
         CREATE CONSTRAINT TRIGGER bad AFTER INSERT OR UPDATE ON feed.feeds DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        admin.batch_execute(rule).await.unwrap();
        admin.batch_execute("TRUNCATE feed.feeds").await.unwrap();
        let bad = |id: i64| id % 40 == 7;
        let content = |id| if bad(id) { "bad" } else { "good" };
        let writes = (1..=200).map(|id| store.create(record(7, id, content(id)), soon()));
        for (id, result) in (1..).zip(join_all(writes).await) {
            match result {
                Ok(()) => assert!(!bad(id), "{id}"),
                // what a trigger says may be no fault of the caller
                Err(StoreError::Unacceptable(_)) => assert!(bad(id) && rule.contains("CHECK"), "{id}"),
                Err(StoreError::Failed(_)) => assert!(bad(id) && rule.contains("TRIGGER"), "{id}"),
                Err(other) => panic!("{id}: {other}"),
            }
        }
        let want: Vec<_> = (1..=200).filter(|id| !bad(*id)).collect();
        assert_eq!(found(store.as_ref(), 7).await, want);
    }
    assert_eq!(sessions(&admin).await, before, "what is bad is the row, not the connection");
}

#[tokio::test]
async fn a_failure_that_is_no_row_is_not_searched_for_one() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    admin
        .batch_execute("REVOKE INSERT ON feed.feeds FROM app; ALTER TABLE feed.feeds OWNER TO postgres")
        .await
        .unwrap();
    let writes = (1..=100).map(|id| store.create(record(7, id, "x"), soon()));
    for result in join_all(writes).await {
        assert!(matches!(result, Err(StoreError::Failed(_))), "{result:?}");
    }
    let tries = server.log().matches("permission denied").count();
    assert!((1..=3).contains(&tries), "{tries} tries");
    assert!(store.warnings()[0].contains("the last write failed"), "{:?}", store.warnings());
    admin.batch_execute("ALTER TABLE feed.feeds OWNER TO app").await.unwrap();
    admin.batch_execute("GRANT INSERT ON feed.feeds TO app").await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    wait_until_well(store.as_ref()).await;
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_is_not_made() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    store.create(record(7, 1, "kept"), soon()).await.unwrap();
    admin.batch_execute("BEGIN; LOCK TABLE feed.feeds IN EXCLUSIVE MODE").await.unwrap();
    let begun = store.create(record(7, 2, "begun"), soon());
    let others = async {
        wait_for_session(&admin, LOCKED).await;
        let gone = tokio::time::timeout(20 * MS, store.create(record(7, 1, "gone"), soon())).await;
        assert!(gone.is_err(), "the lock is held");
        let late = store.create(record(7, 1, "late"), Instant::now() + 50 * MS);
        let wanted = store.delete(7, 9, soon());
        let release = async {
            tokio::time::sleep(100 * MS).await;
            admin.batch_execute("COMMIT").await.unwrap();
        };
        let (late, wanted, ()) = futures_util::join!(late, wanted, release);
        assert!(matches!(late, Err(StoreError::Late)), "{late:?}");
        assert!(!wanted.unwrap(), "what is still wanted is done");
    };
    let (begun, ()) = futures_util::join!(begun, others);
    begun.unwrap();
    let page = store.newest(7, 20, 0).await.unwrap().unwrap();
    assert_eq!(page.feeds, [record(7, 1, "kept"), record(7, 2, "begun")]);
}

#[tokio::test]
async fn a_write_that_has_begun_is_finished_though_its_caller_is_gone() {
    let (server, store) = unreplicated(Duration::from_mins(1)).await;
    let admin = server.admin().await;
    let begun = async {
        let _ = store.create(record(7, 2, "x"), soon()).await;
    };
    tokio::select! {
        () = begun => panic!("there is no standby"),
        () = wait_for_session(&admin, REPLICATING) => {}
    }
    server.append("postgresql.conf", "synchronous_standby_names = ''\n");
    server.reload();
    store.create(record(7, 3, "y"), soon()).await.unwrap();
    assert_eq!(found(store.as_ref(), 7).await, [1, 2, 3]);
    assert!(!server.log().contains("canceling"), "{}", server.log());
}

#[tokio::test]
async fn instances_that_write_the_same_keys_at_once_all_succeed() {
    let server = Postgres::start_with(&["deadlock_timeout = 20ms"]).await;
    let stores = [feed(&server.url()).await, feed(&server.url()).await, feed(&server.url()).await];
    for round in 0..10 {
        let writes = stores.iter().enumerate().flat_map(|(number, store)| {
            (0..60_i64).map(move |n| async move {
                // each instance in an order of its own, with deletions between
                let id = 1 + if number % 2 == 0 { n } else { 59 - n };
                if usize::try_from((n + round) % 3) == Ok(number) {
                    store.delete(7, id, soon()).await.map(|_| ())
                } else {
                    store.create(record(7, id, "x"), soon()).await
                }
            })
        });
        for result in join_all(writes).await {
            result.unwrap();
        }
    }
    assert!(!server.log().contains("deadlock detected"), "{}", server.log());
}

/// Opens a store whose server waits for a standby that does not exist.
async fn unreplicated(
    timeout: Duration,
) -> (Postgres, std::sync::Arc<dyn microservice_app::store::FeedStore>) {
    let server = Postgres::start().await;
    let store = open(&Store { timeout, ..at(&server.url()) }).await.unwrap();
    store.create(record(7, 1, "before"), soon()).await.unwrap();
    server.append("postgresql.conf", "synchronous_standby_names = 'nobody'\n");
    server.reload();
    let admin = server.admin().await;
    crate::kit::wait_for("the setting counts", || async {
        let row = admin.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
        (row.get::<_, String>(0) == "nobody").then_some(())
    })
    .await;
    (server, store)
}

#[tokio::test]
async fn a_commit_whose_wait_for_a_standby_was_cancelled_is_not_acknowledged() {
    let (server, store) = unreplicated(Duration::from_mins(1)).await;
    let admin = server.admin().await;
    let write = store.create(record(7, 2, "unreplicated"), soon());
    let cancel = async {
        wait_for_session(&admin, REPLICATING).await;
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        admin.execute(cancel, &[]).await.unwrap();
    };
    let (written, ()) = futures_util::join!(write, cancel);
    assert!(
        matches!(&written, Err(StoreError::Unknown(why)) if why.contains("not replicated")),
        "{written:?}"
    );
    // it is there, on this server only
    wait_until_well(store.as_ref()).await;
    assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
}

#[tokio::test]
async fn a_commit_that_takes_too_long_is_given_up_and_may_be_repeated() {
    let (server, store) = unreplicated(500 * MS).await;
    let begun = Instant::now();
    let written = store.create(record(7, 2, "slow"), soon()).await;
    assert!(matches!(written, Err(StoreError::Unknown(_))), "{written:?}");
    let took = begun.elapsed();
    assert!((950 * MS..2500 * MS).contains(&took), "{took:?}");
    server.append("postgresql.conf", "synchronous_standby_names = ''\n");
    server.reload();
    store.create(record(7, 2, "repeated"), soon()).await.unwrap();
    let page = store.newest(7, 20, 0).await.unwrap().unwrap();
    assert_eq!(page.feeds, [record(7, 1, "before"), record(7, 2, "repeated")]);
}

#[tokio::test]
async fn a_lock_that_is_held_for_too_long_fails_the_write_and_keeps_the_connection() {
    let server = Postgres::start().await;
    let store = open(&Store { timeout: 300 * MS, ..at(&server.url()) }).await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let other = connect(server.addr, "app", "msa").await.unwrap();
    other.batch_execute("BEGIN; UPDATE feed.feeds SET content = 'theirs'").await.unwrap();
    let written = store.create(record(7, 1, "mine"), soon()).await;
    assert!(matches!(written, Err(StoreError::Failed(_))), "{written:?}");
    assert!(store.warnings()[0].contains("lock timeout"), "{:?}", store.warnings());
    other.batch_execute("COMMIT").await.unwrap();
    store.create(record(7, 2, "mine"), soon()).await.unwrap();
    let page = store.newest(7, 20, 0).await.unwrap().unwrap();
    assert_eq!(page.feeds, [record(7, 1, "theirs"), record(7, 2, "mine")]);
}

#[tokio::test]
async fn a_server_whose_commits_hang_gets_no_more_sessions_than_one_for_each_store() {
    let (server, store) = unreplicated(300 * MS).await;
    let admin = server.admin().await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let begun = Instant::now();
    let (mut id, mut most) = (10, 0);
    while begun.elapsed() < Duration::from_secs(5) {
        let written = store.create(record(7, id, "x"), Instant::now() + Duration::from_secs(2)).await;
        assert!(
            matches!(written, Err(StoreError::Unknown(_) | StoreError::Away(_) | StoreError::Late)),
            "{written:?}"
        );
        id += 1;
        most = most.max(admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0));
        tokio::time::sleep(20 * MS).await;
    }
    assert_eq!(most, 1, "sessions that wait for the standby");
    assert!(store.warnings()[0].contains("a commit still waits for a standby"), "{:?}", store.warnings());
    assert_eq!(found(store.as_ref(), 7).await, [1], "reads go on");
    server.append("postgresql.conf", "synchronous_standby_names = ''\n");
    server.reload();
    wait_until_well(store.as_ref()).await;
    store.create(record(7, 2, "x"), soon()).await.unwrap();
}

#[tokio::test]
async fn commits_stay_durable_when_the_server_s_setting_changes() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    let store = feed(&server.url()).await;
    // each write notes the setting of its session
    let note = "CREATE TABLE seen (id bigint, setting text);
                CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                  INSERT INTO seen VALUES (NEW.id, current_setting('synchronous_commit')); RETURN NEW; END $$;
                CREATE TRIGGER note AFTER INSERT ON feed.feeds FOR EACH ROW EXECUTE FUNCTION note()";
    admin.batch_execute(note).await.unwrap();
    let (mut id, mut last) = (0, String::new());
    for (setting, wanted) in
        [("off", "on"), ("local", "local"), ("off", "on"), ("remote_apply", "remote_apply")]
    {
        server.append("postgresql.conf", &format!("synchronous_commit = {setting}\n"));
        server.reload();
        let begun = Instant::now();
        // what the server says is followed within a second or so, and never to off
        while begun.elapsed() < Duration::from_secs(3) || last != wanted {
            id += 1;
            store.create(record(7, id, "x"), soon()).await.unwrap();
            let seen = admin.query_one("SELECT setting FROM seen WHERE id = $1", &[&id]).await.unwrap();
            last = seen.get(0);
            assert_ne!(last, "off", "after {setting}");
            assert!(begun.elapsed() < SOON, "{last} after {setting}");
            tokio::time::sleep(20 * MS).await;
        }
    }
}
