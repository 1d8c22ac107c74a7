//! The end in two steps: readiness fails, then listeners close and what is open may finish.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::config::Shutdown;

/// Whether we are on our way out, and how far. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Drain(Arc<Stages>);

struct Stages {
    delay: Duration,
    grace: Duration,
    draining: AtomicBool,
    /// No new connections, no further request on an open one.
    closing: CancellationToken,
    /// Whatever is still open is cut.
    over: CancellationToken,
    open: TaskTracker,
}

impl Drain {
    pub fn new(shutdown: &Shutdown) -> Self {
        Self(Arc::new(Stages {
            delay: shutdown.delay,
            grace: shutdown.grace,
            draining: AtomicBool::new(false),
            closing: CancellationToken::new(),
            over: CancellationToken::new(),
            open: TaskTracker::new(),
        }))
    }

    /// True from the first signal on: readiness fails while requests are still taken.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Goes through all steps and returns when the last connection is closed, after delay and grace at the latest.
    pub async fn begin(&self) {
        let stages = &self.0;
        stages.draining.store(true, Ordering::Relaxed);
        tokio::select! {
            () = tokio::time::sleep(stages.delay) => {}
            () = stages.over.cancelled() => {}
        }
        stages.closing.cancel();
        stages.open.close();
        let finished = async {
            tokio::select! {
                () = stages.open.wait() => {}
                () = stages.over.cancelled() => {}
            }
        };
        if timeout(stages.grace, finished).await.is_err() {
            tracing::warn!(open = stages.open.len(), "grace is over, closing what is still open");
        }
        stages.over.cancel();
        stages.open.wait().await;
    }

    /// Cuts everything now: the second signal.
    pub fn cut(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.closing.cancel();
        self.0.over.cancel();
    }

    /// Resolves when listeners are to close.
    pub async fn closing(&self) {
        self.0.closing.cancelled().await;
    }

    /// Whether they are closed.
    pub(super) fn is_closing(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// As `closing`, on its own.
    pub(super) fn closing_owned(&self) -> WaitForCancellationFutureOwned {
        self.0.closing.clone().cancelled_owned()
    }

    /// Runs a connection or a tunnel in the drain's care: waited for, and dropped when the grace is over.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.0.over.clone();
        self.0.open.spawn(async move {
            tokio::select! {
                biased;
                () = task => {}
                () = over.cancelled() => {}
            }
        });
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("draining", &self.is_draining()).finish_non_exhaustive()
    }
}
