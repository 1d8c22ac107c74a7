//! A node of a cluster that is gone takes its own keys with it and nobody else's.

use std::time::{Duration, Instant};

use threepid_shim::config;
use threepid_shim::matrix::{Digest, Refusal};
use threepid_shim::store::{ForeignSid, Key};

use super::{NOW, open, put, read, write};
use crate::homeserver::soon;
use crate::redis::Redis;

/// Keys whose slots are this node's: a third of all.
fn keys_of(redis: &Redis, node: usize, count: usize) -> Vec<Key<ForeignSid>> {
    let its = |name: &String| redis.node_of(&format!("foreign:{}", Digest::of(name.as_bytes()).as_hex())) == node;
    (0..).map(|n| format!("{n}")).filter(its).take(count).map(|name| Key::foreign_sid(&name)).collect()
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
