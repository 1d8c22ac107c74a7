//! How often a request waits for Redis: commands that leave together wait once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::time::{Instant, sleep_until};

use crate::client::Answer;
use crate::homeserver::{self, Raw};
use crate::redis::Redis;
use crate::secure::{Caller, as_synapse};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

/// Answers are held back until nothing more has been asked for so long.
const HOLD: Duration = Duration::from_millis(40);

/// A way to a server on which everybody can be seen waiting.
struct Metered {
    address: SocketAddr,
    rounds: Arc<AtomicUsize>,
}

/// When something was asked for last, and whether anything was that a request waits for.
struct Asked {
    at: Instant,
    counts: bool,
}

impl Metered {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (rounds, asked) =
            (Arc::<AtomicUsize>::default(), Arc::new(Mutex::new(Asked { at: Instant::now(), counts: false })));
        let count = Arc::clone(&rounds);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(ask(from_client, to_server, Arc::clone(&asked)));
                tokio::spawn(answer(from_server, to_client, Arc::clone(&asked), Arc::clone(&count)));
            }
        });
        Self { address, rounds }
    }

    fn since(&self) -> usize {
        self.rounds.swap(0, Ordering::SeqCst)
    }
}

async fn ask(mut client: tcp::OwnedReadHalf, mut server: tcp::OwnedWriteHalf, asked: Arc<Mutex<Asked>>) {
    let mut bytes = Vec::with_capacity(64 * 1024);
    while client.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
        {
            let mut asked = asked.lock().unwrap();
            asked.at = Instant::now();
            // That the shim lives is nobody's to wait for.
            let text = String::from_utf8_lossy(&bytes);
            asked.counts |= text.matches("threepid-shim:").count() > text.matches("threepid-shim:process:").count();
        }
        if server.write_all(&bytes).await.is_err() {
            return;
        }
        bytes.clear();
    }
}

async fn answer(
    mut server: tcp::OwnedReadHalf,
    mut client: tcp::OwnedWriteHalf,
    asked: Arc<Mutex<Asked>>,
    rounds: Arc<AtomicUsize>,
) {
    let mut bytes = Vec::with_capacity(64 * 1024);
    while server.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
        loop {
            let until = asked.lock().unwrap().at + HOLD;
            if until <= Instant::now() {
                break;
            }
            tokio::select! {
                () = sleep_until(until) => {}
                Ok(count) = server.read_buf(&mut bytes) => assert!(count > 0, "a server that goes while it is asked"),
            }
        }
        if std::mem::take(&mut asked.lock().unwrap().counts) {
            rounds.fetch_add(1, Ordering::SeqCst);
        }
        if client.write_all(&bytes).await.is_err() {
            return;
        }
        bytes.clear();
    }
}

fn relay(_: &Raw, told: Option<&Answer>) -> Vec<u8> {
    told.map_or_else(
        || homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#),
        |told| homeserver::json(&format!("{} X", told.status), &told.text()),
    )
}

/// The figures of the manual.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_token_waits_for_redis_three_times_at_each_door() {
    let redis = Redis::single().await;
    let metered = Metered::to(redis.servers[0].port).await;
    let doors = Reserved::new(1);
    let door = doors.take();
    let caller = Caller::start(&door, as_synapse, relay).await;
    let config = format!("{ROOMY}[store]\nkind = \"redis\"\nurl = \"redis://{}\"\n", metered.address);
    let shim = Shim::before(&caller.address(), door, Wanted::config(&config)).await;
    shim.client().request_token("register", "first@example.org", "connects", 1).await.sid();
    metered.since();
    let ask = async |attempt| shim.client().request_token("register", "a@example.org", "secret", attempt).await.sid();
    let sid = ask(1).await;
    assert_eq!(metered.since(), 6, "the first request");
    assert_eq!(ask(1).await, sid);
    assert_eq!(metered.since(), 7, "the same again");
    assert_eq!(ask(2).await, sid);
    assert_eq!(metered.since(), 6, "another mail");
    assert_eq!(shim.outbox().len(), 3);
}
