//! Writes lines to standard error, for the thread of [`super::Writer`]: it may block for ever.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

/// Most bytes of one write, unless a line is longer. Linux does not mix such a write into a pipe with those of another
/// process (`PIPE_BUF`).
const MAX_WRITE: usize = 4096;

/// Returns the length of the lines at the beginning that fit into one write, at least one line.
pub fn whole_lines(lines: &[u8]) -> usize {
    let fits = &lines[..lines.len().min(MAX_WRITE)];
    let end = fits.iter().rposition(|byte| *byte == b'\n');
    let end = end.or_else(|| lines.iter().position(|byte| *byte == b'\n'));
    end.map_or(lines.len(), |end| end + 1)
}

/// Returns the number of lines.
pub fn count(lines: &[u8]) -> u64 {
    lines.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

/// Where lines are written to.
pub struct Output<F> {
    file: F,
    /// The last line was written in part only.
    torn: bool,
}

impl<F: Write + AsFd> Output<F> {
    pub fn new(file: F) -> Self {
        Self { file, torn: false }
    }

    /// Writes lines, and waits for as long as that takes. Returns how many of them were lost.
    pub fn write(&mut self, lines: &[u8]) -> u64 {
        if self.torn {
            // the next line begins a line
            self.torn = self.try_write(b"\n") == 0;
        }
        let written = self.try_write(lines);
        if let Some(last) = lines[..written].last() {
            self.torn = *last != b'\n';
        }
        count(&lines[written..])
    }

    /// Writes until all is written or writing fails; returns how much was written.
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.file.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(length) => written += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // whoever shares this pipe or terminal has made it non-blocking
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut room = [PollFd::new(&self.file, PollFlags::OUT)];
                    if poll(&mut room, None).is_err_and(|error| error != rustix::io::Errno::INTR) {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_holds_whole_lines() {
        assert_eq!(whole_lines(b"one\ntwo\n"), 8);
        let long = [vec![b'x'; 5000], vec![b'\n'; 2]].concat();
        assert_eq!(whole_lines(&long), 5001);
        let many = b"0123456789\n".repeat(1000);
        assert_eq!(whole_lines(&many), MAX_WRITE / 11 * 11);
        assert_eq!((count(&many), count(b""), count(b"part")), (1000, 0, 0));
    }
}
