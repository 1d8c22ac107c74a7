//! The end of a process, seen from outside.

use std::time::Duration;

use threepid_shim::config::Shutdown;
use tokio::net::TcpStream;

use crate::forward::{Front, Mode};
use crate::homeserver::{Homeserver, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const HOUR: Duration = Duration::from_secs(3600);

/// A homeserver that answers a request for `/held` when it is told to.
async fn holding() -> (Homeserver, std::sync::Arc<tokio::sync::Notify>) {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let go = std::sync::Arc::clone(&told);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let go = std::sync::Arc::clone(&go);
        async move {
            while let Some(request) = conversation.request().await {
                if request.line().starts_with("GET /held") {
                    go.notified().await;
                }
                conversation.write(OK).await;
            }
        }
    })
    .await;
    (homeserver, told)
}

#[tokio::test]
async fn readiness_fails_first_while_requests_are_still_taken() {
    let homeserver = Homeserver::answering(OK).await;
    let shutdown = Shutdown { delay: HOUR, grace: HOUR };
    let front = Front::with_shutdown(&homeserver.config(), Mode::Forward, &[], &shutdown);
    let drain = front.drain.clone();
    assert!(!drain.is_draining());
    let ending = tokio::spawn(async move { drain.begin().await });
    soon("draining", async {
        while !front.drain.is_draining() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(front.ask(GET).await.status(), 200);
    front.drain.cut();
    soon("the end", ending).await.unwrap();
}

#[tokio::test]
async fn what_is_open_finishes_what_is_idle_closes_and_nobody_new_comes_in() {
    let (homeserver, go) = holding().await;
    let shutdown = Shutdown { delay: Duration::ZERO, grace: HOUR };
    let front = Front::with_shutdown(&homeserver.config(), Mode::Forward, &[], &shutdown);
    let mut idle = front.connect().await;
    idle.write(GET).await;
    idle.answer(false).await.unwrap();
    let mut fresh = front.connect().await;
    let mut held = front.connect().await;
    held.write("GET /held HTTP/1.1\r\nHost: h\r\n\r\n").await;
    homeserver.received(2).await;

    let drain = front.drain.clone();
    let ending = tokio::spawn(async move { drain.begin().await });
    idle.gone().await;
    fresh.gone().await;
    soon("refusal", async { while TcpStream::connect(front.address).await.is_ok() {} }).await;
    go.notify_one();
    let answer = held.answer(false).await.unwrap();
    assert_eq!(answer.content(), b"ok");
    assert_eq!(answer.field("connection").as_deref(), Some("close"));
    held.gone().await;
    soon("the end", ending).await.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut() {
    let (homeserver, _go) = holding().await;
    let shutdown = Shutdown { delay: Duration::ZERO, grace: Duration::from_millis(50) };
    let front = Front::with_shutdown(&homeserver.config(), Mode::Forward, &[], &shutdown);
    let mut held = front.connect().await;
    held.write("GET /held HTTP/1.1\r\nHost: h\r\n\r\n").await;
    homeserver.received(1).await;
    soon("the end", front.drain.begin()).await;
    assert_eq!(soon("the cut", held.rest()).await, b"");
}

#[tokio::test]
async fn a_second_signal_stops_at_once_and_tunnels_too() {
    let agree = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let homeserver = Homeserver::scripted(move |mut conversation| async move {
        conversation.request().await;
        conversation.write(agree).await;
        conversation.gone().await;
    })
    .await;
    let shutdown = Shutdown { delay: Duration::ZERO, grace: HOUR };
    let front = Front::with_shutdown(&homeserver.config(), Mode::Forward, &[], &shutdown);
    let mut client = front.connect().await;
    client.write("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    soon("101", client.head()).await.unwrap();
    let drain = front.drain.clone();
    let ending = tokio::spawn(async move { drain.begin().await });
    soon("refusal", async { while TcpStream::connect(front.address).await.is_ok() {} }).await;
    assert!(!ending.is_finished(), "the tunnel was not waited for");
    front.drain.cut();
    soon("the end", ending).await.unwrap();
    client.gone().await;
}
