//! What writes the lines of the log: a bounded queue, and a thread that takes lines from it to standard error.
//!
//! Standard error may block for ever: a pipe that nobody reads, a terminal that is stopped. So nobody who logs waits
//! for it. What does not fit into the queue, and what standard error does not take, is dropped and counted. Once a
//! line gets through again, a line says how many were lost.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::metrics::Metrics;
use super::output::{Output, count, whole_lines};

/// Most bytes that wait to be written, the batch in the writer's hand included: some 4000 lines.
const MAX_QUEUED: usize = 1 << 20;
/// Memory that an empty queue keeps, bytes.
const KEPT: usize = 64 << 10;
/// Longest time that the end of the process waits for the writer.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// Takes lines, and never blocks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Told when the queue is no longer empty.
    filled: Condvar,
    /// Told when everything is written.
    written: Condvar,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines.
    lines: Vec<u8>,
    /// Bytes that the writer has taken and not yet written.
    in_hand: usize,
    /// The writer works on what it has taken.
    busy: bool,
    /// Lines that were lost and that no line has told of yet.
    lost: u64,
}

impl Queue {
    fn is_unwritten(&self) -> bool {
        self.busy || !self.lines.is_empty()
    }
}

/// Writes out the log when it is dropped: at the end of the process, also by a panic.
#[derive(Debug)]
pub struct FlushGuard(Writer);

impl Drop for FlushGuard {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl Writer {
    /// Starts the writer to standard error.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn stderr() -> io::Result<Self> {
        // a copy: unlike std's own, it reports EBADF
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::start(stderr, |lines| tracing::warn!(lines, "log lines were lost"))
    }

    /// Starts a writer to a file. `tell` logs that so many lines were lost.
    fn start(
        file: impl Write + AsFd + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let metrics = Metrics::new().map_err(io::Error::other)?;
        let shared =
            Shared { queue: Mutex::default(), filled: Condvar::new(), written: Condvar::new(), metrics };
        let writer = Self(Arc::new(shared));
        let shared = writer.0.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || shared.run(file, tell))?;
        Ok(writer)
    }

    /// Returns the metrics of the lines that were lost.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits until every line is written, at most half a second. For the end of the process: it blocks the thread.
    pub fn finish(&self) {
        // what is not written by then is lost with the process
        drop(self.0.written.wait_timeout_while(self.0.lock(), FLUSH_LIMIT, |queue| queue.is_unwritten()));
    }

    /// Returns a guard that calls [`Self::finish`] when it is dropped.
    #[must_use]
    pub fn guard(&self) -> FlushGuard {
        FlushGuard(self.clone())
    }

    /// Appends lines to the queue, or drops them.
    fn push(&self, lines: &[u8]) {
        let mut queue = self.0.lock();
        if queue.lines.len() + queue.in_hand + lines.len() > MAX_QUEUED {
            let count = count(lines);
            queue.lost += count;
            self.0.metrics.dropped_full.inc_by(count);
            return;
        }
        queue.lines.extend_from_slice(lines);
        drop(queue);
        self.0.filled.notify_one();
    }
}

/// Each call takes whole lines: tracing-subscriber makes one for each event.
impl Write for &Writer {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.push(lines);
        Ok(lines.len())
    }

    /// As one call: the standard's would make one for each piece of the text, and the thread could write between them.
    fn write_fmt(&mut self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.write_all(text.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes, for as long as the process runs.
    fn run(&self, file: impl Write + AsFd, tell: impl Fn(u64)) {
        let mut out = Output::new(file);
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            let mut through = true;
            let mut rest = batch.as_slice();
            while !rest.is_empty() {
                let (part, later) = rest.split_at(whole_lines(rest));
                let lost = out.write(part);
                through = lost == 0;
                let mut queue = self.lock();
                queue.in_hand -= part.len();
                queue.lost += lost;
                drop(queue);
                self.metrics.dropped_write.inc_by(lost);
                rest = later;
            }
            // not while nothing gets through: that line would be lost as well, and the next one about it
            let lost = if through { std::mem::take(&mut self.lock().lost) } else { 0 };
            if lost > 0 {
                tell(lost);
            }
        }
    }

    /// Waits for lines and takes all of them.
    fn take(&self, batch: &mut Vec<u8>) {
        batch.clear();
        batch.shrink_to(KEPT);
        let mut queue = self.lock();
        queue.busy = false;
        if queue.lines.is_empty() {
            self.written.notify_all();
        }
        while queue.lines.is_empty() {
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.busy = true;
        std::mem::swap(batch, &mut queue.lines);
        queue.in_hand = batch.len();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Instant;

    use super::*;

    fn writer(file: impl Write + AsFd + Send + 'static) -> (Writer, Arc<AtomicU64>) {
        let told = Arc::new(AtomicU64::new(0));
        let tell = told.clone();
        let writer = Writer::start(file, move |lines| {
            tell.fetch_add(lines, Relaxed);
        });
        (writer.unwrap(), told)
    }

    fn pipe() -> (io::PipeReader, File) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, File::from(std::os::fd::OwnedFd::from(writer)))
    }

    /// Waits until every line is written, however busy the machine is.
    fn settle(writer: &Writer) {
        while writer.0.lock().is_unwritten() {
            writer.finish();
        }
    }

    fn log(mut writer: &Writer, line: &str) {
        writer.write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn what_is_logged_is_written_before_the_process_ends() {
        let (mut reader, file) = pipe();
        let (writer, _) = writer(file);
        let lines = (0..100).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat();
        lines.split_inclusive('\n').for_each(|line| log(&writer, line));
        drop(writer.guard());
        let mut read = vec![0; lines.len()];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), lines);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let (mut reader, file) = pipe();
        let (writer, told) = writer(file);
        let line = format!("{}\n", "x".repeat(999));
        let begun = Instant::now();
        for _ in 0..2000 {
            log(&writer, &line);
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        let lost = writer.metrics().dropped_full.get();
        // at least what neither the queue nor the pipe holds, and at most what the queue does not
        assert!((2000 - (1 << 20) / 1000 - 66..=2000 - (1 << 20) / 1000).contains(&lost), "{lost}");
        let begun = Instant::now();
        writer.finish();
        assert!((FLUSH_LIMIT..10 * FLUSH_LIMIT).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        // once it reads, the rest arrives whole, and the loss is told
        let mut read = vec![0; usize::try_from(2000 - lost).unwrap() * 1000];
        reader.read_exact(&mut read).unwrap();
        assert!(read.chunks(1000).all(|read| read == line.as_bytes()));
        settle(&writer);
        assert_eq!((told.load(Relaxed), writer.metrics().dropped_write.get()), (lost, 0));
    }

    /// A disk that takes some bytes, is full for some writes, and then has room again.
    struct Disk {
        null: File,
        room: usize,
        failures: usize,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 && self.failures > 0 {
                self.failures -= 1;
                return Err(ErrorKind::StorageFull.into());
            }
            let length = if self.failures > 0 { bytes.len().min(self.room) } else { bytes.len() };
            self.room = self.room.saturating_sub(length);
            self.taken.lock().unwrap().extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Disk {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.null.as_fd()
        }
    }

    /// What takes nothing until the other end of the channel is gone.
    struct Stuck(File, std::sync::mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.1.recv();
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl AsFd for Stuck {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    #[test]
    fn a_formatted_line_is_queued_whole_or_not_at_all() {
        let (_stuck, until) = std::sync::mpsc::channel();
        let (writer, _) = writer(Stuck(File::open("/dev/null").unwrap(), until));
        let mut writer = &writer;
        let full = vec![b'\n'; MAX_QUEUED];
        // it stays in the queue or in the writer's hand
        writer.0.lock().lines.extend_from_slice(&full[4..]);
        let (service, records) = ("feed", 250);
        writeln!(writer, "{service}: {records} records").unwrap();
        let queue = writer.0.lock();
        assert_eq!((queue.lost, queue.lines.len() + queue.in_hand), (1, MAX_QUEUED - 4));
    }

    #[test]
    fn a_full_disk_costs_lines_and_the_next_one_that_fits_is_a_line_of_its_own() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        // the third line is torn, the fourth finds no room for the end of that, nor for itself
        let disk =
            Disk { null: File::open("/dev/null").unwrap(), room: 10, failures: 3, taken: taken.clone() };
        let (writer, told) = writer(disk);
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            log(&writer, line);
            settle(&writer);
        }
        assert_eq!(
            (writer.metrics().dropped_write.get(), told.load(Relaxed)),
            (2, 0),
            "nothing gets through"
        );
        log(&writer, "five\n");
        settle(&writer);
        assert_eq!(String::from_utf8(taken.lock().unwrap().clone()).unwrap(), "one\ntwo\nth\nfive\n");
        assert_eq!((writer.metrics().dropped_write.get(), told.load(Relaxed)), (2, 2));
    }

    #[test]
    fn a_closed_pipe_costs_every_line() {
        let (reader, file) = pipe();
        let (writer, told) = writer(file);
        drop(reader);
        for _ in 0..3 {
            log(&writer, "one\ntwo\n");
        }
        settle(&writer);
        assert_eq!((writer.metrics().dropped_write.get(), told.load(Relaxed)), (6, 0));
    }
}
