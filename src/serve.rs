//! Sockets, TLS, hyper, one task per connection, draining; stamps `now` and peer on a request.

mod by_hyper;
mod client_ip;
mod clock;
mod connection;
mod crowd;
mod drain;
mod http2;
mod listener;
mod patience;
mod phase;
mod proxy_protocol;
mod reading;
mod replay;
mod tls;
mod workers;

use std::error::Error;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::matrix::Timestamp;

pub use client_ip::client_ip;
pub(crate) use client_ip::{host, is_trusted};
pub use clock::Clock;
pub use crowd::Crowd;
pub use drain::{Detached, Drain};
pub use http2::Http2;
pub use listener::{BindError, Listener, Listeners};
pub(crate) use patience::{HEAD, IDLE, PATIENCE, STALLED};
pub use reading::{Ambiguous, one_length};
pub use tls::{Certified, Tls, TlsError, ends};
pub use workers::{Workers, WorkersError};

/// What stands behind a socket: one answer for each request, which has one reading only (see `reading`) and carries a
/// [`Stamp`], and when it asks for an upgrade the [`Drain`] that a tunnel has to heed.
pub trait Door: Sized + Send + Sync + 'static {
    /// Who reads HTTP/2 for it, if its clients may speak that. A door without has no such code made for it.
    const HTTP2: Option<Http2<Self>> = None;

    /// `From<Bytes>` is how `serve` itself says no.
    type Body: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + From<Bytes>
        + Send
        + Unpin
        + 'static;

    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Carries requests from socket to socket, as bytes, until one comes that hyper has to read, or nothing more
    /// (`None`). `read`: bytes that came already, and those of the request that is left to hyper.
    fn carry<S>(
        &self,
        io: &mut S,
        read: &mut Vec<u8>,
        carrying: &mut Carrying,
    ) -> impl Future<Output = Option<Unusual>> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let (_, _, _) = (io, read, carrying);
        async { Some(Unusual::ForGood) }
    }
}

/// What hyper is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusual {
    /// One request, of so many bytes with its head.
    Once(u64),
    /// All that comes from here on.
    ForGood,
}

/// What a door that carries has to know of a connection.
#[derive(Debug)]
pub struct Carrying {
    pub peer: Peer,
    /// Nothing has come on this connection.
    new: bool,
    closing: drain::Once,
}

impl Carrying {
    pub(crate) fn new(peer: Peer, drain: &Drain) -> Self {
        Self { peer, new: true, closing: drain.when_closing() }
    }

    /// Hyper has given it back.
    pub(crate) fn goes_on(&mut self) {
        self.new = false;
    }

    /// Whether this is where a connection begins, and not where hyper gave it back.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Whether no further request is to be taken.
    pub fn is_closing(&self) -> bool {
        self.closing.has_happened()
    }

    /// Wakes an idle connection when it is to close.
    pub fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.closing.poll(cx)
    }
}

/// What all connections of one door share.
#[derive(Clone)]
pub struct Serving {
    pub clock: Clock,
    pub tls: Option<Tls>,
    /// Whether HTTP/2 is spoken without TLS, to clients that begin with it.
    pub h2c: bool,
    /// Who has to say before each connection, by the PROXY protocol, whom it comes from. `None`: nobody.
    pub announced_by: Option<Arc<[IpNet]>>,
    pub drain: Drain,
    /// While this one drains, every answer is the last of its connection: none is left idle for a request to come in just when
    /// it is closed, which a homeserver's client does not send again.
    pub leaving: Option<Drain>,
    /// How many may come. `None`: all.
    pub crowd: Option<Crowd>,
    /// Connections open now.
    pub open: Gauge<i64, AtomicI64>,
    /// Connections that ended by a panic.
    pub panics: Counter,
    /// Where hyper runs, if not beside what is carried.
    pub elsewhere: Option<Handle>,
}

/// Serves a door on all its listeners until the drain closes them. Connections live on in the drain's care.
pub async fn serve<D: Door>(listeners: Vec<Listener>, door: Arc<D>, serving: Serving) {
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(listener::accept(listener, Arc::clone(&door), serving.clone()));
    }
    while loops.join_next().await.is_some() {}
}

/// What every request carries in its extensions: when its head was read and who sent it.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub now: Timestamp,
    pub peer: Peer,
}

/// The other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Ip(IpAddr),
    /// A unix socket: whoever may open its file.
    Local,
}
