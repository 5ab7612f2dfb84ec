//! The overlay `small` as pods under `podman kube play`: curls, scaling, a killed pod, and the replacement of every
//! Deployment under load. Podman knows neither Services nor rolling updates nor probes; this test plays their part.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::manifests::{OVERLAYS, differences, find, objects, settings};
use crate::kit::http::{self, request};
use crate::kit::load::Load;
use crate::kit::podman::{Network, command, image, inspect, off, podman, try_podman};
use crate::kit::process::{self, with_input};
use crate::kit::{free_addr, wait_long_for};

const ROLES: [&str; 4] = ["feed", "profile", "topic", "apigateway"];

/// What may differ between a pod that runs here and the one that the cluster would make, and why.
const CHANGED: [&str; 13] = [
    "/metadata/name",                  // the cluster invents one
    "/metadata/labels/pod-template",   // as the cluster adds pod-template-hash
    "/spec/hostname",                  // that name, as the cluster sets it
    "/spec/topologySpreadConstraints", // there is one node
    "/spec/containers/0/image",        // the local image
    "/spec/containers/0/imagePullPolicy",
    "/spec/containers/0/startupProbe", // Podman knows none of these four
    "/spec/containers/0/readinessProbe",
    "/spec/containers/0/livenessProbe",
    "/spec/containers/0/lifecycle",
    "/spec/containers/0/ports", // it would publish each on the host
    "/spec/containers/0/env",   // without the zone: there is no such label here
    "/spec/volumes/0",          // the claim has a name of this test's own; Podman has no emptyDir
];

/// The system: a network, a registry, pods. Everything is removed when dropped.
struct System {
    name: String,
    network: Network,
    etcd: IpAddr,
    objects: Vec<Value>,
    app: String,
}

impl System {
    fn start() -> Arc<Self> {
        let objects = objects(OVERLAYS[0]);
        let name = format!("msa-test-{}", free_addr().port());
        let network = Network::new();
        let etcd = network.address(10);
        let system = Self { name, network, etcd, objects, app: image("app") };
        system.play(&system.etcd_pod(), Some(etcd));
        Arc::new(system)
    }

    /// Returns the registry as a pod: Podman has no StatefulSet.
    fn etcd_pod(&self) -> Value {
        let set = find(&self.objects, "StatefulSet", "etcd");
        let mut container = set["spec"]["template"]["spec"]["containers"][0].clone();
        for unknown in ["startupProbe", "readinessProbe", "livenessProbe", "ports"] {
            container.as_object_mut().unwrap().remove(unknown);
        }
        container["image"] = image("etcd").into();
        container["imagePullPolicy"] = "Never".into();
        // the names of a headless Service
        let here = |text: &str| {
            text.replace("$(POD_NAME).etcd", &self.etcd.to_string()).replace("$(POD_NAME)", "etcd-0")
        };
        let args = container["args"].as_array().unwrap().iter().map(|arg| {
            let members = format!("etcd-0=http://{}:2380", self.etcd);
            Value::from(here(arg.as_str().unwrap()).replace("$(MEMBERS)", &members))
        });
        container["args"] = args.collect();
        container["env"] = json!([]);
        let security = &set["spec"]["template"]["spec"]["securityContext"];
        container["securityContext"]["runAsUser"] = security["runAsUser"].clone();
        let claim = format!("{}-etcd", self.name);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("{}-etcd", self.name) },
            "spec": {
                "hostname": "etcd-0", "containers": [container],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }],
            },
        })
    }

    /// Returns a pod of a Deployment as it is to run here, with nothing changed but [`CHANGED`].
    fn pod(&self, role: &str, name: &str) -> Value {
        let template = &find(&self.objects, "Deployment", role)["spec"]["template"];
        let mut pod = template.clone();
        pod["metadata"]["name"] = format!("{}-{name}", self.name).into();
        pod["spec"]["hostname"] = name.into();
        pod["spec"].as_object_mut().unwrap().remove("topologySpreadConstraints");
        let container = &mut pod["spec"]["containers"][0];
        for unknown in ["startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports"] {
            container.as_object_mut().unwrap().remove(unknown);
        }
        container["image"] = self.app.clone().into();
        container["imagePullPolicy"] = "Never".into();
        let env =
            container["env"].as_array().unwrap().iter().filter(|variable| variable["valueFrom"].is_null());
        container["env"] = env.cloned().collect();
        let claim = format!("{}-{role}", self.name);
        pod["spec"]["volumes"][0] =
            json!({ "name": "data", "persistentVolumeClaim": { "claimName": claim } });
        for path in differences(template, &pod).keys() {
            assert!(
                CHANGED.iter().any(|allowed| path == allowed || path.starts_with(&format!("{allowed}/"))),
                "{path}"
            );
        }
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod
    }

    /// Starts a pod, with the settings that all share; the registry has an address here, and no name.
    fn play(&self, pod: &Value, ip: Option<IpAddr>) {
        let mut settings = settings(&self.objects).clone();
        let before = settings.clone();
        settings["data"]["MSA__REGISTRY__ENDPOINTS"] = format!("{}:2379", self.etcd).into();
        let changed: Vec<_> = differences(&before, &settings).into_keys().collect();
        assert_eq!(changed, ["/data/MSA__REGISTRY__ENDPOINTS"]);
        let mut play = command("podman");
        play.args(["kube", "play", "--network", &self.network.0]);
        if let Some(ip) = ip {
            play.arg(format!("--ip={ip}"));
        }
        let output = with_input(play.arg("-"), &format!("{settings}\n---\n{pod}\n"));
        assert!(output.status.success(), "{}\n{pod:#}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a pod of a role and waits until it is ready.
    async fn start_pod(self: &Arc<Self>, role: &'static str, name: &str) {
        let (system, name) = (self.clone(), name.to_owned());
        let container = off(move || {
            system.play(&system.pod(role, &name), None);
            system.container(role, &name)
        })
        .await;
        wait_long_for("the pod is ready", || {
            let container = container.clone();
            async {
                let check = move || {
                    try_podman(&["exec", &container, "/usr/local/bin/microservice-app", "check-health"])
                };
                let asked = off(check).await;
                let said = String::from_utf8_lossy(&asked.stdout).into_owned();
                // the cluster waits for minReadySeconds: by then it is registered
                (asked.status.success() && !said.contains("not registered")).then_some(())
            }
        })
        .await;
    }

    fn container(&self, role: &str, name: &str) -> String {
        format!("{}-{name}-{role}", self.name)
    }

    /// Stops a pod as the kubelet does, with the grace period of its manifest, and removes it.
    async fn stop_pod(&self, role: &'static str, name: &str) {
        let template = &find(&self.objects, "Deployment", role)["spec"]["template"];
        let grace = template["spec"]["terminationGracePeriodSeconds"].to_string();
        let (pod, container) = (format!("{}-{name}", self.name), self.container(role, name));
        off(move || {
            podman(&["stop", "--time", &grace, &container]);
            let state = inspect(&container)["State"].clone();
            assert_eq!(state["ExitCode"], 0, "{container} was killed: {state:#}");
            podman(&["pod", "rm", "--force", &pod]);
        })
        .await;
    }

    fn ip(&self, name: &str) -> IpAddr {
        let pod: Value =
            serde_json::from_str(&podman(&["pod", "inspect", &format!("{}-{name}", self.name)])).unwrap();
        let infra = inspect(pod["InfraContainerID"].as_str().unwrap());
        infra["NetworkSettings"]["Networks"][&self.network.0]["IPAddress"].as_str().unwrap().parse().unwrap()
    }

    /// Waits until a gateway calls so many instances of a service, all of them up.
    async fn wait_for(self: &Arc<Self>, gateway: &'static str, service: &str, count: usize) {
        let shared = self.clone();
        let admin = SocketAddr::new(off(move || shared.ip(gateway)).await, 6060);
        wait_long_for("the gateway calls every instance", || async {
            let mut asked = request("GET", "/status", "");
            asked.headers_mut().insert("host", admin.to_string().parse().unwrap());
            let status = http::send(admin, asked).await.ok()?.json();
            let all = status["clients"][0][service].as_array()?;
            (all.len() == count && all.iter().all(|endpoint| endpoint["state"] == "up")).then_some(())
        })
        .await;
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let listed = try_podman(&["pod", "ps", "--format={{.Name}}"]);
        for pod in String::from_utf8_lossy(&listed.stdout).lines().filter(|pod| pod.starts_with(&self.name)) {
            if std::thread::panicking() {
                let log = try_podman(&["pod", "logs", "--tail=15", pod]);
                eprintln!(
                    "{pod}: {}{}",
                    String::from_utf8_lossy(&log.stdout),
                    String::from_utf8_lossy(&log.stderr)
                );
            }
            let _ = try_podman(&["pod", "rm", "--force", "--time=1", pod]);
        }
        let listed = try_podman(&["volume", "ls", "--quiet"]);
        for volume in
            String::from_utf8_lossy(&listed.stdout).lines().filter(|name| name.starts_with(&self.name))
        {
            let _ = try_podman(&["volume", "rm", "--force", volume]);
        }
    }
}

/// Runs curl beside the [`Service`] that it calls.
async fn curl(args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    off(move || process::curl(&args.iter().map(String::as_str).collect::<Vec<_>>())).await
}

/// The part of the Service: new connections go to the gateway that it names.
struct Service {
    addr: SocketAddr,
    target: Arc<RwLock<SocketAddr>>,
}

impl Service {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, target) = (listener.local_addr().unwrap(), Arc::new(RwLock::new(target)));
        let shared = target.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let target = *shared.read().unwrap();
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { addr, target }
    }

    fn turn_to(&self, target: SocketAddr) {
        *self.target.write().unwrap() = target;
    }
}

#[tokio::test]
#[ignore = "wants Podman and kubectl: make test-containers"]
async fn pods_serve_scale_and_are_replaced_without_a_failed_call() {
    let system = System::start();
    for role in ROLES {
        system.start_pod(role, &format!("{role}-a")).await;
    }
    for service in &ROLES[..3] {
        system.wait_for("apigateway-a", service, 1).await;
    }
    let service = Service::to(SocketAddr::new(system.ip("apigateway-a"), 8080)).await;
    let at = format!("http://{}", service.addr);
    let feed = r#"{"id":100,"user_id":123,"content":"hello world"}"#;
    assert_eq!(curl(&["-XPUT", &format!("{at}/api/feed/create_feed"), "-d", feed]).await, "{}");
    let profile = r#"{"user_id":123,"name":"Ada","company":"","title":""}"#;
    assert_eq!(curl(&["-XPUT", &format!("{at}/api/profile/put_profile"), "-d", profile]).await, "{}");
    let topic = r#"{"topic_id":1,"subject":"s","content":"c"}"#;
    assert_eq!(curl(&["-XPUT", &format!("{at}/api/topic/put_topic"), "-d", topic]).await, "{}");
    let read = curl(&["-XGET", &format!("{at}/api/feed/get_feeds?user_id=123&&size=2")]).await;
    assert!(read.contains("\"content\": \"hello world\""), "{read}");

    // scaled to three, and one of them killed
    system.start_pod("feed", "feed-b").await;
    system.start_pod("feed", "feed-c").await;
    system.wait_for("apigateway-a", "feed", 3).await;
    let load = Load::of(service.addr, 40.0, |number| {
        let paths = [
            "/api/feed/get_feeds?user_id=123",
            "/api/profile/get_profile?user_id=123",
            "/api/topic/view?topic_id=1",
        ];
        request("GET", paths[usize::try_from(number % 3).unwrap()], "")
    })
    // what counts here is the answer; the deadline of the gateway is shorter
    .within(Duration::from_secs(5));
    let running = load.clone().start();
    running.more(80).await;
    let victim = system.container("feed", "feed-c");
    off(move || podman(&["kill", &victim])).await;
    running.more(160).await;
    let record = running.finish().await;
    assert!(record.failed().is_empty(), "a killed pod: {}", record.failures());

    // every Deployment is replaced, pod by pod: first a new one, then an old one goes
    let running = load.start();
    running.more(60).await;
    for (role, old) in
        [("feed", "feed-a"), ("feed", "feed-b"), ("profile", "profile-a"), ("topic", "topic-a")]
    {
        let new = format!("{old}-new");
        system.start_pod(role, &new).await;
        running.more(60).await;
        system.stop_pod(role, old).await;
        running.more(60).await;
    }
    system.start_pod("apigateway", "apigateway-b").await;
    for service in &ROLES[1..3] {
        system.wait_for("apigateway-b", service, 1).await;
    }
    let shared = system.clone();
    let ip = off(move || shared.ip("apigateway-b")).await;
    service.turn_to(SocketAddr::new(ip, 8080));
    // preStop: the old gateway serves until nothing more is sent to it
    let deployment = find(&system.objects, "Deployment", "apigateway");
    let sleep =
        &deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
    tokio::time::sleep(Duration::from_secs(sleep.as_u64().unwrap())).await;
    system.stop_pod("apigateway", "apigateway-a").await;
    running.more(80).await;
    let record = running.finish().await;
    let mut by_instance = BTreeMap::<&str, usize>::new();
    for call in &record.calls {
        *by_instance.entry(&call.instance).or_default() += 1;
    }
    println!(
        "{} calls during the replacement, {} sent again: {by_instance:?}",
        record.calls.len(),
        record.again()
    );
    assert!(record.failed().is_empty(), "the replacement: {}", record.failures());
    assert!(by_instance.len() >= 8, "every pod took part: {by_instance:?}");
}
