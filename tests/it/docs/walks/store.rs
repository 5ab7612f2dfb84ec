//! Backup and restore of a store, while it is written to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::kit::http::{Connection, request};

const PAGE: &str = "docs/storage.md";
/// Time between two writes: more often than those under which SQLite's `.backup` never ends.
const PAUSE: Duration = Duration::from_millis(20);
/// So many times 2 MB are in the store: SQLite's `.backup` takes longer for that than the pause.
const LARGE: i64 = 20;
/// Longest time for a backup.
const LIMIT: Duration = Duration::from_secs(30);

/// Somebody who writes feeds of user 7, one after the other.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeSet<i64>>,
}

impl Writer {
    fn start(gateway: SocketAddr, first: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let task = tokio::spawn(async move {
            let mut acknowledged = BTreeSet::new();
            let mut connection = Connection::open(gateway).await.unwrap();
            for id in first.. {
                let body = json!({"id": id, "user_id": 7, "content": "x".repeat(1000)}).to_string();
                let answer = connection.send(request("PUT", "/api/feed/create_feed", &body)).await.unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                acknowledged.insert(id);
                if until.load(Relaxed) {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            acknowledged
        });
        Self { stop, task }
    }

    async fn finish(self) -> BTreeSet<i64> {
        self.stop.store(true, Relaxed);
        self.task.await.unwrap()
    }
}

async fn feeds(gateway: SocketAddr) -> BTreeSet<i64> {
    let answer = get(gateway, "/api/feed/get_feeds?user_id=7&size=1000").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let feeds = answer.json()["feeds"].as_array().unwrap().clone();
    feeds.iter().map(|feed| feed["id"].as_i64().unwrap()).collect()
}

/// Runs what the page says while the store is written to, and checks that it ends.
async fn under_writes(
    gateway: SocketAddr,
    first: i64,
    backup: impl FnOnce() + Send + 'static,
) -> [BTreeSet<i64>; 2] {
    let before = feeds(gateway).await;
    let writer = Writer::start(gateway, first);
    wait_for("writes", || async { (feeds(gateway).await.len() > before.len() + 10).then_some(()) }).await;
    let certain = feeds(gateway).await;
    let begun = Instant::now();
    tokio::task::spawn_blocking(backup).await.unwrap();
    assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
    // later writes are not in it
    let so_far = feeds(gateway).await.len();
    wait_for("more writes", || async { (feeds(gateway).await.len() > so_far + 5).then_some(()) }).await;
    let mut possible = writer.finish().await;
    possible.extend(certain.iter().copied());
    [certain, possible]
}

#[tokio::test]
async fn a_backup_ends_under_writes_and_can_be_restored() {
    let mut session = Session::new(Walk::Store);
    let launch = |session: &Session| {
        let mut up = start(session, "microservice-app up --free-ports --data-dir data", &[]);
        let gateway = up.wait_for_roles()["apigateway"];
        (up, gateway)
    };
    let (mut up, gateway) = launch(&session);
    wait_for("feed is called", || async {
        (get(gateway, "/api/feed/get_feeds?user_id=7").await.status == 404).then_some(())
    })
    .await;
    for user in 100..100 + LARGE {
        crate::kit::http::fill(gateway, user).await;
    }
    let first = r#"{"id":1,"user_id":7,"content":"first"}"#;
    assert_eq!(crate::kit::http::put(gateway, "/api/feed/create_feed", first).await.status, 200);

    let script = session.lines(PAGE, "sqlite3 data/feed.db \"VACUUM").join("\n");
    let mut shell = session.shell(&format!("set -e\n{script}"));
    let [certain, possible] =
        under_writes(gateway, 1000, move || assert!(shell.status().unwrap().success())).await;
    // the same command for the store of a host
    for (shown, here) in [("/var/lib/microservice-app-feed/feed.db", "data/feed.db"), ("/var/backup", ".")] {
        session.swap(shown, here);
    }
    let command = "sqlite3 /var/lib/microservice-app-feed/feed.db \"VACUUM INTO '/var/backup/feed.db'\"";
    let script = session.said("docs/nix.md", command);
    let mut shell = session.shell(&script);
    under_writes(gateway, 100_000, move || assert!(shell.status().unwrap().success())).await;
    for file in ["feed-backup.db", "feed.db"] {
        assert_eq!(session.sh(&format!("sqlite3 {file} 'PRAGMA integrity_check'")), "ok\n", "{file}");
    }

    up.stop(SOON);
    session.run(PAGE, "rm -f data/feed.db-wal");
    let (mut up, gateway) = launch(&session);
    wait_for("feed is called", || async {
        (get(gateway, "/api/feed/get_feeds?user_id=7").await.status == 200).then_some(())
    })
    .await;
    let restored = feeds(gateway).await;
    assert!(restored.is_superset(&certain), "lost {:?}", certain.difference(&restored));
    assert!(restored.is_subset(&possible) && restored.len() < possible.len(), "{restored:?} of {possible:?}");
    // and the restored store is written to
    assert_eq!(crate::kit::http::put(gateway, "/api/feed/create_feed", first).await.status, 200);
    up.stop(SOON);
    session.finish();
}
