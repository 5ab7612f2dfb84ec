//! A commit that waits for a standby, and whose wait is ended by hand: it is then durable on one server only, and nothing
//! but a warning says so.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;
use tokio_postgres::Client;

use super::System;
use crate::kit::http::{Answer, request, send};
use crate::kit::ledger::{USER, read_directly};
use crate::kit::postgres::Postgres;
use crate::kit::wait_for;

/// Writes at a time.
const WRITES: i64 = 20;
const LIMIT: &str = "1500";

/// Makes commits wait for a standby that does not exist, or no longer.
async fn wait_for_standby(server: &Postgres, admin: &Client, wait: bool) {
    let names = if wait { "'nobody'" } else { "''" };
    admin.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = {names}")).await.unwrap();
    server.reload();
    wait_for("the setting counts", || async {
        let row = admin.query_one("SHOW synchronous_standby_names", &[]).await.unwrap();
        ((row.get::<_, &str>(0) == "nobody") == wait).then_some(())
    })
    .await;
    if wait {
        // each process of the server takes the setting over for itself, and one of them decides whether commits wait
        wait_for("commits wait", || commit_waits(server, admin)).await;
    }
}

/// Tries whether a commit waits for a standby, and ends the wait.
async fn commit_waits(server: &Postgres, admin: &Client) -> Option<()> {
    let probe = server.admin().await;
    let pid: i32 = probe.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let commit = probe.batch_execute("CREATE TABLE public.probe (); DROP TABLE public.probe");
    let waited = tokio::time::timeout(Duration::from_millis(300), commit).await.is_err();
    if waited {
        admin.query_one("SELECT pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
    }
    waited.then_some(())
}

/// Returns the backends that wait for a standby.
async fn waiting(admin: &Client) -> Vec<i32> {
    let rows =
        admin.query("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn write(system: &System, id: i64) -> Answer {
    let body = format!(r#"{{"id":{id},"user_id":{USER},"content":"1"}}"#);
    let mut put = request("PUT", "/api/feed/create_feed", &body);
    put.headers_mut().insert("x-request-timeout-ms", http::HeaderValue::from_static(LIMIT));
    send(system.gateway.addr, put).await.expect("an answer")
}

/// Ends the wait of a backend.
async fn end_wait(admin: &Client, how: &str, pid: i32) {
    if how == "SIGINT" {
        // it may have ended by itself
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::INT);
    } else {
        admin.query_one(&format!("SELECT {how}($1)"), &[&pid]).await.unwrap();
    }
}

#[tokio::test]
async fn a_commit_whose_wait_for_a_standby_is_ended_by_hand_is_not_acknowledged() {
    let server = Postgres::start().await;
    let system = System::start(&server.url()).await;
    let admin = server.admin().await;
    for (round, how) in (0_i64..).zip(["pg_cancel_backend", "SIGINT", "pg_terminate_backend"]) {
        let ids: BTreeSet<_> = (round * WRITES + 1..=(round + 1) * WRITES).collect();
        wait_for_standby(&server, &admin, true).await;
        let writes = join_all(ids.iter().map(|id| write(&system, *id)));
        let end = async {
            let pids = wait_for("a commit waits", || async {
                Some(waiting(&admin).await).filter(|pids| !pids.is_empty())
            })
            .await;
            for pid in pids {
                end_wait(&admin, how, pid).await;
            }
            // what was waited for is there, on this server, before anybody is told
            let found = wait_for("some are committed here", || async {
                let found: BTreeSet<_> = read_directly(server.addr).await.into_keys().collect();
                Some(found.intersection(&ids).count()).filter(|count| *count > 0)
            })
            .await;
            for _ in 0..10 {
                sleep(Duration::from_millis(100)).await;
                for pid in waiting(&admin).await {
                    end_wait(&admin, how, pid).await;
                }
            }
            found
        };
        let (answers, committed) = tokio::join!(writes, end);
        assert!(committed > 0);
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        let unknown = |status: &StatusCode| matches!(status.as_u16(), 503 | 504);
        assert!(statuses.iter().all(unknown), "{how}: {statuses:?}");
        wait_for_standby(&server, &admin, false).await;
        system.wait_for_writes().await;
        // and it is safe to repeat them
        let answers = join_all(ids.iter().map(|id| write(&system, *id))).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{how}: {answers:?}");
        let found: BTreeSet<_> = read_directly(server.addr).await.into_keys().collect();
        assert!(found.is_superset(&ids), "{how}");
    }
}
