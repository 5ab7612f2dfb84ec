//! Numbers that are promised: time to the first answer, time to ready, resident memory. Each is tried
//! again before it fails, since other processes share the machine.

use std::time::Duration;

use tokio::time::Instant;

use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::Process;
use crate::kit::{SOON, measured, wait_for};

#[tokio::test]
async fn up_answers_within_a_second_of_its_start() {
    measured("first answer of up", || async {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().display().to_string();
        let begun = Instant::now();
        let mut up = Process::start(&["up", "--free-ports", "--data-dir", &data]);
        let (addr, _) = up.wait_for_role("apigateway");
        wait_for("the first answer", || async {
            (get(addr, "/api/topic/list").await.status == 200).then_some(())
        })
        .await;
        let took = begun.elapsed();
        if took < Duration::from_secs(1) { Ok(()) } else { Err(took) }
    })
    .await;
}

#[tokio::test]
async fn each_role_is_ready_within_100_ms_of_its_start() {
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    for role in ["apigateway", "feed", "profile", "topic"] {
        let listen = if role == "apigateway" { "--http-addr" } else { "--addr" };
        let endpoint = endpoint.as_str();
        measured(role, || async move {
            let args = [role, listen, "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--etcd-addr", endpoint];
            let begun = Instant::now();
            let mut process = Process::start(&args);
            let (_, admin) = process.wait_for_role(role);
            while get(admin, "/readyz").await.status != 200 {
                assert!(begun.elapsed() < SOON, "{role} never got ready");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let took = begun.elapsed();
            if took < Duration::from_millis(100) { Ok(()) } else { Err(took) }
        })
        .await;
    }
}

#[tokio::test]
async fn an_idle_service_keeps_below_20_mb() {
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    for role in ["feed", "profile", "topic"] {
        let args = [role, "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--etcd-addr", &endpoint];
        let mut process = Process::start(&args);
        let (_, admin) = process.wait_for_role(role);
        wait_for("it is registered", || async {
            let status = get(admin, "/status").await.json();
            (status["roles"][0]["registration"] == "up").then_some(())
        })
        .await;
        let resident = process.resident();
        // the pages of an unoptimised program are twice as many
        let limit = if cfg!(debug_assertions) { 30_000_000 } else { 20_000_000 };
        assert!(resident <= limit, "{role} keeps {resident} bytes");
    }
}
