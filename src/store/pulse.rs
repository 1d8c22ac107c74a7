//! Which of the processes that share a store live: each counts on under its own name, and one whose count stands still while
//! somebody watches is dead. What it held is then waited for no longer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::{Change, Key, Record, Store, StoreError};
use crate::matrix::Timestamp;
use crate::telemetry::{Process, RequestId};

/// Between two counts of a living process.
pub const BEAT: Duration = Duration::from_secs(2);
/// How long a count stands still before its process is dead: three beats missed. No clock of another machine is asked.
const STILL: Duration = Duration::from_secs(7);
/// Between two looks at a count.
const LOOK: Duration = Duration::from_secs(1);
/// How long a count is kept, so that it can be seen standing still: longer than anything that its process held.
const KEPT: Duration = Duration::from_secs(600);

/// How often a process has counted so far.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Beat {
    count: u32,
}

impl Record for Beat {
    const KIND: &'static str = "process";
}

/// This process, as the others see it.
#[derive(Debug)]
pub(super) struct Pulse {
    process: Process,
    count: AtomicU32,
}

impl Pulse {
    pub(super) fn of(process: Process) -> Self {
        Self { process, count: AtomicU32::default() }
    }
}

/// Between two looks whether what somebody waits for is there, at first and at most.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_AT_MOST: Duration = Duration::from_millis(200);

/// What somebody has seen of other processes while waiting for what they hold.
#[derive(Debug, Default)]
pub struct Watch(HashMap<Process, Seen>);

/// Somebody who waits for what another request holds, and looks again less and less often.
#[derive(Debug)]
pub struct Wait {
    watch: Watch,
    pause: Duration,
    dead: Option<RequestId>,
}

#[derive(Debug)]
struct Seen {
    count: u32,
    since: Instant,
    looked: Instant,
}

impl Seen {
    fn is_alive(&self) -> bool {
        self.looked < self.since + STILL
    }
}

impl Default for Wait {
    fn default() -> Self {
        Self { watch: Watch::default(), pause: AGAIN, dead: None }
    }
}

impl Wait {
    /// Who was waited for and holds nothing any more, since its process is dead.
    pub fn dead(&self) -> Option<&RequestId> {
        self.dead.as_ref()
    }

    /// Until it is time to look whether `holder` still has it, or it is known to be dead.
    pub async fn a_while(&mut self, store: &Store, holder: RequestId, now: Timestamp) -> Result<(), StoreError> {
        if store.lives(&holder, &mut self.watch, now).await? {
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(AGAIN_AT_MOST);
        } else {
            self.dead = Some(holder);
        }
        Ok(())
    }
}

impl Store {
    /// What this process is called where it shares a store.
    pub fn process(&self) -> Process {
        self.pulse.process
    }

    /// Counts on, every [`BEAT`]. A store that is one process's own needs none.
    pub async fn beat(&self, now: Timestamp) -> Result<(), StoreError> {
        if !self.is_shared() {
            return Ok(());
        }
        let count = self.pulse.count.fetch_add(1, Ordering::Relaxed);
        let beat = |_| (Change::Put { record: Beat { count }, until: now.after(KEPT) }, ());
        self.update(&key(self.pulse.process), now, beat).await
    }

    /// Whether the process of this request is alive.
    pub async fn lives(&self, request: &RequestId, watch: &mut Watch, now: Timestamp) -> Result<bool, StoreError> {
        let Some(process) = request.process() else { return Ok(true) };
        self.is_alive(process, watch, now).await
    }

    /// As far as `watch` can tell. One that never counted is of a version that does not; what it holds ends by itself.
    pub async fn is_alive(&self, process: Process, watch: &mut Watch, now: Timestamp) -> Result<bool, StoreError> {
        if !self.is_shared() || process == self.process() {
            return Ok(true);
        }
        let at = Instant::now();
        if let Some(seen) = watch.0.get(&process).filter(|seen| at < seen.looked + LOOK) {
            return Ok(seen.is_alive());
        }
        let Some(Beat { count }) = self.get(&key(process), now).await? else { return Ok(true) };
        let seen = watch.0.entry(process).or_insert(Seen { count, since: at, looked: at });
        if seen.count != count {
            *seen = Seen { count, since: at, looked: at };
        }
        seen.looked = at;
        Ok(seen.is_alive())
    }
}

fn key(process: Process) -> Key<Beat> {
    Key::new(process)
}
