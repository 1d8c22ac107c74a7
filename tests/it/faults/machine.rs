//! What the machine has no more of, and how the real binary ends with a thousand clients waiting.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::client::{Client, creds};
use crate::homeserver::{self, Conversation, Homeserver, soon};
use crate::legacy::{legacy, unique};
use crate::process::Process;
use crate::shim::{Reserved, link_of};

const SYNC: &str = "GET /_matrix/client/r0/sync?timeout=30000 HTTP/1.1\r\nHost: h\r\n\r\n";

/// S§5.17. Every descriptor taken by clients: what is open lives, the admin door answers, nothing that was verified is lost,
/// and all is well again when they are gone.
#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_are_used_up_cost_no_session_and_come_back() {
    let synapse = legacy("1.3.1");
    let few = ["prlimit", "--nofile=80:80"];
    let process = Process::under(&few, &synapse.address, synapse.door(), "").serving().await;
    let (client, secret) = (process.client(), unique("few"));
    let sid = client.request_token("register", &format!("{secret}@example.org"), &secret, 1).await.sid();
    let link = link_of(&process.outbox()[0]);
    assert_eq!(client.click(&link).await.status, 200);
    let mut old = Conversation::with(process.clients.parse().unwrap()).await;
    let login = "GET /_matrix/client/r0/login HTTP/1.1\r\nHost: h\r\n\r\n";
    old.write(login).await;
    assert_eq!(old.answer(false).await.unwrap().status(), 200);
    let mut crowd = Vec::new();
    for _ in 0..200 {
        let mut one = Conversation::with(process.clients.parse().unwrap()).await;
        one.write("GET / HTTP/1.1\r\n").await;
        crowd.push(one);
    }
    process.logged(|line| line["message"] == "cannot accept connections").await;
    old.write(login).await;
    assert_eq!(old.answer(false).await.expect("what was open lives").status(), 200);
    // Long enough for whoever waits at the other door to take what an answer at this one leaves free.
    let (begun, admin) = (std::time::Instant::now(), Client::of(&process.admin));
    let mut answered = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(soon("the admin door answers", admin.get("/healthz")).await.status, 200);
        answered += 1;
    }
    assert!(answered > 3, "{answered}");
    drop(crowd);
    let registered = soon("it recovers", client.register(&unique("few"), creds(&sid, &secret))).await;
    registered.ok();
    let complaints = process.lines().iter().filter(|line| line["message"] == "cannot accept connections").count();
    assert!(complaints < 60, "{complaints} lines");
}

/// S§5.19.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_with_a_thousand_long_polls_answers_all_of_them() {
    let versions = homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#);
    let (homeserver, let_go) = Homeserver::holding("/sync", versions).await;
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let mut clients = Vec::new();
    for _ in 0..1_000 {
        let mut client = Conversation::with(process.clients.parse().unwrap()).await;
        client.write(SYNC).await;
        clients.push(client);
    }
    let syncs = || homeserver.requests().iter().filter(|request| request.line().contains("/sync")).count();
    soon("all have arrived", async {
        while syncs() < 1_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    process.terminate();
    let address = process.clients.clone();
    soon("the door closes", async { while TcpStream::connect(&address).await.is_ok() {} }).await;
    let_go.add_permits(1_000);
    for mut client in clients {
        let answer = client.answer(false).await.expect("an answer is lost");
        assert_eq!((answer.status(), answer.field("connection").as_deref()), (200, Some("close")));
        client.gone().await;
    }
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

/// S§5.18. Two hundred clients that read slowly hold their sockets' buffers and no more.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_slow_downloads_take_little_memory() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        while let Some(request) = conversation.request().await {
            if !request.line().contains("/download") {
                conversation.write(homeserver::json("200 OK", "{}")).await;
                continue;
            }
            conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
            let piece = vec![b'x'; 65_536];
            while conversation.writes(&piece).await {}
        }
    })
    .await;
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let before = process.memory("VmRSS");
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut client = Conversation::with(process.clients.parse().unwrap()).await;
        // By turns as bytes and by hyper.
        let version = if n % 2 == 0 { "1.1" } else { "1.0" };
        client.write(format!("GET /_matrix/media/r0/download/x/y HTTP/{version}\r\nHost: h\r\n\r\n")).await;
        client.exactly(100_000).await;
        slow.push(client);
    }
    for client in &mut slow {
        client.exactly(500_000).await;
    }
    let begun = std::time::Instant::now();
    assert_eq!(process.client().get("/_matrix/client/r0/login").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let more = process.memory("VmHWM").saturating_sub(before) / 1024;
    assert!(more < 64, "{more} MB for 200 of 100 MB each");
}

/// S§5.3. A homeserver that answers nobody: what needs no homeserver is as quick as ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_hangs_keeps_no_page_waiting() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        while conversation.request().await.is_some_and(|request| request.line().contains("/versions")) {
            conversation.write(homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let mut held = Vec::new();
    for _ in 0..500 {
        let mut client = Conversation::with(process.clients.parse().unwrap()).await;
        client.write(SYNC).await;
        held.push(client);
    }
    let page = "/_matrix/client/unstable/threepid_shim/register/email/submit_token";
    let mut times = Vec::new();
    for _ in 0..21 {
        let begun = std::time::Instant::now();
        assert_eq!(process.client().get(page).await.status, 400);
        times.push(begun.elapsed());
    }
    times.sort();
    assert!(times[10] < Duration::from_millis(50), "{times:?}");
}
