//! Podman, as root, with the images that tests/containers/images makes.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// What Podman needs where no systemd runs, a container may not raise the limits of its creator, and the control groups
/// are of version 1 and 2 (crun refuses these).
const SETTINGS: &str = "[containers]
default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]
[engine]
cgroup_manager = \"cgroupfs\"
runtime = \"runc\"
[network]
network_backend = \"netavark\"
";

/// Returns the path of the settings, a file that lives as long as the process.
fn settings() -> &'static Path {
    static FILE: OnceLock<tempfile::NamedTempFile> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), SETTINGS).expect("it can be written");
        file
    });
    file.path()
}

/// Returns a command that knows the settings.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("CONTAINERS_CONF", settings()).stdin(Stdio::null());
    // without it, every start of a container with a health check asks systemd for a timer
    command.env("DISABLE_HC_SYSTEMD", "true");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MSA__")) {
        command.env_remove(name);
    }
    command
}

/// Runs `podman` to its end.
pub fn try_podman(args: &[&str]) -> Output {
    command("podman").args(args).output().expect("podman is installed (make test-containers)")
}

/// Runs `podman`, which must succeed; returns what it prints, without the line end.
pub fn podman(args: &[&str]) -> String {
    let output = try_podman(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "podman {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Runs something that blocks, such as Podman, beside the load that is under way.
pub async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic")
}

/// Returns what `podman inspect` says of something.
pub fn inspect(what: &str) -> Value {
    let all: Value = serde_json::from_str(&podman(&["inspect", what])).expect("JSON");
    all[0].clone()
}

/// Returns an image of the tests, which is made if it is not there; see tests/containers/images. The variable `APP_IMAGE`
/// names another image of the program.
pub fn image(name: &str) -> String {
    if let Some(given) = std::env::var("APP_IMAGE").ok().filter(|_| name == "app") {
        return given;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containers/images");
    let output = command("bash").args([script, name]).stderr(Stdio::inherit()).output().expect("bash");
    assert!(output.status.success(), "{script} {name}: {}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// A container. It and its anonymous volumes are removed when this is dropped.
pub struct Container(pub String);

impl Container {
    /// Starts one in the background. `args` are flags, the image, and its arguments.
    pub fn run(args: &[&str]) -> Self {
        Self(podman(&[&["run", "--detach"], args].concat()))
    }

    /// Returns its address in its only network.
    pub fn ip(&self) -> std::net::IpAddr {
        let networks = inspect(&self.0)["NetworkSettings"]["Networks"].clone();
        let first = networks.as_object().and_then(|all| all.values().next()).expect("a network");
        first["IPAddress"].as_str().and_then(|ip| ip.parse().ok()).expect("an address")
    }

    /// Runs its health check; returns whether it is healthy.
    pub fn is_healthy(&self) -> bool {
        try_podman(&["healthcheck", "run", &self.0]).status.success()
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        let output = try_podman(&["logs", &self.0]);
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.0, self.log());
        }
        let _ = try_podman(&["rm", "--force", "--volumes", "--time", "1", &self.0]);
    }
}

/// A bridge network with names for its containers. Removed when dropped, with every container in it.
pub struct Network(pub String);

impl Network {
    pub fn new() -> Self {
        let name = format!("msa-test-{}-{}", std::process::id(), super::free_addr().port());
        podman(&["network", "create", &name]);
        Self(name)
    }

    /// Returns an address of this network by its last byte.
    pub fn address(&self, last: u8) -> std::net::IpAddr {
        let all: Value = serde_json::from_str(&podman(&["network", "inspect", &self.0])).expect("JSON");
        let subnet = all[0]["subnets"][0]["subnet"].as_str().expect("a subnet");
        let (beginning, _) = subnet.rsplit_once('.').expect("IPv4");
        format!("{beginning}.{last}").parse().expect("an address")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = try_podman(&["network", "rm", "--force", "--time", "1", &self.0]);
    }
}
