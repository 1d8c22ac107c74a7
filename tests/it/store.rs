//! What every store has to do, and the same for all: one contract, run on each.

mod cluster;
mod file;
mod lost;
mod pulse;
mod redis;
mod rounds;
mod steps;
mod versions;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use threepid_shim::config;
use threepid_shim::in_flight::{self, Note, Verdict};
use threepid_shim::matrix::{Address, ClientSecret, Medium, Purpose, Sid, Threepid, Timestamp, Token};
use threepid_shim::serve::Clock;
use threepid_shim::session::{Asked, Lifetimes, Owner, Reserved, Session, Settled, Submitted, Wrong};
use threepid_shim::store::{Change, Client, ForeignSid, Fresh, Key, Record, Store, UiaStage};
use threepid_shim::telemetry::{Metrics, RequestId};

use crate::legacy::unique;
use crate::redis::Redis;

const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);
const TASKS: usize = 8;
const PURPOSES: [Purpose; 3] = [Purpose::Register, Purpose::Password, Purpose::Account3pid];

/// A store, and what has to be there while it is.
pub struct Kept {
    pub kind: &'static str,
    pub store: Arc<Store>,
    /// Of those that race half are another process, which knows only what Redis tells it; where there can be but one, they are
    /// of the same.
    pub racing: [Arc<Store>; 2],
    _needs: Box<dyn std::any::Any + Send + Sync>,
}

/// One of each kind.
async fn each() -> Vec<Kept> {
    let kept = |kind, config, needs| {
        let store = Arc::new(open(&config));
        let other = if store.is_shared() { Arc::new(open(&config)) } else { Arc::clone(&store) };
        Kept { kind, racing: [Arc::clone(&store), other], store, _needs: needs }
    };
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("sessions");
    let mut all = vec![
        kept("memory", config::Store::Memory, Box::new(())),
        kept("file", config::Store::File { directory }, Box::new(folder)),
    ];
    let servers = [
        ("redis", Redis::single().await),
        ("valkey", Redis::valkey().await),
        ("sentinel", Redis::sentinel().await),
        ("cluster", Redis::cluster().await),
    ];
    for (kind, redis) in servers {
        all.push(kept(kind, config::Store::Redis(redis.config.clone()), Box::new(redis)));
    }
    all
}

pub fn open(config: &config::Store) -> Store {
    Store::open(config, &Metrics::new()).unwrap()
}

/// One whose lifetime is `seconds` from `NOW`.
pub fn put(name: &str, seconds: u64) -> Change<ForeignSid> {
    let until = NOW.after(Duration::from_secs(seconds));
    Change::Put { record: ForeignSid { id_server: name.to_owned() }, until }
}

pub fn at(seconds: u64) -> Timestamp {
    NOW.after(Duration::from_secs(seconds))
}

pub async fn read(store: &Store, key: &Key<ForeignSid>, now: Timestamp) -> Option<String> {
    store.get(key, now).await.unwrap().map(|record| record.id_server)
}

pub async fn write(store: &Store, key: &Key<ForeignSid>, change: Change<ForeignSid>) {
    store.update(key, NOW, |_| (change.clone(), ())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_there_until_its_time_is_over_whichever_way_the_clock_goes() {
    for Kept { kind, store, .. } in &each().await {
        let key = Key::foreign_sid(&unique("17-"));
        assert_eq!(read(store, &key, NOW).await, None, "{kind}");
        write(store, &key, put("a", 100)).await;
        assert_eq!(read(store, &key, at(99)).await.as_deref(), Some("a"), "{kind}");
        assert_eq!(read(store, &key, at(100)).await, None, "{kind}");
        assert_eq!(read(store, &key, Timestamp::from_millis(1)).await.as_deref(), Some("a"), "{kind}: set back");
        write(store, &key, put("b", 200)).await;
        store.expire(at(100));
        assert_eq!(read(store, &key, at(100)).await.as_deref(), Some("b"), "{kind}: only what is over is forgotten");
        write(store, &key, Change::Remove).await;
        assert_eq!(read(store, &key, NOW).await, None, "{kind}");
        write(store, &key, Change::Remove).await;
        write(store, &key, Change::Keep).await;
        assert_eq!(read(store, &key, NOW).await, None, "{kind}");
    }
}

/// `ForeignSid` as a later version may have it, with one more field.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Later {
    id_server: String,
    seen_by: Vec<String>,
}

impl Record for Later {
    const KIND: &'static str = ForeignSid::KIND;
}

/// Two versions of the shim with one store, in a rolling update.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_version_has_written_survives_an_update_by_this_one() {
    for Kept { kind, store, .. } in &each().await {
        let name = unique("17-");
        let (later, ours) = (Key::<Later>::new(&name), Key::<ForeignSid>::new(&name));
        let until = at(900);
        let seen_by = vec!["\"}".to_owned(), "x".to_owned()];
        let record = Later { id_server: "a".to_owned(), seen_by: seen_by.clone() };
        store.update(&later, NOW, |_| (Change::Put { record: record.clone(), until }, ())).await.unwrap();
        for id_server in ["b", "c"] {
            write(store, &ours, put(id_server, 900)).await;
            assert_eq!(read(store, &ours, NOW).await.as_deref(), Some(id_server), "{kind}");
            let read = store.get(&later, NOW).await.unwrap_or_else(|error| panic!("{kind}: {error:?}"));
            assert_eq!(read, Some(Later { id_server: id_server.to_owned(), seen_by: seen_by.clone() }), "{kind}");
        }
        write(store, &ours, Change::Remove).await;
        write(store, &ours, put("d", 900)).await;
        assert!(store.get(&later, NOW).await.is_err(), "{kind}: another record has nothing of the one before");
    }
}

/// `UiaStage` as versions have it that know of one session only.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Earlier {
    purpose: Purpose,
    sid: Option<Sid>,
}

impl Record for Earlier {
    const KIND: &'static str = UiaStage::KIND;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_completed_a_uia_session_is_known_to_this_version_whichever_wrote_it() {
    for Kept { kind, store, .. } in &each().await {
        let name = unique("uia-");
        let (earlier, ours) = (Key::<Earlier>::new(&name), Key::<UiaStage>::new(&name));
        let sids = [1, 2, 3].map(|n| Sid::from_random([n; 16]));
        let by_earlier = async |sid: &Sid| {
            let record = Earlier { purpose: Purpose::Register, sid: Some(sid.clone()) };
            store
                .update(&earlier, NOW, |_| (Change::Put { record: record.clone(), until: at(900) }, ()))
                .await
                .unwrap();
        };
        let by_us = async |sid: &Sid| {
            let add = |stage: Option<UiaStage>| {
                let mut record = stage.unwrap_or_else(|| UiaStage::new(Purpose::Register));
                record.add(sid);
                (Change::Put { record, until: at(900) }, ())
            };
            store.update(&ours, NOW, add).await.unwrap();
        };
        let known = async || store.get(&ours, NOW).await.unwrap().unwrap().completed_with();
        by_earlier(&sids[0]).await;
        assert_eq!(known().await, sids[..1], "{kind}");
        by_us(&sids[1]).await;
        by_us(&sids[1]).await;
        assert_eq!(known().await, sids[..2], "{kind}");
        assert_eq!(store.get(&earlier, NOW).await.unwrap().unwrap().sid.as_ref(), Some(&sids[1]), "{kind}: the last");
        by_earlier(&sids[2]).await;
        assert_eq!(known().await, sids, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_sees_the_live_record_only() {
    for Kept { kind, store, .. } in &each().await {
        let key = Key::foreign_sid(&unique("17-"));
        write(store, &key, put("a", 100)).await;
        let seen = |now| store.update(&key, now, |current| (Change::Keep, current.map(|record| record.id_server)));
        assert_eq!(seen(at(99)).await.unwrap().as_deref(), Some("a"), "{kind}");
        assert_eq!(seen(at(100)).await.unwrap(), None, "{kind}");
        let again = |current: Option<ForeignSid>| (put("again", 300), current.is_none());
        assert!(store.update(&key, at(100), again).await.unwrap(), "{kind}: what is over counts as absent");
        assert_eq!(read(store, &key, at(299)).await.as_deref(), Some("again"), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_updates_at_once_none_is_lost() {
    for Kept { kind, store, racing, .. } in each().await {
        let (key, calls) = (Arc::new(Key::foreign_sid(&unique("17-"))), Arc::new(AtomicUsize::new(0)));
        let longer = |store: Arc<Store>, key: Arc<Key<ForeignSid>>, calls: Arc<AtomicUsize>| async move {
            for _ in 0..50 {
                let longer = |current: Option<ForeignSid>| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    (put(&(current.map_or_else(String::new, |record| record.id_server) + "x"), 900), ())
                };
                store.update(&key, NOW, longer).await.unwrap();
            }
        };
        let tasks =
            (0..TASKS).map(|n| tokio::spawn(longer(Arc::clone(&racing[n % 2]), Arc::clone(&key), Arc::clone(&calls))));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let length = read(&store, &key, NOW).await.unwrap().len();
        assert_eq!(length, TASKS * 50, "{kind}, decided {} times", calls.load(Ordering::Relaxed));
    }
}

/// One person who asks for everything at once, again and again.
#[derive(Clone)]
struct Person {
    store: Arc<Store>,
    threepid: Threepid,
    client_secret: ClientSecret,
    /// What was mailed, by purpose.
    mails: Arc<Mutex<Vec<(Purpose, Sid)>>>,
    /// How many requests have a note of theirs there, and the most there were.
    noted: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Person {
    fn new(store: &Arc<Store>) -> Self {
        let address = Address::email(&format!("{}@example.org", unique("someone"))).unwrap();
        Self {
            store: Arc::clone(store),
            threepid: Threepid { medium: Medium::Email, address },
            client_secret: ClientSecret::parse("s3cr3t").unwrap(),
            mails: Arc::default(),
            noted: Arc::default(),
        }
    }

    /// The store's part of a requestToken, at both doors, in their order.
    async fn ask(self, purpose: Purpose, n: u8) -> Sid {
        let store = &self.store;
        let request_id = RequestId::from_random([n, purpose as u8, 0, 0, 0, 0, 0, 1]);
        let key = in_flight::key(&self.threepid, &self.client_secret);
        let client =
            Client { threepid: &self.threepid, purpose, client_secret: &self.client_secret, request_id: &request_id };
        let mut note = Note::new(request_id.clone(), purpose, 1, None, None, NOW);
        note.current = store.current(&client, NOW).await.unwrap();
        in_flight::announce(store, &key, &note, || NOW).await.unwrap();
        let together = self.noted.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.noted.1.fetch_max(together, Ordering::SeqCst);
        let claimed = in_flight::claim(store, &key, 1, NOW).await.unwrap().expect("the note that was just put there");
        assert_eq!((claimed.purpose, &claimed.request_id), (purpose, &request_id));
        assert!(in_flight::claim(store, &key, 1, NOW).await.unwrap().is_none(), "a note is taken up once");
        let token = Token::from_random([n; 32]);
        let add = |session: &mut Session| {
            let asked = session.asked(1);
            if asked == Asked::Mail {
                session.add_token(&token, None, request_id.clone(), at(3600));
            }
            asked
        };
        let fresh = || Fresh::draw(at(3600)).unwrap();
        let begun = store.change_or_begin(&client, claimed.current.as_ref(), fresh(), NOW, add).await.unwrap();
        let (sid, asked) = if let Some(begun) = begun {
            begun
        } else {
            let (sid, _) = store.find_or_begin(&client, fresh(), NOW).await.unwrap();
            let asked = store.update_session(&sid, NOW, add).await.unwrap();
            (sid, asked.expect("the session that was just found"))
        };
        if asked == Asked::Mail {
            self.mails.lock().unwrap().push((purpose, sid.clone()));
            store.update_session(&sid, NOW, |session| session.mailed(1)).await.unwrap();
        }
        in_flight::decide(store, &key, &request_id, &Verdict::Sent { sid: sid.clone() }, NOW).await.unwrap();
        self.noted.0.fetch_sub(1, Ordering::SeqCst);
        let verdict = in_flight::conclude(store, &key, &request_id, || NOW).await.unwrap();
        assert_eq!(verdict, Some(Verdict::Sent { sid: sid.clone() }));
        sid
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_tasks_that_ask_for_three_purposes_at_once_get_one_session_and_one_mail_for_each() {
    for Kept { kind, store, racing, .. } in each().await {
        let person = Person::new(&store);
        let asked = PURPOSES.into_iter().flat_map(|purpose| (0..TASKS).map(move |n| (purpose, n)));
        let tasks: Vec<_> = asked
            .map(|(purpose, n)| {
                let person = Person { store: Arc::clone(&racing[n % 2]), ..person.clone() };
                (purpose, tokio::spawn(person.ask(purpose, u8::try_from(n).unwrap())))
            })
            .collect();
        let mut sids: HashMap<Purpose, Vec<Sid>> = HashMap::new();
        for (purpose, task) in tasks {
            sids.entry(purpose).or_default().push(task.await.unwrap());
        }
        for (purpose, sids) in &sids {
            assert_eq!(sids.len(), TASKS, "{kind}");
            assert!(sids.iter().all(|sid| sid == &sids[0]), "{kind}: one session for {purpose:?}");
        }
        let mut mailed: Vec<_> = person.mails.lock().unwrap().iter().map(|(purpose, _)| purpose.as_str()).collect();
        mailed.sort_unstable();
        assert_eq!(mailed, ["account_3pid", "password", "register"], "{kind}");
        assert_eq!(person.noted.1.load(Ordering::SeqCst), 1, "{kind}: one request of theirs is on its way at a time");
    }
}

/// With `hide_existence` two identical requests get their sids before either has its note.
#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_note_that_begin_a_session_at_once_get_the_same_one() {
    for Kept { kind, store, racing, .. } in each().await {
        for _ in 0..10 {
            let person = Person::new(&store);
            let begin = |person: Person, n: u8| async move {
                let request_id = RequestId::from_random([n; 8]);
                let client = Client {
                    threepid: &person.threepid,
                    purpose: Purpose::Register,
                    client_secret: &person.client_secret,
                    request_id: &request_id,
                };
                person.store.find_or_begin(&client, Fresh::draw(at(60)).unwrap(), NOW).await.unwrap().0
            };
            let person = |n: u8| Person { store: Arc::clone(&racing[usize::from(n) % 2]), ..person.clone() };
            let tasks: Vec<_> = (0..8).map(|n| tokio::spawn(begin(person(n), n))).collect();
            let mut sids = Vec::new();
            for task in tasks {
                sids.push(task.await.unwrap());
            }
            assert!(sids.iter().all(|sid| *sid == sids[0]), "{kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_who_complete_with_one_session_at_once_one_becomes_its_owner() {
    for Kept { kind, store, racing, .. } in each().await {
        for purpose in PURPOSES {
            let person = Person::new(&store);
            let sid = person.clone().ask(purpose, 1).await;
            let (secret, token) = (person.client_secret.clone(), Token::from_random([1; 32]));
            let lifetimes =
                Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };
            let submit = |session: &mut Session| session.submit(&secret, &token, NOW, lifetimes).map(|_| ());
            assert_eq!(store.update_session(&sid, NOW, submit).await.unwrap(), Some(Ok(())), "{kind}");
            let tasks: Vec<_> = (0..u8::try_from(TASKS).unwrap())
                .map(|n| {
                    let store = Arc::clone(&racing[usize::from(n) % 2]);
                    tokio::spawn(complete(store, sid.clone(), secret.clone(), purpose, n))
                })
                .collect();
            let mut owners = 0;
            for task in tasks {
                owners += usize::from(task.await.unwrap());
            }
            assert_eq!(owners, 1, "{kind}: {purpose:?}");
        }
    }
}

/// As `threepid_creds` does it, with the homeserver's question in between: whether this one had it.
async fn complete(store: Arc<Store>, sid: Sid, secret: ClientSecret, purpose: Purpose, n: u8) -> bool {
    let (holder, owner) = (RequestId::from_random([n; 8]), Owner::uia_session(&n.to_string()));
    loop {
        let reserve = |session: &mut Session| session.reserve(&holder, purpose, Some(&secret), &owner, NOW);
        match store.update_session(&sid, NOW, reserve).await.unwrap().unwrap() {
            Reserved::Granted => break,
            Reserved::Wait => tokio::task::yield_now().await,
            Reserved::Refused => return false,
        }
    }
    let told = store.update_session(&sid, NOW, |session| session.tell(&secret, NOW)).await.unwrap().unwrap();
    assert!(told.is_some());
    let settle = |session: &mut Session| {
        session.settle(&holder, Settled::Consumed(owner.clone()), NOW);
    };
    store.update_session(&sid, NOW, settle).await.unwrap();
    true
}

/// S§5.15, S§4.3. A clock that ran ahead has what is over by it forgotten, but not what is remembered for a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_that_never_was_loses_no_session_and_validates_none_and_revives_none() {
    const DAY: u64 = 86_400_000;
    let lifetimes = Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };
    let token = Token::from_random([1; 32]);
    for Kept { kind, store, .. } in each().await {
        let (wall, elapsed) = (Arc::new(AtomicU64::new(NOW.as_millis())), Arc::<AtomicU64>::default());
        let clock = Clock::manual(Arc::clone(&wall), Arc::clone(&elapsed));
        let (clicked, unclicked) = (Person::new(&store), Person::new(&store));
        let [clicked_sid, sid] =
            [clicked.clone().ask(Purpose::Register, 1).await, unclicked.clone().ask(Purpose::Register, 1).await];
        let submit = async |sid: &Sid| {
            let now = clock.now();
            let submit = |session: &mut Session| session.submit(&unclicked.client_secret, &token, now, lifetimes);
            store.update_session(sid, now, submit).await.unwrap().expect("the session is lost")
        };
        let look = async |sid: &Sid| {
            let session = store.get(&Key::session(sid), clock.now()).await.unwrap().expect("the session is lost");
            session.look(&unclicked.client_secret, &token, clock.now())
        };
        assert_eq!(submit(&clicked_sid).await, Ok(Submitted::First), "{kind}");
        wall.fetch_add(DAY, Ordering::SeqCst);
        store.expire(clock.now());
        assert_eq!(
            (submit(&sid).await, submit(&clicked_sid).await),
            (Err(Wrong::Expired), Err(Wrong::Expired)),
            "{kind}"
        );
        wall.fetch_sub(DAY, Ordering::SeqCst);
        assert_eq!(
            (look(&sid).await, look(&clicked_sid).await),
            (Ok(Submitted::First), Ok(Submitted::Again)),
            "{kind}"
        );
        for seen in [&wall, &elapsed] {
            seen.fetch_add(3_600_000, Ordering::SeqCst);
        }
        store.expire(clock.now());
        for _ in 0..3 {
            assert_eq!(submit(&sid).await, Err(Wrong::Expired), "{kind}: it stays so");
            assert_eq!(look(&clicked_sid).await, Ok(Submitted::Again), "{kind}");
            wall.fetch_sub(DAY, Ordering::SeqCst);
        }
    }
}
