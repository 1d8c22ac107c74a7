//! Door 3, for the operator: health, readiness, metrics.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::needs_shim::NeedsShim;
use crate::reload::LastReload;
use crate::serve::{Door, Drain};
use crate::store::Store;
use crate::telemetry::Metrics;

/// What it looks at.
#[derive(Debug)]
pub struct Admin {
    pub metrics: Metrics,
    pub needs_shim: NeedsShim,
    pub store: Arc<Store>,
    pub last_reload: LastReload,
    pub drain: Drain,
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
            _ => (StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        response
    }
}

impl Admin {
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
