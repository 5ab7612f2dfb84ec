//! The threads that serve connections. Each has a runtime of its own. A connection stays on one thread, and all that is
//! done for its requests happens there: no request is handed from one thread to another.
//!
//! The first thread is the one that starts the others. It also has the registry, the admin listener, the signals and the
//! drain. It accepts every connection and gives it to the thread with the fewest. Listeners of their own (SO_REUSEPORT)
//! would save that step, but the kernel spreads connections by a hash, without a look at how many a thread has: of four
//! connections to two threads, all are on one thread once in eight times. docs/performance.md has the figures.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Poll, ready};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use prometheus::IntGauge;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::metrics::Metrics;

/// Bytes of a thread's stack, as the first thread has: a future may be polled through many others.
const STACK: usize = 8 * 1024 * 1024;
/// Longest wait for the threads to end.
const END: Duration = Duration::from_secs(1);

/// One thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Thread(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// From 0.
    number: usize,
    runtime: Handle,
    /// Its open connections.
    connections: AtomicUsize,
    /// `server_thread_connections`.
    gauge: Option<IntGauge>,
    /// Questions whether it runs, and how many of them it has answered.
    asked: AtomicU64,
    answered: watch::Sender<u64>,
    /// Cancelled when it ends.
    ended: CancellationToken,
}

/// An open connection of a thread, until this is dropped.
#[derive(Debug)]
pub struct Placed(Thread);

impl Placed {
    /// Returns the runtime of the thread.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        self.0.runtime()
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let thread = &self.0.0;
        thread.connections.fetch_sub(1, Relaxed);
        if let Some(gauge) = &thread.gauge {
            gauge.dec();
        }
    }
}

impl Thread {
    fn new(number: usize, runtime: Handle, gauge: Option<IntGauge>) -> Self {
        let (connections, asked, answered) = (AtomicUsize::new(0), AtomicU64::new(0), watch::Sender::new(0));
        let ended = CancellationToken::new();
        Self(Arc::new(Inner { number, runtime, connections, gauge, asked, answered, ended }))
    }

    fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Returns how many connections it has open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// Counts a connection that it gets.
    fn place(&self) -> Placed {
        self.0.connections.fetch_add(1, Relaxed);
        if let Some(gauge) = &self.0.gauge {
            gauge.inc();
        }
        Placed(self.clone())
    }

    /// Waits until it has run a task. While it does not, it is asked once, however many wait.
    async fn runs(&self) {
        let mut answered = self.0.answered.subscribe();
        let mut asked = self.0.asked.load(Relaxed);
        if *answered.borrow() >= asked {
            asked = self.0.asked.fetch_add(1, Relaxed) + 1;
            let thread = self.clone();
            self.0.runtime.spawn(async move {
                thread.0.answered.send_modify(|answered| *answered = (*answered).max(asked));
            });
        }
        // the sender is not dropped meanwhile
        let _ = answered.wait_for(|answered| *answered >= asked).await;
    }
}

/// Threads that have not run for some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Their numbers.
    pub threads: Vec<usize>,
    /// How long they were waited for.
    pub within: Duration,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.threads.iter().map(usize::to_string).collect();
        write!(f, "thread {} does not run: no answer within {:?}", numbers.join(", "), self.within)
    }
}

impl std::error::Error for Stuck {}

/// All threads of a process that serve.
#[derive(Debug)]
pub struct Threads {
    all: Vec<Thread>,
    stop: CancellationToken,
    /// Those that were started end when this is dropped.
    _stop: DropGuard,
}

impl Threads {
    /// Starts so many threads, this one included; 0 is one for each core that the process may use. Must be called inside a
    /// tokio runtime, which is that of the first thread.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(threads: usize, metrics: &Metrics) -> io::Result<Self> {
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            count => count,
        };
        let stop = CancellationToken::new();
        // before the first thread: if one cannot be made, those before it end
        let guard = stop.clone().drop_guard();
        let mut all = vec![Thread::new(0, Handle::current(), Some(metrics.thread_connections(0)))];
        for number in 1..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let made =
                Thread::new(number, runtime.handle().clone(), Some(metrics.thread_connections(number)));
            let (stop, end) = (stop.clone(), made.0.ended.clone());
            all.push(made);
            let thread = std::thread::Builder::new().name(format!("serve-{number}")).stack_size(STACK);
            thread.spawn(move || {
                let _ended = end.drop_guard();
                runtime.block_on(stop.cancelled());
                // not its end: a lookup of a name may take longer
                runtime.shutdown_background();
            })?;
        }
        Ok(Self { all, stop, _stop: guard })
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Returns how many connections each of them has open.
    pub fn connections(&self) -> impl Iterator<Item = usize> {
        self.all.iter().map(Thread::connections)
    }

    /// Makes a value for each thread; `make` gets its number, from 0, and what it spawns runs there.
    pub fn each<T>(&self, mut make: impl FnMut(usize) -> T) -> PerThread<T> {
        let values = self.all.iter().map(|thread| {
            let _entered = thread.runtime().enter();
            (thread.clone(), make(thread.0.number))
        });
        PerThread { values: values.collect(), next: AtomicUsize::new(0) }
    }

    /// Waits until every thread has run a task.
    ///
    /// # Errors
    /// Which of them have not within `limit`.
    pub async fn check(&self, limit: Duration) -> Result<(), Stuck> {
        // all at once: one that does not run takes no time from those after it
        let checks = self.all.iter().map(|thread| async move {
            let runs = tokio::time::timeout(limit, thread.runs()).await;
            runs.is_err().then_some(thread.0.number)
        });
        let stuck: Vec<_> = join_all(checks).await.into_iter().flatten().collect();
        if stuck.is_empty() { Ok(()) } else { Err(Stuck { threads: stuck, within: limit }) }
    }

    /// Waits until one of the other threads ends before it is stopped. Never returns if there is none.
    pub async fn ended(&self) {
        let ended: Vec<_> = self.others().map(|thread| Box::pin(thread.0.ended.cancelled())).collect();
        if ended.is_empty() {
            return std::future::pending().await;
        }
        select_all(ended).await;
    }

    /// Ends the other threads, and with them whatever still runs there. Waits for them, but not for ever.
    pub async fn stop(&self) {
        self.stop.cancel();
        let all = async {
            for thread in self.others() {
                thread.0.ended.cancelled().await;
            }
        };
        if tokio::time::timeout(END, all).await.is_err() {
            tracing::warn!("a thread does not end, leaving it");
        }
    }

    fn others(&self) -> impl Iterator<Item = &Thread> {
        self.all.iter().skip(1)
    }
}

/// A value for each thread.
#[derive(Debug)]
pub struct PerThread<T> {
    values: Vec<(Thread, T)>,
    /// Where the search for a thread begins, so that threads with equally many connections take turns.
    next: AtomicUsize,
}

impl<T> PerThread<T> {
    /// Returns a value for this thread alone. Must be called inside a tokio runtime.
    #[must_use]
    pub fn here(value: T) -> Self {
        Self { values: vec![(Thread::new(0, Handle::current(), None), value)], next: AtomicUsize::new(0) }
    }

    /// Returns what `change` makes of each value; it gets the number of the thread, and what it spawns runs there.
    #[must_use]
    pub fn map<U>(&self, mut change: impl FnMut(usize, &T) -> U) -> PerThread<U> {
        let values = self.values.iter().map(|(thread, value)| {
            let _entered = thread.runtime().enter();
            (thread.clone(), change(thread.0.number, value))
        });
        PerThread { values: values.collect(), next: AtomicUsize::new(0) }
    }

    /// Returns the value of the first thread.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        self.values().next()
    }

    /// Returns the values, in the order of the threads.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|(_, value)| value)
    }

    /// Returns the thread with the fewest connections, its place and its value; of those with equally many, the next in
    /// turn. One that has ended gets none. There is at least one that has not: this one.
    fn fewest(&self) -> Option<(usize, &Thread, &T)> {
        let first = self.next.load(Relaxed);
        let run = self.values.iter().enumerate().filter(|(_, (thread, _))| !thread.0.ended.is_cancelled());
        let fewest = run.min_by_key(|(at, (thread, _))| (thread.connections(), *at < first));
        fewest.map(|(at, (thread, value))| (at, thread, value))
    }

    /// Polls for a connection to be opened on the thread with the fewest. What `open` makes, such as a socket, belongs to
    /// the runtime of that thread. Nothing is counted before it is open.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn poll_place<C>(
        &self,
        open: impl FnOnce() -> Poll<io::Result<C>>,
    ) -> Poll<io::Result<(C, Placed, &T)>> {
        let Some((at, thread, value)) = self.fewest() else { return Poll::Pending };
        let opened = {
            let _entered = thread.runtime().enter();
            ready!(open())?
        };
        let placed = thread.place();
        self.next.store(at + 1, Relaxed);
        Poll::Ready(Ok((opened, placed, value)))
    }
}

impl<T, E> PerThread<Result<T, E>> {
    /// Returns the values.
    ///
    /// # Errors
    /// The first one.
    pub fn transpose(self) -> Result<PerThread<T>, E> {
        let values = self.values.into_iter().map(|(thread, value)| Ok((thread, value?)));
        Ok(PerThread { values: values.collect::<Result<_, E>>()?, next: self.next })
    }
}

#[cfg(test)]
#[path = "threads_tests.rs"]
mod tests;
