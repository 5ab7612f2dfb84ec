//! Detects floods of HTTP/2 frames that cost the server work and are not calls: pings and settings (each has
//! to be acknowledged), resets, priorities, window updates, empty data.
//!
//! h2 bounds the memory that such frames take, not the time. So a meter follows the bytes that a connection
//! receives, frame by frame. A connection that sends more such frames than its calls explain ends.

use tokio::time::Instant;

/// A frame's head: length (3 bytes), type, flags, stream (4 bytes). RFC 9113, 4.1.
const HEAD: usize = 9;
/// Bytes before the first frame. RFC 9113, 3.4.
const PREFACE: usize = 24;
/// Frames beyond those that calls explain: in a burst, and per second. An honest peer sends a few keepalive
/// pings, settings and window updates a second.
const CONTROL: (u32, u32) = (1000, 100);
/// Frames that one call explains: clients that measure bandwidth send a ping and window updates with each
/// answer (grpc-go, C core).
const PER_CALL: u32 = 4;
/// Bytes sent that explain one more frame, a window update.
const PER_FRAME: usize = 1024;
/// Resets of calls by a part of the system: in a burst, and per second. A gateway resets a call for every caller that hangs up, so
/// this is far above nghttp2's 1000 and 33. A rapid reset attack (CVE-2023-44487) sends tens of thousands a
/// second.
const RESETS: (u32, u32) = (10_000, 1000);
/// The same by a caller of the gateway, whom nobody knows: nghttp2's default for servers. A page that is left resets
/// what it has asked for, at most as many as one connection carries.
const EDGE_RESETS: (u32, u32) = (1000, 33);

/// A peer sends more frames of a kind than its calls explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a flood of HTTP/2 {0}")]
pub struct Flood(&'static str);

/// A token bucket.
struct Bucket {
    left: u32,
    max: u32,
    per_second: u32,
    filled: Instant,
}

impl Bucket {
    fn new((max, per_second): (u32, u32)) -> Self {
        Self { left: max, max, per_second, filled: Instant::now() }
    }

    fn add(&mut self, tokens: u32) {
        self.left = self.left.saturating_add(tokens).min(self.max);
    }

    /// Takes one token. Returns false if there is none. The clock is read only when the bucket is empty.
    fn take(&mut self) -> bool {
        if self.left == 0 {
            let now = Instant::now();
            let passed = now.duration_since(self.filled).as_micros();
            let earned = passed.saturating_mul(self.per_second.into()) / 1_000_000;
            if earned > 0 {
                self.filled = now;
                self.add(u32::try_from(earned).unwrap_or(u32::MAX));
            }
        }
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

/// Follows what one connection receives.
pub struct Meter {
    /// The head of the next frame, of which the first `have` bytes have arrived.
    head: [u8; HEAD],
    have: usize,
    /// Bytes up to the next head.
    skip: usize,
    /// True once the first frame has begun.
    greeted: bool,
    control: Bucket,
    resets: Bucket,
    /// Bytes sent that have not yet earned a token.
    sent: usize,
}

impl Meter {
    /// Returns the meter of a new connection. At the `edge` the peer is a caller of the gateway, else a part of the system.
    pub fn new(edge: bool) -> Self {
        Self {
            head: [0; HEAD],
            have: 0,
            skip: PREFACE,
            greeted: false,
            control: Bucket::new(CONTROL),
            resets: Bucket::new(if edge { EDGE_RESETS } else { RESETS }),
            sent: 0,
        }
    }

    /// Counts bytes that were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= PER_FRAME {
            self.control.add(u32::try_from(self.sent / PER_FRAME).unwrap_or(u32::MAX));
            self.sent %= PER_FRAME;
        }
    }

    /// Returns true once the peer has said hello and begun its first frame.
    pub const fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Reads bytes that were received, in pieces of any size.
    ///
    /// # Errors
    /// When the peer floods the connection.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            let wanted = (HEAD - self.have).min(bytes.len());
            let (part, rest) = bytes.split_at(wanted);
            if let Some(room) = self.head.get_mut(self.have..self.have + wanted) {
                room.copy_from_slice(part);
            }
            self.have += wanted;
            bytes = rest;
            if self.have == HEAD {
                self.have = 0;
                self.frame()?;
            }
        }
    }

    /// Counts the frame whose head is complete.
    fn frame(&mut self) -> Result<(), Flood> {
        self.greeted = true;
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = usize::try_from(length).unwrap_or(usize::MAX);
        let end_of_stream = flags & 1 != 0;
        let (bucket, name) = match kind {
            0 if length > 0 || end_of_stream => return Ok(()), // h2 limits small ones itself
            1 => {
                self.control.add(PER_CALL);
                return Ok(());
            }
            3 => (&mut self.resets, "resets"),
            0 => (&mut self.control, "empty data"),
            2 => (&mut self.control, "priorities"),
            4 => (&mut self.control, "settings"),
            6 => (&mut self.control, "pings"),
            8 => (&mut self.control, "window updates"),
            9 => (&mut self.control, "continuations"),
            _ => (&mut self.control, "unknown frames"),
        };
        if bucket.take() { Ok(()) } else { Err(Flood(name)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn started() -> Meter {
        let mut meter = Meter::new(false);
        meter.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        meter
    }

    /// Returns how many frames pass before they are a flood.
    fn passing(meter: &mut Meter, kind: u8, payload: &[u8]) -> Option<usize> {
        let frame = frame(kind, 0, payload);
        (0..20_000).find(|_| meter.read(&frame).is_err())
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_flood_ends() {
        let control: [(u8, &[u8]); 7] =
            [(0, &[]), (2, &[0; 8]), (4, &[0; 8]), (6, &[0; 8]), (8, &[0; 8]), (9, &[0; 8]), (200, &[0; 8])];
        for (kind, payload) in control {
            assert_eq!(passing(&mut started(), kind, payload), Some(1000), "kind {kind}");
        }
        assert_eq!(passing(&mut started(), 3, &[0; 4]), Some(10_000), "resets");
        let mut edge = Meter { skip: 0, ..Meter::new(true) };
        assert_eq!(passing(&mut edge, 3, &[0; 4]), Some(1000), "resets of a caller");
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        assert!(matches!(passing(&mut edge, 3, &[0; 4]), Some(330..=331)), "33 a second");
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_back_with_time() {
        let mut meter = started();
        assert_eq!(passing(&mut meter, 6, &[]), Some(1000));
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        assert_eq!(passing(&mut meter, 6, &[]), Some(200));
        tokio::time::advance(std::time::Duration::from_mins(1)).await;
        assert_eq!(passing(&mut meter, 6, &[]), Some(1000), "no more than a burst is saved");
    }

    #[test]
    fn calls_explain_the_frames_beside_them() {
        let mut meter = started();
        let call = [frame(1, 4, &[0; 20]), frame(0, 1, &[0; 50]), frame(6, 0, &[0; 8]), frame(8, 0, &[0; 4])];
        for _ in 0..20_000 {
            meter.read(&call.concat()).unwrap();
        }
        // a long answer is taken with many window updates and no other frame
        for _ in 0..20_000 {
            meter.sent(1024);
            meter.read(&frame(8, 0, &[0; 4])).unwrap();
        }
    }

    #[test]
    fn pieces_of_any_size_read_alike() {
        let ping = frame(6, 0, &[0; 8]);
        let data = frame(0, 0, &[6; 100]); // looks like heads of pings inside
        let bytes = [ping, data].concat().repeat(600);
        for size in [1, 2, 7, 9, 10, 1000, bytes.len()] {
            let mut meter = started();
            for piece in bytes.chunks(size) {
                meter.read(piece).unwrap();
            }
            assert_eq!((meter.control.left, meter.skip, meter.have), (CONTROL.0 - 600, 0, 0), "size {size}");
        }
    }
}
