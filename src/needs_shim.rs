//! Whether the homeserver still demands `id_server`: asked at the start and every minute, unless the operator says it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};

use crate::config;
use crate::front::forward::Forward;
use crate::front::versions;
use crate::telemetry::{Metrics, Neighbour};

/// Between two looks at `/versions`.
pub const EVERY: Duration = Duration::from_secs(60);
/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: usize = 1024 * 1024;

/// What is known of it. Until a homeserver has shown that it has learnt MSC2263 (it shows
/// `m.require_identity_server: false` or lists exactly `r0.6.0`), it is an old one.
#[derive(Debug, Clone)]
pub struct NeedsShim {
    known: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    /// The number of the look that `known` comes from.
    known_from: Arc<Mutex<u64>>,
    said: config::NeedsShim,
    forward: Forward,
    metrics: Metrics,
}

/// The homeserver did not answer `/versions` with 200 in time.
#[derive(Debug, thiserror::Error)]
#[error("the homeserver does not answer GET /_matrix/client/versions")]
pub struct Unreachable;

impl NeedsShim {
    pub fn new(said: config::NeedsShim, forward: Forward, metrics: Metrics) -> Self {
        let needs = said != config::NeedsShim::No;
        metrics.homeserver_needs_shim.set(needs.into());
        Self {
            known: Arc::new(AtomicBool::new(needs)),
            looks: Arc::default(),
            known_from: Arc::default(),
            said,
            forward,
            metrics,
        }
    }

    pub fn get(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Asks the homeserver, and remembers what its answer shows.
    pub async fn look(&self) -> Result<(), Unreachable> {
        let began = Instant::now();
        let looked = self.ask().await;
        match &looked {
            Ok(()) => self.metrics.recent.worked(Neighbour::Homeserver, Some(began.elapsed())),
            Err(Unreachable) => self.metrics.recent.failed(Neighbour::Homeserver, "no_answer"),
        }
        looked
    }

    async fn ask(&self) -> Result<(), Unreachable> {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        let mut request = Request::new(());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = http::Uri::from_static("/_matrix/client/versions");
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
        let (head, ()) = request.into_parts();
        let asked = tokio::time::timeout(PATIENCE, self.forward.ask(&head, Bytes::new(), ANSWER_LIMIT)).await;
        let answer = asked.ok().and_then(Result::ok).filter(|answer| answer.status() == StatusCode::OK);
        self.metrics.homeserver_up.set(answer.is_some().into());
        let Some(answer) = answer else { return Err(Unreachable) };
        let software = answer.headers().get(header::SERVER).and_then(|said| said.to_str().ok());
        self.metrics.recent.software(software.unwrap_or_default());
        if let (Some(learnt), config::NeedsShim::Auto) = (versions::learnt_msc2263(answer.body()), self.said) {
            self.remember(!learnt, look);
        }
        Ok(())
    }

    /// Looks may overtake each other: the one that began last is believed.
    fn remember(&self, needs: bool, look: u64) {
        let mut known_from = self.known_from.lock().unwrap_or_else(PoisonError::into_inner);
        if look < *known_from {
            return;
        }
        *known_from = look;
        let before = self.known.swap(needs, Ordering::Relaxed);
        self.metrics.homeserver_needs_shim.set(needs.into());
        if before && !needs {
            tracing::warn!(
                "the homeserver has learnt MSC2263: every route is handed over to it; the shim can be removed"
            );
        } else if !before && needs {
            tracing::warn!("the homeserver demands id_server again: the shim's routes are in force");
        }
    }
}
