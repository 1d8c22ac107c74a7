//! The time of day, which a clock that is set back does not take back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::matrix::Timestamp;

/// The time of day: the wall clock, but at least as far on as the monotonic clock says since the start, so that a clock
/// set back revives no expired link. One that ran ahead may be set right.
#[derive(Debug, Clone)]
pub struct Clock {
    /// What the wall clock said at the start.
    start: u64,
    sources: Sources,
}

#[derive(Debug, Clone)]
enum Sources {
    /// The monotonic clock at the start.
    System(Instant),
    Manual {
        wall: Arc<AtomicU64>,
        elapsed: Arc<AtomicU64>,
    },
}

impl Clock {
    pub fn system() -> Self {
        Self { start: wall_millis(), sources: Sources::System(Instant::now()) }
    }

    /// One whose two sources stand still until they are changed, for tests: the wall clock, and what has elapsed since now,
    /// in milliseconds.
    pub fn manual(wall: Arc<AtomicU64>, elapsed: Arc<AtomicU64>) -> Self {
        let start = wall.load(Ordering::SeqCst).saturating_sub(elapsed.load(Ordering::SeqCst));
        Self { start, sources: Sources::Manual { wall, elapsed } }
    }

    pub fn now(&self) -> Timestamp {
        let (wall, elapsed) = match &self.sources {
            Sources::System(start) => (wall_millis(), u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)),
            Sources::Manual { wall, elapsed } => (wall.load(Ordering::SeqCst), elapsed.load(Ordering::SeqCst)),
        };
        Timestamp::from_millis(wall.max(self.start.saturating_add(elapsed)))
    }
}

fn wall_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S§4.3, S§5.15.
    #[test]
    fn time_goes_on_with_the_wall_clock_and_never_back_behind_what_has_elapsed_since_the_start() {
        const START: u64 = 1_000_000_000;
        const DAY: u64 = 86_400_000;
        let (wall, elapsed) = (Arc::new(AtomicU64::new(START)), Arc::new(AtomicU64::new(0)));
        let clock = Clock::manual(Arc::clone(&wall), Arc::clone(&elapsed));
        for (what, wall_says, has_elapsed, expected) in [
            ("at the start", START, 0, START),
            ("both go on", START + 5000, 5000, START + 5000),
            ("forth a day", START + DAY + 5000, 5000, START + DAY + 5000),
            ("and set right", START + 6000, 6000, START + 6000),
            ("back a day", START + 7000 - DAY, 7000, START + 7000),
            ("which goes on", START + 8000 - DAY, 8000, START + 8000),
            ("back before the start", START - 1, 9000, START + 9000),
            ("back to nothing", 0, 10_000, START + 10_000),
            ("and right again", START + 11_000, 11_000, START + 11_000),
            ("by a little more than has elapsed", START + 12_001, 12_000, START + 12_001),
        ] {
            wall.store(wall_says, Ordering::SeqCst);
            elapsed.store(has_elapsed, Ordering::SeqCst);
            assert_eq!(clock.now(), Timestamp::from_millis(expected), "{what}");
        }
    }

    #[test]
    fn the_systems_clock_says_the_time_of_day() {
        let (before, now, after) = (wall_millis(), Clock::system().now(), wall_millis());
        assert!((before..=after).contains(&now.as_millis()), "{before} {now:?} {after}");
    }
}
