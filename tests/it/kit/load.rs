//! An open-loop load driver: calls go out when they are due, whether or not earlier ones were answered,
//! and every call is recorded with its outcome and the instance that answered it.
//!
//! Latency counts from when a call was due, so a server that stalls cannot slow its own test down. The
//! gaps between calls are random (Poisson) from a seed. A call whose connection was closed before any
//! byte of an answer is sent once more on a new connection (RFC 9112, 9.3.1) and counted apart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::request;

/// Most calls in flight; what is due beyond them is not sent and makes the run void.
const MAX_IN_FLIGHT: usize = 8192;
/// Most calls of one run.
const MAX_CALLS: usize = 4_000_000;
/// How long after a call's time limit the driver waits for the answer before it hangs up.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(StatusCode),
    /// No connection could be opened.
    Refused(String),
    /// The connection ended before the answer was whole.
    Broken(String),
    /// No answer within the time limit and a second more.
    Silence,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub number: u64,
    /// When it should have been sent, and when it was.
    pub due: Instant,
    pub sent: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
    /// Id of the instance that answered, empty if nobody says.
    pub instance: String,
    /// What a degraded answer says that it is.
    pub degraded: Option<String>,
    /// A 503 that does not say when to come back.
    pub no_hint: bool,
    /// It was sent again because its connection was closed before any byte of an answer.
    pub again: bool,
}

impl Call {
    /// Returns true for an answer that is no failure of the system: also a refusal of what was asked.
    pub fn answered(&self) -> bool {
        matches!(self.outcome, Outcome::Status(status) if status.as_u16() < 500 && status != 429)
    }

    /// Returns true for such an answer that is whole: a degraded one would hide the trouble.
    pub fn ok(&self) -> bool {
        self.answered() && self.degraded.is_none()
    }

    /// Returns the time from when it was due to its end.
    pub fn latency(&self) -> Duration {
        self.ended - self.due
    }
}

/// Every call of a run, by number.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub calls: Vec<Call>,
    /// Calls that were due and not sent because too many were in flight.
    pub unsent: usize,
    /// The time limit of each call.
    pub limit: Duration,
}

impl Record {
    pub fn failed(&self) -> Vec<&Call> {
        self.calls.iter().filter(|call| !call.ok()).collect()
    }

    /// Returns how many failures are another answer than 503, or none at all.
    pub fn failed_but_503(&self) -> usize {
        let unavailable = Outcome::Status(StatusCode::SERVICE_UNAVAILABLE);
        self.failed().iter().filter(|call| call.outcome != unavailable).count()
    }

    pub fn degraded(&self) -> usize {
        self.calls.iter().filter(|call| call.degraded.is_some()).count()
    }

    /// Returns how many 503 do not say when to come back.
    pub fn without_retry_after(&self) -> usize {
        self.calls.iter().filter(|call| call.no_hint).count()
    }

    pub fn again(&self) -> usize {
        self.calls.iter().filter(|call| call.again).count()
    }

    /// Returns the share of calls that were answered well, 0 to 1; panics if there were none.
    pub fn ok_share(&self) -> f64 {
        assert!(!self.calls.is_empty(), "no call was made");
        1.0 - self.failed().len() as f64 / self.calls.len() as f64
    }

    /// Returns the calls that were due in a span of time.
    pub fn between(&self, from: Instant, to: Instant) -> Self {
        let calls = self.calls.iter().filter(|call| (from..to).contains(&call.due)).cloned().collect();
        Self { calls, unsent: self.unsent, limit: self.limit }
    }

    /// Returns a quantile of the latency, 0 to 1, of the calls that were answered; panics if there are none.
    pub fn latency(&self, quantile: f64) -> Duration {
        let mut all: Vec<_> = self.calls.iter().filter(|call| call.answered()).map(Call::latency).collect();
        super::quantile(&mut all, quantile)
    }

    /// Returns a summary of the failures for a panic's message.
    pub fn failures(&self) -> String {
        let mut counts = BTreeMap::<String, usize>::new();
        for call in self.failed() {
            *counts.entry(format!("{:?} {:?}", call.outcome, call.degraded)).or_default() += 1;
        }
        format!("{counts:?}")
    }
}

/// The calls that have ended so far, in the order of their ends.
type Ended = Arc<Mutex<Vec<Call>>>;
type Make = Arc<dyn Fn(u64) -> Request<Full<Bytes>> + Send + Sync>;

/// What to send, where and how often.
#[derive(Clone)]
pub struct Load {
    target: SocketAddr,
    rate: f64,
    limit: Duration,
    seed: u64,
    make: Make,
}

impl Load {
    /// Returns a load of `rate` calls a second of one GET, each with a time limit of 1 s.
    pub fn get(target: SocketAddr, rate: f64, path: &'static str) -> Self {
        Self::of(target, rate, move |_| request("GET", path, ""))
    }

    /// Returns a load of requests that are made from their number.
    pub fn of(
        target: SocketAddr,
        rate: f64,
        make: impl Fn(u64) -> Request<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        Self { target, rate, limit: Duration::from_secs(1), seed: 1, make: Arc::new(make) }
    }

    /// Returns the same load with another time limit of each call.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Begins, and goes on until [`Running::finish`].
    pub fn start(self) -> Running {
        let stop = CancellationToken::new();
        let (sent, ended) = (Arc::new(AtomicUsize::new(0)), Ended::default());
        let task = tokio::spawn(drive(self, stop.clone(), sent.clone(), ended.clone()));
        Running { stop, sent, ended, task }
    }

    /// Runs for a time.
    pub async fn run(self, time: Duration) -> Record {
        let running = self.start();
        tokio::time::sleep(time).await;
        running.finish().await
    }
}

/// A load that is under way.
pub struct Running {
    stop: CancellationToken,
    sent: Arc<AtomicUsize>,
    ended: Ended,
    task: tokio::task::JoinHandle<Record>,
}

impl Running {
    /// Returns the calls sent so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Relaxed)
    }

    /// Waits until so many more calls were sent.
    pub async fn more(&self, calls: usize) {
        let until = self.sent() + calls;
        super::wait_for("more calls", || async { (self.sent() >= until).then_some(()) }).await;
    }

    /// Waits until an instance has answered a call.
    pub async fn answer_of(&self, instance: &str) {
        super::wait_for("an answer of the instance", || async {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.iter().rev().any(|call| call.instance == instance).then_some(())
        })
        .await;
    }

    /// Sends no more, waits for the answers and returns the record.
    pub async fn finish(self) -> Record {
        self.stop.cancel();
        self.task.await.expect("the driver ends")
    }
}

async fn drive(load: Load, stop: CancellationToken, sent: Arc<AtomicUsize>, calls: Ended) -> Record {
    let pool = Arc::new(Pool { target: load.target, idle: Mutex::default() });
    let (tasks, mut unsent) = (TaskTracker::new(), 0);
    let mut random = StdRng::seed_from_u64(load.seed);
    let mut due = Instant::now();
    for number in 0.. {
        let gap = -(1.0 - random.random::<f64>()).ln() / load.rate;
        due += Duration::from_secs_f64(gap);
        if stop.run_until_cancelled(tokio::time::sleep_until(due)).await.is_none() {
            break;
        }
        if tasks.len() >= MAX_IN_FLIGHT || sent.load(Relaxed) >= MAX_CALLS {
            unsent += 1;
            continue;
        }
        let (pool, calls, make, limit) = (pool.clone(), calls.clone(), load.make.clone(), load.limit);
        sent.fetch_add(1, Relaxed);
        tasks.spawn(async move {
            let call = pool.call(number, due, limit, &make).await;
            calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        });
    }
    tasks.close();
    tasks.wait().await;
    let mut calls = std::mem::take(&mut *calls.lock().unwrap_or_else(PoisonError::into_inner));
    calls.sort_by_key(|call: &Call| call.number);
    Record { calls, unsent, limit: load.limit }
}

struct Pool {
    target: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    read: Arc<AtomicU64>,
}

struct Answer {
    status: StatusCode,
    instance: String,
    degraded: Option<String>,
    retry_after: bool,
}

impl Pool {
    async fn call(&self, number: u64, due: Instant, limit: Duration, make: &Make) -> Call {
        let sent = Instant::now();
        let mut call = Call {
            number,
            due,
            sent,
            ended: sent,
            outcome: Outcome::Silence,
            instance: String::new(),
            degraded: None,
            no_hint: false,
            again: false,
        };
        let exchange = async {
            let first = self.exchange(make(number), limit, false).await;
            if let Err((_, true)) = first {
                call.again = true;
                return self.exchange(make(number), limit, true).await;
            }
            first
        };
        let result = tokio::time::timeout(limit + PATIENCE, exchange).await;
        call.ended = Instant::now();
        match result {
            Ok(Ok(answer)) => {
                call.outcome = Outcome::Status(answer.status);
                (call.instance, call.degraded) = (answer.instance, answer.degraded);
                call.no_hint = answer.status == 503 && !answer.retry_after;
            }
            Ok(Err((outcome, _))) => call.outcome = outcome,
            Err(_) => {}
        }
        call
    }

    /// Sends a request; an error says whether no byte of an answer had come.
    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        limit: Duration,
        new: bool,
    ) -> Result<Answer, (Outcome, bool)> {
        let mut connection = match self.take().filter(|_| !new) {
            Some(connection) => connection,
            None => {
                Connection::open(self.target).await.map_err(|e| (Outcome::Refused(e.to_string()), false))?
            }
        };
        let millis = http::HeaderValue::from(u64::try_from(limit.as_millis()).expect("a short time"));
        request.headers_mut().insert("x-request-timeout-ms", millis);
        let before = connection.read.load(Relaxed);
        let read = connection.read.clone();
        let lost =
            move |error: hyper::Error| (Outcome::Broken(format!("{error:?}")), read.load(Relaxed) == before);
        connection.sender.ready().await.map_err(&lost)?;
        let response = connection.sender.send_request(request).await.map_err(&lost)?;
        let (head, body) = response.into_parts();
        body.collect().await.map_err(&lost)?;
        let text = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
        if text("connection").is_none_or(|value| value != "close") {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        let instance = text("x-msa-instance").unwrap_or_default();
        let retry_after = head.headers.contains_key("retry-after");
        Ok(Answer { status: head.status, instance, degraded: text("x-degraded"), retry_after })
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }
}

impl Connection {
    async fn open(target: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        let read = Arc::new(AtomicU64::new(0));
        let io = TokioIo::new(Counted { stream, read: read.clone() });
        let (sender, connection) = handshake(io).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender, read })
    }
}

/// A stream that counts what was read from it.
struct Counted {
    stream: TcpStream,
    read: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
