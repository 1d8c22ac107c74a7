//! Records of an older and of a later shim in one Redis: read, changed, and left as they are where this one does not know them.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use threepid_shim::config;
use threepid_shim::in_flight::{self, Note, Verdict};
use threepid_shim::matrix::{Address, ClientSecret, Digest, Medium, Purpose, Refusal, Sid, Threepid, Token};
use threepid_shim::session::{Lifetimes, Owner, Reserved, Session, Settled};
use threepid_shim::store::{
    Change, Client, Current, Edit, Effect, ForeignSid, Fresh, Key, Store, StoreError, UiaStage, digest_of,
};
use threepid_shim::telemetry::RequestId;

use super::{NOW, at, open, put, write};
use crate::redis::{Redis, Server};

/// One of each kind, as the first version has written it.
pub fn records() -> Map<String, Value> {
    serde_json::from_str(include_str!("records-1.json")).unwrap()
}

/// Puts a record there as a shim writes it; `until` is the shim's time.
pub fn keep(server: &Server, key: &str, record: &Value, until: u128) {
    let kept = format!("{until} f00.1 {record}");
    assert!(server.say(&["SET", &format!("threepid-shim:{key}"), &kept, "PX", "900000"]).contains("OK"));
}

struct Kept {
    redis: Redis,
    store: Arc<Store>,
    sid: Sid,
    secret: ClientSecret,
    threepid: Threepid,
}

impl Kept {
    async fn in_redis() -> Self {
        let redis = Redis::single().await;
        let store = Arc::new(open(&config::Store::Redis(redis.config.clone())));
        let threepid = Threepid { medium: Medium::Email, address: Address::email("alice@example.org").unwrap() };
        Self { redis, store, sid: Sid::from_random([1; 16]), secret: ClientSecret::parse("s3cr3t").unwrap(), threepid }
    }

    fn key(&self, kind: &str) -> String {
        let client = digest_of(&self.threepid, &self.secret);
        match kind {
            "session" => format!("session:{}", self.sid.as_str()),
            "uia" => format!("uia:{}", Digest::of(b"u").as_hex()),
            "foreign" => format!("foreign:{}", Digest::of(b"17").as_hex()),
            "current" => format!("current:register:{}", client.as_hex()),
            "note" => format!("note:{}", client.as_hex()),
            _ => panic!("{kind} is in nobody's hands but the door's: see steps.rs"),
        }
    }

    fn put(&self, kind: &str, record: &Value) {
        keep(&self.redis.servers[0], &self.key(kind), record, u128::from(at(900).as_millis()));
    }

    fn record(&self, kind: &str) -> Option<Value> {
        self.redis.servers[0].record(&self.key(kind))
    }

    fn note(&self) -> Key<Note> {
        in_flight::key(&self.threepid, &self.secret)
    }

    async fn change<T>(&self, change: impl Fn(&mut Session) -> T) -> Result<T, StoreError> {
        Ok(self.store.update_session(&self.sid, NOW, change).await?.expect("the session"))
    }

    async fn tell(&self) -> Result<bool, StoreError> {
        let edits = Session::telling(&self.secret).map(|(when, from, to)| Edit {
            when: when.to_vec(),
            from: from.to_owned(),
            effect: Effect::Replace(to.to_owned()),
        });
        let marked = self.store.mark(&Key::session(&self.sid), NOW, &edits, Session::kept_until).await?;
        Ok(marked.expect("the session").1)
    }

    async fn begin(&self) -> Result<Sid, StoreError> {
        let request_id = RequestId::from_random([9; 8]);
        let client = Client {
            threepid: &self.threepid,
            purpose: Purpose::Register,
            client_secret: &self.secret,
            request_id: &request_id,
        };
        Ok(self.store.find_or_begin(&client, Fresh::draw(at(3600)).unwrap(), NOW).await?.0)
    }
}

fn later() -> Value {
    json!({ "a": [1] })
}

/// Of a record that was changed: what a later version has put beside all fields is there.
#[track_caller]
fn is_kept(record: Option<&Value>, newer: bool) {
    let record = record.expect("a record");
    assert_eq!(record.get("later"), newer.then(later).as_ref(), "{record}");
}

/// What shims of another version have put there: fields that this one does not know, and none that came later. Two more kinds are
/// only in the hands of the doors: see `steps.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_an_older_and_a_newer_shim_are_read_and_changed_and_keep_what_is_not_known() {
    let kept = Kept::in_redis().await;
    let store = &kept.store;
    for newer in [false, true] {
        for (kind, mut record) in records().into_iter().filter(|(kind, _)| kind != "under_way" && kind != "day") {
            if newer {
                record["later"] = later();
                if kind == "session" {
                    record["tokens"][0]["later"] = json!(1);
                    record["reservation"]["later"] = json!(1);
                }
            }
            kept.put(&kind, &record);
        }
        let session = || kept.record("session");
        // What is inside of a hold stays in that hold, and goes with it.
        let inside = |token: bool, hold: bool| {
            let session = session().unwrap();
            is_kept(Some(&session), newer);
            let one = |is: bool| (newer && is).then(|| json!(1));
            assert_eq!(session["tokens"][0].get("later").cloned(), one(token), "{session}");
            assert_eq!(session["reservation"].get("later").cloned(), one(hold), "{session}");
        };
        let read = store.get(&Key::session(&kept.sid), NOW).await.unwrap().unwrap();
        assert_eq!((read.purpose, read.threepid.address.expose()), (Purpose::Register, "alice@example.org"));
        let holder = RequestId::from_random([2, 0, 0, 0, 0, 0, 0, 2]);
        let token = Token::from_random([5; 32]);
        kept.change(|session| session.add_token(&token, None, holder.clone(), at(3600))).await.unwrap();
        inside(true, true);
        assert!(kept.tell().await.unwrap());
        inside(true, true);
        kept.change(|session| session.mailed(2)).await.unwrap();
        inside(true, true);
        let owner = Owner::uia_session("u");
        kept.change(|session| session.settle(&holder, Settled::Bound(owner.clone()), NOW)).await.unwrap();
        inside(true, false);
        let again = RequestId::from_random([3; 8]);
        let reserved =
            kept.change(|session| session.reserve(&again, Purpose::Register, Some(&kept.secret), &owner, NOW)).await;
        assert_eq!(reserved.unwrap(), Reserved::Granted);
        inside(true, false);

        let current: Current =
            store.get(&Key::current(&kept.threepid, &kept.secret, Purpose::Register), NOW).await.unwrap().unwrap();
        assert_eq!(current.sid, kept.sid);
        let begun = kept.begin().await.unwrap();
        assert_ne!(begun, kept.sid, "that one is validated");
        assert_eq!(kept.record("current").unwrap()["sid"], begun.as_str());
        is_kept(kept.record("current").as_ref(), newer);

        let uia = Key::uia_session("u");
        let stage: UiaStage = store.get(&uia, NOW).await.unwrap().unwrap();
        assert_eq!(
            (stage.purpose, stage.completed_with().len()),
            (Purpose::Register, 1),
            "an older one says one sid alone"
        );
        let mut record = stage;
        record.add(&begun);
        store.update(&uia, NOW, |_| (Change::Put { record: record.clone(), until: at(900) }, ())).await.unwrap();
        is_kept(kept.record("uia").as_ref(), newer);

        let foreign: ForeignSid = store.get(&Key::foreign_sid("17"), NOW).await.unwrap().unwrap();
        assert_eq!(foreign.id_server, "vector.im");
        write(store, &Key::foreign_sid("17"), put("b", 900)).await;
        is_kept(kept.record("foreign").as_ref(), newer);

        let note = in_flight::claim(store, &kept.note(), 1, NOW).await.unwrap().unwrap();
        assert_eq!((note.purpose, note.accept_language.as_deref()), (Purpose::Register, Some("de")));
        is_kept(kept.record("note").as_ref(), newer);
        let sent = Verdict::Sent { sid: begun };
        in_flight::decide(store, &kept.note(), &note.request_id, &sent, NOW).await.unwrap();
        is_kept(kept.record("note").as_ref(), newer);
        assert_eq!(in_flight::conclude(store, &kept.note(), &note.request_id, || NOW).await.unwrap(), Some(sent));
        assert_eq!(kept.record("note"), None);
    }
}

/// Another state, purpose, verdict: what they mean only the later version knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_only_a_later_version_knows_is_an_error_and_stays() {
    let kept = Kept::in_redis().await;
    let lifetimes = Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };
    let token = Token::from_random([5; 32]);
    let holder = RequestId::from_random([2, 0, 0, 0, 0, 0, 0, 2]);
    let mut rows = 0;
    for (kind, at, word) in [
        ("session", "/state", json!("frozen")),
        ("session", "/state", json!({ "frozen": { "at": 1 } })),
        ("session", "/purpose", json!("account_recovery")),
        ("session", "/threepid/medium", json!("pigeon")),
        ("session", "/reservation/told", json!("maybe")),
        ("uia", "/purpose", json!("account_recovery")),
        ("note", "/purpose", json!("account_recovery")),
        ("note", "/verdict", json!({ "deferred": { "until": 1 } })),
    ] {
        let mut record = records()[kind].clone();
        *record.pointer_mut(at).unwrap() = word.clone();
        kept.put(kind, &record);
        let errors: Vec<StoreError> = match kind {
            "session" => vec![
                kept.store.get(&Key::session(&kept.sid), NOW).await.unwrap_err(),
                kept.change(|session| session.submit(&kept.secret, &token, NOW, lifetimes).is_ok()).await.unwrap_err(),
                kept.change(|session| session.settle(&holder, Settled::Released, NOW)).await.unwrap_err(),
                kept.tell().await.unwrap_err(),
            ],
            "uia" => {
                let put = |_| (Change::Put { record: UiaStage::new(Purpose::Password), until: NOW }, ());
                vec![
                    kept.store.get(&Key::uia_session("u"), NOW).await.unwrap_err(),
                    kept.store.update(&Key::uia_session("u"), NOW, put).await.unwrap_err(),
                ]
            }
            _ => {
                let sent = Verdict::Sent { sid: kept.sid.clone() };
                vec![
                    in_flight::claim(&kept.store, &kept.note(), 1, NOW).await.unwrap_err(),
                    in_flight::decide(
                        &kept.store,
                        &kept.note(),
                        &RequestId::from_random([4, 0, 0, 0, 0, 0, 0, 4]),
                        &sent,
                        NOW,
                    )
                    .await
                    .unwrap_err(),
                ]
            }
        };
        for error in errors {
            let said = format!("{error}: {}", std::error::Error::source(&error).unwrap());
            assert!(said.contains("cannot be read") && said.contains("unknown variant"), "{said}");
            let refusal = Refusal::from(error);
            assert_eq!((refusal.status.as_u16(), refusal.retry_after.is_some()), (503, true), "{kind}{at}");
        }
        if kind == "note" {
            // It was taken up, and its own request takes it away, or the next would wait for it.
            record["claimed"] = json!(true);
            record["by"] = json!(kept.store.process().to_string());
            assert_eq!(kept.record(kind), Some(record));
            let request_id = RequestId::from_random([4, 0, 0, 0, 0, 0, 0, 4]);
            assert!(in_flight::conclude(&kept.store, &kept.note(), &request_id, || NOW).await.is_err());
            assert_eq!(kept.record(kind), None);
        } else {
            // That it is asked for is noted by the text alone, where all that this says is known.
            if ["/purpose", "/threepid/medium"].contains(&at) && kind == "session" {
                record["reservation"]["told"] = json!("validated");
            }
            assert_eq!(kept.record(kind), Some(record), "{kind}{at}");
        }
        rows += 1;
    }
    assert_eq!(rows, 8);
}
