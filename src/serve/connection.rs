//! One connection: TLS if any, hyper, a stamp on every request.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::patience::{Flight, Patient, Phase};
use super::{Door, Drain, Peer, Serving, Stamp, reading};
use crate::matrix::Refusal;

/// A TLS handshake is two round trips; who needs longer is not coming.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest head, in bytes; past it 431. Four times what Twisted takes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most fields in a head; past it 431. hyper's 100 is less than clients behind chatty proxies may need.
pub(super) const MAX_FIELDS: usize = 200;

/// Serves one connection to its end. A panic in it stays in its task and is counted.
pub(super) async fn serve<D, S>(io: S, peer: Peer, door: Arc<D>, serving: Serving)
where
    D: Door,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _counted = Counted::new(&serving);
    let result = match &serving.tls {
        None => http(io, peer, door, &serving).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(io)).await {
            Ok(Ok(io)) => http(io, peer, door, &serving).await,
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        },
    };
    if let Err(error) = result {
        tracing::debug!(error = &*error, "connection ended");
    }
}

async fn http<D, S>(io: S, peer: Peer, door: Arc<D>, serving: &Serving) -> Result<(), Box<dyn std::error::Error>>
where
    D: Door,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let phase = Phase::default();
    let io = TokioIo::new(Patient::new(io, phase.clone()));
    let service = service_fn(|request| {
        let flight = phase.begin();
        let stamp = Stamp { now: serving.clock.now(), peer };
        answer(Arc::clone(&door), request, stamp, &serving.drain, flight)
    });
    let connection = http1::Builder::new()
        // `Patient` keeps time, with one timer per connection instead of one per request.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS)
        .preserve_header_case(true)
        .auto_date_header(false)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        result = connection.as_mut() => return result.map_err(Into::into),
        () = serving.drain.closing() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.map_err(Into::into)
}

async fn answer<D: Door>(
    door: Arc<D>,
    mut request: Request<Incoming>,
    stamp: Stamp,
    drain: &Drain,
    flight: Flight,
) -> Result<Response<Tracked<D::Body>>, Infallible> {
    let response = match reading::settle(&mut request) {
        Ok(()) => {
            let extensions = request.extensions_mut();
            extensions.insert(stamp);
            if request.headers().contains_key(header::UPGRADE) {
                request.extensions_mut().insert(drain.clone());
            }
            door.answer(request).await
        }
        Err(ambiguous) => {
            let mut response = Refusal::from(ambiguous).into_response().map(D::Body::from);
            // Where the next request would begin is as doubtful as this one.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        flight.becomes_a_tunnel();
    }
    Ok(response.map(|body| Tracked { body, _flight: flight }))
}

/// An answer's body that knows when it is through.
struct Tracked<B> {
    body: B,
    _flight: Flight,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tracked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
