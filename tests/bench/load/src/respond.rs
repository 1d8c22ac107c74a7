//! The homeserver's place: fixed bytes for every request, and no more reading than to find where it ends.
//!
//! `GET /b/N` is answered with N bytes, `/hold` when somebody asks for `/release`; `/held` tells how many are held.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use mio::net::{TcpListener, UnixListener};
use mio::{Events, Interest, Poll, Registry, Token};

use crate::Outcome;
use crate::arguments::Arguments;
use crate::wire::{Wire, content_length, head_end, would_block};

const TCP: Token = Token(0);
const UNIX: Token = Token(1);
static FILL: [u8; 256 * 1024] = [b'x'; 256 * 1024];

/// As much of a head as old Synapse writes.
const HEAD: &str = "HTTP/1.1 200 OK\r\nServer: Synapse/1.3.1\r\nDate: Mon, 02 Sep 2019 10:00:00 GMT\r\nContent-Type: application/json\r\nCache-Control: no-cache\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: ";

struct Line {
    wire: Wire,
    head: Vec<u8>,
    /// Of the request's body, not yet come.
    up_left: u64,
    asked: Asked,
    /// Of the answer: what is not yet written, then this much filling.
    out: Vec<u8>,
    down_left: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Small,
    Bytes(u64),
    Hold,
    Held,
    Release,
}

struct Responder {
    lines: HashMap<usize, Line>,
    next: usize,
    held: Vec<usize>,
    small: Vec<u8>,
}

pub fn run(arguments: Arguments) -> Outcome {
    let mut poll = Poll::new()?;
    let mut tcp = TcpListener::bind(arguments.text("listen")?.parse()?)?;
    // SAFETY: the descriptor is a listening socket; listening again only lengthens its queue.
    unsafe { libc::listen(tcp.as_raw_fd(), 4096) };
    poll.registry().register(&mut tcp, TCP, Interest::READABLE)?;
    let mut unix = if arguments.has("unix") { Some(UnixListener::bind(arguments.text("unix")?)?) } else { None };
    if let Some(unix) = &mut unix {
        poll.registry().register(unix, UNIX, Interest::READABLE)?;
    }
    println!("ready {}", tcp.local_addr()?);
    let small = format!("{HEAD}200\r\n\r\n{}", "x".repeat(200)).into_bytes();
    let mut responder = Responder { lines: HashMap::new(), next: 2, held: Vec::new(), small };
    let mut events = Events::with_capacity(1024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                TCP => {
                    while let Ok((stream, _)) = tcp.accept() {
                        stream.set_nodelay(true)?;
                        responder.add(poll.registry(), Wire::Tcp(stream))?;
                    }
                }
                UNIX => {
                    while let Some(Ok((stream, _))) = unix.as_ref().map(UnixListener::accept) {
                        responder.add(poll.registry(), Wire::Unix(stream))?;
                    }
                }
                Token(n) => responder.turn(n),
            }
        }
    }
}

impl Responder {
    fn add(&mut self, registry: &Registry, mut wire: Wire) -> io::Result<()> {
        registry.register(&mut wire, Token(self.next), Interest::READABLE | Interest::WRITABLE)?;
        let line = Line { wire, head: Vec::new(), up_left: 0, asked: Asked::Small, out: Vec::new(), down_left: 0 };
        self.lines.insert(self.next, line);
        self.next += 1;
        Ok(())
    }

    /// A connection that breaks is forgotten: its proxy will know.
    fn turn(&mut self, n: usize) {
        let Some(line) = self.lines.get_mut(&n) else { return };
        let mut released = false;
        let lives = line.flush().and_then(|()| {
            while let Some(asked) = line.take()? {
                match asked {
                    Asked::Small => line.write_at_once(&self.small)?,
                    Asked::Bytes(count) => {
                        line.out = format!("{HEAD}{count}\r\n\r\n").into_bytes();
                        line.down_left = count;
                        line.flush()?;
                    }
                    Asked::Hold => self.held.push(n),
                    Asked::Held => {
                        let count = self.held.len().to_string();
                        line.write_at_once(format!("{HEAD}{}\r\n\r\n{count}", count.len()).as_bytes())?;
                    }
                    Asked::Release => {
                        released = true;
                        line.write_at_once(&self.small)?;
                    }
                }
            }
            Ok(())
        });
        if lives.is_err() {
            self.lines.remove(&n);
            self.held.retain(|held| *held != n);
        }
        if released {
            for n in std::mem::take(&mut self.held) {
                let answered = self.lines.get_mut(&n).map(|line| line.write_at_once(&self.small));
                if let Some(Err(_)) = answered {
                    self.lines.remove(&n);
                }
            }
        }
    }
}

impl Line {
    /// The next request that is there to its end; an error when there will be none.
    fn take(&mut self) -> io::Result<Option<Asked>> {
        let mut buf = [0; 16 * 1024];
        loop {
            let got = if self.up_left > 0 { self.wire.discard(self.up_left) } else { self.wire.read(&mut buf) };
            let got = match got {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(error) if would_block(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if self.up_left > 0 {
                self.up_left -= got as u64;
            } else if !self.read_head(&buf[..got])? {
                continue;
            }
            if self.up_left == 0 {
                return Ok(Some(self.asked));
            }
        }
    }

    /// Whether the head is complete.
    fn read_head(&mut self, came: &[u8]) -> io::Result<bool> {
        if !self.head.is_empty() {
            self.head.extend_from_slice(came);
        }
        let bytes = if self.head.is_empty() { came } else { &self.head[..] };
        let Some(end) = head_end(bytes) else {
            if self.head.is_empty() {
                self.head.extend_from_slice(came);
            }
            return Ok(false);
        };
        let length = if bytes.starts_with(b"GET ") { 0 } else { content_length(&bytes[..end]).unwrap_or(0) };
        let body = (bytes.len() - end) as u64;
        self.up_left = length.checked_sub(body).ok_or_else(|| io::Error::other("more came than was announced"))?;
        self.asked = Asked::of(bytes);
        self.head.clear();
        Ok(true)
    }

    fn write_at_once(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.wire.write(bytes)? == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() || self.down_left > 0 {
            let piece = usize::try_from(self.down_left).unwrap_or(usize::MAX).min(FILL.len());
            let bytes = if self.out.is_empty() { &FILL[..piece] } else { &self.out[..] };
            let written = match self.wire.write(bytes) {
                Ok(written) => written,
                Err(error) if would_block(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.out.is_empty() {
                self.down_left -= written as u64;
            } else {
                self.out.drain(..written);
            }
        }
        Ok(())
    }
}

impl Asked {
    fn of(head: &[u8]) -> Self {
        let Some(target) = head.strip_prefix(b"GET /") else { return Self::Small };
        match target {
            [b'b', b'/', ..] => {
                let digits = target[2..].iter().take_while(|byte| byte.is_ascii_digit());
                Self::Bytes(digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
            }
            _ if target.starts_with(b"hold ") => Self::Hold,
            _ if target.starts_with(b"held ") => Self::Held,
            _ if target.starts_with(b"release ") => Self::Release,
            _ => Self::Small,
        }
    }
}
