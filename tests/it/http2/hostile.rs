//! Requests with more than one reading, and floods.

use std::time::Duration;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, GET, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, begun,
    block, fate, frame, next,
};
use super::{OK, in_clear};
use crate::homeserver::{Conversation, Homeserver, soon};

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;

#[tokio::test]
async fn a_request_with_more_than_one_reading_never_reaches_the_homeserver() {
    use Fate::{Answered, Closed, Reset};
    let (method, scheme, authority, path) = (GET[0], GET[1], GET[2], GET[3]);
    let with = |more: &[(&'static str, &'static str)]| [&GET, more].concat();
    let put = (":method", "PUT");
    let malformed = Reset(PROTOCOL_ERROR);
    // What has no place in a field block at all.
    let unreadable = Closed(Some(PROTOCOL_ERROR));
    let rows = [
        (with(&[]), "", Answered(200)),
        (with(&[("host", "example.org")]), "", Answered(200)),
        (vec![method, scheme, path, ("host", "example.org")], "", Answered(200)),
        (vec![put, scheme, authority, path, ("content-length", "3")], "abc", Answered(200)),
        (with(&[("te", "trailers")]), "", Answered(200)),
        (with(&[("host", "other.org")]), "", Answered(400)),
        (with(&[("host", "example.org"), ("host", "example.org")]), "", Answered(400)),
        (vec![method, scheme, path], "", Answered(400)),
        (vec![method, scheme, path, ("host", "a b")], "", Answered(400)),
        (vec![method, scheme, (":authority", "user@example.org"), path], "", Answered(400)),
        (vec![method, (":scheme", "ftp"), authority, path], "", Answered(400)),
        (vec![method, scheme, authority, (":path", "*")], "", Answered(400)),
        (with(&[("content_length", "3")]), "", Answered(400)),
        (with(&[("transfer_encoding", "chunked")]), "", Answered(400)),
        (vec![(":method", "CONNECT"), authority], "", Answered(400)),
        (vec![put, scheme, authority, path, ("content-length", "03")], "abc", Answered(400)),
        (vec![put, scheme, authority, path, ("content-length", "3"), ("content-length", "3")], "abc", Answered(400)),
        (vec![put, scheme, authority, path, ("content-length", "+3")], "abc", malformed),
        (vec![put, scheme, authority, path, ("content-length", "4"), ("content-length", "3")], "abc", malformed),
        (vec![put, scheme, authority, path, ("content-length", "x")], "abc", malformed),
        (with(&[("content-length", "3")]), "", malformed),
        (with(&[("connection", "close")]), "", malformed),
        (with(&[("connection", "x-forwarded-for")]), "", malformed),
        (with(&[("keep-alive", "1")]), "", malformed),
        (with(&[("proxy-connection", "close")]), "", malformed),
        (with(&[("transfer-encoding", "chunked")]), "", malformed),
        (with(&[("upgrade", "websocket")]), "", malformed),
        (with(&[("te", "gzip")]), "", malformed),
        (with(&[("te", "chunked, trailers")]), "", malformed),
        (with(&[("X-Upper", "1")]), "", unreadable),
        (with(&[("x-value", "a\r\nx-injected: 1")]), "", unreadable),
        (with(&[("x-value", "a\0b")]), "", unreadable),
        (with(&[("x name", "1")]), "", unreadable),
        (with(&[("x\r\ny", "1")]), "", unreadable),
        (with(&[("", "1")]), "", unreadable),
        (with(&[(":path", "/two")]), "", malformed),
        (with(&[(":unknown", "1")]), "", unreadable),
        (with(&[(":status", "200")]), "", malformed),
        (vec![scheme, authority, path], "", malformed),
        (vec![method, authority, path], "", malformed),
        (vec![method, scheme, authority], "", malformed),
        (vec![method, scheme, authority, (":path", "")], "", malformed),
        (vec![method, scheme, authority, (":path", "/a b HTTP/1.1")], "", malformed),
        (vec![method, scheme, authority, (":path", "/\r\nx: y")], "", malformed),
        (vec![(":method", "GET / HTTP/1.1\r\nx: y"), scheme, authority, path], "", unreadable),
        (vec![method, scheme, (":authority", "a\r\nb"), path], "", malformed),
        (vec![method, scheme, authority, ("x-first", "1"), path], "", malformed),
        (vec![(":method", "CONNECT"), (":protocol", "websocket"), scheme, authority, path], "", malformed),
    ];
    let mut wrong = Vec::new();
    for (fields, body, expected) in &rows {
        let homeserver = Homeserver::answering(OK).await;
        let front = in_clear(&homeserver);
        let mut client = begun(front.address).await;
        let last = if body.is_empty() { END_STREAM } else { 0 };
        client.write(frame(HEADERS, END_HEADERS | last, 1, &block(fields))).await;
        if !body.is_empty() {
            client.write(frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        }
        let got = fate(&mut client, 1).await;
        let passed = homeserver.requests().len();
        if got != *expected || passed != usize::from(got == Answered(200)) {
            wrong.push((fields, body, expected, got, passed));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(rows.len(), 48);
}

#[tokio::test]
async fn a_body_of_another_length_than_was_said_is_cut_at_the_homeserver_too() {
    for (said, sent) in [("5", "abc"), ("2", "abc")] {
        let homeserver = Homeserver::scripted(|mut conversation| async move {
            if conversation.request().await.is_some() {
                conversation.write(OK).await;
            }
        })
        .await;
        let front = in_clear(&homeserver);
        let mut client = begun(front.address).await;
        let fields = [(":method", "PUT"), GET[1], GET[2], GET[3], ("content-length", said)];
        client.write(frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
        client.write(frame(DATA, END_STREAM, 1, sent.as_bytes())).await;
        assert_eq!(fate(&mut client, 1).await, Fate::Reset(PROTOCOL_ERROR), "{said} said, {sent} sent");
        assert_eq!(homeserver.requests().len(), 0, "{said} said, {sent} sent");
    }
}

/// S§5.25.
#[tokio::test]
async fn a_head_that_is_too_large_is_a_431() {
    let homeserver = Homeserver::answering(OK).await;
    let front = in_clear(&homeserver);
    let long = "x".repeat(15_000);
    for (count, value, expected) in [(4, &*long, 200), (5, &*long, 431), (190, "x", 200), (201, "x", 431)] {
        let mut client = begun(front.address).await;
        let names: Vec<_> = (0..count).map(|number| format!("x-{number}")).collect();
        let mut fields = GET.to_vec();
        fields.extend(names.iter().map(|name| (&**name, value)));
        let whole = block(&fields);
        let mut pieces = whole.chunks(16_000).peekable();
        let first = pieces.next().unwrap();
        let more = |left: bool| if left { 0 } else { END_HEADERS };
        client.write(frame(HEADERS, END_STREAM | more(pieces.peek().is_some()), 1, first)).await;
        while let Some(piece) = pieces.next() {
            client.write(frame(CONTINUATION, more(pieces.peek().is_some()), 1, piece)).await;
        }
        assert_eq!(fate(&mut client, 1).await, Fate::Answered(expected), "{count} of {} bytes", value.len());
    }
}

/// What is sent on which stream.
type Makes<'a> = Box<dyn FnMut(u32) -> Vec<u8> + Send + 'a>;

/// Sends it over and over until the door has had enough.
async fn flood(client: &mut Conversation, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<Fate> {
    for number in 0..20_000 {
        if !client.writes(&next(number * 2 + 1)).await {
            break;
        }
    }
    // An answer to what was sent last would be the sign that it goes on.
    match fate(client, u32::MAX).await {
        Fate::Closed(code) => Some(Fate::Closed(code)),
        Fate::Answered(_) | Fate::Reset(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_requests_taken_back_end_the_connection() {
    let headers = |stream, last| frame(HEADERS, END_HEADERS | last, stream, &block(&GET));
    let cancel = |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    // Taken back by the client (CVE-2023-44487), and so that the door has to (CVE-2025-8671).
    let rows: [(&str, Makes<'_>); 3] = [
        ("reset", Box::new(|stream| [headers(stream, END_STREAM), cancel(stream)].concat())),
        ("reset halfway", Box::new(|stream| [headers(stream, 0), cancel(stream)].concat())),
        (
            "made to reset",
            Box::new(|stream| [headers(stream, END_STREAM), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()),
        ),
    ];
    for (name, makes) in rows {
        let homeserver = Homeserver::scripted(|mut conversation| async move {
            conversation.request().await;
            conversation.gone().await;
        })
        .await;
        let front = in_clear(&homeserver);
        let mut client = begun(front.address).await;
        assert!(flood(&mut client, makes).await.is_some(), "{name}: it goes on");
        let passed = homeserver.connections();
        assert!(passed < 1000, "{name}: {passed} requests reached the homeserver");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_flood_of_requests_given_up_halfway_ends_the_connection() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        conversation.request().await;
        conversation.gone().await;
    })
    .await;
    let front = in_clear(&homeserver);
    let mut client = begun(front.address).await;
    let mut given_up = 0;
    for number in 0..1000 {
        let stream = number * 2 + 1;
        if !client.writes(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&GET))).await {
            break;
        }
        let enough = Duration::from_millis(500);
        if tokio::time::timeout(enough, homeserver.received(given_up + 1)).await.is_err() {
            break;
        }
        given_up += 1;
        client.write(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await;
    }
    assert!((100..=110).contains(&given_up), "{given_up} were let through");
    client.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_cost_no_memory() {
    let homeserver = Homeserver::answering(OK).await;
    let front = in_clear(&homeserver);
    // A field block without end (CVE-2024-27316).
    let mut client = begun(front.address).await;
    client.write(frame(HEADERS, 0, 1, &block(&GET))).await;
    let ended = flood(&mut client, |_| frame(CONTINUATION, 0, 1, &block(&[("x", &"y".repeat(1000))]))).await;
    assert!(matches!(ended, Some(Fate::Closed(_))), "{ended:?}");
    // Pings and settings of one that never reads the answers: it is read no further.
    for kind in [PING, SETTINGS] {
        let payload: &[u8] = if kind == PING { &[0; 8] } else { &[] };
        let many: Vec<u8> = frame(kind, 0, 0, payload).repeat(10_000);
        let mut client = begun(front.address).await;
        let all = async {
            for _ in 0..2000 {
                if !client.writes(&many).await {
                    return;
                }
            }
        };
        let held = tokio::time::timeout(Duration::from_secs(2), all).await;
        assert!(held.is_err() || kind == SETTINGS, "{kind}: all were taken");
    }
    assert_eq!(homeserver.requests().len(), 0);
}

#[tokio::test]
async fn more_requests_at_once_than_are_allowed_are_refused_one_by_one() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        conversation.request().await;
        conversation.gone().await;
    })
    .await;
    let front = in_clear(&homeserver);
    let mut client = begun(front.address).await;
    for number in 0..101 {
        client.write(frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block(&GET))).await;
    }
    assert_eq!(fate(&mut client, 201).await, Fate::Reset(REFUSED_STREAM));
    homeserver.received(100).await;
    assert_eq!(homeserver.connections(), 100);
    // Bytes that are no frames end it.
    client.write([0xff; 64]).await;
    soon("the end", async { while next(&mut client).await.is_some() {} }).await;
}
