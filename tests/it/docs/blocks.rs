//! The commands of the pages: every block of code, and every command between backticks. Each is run by a walk, or is
//! listed here with the reason why it is not. A page with one that is in neither list fails.

use std::collections::BTreeSet;

use super::links::prose;
use super::pages;

/// The session that a command is part of; see [`super::walks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Walk {
    /// `up` alone, traced.
    Up,
    /// Each role as a process, with an etcd that they share.
    Roles,
    /// A gateway that has nobody to call.
    Alone,
    /// The stores: backup and restore.
    Store,
    /// A database of PostgreSQL: moving records to it and back, backup and restore, retention.
    Database,
    /// An etcd: backup and restore, users and rights, its upkeep.
    Etcd,
    /// A service with each of the stores.
    Choice,
    /// Commands that need nothing.
    Tools,
}

/// What is done with a block.
#[derive(Clone, Copy, Debug)]
pub enum Use {
    Run(Walk),
    /// It is no command.
    Text,
    Not(&'static str),
}
use Use::{Not, Run, Text};
use Walk::{Alone, Choice, Database, Etcd, Roles, Store, Tools, Up};

const NIX: &str = "needs Nix, or a NixOS host";
const BUILD: &str = "builds for minutes, or runs the tests";
const SYSTEMD: &str = "needs a host with systemd, and root";
const HOST: &str = "needs a second machine";
const CLUSTER: &str = "needs a cluster; containers::apiserver sends the same objects to a kube-apiserver";

/// Every block: its page, how its first line begins, and what is done with it. A blank line ends a block.
pub const BLOCKS: &[(&str, &str, Use)] = &[
    ("README.md", "addresses of instances", Text),
    ("README.md", "make up", Not(BUILD)),
    ("README.md", "$ curl -XPUT", Run(Up)),
    ("README.md", "nix build", Not(NIX)),
    ("README.md", "imports = [", Text),
    ("docs/api.md", "$ curl", Run(Up)),
    ("docs/api.md", "[http]", Text),
    ("docs/api.md", "[http.auth]", Text),
    ("docs/architecture.md", "caller", Text),
    ("docs/architecture.md", "main, cli", Text),
    ("docs/architecture.md", "{\"Op\":0", Run(Roles)),
    ("docs/cluster.md", "nix run .#cluster", Not(NIX)),
    ("docs/cluster.md", "while sleep 0.2", Not("calls the gateway of the machines")),
    ("docs/configuration.md", "[client] # app.toml", Text),
    ("docs/configuration.md", "client.deadline_ms = 500", Text),
    ("docs/configuration.md", "$ microservice-app check-config", Run(Tools)),
    ("docs/containers.md", "nix build", Not(NIX)),
    ("docs/containers.md", "podman build", Not("containers::image builds it, without network")),
    ("docs/containers.md", "podman-compose -f deploy/compose.yml up", Not("containers::compose runs it")),
    (
        "docs/containers.md",
        "podman-compose -f deploy/compose.yml --profile",
        Not("containers::compose runs the first"),
    ),
    ("docs/containers.md", "make test-containers", Not(BUILD)),
    ("docs/development.md", "make build", Not(BUILD)),
    ("docs/development.md", "make test", Not(BUILD)),
    ("docs/development.md", "cargo test --lib", Not(BUILD)),
    ("docs/development.md", "tests/faults --minutes", Not(BUILD)),
    ("docs/development.md", "tests/counts --accept", Not(BUILD)),
    ("docs/development.md", "valgrind --tool=callgrind", Not(BUILD)),
    ("docs/development.md", "deploy/stack up", Not("operations::stack runs it, on other ports")),
    ("docs/faults.md", "tests/faults", Not(BUILD)),
    ("docs/kubernetes.md", "apiVersion:", Text),
    ("docs/kubernetes.md", "kubectl apply -k deploy/kubernetes/overlays/small", Not(CLUSTER)),
    ("docs/kubernetes.md", "kubectl apply -k deploy/kubernetes/monitoring", Not(CLUSTER)),
    ("docs/kubernetes.md", "for s in feed profile topic apigateway root", Run(Etcd)),
    ("docs/kubernetes.md", "etcdctl() {", Run(Etcd)),
    ("docs/kubernetes.md", "kubectl -n microservice-app rollout pause", Not("needs a cluster")),
    ("docs/nix.md", "nix run .", Not(NIX)),
    ("docs/nix.md", "{", Text),
    ("docs/nix.md", "# etcd's host", Text),
    ("docs/nix.md", "# every host with a service", Text),
    ("docs/nix.md", "inputs.disko", Text),
    ("docs/nix.md", "services.microservice-app", Text),
    ("docs/nix.md", "# the same on each", Text),
    ("docs/nix.md", "cd /var/lib/microservice-app-tls", Not(NIX)),
    ("docs/nix.md", "nix build .#options", Not(NIX)),
    ("docs/nix.md", "nixos-rebuild build-image", Not(NIX)),
    ("docs/nix.md", "nixos-generate-config", Not(NIX)),
    ("docs/nix.md", "nix run github:", Not(NIX)),
    ("docs/nix.md", "ssh root@", Not(HOST)),
    ("docs/nix.md", "nix flake check", Not(NIX)),
    ("docs/nix.md", "install -d -m 700 /var/backup", Run(Etcd)),
    ("docs/nix.md", "for s in feed profile topic apigateway", Run(Etcd)),
    ("docs/nix.md", "export ETCDCTL_ENDPOINTS", Run(Etcd)),
    ("docs/nix.md", "nix build .#checks", Not(NIX)),
    ("docs/operations.md", "source <(", Run(Tools)),
    ("docs/operations.md", "etcd --data-dir", Run(Roles)),
    ("docs/operations.md", "PATH=$PWD/target/release", Run(Roles)),
    ("docs/operations.md", "$ etcdctl get --prefix --keys-only /services/feed/", Run(Roles)),
    ("docs/operations.md", "$ etcdctl get --prefix --keys-only /services/", Run(Roles)),
    ("docs/operations.md", "$ etcdctl get --print-value-only", Run(Roles)),
    ("docs/operations.md", "microservice-app feed --addr", Run(Roles)),
    ("docs/operations.md", "$ curl http://localhost:6060/readyz", Run(Roles)),
    (
        "docs/operations.md",
        "microservice-app status",
        Not("takes the usual ports; operations::status_command runs each of them"),
    ),
    ("docs/operations.md", "deploy/stack up", Not("operations::stack runs it, on other ports")),
    (
        "docs/operations.md",
        "systemd-socket-activate",
        Not("takes the usual ports; operations::systemd hands sockets over in its place"),
    ),
    ("docs/operations.md", "[registry]", Text),
    ("docs/runbook.md", "curl GATEWAY/status", Run(Up)),
    ("docs/runbook.md", "etcdctl compact", Run(Etcd)),
    ("docs/runbook.md", "etcdctl member remove ID", Run(Etcd)),
    ("docs/storage.md", "microservice-app copy-store sqlite:data", Run(Database)),
    ("docs/storage.md", "feed: 100000 records", Text),
    ("docs/storage.md", "microservice-app copy-store sqlite:/var", Run(Database)),
    ("docs/storage.md", "microservice-app copy-store postgres:", Run(Database)),
    ("docs/storage.md", "sqlite3 data/feed.db \"VACUUM", Run(Store)),
    ("docs/storage.md", "rm -f data/feed.db-wal", Run(Store)),
    ("docs/storage.md", "pg_dump", Run(Database)),
    ("docs/storage.md", "pg_restore", Run(Database)),
    ("docs/storage.md", "pg_basebackup", Run(Database)),
    ("docs/storage.md", "psql", Run(Database)),
    ("docs/storage.md", "sqlite3 data/feed.db \"PRAGMA", Run(Database)),
    ("docs/storage.md", "SELECT create_distributed_table", Not("needs Citus, which Debian 12 does not have")),
    ("docs/storage.md", "microservice-app feed --store memory:", Run(Choice)),
    ("docs/storage.md", "createuser app", Run(Choice)),
    ("docs/storage.md", "[store]", Text),
    ("docs/storage.md", "failsafe_mode: true", Text),
    ("docs/storage.md", "for s in feed profile topic; do # roles", Not("store::postgres::rights runs it")),
    ("docs/storage.md", "for s in feed profile topic; do # rights", Not("store::postgres::rights runs it")),
    ("docs/storage.md", "for s in feed profile topic; do # owners", Not("store::postgres::rights runs it")),
    ("docs/storage.md", "cargo test --release --test it what_durability_costs", Not(BUILD)),
    ("docs/storage.md", "curl localhost:6062/status", Run(Choice)),
    ("docs/telemetry.md", "ts=", Run(Alone)),
    ("docs/telemetry.md", "curl -X PUT localhost:6060/loglevel", Run(Up)),
    ("docs/telemetry.md", "microservice-app up --zipkin-addr", Run(Up)),
    ("docs/telemetry.md", "apigateway  GET", Run(Up)),
    ("docs/telemetry.md", "curl -H \"b3:", Run(Up)),
    ("docs/tls.md", "[tls]", Text),
    ("docs/tls.md", "[grpc]", Text),
    ("docs/tls.md", "openssl req", Not("trust::page runs it, and serves with what it makes")),
    ("docs/telemetry.md", "go tool pprof", Not("needs Go; operations::pprof reads a profile")),
    ("docs/telemetry.md", "heaptrack", Not("needs heaptrack, and root")),
    ("docs/telemetry.md", "curl localhost:6060/sd/targets", Run(Up)),
    ("docs/telemetry.md", "promtool check", Run(Tools)),
    ("docs/telemetry.md", "promtool test", Not("takes a minute; operations::alerts runs it")),
    ("docs/telemetry.md", "cargo test --test it alerts::", Not(BUILD)),
    ("docs/telemetry.md", "make test-stack", Not(BUILD)),
];

/// Programs of an operator. What a page says of `make`, `cargo` and `tests/` is checked in [`super::links`].
const PROGRAMS: [&str; 19] = [
    "amtool",
    "curl",
    "df",
    "du",
    "etcdctl",
    "etcdutl",
    "heaptrack",
    "journalctl",
    "microservice-app",
    "nixos-rebuild",
    "openssl",
    "pg_basebackup",
    "pg_dump",
    "pg_restore",
    "pg_verifybackup",
    "promtool",
    "psql",
    "sqlite3",
    "systemctl",
];

/// Every command between backticks of these programs, with arguments.
pub const INLINE: &[(&str, &str, Use)] = &[
    (
        "README.md",
        "microservice-app status",
        Not("takes the usual ports; operations::status_command runs it"),
    ),
    ("README.md", "nixos-rebuild switch --flake .#node-0", Not(NIX)),
    ("SECURITY.md", "microservice-app --version", Run(Tools)),
    ("docs/api.md", "curl -H \"authorization: Bearer $TOKEN\" ...", Text),
    ("docs/api.md", "curl -d", Text),
    ("docs/api.md", "curl -XPUT URL -d '{...}'", Text),
    ("docs/api.md", "microservice-app openapi", Run(Tools)),
    ("docs/architecture.md", "curl localhost:8080/api/profile/get_profile?user_id=123", Run(Up)),
    ("docs/configuration.md", "microservice-app settings", Run(Tools)),
    ("docs/configuration.md", "microservice-app settings --format json", Run(Tools)),
    ("docs/nix.md", "microservice-app check-config", Run(Tools)),
    ("docs/nix.md", "nixos-rebuild test", Not(NIX)),
    ("docs/nix.md", "systemctl start", Not(SYSTEMD)),
    ("docs/nix.md", "systemctl start microservice-app-dependencies", Not(SYSTEMD)),
    ("docs/nix.md", "journalctl -u 'microservice-app-*'", Not(SYSTEMD)),
    ("docs/nix.md", "systemctl restart microservice-app-apigateway.socket", Not(SYSTEMD)),
    ("docs/nix.md", "etcdctl member add node-5 --peer-urls=http://192.168.50.17:2380", Run(Etcd)),
    (
        "docs/nix.md",
        "sqlite3 /var/lib/microservice-app-feed/feed.db \"VACUUM INTO '/var/backup/feed.db'\"",
        Run(Store),
    ),
    ("docs/operations.md", "openssl rand -hex 32", Text),
    ("docs/operations.md", "microservice-app status ADDR --token-file FILE", Not("api::admin_token runs it")),
    ("docs/operations.md", "etcdctl user passwd USER", Run(Etcd)),
    ("docs/operations.md", "microservice-app check-config", Run(Tools)),
    ("docs/runbook.md", "openssl x509 -enddate -noout -in FILE", Not("it is for a file of the reader")),
    ("docs/runbook.md", "psql -h HOST -c 'SELECT pg_is_in_recovery()'", Not(HOST)),
    ("docs/runbook.md", "systemctl status", Not(SYSTEMD)),
    ("docs/runbook.md", "systemctl status etcd", Not(SYSTEMD)),
    ("docs/runbook.md", "curl INSTANCE/readyz", Run(Up)),
    ("docs/runbook.md", "curl INSTANCE/status", Run(Up)),
    ("docs/runbook.md", "curl INSTANCE/loglevel", Run(Up)),
    ("docs/runbook.md", "systemctl status systemd-journald", Not(SYSTEMD)),
    ("docs/runbook.md", "curl GATEWAY/status", Run(Up)),
    ("docs/runbook.md", "curl GATEWAY/sd/targets", Run(Up)),
    ("docs/runbook.md", "microservice-app check-config", Run(Tools)),
    ("docs/runbook.md", "etcdctl endpoint health", Run(Etcd)),
    ("docs/runbook.md", "etcdctl get --prefix --keys-only /services/", Run(Etcd)),
    ("docs/runbook.md", "etcdctl endpoint status --cluster", Run(Etcd)),
    ("docs/runbook.md", "etcdctl endpoint status --cluster -w table", Run(Etcd)),
    ("docs/runbook.md", "etcdctl member list", Run(Etcd)),
    ("docs/runbook.md", "etcdctl snapshot restore", Text),
    ("docs/runbook.md", "etcdutl snapshot restore", Text),
    ("docs/runbook.md", "df -h", Run(Tools)),
    ("docs/runbook.md", "df -i", Run(Tools)),
    ("docs/runbook.md", "du -xh --max-depth=2 MOUNTPOINT | sort -h | tail", Run(Tools)),
    ("docs/runbook.md", "journalctl --vacuum-size=1G", Not(SYSTEMD)),
];

/// A block of code of a page.
#[derive(Clone, Debug)]
pub struct Block {
    pub page: String,
    /// The number of its first line.
    pub line: usize,
    pub lines: Vec<String>,
}

impl Block {
    fn begins(&self, page: &str, begin: &str) -> bool {
        self.page == page && self.lines[0].trim_start().starts_with(begin)
    }
}

/// Returns the blocks of a page: lines that are indented by four, or between fences.
fn blocks_of(page: &str, text: &str) -> Vec<Block> {
    let (mut blocks, mut fenced, mut open) = (Vec::<Block>::new(), false, false);
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            (fenced, open) = (!fenced, false);
            continue;
        }
        let code = if fenced { Some(line) } else { line.strip_prefix("    ") };
        match code.filter(|code| !code.trim().is_empty()) {
            Some(code) if open => blocks.last_mut().unwrap().lines.push(code.to_owned()),
            Some(code) => {
                let lines = vec![code.to_owned()];
                blocks.push(Block { page: page.to_owned(), line: index + 1, lines });
                open = true;
            }
            // a fence goes on after a blank line
            None => open &= fenced,
        }
    }
    blocks
}

/// Returns every block of every page but the changelog, which speaks of what was.
pub fn blocks() -> Vec<Block> {
    let pages = pages().into_iter().filter(|(name, _)| name != "CHANGELOG.md");
    pages.flat_map(|(name, text)| blocks_of(&name, &text)).collect()
}

/// Returns the one block that an entry of the list means.
pub fn block(page: &str, begin: &str) -> Block {
    let longer = |block: &Block| {
        BLOCKS.iter().any(|(p, b, _)| *p == page && b.len() > begin.len() && block.begins(p, b))
    };
    let mut found: Vec<_> = blocks().into_iter().filter(|block| block.begins(page, begin)).collect();
    // the longest beginning decides
    found.retain(|block| !longer(block));
    assert_eq!(found.len(), 1, "blocks of {page} that begin with {begin:?}: {found:#?}");
    found.remove(0)
}

/// Returns the commands between backticks, each with its page.
fn inline() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (name, text) in pages().into_iter().filter(|(name, _)| name != "CHANGELOG.md") {
        for paragraph in prose(&text).split("\n\n") {
            let line = paragraph.replace('\n', " ");
            let spans = line.split('`').skip(1).step_by(2);
            let commands = spans
                .filter(|span| span.split_once(' ').is_some_and(|(program, _)| PROGRAMS.contains(&program)));
            found.extend(commands.map(|command| (name.clone(), command.to_owned())));
        }
    }
    found
}

#[test]
fn every_block_of_a_page_is_run_or_says_why_not() {
    let mut wrong = Vec::new();
    for block in blocks() {
        let listed = BLOCKS.iter().any(|(page, begin, _)| block.begins(page, begin));
        if !listed {
            wrong.push(format!("{}:{}: {:?} is in no list", block.page, block.line, block.lines[0]));
        }
    }
    assert!(wrong.is_empty(), "run these blocks in a walk, or list why they cannot be run: {wrong:#?}");
    // a list that names what is gone hides what comes
    let there = blocks();
    let gone: Vec<_> =
        BLOCKS.iter().filter(|(page, begin, _)| !there.iter().any(|b| b.begins(page, begin))).collect();
    assert!(gone.is_empty(), "{gone:#?}");
    for (page, begin, what) in BLOCKS {
        match what {
            Run(_) => drop(block(page, begin)),
            Not(why) => assert!(why.len() > 10, "{page} {begin:?}: {why:?} is no reason"),
            Text => (),
        }
    }
}

#[test]
fn every_command_in_a_sentence_is_run_or_says_why_not() {
    let there = inline();
    let listed: BTreeSet<_> =
        INLINE.iter().map(|(page, command, _)| ((*page).to_owned(), (*command).to_owned())).collect();
    assert_eq!(listed.len(), INLINE.len(), "one is there twice");
    let missing: Vec<_> = there.difference(&listed).collect();
    assert!(missing.is_empty(), "run these in a walk, or list why they cannot be run: {missing:#?}");
    let gone: Vec<_> = listed.difference(&there).collect();
    assert!(gone.is_empty(), "{gone:#?}");
}

#[test]
fn a_block_is_found_however_it_is_written() {
    let text = "one\n\n    $ a\n    out\n\n    b\n\n```console\n$ c\n\nout\n```\ntwo `x`\n    d\n";
    let blocks: Vec<_> =
        blocks_of("p", text).into_iter().map(|block| (block.line, block.lines.join("|"))).collect();
    let expected = [(3, "$ a|out"), (6, "b"), (9, "$ c|out"), (14, "d")];
    assert_eq!(blocks, expected.map(|(line, text)| (line, text.to_owned())));
}
