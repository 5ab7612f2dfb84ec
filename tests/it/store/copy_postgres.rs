//! `copy-store` from and to a real PostgreSQL.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use microservice_app::api::proto::feed::{FeedRecord, OkResponse};
use rustix::process::Signal;
use tokio_postgres::Client;
use tonic::Request;

use super::copy::{count, db, fill, machine, rows, succeeds_with_little_memory, url};
use crate::kit::grpc::call;
use crate::kit::postgres::Postgres;
use crate::kit::process::{self, PROGRAM, Process};
use crate::kit::{SOON, wait_for};

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(PROGRAM);
    command.arg("copy-store").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a copy to its end; returns its status, and what it prints and says.
async fn copy(args: &[&str]) -> (Option<i32>, String, String) {
    let child = start(args);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs a copy that must succeed; returns what it prints.
async fn copied(args: &[&str]) -> String {
    let (status, out, words) = copy(args).await;
    assert_eq!(status, Some(0), "{args:?}: {out}\n{words}");
    out
}

/// Runs a copy that must fail with status 1; returns what it says.
async fn refused(args: &[&str]) -> String {
    let (status, out, words) = copy(args).await;
    assert_eq!(status, Some(1), "{args:?}: {out}\n{words}");
    words
}

async fn number(client: &Client, question: &str) -> i64 {
    client.query_one(question, &[]).await.unwrap().get(0)
}

async fn feeds(client: &Client) -> i64 {
    number(client, "SELECT count(*) FROM feed.feeds").await
}

/// Makes a second database on a server; returns its URL.
async fn another(server: &Postgres) -> String {
    server.admin().await.batch_execute("CREATE DATABASE other OWNER app").await.unwrap();
    server.url().replace("/msa", "/other")
}

fn directory() -> (tempfile::TempDir, std::path::PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    machine(&from);
    (root, from)
}

#[tokio::test]
async fn every_record_survives_the_way_through_postgresql_and_back() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=1234, "hello \u{1F600}\n'quoted' \\ \"");
    fill(&from, [-5, i64::MAX], "");
    db(&from, "profile").execute("INSERT INTO profiles VALUES (7, 'Ada', '', 'countess')", []).unwrap();
    db(&from, "topic")
        .execute("INSERT INTO topics VALUES (1, 's', 'c'), (9223372036854775807, '', '')", [])
        .unwrap();
    let (one, two, to) = (server.url(), another(&server).await, root.path().join("to"));
    let expected = "feed: 1236 records: 1236 copied, 0 already there; checked\n\
                    profile: 1 records: 1 copied, 0 already there; checked\n\
                    topic: 2 records: 2 copied, 0 already there; checked\n";
    assert_eq!(copied(&[&url(&from), &one]).await, expected);
    assert_eq!(copied(&[&one, &two]).await, expected);
    assert_eq!(copied(&[&two, &url(&to)]).await, expected);
    for service in ["feed", "profile", "topic"] {
        assert_eq!(rows(&from, service), rows(&to, service));
    }
    let again = copied(&[&url(&from), &one, "--service", "feed"]).await;
    assert_eq!(again, "feed: 1236 records: 0 copied, 1236 already there; checked\n");
    let words = refused(&[&one, &one]).await;
    assert!(words.contains("TO: store postgres://") && words.contains("is also the source"), "{words}");
}

#[tokio::test]
async fn a_record_that_differs_ends_the_copy_unless_it_says_what_to_do() {
    let (_root, from) = directory();
    let server = Postgres::start().await;
    let (from_url, to) = (url(&from), server.url());
    let args =
        |more: &[&'static str]| [&[from_url.as_str(), to.as_str(), "--service", "feed"], more].concat();
    fill(&from, 1..=600, "old");
    copied(&args(&[])).await;
    fill(&from, 601..=700, "old");
    let admin = server.admin().await;
    admin.batch_execute("UPDATE feed.feeds SET content = 'newer' WHERE id = 555").await.unwrap();
    let words = refused(&args(&[])).await;
    assert!(words.contains("TO has another record with user_id 556, id 555"), "{words}");
    assert_eq!(feeds(&admin).await, 600, "the page with that record was not written");
    assert_eq!(
        copied(&args(&["--on-conflict", "keep"])).await,
        "feed: 700 records: 100 copied, 599 already there, 1 differ and were kept; checked\n"
    );
    let newer = "SELECT count(*) FROM feed.feeds WHERE content = 'newer'";
    assert_eq!((feeds(&admin).await, number(&admin, newer).await), (700, 1));
    assert_eq!(
        copied(&args(&["--on-conflict", "overwrite"])).await,
        "feed: 700 records: 0 copied, 699 already there, 1 overwritten; checked\n"
    );
    assert_eq!(number(&admin, newer).await, 0);
}

#[tokio::test]
async fn a_copy_that_was_killed_goes_on_when_it_is_repeated() {
    let (_root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=30_000, "x");
    let (from_url, to) = (url(&from), server.url());
    let args = [from_url.as_str(), to.as_str(), "--service", "feed"];
    let empty = directory();
    copied(&[&url(&empty.1), &to]).await;
    let admin = server.admin().await;
    for signal in [Signal::KILL, Signal::TERM] {
        let before = feeds(&admin).await;
        let mut running = start(&args);
        wait_for("some pages", || async { (feeds(&admin).await > before).then_some(()) }).await;
        process::signal(&running, signal);
        let status = running.wait().unwrap();
        // a transaction of the killed one may still end
        let connections = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        wait_for("its connections end", || async { (number(&admin, connections).await == 0).then_some(()) })
            .await;
        let there = feeds(&admin).await;
        assert!(there < 30_000 && there % 250 == 0, "{signal:?} came too late, or amid a page: {there}");
        if signal == Signal::TERM {
            assert_eq!(status.code(), Some(130));
        }
    }
    let there = feeds(&admin).await;
    let out = copied(&args).await;
    assert_eq!(
        out,
        format!("feed: 30000 records: {} copied, {there} already there; checked\n", 30_000 - there)
    );
}

#[tokio::test]
async fn a_database_that_is_killed_amid_a_copy_is_named_and_the_copy_can_be_repeated() {
    let (root, from) = directory();
    let mut server = Postgres::start().await;
    fill(&from, 1..=30_000, "x");
    let (source, store) = (url(&from), server.url());
    let to = url(root.path().join("to.db"));
    copied(&[&url(&directory().1), &store]).await;
    let admin = server.admin().await;
    let running = start(&[&source, &store, "--service", "feed"]);
    wait_for("some pages", || async { (feeds(&admin).await > 0).then_some(()) }).await;
    server.kill();
    let output = tokio::task::spawn_blocking(move || running.wait_with_output().unwrap()).await.unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("copy-store: feed: TO: store: the connection was lost"), "{words}");
    server.restart().await;
    let out = copied(&[&source, &store, "--service", "feed"]).await;
    assert!(out.starts_with("feed: 30000 records: ") && !out.contains(" 30000 copied"), "{out}");
    // and as the source
    let running = start(&[&store, &to, "--service", "feed"]);
    let path = root.path().join("to.db");
    let rows = || {
        let db =
            rusqlite::Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        db.query_row("SELECT count(*) FROM feeds", [], |row| row.get::<_, i64>(0)).ok()
    };
    wait_for("some pages", || async { rows().filter(|rows| *rows > 0) }).await;
    server.kill();
    let output = tokio::task::spawn_blocking(move || running.wait_with_output().unwrap()).await.unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("copy-store: feed: FROM: store: the connection was lost"), "{words}");
}

#[tokio::test]
async fn a_source_that_is_written_to_is_copied_as_it_was_at_the_start() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=20_000, "x");
    let store = server.url();
    copied(&[&url(&from), &store, "--service", "feed"]).await;
    let args = ["feed", "--addr", "127.0.0.1:0", "--debug-addr", "127.0.0.1:0", "--store", &store];
    let mut feed = Process::start(&args);
    let (addr, _) = feed.wait_for_role("feed");
    let writer = tokio::spawn(async move {
        for id in 1.. {
            let feed = FeedRecord { id, user_id: 2000, content: "meanwhile".to_owned() };
            let _: OkResponse = call(addr, "/feed.Feed/CreateFeed", Request::new(feed)).await.unwrap();
        }
    });
    let admin = server.admin().await;
    wait_for("writes", || async { (feeds(&admin).await > 20_005).then_some(()) }).await;
    let to = root.path().join("to.db");
    let at_start = feeds(&admin).await;
    let out = copied(&[&store, &url(&to), "--service", "feed"]).await;
    let at_end = feeds(&admin).await;
    writer.abort();
    let copied: i64 = out.strip_prefix("feed: ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((at_start..at_end).contains(&copied) && out.contains("; checked"), "{at_start}..{at_end}: {out}");
    let there = rusqlite::Connection::open(&to).unwrap();
    let last = "SELECT count(*) = max(id) FROM feeds WHERE user_id = 2000";
    assert!(
        there.query_row(last, [], |row| row.get::<_, bool>(0)).unwrap(),
        "none is left out, as at one moment"
    );
    feed.stop(SOON);
}

#[tokio::test]
async fn a_hundred_thousand_records_take_seconds() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=100_000, &"x".repeat(100));
    let (begun, to) = (Instant::now(), server.url());
    let out = copied(&[&url(&from), &to, "--service", "feed"]).await;
    let there = begun.elapsed();
    assert!(out.starts_with("feed: 100000 records: 100000 copied"), "{out}");
    let back = root.path().join("back");
    std::fs::create_dir(&back).unwrap();
    copied(&[&to, &url(&back), "--service", "feed"]).await;
    let took = begun.elapsed();
    assert_eq!(count(&back), 100_000);
    // a busy machine included; alone it takes some 10 s each way
    assert!(took < Duration::from_mins(4), "{there:?} and {took:?}");
    println!("100,000 records: {there:?} there, {:?} back", took.saturating_sub(there));
}

#[tokio::test]
async fn the_memory_does_not_grow_with_the_records() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=4096, &"x".repeat(32 << 10));
    let (source, store, to) = (url(&from), server.url(), url(root.path().join("to.db")));
    for (from, to) in [(&source, &store), (&store, &to)] {
        let mut running = start(&[from, to, "--service", "feed"]);
        tokio::task::spawn_blocking(move || succeeds_with_little_memory(&mut running)).await.unwrap();
    }
    assert_eq!(feeds(&server.admin().await).await, 4096);
}

fn settings(path: &Path, lines: &[String]) -> String {
    std::fs::write(path, format!("[store]\n{}\n", lines.join("\n"))).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn migrations_that_meet_a_table_in_use_are_tried_again() {
    let (_root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=3, "x");
    let admin = server.admin().await;
    let begun = "SET ROLE app; CREATE SCHEMA feed; CREATE TABLE feed.migrations
                 (version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255))";
    admin.batch_execute(begun).await.unwrap();
    admin.batch_execute("BEGIN; LOCK TABLE feed.migrations IN SHARE MODE").await.unwrap();
    let (source, store) = (url(&from), server.url());
    let args = [source.as_str(), &store, "--service", "feed"];
    let release = async {
        wait_for("a try has ended", || async { server.log().contains("lock timeout").then_some(()) }).await;
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (out, ()) = futures_util::join!(copied(&args), release);
    assert_eq!(out, "feed: 3 records: 3 copied, 0 already there; checked\n");
}

#[tokio::test]
async fn the_password_comes_from_the_settings_of_each_side() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=3, "x");
    let (one, two) = (server.url(), another(&server).await.replace("app@", "second@"));
    let admin = server.admin().await;
    let roles = "ALTER ROLE app PASSWORD 'correct'; CREATE ROLE second LOGIN PASSWORD 'also correct'; \
                 GRANT CREATE ON DATABASE other TO second";
    admin.batch_execute(roles).await.unwrap();
    let hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    server.write("pg_hba.conf", hba);
    server.reload();
    wait_for("it asks for a password", || async {
        crate::kit::postgres::connect(server.addr, "app", "msa").await.is_none().then_some(())
    })
    .await;
    let file = |name: &str, password: &str| {
        let path = root.path().join(name);
        std::fs::write(&path, password).unwrap();
        vec![format!("password_file = {:?}", path.display().to_string())]
    };
    let path = |name: &str| root.path().join(name);
    let correct = settings(&path("one.toml"), &file("one", "correct\n"));
    let other = settings(&path("two.toml"), &file("two", "also correct"));
    let wrong = settings(&path("three.toml"), &file("three", "hunter2"));
    let source = url(&from);
    copied(&[&source, &one, "--config", &correct]).await;
    copied(&[&one, &two, "--from-config", &correct, "--config", &other]).await;
    let words = refused(&[&source, &one, "--config", &wrong]).await;
    assert!(words.contains("TO: store postgres://app@") && words.contains("28P01"), "{words}");
    assert!(!words.contains("hunter2"), "{words}");
    let words = refused(&[&one, &url(path("to.db")), "--service", "feed"]).await;
    assert!(words.contains("FROM: store postgres://app@"), "{words}");
    let missing = settings(&path("four.toml"), &["password_file = \"/no/such/file\"".to_owned()]);
    let words = refused(&[&source, &one, "--config", &missing]).await;
    assert!(words.contains("store.password_file") && words.contains("/no/such/file"), "{words}");
    let unknown = settings(&path("five.toml"), &["pasword_file = \"x\"".to_owned()]);
    let (status, _, words) = copy(&[&source, &one, "--config", &unknown]).await;
    assert!(status == Some(2) && words.contains("did you mean `store.password_file`"), "{words}");
    let (status, _, words) = copy(&[&source, &one.replace("app@", "app:hunter2@")]).await;
    assert!(status == Some(2) && !words.contains("hunter2@"), "{words}");
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_named_with_the_reason() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    let (source, store, empty) = (url(&from), server.url(), another(&server).await);
    let nowhere = Postgres::url_at(&[crate::kit::free_addr()]);
    let admin = server.admin().await;
    admin.batch_execute("CREATE SCHEMA topic; CREATE TABLE topic.notes (text text)").await.unwrap();
    let to = url(root.path().join("to.db"));
    for (args, parts) in [
        (vec![source.as_str(), &nowhere], ["TO: store postgres://", "refused"]),
        (vec![&nowhere, &to], ["FROM: store postgres://", "refused"]),
        (vec![&empty, &to], ["FROM: store postgres://", "has no records"]),
        (vec![&empty, &to, "--service", "feed"], ["FROM: store postgres://", "has no records of feed"]),
        (vec![&source, &store, "--service", "topic"], ["TO: store postgres://", "not this service's"]),
    ] {
        let words = refused(&args).await;
        assert!(parts.iter().all(|part| words.contains(part)), "{args:?}: {words}");
    }
    assert!(!root.path().join("to.db").exists());
}

#[tokio::test]
async fn a_record_that_the_database_refuses_is_named_and_nothing_of_its_page_is_written() {
    let (_root, from) = directory();
    let server = Postgres::start().await;
    fill(&from, 1..=600, "x");
    let (source, store) = (url(&from), server.url());
    let args = [&source, &store, "--service", "feed", "--on-conflict", "overwrite"];
    // PostgreSQL has no texts with NUL
    db(&from, "feed").execute("UPDATE feeds SET content = 'a' || char(0) WHERE id = 300", []).unwrap();
    let words = refused(&args).await;
    assert!(words.contains("user_id 301, id 300") && words.contains("SQLSTATE 22021"), "{words}");
    let admin = server.admin().await;
    assert_eq!(feeds(&admin).await, 250, "the page before");
    // one that replaces another is named too
    db(&from, "feed").execute("UPDATE feeds SET content = 'fine' WHERE id = 300", []).unwrap();
    copied(&args).await;
    admin
        .batch_execute("ALTER TABLE feed.feeds ADD CONSTRAINT short CHECK (length(content) < 9)")
        .await
        .unwrap();
    db(&from, "feed").execute("UPDATE feeds SET content = 'rather long' WHERE id = 300", []).unwrap();
    let words = refused(&args).await;
    assert!(words.contains("user_id 301, id 300") && words.contains("a row breaks short"), "{words}");
}

#[tokio::test]
async fn an_opening_that_nobody_answers_ends() {
    let (root, from) = directory();
    let server = Postgres::start().await;
    let (source, store) = (url(&from), server.url());
    copied(&[&source, &store]).await;
    let short = settings(&root.path().join("short.toml"), &["timeout_ms = 500".to_owned()]);
    let to = url(root.path().join("to.db"));
    let admin = server.admin().await;
    for table in ["pg_namespace", "feed.migrations", "feed.feeds"] {
        admin.batch_execute(&format!("BEGIN; LOCK TABLE {table}")).await.unwrap();
        for (from, to, side) in [(&store, &to, "FROM"), (&source, &store, "TO")] {
            let args = [from.as_str(), to.as_str(), "--service", "feed", "--config", &short];
            let ended = tokio::time::timeout(Duration::from_mins(1), refused(&args)).await;
            let words = ended.unwrap_or_else(|_| panic!("{table}, {side}: it still waits"));
            let told = words.contains("no answer within") || words.contains("no connection within");
            assert!(told && words.contains(side), "{table}: {words}");
        }
        admin.batch_execute("COMMIT").await.unwrap();
    }
}

/// A cluster such as Citus distributes rows by one column, and every key and index has to begin with it.
#[tokio::test]
async fn every_key_and_index_begins_with_the_distribution_column() {
    let (_root, from) = directory();
    let server = Postgres::start().await;
    copied(&[&url(&from), &server.url()]).await;
    let admin = server.admin().await;
    let question = "SELECT n.nspname || '.' || t.relname, a.attname::text, i.indisprimary FROM pg_index i \
                    JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace \
                    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0] \
                    WHERE n.nspname IN ('feed', 'profile', 'topic') \
                    AND t.relname NOT IN ('migrations', 'compatibility') ORDER BY 1, 2";
    let found = admin.query(question, &[]).await.unwrap();
    let found: Vec<(String, String, bool)> =
        found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let tables = [("feed.feeds", "user_id"), ("profile.profiles", "user_id"), ("topic.topics", "topic_id")];
    for (table, column) in tables {
        let of_table: Vec<_> = found.iter().filter(|(name, ..)| name == table).collect();
        assert!(of_table.iter().any(|(_, _, primary)| *primary), "{table} has no primary key: {found:?}");
        assert!(of_table.iter().all(|(_, first, _)| first == column), "{found:?}");
    }
    assert!(found.iter().all(|(name, ..)| tables.iter().any(|(table, _)| name == table)), "{found:?}");
}
