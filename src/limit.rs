//! How often: per peer, per address. GCRA (a leaky bucket of one number per key) with bounded memory, or in the store where
//! that is shared by replicas.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;

use crate::config::Rate;
use crate::matrix::{Refusal, Timestamp};
use crate::serve::host;
use crate::store::{Store, StoreError};

/// Keys one limit remembers. Past that, and with none to forget, new keys share one bucket: memory stays bounded and a
/// flood of addresses is limited as one.
const MOST_KEYS: usize = 100_000;
const SHARED: &str = "";
/// Between two looks through all keys for some to forget.
const SWEEP_EVERY_MILLIS: u64 = 1000;

/// One limit: `rate.count` at once, then one every `rate.per / rate.count`.
#[derive(Debug)]
pub struct Limit {
    name: &'static str,
    store: Arc<Store>,
    buckets: DashMap<String, Bucket>,
    most_keys: usize,
    /// When they were last looked through, in milliseconds.
    swept: AtomicU64,
}

#[derive(Debug)]
struct Bucket {
    /// When it will be empty again, since the Unix epoch: one of many may take less than a millisecond.
    empty_at: Duration,
    /// Under another rate, after a reload, it is begun anew: who was locked out by the old one is let in at once.
    rate: Rate,
}

/// Why there is none to take.
#[derive(Debug, thiserror::Error)]
pub enum Limited {
    #[error("too many, for {0:?} from now on")]
    For(Duration),
    /// Nobody knows how many there were: as good as too many.
    #[error(transparent)]
    Unknown(#[from] StoreError),
}

impl From<Limited> for Refusal {
    fn from(limited: Limited) -> Self {
        match limited {
            Limited::For(span) => Self::limited(span),
            Limited::Unknown(error) => error.into(),
        }
    }
}

impl Limit {
    pub fn new(name: &'static str, store: &Arc<Store>) -> Self {
        store.expect_limit(name);
        Self {
            name,
            store: Arc::clone(store),
            buckets: DashMap::new(),
            most_keys: MOST_KEYS,
            swept: AtomicU64::default(),
        }
    }

    /// Takes one, or says after how long there will be one.
    pub async fn take(&self, key: &str, rate: Rate, now: Timestamp) -> Result<(), Limited> {
        let over = if self.store.is_shared() {
            self.store.take(self.name, key, rate, now).await?
        } else {
            self.take_here(key, rate, now).err()
        };
        let Some(over) = over else { return Ok(()) };
        self.store.note_limited(self.name);
        Err(Limited::For(over))
    }

    /// Gives one back that came to nothing.
    pub async fn give_back(&self, key: &str, rate: Rate, now: Timestamp) {
        if self.store.is_shared() {
            // What is not given back is given back by time.
            if let Err(error) = self.store.give_back(self.name, key, rate, now).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "a limit could not be given back");
            }
            return;
        }
        if let Some(mut bucket) = self.buckets.get_mut(key).filter(|bucket| bucket.rate == rate) {
            bucket.empty_at = bucket.empty_at.saturating_sub(rate.interval()).max(since_epoch(now));
        }
    }

    fn take_here(&self, key: &str, rate: Rate, now: Timestamp) -> Result<(), Duration> {
        let key = if self.has_room_for(key, now) { key } else { SHARED };
        let now = since_epoch(now);
        let mut bucket = self.buckets.entry(key.to_owned()).or_insert(Bucket { empty_at: now, rate });
        if bucket.rate != rate {
            *bucket = Bucket { empty_at: now, rate };
        }
        // Fuller than full it was filled by a clock that ran ahead and was set right.
        bucket.empty_at = bucket.empty_at.max(now).min(now + rate.per);
        let filled = bucket.empty_at + rate.interval();
        let over = filled.saturating_sub(now + rate.per);
        if !over.is_zero() {
            return Err(over);
        }
        bucket.empty_at = filled;
        Ok(())
    }

    /// Forgets the buckets that are empty.
    pub fn expire(&self, now: Timestamp) {
        self.buckets.retain(|_, bucket| since_epoch(now) < bucket.empty_at);
    }

    fn has_room_for(&self, key: &str, now: Timestamp) -> bool {
        if self.buckets.len() < self.most_keys || self.buckets.contains_key(key) {
            return true;
        }
        let (millis, swept) = (now.as_millis(), self.swept.load(Ordering::Relaxed));
        let due = millis.abs_diff(swept) >= SWEEP_EVERY_MILLIS;
        if due && self.swept.compare_exchange(swept, millis, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.expire(now);
        }
        self.buckets.len() < self.most_keys
    }
}

fn since_epoch(now: Timestamp) -> Duration {
    Duration::from_millis(now.as_millis())
}

/// The key of a client: all that one host commands.
pub fn client_key(ip: IpAddr) -> String {
    match host(ip) {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::telemetry::Metrics;

    fn new() -> Limit {
        Limit::new("test", &Arc::new(Store::open(&config::Store::Memory, &Metrics::new()).unwrap()))
    }

    fn limited(taken: Result<(), Limited>) -> Option<Duration> {
        match taken.unwrap_err() {
            Limited::For(span) => Some(span),
            Limited::Unknown(_) => None,
        }
    }

    const RATE: Rate = Rate { count: 5, per: Duration::from_secs(50) };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + seconds * 1000)
    }

    #[tokio::test]
    async fn a_full_bucket_is_taken_at_once_and_then_one_per_interval() {
        let limit = new();
        for _ in 0..5 {
            limit.take("a", RATE, at(0)).await.unwrap();
        }
        assert_eq!(limited(limit.take("a", RATE, at(0)).await), Some(Duration::from_secs(10)));
        assert_eq!(limited(limit.take("a", RATE, at(4)).await), Some(Duration::from_secs(6)));
        limit.take("b", RATE, at(4)).await.unwrap();
        limit.take("a", RATE, at(10)).await.unwrap();
        assert_eq!(limited(limit.take("a", RATE, at(10)).await), Some(Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn a_rate_of_more_than_one_in_a_millisecond_is_a_limit_too() {
        for (count, per) in
            [(100_000, Duration::from_secs(60)), (1_000_000, Duration::from_secs(1)), (7, Duration::from_secs(1))]
        {
            let (limit, rate) = (new(), Rate { count, per });
            for _ in 0..count {
                limit.take("a", rate, at(0)).await.unwrap();
            }
            assert!(limited(limit.take("a", rate, at(0)).await).unwrap() <= rate.interval(), "{rate:?}");
            limit.give_back("a", rate, at(0)).await;
            limit.take("a", rate, at(0)).await.unwrap();
            assert!(limit.take("a", rate, at(0)).await.is_err(), "{rate:?}");
        }
    }

    #[tokio::test]
    async fn what_is_given_back_can_be_taken_again() {
        let limit = new();
        for _ in 0..5 {
            limit.take("a", RATE, at(0)).await.unwrap();
        }
        limit.give_back("a", RATE, at(0)).await;
        limit.take("a", RATE, at(0)).await.unwrap();
        assert!(limit.take("a", RATE, at(0)).await.is_err());
    }

    #[tokio::test]
    async fn a_clock_that_was_set_right_locks_nobody_out_for_longer_than_a_full_bucket() {
        let limit = new();
        limit.take("a", RATE, at(86_400)).await.unwrap();
        assert_eq!(limited(limit.take("a", RATE, at(0)).await), Some(Duration::from_secs(10)));
        limit.take("a", RATE, at(10)).await.unwrap();
    }

    #[tokio::test]
    async fn a_bucket_filled_under_another_rate_is_begun_anew() {
        let limit = new();
        let strict = Rate { count: 1, per: Duration::from_secs(3600) };
        limit.take("a", strict, at(0)).await.unwrap();
        assert!(limit.take("a", strict, at(0)).await.is_err());
        for _ in 0..5 {
            limit.take("a", RATE, at(0)).await.unwrap();
        }
        limit.give_back("a", strict, at(0)).await;
        assert_eq!(
            limited(limit.take("a", RATE, at(0)).await),
            Some(Duration::from_secs(10)),
            "what another rate took is not given back"
        );
    }

    #[tokio::test]
    async fn more_keys_than_there_is_room_for_share_one_bucket() {
        let limit = Limit { most_keys: 3, ..new() };
        for key in ["a", "b", "c"] {
            limit.take(key, RATE, at(0)).await.unwrap();
        }
        for n in 0..5 {
            limit.take(&format!("flood {n}"), RATE, at(0)).await.unwrap();
        }
        assert!(limit.take("flood 5", RATE, at(0)).await.is_err());
        assert!(limit.buckets.len() <= 4);
        limit.take("a", RATE, at(0)).await.unwrap();
        limit.take("after the buckets ran empty", RATE, at(100)).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_table_is_looked_through_once_a_second_however_many_come() {
        let limit = Limit { most_keys: 2, ..new() };
        let mut ran = 0;
        // In milliseconds from when the first buckets run empty, and whether the key gets one of its own.
        for (key, at_millis, own) in
            [("a", -10_000, true), ("b", -10_000, true), ("c", -500, false), ("d", 499, false), ("e", 500, true)]
        {
            let now = Timestamp::from_millis(at(10).as_millis().checked_add_signed(at_millis).unwrap());
            limit.take(key, RATE, now).await.unwrap();
            assert_eq!(limit.buckets.contains_key(key), own, "{key}");
            ran += 1;
        }
        assert_eq!(ran, 5);
    }

    #[test]
    fn an_ipv6_client_is_its_network_of_64_bits_and_a_mapped_ipv4_itself() {
        let key = |ip: &str| client_key(ip.parse().unwrap());
        assert_eq!(key("2001:db8:1:2:3:4:5:6"), key("2001:db8:1:2::1"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.7"), "192.0.2.7");
    }
}
