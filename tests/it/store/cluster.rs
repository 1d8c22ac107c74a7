//! A cluster that changes: a node that is gone takes its own keys with it and nobody else's, a replica takes over, a slot moves.

use std::time::{Duration, Instant};

use threepid_shim::config;
use threepid_shim::matrix::{Digest, Refusal};
use threepid_shim::store::{ForeignSid, Key};

use super::{NOW, open, put, read, write};
use crate::homeserver::soon;
use crate::redis::{Redis, Server};

/// Keys whose slots are this node's: a third of all.
fn keys_of(redis: &Redis, node: usize, count: usize) -> Vec<Key<ForeignSid>> {
    let its = |sid: &String| redis.node_of(&name(sid)) == node;
    (0..).map(|n| format!("{n}")).filter(its).take(count).map(|sid| Key::foreign_sid(&sid)).collect()
}

/// What Redis knows it by, behind the shim's prefix.
fn name(foreign_sid: &str) -> String {
    format!("foreign:{}", Digest::of(foreign_sid.as_bytes()).as_hex())
}

/// S§5.11.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_lost_node_of_a_cluster_takes_its_keys_over() {
    let mut redis = Redis::cluster_with_a_replica().await;
    let store = open(&config::Store::Redis(redis.config.clone()));
    let keys = keys_of(&redis, 2, 6);
    for key in &keys {
        write(&store, key, put("before", 900)).await;
    }
    soon("the replica has them", async {
        while redis.servers[3].keys().len() < keys.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    redis.servers[2].kill();
    assert!(store.get(&keys[0], NOW).await.is_err());
    for key in &keys {
        let longer = |current: Option<ForeignSid>| (put("after", 900), current.map(|record| record.id_server));
        let seen = soon("the replica takes over", async {
            loop {
                let asked = Instant::now();
                let seen = store.update(key, NOW, longer).await;
                assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
                if let Ok(seen) = seen {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert_eq!(seen.as_deref(), Some("before"), "what the node had passed on is kept");
        assert_eq!(read(&store, key, NOW).await.as_deref(), Some("after"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_to_another_node_is_followed_while_it_moves_and_after() {
    let redis = Redis::cluster().await;
    let [from, to, third] = &redis.servers[..] else { panic!("three nodes") };
    let store = open(&config::Store::Redis(redis.config.clone()));
    let sid = (0..1000).map(|n| n.to_string()).find(|sid| redis.node_of(&name(sid)) == 0).unwrap();
    let (key, in_redis) = (Key::foreign_sid(&sid), format!("threepid-shim:{}", name(&sid)));
    let change = async |expected: Option<&str>, next: &'static str| {
        let change = |current: Option<ForeignSid>| (put(next, 900), current.map(|record| record.id_server));
        assert_eq!(store.update(&key, NOW, change).await.unwrap().as_deref(), expected);
        assert_eq!(read(&store, &key, NOW).await.as_deref(), Some(next));
    };
    let slot = redis.slot_of(&name(&sid)).to_string();
    let [from_id, to_id] = [from, to].map(|node| node.text(&["CLUSTER", "MYID"]).unwrap());
    let said = |node: &Server, words: &[&str]| {
        let said = node.say(words);
        assert!(said.contains("OK"), "{words:?}: {said}");
    };
    change(None, "at home").await;
    said(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    said(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    change(Some("at home"), "about to move").await;
    said(from, &["MIGRATE", "127.0.0.1", &to.port.to_string(), &in_redis, "0", "5000"]);
    assert!(from.say(&["GET", &in_redis]).contains("ASK"));
    change(Some("about to move"), "on its way").await;
    for node in [to, from, third] {
        said(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    }
    assert!(from.say(&["GET", &in_redis]).contains("MOVED"));
    change(Some("on its way"), "elsewhere").await;
}

/// S§5.10, S§5.11.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_of_a_cluster_takes_only_its_own_keys_with_it_until_it_is_back() {
    let mut redis = Redis::cluster().await;
    let store = open(&config::Store::Redis(redis.config.clone()));
    let [lost, first, second] = [2, 0, 1].map(|node| keys_of(&redis, node, 6));
    let theirs: Vec<&Key<ForeignSid>> = first.iter().chain(&second).collect();
    for key in theirs.iter().copied().chain(&lost) {
        write(&store, key, put("a", 900)).await;
    }
    for what in ["killed", "partitioned"] {
        if what == "killed" {
            redis.servers[2].kill();
        } else {
            redis.servers[2].signal("-STOP");
        }
        let began = Instant::now();
        // From the first moment to well after the others have noticed.
        while began.elapsed() < Duration::from_secs(4) {
            for (lost, kept) in lost.iter().zip(theirs.chunks(2)) {
                let asked = Instant::now();
                let refused = async {
                    let error = store.get(lost, NOW).await.unwrap_err();
                    let refusal = Refusal::from(error);
                    assert_eq!(
                        (refusal.status.as_u16(), asked.elapsed() < Duration::from_secs(2)),
                        (503, true),
                        "{what}"
                    );
                    assert!(refusal.into_response().headers().contains_key("retry-after"), "{what}");
                };
                let served = async {
                    for key in kept {
                        let found = store.get(key, NOW).await;
                        let found =
                            found.unwrap_or_else(|error| panic!("{what}: after {:?}: {error:?}", began.elapsed()));
                        assert_eq!(found.unwrap().id_server, "a", "{what}");
                        write(&store, key, put("a", 900)).await;
                    }
                    assert!(asked.elapsed() < Duration::from_secs(2), "{what}: {:?}", asked.elapsed());
                };
                tokio::join!(refused, served);
            }
        }
        if what == "killed" {
            redis.servers[2].start_again().await;
        } else {
            redis.servers[2].signal("-CONT");
        }
        soon("it heals", async {
            for key in &lost {
                while store.update(key, NOW, |_| (put("a", 900), ())).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
        .await;
        assert_eq!(read(&store, &lost[0], NOW).await.as_deref(), Some("a"), "{what}");
    }
}
