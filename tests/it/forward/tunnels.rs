//! Upgrades.

use crate::forward::Front;
use crate::homeserver::{Homeserver, soon};

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.9\r\nSec-WebSocket-Key: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
const AGREE: &str =
    "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: y\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn a_websocket_is_carried_both_ways_with_the_bytes_right_behind_the_heads() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        let request = conversation.request().await.unwrap();
        assert_eq!(request.all("connection"), ["Upgrade"]);
        assert_eq!(request.all("upgrade"), ["websocket"]);
        conversation.write(format!("{AGREE}right behind")).await;
        assert_eq!(conversation.exactly(5).await, b"hello");
        conversation.write("world").await;
        conversation.gone().await;
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(format!("{ASK}hello")).await;
    let answer = soon("101", client.head()).await.unwrap();
    let mut lines: Vec<_> = std::str::from_utf8(&answer).unwrap().trim_end().split("\r\n").collect();
    lines.sort_unstable();
    let mut expected: Vec<_> = AGREE.trim_end().split("\r\n").collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    assert_eq!(soon("bytes behind the 101", client.exactly(12)).await, b"right behind");
    assert_eq!(soon("the answer", client.exactly(5)).await, b"world");
}

#[tokio::test]
async fn a_half_that_is_closed_leaves_the_other_open() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        conversation.request().await;
        conversation.write(AGREE).await;
        assert_eq!(conversation.rest().await, b"last words");
        conversation.write("still here").await;
    })
    .await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(ASK).await;
    soon("101", client.head()).await.unwrap();
    client.write("last words").await;
    client.finish().await;
    assert_eq!(soon("the rest", client.rest()).await, b"still here");
}

#[tokio::test]
async fn a_homeserver_that_declines_an_upgrade_is_relayed() {
    let homeserver = Homeserver::answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno").await;
    let front = Front::before(&homeserver);
    let mut client = front.connect().await;
    client.write(ASK).await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"no");
    client.write("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.answer(false).await.unwrap().content(), b"no");
}

#[tokio::test]
async fn a_101_that_was_not_asked_for_or_for_another_protocol_is_502() {
    let h2c = AGREE.replace("websocket", "h2c");
    let plain = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let smuggled = ASK.replace("websocket", "h2c");
    for (ask, agree) in [(plain, AGREE), (ASK, &h2c), (&smuggled, &h2c)] {
        let homeserver = Homeserver::answering(agree).await;
        let front = Front::before(&homeserver);
        let answer = front.ask(ask).await;
        assert_eq!(answer.status(), 502, "{ask} {agree}");
        if ask == smuggled {
            assert!(homeserver.request().all("upgrade").is_empty());
        }
    }
}
