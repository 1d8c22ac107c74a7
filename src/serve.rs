//! Sockets, TLS, hyper, one task per connection, draining; stamps `now` and peer on a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::matrix::Timestamp;

/// What every request carries in its extensions: when its head was read and who sent it.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub now: Timestamp,
    pub peer: Peer,
}

/// The other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Ip(IpAddr),
    /// A unix socket: whoever may open its file.
    Local,
}

/// The time of day that never runs backwards: the wall clock, but at least as far on as the monotonic clock says
/// since the start, so that a clock set back revives no expired link.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    System { start: Instant, start_wall: u64 },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn system() -> Self {
        Self(Kind::System { start: Instant::now(), start_wall: wall_millis() })
    }

    /// A clock that stands still until `millis` is changed, for tests of lifetimes.
    pub fn manual(millis: Arc<AtomicU64>) -> Self {
        Self(Kind::Manual(millis))
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(match &self.0 {
            Kind::System { start, start_wall } => {
                let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                wall_millis().max(start_wall.saturating_add(elapsed))
            }
            Kind::Manual(millis) => millis.load(Ordering::SeqCst),
        })
    }
}

fn wall_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
