//! `store.kind = "file"`: what is answered is on the disk, the file is ours alone, and it is never silently replaced.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, TableDefinition};
use threepid_shim::config;
use threepid_shim::in_flight::{self, Note};
use threepid_shim::matrix::{Address, ClientSecret, Medium, Purpose, Sid, Threepid};
use threepid_shim::store::{Key, Store};
use threepid_shim::telemetry::{Metrics, RequestId};

use super::{NOW, at, put, read, write};
use crate::disk::Disk;
use crate::homeserver::soon;

const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const ENDS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("ends");

fn try_open(directory: &Path) -> Result<Store, String> {
    let config = config::Store::File { directory: directory.to_owned() };
    Store::open(&config, &Metrics::new()).map_err(|error| error.to_string())
}

fn open(directory: &Path) -> Store {
    try_open(directory).unwrap()
}

/// What is in the folder.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

fn file(directory: &Path) -> PathBuf {
    directory.join("sessions.redb")
}

/// With so many records, named by their numbers.
async fn filled(directory: &Path, count: usize) -> Vec<Key<threepid_shim::store::ForeignSid>> {
    let store = open(directory);
    let keys: Vec<_> = (0..count).map(|n| Key::foreign_sid(&n.to_string())).collect();
    for (n, key) in keys.iter().enumerate() {
        write(&store, key, put(&n.to_string(), 900)).await;
    }
    keys
}

/// S§5.12.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_in_the_file_at_that_moment_and_nobody_else_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("state/sessions");
    let store = open(&directory);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&file(&directory))), (0o700, 0o600));
    for n in 0..5 {
        let key = Key::foreign_sid(&n.to_string());
        write(&store, &key, put(&n.to_string(), 900)).await;
        // As a process that is killed here leaves it.
        let left = tempfile::tempdir().unwrap();
        fs::copy(file(&directory), file(left.path())).unwrap();
        let after = open(left.path());
        assert_eq!(read(&after, &key, NOW).await, Some(n.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_told_that_the_file_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let refused = try_open(folder.path()).unwrap_err();
    assert!(refused.contains("sessions.redb is in use by another process"), "{refused}");
    drop(first);
    open(folder.path());
}

/// `sessions-layout-1.redb` has two records, of 50 and 5,000 seconds, and was written when there was no index by time.
/// S§5.13.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_first_layout_is_moved_forward_and_one_of_a_later_shim_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/store/sessions-layout-1.redb");
    fs::copy(old, file(folder.path())).unwrap();
    let store = open(folder.path());
    let (short, long) = (Key::foreign_sid("short"), Key::foreign_sid("long"));
    assert_eq!(read(&store, &short, NOW).await.as_deref(), Some("one.example"));
    assert_eq!(read(&store, &long, NOW).await.as_deref(), Some("two.example"));
    store.expire(at(100));
    write(&store, &Key::foreign_sid("after"), put("third", 900)).await;
    drop(store);
    let database = Database::open(file(folder.path())).unwrap();
    let reading = database.begin_read().unwrap();
    assert_eq!(reading.open_table(ABOUT).unwrap().get("version").unwrap().unwrap().value(), 2);
    let (records, ends) = (reading.open_table(RECORDS).unwrap(), reading.open_table(ENDS).unwrap());
    let counts = [redb::ReadableTableMetadata::len(&records), redb::ReadableTableMetadata::len(&ends)];
    assert_eq!(counts.map(Result::unwrap), [2, 2], "what is over is found by the index that the old file had not");
    drop((records, ends, reading));

    let writing = database.begin_write().unwrap();
    writing.open_table(ABOUT).unwrap().insert("version", 3).unwrap();
    writing.commit().unwrap();
    drop(database);
    let refused = try_open(folder.path()).unwrap_err();
    assert!(refused.contains("has layout 3, and this version of the shim knows 2 at most"), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let database = Database::open(file(folder.path())).unwrap();
    let records = database.begin_read().unwrap().open_table(RECORDS).unwrap();
    assert_eq!(redb::ReadableTableMetadata::len(&records).unwrap(), 2, "it is left to the shim that wrote it");
}

/// A session that was validated under the first layout, as that wrote it: with these tables and this record, and no index by
/// time. S§5.13.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_in_a_file_of_the_first_layout_is_still_its_clients() {
    let folder = tempfile::tempdir().unwrap();
    let (sid, until) = (Sid::from_random([1; 16]), at(90_000).as_millis());
    let records: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(include_str!("records-1.json")).unwrap();
    let database = Database::create(file(folder.path())).unwrap();
    let writing = database.begin_write().unwrap();
    writing.open_table(ABOUT).unwrap().insert("version", 1).unwrap();
    let kept = [&until.to_be_bytes(), records["session"].to_string().as_bytes()].concat();
    writing.open_table(RECORDS).unwrap().insert(format!("session:{}", sid.as_str()).as_str(), kept.as_slice()).unwrap();
    writing.commit().unwrap();
    drop(database);
    let session = async |store: &Store| store.get(&Key::session(&sid), NOW).await.unwrap().unwrap();
    let store = open(folder.path());
    store.expire(at(89_999));
    let found = session(&store).await;
    assert_eq!((found.purpose, found.threepid.address.expose()), (Purpose::Register, "alice@example.org"));
    let secret = ClientSecret::parse("s3cr3t").unwrap();
    // It was on its way with a request when it was written, and the homeserver asks now.
    let told = store.update_session(&sid, NOW, |session| session.tell(&secret, NOW)).await.unwrap();
    assert_eq!(told, Some(Some(NOW)));
    drop(store);
    assert_ne!(session(&open(folder.path())).await, found, "that it was told is kept");
}

/// Found by the soak: the client asked again and was kept waiting for two minutes. S§5.12.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_its_way_when_the_shim_was_killed_keeps_nobody_waiting_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let threepid = Threepid { medium: Medium::Email, address: Address::email("a@example.org").unwrap() };
    let key = in_flight::key(&threepid, &ClientSecret::parse("s3cr3t").unwrap());
    let note = |n: u8| Note::new(RequestId::from_random([n; 8]), Purpose::Register, 1, None, None, NOW);
    let store = open(folder.path());
    write(&store, &Key::foreign_sid("kept"), put("kept.example", 900)).await;
    in_flight::announce(&store, &key, &note(1), || NOW).await.unwrap();
    drop(store);
    let store = open(folder.path());
    soon("the second request", in_flight::announce(&store, &key, &note(2), || NOW)).await.unwrap();
    assert_eq!(in_flight::claim(&store, &key, 1, NOW).await.unwrap().unwrap().request_id, note(2).request_id);
    store.expire(at(60));
    assert_eq!(read(&store, &Key::foreign_sid("kept"), at(60)).await.as_deref(), Some("kept.example"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_set_aside_and_never_replaced() {
    let page = 4096;
    crate::logged::listen();
    let damages: [(&str, Box<dyn Fn(&mut Vec<u8>)>); 8] = [
        ("cut to nothing", Box::new(Vec::clear)),
        ("no database at all", Box::new(|bytes| *bytes = b"some other program's file".repeat(500))),
        ("cut to half", Box::new(|bytes| bytes.truncate(bytes.len() / 2))),
        ("cut to its head", Box::new(|bytes| bytes.truncate(100))),
        ("its head is zeroed", Box::new(|bytes| bytes[..512].fill(0))),
        ("all but its head is zeroed", Box::new(move |bytes| bytes[page..].fill(0))),
        (
            "every page is scratched",
            Box::new(move |bytes| bytes.iter_mut().skip(page + 64).step_by(page).for_each(|byte| *byte ^= 0x55)),
        ),
        (
            "every byte behind the head is inverted",
            Box::new(move |bytes| bytes[page..].iter_mut().for_each(|byte| *byte = !*byte)),
        ),
    ];
    for (what, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), 300).await;
        let mut bytes = fs::read(file(folder.path())).unwrap();
        damage(&mut bytes);
        fs::write(file(folder.path()), &bytes).unwrap();
        crate::logged::take();
        let store = try_open(folder.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let said = crate::logged::take();
        let key = Key::foreign_sid("after");
        write(&store, &key, put("new", 900)).await;
        assert_eq!(read(&store, &key, NOW).await.as_deref(), Some("new"), "{what}");
        let aside: Vec<_> = names(folder.path()).into_iter().filter(|name| name != "sessions.redb").collect();
        let [aside] = aside.as_slice() else { panic!("{what}: {aside:?}") };
        assert!(aside.starts_with("sessions.redb.damaged-"), "{what}: {aside}");
        assert!(fs::read(folder.path().join(aside)).unwrap() == bytes, "{what}: it is kept to the byte");
        let line = said.lines().find(|line| line.contains(" ERROR ")).unwrap_or_else(|| panic!("{what}: {said}"));
        assert!(line.contains(aside) && line.contains("sessions begin anew"), "{what}: {line}");
    }
}

/// A first start that fails leaves nothing that a later one would take for a file that was damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_on_a_full_disk_fails_and_the_next_one_is_the_first() {
    let disk = Disk::new();
    let directory = disk.path().join("sessions");
    fs::create_dir(&directory).unwrap();
    disk.fill();
    for _ in 0..2 {
        let refused = try_open(&directory).unwrap_err();
        assert!(refused.contains("sessions.redb"), "{refused}");
    }
    disk.make_room();
    let store = open(&directory);
    let key = Key::foreign_sid("17");
    write(&store, &key, put("a", 900)).await;
    assert_eq!(names(&directory), ["sessions.redb"]);
}

/// Found when a file was cut to its head under a running shim: it answered 503 until somebody started it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_damaged_while_it_is_used_is_set_aside_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    // More than the pages that are kept in memory.
    let big = "x".repeat(1 << 20);
    let keys: Vec<_> = (0..40).map(|n| Key::foreign_sid(&n.to_string())).collect();
    let fill = async || {
        for key in &keys {
            write(&store, key, put(&big, 900)).await;
        }
        let one = fs::OpenOptions::new().write(true).open(file(folder.path())).unwrap();
        one.set_len(4096).unwrap();
        let mut is_refused = false;
        for key in &keys {
            is_refused |= store.get(key, NOW).await.is_err();
        }
        assert!(is_refused, "some of it was not in memory");
    };
    let aside = || names(folder.path()).iter().filter(|name| name.starts_with("sessions.redb.damaged-")).count();
    fill().await;
    let after = Key::foreign_sid("after");
    soon("another file is begun", async {
        while store.update(&after, NOW, |_| (put("after", 900), ())).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    store.look().await.unwrap();
    assert_eq!((read(&store, &after, NOW).await.as_deref(), aside()), (Some("after"), 1));
    fill().await;
    soon("the second is looked at, which is somebody's to do with the disk", async {
        loop {
            let refused = store.get(&after, NOW).await.unwrap_err();
            let mut causes =
                std::iter::successors(refused.source(), |error: &&(dyn Error + 'static)| (*error).source());
            if causes.any(|cause| cause.to_string().contains("sessions.redb is damaged")) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(aside(), 1);
}

/// S§5.16.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_an_update_fails_nothing_stored_is_lost_and_it_heals_by_itself() {
    let disk = Disk::new();
    let directory = disk.path().join("sessions");
    let keys = filled(&directory, 20).await;
    let store = open(&directory);
    disk.fill();
    let mut kept = keys.len();
    let big = "x".repeat(20_000);
    let mut failed = None;
    for n in 0..50 {
        let key = Key::foreign_sid(&format!("big {n}"));
        match store.update(&key, NOW, |_| (put(&big, 900), ())).await {
            Ok(()) => kept += 1,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let failed = failed.expect("the disk is full");
    let cause = std::iter::successors(failed.source(), |error: &&(dyn Error + 'static)| (*error).source())
        .last()
        .unwrap()
        .to_string();
    assert!(cause.contains("No space left"), "{failed}: {cause}");
    assert!(store.look().await.is_err());
    for (n, key) in keys.iter().enumerate() {
        let found = soon("the file is read again", async {
            loop {
                if let Ok(found) = store.get(key, NOW).await {
                    return found;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        assert_eq!(found.await.unwrap().id_server, n.to_string());
    }
    disk.make_room();
    let after = Key::foreign_sid("after");
    soon("the file is written again", async {
        while store.update(&after, NOW, |_| (put("after", 900), ())).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    store.look().await.unwrap();
    drop(store);
    let store = open(&directory);
    let mut there = usize::from(read(&store, &after, NOW).await.is_some()) - 1;
    for key in keys.into_iter().chain((0..50).map(|n| Key::foreign_sid(&format!("big {n}")))) {
        there += usize::from(read(&store, &key, NOW).await.is_some());
    }
    assert_eq!(there, kept, "everything that was answered, and nothing else");
}
