//! One client connection: a request goes out again and again, answers are counted.

use std::io::{self, Read, Write};

use crate::wire::{Wire, content_length, head_end, would_block};

/// Uploads are made of pieces of this.
static FILL: [u8; 256 * 1024] = [b'x'; 256 * 1024];

pub struct Asker {
    pub wire: Wire,
    request: Vec<u8>,
    /// The size of the body behind it, which is not held.
    up: u64,
    written: usize,
    up_left: u64,
    /// The answer's head as far as it came.
    head: Vec<u8>,
    /// Bytes of the answer's body still to come, once its head is known.
    down_left: Option<u64>,
}

/// What came of a connection's turn.
#[derive(Default)]
pub struct Turn {
    /// Whether an answer was complete.
    pub answered: bool,
    /// Bytes of bodies that went up and came down.
    pub bytes: u64,
}

impl Asker {
    pub fn new(wire: Wire, request: Vec<u8>, up: u64) -> Self {
        Self { wire, written: request.len(), request, up, up_left: 0, head: Vec::new(), down_left: None }
    }

    /// Begins the next request.
    pub fn ask(&mut self, turn: &mut Turn) -> io::Result<()> {
        self.written = 0;
        self.up_left = self.up;
        self.write(turn)
    }

    /// Goes on where the socket was full.
    pub fn write(&mut self, turn: &mut Turn) -> io::Result<()> {
        while let Some(left) = self.request.get(self.written..).filter(|left| !left.is_empty()) {
            match self.wire.write(left) {
                Ok(n) => self.written += n,
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        while self.up_left > 0 {
            let piece = usize::try_from(self.up_left).unwrap_or(usize::MAX).min(FILL.len());
            match self.wire.write(&FILL[..piece]) {
                Ok(n) => {
                    self.up_left -= n as u64;
                    turn.bytes += n as u64;
                }
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads until an answer is complete or nothing more is there.
    pub fn read(&mut self, turn: &mut Turn) -> io::Result<()> {
        let mut buf = [0; 8192];
        loop {
            let got = match self.down_left {
                Some(left) => self.wire.discard(left),
                None => self.wire.read(&mut buf),
            };
            let got = match got {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before an answer")),
                Ok(got) => got,
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let (length, came) = match self.down_left {
                Some(left) => (left, got as u64),
                None => match self.take_head(&buf[..got])? {
                    Some(found) => found,
                    None => continue,
                },
            };
            let left = length.checked_sub(came).ok_or_else(|| io::Error::other("more came than was announced"))?;
            turn.bytes += came;
            self.down_left = (left > 0).then_some(left);
            if left == 0 {
                turn.answered = true;
                return Ok(());
            }
        }
    }

    /// The body's length, and how much of it came along, once the head is complete.
    fn take_head(&mut self, bytes: &[u8]) -> io::Result<Option<(u64, u64)>> {
        self.head.extend_from_slice(bytes);
        let Some(end) = head_end(&self.head) else { return Ok(None) };
        if !self.head.starts_with(b"HTTP/1.1 200") {
            let shown = String::from_utf8_lossy(&self.head).into_owned();
            return Err(io::Error::other(format!("answered {shown}")));
        }
        let length = content_length(&self.head[..end]).ok_or_else(|| io::Error::other("an answer without length"))?;
        let came = (self.head.len() - end) as u64;
        self.head.clear();
        Ok(Some((length, came)))
    }
}
