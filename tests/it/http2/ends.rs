//! Streams and connections that end before their time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::sync::Notify;

use super::{OK, Upload, connected, frames, get, in_clear, whole};
use crate::homeserver::{Homeserver, soon};

#[tokio::test]
async fn draining_says_goodbye_and_waits_for_what_is_open() {
    let (homeserver, go) = Homeserver::holding("/held", OK).await;
    let front = in_clear(&homeserver);
    let (mut sender, end) = connected(front.address).await;
    let (mut idle, idle_end) = connected(front.address).await;
    whole(soon("an answer", idle.send_request(get("/"))).await.unwrap()).await;
    let held = tokio::spawn(sender.send_request(get("/held")));
    homeserver.received(2).await;
    let drain = front.drain.clone();
    let ending = tokio::spawn(async move { drain.begin().await });
    soon("the idle one's end", idle_end).await.unwrap().unwrap();
    assert!(!ending.is_finished() && !end.is_finished(), "what is open was not waited for");
    go.add_permits(1);
    assert_eq!(whole(soon("the held answer", held).await.unwrap().unwrap()).await.0, "ok");
    soon("goodbye", end).await.unwrap().unwrap();
    soon("the end", ending).await.unwrap();
}

#[tokio::test]
async fn a_request_that_its_client_gives_up_is_dropped_at_the_homeserver_alone() {
    let gone = Arc::<Notify>::default();
    let told = Arc::clone(&gone);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let told = Arc::clone(&told);
        async move {
            while let Some(request) = conversation.request().await {
                if request.line().contains("/held") {
                    conversation.gone().await;
                    told.notify_one();
                    return;
                }
                conversation.write(OK).await;
            }
        }
    })
    .await;
    let front = in_clear(&homeserver);
    let (mut sender, _end) = connected(front.address).await;
    let held = tokio::spawn(sender.send_request(get("/held")));
    homeserver.received(1).await;
    held.abort();
    soon("the homeserver is told", gone.notified()).await;
    assert_eq!(whole(soon("another", sender.send_request(get("/"))).await.unwrap()).await.0, "ok");
    // And when the whole client goes.
    let mut client = frames::begun(front.address).await;
    let fields = [frames::GET[0], frames::GET[1], frames::GET[2], (":path", "/held")];
    client
        .write(frames::frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, 1, &frames::block(&fields)))
        .await;
    homeserver.received(3).await;
    drop(client);
    soon("the homeserver is told", gone.notified()).await;
}

/// S§5.5.
#[tokio::test]
async fn an_answer_that_is_cut_short_is_seen_to_be() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ];
    for answer in answers {
        let homeserver = Homeserver::scripted(move |mut conversation| async move {
            conversation.request().await;
            conversation.write(answer).await;
        })
        .await;
        let front = in_clear(&homeserver);
        let (mut sender, _end) = connected(front.address).await;
        let response = soon("a head", sender.send_request(get("/"))).await.unwrap();
        soon("the cut", response.into_body().collect()).await.expect_err("half an answer was taken for a whole one");
    }
}

#[tokio::test]
async fn a_homeserver_that_is_down_or_wrong_is_a_502_and_the_connection_lives() {
    for answer in ["", "nonsense\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"] {
        let homeserver = Homeserver::scripted(move |mut conversation| async move {
            conversation.request().await;
            conversation.write(answer).await;
        })
        .await;
        let front = in_clear(&homeserver);
        let (mut sender, _end) = connected(front.address).await;
        for _ in 0..2 {
            let response = soon("an answer", sender.send_request(get("/"))).await.unwrap();
            assert_eq!(response.status(), 502, "{answer:?}");
            assert!(!response.headers().contains_key("connection"));
        }
    }
}

/// S§5.18.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_holds_a_bounded_buffer_and_nobody_else() {
    let written = Arc::<std::sync::atomic::AtomicUsize>::default();
    let counted = Arc::clone(&written);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let counted = Arc::clone(&counted);
        async move {
            while let Some(request) = conversation.request().await {
                if !request.line().contains("/endless") {
                    conversation.write(OK).await;
                    continue;
                }
                conversation.write("HTTP/1.1 200 OK\r\n\r\n").await;
                let piece = vec![b'x'; 65_536];
                while conversation.writes(&piece).await {
                    counted.fetch_add(65_536, Ordering::SeqCst);
                }
            }
        }
    })
    .await;
    let front = in_clear(&homeserver);
    let (mut sender, _end) = connected(front.address).await;
    let unread = soon("a head", sender.send_request(get("/endless"))).await.unwrap();
    let mut before = usize::MAX;
    soon("the homeserver is held back", async {
        // Until nothing more is taken over many answers to others.
        while std::mem::replace(&mut before, written.load(Ordering::SeqCst)) != before {
            for _ in 0..200 {
                assert_eq!(whole(sender.send_request(get("/")).await.unwrap()).await.0, "ok");
            }
        }
    })
    .await;
    // Sockets of loopback take some megabytes by themselves.
    assert!(before < 16 * 1024 * 1024, "{before} bytes were taken for a client that reads none");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_for_a_homeserver_that_does_not_read_it() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        if String::from_utf8_lossy(&conversation.head().await.unwrap()).contains("/unread") {
            std::future::pending::<()>().await;
        }
        conversation.write(OK).await;
    })
    .await;
    let front = in_clear(&homeserver);
    let (mut sender, _end) = connected(front.address).await;
    let (upload, taken) = Upload::endless();
    let held = tokio::spawn(sender.send_request(Request::put("http://h/unread").body(upload).unwrap()));
    let mut before = usize::MAX;
    soon("the client is held back", async {
        while std::mem::replace(&mut before, taken.load(Ordering::SeqCst)) != before || before == 0 {
            for _ in 0..100 {
                assert_eq!(whole(sender.send_request(get("/")).await.unwrap()).await.0, "ok");
            }
        }
    })
    .await;
    assert!(before < 16 * 1024 * 1024, "{before} bytes were taken for a homeserver that reads none");
    held.abort();
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_requests_is_closed_in_time() {
    let homeserver = Homeserver::answering(OK).await;
    let front = in_clear(&homeserver);
    let begun = tokio::time::Instant::now();
    let mut silent = frames::begun(front.address).await;
    while frames::next(&mut silent).await.is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}
