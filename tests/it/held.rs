//! What a peer can hold, and for how long: connections, heads, bodies that do not come, answers that it does not take.

use std::time::Duration;

use http::Request;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::client::Client;
use crate::forward::Front;
use crate::homeserver::{self, Conversation, Homeserver, soon};
use crate::http2::{Upload, connected, frames, in_clear};
use crate::process::Process;
use crate::shim::{Reserved, Shim, Wanted};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
/// `serve::patience::STALLED`.
const STALLED: Duration = Duration::from_secs(120);
const LONG: Duration = Duration::from_secs(3600);

/// Under paused time, so that no test waits: nobody here uses `soon`, whose time would run, too.
fn about(span: Duration) -> bool {
    span >= STALLED && span < STALLED + Duration::from_secs(5)
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stops_coming_holds_the_homeserver_for_two_minutes() {
    let mut ran = 0;
    for request in [
        "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf",
        "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "PUT / HTTP/1.0\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf",
        "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\nhalf",
    ] {
        let (tell, mut told) = mpsc::channel(1);
        let homeserver = Homeserver::scripted(move |mut conversation| {
            let tell = tell.clone();
            async move {
                conversation.until(b"half").await.unwrap();
                let begun = Instant::now();
                conversation.rest().await;
                tell.send(begun.elapsed()).await.unwrap();
            }
        })
        .await;
        let front = Front::before(&homeserver);
        let mut client = front.connect().await;
        client.write(request).await;
        let held = timeout(LONG, told.recv()).await.expect("held for ever").unwrap();
        assert!(about(held), "{request:?}: {held:?}");
        timeout(LONG, client.rest()).await.expect("the client is closed on");
        ran += 1;
    }
    assert_eq!(ran, 4);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_slow_is_waited_for() {
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::before(&homeserver);
    for version in ["1.1", "1.0"] {
        let mut client = front.connect().await;
        client.write(format!("PUT / HTTP/{version}\r\nHost: h\r\nContent-Length: 10\r\n\r\n")).await;
        for _ in 0..10 {
            tokio::time::sleep(STALLED - Duration::from_secs(10)).await;
            client.write("x").await;
        }
        let head = timeout(LONG, client.head()).await.unwrap().expect("it was given up");
        assert!(head.starts_with(format!("HTTP/{version} 200").as_bytes()), "{version}: {:?}", String::from_utf8(head));
    }
}

/// A homeserver whose answer has no end, and how long it could not write until the connection broke.
async fn endless() -> (Homeserver, mpsc::Receiver<Duration>) {
    let (tell, told) = mpsc::channel(1);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let tell = tell.clone();
        async move {
            conversation.request().await;
            conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await;
            let (piece, mut begun) = (vec![b'x'; 65_536], Instant::now());
            while conversation.writes(&piece).await {
                begun = Instant::now();
            }
            tell.send(begun.elapsed()).await.ok();
        }
    })
    .await;
    (homeserver, told)
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_is_held_for_two_minutes() {
    for version in ["1.1", "1.0"] {
        let (homeserver, mut told) = endless().await;
        let front = Front::before(&homeserver);
        let mut client = front.connect().await;
        client.write(GET.replace("1.1", version)).await;
        let held = timeout(LONG, told.recv()).await.expect("held for ever").unwrap();
        assert!(about(held), "{version}: {held:?}");
        assert_eq!(front.metrics.open_connections.get(), 0, "{version}");
    }
}

/// A client of HTTP/2 shows signs of life, and yet takes nothing.
#[tokio::test(start_paused = true)]
async fn a_window_that_never_opens_is_waited_for_no_longer() {
    let (homeserver, mut told) = endless().await;
    let front = in_clear(&homeserver);
    let mut client = frames::begun(front.address).await;
    let begun = Instant::now();
    let flags = frames::END_HEADERS | frames::END_STREAM;
    client.write(frames::frame(frames::HEADERS, flags, 1, &frames::block(&frames::GET))).await;
    let mut pings = 0;
    let end = async {
        while let Some((kind, flags, _, payload)) = frames::next(&mut client).await {
            if (kind, flags) == (frames::PING, 0) {
                pings += 1;
                client.write(frames::frame(frames::PING, 1, 0, &payload)).await;
            }
        }
    };
    timeout(LONG, end).await.expect("held for ever");
    let held = begun.elapsed();
    assert!(held >= STALLED && held < 2 * STALLED && pings > 0, "{held:?} and {pings} pings");
    timeout(LONG, told.recv()).await.expect("the homeserver is told").unwrap();
}

/// S§5.24. Slowloris: heads that never end hold no one else up.
#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_heads_that_never_end_keep_nobody_waiting() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let address = process.clients.parse().unwrap();
    let before = process.memory("VmRSS");
    let mut held = Vec::new();
    for n in 0..2_000 {
        let mut client = Conversation::with(address).await;
        client.write(format!("POST /_matrix/client/r0/register/email/requestToken HTTP/1.1\r\nX-Slow-{n}: ")).await;
        held.push(client);
    }
    let client = process.client();
    for path in ["/_matrix/client/r0/login", "/_matrix/client/unstable/threepid_shim/register/email/submit_token"] {
        let mut times = Vec::new();
        for _ in 0..20 {
            for slow in held.iter_mut().take(100) {
                slow.write("x").await;
            }
            let begun = std::time::Instant::now();
            assert!([200, 400].contains(&client.get(path).await.status));
            times.push(begun.elapsed());
        }
        times.sort();
        assert!(times[10] < Duration::from_millis(100), "{path}: {times:?}");
    }
    let each = (process.memory("VmRSS") - before) / 2_000;
    assert!(each < 32, "{each} kB for each");
}

/// S§5.25.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_any_size_is_refused_and_costs_no_memory() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let before = process.memory("VmRSS");
    let fields = |count: usize| "X-Field: x\r\n".repeat(count);
    let mut ran = 0;
    for (target, fields, expected) in [
        ("/".to_owned(), fields(190), 200),
        ("/".to_owned(), fields(201), 431),
        ("/".to_owned(), format!("X-Long: {}\r\n", "x".repeat(60_000)), 200),
        ("/".to_owned(), format!("X-Long: {}\r\n", "x".repeat(70_000)), 431),
        ("/".to_owned(), format!("X-Long: {}\r\n", "x".repeat(8_000_000)), 431),
        (format!("/{}", "x".repeat(60_000)), String::new(), 200),
        (format!("/{}", "x".repeat(70_000)), String::new(), 414),
        ("/_matrix/client/r0/register/email/requestToken".to_owned(), fields(201), 431),
    ] {
        for _ in 0..10 {
            let mut client = Conversation::with(process.clients.parse().unwrap()).await;
            client.write(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")).await;
            let status = client.answer(false).await.expect("closed without an answer").status();
            let long = if expected == 414 { vec![414, 431] } else { vec![expected] };
            assert!(long.contains(&status), "{} + {} bytes: {status}", target.len(), fields.len());
        }
        ran += 1;
    }
    assert_eq!(ran, 8);
    let more = process.memory("VmRSS").saturating_sub(before);
    assert!(more < 8 * 1024, "{more} kB");
}

/// S§4.28, S§5.18. Bodies that are read whole, of more clients than there is room for.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_held_take_a_bounded_room_and_short_ones_find_some() {
    const REGISTER: &str = "/_matrix/client/r0/register";
    const LONG: usize = 1024 * 1024;
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let door = Reserved::new(1).take();
    let h2c = ["env", "THREEPID_SHIM__LISTEN__H2C=true"];
    let process = Process::under(&h2c, &homeserver.address.to_string(), door, "").serving().await;
    let address = process.clients.parse().unwrap();
    let before = process.memory("VmRSS");
    let mut ran = 0;
    for version in ["1.1", "2"] {
        // All but the last byte of each.
        let mut held = JoinSet::new();
        let (sender, _end) = connected(address).await;
        for _ in 0..100 {
            let mut sender = sender.clone();
            held.spawn(async move {
                if version == "2" {
                    let body = Upload::stalling_after(vec![b' '; LONG - 1]);
                    let request = Request::post(format!("http://h{REGISTER}")).body(body).unwrap();
                    let head = sender.send_request(request).await.unwrap();
                    return (head.status().as_u16(), head.headers()["retry-after"].to_str().unwrap().to_owned());
                }
                let mut client = Conversation::with(address).await;
                client.write(format!("POST {REGISTER} HTTP/1.1\r\nHost: h\r\nContent-Length: {LONG}\r\n\r\n")).await;
                client.write(vec![b' '; LONG - 1]).await;
                let head = homeserver::Raw(client.head().await.expect("closed without an answer"));
                (head.status(), head.field("retry-after").unwrap())
            });
        }
        for _ in 0..100 - 48 {
            let refused = soon("there is no room", held.join_next()).await.unwrap().unwrap();
            assert_eq!(refused, (503, "5".to_owned()), "HTTP/{version}");
        }
        assert_eq!(process.client().post(REGISTER, json!({})).await.status, 200, "HTTP/{version}: a short one");
        let whole = format!("{{\"x\":\"{}\"}}", "x".repeat(LONG - 8));
        let long = async || process.client().send("POST", REGISTER, whole.as_bytes()).await;
        assert_eq!(long().await.verdict(), (503, "M_LIMIT_EXCEEDED".into()), "HTTP/{version}");
        let more = process.memory("VmRSS").saturating_sub(before);
        assert!(more < 90 * 1024, "HTTP/{version}: {more} kB");
        held.shutdown().await;
        drop(sender);
        soon("there is room again", async { while long().await.status != 200 {} }).await;
        ran += 1;
    }
    assert_eq!(ran, 2);
}

/// Whether a new connection is served.
async fn is_served(shim: &Shim) -> bool {
    let mut client = Conversation::with(shim.clients.parse().unwrap()).await;
    client.write(GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
    soon("an answer or the end", client.rest()).await.starts_with(b"HTTP/1.1 200")
}

async fn turned_away(shim: &Shim, limit: &str) -> bool {
    let line = format!("threepid_shim_connections_turned_away_total{{limit=\"{limit}\"}} 0\n");
    !Client::of(&shim.admin).get("/metrics").await.text().contains(&line)
}

#[tokio::test]
async fn beyond_the_most_connections_new_ones_are_closed_until_there_is_room() {
    let homeserver = Homeserver::answering(OK).await;
    // The limit, whether the proxy is trusted, and whether it holds.
    for (limit, trusted, holds) in [
        ("connections", "", true),
        ("connections", "\"127.0.0.0/8\"", true),
        ("connections_per_peer", "", true),
        ("connections_per_peer", "\"127.0.0.0/8\"", false),
    ] {
        let wanted = Wanted::config(&format!("[clients]\ntrusted_proxies = [{trusted}]\n[limits]\n{limit} = 3\n"));
        let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut client = Conversation::with(shim.clients.parse().unwrap()).await;
            client.write(GET).await;
            client.answer(false).await.expect("there is room for three");
            held.push(client);
        }
        assert_eq!(is_served(&shim).await, !holds, "{limit} [{trusted}]");
        assert_eq!(turned_away(&shim, limit).await, holds, "{limit} [{trusted}]");
        for client in &mut held {
            client.write(GET).await;
            client.answer(false).await.expect("who was there stays");
        }
        drop(held);
        soon("there is room again", async { while !is_served(&shim).await {} }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_is_turned_away_is_one_line_of_the_log() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let config = "[limits]\nconnections = 1\n";
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), config).serving().await;
    let mut held = Conversation::with(process.clients.parse().unwrap()).await;
    held.write(GET).await;
    held.answer(false).await.unwrap();
    for _ in 0..500 {
        Conversation::over(TcpStream::connect(&process.clients).await.unwrap()).gone().await;
    }
    let told = process.logged(|line| line["limit"] == "connections").await;
    assert_eq!(told["level"], "WARN");
    let lines = process.lines().iter().filter(|line| line["limit"] == "connections").count();
    assert!(lines <= 3, "{lines} lines for 500 connections");
    let metrics = Client::of(&process.admin).get("/metrics").await.text();
    assert!(metrics.contains("connections_turned_away_total{limit=\"connections\"} 500\n"), "{metrics}");
    soon("the admin door has room for one again", async {
        loop {
            let Ok(stream) = TcpStream::connect(&process.admin).await else { continue };
            let mut client = Conversation::over(stream);
            client.write("GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
            let answer = String::from_utf8(client.rest().await).unwrap();
            if !answer.is_empty() {
                assert!(answer.contains("\"turned_away\":{\"connections\":500,"), "{answer}");
                break;
            }
        }
    })
    .await;
}
