//! A line of the log that a flood of what it tells does not repeat.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two of them.
const EVERY: Duration = Duration::from_secs(10);

/// When it was said, and how often it has happened since.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<(Option<Instant>, usize)>);

impl Seldom {
    /// It has happened; how often, if it is to be said.
    pub fn happened(&self) -> Option<usize> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, since) = *said;
        let due = last.is_none_or(|last| last.elapsed() >= EVERY);
        *said = if due { (Some(Instant::now()), 0) } else { (last, since + 1) };
        due.then_some(since + 1)
    }
}
