//! Sockets to the homeserver for requests that go on as bytes, and those of one worker that wait for the next.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::{Homeserver, IDLE, MAX_IDLE, Unanswered};
use crate::config::HomeserverAddress;
use crate::reach::reach;

/// One connection to the homeserver.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Idle connections of one worker, the one used last on top.
#[derive(Debug)]
pub struct Sockets {
    homeserver: Homeserver,
    idle: Mutex<Vec<(Socket, Instant)>>,
}

impl Socket {
    /// A name is resolved anew for every connection, and its addresses tried in turn.
    pub(super) async fn connect(address: &HomeserverAddress, until: tokio::time::Instant) -> io::Result<Self> {
        match address {
            HomeserverAddress::Tcp { host, port } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let stream = reach(lookup_host((bare, *port)).await?.collect(), until).await?;
                if stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
                    // Pacing, as bbr does it, costs 40 % where there is no network. A kernel without reno keeps its own.
                    SockRef::from(&stream).set_tcp_congestion(b"reno").ok();
                }
                Ok(Self::Tcp(stream))
            }
            HomeserverAddress::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
        }
    }

    /// Neither closed by the homeserver while it waited, nor with bytes that nobody asked for.
    fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Sockets {
    pub fn new(homeserver: Homeserver) -> Self {
        Self { homeserver, idle: Mutex::default() }
    }

    /// A connection that can be used again.
    pub fn take(&self) -> Option<Socket> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while let Some((socket, since)) = idle.pop() {
            if now.duration_since(since) >= IDLE {
                // All below are older.
                idle.clear();
            } else if socket.is_quiet() {
                return Some(socket);
            }
        }
        None
    }

    /// Keeps one whose last exchange is over on both sides.
    pub fn put(&self, socket: Socket) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // The lowest waits longest: a burst of connections goes as it came, one by one.
        if idle.first().is_some_and(|(_, since)| now.duration_since(*since) >= IDLE) {
            idle.remove(0);
        }
        if idle.len() < MAX_IDLE {
            idle.push((socket, now));
        }
    }

    /// A fresh one.
    pub async fn connect(&self) -> Result<Socket, Unanswered> {
        self.homeserver.0.connect().await
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets keep nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
