//! Sessions and requests in flight, kept: get, update, expire. One record a key, each with the time it ends.

mod file;
mod limits;
mod mark;
mod memory;
mod pulse;
mod redis;
mod sessions;
mod unknown;

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use mark::{Edit, Effect};
pub use pulse::{BEAT, Wait, Watch};
pub use sessions::{Client, Fresh};

use crate::config;
use crate::matrix::{ClientSecret, Digest, Errcode, Purpose, Refusal, Sid, Threepid, Timestamp};
use crate::random;
use crate::session::Session;
use crate::telemetry::{Metrics, Neighbour, Process, StoreKind, StoreOperation};
use file::{File, FileError};
use memory::Memory;
use pulse::Pulse;
use redis::{LinkError, Redis};

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
    /// The last of `sids`. All that older versions know, and write.
    sid: Option<Sid>,
    /// Of which the homeserver was told there that their addresses are validated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sids: Vec<Sid>,
}

impl UiaStage {
    pub fn new(purpose: Purpose) -> Self {
        Self { purpose, sid: None, sids: Vec::new() }
    }

    /// The sessions whose stages the homeserver may have completed there.
    pub fn completed_with(&self) -> Vec<Sid> {
        let last = self.sid.iter().filter(|sid| !self.sids.contains(sid));
        self.sids.iter().chain(last).cloned().collect()
    }

    pub fn add(&mut self, sid: &Sid) {
        self.sids = self.completed_with();
        if !self.sids.contains(sid) {
            self.sids.push(sid.clone());
        }
        self.sid = Some(sid.clone());
    }
}

impl Record for UiaStage {
    const KIND: &'static str = "uia";
}

/// Which identity server a sid came from that was relayed to a client, for creds that leave it out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForeignSid {
    pub id_server: String,
}

impl Record for ForeignSid {
    const KIND: &'static str = "foreign";
}

/// The kind of requests that are on their way. Where one process keeps the records, those of the process before are nobody's:
/// whoever waited for them went with it.
pub const IN_FLIGHT: &str = "note";

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

    /// That client's: identity servers number their sids, and two of them give out the same.
    #[must_use]
    pub fn of_client(self, client_secret: &str) -> Self {
        Self { name: format!("{}:{}", self.name, Digest::of(client_secret.as_bytes()).as_hex()), ..self }
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
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Redis(#[from] LinkError),
}

/// Why there is no store to start with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    File(#[from] file::OpenError),
    #[error("the Redis store cannot be set up")]
    Redis(#[from] LinkError),
    #[error("the operating system gives no randomness")]
    NoRandomness,
}

impl OpenError {
    /// Another shim has the file.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::File(file::OpenError::InUse { .. }))
    }
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
pub struct Store {
    records: Records,
    pulse: Pulse,
    metrics: Metrics,
}

#[derive(Debug)]
enum Records {
    Memory(Memory),
    File(File),
    Redis(Redis),
}

/// Whether a record was still what the decision saw.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Swapped {
    Done,
    /// It is this by now, and nothing was changed.
    Other(Option<Vec<u8>>),
}

impl Store {
    pub fn open(config: &config::Store, metrics: &Metrics) -> Result<Self, OpenError> {
        let records = match config {
            config::Store::Memory => Records::Memory(Memory::default()),
            config::Store::File { directory } => Records::File(File::open(directory)?),
            config::Store::Redis(redis) => Records::Redis(Redis::open(redis)?),
        };
        let kind = match &records {
            Records::Memory(_) => "memory",
            Records::File(_) => "file",
            Records::Redis(_) => "redis",
        };
        metrics.store_kind.get_or_create(&StoreKind { kind }).set(1);
        let process = Process::from_random(random::bytes().map_err(|_refusal| OpenError::NoRandomness)?);
        Ok(Self { records, pulse: Pulse::of(process), metrics: metrics.clone() })
    }

    /// The record, unless its time is over.
    pub async fn get<R: Record>(&self, key: &Key<R>, now: Timestamp) -> Result<Option<R>, StoreError> {
        let got = async {
            let found = self.find(&key.name, now).await?;
            found.as_deref().and_then(|found| self.live(found, now)).map(read).transpose()
        };
        self.counted("get", got).await
    }

    /// Reads, lets `decide` say what to do, and writes that, as one atomic step. `decide` may run several times: it only
    /// decides.
    pub async fn update<R: Record, T>(
        &self,
        key: &Key<R>,
        now: Timestamp,
        decide: impl Fn(Option<R>) -> (Change<R>, T),
    ) -> Result<T, StoreError> {
        let step = |current: Option<&[u8]>| {
            let (change, told) = decide(current.map(read).transpose()?);
            let change = match change {
                Change::Keep => Change::Keep,
                Change::Remove => Change::Remove,
                Change::Put { record, until } => {
                    let mut record = write(&record)?;
                    if let Some(current) = current {
                        unknown::carry::<R>(current, &mut record)?;
                    }
                    Change::Put { record, until }
                }
            };
            Ok((change, told))
        };
        let updated = async {
            match &self.records {
                Records::Memory(memory) => memory.update(&key.name, now, step),
                Records::File(_) | Records::Redis(_) => self.update_by_swapping(&key.name, now, step).await,
            }
        };
        self.counted("update", updated).await
    }

    /// The decision is made here and holds if the record has not changed meanwhile; else it is made again. Of those that
    /// race one always gets on.
    async fn update_by_swapping<T>(
        &self,
        key: &str,
        now: Timestamp,
        step: impl Fn(Option<&[u8]>) -> Result<(Change<Vec<u8>>, T), StoreError>,
    ) -> Result<T, StoreError> {
        // Redis says what is there when it is not what was supposed: nothing, or what was there when it was last looked at.
        // To suppose it costs nothing, and saves a round trip when it is so.
        let (mut seen, mut supposed) = match &self.records {
            Records::Redis(redis) => (redis.supposed(key), true),
            Records::Memory(_) | Records::File(_) => (self.find(key, now).await?, false),
        };
        loop {
            let live = seen.as_deref().and_then(|seen| self.live(seen, now));
            let (change, told) = step(live)?;
            if change == Change::Keep || (change == Change::Remove && live.is_none()) {
                if !supposed {
                    return Ok(told);
                }
                (seen, supposed) = (self.find(key, now).await?, false);
                continue;
            }
            let swapped = match &self.records {
                Records::Memory(_) => return Ok(told),
                Records::File(file) => file.swap(key, now, seen.as_deref(), change).await?,
                Records::Redis(redis) => redis.swap(key, now, seen.as_deref(), &change).await?,
            };
            match swapped {
                Swapped::Done => return Ok(told),
                Swapped::Other(current) => (seen, supposed) = (current, false),
            }
        }
    }

    /// Forgets what is over; a store that forgets by itself does nothing.
    pub fn expire(&self, now: Timestamp) {
        match &self.records {
            Records::Memory(memory) => memory.expire(now),
            Records::File(file) => file.expire(now),
            Records::Redis(_) => {}
        }
    }

    /// Whether records can be kept at the moment, as far as is known.
    pub async fn look(&self) -> Result<(), StoreError> {
        match &self.records {
            Records::Memory(_) => Ok(()),
            Records::File(file) => file.look(),
            Records::Redis(redis) => redis.get("look").await.map(drop),
        }
    }

    /// What is kept under a key.
    async fn find(&self, key: &str, now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.records {
            Records::Memory(memory) => Ok(memory.get(key, now)),
            Records::File(file) => file.get(key, now).await,
            Records::Redis(redis) => redis.get(key).await,
        }
    }

    /// The record in it; Redis' has more around it, and may be over by our clock and not by its own.
    fn live<'a>(&self, kept: &'a [u8], now: Timestamp) -> Option<&'a [u8]> {
        match &self.records {
            Records::Memory(_) | Records::File(_) => Some(kept),
            Records::Redis(_) => redis::live(kept, now),
        }
    }

    async fn counted<T>(
        &self,
        operation: &'static str,
        run: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let result = run.await;
        let labels = StoreOperation { operation };
        let took = began.elapsed();
        self.metrics.store_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if result.is_ok() {
            self.metrics.recent.worked(Neighbour::Store, Some(took));
        } else {
            self.metrics.store_errors.get_or_create(&labels).inc();
            self.metrics.recent.failed(Neighbour::Store, operation);
        }
        result
    }
}

fn read<R: Record>(bytes: &[u8]) -> Result<R, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Unreadable { kind: R::KIND, source })
}

fn write<R: Record>(record: &R) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|source| StoreError::Unwritable { kind: R::KIND, source })
}
