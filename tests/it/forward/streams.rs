//! What happens while bytes flow: streaming, trailers, early answers, 100-continue, clients that leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::forward::Front;
use crate::homeserver::{Homeserver, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn the_first_bytes_of_an_answer_arrive_before_the_next_are_sent() {
    let seen = Arc::new(Notify::new());
    let go_on = Arc::clone(&seen);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let go_on = Arc::clone(&go_on);
        async move {
            conversation.request().await;
            conversation.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
            go_on.notified().await;
            conversation.write("6\r\nsecond\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    soon("the first chunk", client.until(b"5\r\nfirst\r\n")).await.unwrap();
    seen.notify_one();
    assert_eq!(soon("the rest", client.until(b"0\r\n\r\n")).await.unwrap(), b"6\r\nsecond\r\n0\r\n\r\n");
}

#[tokio::test]
async fn the_first_bytes_of_a_request_arrive_before_the_next_are_sent() {
    let seen = Arc::new(Notify::new());
    let tell = Arc::clone(&seen);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let tell = Arc::clone(&tell);
        async move {
            conversation.until(b"5\r\nfirst\r\n").await.unwrap();
            tell.notify_one();
            conversation.until(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
            conversation.write(OK).await;
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    soon("the first chunk", seen.notified()).await;
    client.write("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().status(), 200);
}

/// S§5.2.
#[tokio::test]
async fn the_head_of_a_long_poll_comes_back_only_when_the_homeserver_sends_it_and_is_waited_for() {
    let answer = Arc::new(Notify::new());
    let go = Arc::clone(&answer);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let go = Arc::clone(&go);
        async move {
            conversation.request().await;
            go.notified().await;
            conversation.write(OK).await;
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    homeserver.received(1).await;
    answer.notify_one();
    assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
}

#[tokio::test]
async fn announced_trailers_come_down_to_a_client_that_takes_them() {
    let homeserver = Homeserver::answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
    let answer = client.answer(false).await.unwrap();
    assert_eq!(answer.field("trailer").as_deref(), Some("X-Sum"));
    assert!(answer.body().ends_with(b"0\r\nx-sum: 1\r\n\r\n"), "{answer:?}");
    // The connection is good for more, on both sides.
    client.write(GET).await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"hi");
    assert_eq!(homeserver.connections(), 1);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_is_complete_is_relayed_at_once() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        conversation.head().await;
        conversation.write(OK).await;
        conversation.exactly(10).await;
        conversation.request().await;
        conversation.write(OK).await;
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n012").await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
    client.write("3456789").await;
    client.write(GET).await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
}

#[tokio::test]
async fn a_homeserver_that_answers_and_closes_amid_an_upload_is_heard() {
    for _ in 0..20 {
        let homeserver = Homeserver::scripted(|mut conversation| async move {
            conversation.head().await;
            conversation.write("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}").await;
        })
        .await;
        let front = Front::before(&homeserver);
        let mut client = front.connect().await;
        client.write("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 20000000\r\n\r\n").await;
        client.write(vec![b'x'; 20_000_000]).await;
        let answer = client.answer(false).await.expect("reset before the answer could be read");
        assert_eq!(answer.status(), 413);
    }
}

const EXPECTING: &str = "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[tokio::test]
async fn a_client_that_waits_to_be_asked_is_asked_when_the_homeserver_asks() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        let head = conversation.head().await.unwrap();
        assert!(String::from_utf8_lossy(&head).contains("\r\nExpect: 100-continue\r\n"));
        conversation.write("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(conversation.exactly(5).await, b"hello");
        conversation.write(OK).await;
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    let asked_at = Instant::now();
    client.write(EXPECTING).await;
    assert_eq!(soon("100", client.head()).await.unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
    assert!(asked_at.elapsed() < Duration::from_millis(900), "asked by the clock, not by the homeserver");
    client.write("hello").await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
}

#[tokio::test]
async fn a_homeserver_that_refuses_before_asking_gets_no_body() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let tell = tell.clone();
        async move {
            conversation.head().await;
            conversation.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}").await;
            tell.send(conversation.rest().await).await.unwrap();
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(EXPECTING).await;
    let answer = client.answer(false).await.unwrap();
    assert_eq!(answer.line(), "HTTP/1.1 401 Unauthorized");
    assert_eq!(answer.field("connection").as_deref(), Some("close"));
    assert_eq!(soon("the connection's end", told.recv()).await.unwrap(), b"");
    client.gone().await;
}

#[tokio::test]
async fn a_homeserver_that_knows_no_expect_gets_the_body_after_a_while() {
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(EXPECTING).await;
    assert_eq!(soon("100", client.head()).await.unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write("hello").await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
    assert_eq!(homeserver.request().body(), b"hello");
}

#[tokio::test]
async fn a_client_that_sends_its_body_unasked_is_served() {
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::before(&homeserver);
    let answer = front.ask(format!("{EXPECTING}hello")).await;
    assert!(matches!(answer.status(), 100 | 200), "{answer:?}");
    assert_eq!(homeserver.received(1).await[0].body(), b"hello");
}

/// A homeserver that never answers and tells when its connection ends.
async fn silent() -> (Homeserver, tokio::sync::mpsc::Receiver<()>) {
    let (tell, told) = tokio::sync::mpsc::channel(8);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let tell = tell.clone();
        async move {
            conversation.request().await;
            conversation.gone().await;
            tell.send(()).await.unwrap();
        }
    })
    .await;
    (homeserver, told)
}

/// S§5.23.
#[tokio::test]
async fn a_long_poll_is_cancelled_within_a_second_of_its_client_leaving() {
    let (homeserver, mut told) = silent().await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    homeserver.received(1).await;
    drop(client);
    let left = Instant::now();
    soon("the homeserver's connection closes", told.recv()).await.unwrap();
    assert!(left.elapsed() < Duration::from_millis(1500), "{:?}", left.elapsed());
}

/// S§5.23.
#[tokio::test]
async fn a_client_that_leaves_is_missed_though_more_came_behind_its_request() {
    let mut ran = 0;
    for (with, behind) in [("\r\n", ""), (GET, ""), ("", "\r\n"), ("", GET), (GET, "GET / HT")] {
        let (homeserver, mut told) = silent().await;
        let front = Front::before(&homeserver);
        let mut client = front.connect().await;
        client.write([GET, with].concat()).await;
        homeserver.received(1).await;
        client.write(behind).await;
        drop(client);
        let left = Instant::now();
        soon("the homeserver's connection closes", told.recv()).await.unwrap();
        assert!(left.elapsed() < Duration::from_millis(1500), "{with:?} {behind:?}: {:?}", left.elapsed());
        ran += 1;
    }
    assert_eq!(ran, 5);
}

#[tokio::test]
async fn a_long_poll_is_cancelled_at_once_when_its_client_resets() {
    let (homeserver, mut told) = silent().await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    homeserver.received(1).await;
    client.reset();
    soon("the homeserver's connection closes", told.recv()).await.unwrap();
}

/// S§5.23.
#[tokio::test]
async fn an_upload_whose_client_leaves_is_visibly_cut() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let tell = tell.clone();
        async move {
            conversation.until(b"5\r\nfirst\r\n").await.unwrap();
            tell.send(conversation.rest().await).await.unwrap();
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    drop(client);
    assert_eq!(soon("the end", told.recv()).await.unwrap(), b"", "an end was invented");
}

/// S§5.23.
#[tokio::test]
async fn a_download_whose_client_leaves_is_stopped() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let tell = tell.clone();
        async move {
            conversation.request().await;
            conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await;
            while conversation.writes(&[b'x'; 8_192]).await {}
            tell.send(()).await.unwrap();
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    client.exactly(1_000_000).await;
    drop(client);
    soon("the homeserver's connection closes", told.recv()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_only_shuts_its_sending_side_gets_its_answer() {
    let shut = Arc::new(Notify::new());
    let go = Arc::clone(&shut);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let go = Arc::clone(&go);
        async move {
            conversation.request().await;
            go.notified().await;
            conversation.write(OK).await;
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    client.finish().await;
    homeserver.received(1).await;
    shut.notify_one();
    assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
    client.gone().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let homeserver = Homeserver::with(|request| {
        let target = request.line();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len()).into_bytes()
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    let post = "POST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
    client.write(format!("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n{post}GET /3 HTTP/1.1\r\nHost: h\r\n\r\n")).await;
    for expected in ["GET /1 HTTP/1.1", "POST /2 HTTP/1.1", "GET /3 HTTP/1.1"] {
        assert_eq!(client.answer(false).await.unwrap().content(), expected.as_bytes());
    }
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_to_a_client_that_sends_no_more() {
    let (told, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&told), Arc::clone(&go));
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
        async move {
            while conversation.request().await.is_some() {
                tell.notify_one();
                wait.notified().await;
                conversation.write(OK).await;
            }
        }
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET.repeat(3)).await;
    client.finish().await;
    for _ in 0..3 {
        soon("the next request", told.notified()).await;
        // Let it see that no more comes.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
    }
    client.gone().await;
}

#[tokio::test]
async fn what_is_sent_ahead_of_an_answer_is_bounded_and_none_of_it_lost() {
    let (homeserver, go) = {
        let go = Arc::new(Notify::new());
        let wait = Arc::clone(&go);
        let homeserver = Homeserver::scripted(move |mut conversation| {
            let wait = Arc::clone(&wait);
            async move {
                conversation.request().await;
                wait.notified().await;
                conversation.write(OK).await;
                while conversation.request().await.is_some() {
                    conversation.write(OK).await;
                }
            }
        })
        .await;
        (homeserver, go)
    };
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(GET).await;
    homeserver.received(1).await;
    let upload = format!("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{}", 200_000, "x".repeat(200_000));
    client.write(upload).await;
    go.notify_one();
    for _ in 0..2 {
        assert_eq!(client.answer(false).await.unwrap().content(), b"ok");
    }
    assert_eq!(homeserver.requests()[1].body().len(), 200_000);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_a_plain_body_and_the_end() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let homeserver = Homeserver::answering(chunked).await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write("GET / HTTP/1.0\r\n\r\n").await;
    let all = soon("the end", client.rest()).await;
    assert_eq!(String::from_utf8_lossy(&all), "HTTP/1.0 200 OK\r\n\r\nhello");
}

/// S§5.26.
#[tokio::test]
async fn a_panic_costs_one_connection() {
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::start(&homeserver.config(), crate::forward::Mode::Panic, &[]);
    let open = async |count: i64| {
        soon("all are counted", async {
            while front.metrics.open_connections.get() != count {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    // One that is there before, and answered once; and one in the middle of its request.
    let (mut before, mut within) = (front.connect().await, front.connect().await);
    before.write(GET).await;
    assert_eq!(soon("an answer", before.answer(false)).await.unwrap().status(), 200);
    within.write("GET / HTTP/1.1\r\nHost: h\r\n").await;
    open(2).await;
    for count in 1..=20 {
        let mut client = front.connect().await;
        client.write("GET /panic HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(soon("the end", client.rest()).await, b"");
        assert_eq!(front.metrics.panics.get(), count);
    }
    within.write("\r\n").await;
    assert_eq!(soon("an answer", within.answer(false)).await.unwrap().status(), 200);
    before.write(GET).await;
    assert_eq!(soon("an answer", before.answer(false)).await.unwrap().status(), 200);
    assert_eq!(front.ask(GET).await.status(), 200, "and who comes later");
    drop((before, within));
    open(0).await;
    let rendered = front.metrics.render().unwrap();
    assert!(rendered.contains("threepid_shim_panics_total 20\n"), "{rendered}");
}
