//! What the pages say of etcd: backup and restore, users and rights, upkeep, and the exchange of a member.

use std::process::Child;
use std::time::Duration;

use super::*;
use crate::kit::authority::Authority;
use crate::kit::etcd::{self, Etcd};

const NIX: &str = "docs/nix.md";
const KUBERNETES: &str = "docs/kubernetes.md";
/// A kubectl that makes no Secret and runs here what is to run in a pod, without input unless it is asked to pass it on.
const KUBECTL: &str = "shift 2
case $1 in
  create) echo \"$*\" ;;
  exec)
    shift
    if [ \"$1\" = -i ]; then shift; else exec < /dev/null; fi
    shift 2
    exec \"$@\"
    ;;
esac";
const RUNBOOK: &str = "docs/runbook.md";

/// A member that systemd would start. Killed when dropped.
struct Started(Child);

impl Started {
    fn etcd(name: &str, client: SocketAddr, peer: SocketAddr, dir: &str, more: &[&str]) -> Self {
        let mut command = Command::new(etcd::program());
        command.args(["--name", name, "--log-level", "error", "--data-dir", dir]);
        command.args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)]);
        command.args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)]);
        Self(etcd::quiet(command).args(more).spawn().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_shown_commands_of_etcd_do_what_the_pages_say() {
    let (mut session, one) = (Session::new(Walk::Etcd), Etcd::start().await);
    session.set("ETCDCTL_ENDPOINTS", &one.addr.to_string());
    session.sh("etcdctl put /services/feed/10.0.0.1:8082 10.0.0.1:8082");
    upkeep(&mut session);
    restore(&mut session).await;
    let granted = rights(&mut session);
    in_pods(&mut session, &granted).await;
    exchange(&mut session).await;
    secured(&mut session).await;
    session.finish();
}

/// An etcd as the page's own section on secrets sets it up: it wants a certificate and a password.
async fn secured(session: &mut Session) {
    let (authority, dir, https) = (Authority::new("etcd"), session.path("secrets"), free_addr());
    std::fs::create_dir(&dir).unwrap();
    authority.issue(&dir, "etcd", &["127.0.0.1"], Duration::from_hours(1));
    std::fs::rename(dir.join("etcd.pem"), dir.join("etcd.crt")).unwrap();
    std::fs::write(dir.join("ca.crt"), authority.pem()).unwrap();
    let file = |name: &str| dir.join(name).display().to_string();
    let args = vec![
        format!("--cert-file={}", file("etcd.crt")),
        format!("--key-file={}", file("etcd.key")),
        format!("--trusted-ca-file={}", file("ca.crt")),
        "--client-cert-auth".to_owned(),
    ];
    let options = etcd::Options { https: Some(https), args, ..etcd::Options::default() };
    let etcd = Etcd::start_with(options).await;
    let mut client = etcd.client().await;
    client.user_add("root", "root-3", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    session.swap("/var/lib/secrets", &dir.display().to_string());
    session.swap("127.0.0.1:2379", &https.to_string());
    let script = session.lines(NIX, "export ETCDCTL_ENDPOINTS").join("\n");
    session.typed(&format!("unset ETCDCTL_ENDPOINTS\n{script}"), &["root-3"]);
}

fn upkeep(session: &mut Session) {
    let healthy = session.say(RUNBOOK, "etcdctl endpoint health");
    // 3.4 says it on standard error
    assert!(healthy.is_empty() || healthy.contains("is healthy"), "{healthy}");
    let keys = session.say(RUNBOOK, "etcdctl get --prefix --keys-only /services/");
    assert_eq!(keys.trim(), "/services/feed/10.0.0.1:8082");
    for command in ["etcdctl endpoint status --cluster", "etcdctl endpoint status --cluster -w table"] {
        let status = session.say(RUNBOOK, command);
        assert!(status.contains("http://"), "{command}: {status}");
    }
    for n in 0..20 {
        session.sh(&format!("etcdctl put /other {n}"));
    }
    let printed = session.run(RUNBOOK, "etcdctl compact");
    assert!(printed.contains("compacted revision"), "{printed}");
    let old = session.shell("etcdctl get --rev=5 /other").output().unwrap();
    assert!(!old.status.success(), "it is compacted");
}

async fn restore(session: &mut Session) {
    let (client, peer, dir) = (free_addr(), free_addr(), session.path("restored").display().to_string());
    session.swap("/var/backup", &session.path("backup").display().to_string());
    session.swap("/var/lib/etcd", &dir);
    session.swap("192.168.50.10:2380", &peer.to_string());
    session.program("systemctl", "echo \"systemctl $*\"");
    session.program("chown", "echo \"chown $*\"");
    if session.shell("command -v etcdutl").output().unwrap().stdout.is_empty() {
        // before etcd 3.5, as the runbook says
        session.program("etcdutl", "exec etcdctl \"$@\"");
    }
    let printed = session.run(NIX, "install -d -m 700 /var/backup");
    assert!(printed.contains("systemctl start etcd"), "{printed}");
    // what systemd starts then
    let initial = format!("node-0={}", url(peer));
    let _restored = Started::etcd("node-0", client, peer, &dir, &["--initial-cluster", &initial]);
    etcd::wait_until_healthy(client).await;
    let keys = session.sh(&format!("ETCDCTL_ENDPOINTS={client} etcdctl get --prefix --keys-only /"));
    let keys: Vec<_> = keys.split_whitespace().collect();
    assert_eq!(keys, ["/other", "/services/feed/10.0.0.1:8082"]);
}

/// Returns the rights of each role, and the roles of each user.
fn granted(session: &Session) -> String {
    session.sh("for s in feed profile topic apigateway; do etcdctl role get $s; etcdctl user get $s; done\netcdctl user get root")
}

/// Returns true if a user may do that.
fn may(session: &Session, user: &str, password: &str, command: &str) -> bool {
    let script = format!("ETCDCTL_USER={user}:{password} etcdctl {command}");
    session.shell(&script).output().unwrap().status.success()
}

/// Tries what each user may do, and what it may not.
fn try_rights(session: &Session, password: impl Fn(&str) -> String) {
    for (user, command, allowed) in [
        ("feed", "put /services/feed/a a", true),
        ("feed", "put /services/topic/a a", false),
        ("feed", "get --prefix /services/", false),
        ("feed", "get --prefix /services/feed/", true),
        ("feed", "get --prefix /", false),
        ("feed", "get /other", false),
        ("feed", "watch /services/topic/ --prefix --rev=1", false),
        ("feed", "del --prefix /services/topic/", false),
        ("feed", "del --prefix /", false),
        // a prefix that only begins like its own
        ("feed", "put /services/feed2/a a", false),
        ("feed", "put /services/feed a", false),
        // the last key beyond its own, and the first one before
        ("feed", "del /services/feed/ /services/feed1", false),
        ("feed", "role grant-permission feed readwrite --prefix=true /", false),
        ("feed", "user grant-role feed root", false),
        ("feed", "user add mallory:mallory", false),
        ("feed", "user passwd root --interactive=false", false),
        ("feed", "auth disable", false),
        ("feed", "snapshot save stolen.db", false),
        ("feed", "member add mallory --peer-urls=http://127.0.0.1:1", false),
        ("apigateway", "del --prefix /services/topic/", false),
        ("apigateway", "put /services/apigateway/a a", true),
        ("profile", "put /services/feed/a a", false),
        ("apigateway", "get --prefix /services/", true),
        ("apigateway", "put /services/feed/a a", false),
        ("profile", "get --prefix /services/", true),
        ("root", "put /other 1", true),
    ] {
        assert_eq!(may(session, user, &password(user), command), allowed, "{user}: {command}");
    }
    assert!(!may(session, "feed", "wrong", "put /services/feed/a a"));
}

fn rights(session: &mut Session) -> String {
    let script = session.lines(NIX, "for s in feed profile topic apigateway").join("\n");
    // each password twice: four services, then root
    let users = ["feed", "profile", "topic", "apigateway", "root"];
    let typed: Vec<_> = users.iter().flat_map(|user| [format!("{user}-1"), format!("{user}-1")]).collect();
    session.typed(&script, &typed.iter().map(String::as_str).collect::<Vec<_>>());
    try_rights(session, |user| format!("{user}-1"));
    session.set("ETCDCTL_USER", "root:root-1");
    let granted = granted(session);
    session.swap("USER", "feed");
    let script = session.said("docs/operations.md", "etcdctl user passwd USER");
    session.typed(&script, &["feed-2", "feed-2"]);
    assert!(may(session, "feed", "feed-2", "put /services/feed/a a"));
    assert!(!may(session, "feed", "feed-1", "put /services/feed/a a"));
    session.set("ETCDCTL_USER", "");
    granted
}

/// On Kubernetes each role has the same rights, and the password of its Secret.
async fn in_pods(session: &mut Session, wanted: &str) {
    let etcd = Etcd::start().await;
    session.set("ETCDCTL_ENDPOINTS", &etcd.addr.to_string());
    session.program("kubectl", KUBECTL);
    let secrets = session.run(KUBERNETES, "for s in feed profile topic apigateway root");
    let made = ["feed", "profile", "topic", "apigateway"]
        .map(|role| format!("create secret generic registry-{role} --from-file=password={role}\n"));
    assert_eq!(secrets, made.concat());
    session.run(KUBERNETES, "etcdctl() {");
    let password = |user: &str| std::fs::read_to_string(session.path(user)).unwrap().trim().to_owned();
    try_rights(session, password);
    let root = format!("root:{}", password("root"));
    session.set("ETCDCTL_USER", &root);
    assert_eq!(granted(session), wanted);
    session.set("ETCDCTL_USER", "");
}

/// The disk of one of three members is lost: it is removed and added again, with nothing on its disk.
async fn exchange(session: &mut Session) {
    let addrs = [(); 3].map(|()| (free_addr(), free_addr()));
    let named = addrs.iter().enumerate().map(|(number, (_, peer))| format!("m{number}={}", url(*peer)));
    let initial = named.collect::<Vec<_>>().join(",");
    let mut members = Vec::new();
    for (number, (client, peer)) in addrs.iter().enumerate() {
        let name = format!("m{number}");
        let dir = session.path(&name).display().to_string();
        members.push(Started::etcd(&name, *client, *peer, &dir, &["--initial-cluster", &initial]));
    }
    for (client, _) in addrs {
        etcd::wait_until_healthy(client).await;
    }
    session.set("ETCDCTL_ENDPOINTS", &format!("{},{}", addrs[0].0, addrs[1].0));
    session.sh("etcdctl put /kept 1");
    drop(members.pop());
    // etcd changes its members only when the others have been connected for five seconds
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let listed = session.say(RUNBOOK, "etcdctl member list");
    let line = listed.lines().find(|line| line.contains("m2")).unwrap_or_else(|| panic!("{listed}"));
    let id = line.split(',').next().unwrap().trim().to_owned();
    let (client, peer) = (free_addr(), free_addr());
    for (shown, here) in
        [(" ID", format!(" {id}")), ("NAME", "m3".to_owned()), ("HOST:2380", peer.to_string())]
    {
        session.swap(shown, &here);
    }
    let added = session.run(RUNBOOK, "etcdctl member remove ID");
    let initial = added.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="));
    let initial = initial.unwrap_or_else(|| panic!("{added}")).trim_matches('"').to_owned();
    let dir = session.path("m3").display().to_string();
    let _new = Started::etcd(
        "m3",
        client,
        peer,
        &dir,
        &["--initial-cluster", &initial, "--initial-cluster-state", "existing"],
    );
    etcd::wait_until_healthy(client).await;
    assert_eq!(
        session.sh(&format!("ETCDCTL_ENDPOINTS={client} etcdctl get --print-value-only /kept")),
        "1\n"
    );

    // a second member for a single one
    let one = Etcd::start().await;
    session.set("ETCDCTL_ENDPOINTS", &one.addr.to_string());
    let added = session.say(NIX, "etcdctl member add node-5 --peer-urls=http://192.168.50.17:2380");
    assert!(added.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{added}");
}
