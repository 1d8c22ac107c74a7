//! Door 3, for the operator: health, readiness, metrics, and a page that shows how all is.

mod page;
mod plot;
mod status;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::config::Shared;
use crate::matrix::Sid;
use crate::needs_shim::NeedsShim;
use crate::reload::LastReload;
use crate::serve::{Clock, Door, Drain, Listener};
use crate::store::{Key, Store};
use crate::telemetry::{Metrics, Neighbour};
use status::Status;

/// Whoever asks there knows the sid; he learns no address from it.
const SESSIONS: &str = "/sessions/";
/// How long the page waits for neighbours that are looked at for it; it then shows what was known before.
const PATIENCE: Duration = Duration::from_millis(300);

/// What it looks at.
#[derive(Debug)]
pub struct Admin {
    pub config: Shared,
    pub metrics: Metrics,
    pub needs_shim: NeedsShim,
    pub store: Arc<Store>,
    pub last_reload: LastReload,
    pub drain: Drain,
    pub clock: Clock,
    pub places: [Place; 3],
    /// Held while the neighbours are looked at for the page: once at a time, whoever asks.
    pub looking: Arc<Mutex<()>>,
}

/// A door as the page shows it.
#[derive(Debug)]
pub struct Place {
    pub name: &'static str,
    pub addresses: Vec<String>,
    pub tls: bool,
    pub open: Gauge<i64, AtomicI64>,
}

impl Place {
    pub fn of(name: &'static str, listeners: &[Listener], tls: bool, open: &Gauge<i64, AtomicI64>) -> Self {
        Self { name, addresses: listeners.iter().map(Listener::name).collect(), tls, open: open.clone() }
    }
}

impl Door for Admin {
    type Body = Full<Bytes>;

    async fn answer(&self, request: Request<Incoming>) -> Response<Self::Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return nothing_here();
        }
        match request.uri().path() {
            "/healthz" => plain(StatusCode::OK, "alive\n"),
            "/readyz" => self.ready().await,
            // A scraper calls us by any name, and no number is anybody's.
            "/metrics" => match self.metrics.render() {
                Ok(text) => plain(StatusCode::OK, text),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
            },
            path @ ("/" | "/status") => {
                if !self.is_called_by_name(&request) {
                    return plain(StatusCode::MISDIRECTED_REQUEST, page::NOT_OURS);
                }
                self.look().await;
                let status = Status::of(self);
                if path == "/" { page::html(&status) } else { page::json(&status) }
            }
            path if path.starts_with(SESSIONS) && !self.is_called_by_name(&request) => {
                plain(StatusCode::MISDIRECTED_REQUEST, page::NOT_OURS)
            }
            path if path.starts_with(SESSIONS) => self.session(path).await,
            _ => nothing_here(),
        }
    }
}

impl Admin {
    fn is_called_by_name(&self, request: &Request<Incoming>) -> bool {
        page::is_ours(request.headers().get(header::HOST).map(HeaderValue::as_bytes), &self.config.load())
    }

    /// Looks at the neighbours that can be looked at without harm; the others are known as of their last use.
    async fn look(&self) {
        let Ok(turn) = Arc::clone(&self.looking).try_lock_owned() else { return };
        let (needs_shim, store, metrics) = (self.needs_shim.clone(), Arc::clone(&self.store), self.metrics.clone());
        let look = tokio::spawn(async move {
            let (_, store) = tokio::join!(needs_shim.look(), store.look());
            match store {
                Ok(()) => metrics.recent.recovered(Neighbour::Store),
                Err(_) => metrics.recent.failed(Neighbour::Store, "look"),
            }
            drop(turn);
        });
        if timeout(PATIENCE, look).await.is_err() {
            tracing::debug!("a neighbour is slow to answer");
        }
    }

    /// What can be said of a session to somebody who looks for why it does not come to its end.
    async fn session(&self, path: &str) -> Response<Full<Bytes>> {
        let unknown = || plain(StatusCode::NOT_FOUND, "no session has this sid, or it is over and forgotten\n");
        let Some(sid) = path.strip_prefix(SESSIONS).and_then(Sid::parse) else { return unknown() };
        let now = self.clock.now();
        match self.store.get(&Key::session(&sid), now).await {
            Ok(Some(session)) => plain(StatusCode::OK, session.shown(now).to_string()),
            Ok(None) => unknown(),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                plain(StatusCode::SERVICE_UNAVAILABLE, "sessions cannot be read, see the log\n")
            }
        }
    }

    /// Ready: not about to stop, and the homeserver answers. A mail server or a store that is down makes nothing unready,
    /// since all ordinary traffic can go on; nor does a reload that failed, since the configuration before is a good one.
    async fn ready(&self) -> Response<Full<Bytes>> {
        if self.drain.is_draining() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        let (status, text) = match self.needs_shim.look().await {
            Ok(()) if self.needs_shim.get() => (StatusCode::OK, "ready".to_owned()),
            Ok(()) => (StatusCode::OK, "ready; the homeserver has learnt MSC2263 and is left to itself".to_owned()),
            Err(unreachable) => (StatusCode::SERVICE_UNAVAILABLE, unreachable.to_string()),
        };
        let reload = match self.last_reload.faults() {
            0 => String::new(),
            1 => "; configuration not reloaded: 1 fault, see the log".to_owned(),
            faults => format!("; configuration not reloaded: {faults} faults, see the log"),
        };
        let store = if self.store.look().await.is_ok() { "" } else { "; sessions cannot be kept, see the log" };
        plain(status, text + store + &reload + "\n")
    }
}

fn nothing_here() -> Response<Full<Bytes>> {
    plain(StatusCode::NOT_FOUND, "here are /, /status, /healthz, /readyz, /metrics and /sessions/SID\n")
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.into()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
