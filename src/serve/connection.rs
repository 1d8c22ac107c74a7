//! One connection: TLS if any, then its door and hyper by turns.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;

use super::by_hyper::{self, Failed};
use super::listener::Seat;
use super::patience::Patient;
use super::phase::Phase;
use super::{Carrying, Crowd, Door, Peer, Serving, Tls, Unusual, http2, is_trusted, proxy_protocol, tls};

/// A TLS handshake is two round trips; who needs longer is not coming.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to take the last of its answer.
const FAREWELL: Duration = Duration::from_secs(5);

/// As it was accepted.
pub(super) type Bare = Either<TcpStream, UnixStream>;
/// As requests are read from it. One type for all, so that what reads them is compiled once for each door. Boxed: TLS is a
/// kilobyte, which would be in each of the futures that a socket is handed to.
pub(super) type Socket = Either<Bare, Box<TlsStream<Bare>>>;

/// Serves one connection to its end. A panic in it stays in its task and is counted. The seat is the first argument: of
/// them all it is dropped last.
pub(super) async fn serve<D: Door>(_seat: Seat, mut io: Bare, mut peer: Peer, door: Arc<D>, serving: Serving) {
    let _counted = Counted::new(&serving);
    let Ok(_place) = serving.crowd.as_ref().map(Crowd::enter).transpose() else { return };
    if let Some(proxies) = &serving.announced_by {
        if !is_trusted(peer, proxies) {
            tracing::debug!(?peer, "connection past the proxies closed");
            return;
        }
        // The address told is the client's from here on: it is trusted only where it is a trusted proxy's itself.
        match Box::pin(proxy_protocol::read(&mut io)).await {
            Ok(Some(client)) => peer = Peer::Ip(client),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, ?peer, "connection closed");
                return;
            }
        }
    }
    let Ok(_place_of_peer) = serving.crowd.as_ref().map(|crowd| crowd.enter_as(peer)).transpose() else { return };
    let result = match &serving.tls {
        None => in_clear(Either::Left(io), peer, door, &serving).await,
        Some(tls) => in_tls(tls, io, peer, door, &serving).await,
    };
    if let Err(error) = result {
        tracing::debug!(error = &*error, "connection ended");
    }
}

async fn in_tls<D: Door>(tls: &Tls, io: Bare, peer: Peer, door: Arc<D>, serving: &Serving) -> Result<(), Failed> {
    let io = match Box::pin(tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(io))).await {
        Ok(accepted) => Box::new(accepted?),
        Err(_elapsed) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    };
    let is_http2 = io.get_ref().1.alpn_protocol() == Some(tls::HTTP2);
    let io = Either::Right(io);
    if let Some(http2) = D::HTTP2.filter(|_| is_http2) {
        let ended = elsewhere(serving, http2.serve(io, Vec::new(), peer, door, serving.clone())).await;
        return ended.unwrap_or(Ok(()));
    }
    http1(io, Vec::new(), peer, door, serving).await
}

async fn in_clear<D: Door>(mut io: Socket, peer: Peer, door: Arc<D>, serving: &Serving) -> Result<(), Failed> {
    let mut read = Vec::new();
    if let Some(http2) = D::HTTP2.filter(|_| serving.h2c)
        && Box::pin(http2::is_begun(&mut io, &mut read, &serving.drain)).await?
    {
        let ended = elsewhere(serving, http2.serve(io, read, peer, door, serving.clone())).await;
        return ended.unwrap_or(Ok(()));
    }
    http1(io, read, peer, door, serving).await
}

/// Requests that the door does not carry itself are hyper's, one by one or with all that follow.
async fn http1<D: Door>(
    mut io: Socket,
    mut read: Vec<u8>,
    peer: Peer,
    door: Arc<D>,
    serving: &Serving,
) -> Result<(), Failed> {
    let mut carrying = Carrying::new(peer, &serving.drain);
    while let Some(unusual) = door.carry(&mut io, &mut read, &mut carrying).await {
        // Boxed where it is made: what a future holds by name has a place in it for as long as it lives.
        let by_hyper = Box::pin(by_hyper::serve(io, read, unusual, peer, Arc::clone(&door), serving.clone()));
        let ended = match unusual {
            // Going to another thread and back costs more than such a request: what takes long, sending a message and
            // TLS with its server, is the identity door's.
            Unusual::Once(_) => by_hyper.await?,
            Unusual::ForGood => elsewhere(serving, by_hyper).await.transpose()?.flatten(),
        };
        match ended {
            Some(more) => {
                (io, read) = more;
                carrying.goes_on();
            }
            None => return Ok(()),
        }
    }
    // One that does not read would have TLS wait for ever to say goodbye.
    Box::pin(async move { tokio::time::timeout(FAREWELL, Patient::new(io, Phase::default()).shutdown()).await })
        .await??;
    Ok(())
}

/// Runs what hyper does where it belongs; `None` when it was cancelled there.
async fn elsewhere<F>(serving: &Serving, by_hyper: Pin<Box<F>>) -> Option<F::Output>
where
    F: Future<Output: Send + 'static> + Send + ?Sized + 'static,
{
    let Some(elsewhere) = &serving.elsewhere else { return Some(by_hyper.await) };
    match AbortOnDropHandle::new(elsewhere.spawn(by_hyper)).await {
        Ok(ended) => Some(ended),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => None,
        },
    }
}

/// Counts a connection for as long as it lives, and the panic if it ends by one.
struct Counted<'a>(&'a Serving);

impl<'a> Counted<'a> {
    fn new(serving: &'a Serving) -> Self {
        serving.open.inc();
        Self(serving)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.open.dec();
        if std::thread::panicking() {
            self.0.panics.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::config::Shutdown;
    use crate::serve::{Certified, Clock, Drain};

    struct Nobody;

    impl Door for Nobody {
        type Body = Full<Bytes>;

        async fn answer(&self, _: Request<Incoming>) -> Response<Self::Body> {
            Response::default()
        }
    }

    fn in_tls() -> Serving {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        Serving {
            clock: Clock::system(),
            tls: Some(Tls::new(Certified { config: Arc::new(config), ends: None })),
            h2c: false,
            announced_by: None,
            drain: Drain::new(&Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(3600) }),
            leaving: None,
            crowd: None,
            open: Gauge::default(),
            panics: Counter::default(),
            elsewhere: None,
        }
    }

    /// S§5.24. However it comes, or not: no client holds a connection for longer without having shaken hands.
    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_does_not_end_is_given_its_time_once() {
        // The head of a record of 16 kB, and what it says to be.
        let half: &[u8] = &[22, 3, 1, 64, 0, 1, 0];
        for (what, first, every) in [("nothing", &[] as &[u8], None), ("half", half, None), ("bytes", half, Some(1))] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (io, peer) = listener.accept().await.unwrap();
            let client = tokio::spawn(async move {
                client.write_all(first).await.unwrap();
                while let Some(seconds) = every
                    && client.write_all(&[0]).await.is_ok()
                {
                    sleep(Duration::from_secs(seconds)).await;
                }
                client.read_to_end(&mut Vec::new()).await.ok();
            });
            let (serving, began) = (in_tls(), Instant::now());
            let open = serving.open.clone();
            let served = serve(Seat::default(), Either::Left(io), Peer::Ip(peer.ip()), Arc::new(Nobody), serving);
            timeout(Duration::from_secs(3600), served).await.unwrap_or_else(|_| panic!("{what} is waited for"));
            let took = began.elapsed();
            assert!(took >= HANDSHAKE && took < HANDSHAKE + Duration::from_millis(50), "{what}: {took:?}");
            assert_eq!(open.get(), 0);
            client.await.unwrap();
        }
    }
}
