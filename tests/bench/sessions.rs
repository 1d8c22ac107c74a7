//! What a store costs that holds very many sessions: bytes each, the store's part of a requestToken and of getValidated3pid, and the time to start.
//!
//! `cargo bench --bench sessions -- [--sessions N] [memory] [file] [redis]`; prints a row of the table in `tests/README.md` for each. For redis it starts a
//! `redis-server` on a free port of loopback.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a tool, not the shim"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use threepid_shim::config::{self, Rate, RedisServers, RedisUrl};
use threepid_shim::in_flight::{self, Note, Verdict};
use threepid_shim::limit::Limit;
use threepid_shim::matrix::{Address, ClientSecret, Medium, Purpose, Sid, Threepid, Timestamp, Token};
use threepid_shim::session::{Owner, Reserved, Session};
use threepid_shim::store::{Client, Edit, Effect, Fresh, Key, Store};
use threepid_shim::telemetry::{Metrics, RequestId};

/// Tasks that fill, so that what waits for a disk or a network waits together: a store on a disk syncs once for all who wait.
const FILLING: usize = 2048;
/// Tasks while it is measured, and what each does of both kinds.
const MEASURING: usize = 8;
const EACH: usize = 1000;
const LIFETIME: Duration = Duration::from_secs(86_400);

#[tokio::main]
async fn main() {
    let mut sessions = 1_000_000;
    let mut kinds = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // cargo's own.
            "--bench" => {}
            "--sessions" => {
                sessions = arguments.next().and_then(|n| n.parse().ok()).expect("--sessions wants a number");
            }
            _ => kinds.push(argument),
        }
    }
    if kinds.is_empty() {
        kinds = ["memory", "file", "redis"].map(str::to_owned).to_vec();
    }
    println!(
        "| store | sessions | bytes each, where | requestToken p50 | p99 | getValidated3pid p50 | p99 | time to start |"
    );
    println!("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |");
    for kind in kinds {
        println!("{}", row(&kind, sessions).await);
    }
}

async fn row(kind: &str, sessions: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let redis = (kind == "redis").then(|| Redis::start(folder.path()));
    let config = match (kind, &redis) {
        ("memory", _) => config::Store::Memory,
        ("file", _) => config::Store::File { directory: folder.path().to_owned() },
        ("redis", Some(redis)) => redis.config(),
        _ => panic!("no store is called {kind}: memory, file, redis"),
    };
    let open = || Arc::new(Store::open(&config, &Metrics::new()).unwrap());
    let (store, resident) = (open(), resident());
    let empty = redis.as_ref().map(Redis::used);
    let sids = fill(kind, &store, sessions).await;
    let names = (sids.len() * (size_of::<(usize, Sid)>() + 32)) as u64;
    let bytes = match (kind, &redis, empty) {
        ("file", ..) => std::fs::metadata(folder.path().join("sessions.redb")).unwrap().len(),
        (_, Some(redis), Some(empty)) => redis.used() - empty,
        _ => crate::resident().saturating_sub(resident + names),
    };
    let at =
        ["in this process", "on the disk", "in Redis"][usize::from(kind == "file") + 2 * usize::from(kind == "redis")];
    let mut tasks = Vec::new();
    for task in 0..MEASURING {
        let (store, own) = (Arc::clone(&store), sids.iter().skip(task * EACH).take(EACH).cloned().collect::<Vec<_>>());
        tasks.push(tokio::spawn(async move { measure(&store, &own, task).await }));
    }
    let (mut asked, mut told) = (Vec::new(), Vec::new());
    for task in tasks {
        let (one, other) = task.await.unwrap();
        asked.extend(one);
        told.extend(other);
    }
    drop(store);
    let began = Instant::now();
    let again = open();
    let known = again.get(&Key::session(&sids[sids.len() / 2].1), now()).await.unwrap().is_some();
    let start = began.elapsed();
    assert_eq!(known, kind != "memory", "a session is there after the start, if it is to be");
    let [asked, told] = [&mut asked, &mut told].map(|all| {
        all.sort_unstable();
        format!("{:.2} ms | {:.2} ms", millis(all[all.len() / 2]), millis(all[all.len() * 99 / 100]))
    });
    let start = if known { format!("{:.2} s", start.as_secs_f64()) } else { "begins empty".to_owned() };
    format!("| {kind} | {sessions} | {} {at} | {asked} | {told} | {start} |", bytes / sessions as u64)
}

/// Sessions that were mailed a link and wait for the click. Says every ten seconds how far it is.
async fn fill(kind: &str, store: &Arc<Store>, sessions: usize) -> Vec<(usize, Sid)> {
    let (began, done) = (Instant::now(), Arc::<AtomicUsize>::default());
    let tasks: Vec<_> = (0..FILLING)
        .map(|task| {
            let (store, done) = (Arc::clone(store), Arc::clone(&done));
            tokio::spawn(async move {
                let mut sids = Vec::new();
                for n in (task..sessions).step_by(FILLING) {
                    sids.push((n, begin(&store, &person(n)).await));
                    done.fetch_add(1, Ordering::Relaxed);
                }
                sids
            })
        })
        .collect();
    let kind = kind.to_owned();
    let telling = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let (done, took) = (done.load(Ordering::Relaxed), began.elapsed().as_secs());
            eprintln!("{kind}: {done} of {sessions} sessions after {took} s");
        }
    });
    let mut sids = Vec::with_capacity(sessions);
    for task in tasks {
        sids.extend(task.await.unwrap());
    }
    telling.abort();
    sids
}

struct Person {
    threepid: Threepid,
    client_secret: ClientSecret,
    request_id: RequestId,
}

fn person(n: usize) -> Person {
    Person {
        threepid: Threepid {
            medium: Medium::Email,
            address: Address::email(&format!("person{n}@example.org")).unwrap(),
        },
        client_secret: ClientSecret::parse(&format!("secret-of-{n}")).unwrap(),
        request_id: RequestId::from_random((n as u64).to_be_bytes()),
    }
}

async fn begin(store: &Store, person: &Person) -> Sid {
    let (threepid, client_secret, request_id) = (&person.threepid, &person.client_secret, &person.request_id);
    let client = Client { threepid, purpose: Purpose::Register, client_secret, request_id };
    let (sid, _) = store.find_or_begin(&client, Fresh::draw(now().after(LIFETIME)).unwrap(), now()).await.unwrap();
    let token = Token::from_random(*b"0123456789abcdef0123456789abcdef");
    let add = |session: &mut Session| session.add_token(&token, None, request_id.clone(), now().after(LIFETIME));
    store.update_session(&sid, now(), add).await.unwrap();
    store.update_session(&sid, now(), |session| session.mailed(1)).await.unwrap();
    sid
}

/// What both doors do in the store for a requestToken and its mail, and what getValidated3pid does, in their order.
async fn measure(store: &Arc<Store>, sids: &[(usize, Sid)], task: usize) -> (Vec<Duration>, Vec<Duration>) {
    let (mut asked, mut told) = (Vec::new(), Vec::new());
    let (per_ip, per_address) = (Limit::new("per_ip", store), Limit::new("per_address", store));
    let rate = Rate { count: 1000, per: Duration::from_secs(3600) };
    for (n, (whose, sid)) in sids.iter().enumerate() {
        let Person { threepid, client_secret, request_id } = &person(1_000_000_000 + task * EACH + n);
        let (purpose, address) = (Purpose::Register, threepid.address.expose());
        let client = Client { threepid, purpose, client_secret, request_id };
        let began = Instant::now();
        let (allowed, current) = tokio::join!(per_ip.take(address, rate, now()), store.current(&client, now()));
        allowed.unwrap();
        let key = in_flight::key(threepid, client_secret);
        let mut note = Note::new(request_id.clone(), purpose, 1, None, None, now());
        note.current = current.unwrap();
        in_flight::announce(store, &key, &note, now).await.unwrap();
        let claim = in_flight::claim(store, &key, 1, now());
        let (claimed, allowed) = tokio::join!(claim, per_address.take(address, rate, now()));
        allowed.unwrap();
        let note = claimed.unwrap().unwrap();
        let token = Token::from_random(*b"0123456789abcdef0123456789abcdef");
        let add = |session: &mut Session| session.add_token(&token, None, request_id.clone(), now().after(LIFETIME));
        let fresh = Fresh::draw(now().after(LIFETIME)).unwrap();
        let (own, ()) =
            store.change_or_begin(&client, note.current.as_ref(), fresh, now(), add).await.unwrap().unwrap();
        let verdict = Verdict::Sent { sid: own.clone() };
        let count = store.update_session(&own, now(), |session| session.mailed(1));
        let (counted, decided) = tokio::join!(count, in_flight::decide(store, &key, request_id, &verdict, now()));
        counted.unwrap().unwrap();
        decided.unwrap();
        in_flight::conclude(store, &key, request_id, now).await.unwrap().unwrap();
        asked.push(began.elapsed());

        let owner = Owner::uia_session("uia");
        let hold = |session: &mut Session| session.reserve(request_id, purpose, None, &owner, now());
        assert_eq!(store.update_session(sid, now(), hold).await.unwrap(), Some(Reserved::Granted));
        let began = Instant::now();
        let edits = Session::telling(&person(*whose).client_secret).map(|(when, from, to)| Edit {
            when: when.to_vec(),
            from: from.to_owned(),
            effect: Effect::Replace(to.to_owned()),
        });
        let marked = store.mark(&Key::session(sid), now(), &edits, Session::kept_until).await.unwrap();
        told.push(began.elapsed());
        assert!(marked.unwrap().1, "that the homeserver asked is written down");
    }
    (asked, told)
}

/// One server, gone with this.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start(folder: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()]).current_dir(folder);
        let child = command.stdout(Stdio::null()).spawn().expect("Debian's redis-server is installed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::yield_now();
        }
        Self { child, port }
    }

    fn config(&self) -> config::Store {
        let url = RedisUrl { tls: false, host: "127.0.0.1".to_owned(), port: Some(self.port) };
        let (username, password, sentinel_password, ca_file) = (None, None, None, None);
        config::Store::Redis(config::Redis {
            servers: RedisServers::Single(url),
            username,
            password,
            sentinel_password,
            ca_file,
        })
    }

    /// Bytes that its data take, as it says itself.
    fn used(&self) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"INFO memory\r\nQUIT\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok()).unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn now() -> Timestamp {
    Timestamp::from_millis(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap())
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}
