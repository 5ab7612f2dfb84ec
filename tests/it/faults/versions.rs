//! The row about two versions of the program side by side: an older one is built from this repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::{Findings, SECOND, rows};
use crate::kit::etcd::Etcd;
use crate::kit::postgres::Postgres;
use crate::kit::process::PROGRAM;
use crate::kit::system::Role;
use crate::kit::writers::{Writers, read};

/// The newest commit before SQLite's tables became versioned scripts, and the first one that knows PostgreSQL.
const OLDER: &str = "2552475d32a6";
const OLDER_WITH_POSTGRES: &str = "2d543ab5496e";
const WRITERS: i64 = 4;
const LIMIT: Duration = Duration::from_secs(2);

rows! { "store"
    "F39" f39_two_versions_over_one_store two_versions 30 4 "an older and this version side by side over one store, to and fro";
}

/// Returns the program of an older commit: as it was built before, or, if `build` is set, built now.
///
/// # Errors
/// Why there is none.
fn older(commit: &str, build: bool) -> Result<PathBuf, &'static str> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = root.join("target/older");
    let (sources, program) = (place.join(commit), place.join(format!("microservice-app-{commit}")));
    if program.exists() {
        return Ok(program);
    }
    if !build {
        return Err("no older version was built (tests/faults F39 builds it)");
    }
    let succeeds = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    let mut git = Command::new("git");
    git.arg("-C").arg(root).stderr(Stdio::null());
    if !succeeds(git.args(["cat-file", "-e", commit])) {
        return Err("the older commit is not here (a source archive, or a shallow clone)");
    }
    std::fs::create_dir_all(&sources).expect("a directory");
    // an archive and not a worktree: it leaves no trace in the repository
    let script = "git -C \"$0\" archive \"$1\" | tar -x -C \"$2\"";
    let mut unpack = Command::new("sh");
    assert!(succeeds(unpack.args(["-c", script]).arg(root).arg(commit).arg(&sources)), "git archive");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--quiet", "--target-dir"]).arg(place.join("target"));
    assert!(succeeds(cargo.current_dir(&sources).env("MSA_COMMIT", commit)), "cargo build");
    std::fs::copy(place.join("target/debug/microservice-app"), &program).expect("it was built");
    Ok(program)
}

async fn two_versions(time: Duration) -> Findings {
    // the table may take its time; the suite takes what is there
    let build = std::env::var_os("FAULTS").is_some();
    let programs = [OLDER, OLDER_WITH_POSTGRES].map(|commit| older(commit, build));
    let [older, older_with_postgres] = match programs {
        [Ok(older), Ok(with_postgres)] => [older, with_postgres],
        [Err(why), _] | [_, Err(why)] => return Findings::skipped(why),
    };
    let mut findings = Findings::default();
    let dir = tempfile::tempdir().expect("a directory");
    let store = format!("sqlite:{}", dir.path().join("feed.db").display());
    roll(&mut findings, "SQLite", &older, &store, time / 2).await;
    let postgres = Postgres::start().await;
    roll(&mut findings, "PostgreSQL", &older_with_postgres, &postgres.url(), time / 2).await;
    findings
}

/// Replaces two instances over a store by those of this version and of the older one again, one after the other, while
/// callers of gateways of both versions write.
async fn roll(findings: &mut Findings, name: &str, older: &Path, store: &str, time: Duration) {
    let etcd = Etcd::start().await;
    let endpoint = etcd.addr.to_string();
    let start = |program: &Path, role| {
        let env = [("MSA__STORE__URL", store), ("MSA__REGISTRY__TTL_S", "5")];
        Role::start_by(Command::new(program), &endpoint, role, "127.0.0.1:0", &env[..])
    };
    let newer = Path::new(PROGRAM);
    let mut feeds = [start(older, "feed"), start(older, "feed")];
    let gateways = [start(older, "apigateway"), start(newer, "apigateway")];
    for gateway in &gateways {
        gateway.wait_for_certain("feed", 2).await;
    }
    let numbers = [0..WRITERS, WRITERS..2 * WRITERS];
    let mut number = 0;
    let writers = gateways.each_ref().map(|gateway| {
        number += 1;
        Writers::start(gateway.addr, numbers[number - 1].clone(), LIMIT)
    });
    let begun = Instant::now();
    let mut replaced = 0;
    // at least once to this version and back
    while replaced < 4 || begun.elapsed() < time {
        let program = if replaced % 4 < 2 { newer } else { older };
        let feed = &mut feeds[replaced % 2];
        feed.process.stop(20 * SECOND);
        *feed = start(program, "feed");
        for (gateway, writers) in gateways.iter().zip(&writers) {
            gateway.wait_for_certain("feed", 2).await;
            writers.more(50).await;
        }
        replaced += 1;
    }
    findings.tell(&format!("{name}: instances replaced"), replaced as f64, "");
    for (writers, (gateway, version)) in writers.into_iter().zip(gateways.iter().zip(["older", "this"])) {
        let ledger = writers.finish().await;
        let what = format!("{name}, gateway of {version} version");
        findings.share(&format!("{what}: acknowledged writes"), ledger.acknowledged() as f64, 1.0);
        let calls: usize = ledger.statuses.values().sum();
        findings.count(&format!("{what}: failed calls"), calls - ledger.acknowledged(), 0);
        let verdict = ledger.judge(&ledger, &read(gateway.addr).await);
        findings.guarantee(&format!("{what}: acknowledged writes"), verdict);
    }
}
