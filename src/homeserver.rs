//! Kept-alive connections to the homeserver.

mod answer;
mod line;
mod sent;
mod socket;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, Response};
use http_body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::timeout_at;

use crate::config;
use crate::config::HomeserverAddress;
use crate::reach::is_late;

pub use answer::Answer;
pub use sent::{Sent, Wanted};
pub use socket::{Socket, Sockets};

use answer::Lease;
use line::Line;

/// Less than the 60 s after which Twisted closes an idle connection.
const IDLE: Duration = Duration::from_secs(55);
/// Idle connections kept; more than that were a burst.
const MAX_IDLE: usize = 256;
/// Read at once, and the longest head: as on the client's side, where what a slow client does not take has to wait.
const BUFFER: usize = 128 * 1024;
/// As many fields as on the client's side.
const MAX_FIELDS: usize = 200;

/// The homeserver. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Homeserver(Arc<Shared>);

struct Shared {
    address: HomeserverAddress,
    connect_timeout: Duration,
    /// The one used last is on top: the fewer stay in use, the more can grow old and go.
    idle: Mutex<Vec<Idle>>,
    down: AtomicBool,
}

struct Idle {
    sender: SendRequest<Sent>,
    since: Instant,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("cannot connect to the homeserver")]
    Connect(#[source] io::Error),
    #[error("the homeserver did not accept a connection in time")]
    ConnectTimeout,
    #[error("the homeserver closed the connection or sent no valid answer")]
    Broken(#[source] hyper::Error),
}

impl Homeserver {
    pub fn new(homeserver: &config::Homeserver) -> Self {
        Self(Arc::new(Shared {
            address: homeserver.address.clone(),
            connect_timeout: homeserver.connect_timeout,
            idle: Mutex::default(),
            down: AtomicBool::new(false),
        }))
    }

    /// One request, one answer, whose body is still to be read. There is no time limit on the answer.
    ///
    /// On a kept-alive connection that broke before an answer came, what never left us is sent on a fresh one, and so
    /// is a GET, HEAD or OPTIONS without a body, once. Anything else may have been done already.
    pub async fn send(&self, request: Request<Sent>) -> Result<Response<Answer>, Unanswered> {
        let Some(mut sender) = self.0.take() else { return self.send_fresh(request).await };
        let again = repeated(&request);
        match sender.try_send_request(request).await {
            Ok(response) => Ok(self.lease(response, sender)),
            Err(mut failed) => match failed.take_message().or(again.filter(|_| !failed.error().is_parse())) {
                Some(request) => self.send_fresh(request).await,
                None => Err(Unanswered::Broken(failed.into_error())),
            },
        }
    }

    async fn send_fresh(&self, request: Request<Sent>) -> Result<Response<Answer>, Unanswered> {
        let mut sender = handshake(self.0.connect().await?).await?;
        let response = sender.send_request(request).await.map_err(Unanswered::Broken)?;
        Ok(self.lease(response, sender))
    }

    fn lease(&self, response: Response<hyper::body::Incoming>, sender: SendRequest<Sent>) -> Response<Answer> {
        response.map(|body| Answer::new(body, Lease { sender, homeserver: self.clone() }))
    }

    fn put(&self, sender: SendRequest<Sent>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }
}

impl Shared {
    /// The connection used last, if it can be used again. Not yet ready are those whose request is still being
    /// uploaded although its answer has come, and for a moment all that are put back.
    fn take(&self) -> Option<SendRequest<Sent>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let old = idle.partition_point(|idle| idle.since.elapsed() >= IDLE);
        idle.drain(..old);
        loop {
            let at = idle.iter().rposition(|idle| idle.sender.is_closed() || idle.sender.is_ready())?;
            let found = idle.remove(at);
            if found.sender.is_ready() {
                return Some(found.sender);
            }
        }
    }

    async fn connect(&self) -> Result<Socket, Unanswered> {
        let until = tokio::time::Instant::now() + self.connect_timeout;
        let connected = match timeout_at(until, Socket::connect(&self.address, until)).await {
            Ok(Err(error)) if !is_late(&error, until) => Err(Unanswered::Connect(error)),
            Ok(Err(_)) | Err(_) => Err(Unanswered::ConnectTimeout),
            Ok(Ok(socket)) => Ok(socket),
        };
        self.report(connected.as_ref().err());
        connected
    }

    /// Says once that the homeserver cannot be reached, and once that it can be again.
    fn report(&self, error: Option<&Unanswered>) {
        match error {
            Some(error) if !self.down.swap(true, Ordering::Relaxed) => {
                tracing::error!(error = error as &dyn std::error::Error, "the homeserver cannot be reached");
            }
            None if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::Relaxed) => {
                tracing::info!("the homeserver can be reached again");
            }
            Some(_) | None => {}
        }
    }
}

impl fmt::Debug for Homeserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Homeserver").field(&self.0.address).finish()
    }
}

async fn handshake(stream: Socket) -> Result<SendRequest<Sent>, Unanswered> {
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        // Of those that we add.
        .title_case_headers(true)
        .max_headers(MAX_FIELDS)
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(Line::new(stream)))
        .await
        .map_err(Unanswered::Broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "connection to the homeserver ended");
        }
    });
    Ok(sender)
}

/// The same request once more, when it is safe to ask twice.
fn repeated(request: &Request<Sent>) -> Option<Request<Sent>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !safe || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(Sent::empty());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}
