//! `store.kind = "redis"`: what is different about records that are on another machine.

use std::sync::Arc;
use std::time::Duration;

use threepid_shim::config::{self, Rate};
use threepid_shim::in_flight::{self, Note};
use threepid_shim::limit::{Limit, Limited};
use threepid_shim::matrix::{ClientSecret, Purpose, Sid};
use threepid_shim::session::Session;
use threepid_shim::store::{ForeignSid, Key, Store, UiaStage};
use threepid_shim::telemetry::RequestId;

use super::{NOW, Person, at, open, put, read, write};
use crate::homeserver::soon;
use crate::redis::Redis;

fn store(redis: &Redis) -> Arc<Store> {
    Arc::new(open(&config::Store::Redis(redis.config.clone())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_tls_and_a_password_is_used_with_both_and_not_without() {
    let redis = Redis::tls().await;
    let key = Key::foreign_sid("17");
    let good = store(&redis);
    write(&good, &key, put("a", 900)).await;
    assert_eq!(read(&store(&redis), &key, NOW).await.as_deref(), Some("a"));
    let without = |change: &dyn Fn(&mut config::Redis)| {
        let mut config = redis.config.clone();
        change(&mut config);
        open(&config::Store::Redis(config))
    };
    assert!(without(&|config| config.password = None).get(&key, NOW).await.is_err());
    assert!(without(&|config| config.ca_file = None).get(&key, NOW).await.is_err(), "its CA is none of the system's");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_ends_with_its_record_and_none_is_kept_for_ever() {
    let redis = Redis::single().await;
    let store = store(&redis);
    Person::new(&store).ask(Purpose::Register, 1).await;
    write(&store, &Key::foreign_sid("17"), put("a", 900)).await;
    let limit = Limit::new("test", &store);
    limit.take("a", Rate { count: 2, per: Duration::from_secs(60) }, NOW).await.unwrap();
    let server = &redis.servers[0];
    let said = server.say(&["KEYS", "*"]);
    let keys: Vec<_> = said.lines().filter(|line| line.starts_with("threepid-shim:")).collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    for key in keys {
        let millis: i64 = server.say(&["PTTL", key]).lines().next().unwrap()[1..].parse().unwrap();
        let most = if key.contains("foreign") {
            900_000
        } else if key.contains("limit") {
            30_000
        } else {
            90_000_000
        };
        assert!((most - 20_000..=most).contains(&millis), "{key} ends in {millis} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_taken_together_and_given_back() {
    for redis in [Redis::single().await, Redis::cluster().await] {
        let [here, there] = [Limit::new("test", &store(&redis)), Limit::new("test", &store(&redis))];
        let rate = Rate { count: 4, per: Duration::from_secs(40) };
        let span = |taken: Result<(), Limited>| match taken {
            Ok(()) => None,
            Err(Limited::For(span)) => Some(span.as_secs()),
            Err(Limited::Unknown(error)) => panic!("{error}"),
        };
        for limit in [&here, &there, &here, &there] {
            assert_eq!(span(limit.take("a", rate, NOW).await), None);
        }
        for limit in [&here, &there] {
            assert_eq!(span(limit.take("a", rate, NOW).await), Some(10));
            assert_eq!(span(limit.take("a", rate, at(4)).await), Some(6));
        }
        assert_eq!(span(here.take("b", rate, NOW).await), None);
        here.give_back("a", rate, NOW).await;
        assert_eq!(span(there.take("a", rate, NOW).await), None);
        assert_eq!(span(here.take("a", rate, NOW).await), Some(10));
        assert_eq!(span(here.take("clock", rate, at(86_400)).await), None);
        assert_eq!(
            span(there.take("clock", rate, NOW).await),
            Some(10),
            "one whose clock is a day ahead locks nobody out"
        );
        assert_eq!(span(there.take("clock", rate, at(10)).await), None);
        let other = Rate { count: 1, per: Duration::from_secs(9) };
        assert_eq!(span(here.take("a", other, NOW).await), None, "under another rate it is another bucket");
        here.give_back("b", rate, NOW).await;
        here.give_back("b", rate, NOW).await;
        for _ in 0..4 {
            assert_eq!(span(here.take("b", rate, NOW).await), None);
        }
        assert_eq!(span(here.take("b", rate, NOW).await), Some(10), "no more is given back than was taken");
    }
}

/// Each of our scripts reads its key once, and so does a plain read.
fn reads(redis: &Redis) -> u64 {
    let said = redis.servers[0].say(&["INFO", "commandstats"]);
    let gets = said.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls="));
    gets.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// The figures of the manual.
#[tokio::test(flavor = "multi_thread")]
async fn how_many_commands_each_operation_is() {
    let redis = Redis::single().await;
    let (front, identity) = (store(&redis), store(&redis));
    let mut before = 0;
    let mut since = || {
        let now = reads(&redis);
        now - std::mem::replace(&mut before, now)
    };
    let person = Person::new(&front);
    let limit = Limit::new("request_token_per_ip", &front);
    let key = in_flight::key(&person.threepid, &person.client_secret);
    let request_id = RequestId::from_random([7; 8]);
    let note = Note::new(request_id.clone(), Purpose::Register, 1, None, None, NOW);
    limit.take("192.0.2.7", Rate { count: 20, per: Duration::from_secs(600) }, NOW).await.unwrap();
    in_flight::announce(&front, &key, &note, || NOW).await.unwrap();
    assert_eq!(since(), 2, "the client door's requestToken, up to the homeserver");
    in_flight::claim(&identity, &key, NOW).await.unwrap().unwrap();
    assert_eq!(since(), 1, "the identity door takes the note up");
    let sent = in_flight::Verdict::Sent { sid: Sid::from_random([3; 16]) };
    in_flight::decide(&identity, &key, &request_id, &sent, NOW).await.unwrap();
    assert_eq!(since(), 1, "and leaves its verdict");
    assert_eq!(in_flight::conclude(&front, &key, &request_id, NOW).await.unwrap(), Some(sent));
    assert_eq!(since(), 1, "the client door's requestToken, once the homeserver has answered: 3 in all");

    let sid = Person { store: Arc::clone(&identity), ..person.clone() }.ask(Purpose::Register, 1).await;
    // Announcing takes two here: what the identity door's shim saw of the note before is not there any more.
    assert_eq!(since(), 10, "looked for, announced, taken up twice, begun with its token, counted, decided, concluded");
    // Anyone's first look at a session that another process wrote.
    let (secret, holder) = (ClientSecret::parse("s3cr3t").unwrap(), RequestId::from_random([9; 8]));
    let reserve = |session: &mut Session| {
        session.reserve(
            &holder,
            Purpose::Register,
            Some(&secret),
            &threepid_shim::session::Owner::uia_session("u"),
            NOW,
        )
    };
    front.update_session(&sid, NOW, reserve).await.unwrap().unwrap();
    assert_eq!(since(), 2);
    let edits = Session::telling(&secret).map(|(when, from, to)| threepid_shim::store::Edit {
        when: when.to_vec(),
        from: from.to_owned(),
        effect: threepid_shim::store::Effect::Replace(to.to_owned()),
    });
    let (mut told, edited) =
        identity.mark(&Key::session(&sid), NOW, &edits, Session::kept_until).await.unwrap().unwrap();
    assert!(edited && told.tell(&secret, NOW).is_none());
    assert_eq!(since(), 1, "getValidated3pid");
}

/// What shims of another version have put there: fields that this one does not know, and none that came later.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_an_older_and_a_newer_shim_are_read() {
    let redis = Redis::single().await;
    let store = store(&redis);
    let text = include_str!("records-1.json");
    let records: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
    let sid = Sid::from_random([1; 16]);
    let digest = |name: &[u8]| threepid_shim::matrix::Digest::of(name).as_hex().to_owned();
    let names = [
        ("session", format!("session:{}", sid.as_str())),
        ("uia", format!("uia:{}", digest(b"u"))),
        ("foreign", format!("foreign:{}:{}", digest(b"17"), digest(b"s3cr3t"))),
    ];
    assert_eq!(records.len(), names.len());
    for newer in [false, true] {
        for (kind, name) in &names {
            let mut record = records[*kind].clone();
            if newer {
                record.as_object_mut().unwrap().insert("of_a_later_version".into(), serde_json::json!({ "a": [1] }));
            }
            let kept = format!("{} f00.1 {record}", at(900).as_millis());
            redis.servers[0].say(&["SET", &format!("threepid-shim:{name}"), &kept, "PX", "900000"]);
        }
        let session = store.get(&Key::session(&sid), NOW).await.unwrap().unwrap();
        assert_eq!((session.purpose, session.threepid.address.expose()), (Purpose::Register, "alice@example.org"));
        let stage: UiaStage = store.get(&Key::uia_session("u"), NOW).await.unwrap().unwrap();
        assert_eq!((stage.purpose, stage.completed_with().len()), (Purpose::Register, 1));
        let foreign: ForeignSid = store.get(&Key::foreign_sid("17").of_client("s3cr3t"), NOW).await.unwrap().unwrap();
        assert_eq!(foreign.id_server, "vector.im");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_rate_of_more_than_one_in_a_millisecond_is_a_limit_too() {
    let redis = Redis::single().await;
    let limit = Limit::new("request_token_per_ip", &store(&redis));
    for (key, count) in [("a", 3000), ("b", 7)] {
        let rate = Rate { count, per: Duration::from_secs(1) };
        for _ in 0..count {
            limit.take(key, rate, NOW).await.unwrap();
        }
        assert!(limit.take(key, rate, NOW).await.is_err(), "{rate:?}");
        limit.give_back(key, rate, NOW).await;
        limit.take(key, rate, NOW).await.unwrap();
        assert!(limit.take(key, rate, NOW).await.is_err(), "{rate:?}");
    }
}

/// S§5.11.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_over_is_found_and_a_server_that_comes_back_is_used() {
    let mut redis = Redis::sentinel().await;
    let store = store(&redis);
    let key = Key::foreign_sid("17");
    write(&store, &key, put("before", 900)).await;
    soon("the replica has it", async {
        while !redis.servers[1].say(&["KEYS", "*"]).contains("foreign") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    redis.servers[0].kill();
    let began = std::time::Instant::now();
    assert!(store.get(&key, NOW).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(2));
    soon("the replica takes over", async {
        while store.update(&key, NOW, |_| (put("after", 900), ())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(read(&store, &key, NOW).await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_closes_idle_connections_or_knows_no_scripts_is_asked_again() {
    let mut redis = Redis::single().await;
    let store = store(&redis);
    let key = Key::foreign_sid("17");
    write(&store, &key, put("a", 900)).await;
    redis.servers[0].say(&["CLIENT", "KILL", "TYPE", "normal"]);
    write(&store, &key, put("b", 900)).await;
    redis.servers[0].kill();
    redis.servers[0].start_again().await;
    assert_eq!(read(&store, &key, NOW).await, None, "this one keeps nothing");
    write(&store, &key, put("c", 900)).await;
    redis.servers[0].say(&["SCRIPT", "FLUSH"]);
    write(&store, &key, put("d", 900)).await;
    assert_eq!(read(&store, &key, NOW).await.as_deref(), Some("d"));
}
