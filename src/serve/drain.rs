//! The end in two steps: readiness fails, then listeners close and what is open may finish, whoever waits for it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
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
    closing: Stage,
    /// Whatever is still open is cut.
    over: Stage,
    open: TaskTracker,
}

impl Drain {
    pub fn new(shutdown: &Shutdown) -> Self {
        Self(Arc::new(Stages {
            delay: shutdown.delay,
            grace: shutdown.grace,
            draining: AtomicBool::new(false),
            closing: Stage::new(),
            over: Stage::new(),
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
        stages.closing.come();
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
        stages.over.come();
        stages.open.wait().await;
    }

    /// Cuts everything now: the second signal.
    pub fn cut(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.closing.come();
        self.0.over.come();
    }

    /// Resolves when listeners are to close.
    pub async fn closing(&self) {
        self.0.closing.cancelled().await;
    }

    /// As `closing`, for one task that asks often.
    pub(super) fn when_closing(&self) -> Once {
        Once::new(&self.0.closing)
    }

    /// Runs a connection or a tunnel in the drain's care: waited for, and dropped when the grace is over.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut over = Once::new(&self.0.over);
        // Pinned inside, it would have two places there: where it came and where it is.
        let mut task = Box::pin(task);
        self.0.open.spawn(async move {
            poll_fn(|cx| match task.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => over.poll(cx),
            })
            .await;
        });
    }
}

/// What has begun and comes to its end, though whoever asked for it may be gone: the end of the process waits for it. Cheap
/// to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Detached(TaskTracker);

impl Detached {
    /// Boxed: a task is a good deal of code for every kind of future, twice, since there are two kinds of runtimes.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let task: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(task);
        self.0.spawn(task)
    }

    /// Waits until nothing is under way, or until then; how many are.
    pub async fn ended(&self, until: Instant) -> usize {
        self.0.close();
        timeout_at(until, self.0.wait()).await.ok();
        self.0.len()
    }
}

/// Something that happens once, as one task waits for it. A cancellation token takes locks that all threads share, so
/// it is asked once; after that its stage is a plain read.
pub(super) struct Once {
    happened: Stage,
    wakes: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// A token, and whether it is cancelled.
#[derive(Clone)]
struct Stage(Arc<(AtomicBool, CancellationToken)>);

impl Stage {
    fn new() -> Self {
        Self(Arc::new((AtomicBool::new(false), CancellationToken::new())))
    }

    fn come(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.cancel();
    }

    fn has_come(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    async fn cancelled(&self) {
        self.0.1.cancelled().await;
    }
}

impl Once {
    fn new(stage: &Stage) -> Self {
        Self { happened: stage.clone(), wakes: None }
    }

    pub(super) fn has_happened(&self) -> bool {
        self.happened.has_come()
    }

    /// The first task that polls it is the one that is woken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wakes.is_none() {
            let wakes = self.wakes.insert(Box::pin(self.happened.0.1.clone().cancelled_owned()));
            if wakes.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        if self.has_happened() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Once").field(&self.has_happened()).finish()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("draining", &self.is_draining()).finish_non_exhaustive()
    }
}
