//! `store.kind = "redis"`: what is different about records that are on another machine.

use std::sync::Arc;
use std::time::Duration;

use threepid_shim::config::{self, Rate};
use threepid_shim::in_flight::{self, Note};
use threepid_shim::limit::{Limit, Limited};
use threepid_shim::matrix::{ClientSecret, Purpose, Sid};
use threepid_shim::session::Session;
use threepid_shim::store::{ForeignSid, Key, Store};
use threepid_shim::telemetry::RequestId;

use super::{Change, NOW, Person, at, open, put, read, write};
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

/// TLS, its password, and the sentinels' own.
#[tokio::test(flavor = "multi_thread")]
async fn sentinel_and_cluster_are_used_with_tls_and_their_passwords_and_not_without() {
    for (redis, has_sentinels) in [(Redis::secured_sentinel().await, true), (Redis::secured_cluster().await, false)] {
        let good = store(&redis);
        let keys: Vec<_> = (0..12).map(|n| Key::foreign_sid(&n.to_string())).collect();
        for key in &keys {
            write(&good, key, put("a", 900)).await;
            assert_eq!(read(&store(&redis), key, NOW).await.as_deref(), Some("a"));
            write(&good, key, Change::Remove).await;
        }
        Person::new(&good).ask(Purpose::Register, 1).await;
        let limit = Limit::new("test", &good);
        let rate = Rate { count: 1, per: Duration::from_secs(60) };
        limit.take("a", rate, NOW).await.unwrap();
        assert!(matches!(limit.take("a", rate, NOW).await, Err(Limited::For(_))));
        let refused = async |change: &dyn Fn(&mut config::Redis)| {
            let mut config = redis.config.clone();
            change(&mut config);
            open(&config::Store::Redis(config)).get(&keys[0], NOW).await.is_err()
        };
        assert!(refused(&|config| config.password = None).await);
        assert!(refused(&|config| config.ca_file = None).await, "its CA is none of the system's");
        assert_eq!(refused(&|config| config.sentinel_password = None).await, has_sentinels);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_ends_with_its_record_and_none_is_kept_for_ever() {
    let redis = Redis::single().await;
    let store = store(&redis);
    let person = Person::new(&store);
    person.clone().ask(Purpose::Register, 1).await;
    write(&store, &Key::foreign_sid("17"), put("a", 900)).await;
    let limit = Limit::new("test", &store);
    limit.take("a", Rate { count: 2, per: Duration::from_secs(60) }, NOW).await.unwrap();
    let note = Note::new(RequestId::from_random([7; 8]), Purpose::Password, 1, None, None, NOW);
    let key = in_flight::key(&Person::new(&store).threepid, &person.client_secret);
    in_flight::announce(&store, &key, &note, || NOW).await.unwrap();
    in_flight::claim(&store, &key, 1, NOW).await.unwrap().unwrap();
    let server = &redis.servers[0];
    let keys = server.keys();
    assert_eq!(keys.len(), 6, "{keys:?}");
    let mut notes = Vec::new();
    for key in keys {
        let millis = server.number(&["PTTL", &key]);
        let most = match key.split(':').nth(1).unwrap() {
            "foreign" => 900_000,
            "limit" => 30_000,
            "note" if server.record(&key["threepid-shim:".len()..]).is_none() => 5_000,
            "note" => 120_000,
            _ => 90_000_000,
        };
        if key.contains(":note:") {
            notes.push(most);
        }
        assert!((1.max(most - 20_000)..=most).contains(&millis), "{key} ends in {millis} ms");
    }
    notes.sort_unstable();
    assert_eq!(notes, [5_000, 120_000], "one that is gone, and one that was changed in its place");
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
    in_flight::claim(&identity, &key, 1, NOW).await.unwrap().unwrap();
    assert_eq!(since(), 1, "the identity door takes the note up");
    let sent = in_flight::Verdict::Sent { sid: Sid::from_random([3; 16]) };
    in_flight::decide(&identity, &key, &request_id, &sent, NOW).await.unwrap();
    assert_eq!(since(), 1, "and leaves its verdict");
    assert_eq!(in_flight::conclude(&front, &key, &request_id, || NOW).await.unwrap(), Some(sent));
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
        while store.get(&key, NOW).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(read(&store, &key, NOW).await.as_deref(), Some("before"), "what the master had passed on is kept");
    // The replica has answered before it was the master.
    let rename = |current: Option<ForeignSid>| (put("after", 900), current.map(|record| record.id_server));
    let seen = soon("it can be changed", async {
        loop {
            if let Ok(seen) = store.update(&key, NOW, rename).await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(seen.as_deref(), Some("before"));
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
