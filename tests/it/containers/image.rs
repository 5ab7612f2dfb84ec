//! The image of deploy/Containerfile, built without network.

use std::time::{Duration, Instant};

use hyper::StatusCode;

use crate::kit::http::{self, get, request};
use crate::kit::podman::{Container, Network, image, inspect, podman, try_podman};
use crate::kit::{measured, wait_for};

/// As an orchestrator restricts it: nothing but the volume can be written, and there are no rights.
const RESTRICTED: [&str; 4] =
    ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=256m"];

/// Most bytes of the compressed image.
const COMPRESSED: u64 = 60 * 1024 * 1024;
/// Longest time from the start of a container to `ready`, with etcd up.
const READY: Duration = Duration::from_millis(300);

#[test]
#[ignore = "wants Podman: make test-containers"]
fn the_image_is_small_labelled_and_without_debug_information() {
    let app = image("app");
    let config = inspect(&app)["Config"].clone();
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/local/bin/microservice-app"]));
    for (label, wanted) in
        [("version", env!("CARGO_PKG_VERSION")), ("revision", "0123456789ab"), ("licenses", "Apache-2.0")]
    {
        assert_eq!(config["Labels"][format!("org.opencontainers.image.{label}")], wanted);
    }
    let version = podman(&["run", "--rm", "--network=none", &app, "--version"]);
    assert_eq!(version, format!("microservice-app {} (0123456789ab)", env!("CARGO_PKG_VERSION")));

    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    podman(&["save", "--quiet", "--format=oci-archive", "--output", archive.to_str().unwrap(), &app]);
    let size = std::fs::metadata(&archive).unwrap().len();
    println!("compressed image: {:.1} MB", size as f64 / 1e6);
    assert!(size > 1024 * 1024, "{size} bytes are no image");
    assert!(size <= COMPRESSED, "{size} bytes");

    // the names of functions are there for CPU profiles, the lines are in the file beside it
    let copied = |image: &str, from: &str, to: &str| {
        let name = podman(&["create", image, "none"]);
        let to = dir.path().join(to).display().to_string();
        let done = try_podman(&["cp", &format!("{name}:{from}"), &to]);
        podman(&["rm", &name]);
        assert!(done.status.success(), "{from}: {}", String::from_utf8_lossy(&done.stderr));
        let sections =
            std::process::Command::new("readelf").args(["--wide", "--sections", &to]).output().unwrap();
        String::from_utf8(sections.stdout).unwrap()
    };
    let program = copied(&app, "/usr/local/bin/microservice-app", "program");
    assert!(program.contains(".symtab") && program.contains(".gnu_debuglink"), "{program}");
    assert!(!program.contains(".debug_line"), "{program}");
    let debug = copied(&image("debug"), "/microservice-app.debug", "debug");
    assert!(debug.contains(".debug_line"), "{debug}");
}

/// Without arguments all roles run; `stop` lets calls end, and a volume keeps what was acknowledged.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn a_restricted_container_serves_drains_and_keeps_its_records() {
    let app = image("app");
    let volume = format!("msa-test-{}", std::process::id());
    let mount = format!("{volume}:/data");
    let start = || Container::run(&[&RESTRICTED[..], &["--volume", &mount, &app]].concat());
    let one = start();
    let gateway = std::net::SocketAddr::new(one.ip(), 8080);
    wait_for("the container is healthy", || async { one.is_healthy().then_some(()) }).await;
    // nobody outside reads the admin port
    assert!(
        http::send(std::net::SocketAddr::new(one.ip(), 6060), request("GET", "/readyz", "")).await.is_err()
    );
    let feed = "{\"id\":1,\"user_id\":7,\"content\":\"kept\"}";
    let put = http::send(gateway, request("PUT", "/api/feed/create_feed", feed)).await.unwrap();
    assert_eq!(put.status, StatusCode::OK, "{put:?}");

    let begun = Instant::now();
    podman(&["stop", "--time", "12", &one.0]);
    let took = begun.elapsed();
    assert_eq!(inspect(&one.0)["State"]["ExitCode"], 0, "SIGTERM reaches the program: {}", one.log());
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop(one);

    let two = start();
    let gateway = std::net::SocketAddr::new(two.ip(), 8080);
    wait_for("the container is healthy", || async { two.is_healthy().then_some(()) }).await;
    let read = get(gateway, "/api/feed/get_feeds?user_id=7").await;
    assert!(read.body.contains("\"kept\""), "{read:?}");
    drop(two);
    podman(&["volume", "rm", &volume]);
}

/// A gateway that knows no registry yet is not healthy, and becomes so when etcd is there.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn the_health_check_is_that_of_the_program() {
    let (app, etcd) = (image("app"), image("etcd"));
    let network = Network::new();
    let net = format!("--network={}", network.0);
    let gateway =
        Container::run(&[&RESTRICTED[..], &[&net, &app, "apigateway", "--etcd-addr=etcd:2379"]].concat());
    wait_for("it answers", || async {
        let asked =
            try_podman(&["exec", &gateway.0, "/usr/local/bin/microservice-app", "check-health", "--live"]);
        asked.status.success().then_some(())
    })
    .await;
    assert!(!gateway.is_healthy());
    let _etcd = start_etcd(&net, &etcd);
    wait_for("it is healthy", || async { gateway.is_healthy().then_some(()) }).await;
}

/// From the start of the program in its container to `ready`, etcd being there; the best of three tries.
#[tokio::test]
#[ignore = "wants Podman: make test-containers"]
async fn a_container_is_ready_soon() {
    let (app, etcd) = (image("app"), image("etcd"));
    let network = Network::new();
    let net = format!("--network={}", network.0);
    let _etcd = start_etcd(&net, &etcd);
    let took = measured("the time from the start to ready", || async {
        // it is asked while Podman still starts it: its address is known before
        let ip = network.address(50);
        let admin = std::net::SocketAddr::new(ip, 6060);
        let asking = tokio::spawn(async move {
            wait_for("the gateway is ready", || async {
                let asked = http::send(admin, request("GET", "/readyz", ""));
                let answer = tokio::time::timeout(Duration::from_millis(100), asked).await.ok()?.ok()?;
                (answer.status == StatusCode::OK).then(uptime)
            })
            .await
        });
        let ip = format!("--ip={ip}");
        let args =
            [&net, ip.as_str(), "--env=MSA__ADMIN__ADDR=:6060", &app, "apigateway", "--etcd-addr=etcd:2379"];
        let args = [&RESTRICTED[..], &args].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let gateway = tokio::task::spawn_blocking(move || {
            Container::run(&args.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let (gateway, ready) = (gateway.await.unwrap(), asking.await.unwrap());
        // the clock of the kernel has hundredths of a second
        let pid = inspect(&gateway.0)["State"]["Pid"].as_u64().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let ticks: u64 =
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        let took = ready.saturating_sub(Duration::from_millis(ticks * 10));
        println!("start to ready: {took:?}");
        if took <= READY { Ok(took) } else { Err(took) }
    })
    .await;
    assert!(took > Duration::ZERO);
}

fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    Duration::from_secs_f64(text.split(' ').next().unwrap().parse().unwrap())
}

fn start_etcd(net: &str, image: &str) -> Container {
    let urls = ["--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://etcd:2379"];
    let args =
        ["--network-alias=etcd", "--tmpfs=/var/lib/etcd", image, "etcd", "--data-dir=/var/lib/etcd/data"];
    Container::run(&[&[net][..], &args, &urls].concat())
}
