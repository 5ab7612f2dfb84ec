//! The file of a store: how a start meets it, and what happens when it is taken away while it is in use.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use microservice_app::api::proto::feed::{FeedRecord, GetFeedsRequest, GetFeedsResponse, OkResponse};
use rusqlite::Connection;
use rustix::process::Signal;
use tokio::time::Instant;
use tonic::{Code, Request, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::kit::grpc::{call, channel};
use crate::kit::http::get;
use crate::kit::process::{PROGRAM, Process};
use crate::kit::wait_for;

const MS: Duration = Duration::from_millis(1);

/// A directory for a store, which is `data/feed.db` in it.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("data/feed.db")
    }

    /// Starts a feed service on the file.
    fn launch(&self) -> Process {
        let store = format!("sqlite:{}", self.store().display());
        Process::start(&["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--store", &store])
    }
}

/// Takes the write lock of a file, as another program.
fn lock(path: &Path) -> Connection {
    let other = Connection::open(path).unwrap();
    other.busy_timeout(5000 * MS).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

async fn write(addr: SocketAddr, id: i64) -> Result<OkResponse, Status> {
    let record = FeedRecord { id, user_id: 7, content: "x".to_owned() };
    call(addr, "/feed.Feed/CreateFeed", Request::new(record)).await
}

async fn ids(addr: SocketAddr) -> Vec<i64> {
    let asked = GetFeedsRequest { user_id: 7, size: 100, before: 0 };
    let page: Result<GetFeedsResponse, _> = call(addr, "/feed.Feed/GetFeeds", Request::new(asked)).await;
    page.unwrap().feeds.iter().map(|feed| feed.id).collect()
}

async fn health(addr: SocketAddr) -> ServingStatus {
    let asked = HealthCheckRequest { service: "feed.Feed".to_owned() };
    let answer: HealthCheckResponse =
        HealthClient::new(channel(addr).await).check(asked).await.unwrap().into_inner();
    answer.status()
}

#[tokio::test]
async fn the_lock_of_another_program_is_waited_for_at_the_start() {
    let dir = Dir::new();
    // a new file that nobody has made a store of yet
    let other = lock(&dir.store());
    let mut feed = dir.launch();
    tokio::time::sleep(700 * MS).await;
    feed.poll_logs();
    assert!(feed.seen.is_empty(), "it waits: {:#?}", feed.seen);
    other.execute_batch("COMMIT").unwrap();
    let (addr, _) = feed.wait_for_role("feed");
    write(addr, 1).await.unwrap();
}

#[tokio::test]
async fn a_stop_during_that_wait_is_a_stop() {
    let dir = Dir::new();
    let _other = lock(&dir.store());
    let mut feed = dir.launch();
    tokio::time::sleep(500 * MS).await;
    feed.stop(1000 * MS);
}

#[tokio::test]
async fn a_lock_that_stays_ends_the_start_with_its_reason() {
    let dir = Dir::new();
    let _other = lock(&dir.store());
    let mut feed = dir.launch();
    assert_eq!(feed.wait(9000 * MS).code(), Some(1));
    let words = format!("{:?}", feed.seen);
    assert!(words.contains("feed.db") && words.contains("locked"), "{words}");
}

#[tokio::test]
async fn instances_that_start_together_make_one_store() {
    let dir = Dir::new();
    let mut feeds = [(); 3].map(|()| dir.launch());
    let addrs = feeds.each_mut().map(|feed| feed.wait_for_role("feed").0);
    for (id, addr) in (1..).zip(addrs) {
        write(addr, id).await.unwrap();
    }
    for addr in addrs {
        assert_eq!(ids(addr).await, [1, 2, 3]);
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_ends_the_start_with_its_reason() {
    let dir = Dir::new();
    std::fs::write(dir.store(), "no database, but text of some length ".repeat(1000)).unwrap();
    let mut feed = dir.launch();
    assert_eq!(feed.wait(5000 * MS).code(), Some(1));
    let words = format!("{:?}", feed.seen);
    assert!(words.contains("feed.db: file is not a database"), "{words}");
}

#[tokio::test]
async fn a_start_on_a_current_store_needs_no_lock() {
    let dir = Dir::new();
    let mut first = dir.launch();
    let (addr, _) = first.wait_for_role("feed");
    write(addr, 1).await.unwrap();
    // a sibling that was stopped amid a transaction holds the lock for as long as that lasts
    let _other = lock(&dir.store());
    first.signal(Signal::STOP);
    let begun = Instant::now();
    let mut second = dir.launch();
    let (addr, admin) = second.wait_for_role("feed");
    assert!(begun.elapsed() < 3000 * MS, "{:?}", begun.elapsed());
    assert_eq!(ids(addr).await, [1]);
    let mut late = Request::new(FeedRecord { id: 2, user_id: 7, content: "x".to_owned() });
    late.metadata_mut().insert("grpc-timeout", "1500m".parse().unwrap());
    let refused: Result<OkResponse, _> = call(addr, "/feed.Feed/CreateFeed", late).await;
    // tonic's client calls its own timer so
    assert!(matches!(refused.unwrap_err().code(), Code::DeadlineExceeded | Code::Cancelled));
    let page = get(admin, "/readyz").await;
    assert!(
        page.status == 200 && page.body.contains("warn: feed: store sqlite: a write has waited for"),
        "{page:?}"
    );
    first.signal(Signal::CONT);
}

/// A current store is opened without a write, so that the start would not notice by itself.
#[tokio::test]
async fn a_store_that_cannot_be_written_is_refused_at_the_start() {
    const NOBODY: u32 = 65_534;
    let dir = Dir::new();
    let mut feed = dir.launch();
    let (addr, _) = feed.wait_for_role("feed");
    write(addr, 1).await.unwrap();
    feed.kill();
    let allow = |path: PathBuf, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(dir.path(""), 0o755);
    allow(dir.path("data"), 0o777);
    allow(dir.store(), 0o444);
    // the directory of the program may be its owner's alone, such as root's home
    let program = dir.path("program");
    std::fs::copy(PROGRAM, &program).unwrap();
    let mut command = Command::new(program);
    let store = format!("sqlite:{}", dir.store().display());
    command.args(["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--store", &store]);
    if rustix::process::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY); // root may write everything
    }
    let mut feed = Process::spawn(command);
    assert_eq!(feed.wait(5000 * MS).code(), Some(1));
    let words = format!("{:?}", feed.seen);
    assert!(words.contains("feed.db: can only be read"), "{words}");
}

/// Takes the file of a running service away in some way. Expects that nothing is acknowledged any more, and that
/// readiness and health say why.
async fn taken_away(reason: &str, take: impl FnOnce(&Dir)) -> (Dir, Process, SocketAddr, SocketAddr) {
    let dir = Dir::new();
    let mut feed = dir.launch();
    let (addr, admin) = feed.wait_for_role("feed");
    write(addr, 1).await.unwrap();
    assert_eq!(
        (get(admin, "/readyz").await.status.as_u16(), health(addr).await),
        (200, ServingStatus::Serving)
    );
    take(&dir);
    for id in 2..5 {
        let refused = write(addr, id).await.expect_err(reason);
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unavailable, "the store cannot answer"),
            "{reason}"
        );
    }
    let page = get(admin, "/readyz").await;
    assert!(page.status == 503 && page.body.contains("fail: feed: store: "), "{page:?}");
    assert!(page.body.contains(reason), "{reason}: {page:?}");
    feed.wait_for_log(reason, |line| line.to_string().contains(reason));
    wait_for("health says so", || async { (health(addr).await == ServingStatus::NotServing).then_some(()) })
        .await;
    (dir, feed, addr, admin)
}

#[tokio::test]
async fn a_store_whose_file_is_removed_acknowledges_nothing() {
    let remove = |name| move |dir: &Dir| std::fs::remove_file(dir.path(name)).unwrap();
    taken_away("feed.db was removed", remove("data/feed.db")).await;
    taken_away("feed.db-wal was removed", remove("data/feed.db-wal")).await;
    taken_away("feed.db-shm was removed", remove("data/feed.db-shm")).await;
    taken_away("feed.db was removed", |dir| std::fs::remove_dir_all(dir.path("data")).unwrap()).await;
}

#[tokio::test]
async fn a_store_whose_file_is_replaced_acknowledges_nothing() {
    let backup = "VACUUM INTO 'BACKUP'";
    taken_away("feed.db was replaced", |dir| {
        let to = dir.path("backup.db");
        let db = Connection::open(dir.store()).unwrap();
        db.execute_batch(&backup.replace("BACKUP", &to.display().to_string())).unwrap();
        std::fs::rename(to, dir.store()).unwrap();
    })
    .await;
    taken_away("feed.db was emptied", |dir| drop(std::fs::File::create(dir.store()).unwrap())).await;
}

#[tokio::test]
async fn a_store_whose_file_is_put_back_goes_on() {
    let (away, back) = ("elsewhere", "data");
    let (dir, _feed, addr, admin) =
        taken_away("feed.db was removed", |dir| std::fs::rename(dir.path(back), dir.path(away)).unwrap())
            .await;
    std::fs::rename(dir.path(away), dir.path(back)).unwrap();
    wait_for("it serves", || async { (health(addr).await == ServingStatus::Serving).then_some(()) }).await;
    assert_eq!(get(admin, "/readyz").await.status, 200);
    write(addr, 9).await.unwrap();
    assert_eq!(ids(addr).await, [1, 9], "what was not acknowledged was not written");
}

#[tokio::test]
async fn other_programs_may_use_the_file() {
    let dir = Dir::new();
    let mut feed = dir.launch();
    let (addr, admin) = feed.wait_for_role("feed");
    write(addr, 1).await.unwrap();
    for (id, work) in [
        (2, "SELECT count(*) FROM feeds"),
        (3, "DELETE FROM feeds WHERE id = 1"),
        (4, "PRAGMA wal_checkpoint(TRUNCATE)"),
        (5, "VACUUM"),
    ] {
        // the last one to close a file removes what is beside it, but this is not the last one
        let other = Connection::open(dir.store()).unwrap();
        other.prepare(work).unwrap().query([]).unwrap().next().unwrap();
        drop(other);
        write(addr, id).await.unwrap_or_else(|error| panic!("after {work}: {error}"));
    }
    assert_eq!((ids(addr).await, get(admin, "/readyz").await.status.as_u16()), (vec![2, 3, 4, 5], 200));
    let _sibling = dir.launch().wait_for_role("feed");
    write(addr, 6).await.unwrap();
}

#[tokio::test]
async fn a_file_behind_a_link_is_followed_to_where_it_is() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("disk")).unwrap();
    std::os::unix::fs::symlink(dir.path("disk/real.db"), dir.store()).unwrap();
    let mut feed = dir.launch();
    let (addr, admin) = feed.wait_for_role("feed");
    write(addr, 1).await.unwrap();
    assert_eq!(get(admin, "/readyz").await.status, 200);
    std::fs::remove_file(dir.store()).unwrap();
    std::os::unix::fs::symlink(dir.path("disk/other.db"), dir.store()).unwrap();
    assert_eq!(write(addr, 2).await.unwrap_err().code(), Code::Unavailable);
}
