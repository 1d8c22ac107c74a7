//! Whether another process of those that share a store lives.

use std::sync::Arc;
use std::time::Instant;

use threepid_shim::config;
use threepid_shim::in_flight::{self, Note};
use threepid_shim::matrix::{Address, ClientSecret, Medium, Purpose, Threepid};
use threepid_shim::store::{BEAT, Store};
use threepid_shim::telemetry::RequestIds;

use super::{NOW, open};
use crate::homeserver::soon;
use crate::legacy::unique;
use crate::redis::Redis;

fn note(store: &Store) -> Note {
    Note::new(RequestIds::of(store.process()).draw(), Purpose::Register, 1, None, None, NOW)
}

/// S§5.13.
#[tokio::test(flavor = "multi_thread")]
async fn a_note_is_waited_for_while_its_process_lives_and_no_longer() {
    for redis in [Redis::single().await, Redis::cluster().await] {
        let process = || Arc::new(open(&config::Store::Redis(redis.config.clone())));
        let (living, dead, other) = (process(), process(), process());
        dead.beat(NOW).await.unwrap();
        living.beat(NOW).await.unwrap();
        let beating = Arc::clone(&living);
        let beats = tokio::spawn(async move {
            let mut beat = tokio::time::interval(BEAT);
            loop {
                beat.tick().await;
                beating.beat(NOW).await.unwrap();
            }
        });
        let key = |secret: &str| {
            let threepid = Threepid { medium: Medium::Email, address: Address::email("a@example.org").unwrap() };
            in_flight::key(&threepid, &ClientSecret::parse(secret).unwrap())
        };
        let (kept, left) = (key(&unique("kept")), key(&unique("left")));
        let of_the_living = note(&living);
        in_flight::announce(&living, &kept, &of_the_living, || NOW).await.unwrap();
        in_flight::announce(&dead, &left, &note(&dead), || NOW).await.unwrap();
        let (one, another) = (note(&other), note(&other));
        let began = Instant::now();
        let waiting = in_flight::announce(&other, &kept, &one, || NOW);
        tokio::pin!(waiting);
        tokio::select! {
            _ = &mut waiting => panic!("it was not waited for, after {:?}", began.elapsed()),
            taken = soon("a dead one's note is taken", in_flight::announce(&other, &left, &another, || NOW)) => taken.unwrap(),
        }
        assert!(began.elapsed() > BEAT * 3, "dead after {:?}", began.elapsed());
        let claimed = in_flight::claim(&other, &left, 1, NOW).await.unwrap().unwrap();
        assert_eq!(claimed.request_id, another.request_id);
        let still = tokio::time::timeout(BEAT * 2, &mut waiting).await;
        assert!(still.is_err(), "a living one's note was taken");
        in_flight::conclude(&living, &kept, &of_the_living.request_id, || NOW).await.unwrap();
        soon("the living one is done", waiting).await.unwrap();
        beats.abort();
    }
}
