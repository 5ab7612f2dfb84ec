//! Outages: a server that is away, frozen, restarted or no longer to be written to, and a network that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use microservice_app::config::Store;
use microservice_app::store::{FeedStore, StoreError};
use rustix::process::Signal;

use super::super::contract::{at, record, soon};
use super::{MS, feed, found, open, sessions, wait_until_well};
use crate::kit::postgres::Postgres;
use crate::kit::relay::{Direction, Faults, Relay};
use crate::kit::{free_addr, measured, wait_for};

/// Writes until it is told to stop; returns the ids that were acknowledged. Every failure must be one that a caller may
/// repeat.
async fn write_on(
    store: Arc<dyn FeedStore>,
    user: i64,
    stop: tokio_util::sync::CancellationToken,
) -> Vec<i64> {
    let mut acknowledged = Vec::new();
    for id in 1.. {
        if stop.is_cancelled() {
            break;
        }
        match store.create(record(user, id, "x"), Instant::now() + Duration::from_secs(2)).await {
            Ok(()) => acknowledged.push(id),
            Err(StoreError::Away(_) | StoreError::Unknown(_) | StoreError::Late) => {
                tokio::time::sleep(5 * MS).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
    acknowledged
}

/// Runs writers while something happens, and checks that everything acknowledged is there.
async fn nothing_is_lost(store: &Arc<dyn FeedStore>, happens: impl Future) {
    let stop = tokio_util::sync::CancellationToken::new();
    let writers: Vec<_> =
        (1..=16).map(|user| tokio::spawn(write_on(store.clone(), user, stop.clone()))).collect();
    tokio::time::sleep(200 * MS).await;
    happens.await;
    wait_until_well(store.as_ref()).await;
    tokio::time::sleep(200 * MS).await;
    stop.cancel();
    for (user, writer) in (1..).zip(writers) {
        let acknowledged = writer.await.unwrap();
        assert!(acknowledged.len() > 5, "{} writes of {user}", acknowledged.len());
        let there = all(store.as_ref(), user).await;
        let lost: Vec<_> = acknowledged.iter().filter(|id| !there.contains(id)).collect();
        assert!(lost.is_empty(), "user {user} lost {lost:?}");
    }
}

/// Returns the ids of all of a user's feeds.
async fn all(store: &dyn FeedStore, user: i64) -> std::collections::HashSet<i64> {
    let (mut ids, mut before) = (std::collections::HashSet::new(), 0);
    while let Some(page) = store.newest(user, 1000, before).await.unwrap() {
        let Some(first) = page.feeds.first() else { break };
        before = first.id;
        ids.extend(page.feeds.iter().map(|feed| feed.id));
    }
    ids
}

#[tokio::test]
async fn a_start_without_the_database_serves_once_it_is_there() {
    let mut server = Postgres::start().await;
    server.stop(Signal::INT);
    let begun = Instant::now();
    let store = feed(&server.url()).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    store.usable().await.unwrap();
    assert!(store.warnings()[0].contains("no connection for writes"), "{:?}", store.warnings());
    let (written, read) =
        futures_util::join!(store.create(record(7, 1, "x"), soon()), store.newest(7, 20, 0));
    assert!(matches!(written, Err(StoreError::Away(_))), "{written:?}");
    assert!(matches!(read, Err(StoreError::Away(_))), "{read:?}");
    server.launch();
    wait_until_well(store.as_ref()).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    assert_eq!(found(store.as_ref(), 7).await, [1]);
}

#[tokio::test]
async fn a_server_that_crashes_or_is_restarted_loses_nothing_acknowledged() {
    let mut server = Postgres::start().await;
    let store = feed(&server.url()).await;
    nothing_is_lost(&store, async {
        server.restart().await;
        wait_until_well(store.as_ref()).await;
        for how in [Signal::QUIT, Signal::INT] {
            server.stop(how);
            tokio::time::sleep(300 * MS).await;
            server.launch();
            wait_until_well(store.as_ref()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn sessions_that_the_server_ends_are_opened_again() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    let admin = server.admin().await;
    nothing_is_lost(&store, async {
        for _ in 0..10 {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
            admin.execute(end, &[]).await.unwrap();
            tokio::time::sleep(100 * MS).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_network_that_resets_and_delays_loses_nothing_acknowledged() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let store = feed(&Postgres::url_at(&[relay.addr])).await;
    nothing_is_lost(&store, async {
        for _ in 0..10 {
            relay.reset();
            tokio::time::sleep(50 * MS).await;
            relay.close();
            tokio::time::sleep(50 * MS).await;
        }
        relay.set(Faults::both(Direction {
            delay: 20 * MS,
            jitter: 10 * MS,
            reset: 0.01,
            ..Direction::default()
        }));
        tokio::time::sleep(2000 * MS).await;
        relay.heal();
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_half_open_is_given_up_within_the_time_limit() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let store = open(&Store { timeout: 500 * MS, ..at(&Postgres::url_at(&[relay.addr])) }).await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    relay.half_open();
    let begun = Instant::now();
    let (written, read) =
        futures_util::join!(store.create(record(7, 2, "x"), soon()), store.newest(7, 20, 0));
    assert!(matches!(written, Err(StoreError::Unknown(_))), "{written:?}");
    assert_eq!(read.unwrap().unwrap().feeds.len(), 1, "a read is repeated");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    store.create(record(7, 2, "x"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_write_that_the_network_holds_back_does_not_come_later() {
    let server = Postgres::start().await;
    let relay = Relay::start(server.addr, 7).await;
    let store = feed(&Postgres::url_at(&[relay.addr])).await;
    let other = feed(&server.url()).await;
    store.create(record(7, 1, "old"), soon()).await.unwrap();
    store.create(record(7, 2, "old"), soon()).await.unwrap();
    relay.set(Faults { up: Direction { cut: true, ..Direction::default() }, ..Faults::default() });
    let deadline = Instant::now() + 300 * MS;
    let held = store.create(record(7, 1, "held"), deadline);
    let held = tokio::time::timeout_at(deadline.into(), held).await;
    assert!(held.is_err(), "nothing gets through");
    other.create(record(7, 1, "newer"), soon()).await.unwrap();
    relay.heal();
    // this goes behind it
    store.create(record(7, 3, "x"), soon()).await.unwrap();
    let page = other.newest(7, 20, 0).await.unwrap().unwrap();
    assert_eq!(page.feeds, [record(7, 1, "newer"), record(7, 2, "old"), record(7, 3, "x")]);
}

#[tokio::test]
async fn a_frozen_host_is_passed_over() {
    let (frozen, server) = (Postgres::start().await, Postgres::start().await);
    let away = free_addr();
    frozen.freeze();
    let begun = Instant::now();
    let store = feed(&Postgres::url_at(&[frozen.addr, away, server.addr])).await;
    assert_eq!(store.warnings(), [""; 0]);
    assert!(begun.elapsed() < 2000 * MS, "{:?}", begun.elapsed());
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    frozen.thaw();
}

#[tokio::test]
async fn a_host_that_freezes_in_use_is_left_within_five_seconds() {
    measured("writes resume", || async {
        let (first, second) = (Postgres::start().await, Postgres::start().await);
        let store = feed(&Postgres::url_at(&[first.addr, second.addr])).await;
        store.create(record(7, 1, "x"), soon()).await.unwrap();
        first.freeze();
        let begun = Instant::now();
        wait_for("writes resume", || async {
            let deadline = Instant::now() + Duration::from_secs(2);
            store.create(record(7, 2, "x"), deadline).await.ok()
        })
        .await;
        let took = begun.elapsed();
        assert_eq!(found(store.as_ref(), 7).await, [2], "the second host");
        first.thaw();
        if took < Duration::from_secs(5) { Ok(()) } else { Err(took) }
    })
    .await;
}

#[tokio::test]
async fn a_host_that_can_only_be_read_is_left_for_another() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    let url = Postgres::url_at(&[first.addr, second.addr]);
    let store = feed(&url).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    // its sessions stay, as those of a primary that is demoted
    first.append("postgresql.conf", "default_transaction_read_only = on\n");
    first.reload();
    wait_for("writes go to the second host", || async {
        let written = store.create(record(7, 2, "x"), soon()).await;
        assert!(matches!(written, Ok(()) | Err(StoreError::Away(_))), "{written:?}");
        (written.is_ok() && found(store.as_ref(), 7).await == [2]).then_some(())
    })
    .await;
    let fresh = feed(&url).await;
    assert_eq!(found(fresh.as_ref(), 7).await, [2], "a new start, too");
}

#[tokio::test]
async fn reads_follow_writes_to_another_host() {
    // the first goes on as a primary whose standby is gone, as one does whose Patroni was killed
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    let url = Postgres::url_at(&[first.addr, second.addr]);
    let store = open(&Store { timeout: 500 * MS, ..at(&url) }).await.unwrap();
    // its time limit is short, and a busy machine may exceed it
    wait_for("a write", || async { store.create(record(7, 1, "x"), soon()).await.ok() }).await;
    first.append("postgresql.conf", "synchronous_standby_names = 'nobody'\n");
    first.reload();
    wait_for("writes go to the second host", || async {
        let _ = store.create(record(7, 2, "x"), soon()).await;
        (!sessions(&second.admin().await).await.is_empty()).then_some(())
    })
    .await;
    wait_for("a write there", || async { store.create(record(7, 2, "x"), soon()).await.ok() }).await;
    measured("reads are of the same host", || async {
        let begun = Instant::now();
        wait_for("reads go to the second host", || async {
            (found(store.as_ref(), 7).await == [2]).then_some(())
        })
        .await;
        let took = begun.elapsed();
        if took < Duration::from_secs(1) { Ok(()) } else { Err(took) }
    })
    .await;
}

/// Makes a server one that can only be read, as a standby, or one that can be written to again; sessions stay.
async fn read_only(admin: &tokio_postgres::Client, value: &str) {
    admin.batch_execute(&format!("ALTER SYSTEM SET default_transaction_read_only = {value}")).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

#[tokio::test]
async fn a_standby_that_is_promoted_is_used_at_once_for_writes_and_reads() {
    const ROUNDS: u32 = 5;
    let server = Postgres::start().await;
    let (store, admin) = (feed(&server.url()).await, server.admin().await);
    measured("a promoted server is found", || async {
        let mut whole = Duration::ZERO;
        for round in 0..ROUNDS {
            read_only(&admin, "on").await;
            // at another moment of the search each time
            tokio::time::sleep((2000 + 170 * round) * MS).await;
            assert!(store.warnings().len() == 2, "{:?}", store.warnings());
            read_only(&admin, "off").await;
            let promoted = Instant::now();
            wait_for("writes work", || async { store.create(record(7, 1, "x"), soon()).await.ok() }).await;
            assert_eq!(found(store.as_ref(), 7).await, [1], "reads wait for what is about to come");
            whole += promoted.elapsed();
        }
        if whole < ROUNDS * 250 * MS { Ok(()) } else { Err(whole / ROUNDS) }
    })
    .await;
}

#[tokio::test]
async fn reads_that_nobody_waits_for_disturb_no_other() {
    let server = Postgres::start().await;
    let store = feed(&server.url()).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let admin = server.admin().await;
    let before = sessions(&admin).await;
    admin.batch_execute("BEGIN; LOCK TABLE feed.feeds").await.unwrap();
    let kept = futures_util::future::join_all((0..50).map(|_| store.newest(7, 20, 0)));
    let dropped = async {
        for _ in 0..50 {
            assert!(tokio::time::timeout(5 * MS, store.newest(7, 20, 0)).await.is_err(), "the lock is held");
        }
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (kept, ()) = futures_util::join!(kept, dropped);
    for page in kept {
        assert_eq!(page.unwrap().unwrap().feeds.len(), 1);
    }
    assert_eq!(sessions(&admin).await, before, "the same sessions");
    assert!(!server.log().contains("canceling statement"), "{}", server.log());
}

#[tokio::test]
async fn a_connection_limit_that_is_reached_is_an_outage_that_ends() {
    let server = Postgres::start().await;
    let admin = server.admin().await;
    admin.batch_execute("ALTER ROLE app CONNECTION LIMIT 2").await.unwrap();
    let one = feed(&server.url()).await;
    let two = feed(&server.url()).await;
    let told = two.warnings();
    assert!(told[0].contains("too many connections for role"), "{told:?}");
    two.usable().await.unwrap();
    drop(one);
    wait_until_well(two.as_ref()).await;
    two.create(record(7, 1, "x"), soon()).await.unwrap();
}

#[tokio::test]
async fn those_who_wait_for_an_outage_to_end_are_few_and_do_not_wait_long() {
    let mut server = Postgres::start().await;
    let store = feed(&server.url()).await;
    server.stop(Signal::INT);
    let begun = Instant::now();
    let writes = (1..=3000).map(|id| store.create(record(7, id, "x"), soon()));
    let reads = (1..=3000).map(|user| store.newest(user, 20, 0));
    let (writes, reads) =
        futures_util::join!(futures_util::future::join_all(writes), futures_util::future::join_all(reads));
    let failures =
        writes.into_iter().filter_map(Result::err).chain(reads.into_iter().filter_map(Result::err));
    let mut refused = 0;
    for failure in failures {
        match failure {
            StoreError::Busy(_) => refused += 1,
            StoreError::Away(_) | StoreError::Unknown(_) => {}
            other => panic!("{other}"),
        }
    }
    assert!((3500..4000).contains(&refused), "{refused} of 6000 are refused at once");
    // 1 s for a connection, and not one after the other
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn reads_that_nobody_waits_for_do_not_keep_a_slow_server_busy() {
    let server = Postgres::start().await;
    let store = open(&Store { timeout: 1000 * MS, ..at(&server.url()) }).await.unwrap();
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let admin = server.admin().await;
    let before = sessions(&admin).await;
    admin
        .batch_execute(
            "ALTER TABLE feed.feeds ENABLE ROW LEVEL SECURITY; ALTER TABLE feed.feeds FORCE ROW LEVEL SECURITY;
             CREATE POLICY slow ON feed.feeds USING (pg_sleep(0.02) IS NOT NULL)",
        )
        .await
        .unwrap();
    // more than it can answer within their time
    let read = || tokio::time::timeout(1000 * MS, store.newest(7, 20, 0));
    let answers = futures_util::future::join_all((0..400).map(|_| read())).await;
    let answered = answers.into_iter().flatten().map(Result::unwrap).count();
    assert!(answered >= 10, "{answered} are answered");
    let begun = Instant::now();
    store.newest(7, 20, 0).await.unwrap();
    assert!(begun.elapsed() < 1500 * MS, "{:?}", begun.elapsed());
    tokio::time::sleep(2000 * MS).await;
    assert_eq!(sessions(&admin).await, before, "it answers all the time, so its connections stay");
}

#[tokio::test]
async fn a_start_finds_the_primary_beside_one_whose_place_it_has_taken() {
    let mut old = Postgres::start().await;
    feed(&old.url()).await.create(record(7, 1, "x"), soon()).await.unwrap();
    let new = old.promote_copy(free_addr()).await;
    for _ in 0..3 {
        let store = feed(&Postgres::url_at(&[old.addr, free_addr(), new.addr])).await;
        store.create(record(7, 2, "x"), soon()).await.unwrap();
        assert_eq!(found(store.as_ref(), 7).await, [1, 2]);
        assert_eq!(found(feed(&old.url()).await.as_ref(), 7).await, [1], "nothing goes to the old one");
    }
}

#[tokio::test]
async fn a_primary_whose_place_was_taken_is_left_also_by_those_who_only_read() {
    let mut old = Postgres::start().await;
    let addr = free_addr();
    let store = feed(&Postgres::url_at(&[old.addr, addr])).await;
    store.create(record(7, 1, "x"), soon()).await.unwrap();
    let new = old.promote_copy(addr).await;
    let begun = Instant::now();
    feed(&new.url()).await.create(record(7, 2, "x"), soon()).await.unwrap();
    wait_for("reads see it", || async {
        let page = store.newest(7, 20, 0).await.ok()??;
        (page.feeds.len() == 2).then_some(())
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    wait_until_well(store.as_ref()).await;
    store.create(record(7, 3, "x"), soon()).await.unwrap();
    assert_eq!(found(store.as_ref(), 7).await, [1, 2, 3]);
}
