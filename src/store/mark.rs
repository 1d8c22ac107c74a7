//! Updates whose decision can be told beforehand, as an edit of the record's text: one round trip where others take two.

use super::{Change, Key, Record, Records, Store, StoreError, read};
use crate::matrix::Timestamp;

/// Where all of `when` and `from` are in a record's JSON, `from` is replaced once, or the record removed. A text with a
/// quotation mark in it that no backslash precedes, such as `"claimed":false`, is nowhere but where a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub when: Vec<String>,
    pub from: String,
    pub effect: Effect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Replace(String),
    Remove,
}

impl Store {
    /// Makes the first of the edits that fits. Gives the record back as it is then (or was, if it is removed), and
    /// whether an edit was made. `until` says when an edited record ends.
    pub async fn mark<R: Record>(
        &self,
        key: &Key<R>,
        now: Timestamp,
        edits: &[Edit],
        until: impl Fn(&R) -> Timestamp,
    ) -> Result<Option<(R, bool)>, StoreError> {
        let edit = |current: Option<&[u8]>| {
            let Some(current) = current else { return Ok((Change::Keep, None)) };
            let text = std::str::from_utf8(current).unwrap_or_default();
            let fits = |edit: &&Edit| text.contains(&edit.from) && edit.when.iter().all(|when| text.contains(when));
            Ok(match edits.iter().find(fits).map(|edit| (&edit.from, &edit.effect)) {
                None => (Change::Keep, Some((read(current)?, false))),
                Some((_, Effect::Remove)) => (Change::Remove, Some((read(current)?, true))),
                Some((from, Effect::Replace(to))) => {
                    let edited = text.replacen(from, to, 1).into_bytes();
                    let record = read(&edited)?;
                    (Change::Put { record: edited, until: until(&record) }, Some((record, true)))
                }
            })
        };
        let marked = async {
            match &self.records {
                Records::Memory(memory) => memory.update(&key.name, now, edit),
                Records::File(_) => self.update_by_swapping(&key.name, now, edit).await,
                Records::Redis(redis) => {
                    let (done, kept) = redis.mark(&key.name, now, edits).await?;
                    let record = kept.as_deref().and_then(|kept| self.live(kept, now)).map(read).transpose()?;
                    Ok(record.map(|record| (record, done)))
                }
            }
        };
        self.counted("update", marked).await
    }
}
