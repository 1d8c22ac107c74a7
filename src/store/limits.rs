//! Limits that all replicas share, where the store is shared.

use std::time::Duration;

use super::{Records, Store, StoreError};
use crate::config::Rate;
use crate::matrix::{Digest, Timestamp};
use crate::telemetry::LimitReached;

impl Store {
    /// Whether other processes have it, too: then limits are counted here, else each process counts its own.
    pub fn is_shared(&self) -> bool {
        matches!(self.records, Records::Redis(_))
    }

    /// Takes one from a bucket, or says after how long there will be one. Without a shared store there always is.
    pub async fn take(
        &self,
        limit: &str,
        key: &str,
        rate: Rate,
        now: Timestamp,
    ) -> Result<Option<Duration>, StoreError> {
        let Records::Redis(redis) = &self.records else { return Ok(None) };
        self.counted("limit", redis.take(&bucket(limit, key, rate), rate, now)).await
    }

    /// From the start, so that the first refusal is seen as one more than none.
    pub fn expect_limit(&self, limit: &'static str) {
        self.metrics.limits_reached.get_or_create(&LimitReached { limit }).inc_by(0);
    }

    /// Counts something that a limit refused, wherever that is counted.
    pub fn note_limited(&self, limit: &'static str) {
        self.metrics.limits_reached.get_or_create(&LimitReached { limit }).inc();
    }

    /// Gives one back that came to nothing.
    pub async fn give_back(&self, limit: &str, key: &str, rate: Rate, now: Timestamp) -> Result<(), StoreError> {
        let Records::Redis(redis) = &self.records else { return Ok(()) };
        self.counted("limit", redis.give_back(&bucket(limit, key, rate), rate, now)).await
    }
}

/// Under another rate it is another bucket. No client's address is in its name.
fn bucket(limit: &str, key: &str, rate: Rate) -> String {
    format!("limit:{limit}:{}/{}:{}", rate.count, rate.per.as_millis(), Digest::of(key.as_bytes()).as_hex())
}
