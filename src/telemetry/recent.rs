//! What happened of late, for the operator's page: when each neighbour was last really used, the last refusals, and the
//! last hour. Bounded, in this process only, and written by requests of the shim's own: an ordinary one knows nothing of it.

mod hour;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use super::{Metrics, RequestId};
use crate::matrix::Timestamp;

use hour::Minutes;
pub use hour::{Hour, MINUTES, Percentiles};

/// How many refusals are remembered.
const REFUSALS: usize = 20;

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Recent(Arc<Shared>);

struct Shared {
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    started: Timestamp,
    known: Mutex<Known>,
}

struct Known {
    uses: Uses,
    refusals: VecDeque<Refused>,
    minutes: Minutes,
}

/// What a neighbour is to us, or the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// It answered `/versions`.
    Homeserver,
    /// It called the identity door back, as it does when it trusts our name and certificate.
    Trust,
    Store,
    Email,
    Sms,
    /// Read again.
    Config,
}

/// All neighbours, as of their last use.
#[derive(Debug, Clone, Default)]
pub struct Uses {
    pub homeserver: Use,
    pub trust: Use,
    pub store: Use,
    pub email: Use,
    pub sms: Use,
    pub config: Use,
    /// The homeserver and its version, as it calls itself.
    pub software: Option<String>,
    /// When somebody came to the identity door who may not.
    pub stranger: Option<Timestamp>,
}

/// How one neighbour did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Use {
    /// When it last did what was asked.
    pub worked: Option<Timestamp>,
    /// How long that took.
    pub took_ms: Option<u64>,
    pub failed: Option<Failure>,
    /// Since it worked last.
    pub failing_since: Option<Timestamp>,
}

/// The last time that a neighbour did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub at: Timestamp,
    /// The stage of a delivery, the operation of a store, and the like.
    pub what: &'static str,
}

/// A request that was refused, by us or by the homeserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub at: Timestamp,
    pub route: &'static str,
    /// `shim` or `homeserver`.
    pub by: &'static str,
    pub status: u16,
    pub errcode: Option<String>,
    pub fault: &'static str,
    /// In every line of the log that belongs to it.
    pub request_id: RequestId,
}

impl Recent {
    /// By the clock that requests are stamped with.
    pub fn by(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let started = now();
        let known = Known { uses: Uses::default(), refusals: VecDeque::new(), minutes: Minutes::beginning(started) };
        Self(Arc::new(Shared { now: Box::new(now), started, known: Mutex::new(known) }))
    }

    pub fn now(&self) -> Timestamp {
        (self.0.now)()
    }

    pub fn started(&self) -> Timestamp {
        self.0.started
    }

    /// A neighbour did what was asked.
    pub fn worked(&self, neighbour: Neighbour, took: Option<Duration>) {
        let now = self.now();
        let took_ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let mut known = self.known();
        let it = known.uses.of(neighbour);
        *it = Use { worked: Some(now), took_ms, failed: it.failed.take(), failing_since: None };
    }

    /// It did not; `what` says at which step.
    pub fn failed(&self, neighbour: Neighbour, what: &'static str) {
        let now = self.now();
        let mut known = self.known();
        let it = known.uses.of(neighbour);
        it.failed = Some(Failure { at: now, what });
        it.failing_since.get_or_insert(now);
    }

    /// A neighbour that was looked at, not used, is well.
    pub fn recovered(&self, neighbour: Neighbour) {
        self.known().uses.of(neighbour).failing_since = None;
    }

    /// What the homeserver's `Server` field says; of it only what is fit to be shown.
    pub fn software(&self, said: &str) {
        let said: String = said.chars().filter(|c| !c.is_control()).take(80).collect();
        self.known().uses.software = Some(said).filter(|said| !said.is_empty());
    }

    pub fn stranger(&self) {
        let now = self.now();
        self.known().uses.stranger = Some(now);
    }

    /// An answer to one of our own routes, remembered if it is a refusal. A 401 that asks for user-interactive
    /// authentication, or says that the link has not been clicked, is a step of every flow and none.
    pub fn answered(&self, refused: Refused) {
        let goes_on = refused.status == 401 && matches!(refused.errcode.as_deref(), None | Some("M_UNAUTHORIZED"));
        if refused.status < 400 || goes_on {
            return;
        }
        let mut known = self.known();
        known.refusals.push_front(refused);
        known.refusals.truncate(REFUSALS);
    }

    /// One of our own requests that has ended.
    pub fn intercepted(&self, outcome: &'static str, took: Duration) {
        let now = self.now();
        self.known().minutes.at(now).intercepted(outcome, took);
    }

    /// A message that was handed over, or not: `outcome` is the stage that failed.
    pub fn delivered(&self, medium: &'static str, outcome: &'static str, took: Duration) {
        let neighbour = if medium == "email" { Neighbour::Email } else { Neighbour::Sms };
        let ok = outcome == "delivered";
        if ok {
            self.worked(neighbour, Some(took));
        } else {
            self.failed(neighbour, outcome);
        }
        let now = self.now();
        self.known().minutes.at(now).delivered(ok, took);
    }

    pub fn uses(&self) -> Uses {
        self.known().uses.clone()
    }

    /// The newest first.
    pub fn refusals(&self) -> Vec<Refused> {
        self.known().refusals.iter().cloned().collect()
    }

    pub fn hour(&self) -> Hour {
        let now = self.now();
        self.known().minutes.hour(now)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uses {
    fn of(&mut self, neighbour: Neighbour) -> &mut Use {
        match neighbour {
            Neighbour::Homeserver => &mut self.homeserver,
            Neighbour::Trust => &mut self.trust,
            Neighbour::Store => &mut self.store,
            Neighbour::Email => &mut self.email,
            Neighbour::Sms => &mut self.sms,
            Neighbour::Config => &mut self.config,
        }
    }
}

impl Metrics {
    /// Has the last hour know of what was forwarded since the sample before: ordinary requests only count, as they did.
    pub fn sample(&self) {
        let now = self.recent.now();
        let forwarded = std::array::from_fn(|class| self.forwarded.get(class).map_or(0, Counter::get));
        self.recent.known().minutes.sample(now, forwarded, self.homeserver_unreachable.get());
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self::by(|| {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp::from_millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX))
        })
    }
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recent(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn at(millis: u64) -> (Arc<AtomicU64>, Recent) {
        let now = Arc::new(AtomicU64::new(millis));
        let clock = Arc::clone(&now);
        (now, Recent::by(move || Timestamp::from_millis(clock.load(Ordering::SeqCst))))
    }

    fn refused(status: u16, errcode: Option<&str>) -> Refused {
        Refused {
            at: Timestamp::from_millis(1),
            route: "register.email",
            by: "shim",
            status,
            errcode: errcode.map(str::to_owned),
            fault: "client",
            request_id: RequestId::from_random([7; 8]),
        }
    }

    #[test]
    fn a_neighbour_fails_since_it_worked_last_and_its_last_failure_is_remembered_when_it_works_again() {
        let (now, recent) = at(1000);
        let look = |millis| {
            now.store(millis, Ordering::SeqCst);
            recent.uses().email
        };
        assert_eq!(look(1000), Use::default());
        recent.delivered("email", "connect", Duration::from_millis(3));
        look(2000);
        recent.delivered("email", "rcpt", Duration::from_millis(3));
        let failing = look(3000);
        assert_eq!((failing.worked, failing.failing_since), (None, Some(Timestamp::from_millis(1000))));
        recent.delivered("email", "delivered", Duration::from_millis(42));
        let well = look(4000);
        assert_eq!((well.worked, well.took_ms), (Some(Timestamp::from_millis(3000)), Some(42)));
        let failure = Failure { at: Timestamp::from_millis(2000), what: "rcpt" };
        assert_eq!((well.failed, well.failing_since), (Some(failure), None));
        assert_eq!(recent.uses().sms, Use::default(), "each by itself");
    }

    #[test]
    fn the_last_twenty_refusals_are_remembered_and_no_step_of_a_flow_is_one() {
        let (_, recent) = at(0);
        for (status, errcode) in [(200, None), (303, None), (401, None), (401, Some("M_UNAUTHORIZED"))] {
            recent.answered(refused(status, errcode));
        }
        assert_eq!(recent.refusals(), []);
        for status in 400..425 {
            recent.answered(refused(status, Some("M_UNKNOWN_TOKEN")));
        }
        let statuses: Vec<_> = recent.refusals().iter().map(|refused| refused.status).collect();
        assert_eq!(statuses, (405..425).rev().collect::<Vec<_>>());
    }

    #[test]
    fn what_the_homeserver_calls_itself_is_shown_only_in_part_and_without_control_characters() {
        let (_, recent) = at(0);
        recent.software(&format!("Synapse/1.3.1\u{1b}[31m{}", "x".repeat(999)));
        let software = recent.uses().software.unwrap();
        assert!(software.starts_with("Synapse/1.3.1[31mx") && software.len() == 80, "{software}");
        recent.software("");
        assert_eq!(recent.uses().software, None);
    }

    #[test]
    fn what_was_forwarded_between_two_samples_is_in_the_minute_of_the_second() {
        let (now, recent) = at(0);
        let mut metrics = Metrics::new();
        metrics.recent = recent;
        metrics.forwarded[1].inc_by(5);
        metrics.sample();
        now.store(60_000, Ordering::SeqCst);
        metrics.forwarded[1].inc_by(2);
        metrics.forwarded[4].inc();
        metrics.homeserver_unreachable.inc();
        metrics.sample();
        metrics.sample();
        let hour = metrics.recent.hour();
        assert_eq!(hour.forwarded["2xx"][MINUTES - 2..], [5, 2]);
        assert_eq!(hour.forwarded["5xx"][MINUTES - 2..], [0, 1]);
        assert_eq!(hour.forwarded["unreachable"][MINUTES - 2..], [0, 1]);
    }
}
