//! What the shim is told while it serves: to end, to read its configuration again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::reload;
use crate::supervisor::Supervisor;

/// What `run` is told while it serves. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Signals {
    /// End, when what is open has finished.
    pub drain: CancellationToken,
    /// End at once.
    pub now: CancellationToken,
    /// Read the configuration again.
    pub reload: Arc<Notify>,
    /// Between two looks whether the configuration's files have changed.
    pub look_every: Duration,
    /// Who started us, if it wants to know how we do.
    pub supervisor: Supervisor,
}

impl Default for Signals {
    fn default() -> Self {
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        Self { drain, now, reload: Arc::default(), look_every: reload::EVERY, supervisor: Supervisor::default() }
    }
}
