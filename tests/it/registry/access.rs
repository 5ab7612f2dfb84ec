//! How a process gets to etcd: TLS, users, rotation of both, and which member.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use etcd_client::{
    Client, ConnectOptions, EventType, GetOptions, Permission, PutOptions, WatchOptions, WatchStream,
};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::kit::authority::{Authority, replace};
use crate::kit::etcd::{Etcd, Options};
use crate::kit::load::{Load, Record};
use crate::kit::process::{Process, run};
use crate::kit::relay::Relay;
use crate::kit::system::{Role, TTL};
use crate::kit::{SOON, free_addr, peer, wait_for};

/// Long enough for a test.
const HOUR: Duration = Duration::from_hours(1);
/// No secret that a test uses may be seen anywhere else.
const PASSWORD: &str = "correct-horse-battery-staple";
/// The lines that say that something was noticed.
const TROUBLE: [&str; 3] = [
    "not registered, trying until it is",
    "lost the registry, keeping the last view",
    "the registry cannot be reached yet",
];

/// Waits for a log line without standing in the way of the relay and the load in this process.
async fn wait_for_log(process: &mut Process, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        process.poll_logs();
        if let Some(line) = process.seen.iter().find(|line| fits(line)) {
            return line.clone();
        }
        assert!(begun.elapsed() < SOON, "no log line: {what}; saw {:#?}", process.seen);
        sleep(Duration::from_millis(10)).await;
    }
}

async fn wait_for_message(process: &mut Process, message: &str) -> Value {
    wait_for_log(process, message, |line| line["message"] == message).await
}

/// Waits until a process has ended by itself with status 1; returns its last word.
fn failed(process: &mut Process) -> String {
    let status = process.wait(SOON);
    assert_eq!(status.code(), Some(1), "{:#?}", process.seen);
    let last = process.seen.iter().filter_map(Value::as_str).next_back();
    last.expect("a last word").to_owned()
}

/// Absence of a line proves something only while the program has that line.
#[test]
fn the_lines_that_say_trouble_are_the_programs() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/registry");
    let mut code = String::new();
    let mut dirs = vec![dir];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                code.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    for line in TROUBLE {
        assert!(code.contains(&format!("\"{line}\"")), "{line:?} is not in src/registry");
    }
}

fn no_trouble(process: &mut Process) {
    process.poll_logs();
    let seen: Vec<_> = process
        .seen
        .iter()
        .filter(|line| TROUBLE.iter().any(|trouble| line["message"] == *trouble))
        .collect();
    assert!(seen.is_empty(), "{seen:#?}");
}

fn no_failure(record: &Record, at_least: usize) {
    assert!(record.calls.len() >= at_least, "only {} calls", record.calls.len());
    assert!(record.failed().is_empty(), "{}", record.failures());
}

/// Returns the keys below `/services/` that were deleted since the watch began. A key of our own, put and deleted
/// now, shows that the watch has seen everything up to here.
async fn deleted(watch: &mut WatchStream, client: &mut Client) -> BTreeSet<String> {
    const PROBE: &str = "/services/probe";
    client.put(PROBE, "x", None).await.unwrap();
    client.delete(PROBE, None).await.unwrap();
    let mut keys = BTreeSet::new();
    loop {
        let message = timeout(SOON, watch.message()).await.expect("the watch goes on").unwrap();
        let message = message.expect("the watch goes on");
        for event in message.events().iter().filter(|event| event.event_type() == EventType::Delete) {
            let key = event.kv().expect("a key").key_str().unwrap();
            if key == PROBE {
                return keys;
            }
            keys.insert(key.to_owned());
        }
    }
}

async fn watch(client: &mut Client) -> WatchStream {
    client.watch("/services/", Some(WatchOptions::new().with_prefix())).await.unwrap()
}

// --- TLS ---

/// An etcd that wants certificates, and the files that its clients use.
struct Secured {
    etcd: Etcd,
    https: SocketAddr,
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Secured {
    /// Starts it. It believes the authorities in `trusted.pem`; its own certificate is for `names`.
    async fn start(names: &[&str], others: &[&Authority]) -> Self {
        let (authority, dir, https) = (Authority::new("one"), tempfile::tempdir().unwrap(), free_addr());
        authority.issue(dir.path(), "server", names, HOUR);
        authority.issue(dir.path(), "client", &[], HOUR);
        let trusted: String = others.iter().map(|other| other.pem()).collect();
        fs::write(dir.path().join("trusted.pem"), authority.pem() + &trusted).unwrap();
        fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        let args = vec![
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("trusted.pem")),
            "--client-cert-auth".to_owned(),
        ];
        let etcd = Etcd::start_with(Options { https: Some(https), args, ..Options::default() }).await;
        Self { etcd, https, dir, authority }
    }

    fn endpoint(&self) -> String {
        format!("https://{}", self.https)
    }

    fn env(&self) -> [(&'static str, String); 4] {
        [
            // absolute names stay as they are
            ("CREDENTIALS_DIRECTORY", "/nowhere".to_owned()),
            ("MSA__REGISTRY__CA_FILE", self.file("ca.pem")),
            ("MSA__REGISTRY__CERT_FILE", self.file("client.pem")),
            ("MSA__REGISTRY__KEY_FILE", self.file("client.key")),
        ]
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn texts<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    env.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// F41: client certificate, authority and etcd's own certificate are replaced one after the other; every
/// connection is broken in between, so that nothing lives on what was.
#[tokio::test]
async fn rotated_certificates_cost_no_call_and_no_registration() {
    let next = Authority::new("two");
    let secured = Secured::start(&["127.0.0.1"], &[&next]).await;
    let life = Duration::from_secs(8);
    secured.authority.issue(secured.dir.path(), "client", &[], life);
    let expiry = SystemTime::now() + life;
    let relay = Relay::start(secured.https, 41).await;
    let (endpoint, env) = (format!("https://{}", relay.addr), secured.env());
    let mut gateway = Role::start(&endpoint, "apigateway", "127.0.0.1:0", &texts(&env));
    let mut topic = Role::start(&endpoint, "topic", "127.0.0.1:0", &texts(&env));
    gateway.wait_for_certain("topic", 1).await;
    let mut client = secured.etcd.client().await;
    let mut events = watch(&mut client).await;
    let load = Load::get(gateway.addr, 50.0, "/api/topic/list").start();

    // from another authority, and both sides' authorities in the file
    replace(&secured.dir.path().join("ca.pem"), &(secured.authority.pem() + &next.pem()));
    next.issue(secured.dir.path(), "client", &[], HOUR);
    for role in [&mut gateway, &mut topic] {
        wait_for_message(&mut role.process, "credentials for etcd have changed, connected with the new ones")
            .await;
        no_trouble(&mut role.process);
    }
    next.issue(secured.dir.path(), "server", &["127.0.0.1"], HOUR);
    wait_for("the first certificate has expired", || async {
        (SystemTime::now() > expiry + Duration::from_secs(1)).then_some(())
    })
    .await;
    relay.reset();
    for role in [&mut gateway, &mut topic] {
        wait_for_log(&mut role.process, "it noticed", |line| {
            TROUBLE.iter().any(|trouble| line["message"] == *trouble)
        })
        .await;
    }
    let before = secured.etcd.list("/services/").await;
    wait_for("both hold their keys over new connections", || async {
        let status = topic.status().await["roles"][0]["registration"].clone();
        let age = gateway.status().await["registry"]["age_seconds"].as_f64();
        (status == "up" && age < Some(0.5)).then_some(())
    })
    .await;
    sleep(2 * TTL).await;
    no_failure(&load.finish().await, 100);
    assert_eq!(before.len(), 2);
    assert_eq!(secured.etcd.list("/services/").await, before);
    assert_eq!(deleted(&mut events, &mut client).await, BTreeSet::new());
}

/// A new certificate that etcd does not take costs a warning, and is replaced like any other.
#[tokio::test]
async fn a_bad_new_certificate_leaves_the_old_connection_alone() {
    let secured = Secured::start(&["127.0.0.1"], &[]).await;
    let env = secured.env();
    let mut topic = Role::start(&secured.endpoint(), "topic", "127.0.0.1:0", &texts(&env));
    wait_for("it is registered", || async { secured.etcd.list("/services/").await.pop() }).await;
    let mut client = secured.etcd.client().await;
    let mut events = watch(&mut client).await;
    Authority::new("foreign").issue(secured.dir.path(), "client", &[], HOUR);
    let message = "credentials for etcd have changed and do not work yet, going on with the old connection";
    let line = wait_for_message(&mut topic.process, message).await;
    assert!(line["error"].as_str().unwrap().contains("etcd refuses our certificate"), "{line}");
    sleep(2 * TTL).await;
    secured.authority.issue(secured.dir.path(), "client", &[], HOUR);
    wait_for_message(&mut topic.process, "credentials for etcd have changed, connected with the new ones")
        .await;
    no_trouble(&mut topic.process);
    assert_eq!(deleted(&mut events, &mut client).await, BTreeSet::new());
}

#[tokio::test]
async fn a_certificate_that_etcd_refuses_is_an_error_at_the_start() {
    let secured = Secured::start(&["127.0.0.1"], &[]).await;
    let env = secured.env();
    let (mut bare, _) = Role::launch(&secured.endpoint(), "topic", "127.0.0.1:0", &texts(&env[..2]));
    Authority::new("foreign").issue(secured.dir.path(), "client", &[], HOUR);
    let (mut foreign, _) = Role::launch(&secured.endpoint(), "topic", "127.0.0.1:0", &texts(&env));
    // it would be a gateway with nothing to call, but it must not look well
    let (mut gateway, _) = Role::launch(&secured.endpoint(), "apigateway", "127.0.0.1:0", &texts(&env));
    let word = failed(&mut bare);
    // which of the two depends on etcd's version
    assert!(word.contains("etcd asks for a certificate") || word.contains("or asks for one"), "{word}");
    assert!(word.contains("registry.cert_file and registry.key_file"), "{word}");
    for process in [&mut foreign, &mut gateway] {
        let word = failed(process);
        assert!(word.contains("etcd refuses our certificate"), "{word}");
        assert!(word.contains("check registry.cert_file and registry.key_file"), "{word}");
    }
}

/// What we refuse is an etcd that is not ours, or not well: no reason to end, and none to talk to it.
#[tokio::test]
async fn an_etcd_with_another_name_or_authority_is_not_believed() {
    let secured = Secured::start(&["etcd.example"], &[]).await;
    let env = secured.env();
    let mut named = Role::start(&secured.endpoint(), "topic", "127.0.0.1:0", &texts(&env));
    let other = Authority::new("other").pem();
    fs::write(secured.file("other.pem"), other).unwrap();
    let path = secured.file("other.pem");
    let name = ("MSA__REGISTRY__TLS_SERVER_NAME", "etcd.example");
    let foreign = [&texts(&env)[..], &[name, ("MSA__REGISTRY__CA_FILE", path.as_str())]].concat();
    let mut foreign = Role::start(&secured.endpoint(), "topic", "127.0.0.1:0", &foreign);
    for (role, want) in [(&mut named, "not valid for name"), (&mut foreign, "UnknownIssuer")] {
        let line = wait_for_message(&mut role.process, "not registered, trying until it is").await;
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("invalid peer certificate") && error.contains(want), "{error}");
    }
    sleep(Duration::from_secs(3)).await;
    assert_eq!(secured.etcd.list("/services/").await, []);
    named.process.stop(SOON);
    foreign.process.stop(SOON);
    let right = [&texts(&env)[..], &[name]].concat();
    let _right = Role::start(&secured.endpoint(), "topic", "127.0.0.1:0", &right);
    wait_for("it is registered", || async { secured.etcd.list("/services/").await.pop() }).await;
}

// --- users ---

/// An etcd with users: `gateway` may use all of `/services/`, `topic` its own part only.
struct Guarded {
    etcd: Etcd,
    dir: tempfile::TempDir,
}

impl Guarded {
    async fn start(args: &[&str]) -> Self {
        let args = [&["--bcrypt-cost=4"], args].concat();
        let args = args.into_iter().map(str::to_owned).collect();
        let etcd = Etcd::start_with(Options { args, ..Options::default() }).await;
        let mut client = etcd.client().await;
        for (user, password, prefix) in [
            ("root", "root", ""),
            ("gateway", PASSWORD, "/services/"),
            ("topic", PASSWORD, "/services/topic/"),
        ] {
            client.user_add(user, password, None).await.unwrap();
            client.role_add(user).await.unwrap();
            if !prefix.is_empty() {
                let right = Permission::read_write(prefix).with_prefix();
                client.role_grant_permission(user, right).await.unwrap();
            }
            client.user_grant_role(user, user).await.unwrap();
        }
        client.auth_enable().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let guarded = Self { etcd, dir };
        guarded.write_password(PASSWORD);
        guarded
    }

    /// Returns an administrator's client, with a new token.
    async fn root(&self) -> Client {
        root(self.etcd.addr).await
    }

    fn write_password(&self, password: &str) {
        replace(&self.dir.path().join("password"), &format!("{password}\n"));
    }

    fn role(&self, role: &'static str) -> Role {
        let (mut process, role) = self.launch(role);
        let (addr, admin) = process.wait_for_role(role);
        Role { process, addr, admin }
    }

    fn launch(&self, role: &'static str) -> (Process, &'static str) {
        self.launch_with(role, &[])
    }

    fn launch_with(&self, role: &'static str, more: &[(&str, &str)]) -> (Process, &'static str) {
        let user = if role == "apigateway" { "gateway" } else { role };
        let env = [
            ("CREDENTIALS_DIRECTORY", self.dir.path().to_str().unwrap()),
            ("MSA__REGISTRY__USER", user),
            ("MSA__REGISTRY__PASSWORD_FILE", "password"),
        ];
        Role::launch(&self.etcd.addr.to_string(), role, "127.0.0.1:0", &[&env, more].concat())
    }

    async fn keys(&self) -> Vec<String> {
        let list = self.root().await.get("/services/", Some(GetOptions::new().with_prefix())).await;
        let kvs = list.map(|list| list.kvs().to_vec()).unwrap_or_default();
        kvs.iter().filter_map(|kv| Some(kv.key_str().ok()?.to_owned())).collect()
    }

    async fn wait_for_keys(&self, count: usize) -> Vec<String> {
        wait_for("the keys are there", || async {
            let keys = self.keys().await;
            (keys.len() == count).then_some(keys)
        })
        .await
    }
}

async fn root(addr: SocketAddr) -> Client {
    let options = ConnectOptions::new().with_user("root", "root");
    Client::connect([addr.to_string()], Some(options)).await.unwrap()
}

/// Runs a gateway and a topic service for several lives of a token.
async fn outlive_tokens(guarded: Guarded, lives: Duration) {
    let mut gateway = guarded.role("apigateway");
    let mut topic = guarded.role("topic");
    gateway.wait_for_certain("topic", 1).await;
    let keys = guarded.wait_for_keys(2).await;
    let mut events = watch(&mut guarded.root().await).await;
    let load = Load::get(gateway.addr, 20.0, "/api/topic/list").start();
    let until = Instant::now() + lives;
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        guarded.root().await.put("/services/topic/foreign", number.to_string(), None).await.unwrap();
        wait_for("the view follows", || async {
            (gateway.status().await["registry"]["age_seconds"].as_f64() < Some(1.0)).then_some(())
        })
        .await;
        sleep(Duration::from_millis(500)).await;
    }
    no_failure(&load.finish().await, 100);
    assert_eq!(deleted(&mut events, &mut guarded.root().await).await, BTreeSet::new());
    let now = guarded.keys().await;
    assert!(keys.iter().all(|key| now.contains(key)), "{keys:?} {now:?}");
    for role in [&mut gateway, &mut topic] {
        no_trouble(&mut role.process);
        assert!(!format!("{:?}", role.process.seen).contains(PASSWORD), "{:?}", role.process.seen);
        assert!(!role.status().await.to_string().contains(PASSWORD));
    }
}

/// The rights are as small as they can be: so is what the topic service asks for.
#[tokio::test]
async fn simple_tokens_end_and_nobody_notices() {
    let guarded = Guarded::start(&["--auth-token-ttl=5"]).await;
    Box::pin(outlive_tokens(guarded, Duration::from_secs(16))).await;
}

/// Returns the argument of etcd for signed tokens, whose keys are in `dir`.
fn signed_tokens(dir: &Path, life: Duration) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let file = |name: &str| dir.join(name).display().to_string();
    fs::write(file("public"), key.public_key_pem()).unwrap();
    fs::write(file("private"), key.serialize_pem()).unwrap();
    format!(
        "--auth-token=jwt,pub-key={},priv-key={},sign-method=ES256,ttl={}s",
        file("public"),
        file("private"),
        life.as_secs()
    )
}

/// These end however much they are used, and with every change of a user.
#[tokio::test]
async fn signed_tokens_end_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let guarded = Guarded::start(&[&signed_tokens(dir.path(), Duration::from_secs(5))]).await;
    let addr = guarded.etcd.addr;
    let changes = tokio::spawn(async move {
        sleep(Duration::from_secs(7)).await;
        root(addr).await.user_add("newcomer", "x", None).await.unwrap();
    });
    Box::pin(outlive_tokens(guarded, Duration::from_secs(16))).await;
    changes.await.unwrap();
}

/// Whoever sets up users makes many changes in a row, and each ends every signed token. From 3.6.9 on, etcd refuses to
/// renew a lease with such a token.
#[tokio::test]
async fn users_that_change_in_a_row_cost_no_registration() {
    const CHANGES: u32 = 60;
    let dir = tempfile::tempdir().unwrap();
    let guarded = Guarded::start(&[&signed_tokens(dir.path(), HOUR)]).await;
    let mut gateway = guarded.role("apigateway");
    let mut topic = guarded.role("topic");
    gateway.wait_for_certain("topic", 1).await;
    let keys = guarded.wait_for_keys(2).await;
    let mut events = watch(&mut guarded.root().await).await;
    let load = Load::get(gateway.addr, 20.0, "/api/topic/list").start();
    for number in 0..CHANGES {
        guarded.root().await.role_add(format!("newcomer-{number}")).await.unwrap();
        sleep(TTL / 10).await;
    }
    // whatever was lost is lost by then
    sleep(3 * TTL).await;
    no_failure(&load.finish().await, 100);
    assert_eq!(deleted(&mut events, &mut guarded.root().await).await, BTreeSet::new());
    assert_eq!(guarded.keys().await, keys);
    for role in [&mut gateway, &mut topic] {
        no_trouble(&mut role.process);
    }
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_the_start() {
    let guarded = Guarded::start(&[]).await;
    guarded.write_password("no-such-secret");
    // not even the most talkative log shows it
    let trace = [("MSA__LOG__LEVEL", "trace")];
    let mut roles = [guarded.launch_with("apigateway", &trace).0, guarded.launch_with("topic", &trace).0];
    let (mut nobody, _) = Role::launch(&guarded.etcd.addr.to_string(), "topic", "127.0.0.1:0", &[]);
    for process in &mut roles {
        let word = failed(process);
        assert!(word.contains("check registry.user and registry.password_file"), "{word}");
        assert!(!format!("{:?}", process.seen).contains("no-such-secret"), "{:?}", process.seen);
    }
    let word = failed(&mut nobody);
    assert!(word.contains("etcd asks for a user: set registry.user and registry.password_file"), "{word}");
}

/// A password that is just being replaced, and an etcd that is not there, are no errors.
#[tokio::test]
async fn a_password_that_becomes_right_and_an_etcd_that_comes_later_are_no_errors() {
    let mut guarded = Guarded::start(&[]).await;
    guarded.write_password("not-yet");
    let (mut topic, _) = guarded.launch("topic");
    wait_for_message(&mut topic, "not registered, trying until it is").await;
    guarded.write_password(PASSWORD);
    guarded.wait_for_keys(1).await;
    topic.stop(SOON);
    guarded.etcd.kill();
    let mut topic = guarded.role("topic");
    let line = wait_for_message(&mut topic.process, "not registered, trying until it is").await;
    assert!(line["error"].as_str().unwrap().contains("Connection refused"), "{line}");
    sleep(Duration::from_secs(4)).await;
    guarded.etcd.restart().await;
    guarded.wait_for_keys(1).await;
    topic.process.stop(SOON);
}

/// The file first, then etcd: nothing is lost. Etcd first: the process waits for the file.
#[tokio::test]
async fn a_password_is_replaced_while_it_runs() {
    let guarded = Guarded::start(&[]).await;
    let mut gateway = guarded.role("apigateway");
    let mut topic = guarded.role("topic");
    gateway.wait_for_certain("topic", 1).await;
    guarded.wait_for_keys(2).await;
    let mut root = guarded.root().await;
    let mut events = watch(&mut root).await;
    let load = Load::get(gateway.addr, 50.0, "/api/topic/list").start();

    guarded.write_password("second-secret");
    let message = "credentials for etcd have changed and do not work yet, going on with the old connection";
    for role in [&mut gateway, &mut topic] {
        wait_for_message(&mut role.process, message).await;
    }
    for user in ["gateway", "topic"] {
        root.user_change_password(user, "second-secret").await.unwrap();
    }
    // a token of the old password is worth nothing any more; whoever asks next has to show the new one
    root.put("/services/topic/foreign", "x", None).await.unwrap();
    sleep(4 * TTL).await;
    no_failure(&load.finish().await, 100);
    assert_eq!(deleted(&mut events, &mut root).await, BTreeSet::new());
    for role in [&mut gateway, &mut topic] {
        no_trouble(&mut role.process);
    }

    root.user_change_password("topic", "third-secret").await.unwrap();
    // whether etcd ends the lease's stream with the password depends on its version
    let key = format!("/services/topic/{}", topic.addr);
    root.put(key.as_str(), "overwritten", Some(PutOptions::new())).await.unwrap();
    wait_for_message(&mut topic.process, "not registered, trying until it is").await;
    sleep(3 * TTL).await;
    guarded.write_password("third-secret");
    wait_for("it is registered again", || async {
        let found = root.clone().get(key.as_str(), None).await.ok()?;
        (found.kvs().first()?.value() != b"overwritten").then_some(())
    })
    .await;
    topic.process.stop(SOON);
    assert!(!format!("{:?}", topic.process.seen).contains("secret\""), "{:?}", topic.process.seen);
}

// --- files and members ---

#[tokio::test]
async fn a_file_that_cannot_be_read_is_an_error_at_the_start_and_none_for_check_config() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("app.toml");
    let text = "[registry]\nuser = \"topic\"\npassword_file = \"password\"\n";
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let (status, out, _) = run(&["check-config", "--role", "topic", "--config", config, "--show"]);
    assert!(status.success() && out.contains("registry.password_file = password\n"), "{out}");
    let env = [("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())];
    let endpoint = free_addr().to_string();
    let start = || {
        let env =
            [&env[..], &[("MSA__REGISTRY__USER", "topic"), ("MSA__REGISTRY__PASSWORD_FILE", "password")]]
                .concat();
        Role::launch(&endpoint, "topic", "127.0.0.1:0", &env).0
    };
    let word = failed(&mut start());
    let path = dir.path().join("password").display().to_string();
    assert!(word.contains(&format!("`registry.password_file`: {path}: No such file")), "{word}");
    fs::write(Path::new(&path), "secret").unwrap();
    let mut process = start();
    process.wait_for_role("topic");
    process.stop(SOON);
}

/// Neither a member that refuses, nor one that takes connections and is silent, nor both at the head of
/// the list keep a registration waiting for a time limit.
#[tokio::test]
async fn dead_members_delay_a_registration_by_less_than_a_time_limit() {
    let etcd = Etcd::start().await;
    let (silent, other) = (peer::silent().await, peer::silent().await);
    let endpoints = format!("{},{},{},{}", silent.addr, free_addr(), other.addr, etcd.addr);
    // each process begins with a member of its own choice
    for _ in 0..6 {
        let env = [("MSA__REGISTRY__TIMEOUT_MS", "5000")];
        let topic = Role::start(&endpoints, "topic", "127.0.0.1:0", &env);
        let begun = Instant::now();
        let key = format!("/services/topic/{}", topic.addr);
        wait_for("it is registered", || async { etcd.list(&key).await.pop() }).await;
        assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    }
}

/// A process whose member dies goes on with another one, and does not come back to the dead one first.
#[tokio::test]
async fn a_member_that_dies_is_left() {
    let etcd = Etcd::start().await;
    let relays = [Relay::start(etcd.addr, 1).await, Relay::start(etcd.addr, 2).await];
    let endpoints = format!("{},{}", relays[0].addr, relays[1].addr);
    let topic = Role::start(&endpoints, "topic", "127.0.0.1:0", &[]);
    wait_for("it is registered", || async { etcd.list("/services/topic/").await.pop() }).await;
    let mut events = watch(&mut etcd.client().await).await;
    let used = usize::from(relays[0].open() == 0);
    relays[used].set(crate::kit::relay::Faults { refuse: true, ..Default::default() });
    relays[used].reset();
    wait_for("it uses the other one", || async { (relays[1 - used].open() > 0).then_some(()) }).await;
    sleep(2 * TTL).await;
    assert_eq!(deleted(&mut events, &mut etcd.client().await).await, BTreeSet::new());
    assert_eq!(topic.status().await["roles"][0]["registration"], "up");
}
