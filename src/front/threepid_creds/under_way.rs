//! Which UIA sessions requests are under way with, and for what: the homeserver completes any endpoint with any of them.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::matrix::{Digest, Purpose, Timestamp};
use crate::serve::{Clock, Detached};
use crate::store::{Change, Key, Record, Store, StoreError, Watch};
use crate::telemetry::RequestId;

/// How long a request counts that another shim has, which may have died with it.
const LEASE: Duration = Duration::from_secs(120);

/// Cheap to clone; all clones count together, and where the store is shared those of all shims.
#[derive(Debug, Clone)]
pub(super) struct UnderWay {
    here: Arc<DashMap<String, Vec<Option<Purpose>>>>,
    store: Arc<Store>,
    clock: Clock,
    detached: Detached,
}

/// One request, until it is answered.
#[derive(Debug)]
pub(super) struct Entered {
    under_way: UnderWay,
    uia_session: String,
    purpose: Option<Purpose>,
    request_id: RequestId,
}

/// The requests of all shims with one UIA session.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Everywhere {
    requests: Vec<Request>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Request {
    id: RequestId,
    purpose: Option<Purpose>,
    until: Timestamp,
}

impl Record for Everywhere {
    const KIND: &'static str = "under_way";
}

impl UnderWay {
    pub(super) fn new(store: &Arc<Store>, clock: &Clock, detached: &Detached) -> Self {
        let (store, clock, detached) = (Arc::clone(store), clock.clone(), detached.clone());
        Self { here: Arc::default(), store, clock, detached }
    }

    pub(super) async fn enter(
        &self,
        uia_session: &str,
        purpose: Option<Purpose>,
        request_id: &RequestId,
    ) -> Result<Entered, StoreError> {
        self.here.entry(uia_session.to_owned()).or_default().push(purpose);
        let (under_way, uia_session, request_id) = (self.clone(), uia_session.to_owned(), request_id.clone());
        let entered = Entered { under_way, uia_session, purpose, request_id };
        if self.store.is_shared() {
            let until = self.clock.now().after(LEASE);
            let own = Request { id: entered.request_id.clone(), purpose, until };
            self.change(&entered.uia_session, &entered.request_id, Some(&own)).await?;
        }
        Ok(entered)
    }

    /// Whether a request for anything else has it.
    pub(super) async fn elsewhere(
        &self,
        uia_session: &str,
        purpose: Purpose,
        watch: &mut Watch,
    ) -> Result<bool, StoreError> {
        let other = |theirs: Option<Purpose>| theirs != Some(purpose);
        if self.here.get(uia_session).is_some_and(|all| all.iter().any(|theirs| other(*theirs))) {
            return Ok(true);
        }
        if !self.store.is_shared() {
            return Ok(false);
        }
        let now = self.clock.now();
        let all = self.store.get(&key(uia_session), now).await?.map(|all| all.requests).unwrap_or_default();
        for request in all.iter().filter(|request| now < request.until && other(request.purpose)) {
            if self.store.lives(&request.id, watch, now).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts `own` among all requests, or takes it away.
    async fn change(&self, uia_session: &str, id: &RequestId, own: Option<&Request>) -> Result<(), StoreError> {
        let now = self.clock.now();
        let change = |current: Option<Everywhere>| {
            let mut requests = current.map(|all| all.requests).unwrap_or_default();
            requests.retain(|request| request.id != *id && now < request.until);
            requests.extend(own.cloned());
            let last = requests.iter().map(|request| request.until).max();
            (last.map_or(Change::Remove, |until| Change::Put { record: Everywhere { requests }, until }), ())
        };
        self.store.update(&key(uia_session), now, change).await
    }
}

fn key(uia_session: &str) -> Key<Everywhere> {
    Key::new(Digest::of(uia_session.as_bytes()).as_hex())
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.under_way.here.remove_if_mut(&self.uia_session, |_, all| {
            if let Some(at) = all.iter().position(|purpose| *purpose == self.purpose) {
                all.swap_remove(at);
            }
            all.is_empty()
        });
        if !self.under_way.store.is_shared() || Handle::try_current().is_err() {
            return;
        }
        let (all, uia_session, request_id) =
            (self.under_way.clone(), self.uia_session.clone(), self.request_id.clone());
        self.under_way.detached.spawn(async move {
            if let Err(error) = all.change(&uia_session, &request_id, None).await {
                // It lapses by itself.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a request's end could not be told to other shims"
                );
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn a_request_is_under_way_until_it_is_dropped_and_leaves_nothing_behind() {
        let store = Arc::new(Store::open(&config::Store::Memory, &Metrics::new()).unwrap());
        let under_way = UnderWay::new(&store, &Clock::system(), &Detached::default());
        let enter = async |purpose| under_way.enter("uia", purpose, &RequestId::from_random([1; 8])).await.unwrap();
        let elsewhere = async |id, purpose| under_way.elsewhere(id, purpose, &mut Watch::default()).await.unwrap();
        let reset = enter(Some(Purpose::Password)).await;
        let other = enter(None).await;
        drop(enter(Some(Purpose::Register)).await);
        assert!(elsewhere("uia", Purpose::Register).await);
        drop(other);
        assert!(elsewhere("uia", Purpose::Register).await);
        assert!(!elsewhere("uia", Purpose::Password).await);
        assert!(!elsewhere("another", Purpose::Register).await);
        drop(reset);
        assert!(!elsewhere("uia", Purpose::Register).await);
        assert!(under_way.here.is_empty());
    }
}
