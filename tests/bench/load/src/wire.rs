//! A socket that does not block: TCP, unix, or TLS over TCP.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;

pub enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<(TcpStream, ClientConnection)>),
}

/// One read's worth of what nobody looks at.
const SCRATCH: usize = 256 * 1024;

impl Wire {
    /// Connected, blocking until it is.
    pub fn connect(to: &str, tls: bool) -> io::Result<Self> {
        let mut stream = std::net::TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let session = if tls { Some(crate::tls::handshake(&mut stream)?) } else { None };
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream);
        Ok(match session {
            Some(session) => Self::Tls(Box::new((stream, session))),
            None => Self::Tcp(stream),
        })
    }

    /// Takes up to `n` bytes that nobody wants to see. Over TCP the kernel drops them without a copy.
    pub fn discard(&mut self, n: u64) -> io::Result<usize> {
        if let Self::Tcp(stream) = self {
            let len = usize::try_from(n).unwrap_or(usize::MAX).min(1 << 30);
            // SAFETY: with MSG_TRUNC the kernel writes nothing to the buffer, so a null one of any length is good (tcp(7)).
            let got = unsafe { libc::recv(stream.as_raw_fd(), std::ptr::null_mut(), len, libc::MSG_TRUNC) };
            return usize::try_from(got).map_err(|_| io::Error::last_os_error());
        }
        let mut scratch = [0; SCRATCH];
        let len = usize::try_from(n).unwrap_or(usize::MAX).min(SCRATCH);
        self.read(&mut scratch[..len])
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
            Self::Tls(both) => {
                let (stream, session) = &mut **both;
                loop {
                    match session.reader().read(buf) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        done => return done,
                    }
                    if session.read_tls(stream)? == 0 {
                        return Ok(0);
                    }
                    session.process_new_packets().map_err(io::Error::other)?;
                }
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
            Self::Tls(both) => {
                let (stream, session) = &mut **both;
                let written = session.writer().write(buf)?;
                while session.wants_write() {
                    session.write_tls(stream)?;
                }
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Wire {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interests),
            Self::Unix(stream) => stream.register(registry, token, interests),
            Self::Tls(both) => both.0.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(registry, token, interests),
            Self::Unix(stream) => stream.reregister(registry, token, interests),
            Self::Tls(both) => both.0.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(registry),
            Self::Unix(stream) => stream.deregister(registry),
            Self::Tls(both) => both.0.deregister(registry),
        }
    }
}

pub fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Where a head ends, behind its empty line.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|byte| *byte == b'\r') {
        let at = from + at;
        match bytes.get(at..at + 4) {
            Some(b"\r\n\r\n") => return Some(at + 4),
            Some(_) => from = at + 1,
            None => return None,
        }
    }
    None
}

/// The body's length as a head tells it.
pub fn content_length(head: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"content-length:";
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        let value = name.eq_ignore_ascii_case(NAME).then_some(value)?;
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    })
}
