//! Numbers that are promised: time to the first answer, time to ready, resident memory. Each is tried
//! again before it fails, since other processes share the machine.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::kit::etcd::Etcd;
use crate::kit::http::get;
use crate::kit::process::Process;
use crate::kit::{free_addr, measured, wait_for};

#[tokio::test]
async fn up_answers_within_a_second_of_its_start() {
    measured("first answer of up", || async {
        let dir = tempfile::tempdir().unwrap();
        let (data, addr) = (dir.path().display().to_string(), free_addr());
        let http = addr.to_string();
        let begun = Instant::now();
        let _up = Process::start(&["up", "--free-ports", "--http-addr", &http, "--data-dir", &data]);
        wait_for("the first answer", || async {
            TcpStream::connect(addr).await.ok()?;
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
            let admin = free_addr();
            let debug = admin.to_string();
            let args = [role, listen, "127.0.0.1:0", "--debug-addr", &debug, "--etcd-addr", endpoint];
            let begun = Instant::now();
            let _process = Process::start(&args);
            loop {
                let connected = TcpStream::connect(admin).await.is_ok();
                if connected && get(admin, "/readyz").await.status == 200 {
                    break;
                }
                assert!(begun.elapsed() < crate::kit::SOON, "{role} never got ready");
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
            let body = get(admin, "/readyz").await.body;
            (!body.contains("not registered")).then_some(())
        })
        .await;
        let resident = process.resident();
        assert!(resident <= 20_000_000, "{role} keeps {resident} bytes");
    }
}
