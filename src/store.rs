//! Sessions and requests in flight, kept: get, update, expire. One record a key, each with the time it ends.

mod memory;
mod sessions;

use std::marker::PhantomData;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use sessions::{Client, Fresh};

use crate::config;
use crate::matrix::{ClientSecret, Digest, Errcode, Purpose, Refusal, Sid, Threepid, Timestamp};
use crate::session::Session;

/// A kind of thing that is kept. `KIND` begins its keys.
pub trait Record: Serialize + DeserializeOwned {
    const KIND: &'static str;
}

impl Record for Session {
    const KIND: &'static str = "session";
}

/// The session that further requestTokens of the same client for the same purpose belong to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Current {
    pub sid: Sid,
}

impl Record for Current {
    const KIND: &'static str = "current";
}

/// The UIA session in which a sid of ours is shown to the homeserver. Old homeservers let it complete any endpoint, so it
/// is remembered for which purpose that is, before they can.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct UiaStage {
    pub purpose: Purpose,
    /// Of which the homeserver was told there that its address is validated.
    pub sid: Option<Sid>,
}

impl Record for UiaStage {
    const KIND: &'static str = "uia";
}

/// Which identity server a sid came from that was relayed to a client (P§5.2, rule b).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForeignSid {
    pub id_server: String,
}

impl Record for ForeignSid {
    const KIND: &'static str = "foreign";
}

/// The name of one record. Holds no address and no secret in clear.
pub struct Key<R> {
    name: String,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> Key<R> {
    pub fn new(name: impl std::fmt::Display) -> Self {
        Self { name: format!("{}:{name}", R::KIND), record: PhantomData }
    }
}

impl Key<Session> {
    pub fn session(sid: &Sid) -> Self {
        Self::new(sid.as_str())
    }
}

impl Key<Current> {
    pub fn current(threepid: &Threepid, client_secret: &ClientSecret, purpose: Purpose) -> Self {
        Self::new(format_args!("{}:{}", purpose.as_str(), digest_of(threepid, client_secret).as_hex()))
    }
}

impl Key<UiaStage> {
    pub fn uia_session(id: &str) -> Self {
        Self::new(Digest::of(id.as_bytes()).as_hex())
    }
}

impl Key<ForeignSid> {
    pub fn foreign_sid(sid: &str) -> Self {
        Self::new(Digest::of(sid.as_bytes()).as_hex())
    }
}

/// One digest for a medium, address and client_secret: what a request in flight is known by.
pub fn digest_of(threepid: &Threepid, client_secret: &ClientSecret) -> Digest {
    let parts = [threepid.medium.as_str(), threepid.address.expose(), client_secret.expose()];
    Digest::of(parts.join("\0").as_bytes())
}

/// What a decision does to a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<R> {
    Keep,
    Put { record: R, until: Timestamp },
    Remove,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("a stored {kind} cannot be read")]
    Unreadable {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("a {kind} cannot be written")]
    Unwritable {
        kind: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Errcode::MUnknown,
            "Sessions cannot be kept at the moment; try again",
        )
        .retry_after(Duration::from_secs(5))
    }
}

/// Where sessions and requests in flight are kept.
#[derive(Debug)]
pub enum Store {
    Memory(memory::Memory),
}

impl Store {
    pub fn open(config: &config::Store) -> Self {
        match config {
            config::Store::Memory => Self::Memory(memory::Memory::default()),
        }
    }

    /// The record, unless its time is over.
    #[expect(clippy::unused_async, reason = "a store on another machine answers later; its callers await already")]
    pub async fn get<R: Record>(&self, key: &Key<R>, now: Timestamp) -> Result<Option<R>, StoreError> {
        let bytes = match self {
            Self::Memory(memory) => memory.get(&key.name, now),
        };
        bytes.as_deref().map(read).transpose()
    }

    /// Reads, lets `decide` say what to do, and writes that, as one atomic step. `decide` may run twice: it only decides.
    #[expect(clippy::unused_async, reason = "a store on another machine answers later; its callers await already")]
    pub async fn update<R: Record, T>(
        &self,
        key: &Key<R>,
        now: Timestamp,
        decide: impl Fn(Option<R>) -> (Change<R>, T),
    ) -> Result<T, StoreError> {
        let step = |current: Option<&[u8]>| {
            let current = current.map(read).transpose()?;
            let (change, told) = decide(current);
            let change = match change {
                Change::Keep => Change::Keep,
                Change::Remove => Change::Remove,
                Change::Put { record, until } => Change::Put { record: write(&record)?, until },
            };
            Ok((change, told))
        };
        match self {
            Self::Memory(memory) => memory.update(&key.name, now, step),
        }
    }

    /// Forgets what is over; a store that forgets by itself does nothing.
    pub fn expire(&self, now: Timestamp) {
        match self {
            Self::Memory(memory) => memory.expire(now),
        }
    }
}

fn read<R: Record>(bytes: &[u8]) -> Result<R, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Unreadable { kind: R::KIND, source })
}

fn write<R: Record>(record: &R) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::Unwritable { kind: R::KIND, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn key() -> Key<ForeignSid> {
        Key::foreign_sid("17")
    }

    fn put(name: &str, until: u64) -> Change<ForeignSid> {
        Change::Put { record: ForeignSid { id_server: name.to_owned() }, until: Timestamp::from_millis(until) }
    }

    #[tokio::test]
    async fn a_record_is_there_until_its_time_is_over_and_gone_after() {
        let store = Store::open(&config::Store::Memory);
        store.update(&key(), NOW, |_| (put("a", 1_000_010), ())).await.unwrap();
        let key = key();
        let at = |millis| store.get(&key, Timestamp::from_millis(millis));
        assert_eq!(at(1_000_009).await.unwrap().unwrap().id_server, "a");
        assert_eq!(at(1_000_010).await.unwrap(), None);
        store.expire(Timestamp::from_millis(1_000_010));
        assert_eq!(at(1_000_009).await.unwrap(), None, "expire forgets it for good");
    }

    #[tokio::test]
    async fn a_decision_sees_the_live_record_only() {
        let store = Store::open(&config::Store::Memory);
        store.update(&key(), NOW, |_| (put("a", 1_000_010), ())).await.unwrap();
        let key = key();
        let seen = |now| store.update(&key, Timestamp::from_millis(now), |current| (Change::Keep, current.is_some()));
        assert!(seen(1_000_009).await.unwrap());
        assert!(!seen(1_000_010).await.unwrap());
        store.update(&key, NOW, |_| (Change::Remove, ())).await.unwrap();
        assert!(!seen(1_000_001).await.unwrap());
    }

    #[tokio::test]
    async fn of_many_updates_at_once_none_is_lost() {
        let store = std::sync::Arc::new(Store::open(&config::Store::Memory));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let store = std::sync::Arc::clone(&store);
                tokio::spawn(async move {
                    for _ in 0..100 {
                        let longer = |current: Option<ForeignSid>| {
                            let id_server = current.map_or_else(String::new, |record| record.id_server) + "x";
                            (
                                Change::Put {
                                    record: ForeignSid { id_server },
                                    until: NOW.after(Duration::from_secs(9)),
                                },
                                (),
                            )
                        };
                        store.update(&key(), NOW, longer).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.get(&key(), NOW).await.unwrap().unwrap().id_server.len(), 800);
    }
}
