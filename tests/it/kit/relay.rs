//! A TCP relay with faults, for what signals cannot do: delay, jitter, loss, bandwidth, a cut that no
//! side hears of, half-open connections, resets. It stands between a client and a server on loopback.
//!
//! It works on bytes of a stream, so loss shows as TCP shows it to a program: a chunk that comes a
//! retransmission later, and everything behind it too. A cut holds bytes back and delivers them once it
//! heals, as the kernel's own retransmissions would. Its choices come from a seed, by connection and
//! direction, so a run can be repeated.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes that count as one segment: what a packet of Ethernet carries.
const CHUNK: usize = 1448;
/// Segments on their way in one direction; more are not read, so the sender feels it.
const QUEUE: usize = 256;
/// Time to the first retransmission of a lost segment, Linux's least; each next one takes twice as long.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// What happens to one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direction {
    /// Added to each segment.
    pub delay: Duration,
    /// At most this is added to or taken from the delay, evenly; order is kept.
    pub jitter: Duration,
    /// Share of segments that are lost and sent again, 0 to 1.
    pub loss: f64,
    /// Bytes a second; 0 for no limit.
    pub bandwidth: u64,
    /// Nothing gets through until it heals.
    pub cut: bool,
    /// Share of segments at which the whole connection is reset, 0 to 1.
    pub reset: f64,
}

/// What happens to new and open connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// From the client to the server.
    pub up: Direction,
    /// From the server to the client.
    pub down: Direction,
    /// New connections are reset.
    pub refuse: bool,
}

impl Faults {
    /// The same in both directions.
    pub fn both(direction: Direction) -> Self {
        Self { up: direction, down: direction, refuse: false }
    }

    /// A cable that is cut: both directions hold, and nobody is told.
    pub fn cut() -> Self {
        Self::both(Direction { cut: true, ..Direction::default() })
    }
}

#[derive(Clone, Copy, Debug)]
enum Strike {
    /// RST to both sides.
    Reset,
    /// FIN to both sides.
    Close,
    /// The server's side ends, the client's stays open and is never answered again.
    HalfOpen,
}

/// A relay. Its connections end when it is dropped.
pub struct Relay {
    /// Where clients connect.
    pub addr: SocketAddr,
    faults: Arc<watch::Sender<Faults>>,
    strikes: broadcast::Sender<Strike>,
    opened: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Begins to relay to `server`; `seed` decides every choice.
    pub async fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("its address");
        let faults = Arc::new(watch::Sender::new(Faults::default()));
        let (strikes, _) = broadcast::channel(16);
        let (opened, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let context = Context { faults: faults.clone(), strikes: strikes.clone(), open: open.clone() };
        let task = tokio::spawn(accept(listener, server, seed, context, opened.clone()));
        Self { addr, faults, strikes, opened, open, task }
    }

    /// Sets the faults from now on, also for connections that are open and bytes that are on their way.
    pub fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    /// Removes every fault.
    pub fn heal(&self) {
        self.set(Faults::default());
    }

    /// Resets every open connection.
    pub fn reset(&self) {
        let _ = self.strikes.send(Strike::Reset);
    }

    /// Closes every open connection in both directions, without a reset.
    pub fn close(&self) {
        let _ = self.strikes.send(Strike::Close);
    }

    /// Ends the server's side of every open connection; the client is told nothing.
    pub fn half_open(&self) {
        let _ = self.strikes.send(Strike::HalfOpen);
    }

    /// Returns how many connections there were so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    /// Returns the connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.reset();
    }
}

/// Counts an open connection, however it ends.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What the connections of a relay share.
struct Context {
    faults: Arc<watch::Sender<Faults>>,
    strikes: broadcast::Sender<Strike>,
    open: Arc<AtomicUsize>,
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    seed: u64,
    context: Context,
    opened: Arc<AtomicUsize>,
) {
    for number in 0_u64.. {
        let Ok((client, _)) = listener.accept().await else { return };
        opened.fetch_add(1, Relaxed);
        if context.faults.borrow().refuse {
            abort(&client);
            continue;
        }
        let (faults, strikes) = (context.faults.subscribe(), context.strikes.subscribe());
        let counted = Open::count(&context.open);
        tokio::spawn(async move {
            let _counted = counted;
            connection(client, server, seed.wrapping_add(number.wrapping_mul(2)), faults, strikes).await;
        });
    }
}

async fn connection(
    mut client: TcpStream,
    server: SocketAddr,
    seed: u64,
    faults: watch::Receiver<Faults>,
    mut strikes: broadcast::Receiver<Strike>,
) {
    let Ok(mut server) = TcpStream::connect(server).await else {
        return abort(&client);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let strike = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let up = pump(from_client, to_server, seed, faults.clone(), |faults| faults.up);
        let down = pump(from_server, to_client, seed.wrapping_add(1), faults, |faults| faults.down);
        tokio::select! {
            end = async { tokio::try_join!(up, down) } => if end.is_ok() { return } else { Strike::Reset },
            strike = strikes.recv() => strike.unwrap_or(Strike::Reset),
        }
    };
    match strike {
        Strike::Reset => {
            abort(&client);
            abort(&server);
        }
        Strike::Close => {
            let _ = tokio::join!(client.shutdown(), server.shutdown());
        }
        Strike::HalfOpen => {
            drop(server);
            let swallow = async { while client.read(&mut [0; CHUNK]).await.is_ok_and(|read| read > 0) {} };
            tokio::select! {
                () = swallow => {}
                _ = strikes.recv() => {}
            }
        }
    }
}

/// Makes the close of a stream a reset.
fn abort(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Carries one direction to its end; `Err` if the connection is to be reset.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    seed: u64,
    mut faults: watch::Receiver<Faults>,
    direction: fn(&Faults) -> Direction,
) -> Result<(), ()> {
    let (send, mut queue) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
    let settings = faults.clone();
    let read = async move {
        let mut random = StdRng::seed_from_u64(seed);
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = from.read(&mut chunk).await.map_err(|_| ())?;
            if read == 0 {
                return Ok(());
            }
            let now = direction(&settings.borrow());
            if random.random_bool(now.reset) {
                return Err(());
            }
            let due = Instant::now() + travel(now, &mut random);
            send.send((due, chunk[..read].to_vec())).await.map_err(|_| ())?;
        }
    };
    let write = async move {
        while let Some((due, chunk)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            faults.wait_for(|faults| !direction(faults).cut).await.map_err(|_| ())?;
            let bandwidth = direction(&faults.borrow()).bandwidth;
            if bandwidth > 0 {
                tokio::time::sleep(Duration::from_secs_f64(chunk.len() as f64 / bandwidth as f64)).await;
            }
            to.write_all(&chunk).await.map_err(|_| ())?;
        }
        to.shutdown().await.map_err(|_| ())
    };
    tokio::try_join!(read, write).map(|_| ())
}

/// Returns how long one segment is on its way.
fn travel(direction: Direction, random: &mut StdRng) -> Duration {
    let jitter = direction.jitter.mul_f64(random.random_range(0.0..=2.0));
    let mut time = (direction.delay + jitter).saturating_sub(direction.jitter);
    let mut retransmit = RETRANSMIT;
    while retransmit < Duration::from_mins(1) && random.random_bool(direction.loss) {
        time += retransmit;
        retransmit *= 2;
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::wait_for;

    /// A server that sends everything back.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        addr
    }

    async fn round_trip(stream: &mut TcpStream, bytes: usize) -> std::io::Result<Duration> {
        let begun = Instant::now();
        let sent: Vec<u8> = (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect();
        stream.write_all(&sent).await?;
        let mut back = vec![0; bytes];
        stream.read_exact(&mut back).await?;
        assert_eq!(sent, back);
        Ok(begun.elapsed())
    }

    #[tokio::test]
    async fn a_relay_delays_limits_and_keeps_every_byte_in_order() {
        let relay = Relay::start(echo().await, 1).await;
        let mut stream = TcpStream::connect(relay.addr).await.unwrap();
        round_trip(&mut stream, 100_000).await.unwrap();
        let delay = Duration::from_millis(30);
        relay.set(Faults::both(Direction { delay, jitter: delay / 2, loss: 0.05, ..Direction::default() }));
        assert!(round_trip(&mut stream, 100_000).await.unwrap() >= delay);
        relay.set(Faults {
            down: Direction { bandwidth: 100_000, ..Direction::default() },
            ..Faults::default()
        });
        assert!(round_trip(&mut stream, 20_000).await.unwrap() >= Duration::from_millis(190));
    }

    #[tokio::test]
    async fn a_cut_holds_back_what_it_delivers_when_it_heals() {
        let relay = Relay::start(echo().await, 2).await;
        let mut stream = TcpStream::connect(relay.addr).await.unwrap();
        round_trip(&mut stream, 10).await.unwrap();
        // one way: the question arrives, the answer does not
        relay.set(Faults { down: Direction { cut: true, ..Direction::default() }, ..Faults::default() });
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        let held = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut back)).await;
        assert!(held.is_err());
        relay.heal();
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
    }

    #[tokio::test]
    async fn a_reset_is_heard_and_a_half_open_connection_is_not() {
        let relay = Relay::start(echo().await, 3).await;
        let mut reset = TcpStream::connect(relay.addr).await.unwrap();
        round_trip(&mut reset, 10).await.unwrap();
        relay.reset();
        assert!(reset.read_exact(&mut [0]).await.is_err());
        wait_for("it is gone", || async { (relay.open() == 0).then_some(()) }).await;
        let mut half_open = TcpStream::connect(relay.addr).await.unwrap();
        round_trip(&mut half_open, 10).await.unwrap();
        relay.half_open();
        half_open.write_all(b"hello").await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(100), half_open.read_exact(&mut [0])).await;
        assert!(silent.is_err(), "{silent:?}");
        relay.set(Faults { refuse: true, ..Faults::default() });
        let refused = async { TcpStream::connect(relay.addr).await?.read_exact(&mut [0]).await };
        assert!(refused.await.is_err());
    }

    #[tokio::test]
    async fn the_seed_decides() {
        let direction =
            Direction { delay: RETRANSMIT, jitter: RETRANSMIT, loss: 0.3, ..Direction::default() };
        let times = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            [(); 50].map(|()| travel(direction, &mut random))
        };
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
    }
}
