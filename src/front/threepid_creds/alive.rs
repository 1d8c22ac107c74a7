//! The requests of this process that hold a session, or wait to: a hold that is kept for none of them is a dead one's.

use std::sync::Arc;
use std::time::Duration;

use dashmap::{DashMap, DashSet};

use crate::matrix::{Refusal, Sid};
use crate::telemetry::RequestId;

/// How many requests may be here with one session. Each that waits looks again and again, and a client has one or two.
const AT_ONCE: usize = 16;

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Alive(Arc<All>);

#[derive(Debug, Default)]
struct All {
    holders: DashSet<RequestId>,
    with: DashMap<Sid, usize>,
}

/// One of them, until it has told the store what became of the session.
#[derive(Debug)]
pub(super) struct Living {
    pub(super) holder: RequestId,
    sid: Sid,
    alive: Alive,
}

impl Alive {
    /// `sid`: the session that the request is about.
    pub(super) fn enter(&self, holder: RequestId, sid: &Sid) -> Result<Living, Refusal> {
        let mut with = self.0.with.entry(sid.clone()).or_default();
        if *with >= AT_ONCE {
            return Err(Refusal::limited(Duration::from_secs(1)));
        }
        *with += 1;
        self.0.holders.insert(holder.clone());
        Ok(Living { holder, sid: sid.clone(), alive: self.clone() })
    }

    pub(super) fn has(&self, holder: &RequestId) -> bool {
        self.0.holders.contains(holder)
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.alive.0.holders.remove(&self.holder);
        self.alive.0.with.remove_if_mut(&self.sid, |_, with| {
            *with -= 1;
            *with == 0
        });
    }
}
