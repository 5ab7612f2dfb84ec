//! Separate processes, as docs/operations.md shows them.

use std::process::{Child, Stdio};

use super::*;

/// An etcd that a page's command has started. Killed when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PAGE: &str = "docs/operations.md";

#[tokio::test]
async fn separate_processes_run_as_the_page_says() {
    let mut session = Session::new(Walk::Roles);
    let (client, peer) = (free_addr(), free_addr());
    for (name, addr) in [
        ("ETCD_LISTEN_CLIENT_URLS", client),
        ("ETCD_ADVERTISE_CLIENT_URLS", client),
        ("ETCD_LISTEN_PEER_URLS", peer),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", peer),
    ] {
        session.set(name, &url(addr));
    }
    session.set("ETCD_INITIAL_CLUSTER", &format!("default={}", url(peer)));
    session.set("ETCDCTL_ENDPOINTS", &client.to_string());
    let data = session.path("etcd-data").display().to_string();
    session.swap("/tmp/etcd-try", &data);
    let command = session.lines(PAGE, "etcd --data-dir").join("\n");
    let mut shell = session.shell(&format!("exec {command}"));
    let _etcd = Started(shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    crate::kit::etcd::wait_until_healthy(client).await;

    // the usual ports, and those of this test
    let roles = ["feed", "profile", "topic", "apigateway"];
    let addrs = roles.map(|_| (free_addr(), free_addr()));
    for ((addr, admin), (shown, shown_admin)) in
        addrs.iter().zip([(8082, 6062), (8083, 6063), (8084, 6064), (8080, 6060)])
    {
        for name in ["127.0.0.1", "localhost"] {
            session.swap(&format!("{name}:{shown}"), &addr.to_string());
            session.swap(&format!("{name}:{shown_admin}"), &admin.to_string());
        }
    }
    let lines = session.lines(PAGE, "PATH=$PWD/target/release");
    let (path, commands) = lines.split_first().unwrap();
    assert_eq!(commands.len(), roles.len(), "{commands:?}");
    let mut processes = Vec::new();
    for ((command, role), (addr, admin)) in commands.iter().zip(roles).zip(addrs) {
        // as in a terminal of its own
        let line = format!("bash -c '{path}\nexec {command} \"$@\"' bash");
        let listen = if role == "apigateway" { "MSA__HTTP__ADDR" } else { "MSA__GRPC__ADDR" };
        let (addr, admin, etcd) = (addr.to_string(), admin.to_string(), client.to_string());
        let env =
            [(listen, addr.as_str()), ("MSA__ADMIN__ADDR", &admin), ("MSA__REGISTRY__ENDPOINTS", &etcd)];
        let mut process = start(&session, &line, &env);
        process.wait_for_role(role);
        processes.push(process);
    }
    let registered = |session: &Session, count: usize| {
        let keys = session.sh("etcdctl get --prefix --keys-only /services/");
        (keys.lines().filter(|line| !line.is_empty()).count() == count).then_some(())
    };
    wait_for("four are registered", || async { registered(&session, 4) }).await;
    session.run(PAGE, "$ etcdctl get --prefix --keys-only /services/");
    session.swap("0.1.0 (73bd7cd0a279)", microservice_app::build_info::VERSION);
    wait_for("feed says that it is up", || async {
        let value = session.sh(&format!("etcdctl get --print-value-only /services/feed/{}", addrs[0].0));
        value.contains("\"up\"").then_some(())
    })
    .await;
    let value = session.run(PAGE, "$ etcdctl get --print-value-only");
    // the page about the design shows the same, with other addresses and in two lines
    session.swap("10.0.0.1:8082", &addrs[0].0.to_string());
    session.swap("10.0.0.1:6062", &addrs[0].1.to_string());
    let shown = session.lines("docs/architecture.md", "{\"Op\":0");
    assert_eq!(forget(value.trim()), forget(&shown.iter().map(|line| line.trim()).collect::<String>()));

    let (second, second_admin) = (free_addr(), free_addr());
    session.swap("127.0.0.1:8182", &second.to_string());
    session.swap(":8182", &second.to_string());
    session.swap("localhost:6162", &second_admin.to_string());
    let command = session.lines(PAGE, "microservice-app feed --addr").join("\n");
    let mut feed = start(&session, &command, &[("MSA__REGISTRY__ENDPOINTS", &client.to_string())]);
    feed.wait_for_role("feed");
    wait_for("five are registered", || async { registered(&session, 5) }).await;
    let gateway = addrs[3].1;
    wait_for("the gateway calls both", || async {
        let status = get(gateway, "/status").await.json();
        let called = status["clients"][0]["feed"].as_array()?.clone();
        (called.iter().filter(|feed| feed["state"] == "up").count() == 2).then_some(())
    })
    .await;
    // Ctrl-C
    processes[0].signal(Signal::INT);
    assert_eq!(processes[0].wait(SOON).code(), Some(0));
    session.run(PAGE, "$ etcdctl get --prefix --keys-only /services/feed/");
    feed.kill();
    wait_for("the gateway misses it", || async {
        get(gateway, "/readyz").await.body.contains("warn: feed").then_some(())
    })
    .await;
    session.run(PAGE, "$ curl http://localhost:6060/readyz");
    session.finish();
    for process in &mut processes[1..] {
        process.stop(SOON);
    }
}
