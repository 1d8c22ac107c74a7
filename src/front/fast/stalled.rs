//! How long a client is waited for that has the word: it is to send its body, or to take its answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use crate::serve::STALLED;

/// Whether a client keeps us waiting. Whatever it sends or takes gives it all of its time again.
#[derive(Default)]
pub(super) struct Stalled {
    /// Since this was last looked at.
    moved: bool,
    waiting: Option<Waiting>,
}

struct Waiting {
    until: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Stalled {
    /// The client has sent or taken something.
    pub(super) fn moved(&mut self) {
        self.moved = true;
    }

    /// It is not the client that is waited for.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Ready when a client that is waited for has had its time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + STALLED;
        let fresh = || Waiting { until, timer: Box::pin(tokio::time::sleep_until(until)) };
        let waiting = self.waiting.get_or_insert_with(fresh);
        if std::mem::take(&mut self.moved) {
            waiting.until = until;
        }
        // It is not moved with every byte: most of its wake-ups find that time has been given.
        while waiting.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= waiting.until {
                return Poll::Ready(());
            }
            waiting.timer.as_mut().reset(waiting.until);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    const NEARLY: Duration = Duration::from_secs(STALLED.as_secs() - 1);

    #[tokio::test(start_paused = true)]
    async fn every_byte_gives_a_client_its_time_again() {
        let (begun, mut stalled) = (Instant::now(), Stalled::default());
        assert!(poll_fn(|cx| Poll::Ready(stalled.poll(cx))).await.is_pending());
        for _ in 0..10 {
            tokio::time::sleep(NEARLY).await;
            stalled.moved();
            assert!(poll_fn(|cx| Poll::Ready(stalled.poll(cx))).await.is_pending());
        }
        poll_fn(|cx| stalled.poll(cx)).await;
        let (waited, expected) = (begun.elapsed(), 10 * NEARLY + STALLED);
        assert!(waited >= expected && waited < expected + Duration::from_millis(10), "{waited:?}");
    }
}
