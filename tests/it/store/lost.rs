//! Answers of Redis that are lost on their way: what was asked was done, and is asked again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use threepid_shim::config::{self, Rate, RedisServers, RedisUrl};
use threepid_shim::in_flight::{self, Note, Verdict};
use threepid_shim::limit::Limit;
use threepid_shim::matrix::{Purpose, Sid};
use threepid_shim::store::{ForeignSid, Key, Store};
use threepid_shim::telemetry::RequestId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Change, NOW, Person, open, put, read, write};
use crate::redis::Redis;

/// A way to a server on which an answer can be lost, and the connection with it.
struct Lossy {
    address: SocketAddr,
    loses: Arc<AtomicBool>,
}

impl Lossy {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, loses) = (listener.local_addr().unwrap(), Arc::<AtomicBool>::default());
        let losing = Arc::clone(&loses);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&losing)));
            }
        });
        Self { address, loses }
    }

    /// What `ask` is answered first gets lost.
    async fn lose<T>(&self, ask: impl Future<Output = T>) -> T {
        self.loses.store(true, Ordering::SeqCst);
        let answer = ask.await;
        assert!(!self.loses.load(Ordering::SeqCst), "an answer was lost");
        answer
    }
}

async fn pass(mut client: TcpStream, mut server: TcpStream, loses: Arc<AtomicBool>) {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            Ok(1..) = client.read_buf(&mut asked) => {
                if server.write_all(&asked).await.is_err() {
                    return;
                }
                asked.clear();
            }
            Ok(1..) = server.read_buf(&mut answered) => {
                if loses.swap(false, Ordering::SeqCst) || client.write_all(&answered).await.is_err() {
                    return;
                }
                answered.clear();
            }
            else => return,
        }
    }
}

/// A store whose answers may be lost, and another that has all of its own.
async fn stores(redis: &Redis) -> (Lossy, Arc<Store>, Arc<Store>) {
    let lossy = Lossy::to(redis.servers[0].port).await;
    let url = RedisUrl { tls: false, host: "127.0.0.1".to_owned(), port: Some(lossy.address.port()) };
    let config = config::Redis { servers: RedisServers::Single(url), ..redis.config.clone() };
    let store = Arc::new(open(&config::Store::Redis(config)));
    store.look().await.unwrap();
    (lossy, store, Arc::new(open(&config::Store::Redis(redis.config.clone()))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_answer_is_lost_is_made_once_and_says_what_it_decided() {
    let redis = Redis::single().await;
    let (lossy, store, other) = stores(&redis).await;
    let key = Key::foreign_sid("17");
    let longer = |current: Option<ForeignSid>| {
        let name = current.map_or_else(String::new, |record| record.id_server) + "x";
        (put(&name, 900), name.len())
    };
    assert_eq!(lossy.lose(store.update(&key, NOW, longer)).await.unwrap(), 1);
    assert_eq!(lossy.lose(store.update(&key, NOW, longer)).await.unwrap(), 2);
    assert_eq!(read(&other, &key, NOW).await.as_deref(), Some("xx"));
    let remove = |current: Option<ForeignSid>| (Change::Remove, current.map(|record| record.id_server));
    assert_eq!(lossy.lose(store.update(&key, NOW, remove)).await.unwrap().as_deref(), Some("xx"));
    // What is left of it is nothing to anybody.
    for store in [&store, &other] {
        assert_eq!(read(store, &key, NOW).await, None);
        assert_eq!(store.update(&key, NOW, |current| (Change::Keep, current)).await.unwrap(), None);
        write(store, &key, put("again", 900)).await;
        assert_eq!(store.update(&key, NOW, remove).await.unwrap().as_deref(), Some("again"));
    }
}

/// Dendrite turns what the identity door decides into a 500: only the note says what it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_whose_answer_is_lost_is_known_all_the_same() {
    let redis = Redis::single().await;
    let (lossy, store, other) = stores(&redis).await;
    let person = Person::new(&store);
    let key = in_flight::key(&person.threepid, &person.client_secret);
    for n in 0..2 {
        let request_id = RequestId::from_random([n; 8]);
        let note = Note::new(request_id.clone(), Purpose::Register, 1, None, None, NOW);
        lossy.lose(in_flight::announce(&store, &key, &note, || NOW)).await.unwrap();
        let claimed = lossy.lose(in_flight::claim(&store, &key, 1, NOW)).await.unwrap();
        assert_eq!(claimed.map(|note| note.request_id), Some(request_id.clone()));
        assert!(in_flight::claim(&other, &key, 1, NOW).await.unwrap().is_none(), "it is taken up once");
        let sent = Verdict::Sent { sid: Sid::from_random([n; 16]) };
        lossy.lose(in_flight::decide(&store, &key, &request_id, &sent, NOW)).await.unwrap();
        let verdict = lossy.lose(in_flight::conclude(&store, &key, &request_id, || NOW)).await.unwrap();
        assert_eq!(verdict, Some(sent));
        for store in [&store, &other] {
            assert_eq!(in_flight::conclude(store, &key, &request_id, || NOW).await.unwrap(), None, "it is told once");
            assert!(in_flight::claim(store, &key, 1, NOW).await.unwrap().is_none());
        }
    }
}

/// As the manual says.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_whose_answer_is_lost_counts_one_twice_and_never_none() {
    let redis = Redis::single().await;
    let (lossy, store, other) = stores(&redis).await;
    let (limit, there) = (Limit::new("test", &store), Limit::new("test", &other));
    let rate = Rate { count: 4, per: Duration::from_secs(40) };
    let rest = async |most| {
        for left in 0..most {
            if there.take("a", rate, NOW).await.is_err() {
                return left;
            }
        }
        most
    };
    lossy.lose(limit.take("a", rate, NOW)).await.unwrap();
    assert_eq!(rest(9).await, 2);
    lossy.lose(limit.give_back("a", rate, NOW)).await;
    assert_eq!(rest(9).await, 2);
}
