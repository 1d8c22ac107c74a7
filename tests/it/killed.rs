//! The real binary killed while a completion is at a real homeserver: nobody ever says what became of it.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, Semaphore};

use crate::client::{Answer, Client, PASSWORD, creds};
use crate::homeserver::soon;
use crate::legacy::{Legacy, legacy, unique};
use crate::process::Process;
use crate::redis::Redis;
use crate::secure::{acceptor, call, request_from};
use crate::shim::{ROOMY, Reserved, link_of};

/// A shim that shares its store cannot know at once that another is dead.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a homeserver meets that asks whether an address is validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// Its question is kept until the shim is back, and goes on then.
    Late,
    /// The same, but the session was asked for by somebody else meanwhile.
    TooLate,
    /// Its question gets lost.
    Lost,
    /// It is told yes, but not before the shim is dead.
    Told,
}

/// Between a homeserver and the identity door: hands on its questions, and holds the one that it is told to.
#[derive(Clone)]
struct Between {
    next: Arc<Mutex<Option<Asking>>>,
    held: Arc<Notify>,
    go_on: Arc<Semaphore>,
    /// The one that was held is over.
    over: Arc<Notify>,
}

impl Between {
    /// At a socket that the homeserver trusts, before the door at `shim`.
    fn at(door: TcpListener, shim: String) -> Self {
        let (held, over) = (Arc::default(), Arc::default());
        let between = Self { next: Arc::default(), held, go_on: Arc::new(Semaphore::new(0)), over };
        door.set_nonblocking(true).unwrap();
        let (door, serving) = (tokio::net::TcpListener::from_std(door).unwrap(), between.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = door.accept().await {
                let (between, shim) = (serving.clone(), shim.clone());
                tokio::spawn(async move { between.serve(stream, &shim).await });
            }
        });
        between
    }

    async fn serve(&self, stream: tokio::net::TcpStream, shim: &str) -> Option<()> {
        let mut stream = acceptor().accept(stream).await.ok()?;
        let request = request_from(&mut stream).await?;
        let line = request.line();
        let (method, target) = (line.split(' ').next()?, line.split(' ').nth(1)?);
        let asking = if target.contains("getValidated3pid") { self.next.lock().unwrap().take() } else { None };
        match asking {
            Some(Asking::Late | Asking::TooLate | Asking::Lost) => self.hold().await,
            Some(Asking::Told) | None => {}
        }
        if asking == Some(Asking::Lost) {
            return None;
        }
        let kind = request.field("content-type").unwrap_or_default();
        let body = String::from_utf8(request.content()).unwrap();
        let told = call(shim, method, target, &kind, &body).await;
        if matches!(asking, Some(Asking::Late | Asking::TooLate)) {
            let is_told = told.json()["address"].is_string();
            assert_eq!(is_told, asking == Some(Asking::Late), "{}", told.text());
            self.over.notify_one();
        }
        if asking == Some(Asking::Told) {
            assert!(told.json()["address"].is_string(), "{}", told.text());
            self.hold().await;
        }
        let (status, text) = (told.status, told.text());
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n");
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).await.ok()?;
        stream.shutdown().await.ok()
    }

    async fn hold(&self) {
        self.held.notify_one();
        self.go_on.acquire().await.unwrap().forget();
    }
}

/// A shim with this store, before this homeserver, and what is between them.
async fn set_up(homeserver: &Legacy, store: &str) -> (Process, Between) {
    let (door, own) = (homeserver.door(), Reserved::new(1).take());
    let name = format!("THREEPID_SHIM__IDENTITY__NAME=localhost:{}", door.local_addr().unwrap().port());
    let between = Between::at(door, format!("localhost:{}", own.local_addr().unwrap().port()));
    let config = format!("{ROOMY}{store}");
    (Process::under(&["env", &name], &homeserver.address, own, &config).serving().await, between)
}

/// What a client sends to complete, but for its creds, and where.
struct Wanted {
    endpoint: &'static str,
    body: Value,
}

impl Wanted {
    async fn uia_session(&self, client: &Client) -> String {
        let asked = client.call(self.endpoint, self.body.clone()).await;
        assert_eq!(asked.status, 401, "{}", asked.text());
        asked.json()["session"].as_str().unwrap().to_owned()
    }

    async fn complete(&self, client: &Client, uia_session: &str, sid: &str, secret: &str) -> Answer {
        let creds = creds(sid, secret);
        let mut body = self.body.clone();
        body["auth"] = json!({ "type": "m.login.email.identity", "session": uia_session, "threepid_creds": creds });
        let began = Instant::now();
        let answer = client.call(self.endpoint, body).await;
        assert!(began.elapsed() < PATIENCE, "a dead request is waited for: {:?}", began.elapsed());
        answer
    }
}

/// S§5.12: a registration and a password reset, each killed at each point of its stay at the homeserver.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_the_shim_died_with_is_its_clients_to_repeat_and_nobody_elses() {
    let all = [Asking::Late, Asking::TooLate, Asking::Lost, Asking::Told];
    killed("[store]\nkind = \"file\"\n", &all).await;
}

/// S§5.12, S§5.14: the same where the process that comes after is another one of several.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_a_replica_died_with_is_its_clients_to_repeat_within_seconds() {
    let redis = Redis::single().await;
    killed(&redis.servers[0].table(), &[Asking::Late, Asking::Told]).await;
}

async fn killed(store: &str, at: &[Asking]) {
    let homeserver = legacy("1.3.1");
    let (mut shim, between) = set_up(homeserver, store).await;
    let mut ran = 0;
    for asking in at.iter().copied() {
        let (name, email) = (unique("killed"), unique("killed") + "@example.org");
        for purpose in ["register", "account/password"] {
            let what = format!("{asking:?} {purpose}");
            let secret = unique("secret");
            let new = unique("new password ");
            let (password, body) = if purpose == "register" {
                (PASSWORD, json!({ "username": name, "password": PASSWORD }))
            } else {
                (new.as_str(), json!({ "new_password": new }))
            };
            let wanted = Arc::new(Wanted { endpoint: purpose, body });
            let sid = shim.client().request_token(purpose, &email, &secret, 1).await.sid();
            let mails = shim.outbox();
            let link = mails.iter().map(|mail| link_of(mail)).find(|link| link.contains(&sid)).unwrap();
            assert_eq!(shim.client().click(&link).await.status, 200, "{what}");
            let uia_session = wanted.uia_session(&shim.client()).await;
            let elsewhere = wanted.uia_session(&shim.client()).await;

            *between.next.lock().unwrap() = Some(asking);
            let (client, again, id, creds) =
                (shim.client(), Arc::clone(&wanted), uia_session.clone(), (sid.clone(), secret.clone()));
            let unanswered = tokio::spawn(async move { again.complete(&client, &id, &creds.0, &creds.1).await });
            soon("the homeserver asks", between.held.notified()).await;
            shim = shim.killed_and_started_again().await;
            unanswered.await.unwrap_err();

            let thief = async |shim: &Process, when: &str| {
                let answer = wanted.complete(&shim.client(), &elsewhere, &sid, &secret).await;
                assert_eq!(answer.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "{what}: {when}");
            };
            let done = async || homeserver.bare().login(&email, password).await.status == 200;
            if asking != Asking::Late {
                thief(&shim, "before its owner").await;
            }
            between.go_on.add_permits(1);
            if matches!(asking, Asking::Late | Asking::TooLate) {
                // Or it would be told on behalf of the next.
                soon("the late question is answered", between.over.notified()).await;
            }
            if matches!(asking, Asking::Late | Asking::Told) {
                // It does what it was asked, though the answer reaches nobody.
                soon(&what, async { while !done().await {} }).await;
                thief(&shim, "once it is done").await;
            }
            let repeated = wanted.complete(&shim.client(), &uia_session, &sid, &secret).await;
            assert_eq!(repeated.status, 200, "{what}: {}", repeated.text());
            if purpose == "register" {
                assert_eq!(repeated.json()["user_id"], format!("@{name}:localhost"), "{what}");
            }
            assert!(done().await, "{what}");
            thief(&shim, "after its owner").await;
            ran += 1;
        }
    }
    assert_eq!(ran, 2 * at.len());
}
