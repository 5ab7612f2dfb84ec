//! A standard error in trouble costs log lines and nothing else; one that works gets every line, the last one too.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::kit::http::Connection;
use crate::kit::stderr::{Trouble, Troubled};
use crate::kit::{SOON, free_addr, wait_for};

const LIST: &str = "/api/topic/list";
/// So many requests write more lines than a pipe holds.
const REQUESTS: usize = 600;
/// Longest time for a stop with nothing in flight: the drain of three levels, then the writer of the log.
const STOP: Duration = Duration::from_secs(3);

/// Makes requests that are logged; each must be answered in time.
async fn serve(up: &Troubled, requests: usize) {
    let gateway = up.ready().await;
    let mut connection = Connection::open(gateway).await.unwrap();
    for n in 0..requests {
        let asked = tokio::time::timeout(Duration::from_secs(5), connection.get(LIST)).await;
        let answer = asked.unwrap_or_else(|_| panic!("request {n} is not answered")).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let alive = tokio::time::timeout(Duration::from_secs(5), up.admin("/livez")).await;
    assert_eq!(alive.expect("an answer in time").unwrap().body, "ok\n");
}

/// Serves in this trouble, loses lines and counts them, and stops when it is told to.
async fn is_survived(trouble: Trouble) {
    let mut up = Troubled::up(trouble);
    // what cannot be written now waits in the queue, and a file may grow a little: more lines than fit
    serve(&up, 8 * REQUESTS).await;
    let lost = up.metric("log_lines_dropped_total").await;
    // without a file descriptor 2 the lines go to /dev/null, which is no loss that the program sees
    assert!(lost > 0.0 || trouble == Trouble::Absent, "{trouble:?}: {lost} lines lost");
    let begun = Instant::now();
    up.signal(Signal::TERM);
    let status = up.wait(STOP);
    assert_eq!(status.code(), Some(0), "{trouble:?}");
    eprintln!("{trouble:?}: {lost} lines lost, stopped within {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_blocked_stderr_stops_nothing() {
    is_survived(Trouble::Blocked).await;
}

#[tokio::test]
async fn a_full_stderr_that_does_not_block_stops_nothing_and_burns_nothing() {
    is_survived(Trouble::NonBlocking).await;
    let up = Troubled::up(Trouble::NonBlocking);
    serve(&up, REQUESTS).await;
    let cpu = crate::kit::cpu::Meter::start(up.id());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cpu.share() < 0.2, "{} of a core while it waits for a reader", cpu.share());
}

#[tokio::test]
async fn a_closed_stderr_stops_nothing() {
    is_survived(Trouble::Closed).await;
}

#[tokio::test]
async fn a_full_disk_below_stderr_stops_nothing() {
    is_survived(Trouble::Full).await;
}

#[tokio::test]
async fn a_limit_of_file_size_stops_nothing() {
    is_survived(Trouble::Limited).await;
}

#[tokio::test]
async fn an_absent_stderr_stops_nothing_and_its_number_is_nobody_elses() {
    is_survived(Trouble::Absent).await;
    let up = Troubled::up(Trouble::Absent);
    up.ready().await;
    let target = std::fs::read_link(format!("/proc/{}/fd/2", up.id())).unwrap();
    assert_eq!(target.to_str(), Some("/dev/null"), "lines of the log would be written there");
}

#[tokio::test]
async fn a_read_only_stderr_stops_nothing() {
    is_survived(Trouble::ReadOnly).await;
}

#[tokio::test]
async fn a_second_signal_and_a_failed_start_end_at_once_though_stderr_is_blocked() {
    let mut up = Troubled::up(Trouble::Blocked);
    serve(&up, 1).await;
    // a request whose body does not come holds the drain
    let gateway = up.ready().await;
    let mut held = tokio::net::TcpStream::connect(gateway).await.unwrap();
    let head = "PUT /api/topic/put_topic HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
    tokio::io::AsyncWriteExt::write_all(&mut held, head.as_bytes()).await.unwrap();
    up.admin("/livez").await.unwrap();
    up.signal(Signal::TERM);
    wait_for("it drains", || async {
        let status = up.admin("/status").await.ok()?.json();
        let roles = status["roles"].as_array()?.clone();
        roles.iter().any(|role| role["phase"] == "draining").then_some(())
    })
    .await;
    up.signal(Signal::TERM);
    assert_eq!(up.wait(Duration::from_secs(2)).code(), Some(130));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, code) in [
        (&["up", "--free-ports", "--data-dir", "data", "--http-addr", &taken][..], 1),
        (&["apigateway", "--etcd-addr", "no address"], 2),
    ] {
        let mut failed = Troubled::start(Trouble::Blocked, args);
        assert_eq!(failed.wait(SOON).code(), Some(code), "{args:?}");
    }
}

/// Returns the lines of a log; each must be a whole one.
fn lines(log: &str) -> Vec<Value> {
    let line = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    log.lines().filter(|line| !line.is_empty()).map(line).collect()
}

fn count(lines: &[Value], message: &str) -> usize {
    lines.iter().filter(|line| line["message"] == message).count()
}

#[tokio::test]
async fn a_stderr_that_works_gets_every_line_in_order_and_the_last_one() {
    let mut up = Troubled::start_with(
        // a pipe like any other once it is read
        Trouble::Blocked,
        &["up", "--free-ports", "--data-dir", "data", "--log-level", "debug"],
        |_| (),
    );
    let log = up.read();
    serve(&up, 8 * REQUESTS).await;
    assert!(up.metric("log_lines_dropped_total").await < 0.5);
    up.signal(Signal::TERM);
    assert_eq!(up.wait(STOP).code(), Some(0));
    let lines = lines(&log.join().unwrap());
    assert_eq!(count(&lines, "request"), 8 * REQUESTS);
    assert_eq!(lines.last().unwrap()["message"], "stopped");
    let times: Vec<_> = lines.iter().map(|line| line["timestamp"].as_str().unwrap()).collect();
    let early = times.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert_eq!(early, 0, "lines out of order");
}

#[tokio::test]
async fn a_reader_that_comes_back_reads_how_many_lines_were_lost() {
    let mut up = Troubled::up(Trouble::Blocked);
    serve(&up, 8 * REQUESTS).await;
    let lost = up.metric("log_lines_dropped_total").await;
    assert!(lost > 0.0);
    let log = up.read();
    // the queue is empty when new lines get through
    wait_for("lines get through again", || async {
        let before = up.metric("log_lines_dropped_total").await;
        serve(&up, 1).await;
        (up.metric("log_lines_dropped_total").await - before < 0.5).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let lost = up.metric("log_lines_dropped_total").await;
    serve(&up, 1).await;
    up.signal(Signal::TERM);
    assert_eq!(up.wait(STOP).code(), Some(0));
    let lines = lines(&log.join().unwrap());
    let told = lines.iter().filter(|line| line["message"] == "log lines were lost");
    let told: f64 = told.map(|line| line["lines"].as_f64().unwrap()).sum();
    assert!((told - lost).abs() < 0.5, "{lost} lines lost, {told} told");
    assert_eq!(lines.last().unwrap()["message"], "stopped");
}

#[tokio::test]
async fn a_slow_reader_gets_whole_lines_and_delays_nothing() {
    let mut up = Troubled::up(Trouble::Blocked);
    let log = up.read_slowly(50_000);
    let mut lost = 0.0;
    for _ in 0..10 {
        serve(&up, 8 * REQUESTS).await;
        lost = up.metric("log_lines_dropped_total{reason=\"queue\"}").await;
        if lost > 0.0 {
            break;
        }
    }
    assert!(lost > 0.0, "it was slower than the requests");
    let begun = Instant::now();
    up.signal(Signal::TERM);
    assert_eq!(up.wait(STOP).code(), Some(0));
    assert!(begun.elapsed() < STOP);
    // the last line may be cut where the process ended, no other one
    let log = log.join().unwrap();
    let whole = &log[..=log.rfind('\n').unwrap()];
    assert!(count(&lines(whole), "request") > 0);
}

#[tokio::test]
async fn a_stdout_that_nobody_reads_stops_nothing() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut writer, &[b'\n'; 1024]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut up = Troubled::start_with(
        Trouble::Absent,
        &["up", "--free-ports", "--data-dir", "data", "--http-addr", &free_addr().to_string()],
        |command| {
            command.stdout(writer);
        },
    );
    serve(&up, 1).await;
    up.signal(Signal::TERM);
    assert_eq!(up.wait(STOP).code(), Some(0));
    drop(reader);
}
