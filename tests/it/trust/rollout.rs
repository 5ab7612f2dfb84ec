//! From plaintext to TLS, one process after the other, while calls go on.

use std::net::TcpListener;
use std::time::Duration;

use crate::kit::http::{request, send};
use crate::kit::load::Load;
use crate::kit::mesh::Mesh;
use crate::kit::system::Role;
use crate::kit::wait_for;

const CALLS: [&str; 3] =
    ["/api/profile/get_profile?user_id=7", "/api/topic/list", "/api/feed/get_feeds?user_id=7"];

/// Longest time for a planned stop.
const STOP: Duration = Duration::from_secs(15);

fn gateway(mesh: &Mesh, socket: &TcpListener, mode: &str) -> Role {
    let env = mesh.env("apigateway", mode);
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Role::gateway_on(socket, &mesh.etcd.addr.to_string(), &env)
}

/// Stops a process while the load goes on.
async fn stop(mut role: Role) {
    tokio::task::spawn_blocking(move || role.process.stop(STOP)).await.unwrap();
}

async fn ready(gateway: &Role) {
    wait_for("it is ready", || async {
        (send(gateway.admin, request("GET", "/readyz", "")).await.ok()?.body == "ready\n").then_some(())
    })
    .await;
}

/// Returns the open connections of a service.
async fn open(service: &Role, transport: &str) -> f64 {
    service.metric(&format!("tls_server_connections{{purpose=\"grpc\",transport=\"{transport}\"}}")).await
}

#[tokio::test]
async fn a_rollout_by_way_of_permissive_loses_no_call() {
    let mesh = Mesh::start().await;
    let dir = mesh.path().to_owned();
    // records outlast the processes
    let urls = ["profile", "feed", "topic"]
        .map(|role| (role, format!("sqlite:{}", dir.join(format!("{role}.db")).display())));
    let start =
        |role: &'static str, url: &str, mode: &str| mesh.role(role, mode, &[("MSA__STORE__URL", url)]);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut services: Vec<(&'static str, String, Vec<Role>)> = Vec::new();
    for (role, url) in urls {
        let instances = vec![start(role, &url, "off"), start(role, &url, "off")];
        services.push((role, url, instances));
    }
    let mut front = gateway(&mesh, &socket, "off");
    ready(&front).await;
    for (role, _, instances) in &services {
        front.wait_for_certain(role, instances.len()).await;
    }
    let put = r#"{"user_id":7,"name":"Ada","company":"","title":""}"#;
    assert_eq!(send(front.addr, request("PUT", "/api/profile/put_profile", put)).await.unwrap().status, 200);
    let load = Load::of(front.addr, 100.0, |n| request("GET", CALLS[n as usize % CALLS.len()], "")).start();
    load.more(20).await;

    for mode in ["permissive", "strict"] {
        for (role, url, instances) in &mut services {
            for instance in instances {
                let next = start(role, url, mode);
                front.wait_for_certain(role, 3).await;
                stop(std::mem::replace(instance, next)).await;
                front.wait_for_certain(role, 2).await;
            }
        }
        let next = gateway(&mesh, &socket, mode);
        ready(&next).await;
        stop(std::mem::replace(&mut front, next)).await;
        load.more(50).await;
        // what strict needs: nobody speaks plaintext any more
        for (_, _, instances) in &services {
            for service in instances {
                wait_for("nothing is plaintext", || async {
                    (open(service, "plaintext").await < 0.5).then_some(())
                })
                .await;
                assert!(open(service, "tls").await >= 1.0);
            }
        }
    }
    let record = load.finish().await;
    assert_eq!((record.failed().len(), record.unsent), (0, 0), "{}", record.failures());
    assert!(record.calls.len() > 200, "{} calls", record.calls.len());
}

/// What is called before the service has TLS: the caller's first words in TLS are nothing that it knows.
#[tokio::test]
async fn a_permissive_caller_speaks_plaintext_with_a_service_that_has_no_tls() {
    let mesh = Mesh::start().await;
    let gateway = mesh.role("apigateway", "permissive", &[]);
    let topic = mesh.role("topic", "off", &[]);
    gateway.wait_for_certain("topic", 1).await;
    assert_eq!(send(gateway.addr, request("GET", CALLS[1], "")).await.unwrap().status, 200);
    let opened = async |transport: &str| {
        let series =
            format!("tls_connections_total{{purpose=\"grpc\",side=\"client\",transport=\"{transport}\"}}");
        gateway.metric(&series).await
    };
    assert!(opened("plaintext").await >= 1.0 && opened("tls").await < 0.5);
    drop(topic);
    let topic = mesh.role("topic", "permissive", &[]);
    gateway
        .wait_for_instances("topic", "the new one is called", |listed| {
            listed.len() == 1 && listed[0]["addr"] == topic.addr.to_string()
        })
        .await;
    assert!(opened("tls").await >= 1.0);
    assert_eq!(send(gateway.addr, request("GET", CALLS[1], "")).await.unwrap().status, 200);
}
