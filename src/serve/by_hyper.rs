//! What a door does not carry itself, read by hyper: a stamp on every request, and the way to the door's answer.

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::connection::Socket;
use super::patience::Patient;
use super::phase::{Flight, Phase};
use super::replay::Replay;
use super::{Door, Drain, Peer, Serving, Stamp, Unusual, reading};
use crate::matrix::Refusal;
use crate::wire::{MAX_FIELDS, MAX_HEAD};

/// What of an answer waits for a slow client, about; by default it is 400 kB and more, for each of them.
const BUFFER: usize = 2 * MAX_HEAD;

pub(super) type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Serves one request or all that come. After one: the socket, and what was read behind it; `None` when it is closed.
pub(super) async fn serve<D: Door>(
    io: Socket,
    read: Vec<u8>,
    unusual: Unusual,
    peer: Peer,
    door: Arc<D>,
    serving: Serving,
) -> Result<Option<(Socket, Vec<u8>)>, Failed> {
    let phase = Phase::default();
    let service = service_fn(|request| {
        let flight = phase.begin();
        let stamp = Stamp { now: serving.clock.now(), peer };
        answer(Arc::clone(&door), request, stamp, &serving, flight)
    });
    let (replay, window) = Replay::new(io, read, unusual);
    let io = TokioIo::new(Patient::new(replay, phase.clone()));
    let connection = http1::Builder::new()
        // `Patient` keeps time, with one timer per connection instead of one per request.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_buf_size(BUFFER)
        .max_headers(MAX_FIELDS)
        .preserve_header_case(true)
        .auto_date_header(false)
        .serve_connection(io, service);
    let mut closing = pin!(serving.drain.closing());
    if unusual == Unusual::ForGood {
        let mut connection = pin!(connection.with_upgrades());
        tokio::select! {
            biased;
            result = connection.as_mut() => return result.map(|()| None).map_err(Into::into),
            () = closing => connection.as_mut().graceful_shutdown(),
        }
        return connection.await.map(|()| None).map_err(Into::into);
    }
    let mut connection = connection;
    let mut told = false;
    let ended = poll_fn(|cx| {
        if !told && closing.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| false)),
            Poll::Pending if window.is_through() && phase.is_answered() => Poll::Ready(Ok(true)),
            Poll::Pending => Poll::Pending,
        }
    });
    if !ended.await? {
        return Ok(None);
    }
    let parts = connection.into_parts();
    // The window let nothing of another request through.
    Ok(parts.read_buf.is_empty().then(|| parts.io.into_inner().into_inner().into_parts()))
}

async fn answer<D: Door>(
    door: Arc<D>,
    mut request: Request<Incoming>,
    stamp: Stamp,
    serving: &Serving,
    flight: Flight,
) -> Result<Response<Tracked<D::Body>>, Infallible> {
    let mut response = match reading::settle(&mut request) {
        Ok(()) => {
            let extensions = request.extensions_mut();
            extensions.insert(stamp);
            if request.headers().contains_key(header::UPGRADE) {
                request.extensions_mut().insert(serving.drain.clone());
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
    if serving.leaving.as_ref().is_some_and(Drain::is_draining) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
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
