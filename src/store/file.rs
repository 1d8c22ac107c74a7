//! Records in one file on this process's disk: whoever is answered is in it, whatever happens next.
//!
//! One thread writes. While it waits for the disk, further changes gather, and all of them are one commit; one alone waits
//! for nobody.

mod opened;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use redb::{Database, ReadableDatabase, ReadableTable, Table};
use tokio::sync::oneshot;

use super::{Change, IN_FLIGHT, StoreError, Swapped};
use crate::matrix::Timestamp;
pub(super) use opened::OpenError;
use opened::{ENDS, Opened, RECORDS};

/// Changes that one commit takes at most: none waits for more than that many before it.
const MOST_AT_ONCE: usize = 1000;
/// Records that one commit forgets, so that changes do not wait for a million of them.
const FORGOTTEN_AT_ONCE: usize = 2000;

/// What went wrong in the file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileError {
    #[error("the session file cannot be used")]
    Redb(#[source] Arc<redb::Error>),
    #[error("the session file cannot be opened again")]
    Reopen(#[source] Arc<OpenError>),
    #[error("the session file failed a moment ago and is not tried again yet")]
    Resting,
    #[error("the session file failed a moment ago and is being opened again")]
    Opening,
    #[error("a change of the session file ended by a panic: {0}")]
    Panic(Arc<str>),
    #[error("nobody writes the session file any more")]
    Stopped,
}

#[derive(Debug)]
pub(super) struct File {
    opened: Arc<Opened>,
    /// `None` only while it is dropped.
    orders: Option<mpsc::Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

enum Order {
    Swap(Swap, oneshot::Sender<Result<Swapped, FileError>>),
    Expire(Timestamp),
}

/// To be done only if the record is still what the decision saw.
struct Swap {
    key: String,
    now: Timestamp,
    seen: Option<Vec<u8>>,
    change: Change<Vec<u8>>,
}

impl File {
    /// Opens `directory/sessions.redb`, or begins it.
    pub(super) fn open(directory: &Path) -> Result<Self, OpenError> {
        let opened = Arc::new(Opened::at_start(directory)?);
        if let Err(error) = opened.with(forget_in_flight) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "requests of a process that ended stay in the session file, and are waited for until their time is over"
            );
        }
        let (orders, received) = mpsc::channel();
        let writing = Arc::clone(&opened);
        let writer = std::thread::Builder::new()
            .name("session file".to_owned())
            .spawn(move || write(&writing, &received))
            .map_err(|source| OpenError::file("start the thread that writes", directory)(source))?;
        Ok(Self { opened, orders: Some(orders), writer: Some(writer) })
    }

    pub(super) async fn get(&self, key: &str, now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
        let (opened, key) = (Arc::clone(&self.opened), key.to_owned());
        let read = move || opened.with(|database| look(database, &key, now));
        // A read that is not in the cache waits for the disk.
        let read = tokio::task::spawn_blocking(move || guarded(read)).await;
        Ok(read.map_err(|_cancelled| FileError::Stopped)??)
    }

    pub(super) async fn swap(
        &self,
        key: &str,
        now: Timestamp,
        seen: Option<&[u8]>,
        change: Change<Vec<u8>>,
    ) -> Result<Swapped, StoreError> {
        let swap = Swap { key: key.to_owned(), now, seen: seen.map(<[u8]>::to_vec), change };
        let (answer, answered) = oneshot::channel();
        self.order(Order::Swap(swap, answer))?;
        Ok(answered.await.map_err(|_gone| FileError::Stopped)??)
    }

    pub(super) fn expire(&self, now: Timestamp) {
        if self.order(Order::Expire(now)).is_err() {
            tracing::error!("nobody writes the session file any more");
        }
    }

    /// Whether what was tried last went well.
    pub(super) fn look(&self) -> Result<(), StoreError> {
        Ok(self.opened.last_fault()?)
    }

    fn order(&self, order: Order) -> Result<(), FileError> {
        let orders = self.orders.as_ref().ok_or(FileError::Stopped)?;
        orders.send(order).map_err(|_unsent| FileError::Stopped)
    }
}

impl Drop for File {
    /// The lock on the file is gone when this is.
    fn drop(&mut self) {
        self.orders = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the session file's thread ended by a panic");
        }
    }
}

/// The writing thread: until there is nobody left to order anything. Between two rounds of forgetting it looks for orders.
fn write(opened: &Opened, orders: &mpsc::Receiver<Order>) {
    let mut forgetting = None;
    loop {
        let first = match forgetting {
            None => orders.recv().map_err(|_gone| TryRecvError::Disconnected),
            Some(_) => orders.try_recv(),
        };
        if matches!(first, Err(TryRecvError::Disconnected)) {
            return;
        }
        let mut swaps = Vec::new();
        for order in first.into_iter().chain(orders.try_iter().take(MOST_AT_ONCE)) {
            match order {
                Order::Swap(swap, answer) => swaps.push((swap, answer)),
                Order::Expire(now) => forgetting = Some(now),
            }
        }
        if !swaps.is_empty() {
            swap_all(opened, swaps);
        }
        forgetting = forgetting.filter(|now| is_more_over(opened, *now));
    }
}

fn swap_all(opened: &Opened, swaps: Vec<(Swap, oneshot::Sender<Result<Swapped, FileError>>)>) {
    let (swaps, answers): (Vec<Swap>, Vec<_>) = swaps.into_iter().unzip();
    let done = guarded(|| opened.with(|database| commit(database, &swaps)));
    for (n, answer) in answers.into_iter().enumerate() {
        let result = done.as_ref().map_err(FileError::clone);
        let result = result.and_then(|all| all.get(n).cloned().ok_or(FileError::Stopped));
        // Whoever asked may have gone.
        answer.send(result).ok();
    }
}

/// One round of forgetting: whether another has to follow.
fn is_more_over(opened: &Opened, now: Timestamp) -> bool {
    match guarded(|| opened.with(|database| forget(database, now))) {
        Ok(forgotten) => forgotten == FORGOTTEN_AT_ONCE,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "what is over cannot be removed from the session file");
            false
        }
    }
}

/// A damaged page makes redb panic here and there.
fn guarded<T>(run: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(FileError::Panic(said(panic.as_ref()))))
}

fn said(panic: &(dyn Any + Send)) -> Arc<str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").into()
}

/// All changes or none, on the disk when this returns.
fn commit(database: &Database, swaps: &[Swap]) -> Result<Vec<Swapped>, redb::Error> {
    let transaction = database.begin_write()?;
    let mut done = Vec::with_capacity(swaps.len());
    let mut changed = false;
    {
        let (mut records, mut ends) = (transaction.open_table(RECORDS)?, transaction.open_table(ENDS)?);
        for swap in swaps {
            let current = records.get(swap.key.as_str())?.map(|found| found.value().to_vec());
            let live = current.as_deref().and_then(|kept| live(kept, swap.now));
            if live != swap.seen.as_deref() {
                done.push(Swapped::Other(live.map(<[u8]>::to_vec)));
                continue;
            }
            done.push(Swapped::Done);
            let until = match &swap.change {
                Change::Keep => continue,
                Change::Remove => None,
                Change::Put { record, until } => Some((record, *until)),
            };
            changed = true;
            if let Some((ended, _)) = current.as_deref().and_then(split) {
                ends.remove((ended, swap.key.as_str()))?;
            }
            put(&mut records, &mut ends, &swap.key, until)?;
        }
    }
    if changed {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok(done)
}

fn put(
    records: &mut Table<'_, &str, &[u8]>,
    ends: &mut Table<'_, (u64, &str), ()>,
    key: &str,
    kept: Option<(&Vec<u8>, Timestamp)>,
) -> Result<(), redb::Error> {
    let Some((record, until)) = kept else {
        records.remove(key)?;
        return Ok(());
    };
    let value = [&until.as_millis().to_be_bytes(), record.as_slice()].concat();
    records.insert(key, value.as_slice())?;
    ends.insert((until.as_millis(), key), ())?;
    Ok(())
}

fn look(database: &Database, key: &str, now: Timestamp) -> Result<Option<Vec<u8>>, redb::Error> {
    let records = database.begin_read()?.open_table(RECORDS)?;
    Ok(records.get(key)?.and_then(|found| live(found.value(), now).map(<[u8]>::to_vec)))
}

/// Removes some of what is over, and says how much.
fn forget(database: &Database, now: Timestamp) -> Result<usize, redb::Error> {
    let transaction = database.begin_write()?;
    let over: Vec<(u64, String)> = {
        let ends = transaction.open_table(ENDS)?;
        let range = ends.range(..(now.as_millis().saturating_add(1), ""))?.take(FORGOTTEN_AT_ONCE);
        range.map(|entry| entry.map(|(end, _)| (end.value().0, end.value().1.to_owned()))).collect::<Result<_, _>>()?
    };
    if over.is_empty() {
        transaction.abort()?;
        return Ok(0);
    }
    {
        let (mut records, mut ends) = (transaction.open_table(RECORDS)?, transaction.open_table(ENDS)?);
        for (until, key) in &over {
            ends.remove((*until, key.as_str()))?;
            records.remove(key.as_str())?;
        }
    }
    transaction.commit()?;
    Ok(over.len())
}

/// Clients ask again at once when the shim is back, and would wait for requests that nobody answers any more.
fn forget_in_flight(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let mut any = false;
    {
        let (mut records, mut ends) = (transaction.open_table(RECORDS)?, transaction.open_table(ENDS)?);
        // `;` is what follows `:`, the end of a kind.
        let (first, behind) = (format!("{IN_FLIGHT}:"), format!("{IN_FLIGHT};"));
        for left in records.extract_from_if(first.as_str()..behind.as_str(), |_, _| true)? {
            let (key, kept) = left?;
            if let Some((until, _)) = split(kept.value()) {
                ends.remove((until, key.value()))?;
            }
            any = true;
        }
    }
    if any {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok(())
}

/// When a record ends, and its bytes.
fn split(kept: &[u8]) -> Option<(u64, &[u8])> {
    let (until, bytes) = kept.split_first_chunk()?;
    Some((u64::from_be_bytes(*until), bytes))
}

fn live(kept: &[u8], now: Timestamp) -> Option<&[u8]> {
    split(kept).filter(|(until, _)| now.as_millis() < *until).map(|(_, bytes)| bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn swap(key: &str, seen: Option<&[u8]>, change: Change<Vec<u8>>) -> Swap {
        Swap { key: key.to_owned(), now: NOW, seen: seen.map(<[u8]>::to_vec), change }
    }

    /// Found with a million records that were over: every change waited for five hundred commits.
    #[test]
    fn a_change_waits_for_one_round_of_forgetting_and_not_for_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Opened::at_start(folder.path()).unwrap();
        let over = NOW.after(Duration::from_secs(10));
        let put = |n: usize| swap(&format!("{n:08}"), None, Change::Put { record: b"kept".to_vec(), until: over });
        let all: Vec<Swap> = (0..=2 * FORGOTTEN_AT_ONCE).map(put).collect();
        opened.with(|database| commit(database, &all)).unwrap();
        // More than are taken at once: the last is ordered while the first two thousand are forgotten.
        let (orders, received) = mpsc::channel();
        orders.send(Order::Expire(over)).unwrap();
        for _ in 0..MOST_AT_ONCE {
            orders.send(Order::Swap(swap("nobody", None, Change::Keep), oneshot::channel().0)).unwrap();
        }
        let (answer, mut answered) = oneshot::channel();
        // It finds what the last round would forget, read by a clock by which that is not over.
        let last = format!("{:08}", 2 * FORGOTTEN_AT_ONCE);
        orders.send(Order::Swap(swap(&last, Some(b"kept"), Change::Keep), answer)).unwrap();
        drop(orders);
        write(&opened, &received);
        assert_eq!(answered.try_recv().unwrap().unwrap(), Swapped::Done);
    }
}
