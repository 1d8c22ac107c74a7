//! HTTP/2 from clients, read by hyper: many requests at once on one connection, each of them for the door as one of
//! HTTP/1.1 would be.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::by_hyper::Failed;
use super::connection::Socket;
use super::patience::{HEAD, IDLE, STALLED};
use super::replay::Replay;
use super::{Door, Drain, Peer, Serving, Stamp, Unusual, reading};
use crate::matrix::{Errcode, Refusal};
use crate::wire::{MAX_FIELDS, MAX_HEAD};

/// What a client that knows without asking begins with
/// ([RFC 9113 §3.4](https://www.rfc-editor.org/rfc/rfc9113#section-3.4)).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As many requests at once as nginx and HAProxy allow by default, about.
const MAX_STREAMS: u32 = 100;
/// What a client may send of one body, and of all of them, before the homeserver has taken any.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What of an answer waits for a slow client.
const SEND_BUFFER: usize = 64 * 1024;
/// Requests taken back before this process has even seen them (CVE-2023-44487), and faults of the client's, for which
/// each time something is sent back (CVE-2025-8671). h2 closes the connection on more.
const MAX_RESET: usize = 20;
const MAX_FAULTS: usize = 100;
/// How many more requests may be given up halfway than are answered: each has cost the homeserver a connection.
const MAX_ABANDONED: usize = 100;
/// Answers watched before those that are through are forgotten.
const REMEMBERED: usize = 2 * MAX_STREAMS as usize;
/// How long a client without requests may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(5);
/// A client that lost its network says nothing, and a request of its own may wait for long: it is asked for a sign of
/// life this often, and given so long for it.
const PING_EVERY: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// For one connection, not for the next.
const OF_THE_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

#[derive(Debug, thiserror::Error)]
#[error("too many requests were given up halfway")]
struct Flood;

#[derive(Debug, thiserror::Error)]
#[error("nothing was taken of an answer for too long")]
struct Unread;

/// Reads as much as it takes to know whether a client begins with HTTP/2. `read`: what came.
pub(super) async fn is_begun<S>(io: &mut S, read: &mut Vec<u8>, drain: &Drain) -> io::Result<bool>
where
    S: AsyncRead + Unpin,
{
    let told = async {
        while PREFACE.starts_with(read) && read.len() < PREFACE.len() {
            if io.read_buf(read).await? == 0 {
                break;
            }
        }
        Ok(read.starts_with(PREFACE))
    };
    tokio::select! {
        told = tokio::time::timeout(HEAD, told) => told?,
        () = drain.closing() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// What serves a connection of HTTP/2 at a door.
pub struct Http2<D>(fn(Socket, Vec<u8>, Peer, Arc<D>, Serving) -> Served);

type Served = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>>;

impl<D: Door> Http2<D> {
    /// For a door whose clients may speak it.
    pub const SERVED: Option<Self> =
        Some(Self(|io, read, peer, door, serving| Box::pin(serve(io, read, peer, door, serving))));

    /// To its end. `read`: what was read of it before.
    pub(super) fn serve(&self, io: Socket, read: Vec<u8>, peer: Peer, door: Arc<D>, serving: Serving) -> Served {
        self.0(io, read, peer, door, serving)
    }
}

async fn serve<D: Door>(io: Socket, read: Vec<u8>, peer: Peer, door: Arc<D>, serving: Serving) -> Result<(), Failed> {
    let streams = Arc::new(Streams::new());
    let (clock, counted) = (serving.clock.clone(), Arc::clone(&streams));
    let service = service_fn(move |request| {
        let stamp = Stamp { now: clock.now(), peer };
        answer(Arc::clone(&door), request, stamp, Stream::begin(&counted))
    });
    let (replay, _window) = Replay::new(io, read, Unusual::ForGood);
    let tasks = Tasks { drain: serving.drain.clone(), panics: serving.panics.clone() };
    let mut connection = pin!(settings(tasks).serve_connection(TokioIo::new(replay), service));
    let mut closing = pin!(serving.drain.closing());
    let mut look = pin!(sleep_until(Instant::now() + HEAD));
    let (mut told, mut seen) = (false, 0);
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => return result.map_err(Into::into),
            () = streams.flood.notified() => return Err(Flood.into()),
            () = closing.as_mut(), if !told => told = true,
            () = look.as_mut() => {
                if streams.is_any_unread() {
                    return Err(Unread.into());
                }
                if !streams.were_idle(&mut seen) {
                    look.as_mut().reset(Instant::now() + if told { FAREWELL } else { IDLE });
                    continue;
                }
                if told || seen == 0 {
                    return Ok(());
                }
                told = true;
            }
        }
        // GOAWAY: what is open may finish.
        connection.as_mut().graceful_shutdown();
        look.as_mut().reset(Instant::now() + FAREWELL);
    }
}

fn settings(tasks: Tasks) -> http2::Builder<Tasks> {
    let mut settings = http2::Builder::new(tasks);
    settings
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESET)
        .max_local_error_reset_streams(MAX_FAULTS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG)
        .auto_date_header(false);
    settings
}

async fn answer<D: Door>(
    door: Arc<D>,
    mut request: Request<Incoming>,
    stamp: Stamp,
    stream: Stream,
) -> Result<Response<Tracked<D::Body>>, Infallible> {
    let settled = if request.headers().len() > MAX_FIELDS {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Err(Refusal::new(status, Errcode::MTooLarge, "Too many header fields"))
    } else {
        reading::settle_http2(&mut request).map_err(Refusal::from)
    };
    let mut response = match settled {
        Ok(()) => {
            request.extensions_mut().insert(stamp);
            door.answer(request).await
        }
        Err(refusal) => refusal.into_response().map(D::Body::from),
    };
    for name in OF_THE_HOP {
        response.headers_mut().remove(name);
    }
    Ok(response.map(|body| Tracked { body, stream }))
}

/// The requests of one connection.
struct Streams {
    since: Instant,
    /// Of each answer under way, when its last bytes were handed over; 0 while it is the homeserver that is waited for.
    handed_over: Mutex<Vec<Weak<AtomicU64>>>,
    begun: AtomicUsize,
    open: AtomicUsize,
    /// How many more were given up halfway than were answered.
    abandoned: AtomicUsize,
    flood: Notify,
}

impl Streams {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            handed_over: Mutex::default(),
            begun: AtomicUsize::default(),
            open: AtomicUsize::default(),
            abandoned: AtomicUsize::default(),
            flood: Notify::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn watch(&self, answer: &Arc<AtomicU64>) {
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        if handed_over.len() >= REMEMBERED {
            handed_over.retain(|one| one.strong_count() > 0);
        }
        handed_over.push(Arc::downgrade(answer));
    }

    /// Whether a client takes nothing of an answer, for which it would be enough to say that it wants more.
    fn is_any_unread(&self) -> bool {
        let before = self.now().saturating_sub(u64::try_from(STALLED.as_millis()).unwrap_or(u64::MAX));
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        handed_over.retain(|one| one.strong_count() > 0);
        handed_over.iter().filter_map(Weak::upgrade).any(|at| (1..=before).contains(&at.load(Ordering::Relaxed)))
    }

    /// Whether nothing was asked since the last look, which had `seen` so many requests.
    fn were_idle(&self, seen: &mut usize) -> bool {
        let begun = self.begun.load(Ordering::Relaxed);
        let none_new = std::mem::replace(seen, begun) == begun;
        none_new && self.open.load(Ordering::Relaxed) == 0
    }
}

/// One request, until its answer is through or dropped.
struct Stream {
    all: Arc<Streams>,
    handed_over: Arc<AtomicU64>,
    answered: bool,
}

impl Stream {
    fn begin(all: &Arc<Streams>) -> Self {
        all.begun.fetch_add(1, Ordering::Relaxed);
        all.open.fetch_add(1, Ordering::Relaxed);
        let handed_over = Arc::default();
        all.watch(&handed_over);
        Self { all: Arc::clone(all), handed_over, answered: false }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.all.open.fetch_sub(1, Ordering::Relaxed);
        let abandoned = &self.all.abandoned;
        if self.answered {
            abandoned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |more| more.checked_sub(1)).ok();
        } else if abandoned.fetch_add(1, Ordering::Relaxed) >= MAX_ABANDONED {
            self.all.flood.notify_one();
        }
    }
}

/// An answer's body that knows when it is through.
struct Tracked<B> {
    body: B,
    stream: Stream,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Tracked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        // hyper asks when the client would take more.
        this.stream.handed_over.store(0, Ordering::Relaxed);
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.stream.handed_over.store(this.stream.all.now(), Ordering::Relaxed);
        // hyper asks no further behind trailers, nor once the body says that it is through.
        this.stream.answered = match &frame {
            None | Some(Err(_)) => true,
            Some(Ok(frame)) => frame.is_trailers() || this.body.is_end_stream(),
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs each request as a task in the drain's care. A panic costs one request, and is counted.
#[derive(Clone)]
struct Tasks {
    drain: Drain,
    panics: Counter,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, request: F) {
        let counted = Panic(self.panics.clone());
        self.drain.spawn(async move {
            let _counted = counted;
            request.await;
        });
    }
}

struct Panic(Counter);

impl Drop for Panic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inc();
        }
    }
}
