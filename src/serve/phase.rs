//! What a connection is doing, as its socket and its requests both see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

pub(super) const IDLING: u8 = 0;
pub(super) const BUSY: u8 = 1;
pub(super) const TUNNEL: u8 = 2;

/// What a connection is doing, shared by its socket and its requests.
#[derive(Clone, Default)]
pub(super) struct Phase(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    requests: AtomicU32,
    /// A write or a flush waits for room: the client is there, only slow.
    write_blocked: AtomicBool,
}

/// One request on its way, until its answer is written or dropped.
pub(super) struct Flight(Phase);

impl Phase {
    pub(super) fn begin(&self) -> Flight {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.state.store(BUSY, Ordering::Relaxed);
        Flight(self.clone())
    }

    pub(super) fn get(&self) -> u8 {
        self.0.state.load(Ordering::Relaxed)
    }

    /// How many requests have come.
    pub(super) fn requests(&self) -> u32 {
        self.0.requests.load(Ordering::Relaxed)
    }

    pub(super) fn note_write(&self, blocked: bool) {
        self.0.write_blocked.store(blocked, Ordering::Relaxed);
    }

    /// A request has come, and its answer is written. (hyper flushes before it waits.)
    pub(super) fn is_answered(&self) -> bool {
        let came = self.requests() > 0;
        came && self.get() == IDLING && !self.is_write_blocked()
    }

    pub(super) fn is_write_blocked(&self) -> bool {
        self.0.write_blocked.load(Ordering::Relaxed)
    }
}

impl Flight {
    /// From now on the connection is no longer HTTP.
    pub(super) fn becomes_a_tunnel(&self) {
        self.0.0.state.store(TUNNEL, Ordering::Relaxed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // A tunnel stays one.
        let state = &self.0.0.state;
        if state.load(Ordering::Relaxed) == BUSY {
            state.store(IDLING, Ordering::Relaxed);
        }
    }
}
