//! The Kubernetes manifests before a real kube-apiserver, which stores nothing: a server-side dry run with strict validation
//! of every field.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::manifests::{OVERLAYS, find, objects, program, text};
use crate::kit::etcd::Etcd;
use crate::kit::process::with_input;
use crate::kit::{free_addr, wait_long_for};

/// A running kube-apiserver with an etcd of its own. Killed when dropped.
struct ApiServer {
    url: String,
    child: Child,
    dir: tempfile::TempDir,
    _etcd: Etcd,
}

impl ApiServer {
    async fn start() -> Self {
        let (etcd, addr, dir) = (Etcd::start().await, free_addr(), tempfile::tempdir().unwrap());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let key = Command::new("openssl").args(["genrsa", "-out", &path("sa.key"), "2048"]).output().unwrap();
        assert!(key.status.success(), "{key:?}");
        std::fs::write(path("tokens"), "admin,admin,1,\"system:masters\"\n").unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new(program("kube-apiserver"))
            .arg(format!("--etcd-servers=http://{}", etcd.addr))
            .args(["--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC"])
            .arg(format!("--service-account-key-file={}", path("sa.key")))
            .arg(format!("--service-account-signing-key-file={}", path("sa.key")))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg(format!("--bind-address={}", addr.ip()))
            .arg(format!("--secure-port={}", addr.port()))
            .arg(format!("--cert-dir={}", dir.path().display()))
            .arg(format!("--token-auth-file={}", path("tokens")))
            // no controller makes the accounts that it wants
            .arg("--disable-admission-plugins=ServiceAccount")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { url: format!("https://{addr}"), child, dir, _etcd: etcd };
        wait_long_for("kube-apiserver is ready", || async {
            if server.kubectl(&["get", "--raw=/readyz"], "").status.success() {
                return Some(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            None
        })
        .await;
        server
    }

    fn kubectl(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(program("kubectl"));
        command.arg(format!("--server={}", self.url)).args(["--insecure-skip-tls-verify", "--token=admin"]);
        command.env("HOME", self.dir.path()).args(args);
        with_input(&mut command, input)
    }

    /// Asks whether objects would be taken; returns why not.
    fn would_take(&self, input: &str) -> Result<String, String> {
        let args = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
        let output = self.kubectl(&args, input);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(20).collect();
            eprintln!("{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

#[tokio::test]
#[ignore = "wants kube-apiserver: make test-containers"]
async fn kubernetes_takes_every_overlay() {
    let server = ApiServer::start().await;
    // a dry run stores no namespace for what comes after it
    let namespace = crate::kit::yaml::text("deploy/kubernetes/base/namespace.yaml");
    let made = server.kubectl(&["apply", "-f", "-"], &namespace);
    assert!(made.status.success(), "{made:?}");
    // the kinds of cert-manager, as it would bring them
    let kinds = std::fs::read_to_string(program("../cert-manager.yaml")).unwrap();
    let made = server.kubectl(&["apply", "--server-side", "-f", "-"], &kinds);
    assert!(made.status.success(), "{made:?}");
    let known = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    let waited = server.kubectl(&known, "");
    assert!(waited.status.success(), "{waited:?}");

    for overlay in OVERLAYS {
        let said = server.would_take(&text(overlay)).unwrap_or_else(|why| panic!("{overlay}: {why}"));
        assert_eq!(said.lines().count(), objects(overlay).len(), "{overlay}: {said}");
        // the profile `restricted` judges pods, not what makes them
        for object in objects(overlay) {
            if object["spec"]["template"].is_object() {
                let pod = pod_of(&object);
                let said = server.would_take(&pod.to_string());
                assert!(said.is_ok(), "{overlay}: {} {said:?}", object["metadata"]["name"]);
            }
        }
    }

    // what is wrong would have been refused
    let all = objects(OVERLAYS[1]);
    let feed = find(&all, "Deployment", "feed");
    for (path, name, value, why) in [
        (
            "/spec/template/spec/containers/0",
            "readinesProbe",
            json!({}),
            ".readinesProbe: field not declared",
        ),
        (
            "/spec/template/spec",
            "terminationGracePeriodSecond",
            json!(5),
            "spec.template.spec.terminationGracePeriodSecond",
        ),
        ("/spec", "minReadySeconds", json!("five"), "minReadySeconds"),
        (
            "/spec/template/spec/containers/0/lifecycle",
            "preStop",
            json!({ "sleep": { "seconds": "5" } }),
            "seconds",
        ),
    ] {
        let mut wrong = feed.clone();
        if path.ends_with("/lifecycle") {
            wrong["spec"]["template"]["spec"]["containers"][0]["lifecycle"] = json!({});
        }
        wrong.pointer_mut(path).unwrap()[name] = value;
        let refused = server.would_take(&wrong.to_string()).expect_err(name);
        assert!(refused.contains(why), "{name}: {refused}");
    }
    let trusted = objects(OVERLAYS[3]);
    let mut certificate = find(&trusted, "Certificate", "feed").clone();
    certificate["spec"]["usages"] = json!(["digital signatures"]);
    let refused = server.would_take(&certificate.to_string()).expect_err("a certificate");
    assert!(refused.contains("spec.usages"), "{refused}");
    let mut rooted = pod_of(feed);
    rooted["spec"]["securityContext"]["runAsNonRoot"] = false.into();
    let refused = server.would_take(&rooted.to_string()).expect_err("a pod as root");
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}

/// Returns a pod as a Deployment or a StatefulSet would make it.
fn pod_of(object: &Value) -> Value {
    let template = &object["spec"]["template"];
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"] });
    pod["metadata"]["name"] = object["metadata"]["name"].clone();
    pod["metadata"]["namespace"] = object["metadata"]["namespace"].clone();
    for claim in object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let name = &claim["metadata"]["name"];
        let volume = json!({ "name": name, "persistentVolumeClaim": { "claimName": name } });
        if pod["spec"]["volumes"].is_null() {
            pod["spec"]["volumes"] = json!([]);
        }
        pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
    }
    pod
}
