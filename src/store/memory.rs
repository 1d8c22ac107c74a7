//! Records in this process: gone when it stops, and nobody else's.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::{Change, StoreError};
use crate::matrix::Timestamp;

#[derive(Default)]
pub(super) struct Memory {
    records: DashMap<String, Kept>,
}

struct Kept {
    bytes: Vec<u8>,
    until: Timestamp,
}

impl Memory {
    pub(super) fn get(&self, key: &str, now: Timestamp) -> Option<Vec<u8>> {
        self.records.get(key).filter(|kept| now < kept.until).map(|kept| kept.bytes.clone())
    }

    /// The entry's shard is locked while `step` decides.
    pub(super) fn update<T>(
        &self,
        key: &str,
        now: Timestamp,
        step: impl Fn(Option<&[u8]>) -> Result<(Change<Vec<u8>>, T), StoreError>,
    ) -> Result<T, StoreError> {
        let entry = self.records.entry(key.to_owned());
        let current = match &entry {
            Entry::Occupied(occupied) if now < occupied.get().until => Some(occupied.get().bytes.as_slice()),
            Entry::Occupied(_) | Entry::Vacant(_) => None,
        };
        let (change, told) = step(current)?;
        match (change, entry) {
            (Change::Put { record: bytes, until }, entry) => {
                entry.insert(Kept { bytes, until });
            }
            (Change::Remove, Entry::Occupied(occupied)) => {
                occupied.remove();
            }
            (Change::Remove, Entry::Vacant(_)) | (Change::Keep, _) => {}
        }
        Ok(told)
    }

    pub(super) fn expire(&self, now: Timestamp) {
        self.records.retain(|_, kept| now < kept.until);
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("records", &self.records.len()).finish()
    }
}
