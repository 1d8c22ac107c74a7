//! The last hour by minutes: how many of what, and how long they took.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Duration;

use serde::Serialize;

use crate::matrix::Timestamp;

/// How many minutes are remembered, the one that runs among them.
pub const MINUTES: usize = 60;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const MINUTE: u64 = 60_000;

/// Eight buckets for each doubling of 64 microseconds, up to two minutes: a time is known to within 6 %.
const FINE: u32 = 3;
const SHORTEST: u32 = 6;
const BUCKETS: usize = 169;

/// Numbers of the last hour: `MINUTES` of each, the oldest first, the minute that runs last.
#[derive(Debug, Clone, Serialize)]
pub struct Hour {
    /// `1xx` to `5xx`, and `unreachable`.
    pub forwarded: BTreeMap<&'static str, Vec<u32>>,
    /// `relayed`, `refused` and `observed`.
    pub intercepted: BTreeMap<&'static str, Vec<u32>>,
    /// `delivered` and `failed`.
    pub deliveries: BTreeMap<&'static str, Vec<u32>>,
    pub intercepted_us: Percentiles,
    pub delivery_us: Percentiles,
}

/// In microseconds; none where nothing was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Percentiles {
    pub p50: Vec<Option<u32>>,
    pub p95: Vec<Option<u32>>,
    pub p99: Vec<Option<u32>>,
    /// 50, 95 and 99 % of the whole hour's.
    pub hour: [Option<u32>; 3],
}

/// What [`Hour`] is made of.
pub(super) struct Minutes {
    before: VecDeque<Minute>,
    current: Minute,
    /// The number of the current one, by the clock.
    number: u64,
    forwarded: [u64; 5],
    unreachable: u64,
}

#[derive(Default)]
pub(super) struct Minute {
    forwarded: [u32; 5],
    unreachable: u32,
    relayed: u32,
    refused: u32,
    observed: u32,
    delivered: u32,
    failed: u32,
    intercepted: Times,
    delivery: Times,
}

/// How many took how long.
struct Times([u32; BUCKETS]);

impl Minutes {
    pub(super) fn beginning(now: Timestamp) -> Self {
        let before = VecDeque::with_capacity(MINUTES);
        Self { before, current: Minute::default(), number: number(now), forwarded: [0; 5], unreachable: 0 }
    }

    /// The minute that runs. A clock that is set back takes the hour with it.
    pub(super) fn at(&mut self, now: Timestamp) -> &mut Minute {
        let now = number(now);
        let over = usize::try_from(now.saturating_sub(self.number)).unwrap_or(MINUTES).min(MINUTES);
        self.number = now;
        for _ in 0..over {
            if self.before.len() == MINUTES - 1 {
                self.before.pop_front();
            }
            self.before.push_back(mem::take(&mut self.current));
        }
        &mut self.current
    }

    /// Counts what the counters of forwarded requests have grown by.
    pub(super) fn sample(&mut self, now: Timestamp, forwarded: [u64; 5], unreachable: u64) {
        let before = (mem::replace(&mut self.forwarded, forwarded), mem::replace(&mut self.unreachable, unreachable));
        let minute = self.at(now);
        for ((count, now), before) in minute.forwarded.iter_mut().zip(forwarded).zip(before.0) {
            add(count, now.saturating_sub(before));
        }
        add(&mut minute.unreachable, unreachable.saturating_sub(before.1));
    }

    pub(super) fn hour(&mut self, now: Timestamp) -> Hour {
        self.at(now);
        let of = |read: &dyn Fn(&Minute) -> u32| self.series(read);
        let mut forwarded = BTreeMap::from([("unreachable", of(&|minute| minute.unreachable))]);
        for (class, name) in CLASSES.into_iter().enumerate() {
            forwarded.insert(name, of(&|minute| minute.forwarded.get(class).copied().unwrap_or_default()));
        }
        Hour {
            forwarded,
            intercepted: BTreeMap::from([
                ("relayed", of(&|minute| minute.relayed)),
                ("refused", of(&|minute| minute.refused)),
                ("observed", of(&|minute| minute.observed)),
            ]),
            deliveries: BTreeMap::from([
                ("delivered", of(&|minute| minute.delivered)),
                ("failed", of(&|minute| minute.failed)),
            ]),
            intercepted_us: self.percentiles(|minute| &minute.intercepted),
            delivery_us: self.percentiles(|minute| &minute.delivery),
        }
    }

    /// The minutes before the first one are none.
    fn series<T: Default>(&self, read: impl Fn(&Minute) -> T) -> Vec<T> {
        let missing = (self.before.len()..MINUTES - 1).map(|_| T::default());
        missing.chain(self.before.iter().chain([&self.current]).map(read)).collect()
    }

    fn percentiles(&self, times: impl Fn(&Minute) -> &Times) -> Percentiles {
        let mut hour = Times::default();
        for minute in self.before.iter().chain([&self.current]) {
            for (sum, count) in hour.0.iter_mut().zip(times(minute).0) {
                *sum = sum.saturating_add(count);
            }
        }
        Percentiles {
            p50: self.series(|minute| times(minute).percentile(50)),
            p95: self.series(|minute| times(minute).percentile(95)),
            p99: self.series(|minute| times(minute).percentile(99)),
            hour: [hour.percentile(50), hour.percentile(95), hour.percentile(99)],
        }
    }
}

impl Minute {
    pub(super) fn intercepted(&mut self, outcome: &'static str, took: Duration) {
        let count = match outcome {
            "relayed" => &mut self.relayed,
            "refused" => &mut self.refused,
            _ => &mut self.observed,
        };
        add(count, 1);
        self.intercepted.add(took);
    }

    pub(super) fn delivered(&mut self, ok: bool, took: Duration) {
        add(if ok { &mut self.delivered } else { &mut self.failed }, 1);
        self.delivery.add(took);
    }
}

impl Times {
    fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1 << SHORTEST);
        let doubling = micros.ilog2();
        let part = (micros >> (doubling - FINE)) & ((1 << FINE) - 1);
        let bucket = u64::from((doubling - SHORTEST) << FINE) + part;
        let bucket = usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1);
        if let Some(count) = self.0.get_mut(bucket) {
            add(count, 1);
        }
    }

    /// The middle of the bucket that this part of all is in.
    fn percentile(&self, percent: u64) -> Option<u32> {
        let all: u64 = self.0.iter().copied().map(u64::from).sum();
        let rank = (all * percent).div_ceil(100);
        let mut up_to = 0;
        for (bucket, count) in (0_u32..).zip(self.0) {
            up_to += u64::from(count);
            if count > 0 && up_to >= rank {
                let (doubling, part) = ((bucket >> FINE) + SHORTEST, bucket & ((1 << FINE) - 1));
                let width = 1_u32 << (doubling - FINE);
                return Some((((1 << FINE) + part) * width).saturating_add(width / 2));
            }
        }
        None
    }
}

impl Default for Times {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

fn number(now: Timestamp) -> u64 {
    now.as_millis() / MINUTE
}

fn add(count: &mut u32, more: u64) {
    *count = count.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(number: u64) -> Timestamp {
        Timestamp::from_millis(number * MINUTE)
    }

    #[test]
    fn the_hour_ends_with_the_minute_that_runs_and_forgets_what_is_older() {
        let mut minutes = Minutes::beginning(minute(100));
        minutes.at(minute(100)).intercepted("relayed", Duration::from_millis(1));
        minutes.at(minute(103)).intercepted("refused", Duration::from_millis(1));
        let hour = minutes.hour(minute(104));
        assert!(hour.intercepted.values().all(|series| series.len() == MINUTES));
        assert_eq!(hour.intercepted["relayed"][MINUTES - 5..], [1, 0, 0, 0, 0]);
        assert_eq!(hour.intercepted["refused"][MINUTES - 5..], [0, 0, 0, 1, 0]);
        assert_eq!(minutes.hour(minute(159)).intercepted["relayed"][0], 1, "the oldest of sixty");
        assert_eq!(minutes.hour(minute(160)).intercepted["relayed"], [0; MINUTES]);
        let much_later = minutes.hour(minute(u64::MAX / MINUTE));
        assert_eq!(much_later.intercepted["refused"], [0; MINUTES]);
        assert!(minutes.before.len() < MINUTES);
    }

    #[test]
    fn a_clock_that_is_set_back_takes_the_hour_with_it() {
        let mut minutes = Minutes::beginning(minute(1000));
        minutes.at(minute(1000)).delivered(true, Duration::from_millis(1));
        assert_eq!(minutes.hour(minute(10)).deliveries["delivered"][MINUTES - 1], 1);
        minutes.at(minute(11)).delivered(false, Duration::from_millis(1));
        let hour = minutes.hour(minute(11));
        assert_eq!(hour.deliveries["delivered"][MINUTES - 2..], [1, 0]);
        assert_eq!(hour.deliveries["failed"][MINUTES - 2..], [0, 1]);
    }

    #[test]
    fn a_percentile_is_the_time_it_says_to_within_six_percent() {
        for micros in [64_u64, 65, 100, 999, 1000, 4321, 20_000, 123_456, 1_000_000, 60_000_000, 119_000_000] {
            let mut times = Times::default();
            times.add(Duration::from_micros(micros));
            let said = u64::from(times.percentile(99).unwrap());
            assert!(said.abs_diff(micros) * 100 <= micros * 7, "{micros} is said to be {said}");
        }
        let mut times = Times::default();
        assert_eq!(times.percentile(50), None);
        for _ in 0..98 {
            times.add(Duration::from_millis(10));
        }
        times.add(Duration::from_secs(1));
        times.add(Duration::from_secs(9999));
        let near = |percent, millis: u32| times.percentile(percent).unwrap().abs_diff(millis * 1000) <= millis * 70;
        assert!(near(50, 10) && near(98, 10) && near(99, 1000));
        assert!(times.percentile(100).unwrap() > 100_000_000, "beyond the last bucket is in the last");
    }
}
