//! The session file itself: opened, of which version, moved forward, set aside when it is damaged, opened again.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::{FileError, guarded, split};

/// By key: until when (8 bytes, big-endian), then the record.
pub(super) const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// The same keys by the time they end, so that forgetting looks at nothing else.
pub(super) const ENDS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("ends");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const VERSION: &str = "version";

const NAME: &str = "sessions.redb";
/// How the tables are laid out. 1: without `ends`.
const LAYOUT: u64 = 2;
/// Pages kept in memory. The default of 1 GiB is more than the rest of the shim takes at its busiest.
const CACHE: usize = 8 << 20;
/// After a failure, between two tries to open the file again: a look at the whole of it.
const REST: Duration = Duration::from_millis(500);

/// Why the session file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is in use by another process; stop that one, or give this one a state_dir of its own", path.display())]
    InUse { path: PathBuf },
    #[error("{} has layout {found}, and this version of the shim knows {LAYOUT} at most; start the newer version that wrote it", path.display())]
    Newer { path: PathBuf, found: u64 },
    #[error("cannot use {}", path.display())]
    Redb {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("{} is damaged: {found}", path.display())]
    Damaged { path: PathBuf, found: String },
}

impl OpenError {
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.to_owned(), source }
    }
}

/// The file while it can be used; after a failure closed, and opened again when it is next wanted.
#[derive(Debug)]
pub(super) struct Opened {
    path: PathBuf,
    state: Mutex<State>,
    /// Whether a file was set aside since the start: a disk that damages one after another would be filled with them.
    was_set_aside: AtomicBool,
}

#[derive(Debug)]
enum State {
    Open(Arc<Database>),
    /// By somebody who holds no lock meanwhile: a look at every page takes its time.
    Opening,
    Failed {
        at: Instant,
        fault: FileError,
    },
}

impl Opened {
    pub(super) fn at_start(directory: &Path) -> Result<Self, OpenError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(OpenError::file("create", directory))?;
        // Made before by somebody else, perhaps; what is in it is nobody else's to read.
        let own = fs::set_permissions(directory, Permissions::from_mode(0o700));
        own.map_err(OpenError::file("close to others", directory))?;
        let path = directory.join(NAME);
        let (database, _) = open_or_set_aside(&path)?;
        let state = Mutex::new(State::Open(Arc::new(database)));
        Ok(Self { path, state, was_set_aside: AtomicBool::new(false) })
    }

    /// After any failure the file is closed: redb wants that, since it cannot know any more what is on the disk.
    pub(super) fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, FileError> {
        let database = self.database(|| self.open_again())?;
        let ran = guarded(|| run(&database).map_err(|error| FileError::Redb(Arc::new(error))));
        let used = Arc::downgrade(&database);
        drop(database);
        ran.inspect_err(|fault| {
            let mut state = self.state();
            // Whoever failed long ago closes nothing that was opened since.
            if matches!(&*state, State::Open(open) if used.as_ptr() == Arc::as_ptr(open)) {
                let failed = State::Failed { at: Instant::now(), fault: fault.clone() };
                let closed = std::mem::replace(&mut *state, failed);
                drop(state);
                // It writes its last pages.
                drop(closed);
            }
        })
    }

    pub(super) fn last_fault(&self) -> Result<(), FileError> {
        match &*self.state() {
            State::Open(_) => Ok(()),
            State::Opening => Err(FileError::Opening),
            State::Failed { fault, .. } => Err(fault.clone()),
        }
    }

    /// The lock is never held for long: a door's thread takes it, too.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self, open: impl FnOnce() -> Result<Database, OpenError>) -> Result<Arc<Database>, FileError> {
        {
            let mut state = self.state();
            match &*state {
                State::Open(database) => return Ok(Arc::clone(database)),
                State::Opening => return Err(FileError::Opening),
                State::Failed { at, .. } if at.elapsed() < REST => return Err(FileError::Resting),
                State::Failed { .. } => *state = State::Opening,
            }
        }
        let opened = open().map(Arc::new).map_err(|error| FileError::Reopen(Arc::new(error)));
        *self.state() = match &opened {
            Ok(database) => State::Open(Arc::clone(database)),
            Err(fault) => State::Failed { at: Instant::now(), fault: fault.clone() },
        };
        opened.inspect(|_| tracing::info!("the session file can be used again"))
    }

    fn open_again(&self) -> Result<Database, OpenError> {
        if self.was_set_aside.load(Ordering::Relaxed) {
            return open(&self.path);
        }
        let (database, was_set_aside) = open_or_set_aside(&self.path)?;
        self.was_set_aside.store(was_set_aside, Ordering::Relaxed);
        Ok(database)
    }
}

/// A damaged file is set aside under a name of its own, which is said, and another is begun.
fn open_or_set_aside(path: &Path) -> Result<(Database, bool), OpenError> {
    let found = match open(path) {
        Err(OpenError::Damaged { found, .. }) => found,
        opened => return opened.map(|database| (database, false)),
    };
    let aside = set_aside(path)?;
    let (file, aside) = (path.display(), aside.display());
    tracing::error!(found, "{file} is damaged; it is kept as {aside}, and sessions begin anew");
    open(path).map(|database| (database, true))
}

/// Opens the file with a look at every page of it, since redb trusts what it reads later; begins it if it is not there.
fn open(path: &Path) -> Result<Database, OpenError> {
    let is_new = begin(path)?;
    let opened = opened(path, is_new);
    // A disk that is full, say: the next start is the first one still, and not told of damage.
    if is_new && !matches!(opened, Ok(_) | Err(OpenError::InUse { .. })) {
        fs::remove_file(path).ok();
    }
    opened
}

/// An empty file that we may fill, unless there is a file. Its name is ours from here on: an empty one that was there before
/// is damaged, and what was in it is lost. (Or a first start broke off just here. Nothing tells the two apart, and to keep an
/// empty file costs nothing.)
fn begin(path: &Path) -> Result<bool, OpenError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => sync_folder(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(OpenError::file("begin", path)(error)),
    }
}

fn opened(path: &Path, is_new: bool) -> Result<Database, OpenError> {
    let opened = guarded(|| {
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        let database = if is_new { builder.create(path) } else { builder.open(path) };
        Ok(database.map(|database| {
            let moved = move_forward(path, &database);
            (database, moved)
        }))
    });
    let damaged = |found: String| OpenError::Damaged { path: path.to_owned(), found };
    let (database, moved) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch)) => {
            return Err(OpenError::InUse { path: path.to_owned() });
        }
        Ok(Err(error)) => return Err(classify(path, error.into())),
        Err(panic) => return Err(damaged(panic.to_string())),
    };
    moved.map(|()| database)
}

/// Damage is what no other process, disk or right would make good.
fn classify(path: &Path, error: redb::Error) -> OpenError {
    let is_torn = |error: &io::Error| matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
    let is_damage =
        matches!(&error, redb::Error::Corrupted(_)) || matches!(&error, redb::Error::Io(error) if is_torn(error));
    if is_damage {
        let is_empty = fs::metadata(path).is_ok_and(|about| about.len() == 0);
        let found = if is_empty { "it is empty".to_owned() } else { error.to_string() };
        return OpenError::Damaged { path: path.to_owned(), found };
    }
    OpenError::Redb { path: path.to_owned(), source: Box::new(error) }
}

/// From whatever layout the file has to ours, in one commit.
fn move_forward(path: &Path, database: &Database) -> Result<(), OpenError> {
    let redb = |error: redb::Error| classify(path, error);
    let found = layout(database).map_err(redb)?;
    if found > LAYOUT {
        return Err(OpenError::Newer { path: path.to_owned(), found });
    }
    if found < LAYOUT {
        lay_out(database, found).map_err(redb)?;
        if found > 0 {
            tracing::info!(from = found, to = LAYOUT, "the session file was moved forward");
        }
    }
    Ok(())
}

/// 0: nothing is in it.
fn layout(database: &Database) -> Result<u64, redb::Error> {
    let reading = database.begin_read()?;
    let about = match reading.open_table(ABOUT) {
        Err(redb::TableError::TableDoesNotExist(_)) if reading.list_tables()?.next().is_none() => return Ok(0),
        about => about?,
    };
    let missing = || StorageError::Corrupted("it does not say its layout".to_owned());
    Ok(about.get(VERSION)?.ok_or_else(missing)?.value())
}

fn lay_out(database: &Database, found: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let (records, mut ends) = (transaction.open_table(RECORDS)?, transaction.open_table(ENDS)?);
        if found < 2 {
            for record in records.iter()? {
                let (key, kept) = record?;
                let end = split(kept.value()).map(|(until, _)| until).unwrap_or_default();
                ends.insert((end, key.value()), ())?;
            }
        }
        transaction.open_table(ABOUT)?.insert(VERSION, LAYOUT)?;
    }
    transaction.commit()?;
    Ok(())
}

fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let aside = path.with_file_name(format!("{NAME}.damaged-{}", now.as_millis()));
    fs::rename(path, &aside).map_err(OpenError::file("set aside the damaged", path))?;
    sync_folder(path)?;
    Ok(aside)
}

/// A name is as durable as its folder.
fn sync_folder(path: &Path) -> Result<(), OpenError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(OpenError::file("write", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The admin door looks while somebody else opens the file again, which takes as long as the file is large.
    #[test]
    fn who_looks_at_the_file_while_it_is_opened_again_is_told_so_and_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Opened::at_start(folder.path()).unwrap();
        let at = Instant::now().checked_sub(REST).unwrap();
        *opened.state() = State::Failed { at, fault: FileError::Resting };
        let again = opened.database(|| {
            assert!(opened.state.try_lock().is_ok(), "nobody has to wait");
            assert!(matches!(opened.last_fault(), Err(FileError::Opening)));
            assert!(matches!(opened.with(|_| Ok(())), Err(FileError::Opening)));
            opened.open_again()
        });
        again.unwrap();
        opened.last_fault().unwrap();
    }
}
