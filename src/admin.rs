//! Door 3, for the operator: health, readiness, metrics.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::matrix::Sid;
use crate::needs_shim::NeedsShim;
use crate::reload::LastReload;
use crate::serve::{Clock, Door, Drain};
use crate::store::{Key, Store};
use crate::telemetry::Metrics;

/// Whoever asks there knows the sid; he learns no address from it.
const SESSIONS: &str = "/sessions/";

/// What it looks at.
#[derive(Debug)]
pub struct Admin {
    pub metrics: Metrics,
    pub needs_shim: NeedsShim,
    pub store: Arc<Store>,
    pub last_reload: LastReload,
    pub drain: Drain,
    pub clock: Clock,
}

impl Door for Admin {
    type Body = Full<Bytes>;

    async fn answer(&self, request: Request<Incoming>) -> Response<Self::Body> {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "alive\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => self.ready().await,
            (&Method::GET | &Method::HEAD, "/metrics") => match self.metrics.render() {
                Ok(text) => (StatusCode::OK, text),
                Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n".to_owned()),
            },
            (&Method::GET | &Method::HEAD, path) if path.starts_with(SESSIONS) => self.session(path).await,
            _ => (StatusCode::NOT_FOUND, "here are /healthz, /readyz, /metrics and /sessions/SID\n".to_owned()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }
}

impl Admin {
    /// What can be said of a session to somebody who looks for why it does not come to its end.
    async fn session(&self, path: &str) -> (StatusCode, String) {
        let unknown = (StatusCode::NOT_FOUND, "no session has this sid, or it is over and forgotten\n".to_owned());
        let Some(sid) = path.strip_prefix(SESSIONS).and_then(Sid::parse) else { return unknown };
        let now = self.clock.now();
        match self.store.get(&Key::session(&sid), now).await {
            Ok(Some(session)) => (StatusCode::OK, session.shown(now).to_string()),
            Ok(None) => unknown,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                (StatusCode::SERVICE_UNAVAILABLE, "sessions cannot be read, see the log\n".to_owned())
            }
        }
    }

    /// Ready: not about to stop, and the homeserver answers. A mail server or a store that is down makes nothing unready,
    /// since all ordinary traffic can go on; nor does a reload that failed, since the configuration before is a good one.
    async fn ready(&self) -> (StatusCode, String) {
        if self.drain.is_draining() {
            return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
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
        (status, text + store + &reload + "\n")
    }
}
