//! A machine's records move to PostgreSQL and back; backup and restore of the database, retention.

use futures_util::future::join_all;

use super::*;
use crate::kit::http::put;
use crate::kit::postgres::{Postgres, installed};

const PAGE: &str = "docs/storage.md";

async fn feeds(gateway: SocketAddr, user: i64) -> Vec<i64> {
    let answer = get(gateway, &format!("/api/feed/get_feeds?user_id={user}&size=1000")).await;
    if answer.status == 404 {
        return Vec::new();
    }
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["feeds"].as_array().unwrap().iter().map(|feed| feed["id"].as_i64().unwrap()).collect()
}

async fn create(gateway: SocketAddr, user: i64, ids: impl IntoIterator<Item = i64>) {
    for id in ids {
        let body = format!("{{\"id\":{id},\"user_id\":{user},\"content\":\"hello \u{1F600} {id}\"}}");
        assert_eq!(put(gateway, "/api/feed/create_feed", &body).await.status, 200);
    }
}

/// The three services on the database, and a gateway with a registry that they share.
struct OnDatabase {
    _etcd: Etcd,
    processes: Vec<Process>,
    gateway: SocketAddr,
}

impl OnDatabase {
    async fn start(url: &str) -> Self {
        let etcd = Etcd::start().await;
        let (gateway, endpoint) = (free_addr(), etcd.addr.to_string());
        let services = ["feed", "profile", "topic"].map(|role| {
            vec![
                role,
                "--addr",
                "127.0.0.1:0",
                "--debug-addr",
                "127.0.0.1:0",
                "--etcd-addr",
                &endpoint,
                "--store",
                url,
            ]
        });
        let mut processes: Vec<_> = services.iter().map(|args| Process::start(args)).collect();
        for (process, role) in processes.iter_mut().zip(["feed", "profile", "topic"]) {
            process.wait_for_role(role);
        }
        let addr = gateway.to_string();
        let mut own = Process::start(&[
            "apigateway",
            "--http-addr",
            &addr,
            "--debug-addr",
            "127.0.0.1:0",
            "--etcd-addr",
            &endpoint,
        ]);
        own.wait_for_role("apigateway");
        processes.push(own);
        wait_for("the services are called", || async {
            (get(gateway, "/api/topic/view?topic_id=7").await.status == 200).then_some(())
        })
        .await;
        wait_for("feed is called", || async {
            (get(gateway, "/api/feed/get_feeds?user_id=7").await.status != 503).then_some(())
        })
        .await;
        Self { _etcd: etcd, processes, gateway }
    }

    fn stop(mut self) {
        self.processes.iter_mut().rev().for_each(|process| process.stop(SOON));
    }
}

#[tokio::test]
async fn a_machine_moves_to_postgresql_and_its_backup_can_be_restored() {
    let (mut session, server) = (Session::new(Walk::Database), Postgres::start().await);
    for tool in ["pg_dump", "pg_restore", "pg_basebackup", "pg_verifybackup", "psql"] {
        session.program(tool, &format!("exec {} \"$@\"", installed(tool).display()));
    }
    let url = server.url();
    session.swap("postgres://app@db.example/msa", &url);
    session.swap("postgres://backup@db.example/", &format!("postgres://postgres@{}/postgres", server.addr));
    session.swap("/var/lib/microservice-app-feed/feed.db", "data/feed.db");

    // one machine, with some records
    let mut up = start(&session, "microservice-app up --free-ports --data-dir data", &[]);
    let gateway = up.wait_for_roles()["apigateway"];
    wait_for("it is ready", || async {
        (get(gateway, "/api/feed/get_feeds?user_id=7").await.status == 404).then_some(())
    })
    .await;
    create(gateway, 7, 1..=5).await;
    let profile = r#"{"user_id":7,"name":"Ada","company":"c","title":"t"}"#;
    assert_eq!(put(gateway, "/api/profile/put_profile", profile).await.status, 200);
    let topic = r#"{"topic_id":7,"subject":"s","content":"c"}"#;
    assert_eq!(put(gateway, "/api/topic/put_topic", topic).await.status, 200);
    up.stop(SOON);

    // it moves
    let moved = session.run(PAGE, "microservice-app copy-store sqlite:data");
    let numbers = |text: &str| text.replace(|letter: char| letter.is_ascii_digit(), "");
    let shown = super::super::blocks::block(PAGE, "feed: 100000 records").lines.join("\n");
    assert_eq!(numbers(moved.trim_end()), numbers(&shown));
    assert!(moved.starts_with("feed: 5 records: 5 copied"), "{moved}");
    let again = session.run(PAGE, "microservice-app copy-store sqlite:/var");
    assert_eq!(again, "feed: 5 records: 0 copied, 5 already there; checked\n");
    let system = OnDatabase::start(&url).await;
    assert_eq!(feeds(system.gateway, 7).await, [1, 2, 3, 4, 5]);
    create(system.gateway, 8, 1..=3).await;
    let back = session.run(PAGE, "microservice-app copy-store postgres:");
    assert!(back.starts_with("feed: 8 records: 8 copied"), "{back}");
    assert_eq!(session.sh("sqlite3 feed-copy.db 'SELECT count(*) FROM feeds'"), "8\n");

    // a backup while it is in use, and what came after it is gone once it is restored
    session.run(PAGE, "pg_dump");
    create(system.gateway, 9, [1]).await;
    system.stop();
    let admin = server.admin().await;
    admin.batch_execute("DROP SCHEMA profile CASCADE; UPDATE feed.feeds SET content = 'lost'").await.unwrap();
    session.run(PAGE, "pg_restore");
    let compared = session.sh(&format!("microservice-app copy-store sqlite:data '{url}'"));
    assert!(
        compared.starts_with("feed: 5 records: 0 copied, 5 already there; checked; TO has 3 more"),
        "{compared}"
    );
    assert!(compared.contains("profile: 1 records: 0 copied, 1 already there"), "{compared}");
    let system = OnDatabase::start(&url).await;
    assert_eq!((feeds(system.gateway, 8).await, feeds(system.gateway, 9).await), (vec![1, 2, 3], vec![]));
    let profile = get(system.gateway, "/api/profile/get_profile?user_id=7").await;
    assert!(profile.status == 200 && profile.body.contains("Ada"), "{profile:?}");

    // retention, beside the services
    session.swap("place <= 1000", "place <= 2");
    session.swap("place > 1000", "place > 2");
    session.run(PAGE, "psql");
    assert_eq!((feeds(system.gateway, 7).await, feeds(system.gateway, 8).await), (vec![4, 5], vec![2, 3]));
    session.run(PAGE, "sqlite3 data/feed.db \"PRAGMA");
    assert_eq!(session.sh("sqlite3 data/feed.db 'SELECT id FROM feeds'"), "4\n5\n");

    // a base backup while it is in use: a server that starts on it has everything that was acknowledged before
    create(system.gateway, 9, 1..=3).await;
    session.run(PAGE, "pg_basebackup");
    system.stop();
    drop(server);
    let restored = Postgres::start_from(&session.path("base")).await;
    let system = OnDatabase::start(&restored.url()).await;
    let found = [7, 8, 9].map(|user| feeds(system.gateway, user));
    assert_eq!(join_all(found).await, [vec![4, 5], vec![2, 3], vec![1, 2, 3]]);
    let profile = get(system.gateway, "/api/profile/get_profile?user_id=7").await;
    assert!(profile.status == 200 && profile.body.contains("Ada"), "{profile:?}");
    create(system.gateway, 9, [4]).await;
    system.stop();
    session.finish();
}
