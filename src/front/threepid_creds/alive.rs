//! The requests of this process that hold a session, or wait to: a hold that is kept for none of them is a dead one's.

use std::sync::Arc;

use dashmap::DashMap;

use crate::telemetry::RequestId;

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Alive(Arc<DashMap<String, ()>>);

/// One of them, until it has told the store what became of the session.
#[derive(Debug)]
pub(super) struct Living {
    pub(super) holder: RequestId,
    alive: Alive,
}

impl Alive {
    pub(super) fn enter(&self, holder: RequestId) -> Living {
        self.0.insert(holder.as_str().to_owned(), ());
        Living { holder, alive: self.clone() }
    }

    pub(super) fn has(&self, holder: &RequestId) -> bool {
        self.0.contains_key(holder.as_str())
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.alive.0.remove(self.holder.as_str());
    }
}
