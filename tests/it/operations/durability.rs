//! An acknowledged write survives kill -9.

use serde_json::json;

use crate::kit::etcd::Etcd;
use crate::kit::http::{Answer, Connection, get, request};
use crate::kit::process::Process;
use crate::kit::wait_for;

#[tokio::test]
async fn kill_9_right_after_an_acknowledged_put_loses_nothing() {
    let etcd = Etcd::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (addr, store) = (etcd.addr.to_string(), format!("sqlite:{}/feed.db", dir.path().display()));
    let common = ["--debug-addr", "127.0.0.1:0", "--etcd-addr", &addr];
    let mut gateway_process =
        Process::start(&[&["apigateway", "--http-addr", "127.0.0.1:0"], &common[..]].concat());
    let (gateway, _) = gateway_process.wait_for_role("apigateway");
    let start = || {
        let mut feed =
            Process::start(&[&["feed", "--addr", "127.0.0.1:0", "--store", &store], &common[..]].concat());
        feed.wait_for_role("feed");
        feed
    };
    let mut acknowledged = Vec::new();
    for round in 0..4_i64 {
        let mut feed = start();
        wait_for("feed is called", || async {
            (get(gateway, "/api/topic/list").await.status == 503).then_some(())?;
            let status = get(gateway, "/api/feed/get_feeds?user_id=8").await.status;
            (status == 404).then_some(())
        })
        .await;
        // eight writers at full speed; the kill comes while they write
        let writers: Vec<_> = (0..8_i64)
            .map(|writer| {
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    let Ok(mut connection) = Connection::open(gateway).await else {
                        return done;
                    };
                    for n in 1.. {
                        let id = round * 1_000_000 + writer * 100_000 + n;
                        let body = json!({"id": id, "user_id": 7, "content": format!("c{id}")}).to_string();
                        match connection.send(request("PUT", "/api/feed/create_feed", &body)).await {
                            Ok(answer) if answer.status == 200 => done.push(id),
                            _ => break,
                        }
                    }
                    done
                })
            })
            .collect();
        wait_for("some are written", || async {
            let answer = get(gateway, "/api/feed/get_feeds?user_id=7&size=1000").await;
            let some =
                answer.status == 200 && answer.json()["feeds"].as_array().is_some_and(|f| f.len() > 100);
            some.then_some(())
        })
        .await;
        feed.kill();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
    }
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());

    let _feed = start();
    let mut kept = std::collections::BTreeSet::new();
    let mut before = String::new();
    loop {
        let path = format!("/api/feed/get_feeds?user_id=7&size=1000{before}");
        let page = wait_for("feed answers", || async {
            // not an answer from before the kill
            let fresh = |answer: &Answer| answer.status == 200 && answer.degraded().is_empty();
            Some(get(gateway, &path).await).filter(fresh)
        })
        .await
        .json();
        let feeds = page["feeds"].as_array().unwrap();
        let Some(first) = feeds.first() else { break };
        before = format!("&before={}", first["id"]);
        for feed in feeds {
            assert_eq!(feed["content"], format!("c{}", feed["id"]));
            kept.insert(feed["id"].as_i64().unwrap());
        }
    }
    let lost: Vec<_> = acknowledged.iter().filter(|id| !kept.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged writes lost: {lost:?}", lost.len(), acknowledged.len());
}
