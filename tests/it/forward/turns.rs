//! One connection, by turns carried as bytes and read by hyper.

use socket2::SockRef;
use threepid_shim::config::TlsFiles;
use threepid_shim::serve::{Listener, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::homeserver::{Homeserver, Raw, soon};
use crate::secure::in_tls;
use crate::shim::authority;

use super::{Front, Mode};

/// Order among different names and a missing space are kept by bytes only.
const BYTES: &str =
    "GET /bytes HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.9\r\nX-B:1\r\nX-A: 2\r\nX-B: 3\r\n\r\n";
/// A path that we look into, so that hyper reads it.
const HYPER: &str = "POST /_matrix/client/r0/register HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.9\r\nContent-Length: 4\r\n\r\n{\"\"}";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

async fn front() -> (Homeserver, Front) {
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::before(&homeserver);
    (homeserver, front)
}

fn texts(requests: Vec<Raw>) -> Vec<String> {
    requests.into_iter().map(|request| String::from_utf8(request.0).unwrap()).collect()
}

#[tokio::test]
async fn requests_in_one_piece_are_told_apart_and_answered_in_their_order() {
    let (homeserver, front) = front().await;
    let all = [BYTES, HYPER, BYTES, HYPER, HYPER, BYTES];
    let mut client = front.connect().await;
    client.write(all.concat()).await;
    for one in all {
        assert_eq!(soon(one, client.answer(false)).await.unwrap().0, OK.as_bytes());
    }
    assert_eq!(texts(homeserver.requests()), all);
}

#[tokio::test]
async fn requests_in_pieces_of_one_byte_are_too() {
    let (homeserver, front) = front().await;
    let mut client = front.connect().await;
    for one in [BYTES, HYPER, BYTES, HYPER] {
        for byte in one.as_bytes() {
            client.write([*byte]).await;
        }
        assert_eq!(soon(one, client.answer(false)).await.unwrap().0, OK.as_bytes());
    }
    assert_eq!(texts(homeserver.requests()), [BYTES, HYPER, BYTES, HYPER]);
}

#[tokio::test]
async fn what_has_no_known_length_or_is_odd_leaves_its_connection_to_hyper() {
    let chunked =
        HYPER.replace("Content-Length: 4\r\n\r\n{\"\"}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    let old = "GET /old HTTP/1.0\r\nConnection: keep-alive\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    for first in [chunked.as_str(), old] {
        let (homeserver, front) = front().await;
        let mut client = front.connect().await;
        client.write([first, BYTES].concat()).await;
        for _ in 0..2 {
            assert_eq!(soon(first, client.answer(false)).await.unwrap().status(), 200);
        }
        let second = &texts(homeserver.requests())[1];
        assert_eq!(second, &BYTES.replace("X-B:1\r\nX-A: 2\r\nX-B: 3", "X-B: 1\r\nX-B: 3\r\nX-A: 2"), "by hyper");
    }
}

#[tokio::test]
async fn a_refusal_in_the_middle_ends_the_connection() {
    let (homeserver, front) = front().await;
    let mut client = front.connect().await;
    client.write([BYTES, &HYPER.replace("Host: h\r\n", ""), BYTES].concat()).await;
    assert_eq!(client.answer(false).await.unwrap().status(), 200);
    assert_eq!(client.answer(false).await.unwrap().status(), 400);
    soon("the end", client.gone()).await;
    assert_eq!(texts(homeserver.requests()), [BYTES]);
}

#[tokio::test]
async fn a_bad_chunk_is_refused_and_its_request_cut() {
    let (homeserver, front) = front().await;
    let mut client = front.connect().await;
    let head = "PUT /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write(format!("{head}5\r\nhello\r\n")).await;
    client.write("zz\r\n").await;
    let refused = soon("a refusal", client.answer(false)).await.unwrap();
    assert_eq!((refused.status(), refused.json()["errcode"].as_str()), (400, Some("M_UNKNOWN")));
    soon("the end", client.gone()).await;
    assert!(homeserver.requests().iter().all(|request| !request.0.ends_with(b"0\r\n\r\n")), "no end is invented");
}

/// TLS takes more of hyper than the socket has room for.
#[tokio::test]
async fn the_end_of_an_answer_by_hyper_reaches_a_client_of_tls_that_reads_slowly() {
    let long = "x".repeat(50_000);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    let homeserver = Homeserver::answering(answer.clone()).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // The sockets that it accepts have it as well.
    SockRef::from(&listener).set_send_buffer_size(4096).unwrap();
    let files = TlsFiles { certificate: authority().leaf.clone(), private_key: authority().key.clone() };
    let (listeners, tls) = (vec![Listener::from_std(listener).unwrap()], Tls::new(Tls::read(&files).unwrap()));
    let front = Front::on(listeners, Some(tls), &homeserver.config(), Mode::Forward);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = in_tls(socket.connect(front.address).await.unwrap()).await;
    for _ in 0..2 {
        client.write_all(HYPER.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        soon("all of the answer", async {
            while read.len() < answer.len() {
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                let mut piece = [0; 1000];
                let came = client.read(&mut piece).await.unwrap();
                assert!(came > 0, "closed after {} bytes", read.len());
                read.extend_from_slice(&piece[..came]);
            }
        })
        .await;
        assert!(read == answer.as_bytes());
    }
}
