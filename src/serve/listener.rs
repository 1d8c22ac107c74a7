//! Sockets to listen on, and accepting from them without ever spinning.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use std::net::TcpListener as BoundTcp;
use std::os::unix::net::UnixListener as BoundUnix;

use super::{Clock, Door, Peer, Serving, connection};
use crate::config::{Endpoint, Listen};

/// How long accepting rests when there are no descriptors or no memory left.
const BACK_OFF: Duration = Duration::from_millis(50);
const BACKLOG: i32 = 1024;

/// The sockets of the three doors, and the clock that stamps what comes through them.
#[derive(Debug)]
pub struct Listeners {
    pub clients: Vec<Listener>,
    pub identity: Vec<Listener>,
    pub admin: Vec<Listener>,
    pub clock: Clock,
}

/// Why an endpoint cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {endpoint}")]
pub struct BindError {
    endpoint: String,
    source: io::Error,
}

/// A bound socket, of no runtime yet. A unix socket's file goes with the last of those that share it.
#[derive(Debug)]
pub struct Listener(Bound);

#[derive(Debug)]
enum Bound {
    Tcp(BoundTcp),
    Unix { listener: BoundUnix, file: Arc<SocketFile> },
}

/// A socket that this runtime waits at.
enum Waiting {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: Arc<SocketFile> },
}

#[derive(Debug)]
struct SocketFile(PathBuf);

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listeners {
    /// Binds everything, or says which endpoint would not.
    pub fn bind(listen: &Listen) -> Result<Self, BindError> {
        let all = |endpoints: &[Endpoint], sharing| {
            endpoints.iter().map(|endpoint| Listener::bind_for(endpoint, sharing)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            clients: all(&listen.clients, Sharing::Workers)?,
            identity: all(&listen.identity, Sharing::Nobody)?,
            admin: all(&listen.admin, Sharing::Nobody)?,
            clock: Clock::system(),
        })
    }
}

/// Who else binds the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Nobody,
    /// Our own threads; no other process.
    Workers,
}

impl Listener {
    pub fn bind(endpoint: &Endpoint) -> Result<Self, BindError> {
        Self::bind_for(endpoint, Sharing::Nobody)
    }

    fn bind_for(endpoint: &Endpoint, sharing: Sharing) -> Result<Self, BindError> {
        let (name, bound) = match endpoint {
            Endpoint::Tcp(address) => (address.to_string(), bind_tcp(*address, sharing)),
            Endpoint::Unix(path) => (format!("unix:{}", path.display()), bind_unix(path)),
        };
        bound.map(Self).map_err(|source| BindError { endpoint: name, source })
    }

    /// A TCP socket that is listening already: a test's.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self(Bound::Tcp(listener)))
    }

    /// The address bound, with the port the system chose; `None` for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.0 {
            Bound::Tcp(listener) => listener.local_addr().ok(),
            Bound::Unix { .. } => None,
        }
    }

    /// As the configuration writes it, with the port the system chose.
    pub fn name(&self) -> String {
        match &self.0 {
            Bound::Tcp(_) => self.local_addr().map_or_else(String::new, |address| address.to_string()),
            Bound::Unix { file, .. } => format!("unix:{}", file.0.display()),
        }
    }

    /// Another one of the same address: a socket with a queue of its own where that was asked for at the start.
    pub(super) fn share(&self) -> io::Result<Self> {
        Ok(Self(match &self.0 {
            Bound::Tcp(listener) if SockRef::from(listener).reuse_port()? => {
                Bound::Tcp(listening(listener.local_addr()?, true)?)
            }
            Bound::Tcp(listener) => Bound::Tcp(listener.try_clone()?),
            Bound::Unix { listener, file } => Bound::Unix { listener: listener.try_clone()?, file: Arc::clone(file) },
        }))
    }

    fn wait(self) -> io::Result<Waiting> {
        Ok(match self.0 {
            Bound::Tcp(listener) => Waiting::Tcp(TcpListener::from_std(listener)?),
            Bound::Unix { listener, file } => {
                Waiting::Unix { listener: UnixListener::from_std(listener)?, _file: file }
            }
        })
    }
}

impl Waiting {
    async fn next(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Self::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "cannot remove the socket's file");
        }
    }
}

fn bind_tcp(address: SocketAddr, sharing: Sharing) -> io::Result<Bound> {
    if sharing == Sharing::Workers && address.port() != 0 {
        // Without SO_REUSEPORT, so that a second shim is told that the address is in use and does not share it.
        listening(address, false)?;
    }
    listening(address, sharing == Sharing::Workers).map(Bound::Tcp)
}

fn listening(address: SocketAddr, reuse_port: bool) -> io::Result<BoundTcp> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A file left behind by a process that is gone is replaced; one that somebody answers on is in use.
fn bind_unix(path: &Path) -> io::Result<Bound> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if BlockingUnixStream::connect(path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        fs::remove_file(path)?;
    }
    let listener = BoundUnix::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(Bound::Unix { listener, file: Arc::new(SocketFile(path.to_owned())) })
}

/// Accepts until the drain closes the listener; each connection is a task in the drain's care.
pub(super) async fn accept<D: Door>(listener: Listener, door: Arc<D>, serving: Serving) {
    let listener = match listener.wait() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot wait for connections");
            return;
        }
    };
    let spare = Spare::new();
    let mut complained = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = serving.drain.closing() => return,
            accepted = listener.next() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                spare.refill();
                start(accepted, Seat(Arc::clone(&spare)), Arc::clone(&door), serving.clone());
            }
            // The client gave up before we took it.
            Err(error) if is_of_the_client(&error) => {}
            Err(error) => {
                // Once a second: a full descriptor table makes every accept fail.
                if complained.is_none_or(|at: Instant| at.elapsed() >= Duration::from_secs(1)) {
                    complained = Some(Instant::now());
                    tracing::error!(%error, "cannot accept connections");
                }
                if !spare.give_up() {
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn start<D: Door>(accepted: Accepted, seat: Seat, door: Arc<D>, serving: Serving) {
    let drain = serving.drain.clone();
    match accepted {
        Accepted::Tcp(stream, peer) => {
            if let Err(error) = tune(&stream) {
                tracing::debug!(%error, "cannot set socket options");
            }
            let peer = Peer::Ip(peer.ip().to_canonical());
            drain.spawn(connection::serve(seat, Either::Left(stream), peer, door, serving));
        }
        Accepted::Unix(stream) => {
            drain.spawn(connection::serve(seat, Either::Right(stream), Peer::Local, door, serving));
        }
    }
}

/// No Nagle; and keep-alive probes, since a client that lost its network sends no FIN and its long-poll would stay.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if stream.peer_addr()?.ip().is_loopback() {
        // Pacing, as bbr does it, costs 40 % where there is no network. A kernel without reno keeps its own.
        SockRef::from(stream).set_tcp_congestion(b"reno").ok();
    }
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// One descriptor that a door keeps in reserve: with none left it is given up to take one more connection, so that every
/// door, the health check among them, still answers somebody.
#[cfg_attr(test, derive(Default))]
struct Spare(Mutex<Option<std::net::UdpSocket>>);

impl Spare {
    fn new() -> Arc<Self> {
        let spare = Self(Mutex::default());
        spare.refill();
        Arc::new(spare)
    }

    fn refill(&self) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_none() {
            *spare = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok();
        }
    }

    /// Whether there was one to give up.
    fn give_up(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}

/// Where one connection sits. What it leaves is its own door's again at once: the crowd before another door would take it.
#[cfg_attr(test, derive(Default))]
pub(super) struct Seat(Arc<Spare>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.refill();
    }
}
