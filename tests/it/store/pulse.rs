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
    Note::new(RequestIds::of(store.process(), NOW).draw(), Purpose::Register, 1, None, None, NOW)
}

/// S§5.13.
#[tokio::test(flavor = "multi_thread")]
async fn a_note_and_a_verdict_are_waited_for_while_their_process_lives_and_no_longer() {
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
        let (kept, left, claimed) = (key(&unique("kept")), key(&unique("left")), key(&unique("claimed")));
        let of_the_living = note(&living);
        in_flight::announce(&living, &kept, &of_the_living, || NOW).await.unwrap();
        in_flight::announce(&dead, &left, &note(&dead), || NOW).await.unwrap();
        let (one, another, third) = (note(&other), note(&other), note(&other));
        in_flight::announce(&other, &claimed, &third, || NOW).await.unwrap();
        in_flight::claim(&dead, &claimed, 1, NOW).await.unwrap().unwrap();
        let began = Instant::now();
        let waiting = in_flight::announce(&other, &kept, &one, || NOW);
        tokio::pin!(waiting);
        tokio::select! {
            _ = &mut waiting => panic!("it was not waited for, after {:?}", began.elapsed()),
            given_up = async {
                let taken = soon("a dead one's note is taken", in_flight::announce(&other, &left, &another, || NOW));
                let verdict = in_flight::conclude(&other, &claimed, &third.request_id, || NOW);
                let verdict = soon("a dead one's verdict is given up", verdict);
                let (taken, verdict) = tokio::join!(taken, verdict);
                taken.and(verdict)
            } => assert_eq!(given_up.unwrap(), None),
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
