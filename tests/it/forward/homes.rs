//! Connections to the homeserver: kept, broken, refused; and whose request it is said to be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use threepid_shim::config::HomeserverAddress;
use tokio::net::{TcpListener, UnixListener};

use crate::forward::{Front, Mode};
use crate::homeserver::{Homeserver, Raw, config_of};
use crate::process::Process;
use crate::shim::Reserved;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn request(method: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
}

#[tokio::test]
async fn one_connection_serves_many_clients_in_turn() {
    for answer in [
        OK,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let homeserver = Homeserver::answering(answer).await;
        let front = Front::before(&homeserver);
        for _ in 0..10 {
            front.ask(request("GET")).await;
            front.ask(request("POST")).await;
        }
        assert_eq!(homeserver.requests().len(), 20);
        assert_eq!(homeserver.connections(), 1, "{answer}");
    }
}

#[tokio::test]
async fn a_connection_that_the_homeserver_is_about_to_close_is_not_used_again() {
    let homeserver = Homeserver::answering("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    let front = Front::before(&homeserver);
    for _ in 0..2 {
        assert_eq!(front.ask(request("POST")).await.status(), 200);
    }
    assert_eq!(homeserver.connections(), 2);
}

/// Answers the first request of the first connection, then closes on the second; answers all others.
async fn closing_on_reuse(reset: bool) -> Homeserver {
    let connections = Arc::new(AtomicUsize::new(0));
    Homeserver::scripted(move |mut conversation| {
        let first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            conversation.request().await;
            conversation.write(OK).await;
            conversation.request().await;
            if first && reset {
                return conversation.reset();
            }
            if !first {
                conversation.write(OK).await;
                conversation.gone().await;
            }
        }
    })
    .await
}

/// S§5.4.
#[tokio::test]
async fn what_can_be_asked_twice_is_when_a_kept_connection_closes_under_it() {
    for (method, reset) in [("GET", false), ("GET", true), ("HEAD", false), ("OPTIONS", true)] {
        let homeserver = closing_on_reuse(reset).await;
        let front = Front::before(&homeserver);
        front.ask(request("GET")).await;
        assert_eq!(front.ask(request(method)).await.status(), 200, "{method}");
        assert_eq!(homeserver.requests().len(), 3);
        let again = homeserver.requests();
        assert_eq!(again[1], again[2], "the same request once more");
    }
}

/// S§5.4.
#[tokio::test]
async fn what_may_have_been_done_already_is_never_asked_twice() {
    let with_body = "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi".to_owned();
    let rows = [request("POST"), request("PUT"), request("DELETE"), with_body];
    for sent in rows {
        let homeserver = closing_on_reuse(false).await;
        let front = Front::before(&homeserver);
        front.ask(request("GET")).await;
        let answer = front.ask(&sent).await;
        assert_eq!(answer.status(), 502, "{sent}");
        assert_eq!(answer.json()["errcode"], "M_UNKNOWN");
        assert_eq!(homeserver.requests().len(), 2, "{sent}");
    }
}

#[tokio::test]
async fn a_fresh_connection_that_closes_is_not_tried_again() {
    let homeserver = Homeserver::scripted(|mut conversation| async move {
        conversation.request().await;
    })
    .await;
    let front = Front::before(&homeserver);
    assert_eq!(front.ask(request("GET")).await.status(), 502);
    assert_eq!(homeserver.requests().len(), 1);
}

/// S§5.1.
#[tokio::test]
async fn a_homeserver_that_refuses_is_502_at_once_and_well_again_when_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let front = Front::start(&config_of(address), Mode::Forward, &[]);
    let begun = Instant::now();
    let answer = front.ask(request("GET")).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.json()["errcode"], "M_UNKNOWN");
    assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"));
    assert_eq!(front.metrics.homeserver_unreachable.get(), 1);
    let _back = Homeserver::at(address, |_| OK.into()).await;
    assert_eq!(front.ask(request("GET")).await.status(), 200);
    assert_eq!(front.metrics.forwarded[1].get(), 1);
}

#[tokio::test]
async fn a_head_is_refused_without_a_body() {
    let closing = Homeserver::scripted(|mut conversation| async move { drop(conversation.request().await) }).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let chunked = "HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".to_owned();
    for (homeserver, sent, status) in [
        (closing.config(), request("HEAD"), 502),
        (config_of(nobody), request("HEAD"), 502),
        (closing.config(), chunked, 400),
    ] {
        let front = Front::start(&homeserver, Mode::Forward, &[]);
        let mut client = front.connect().await;
        client.write(&sent).await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "", "{head}");
        let length = front.ask(sent.replace("HEAD", "PUT")).await.body().len();
        assert!(head.contains(&format!("content-length: {length}")), "{head}");
    }
}

#[tokio::test]
async fn a_homeserver_that_does_not_take_the_connection_is_504() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // The queue holds one more than its length; the next has to wait.
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let mut config = config_of(address);
    config.connect_timeout = Duration::from_millis(200);
    let front = Front::start(&config, Mode::Forward, &[]);
    let answer = front.ask(request("GET")).await;
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.json()["errcode"], "M_UNKNOWN");
    assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"));
}

/// Found when the first of two addresses led nowhere: all of the time was spent on it, and everything was 504.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_homeservers_addresses_one_that_is_silent_leaves_time_for_the_others() {
    let homeserver = Homeserver::at(SocketAddr::from(([127, 0, 0, 3], 0)), |_| OK.into()).await;
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 2], homeserver.address.port()));
    silent.bind(&address.into()).unwrap();
    silent.listen(0).unwrap();
    // The queue holds one more than its length; the next has to wait.
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 two.test\n127.0.0.3 two.test\n").unwrap();
    // It needs root, as these tests do.
    let its_own = "mount --bind \"$0\" /etc/hosts && THREEPID_SHIM__HOMESERVER__CONNECT_TIMEOUT=1s exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", its_own, hosts.to_str().unwrap()];
    let name = format!("two.test:{}", homeserver.address.port());
    let shim = Process::under(&wrapper, &name, Reserved::new(1).take(), "").serving().await;
    let answer = shim.client().get("/_matrix/client/r0/login").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(shim.readiness().await, 200, "by hyper, too");
}

/// S§5.22.
#[tokio::test]
async fn a_homeserver_behind_a_name_or_a_unix_socket_is_found() {
    let homeserver = Homeserver::answering(OK).await;
    let mut config = homeserver.config();
    config.address = HomeserverAddress::Tcp { host: "localhost".into(), port: homeserver.address.port() };
    let front = Front::start(&config, Mode::Forward, &[]);
    assert_eq!(front.ask(request("GET")).await.status(), 200);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("homeserver.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, OK.as_bytes()).await.unwrap();
    });
    config.address = HomeserverAddress::Unix(path);
    let front = Front::start(&config, Mode::Forward, &[]);
    assert_eq!(front.ask(request("GET")).await.status(), 200);
}

#[tokio::test]
async fn only_a_trusted_peer_says_whose_request_it_is() {
    let trusted: &[&str] = &["127.0.0.0/8"];
    let rows: [(&[&str], &str, &[&str]); 10] = [
        (trusted, "", &["X-Forwarded-For: 127.0.0.1"]),
        (trusted, "X-Forwarded-For: 203.0.113.9\r\n", &["X-Forwarded-For: 203.0.113.9"]),
        (trusted, "x-forwarded-for: 203.0.113.9 ,  192.0.2.1\r\n", &["x-forwarded-for: 203.0.113.9 ,  192.0.2.1"]),
        (trusted, "X-Forwarded-For: a\r\nx-forwarded-FOR: b\r\n", &["X-Forwarded-For: a", "x-forwarded-FOR: b"]),
        (trusted, "X-Forwarded-For:\r\n", &["X-Forwarded-For:"]),
        (trusted, "X-Forwarded-For: 1.1.1.1\r\nConnection: X-Forwarded-For\r\n", &["X-Forwarded-For: 1.1.1.1"]),
        (&[], "", &["X-Forwarded-For: 127.0.0.1"]),
        (&[], "X-Forwarded-For: 203.0.113.9\r\n", &["X-Forwarded-For: 127.0.0.1"]),
        (&["10.0.0.0/8"], "X-Forwarded-For: a\r\nX-Forwarded-For: b\r\n", &["X-Forwarded-For: 127.0.0.1"]),
        (&[], "X-Forwarded-For: 1.1.1.1\r\nConnection: x-forwarded-for\r\n", &["X-Forwarded-For: 127.0.0.1"]),
    ];
    for mode in [Mode::Forward, Mode::Relay, Mode::Ask { limit: 100 }] {
        for (trusted, sent, expected) in rows {
            let homeserver = Homeserver::answering(OK).await;
            let front = Front::start(&homeserver.config(), mode, trusted);
            front.ask(format!("GET / HTTP/1.1\r\nHost: h\r\n{sent}\r\n")).await;
            let received = homeserver.request().fields();
            let lines: Vec<_> =
                received.iter().filter(|line| line.to_lowercase().starts_with("x-forwarded-for")).collect();
            assert_eq!(lines, expected, "{sent:?} {trusted:?}");
        }
    }
}

#[tokio::test]
async fn a_request_whose_body_was_read_goes_up_with_its_length() {
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::start(&homeserver.config(), Mode::Relay, &[]);
    let rows = [
        ("Content-Length: 2\r\n", "hi", "POST", Some("2")),
        ("Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n", "POST", Some("2")),
        ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n", "PUT", Some("0")),
        ("Content-Length: 0\r\n", "", "POST", Some("0")),
        ("", "", "GET", None),
    ];
    for (index, (fields, body, method, length)) in rows.into_iter().enumerate() {
        let head = format!("{method} /a?b HTTP/1.1\r\nHost: h\r\nX-CaSe: 1\r\n{fields}\r\n");
        assert_eq!(front.ask(head + body).await.content(), b"ok");
        let received: Raw = homeserver.requests().remove(index);
        assert_eq!(received.line(), format!("{method} /a?b HTTP/1.1"));
        assert_eq!(received.field("content-length").as_deref(), length, "{fields}");
        assert!(received.fields().contains(&"X-CaSe: 1".to_owned()));
        assert!(received.field("transfer-encoding").is_none());
    }
}

#[tokio::test]
async fn an_answer_that_is_read_is_asked_for_plain_whole_and_within_its_limit() {
    let sent = "GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\nRange: bytes=0-1\r\nIf-None-Match: x\r\n\r\n";
    let gzipped = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n";
    let packed = gzip(b"0123456789");
    let mut coded = gzipped.to_vec();
    coded.extend(format!("{:x}\r\n", packed.len()).bytes());
    coded.extend(packed);
    coded.extend(b"\r\n0\r\n\r\n");
    let ten = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789";
    for (answer, limit, status) in
        [(ten.into(), 10, 200), (ten.into(), 9, 502), (coded.clone(), 100, 200)] as [(Vec<u8>, usize, u16); 3]
    {
        let homeserver = Homeserver::answering(answer).await;
        let front = Front::start(&homeserver.config(), Mode::Ask { limit }, &[]);
        let answer = front.ask(sent).await;
        assert_eq!(answer.status(), status, "{answer:?}");
        if status == 200 {
            assert_eq!(answer.body(), b"0123456789");
            assert_eq!(answer.all("content-length"), ["10"]);
            assert!(answer.field("content-encoding").is_none());
        }
        let received = homeserver.request();
        assert_eq!(received.all("accept-encoding"), ["identity"]);
        assert!(received.field("range").is_none() && received.field("if-none-match").is_none());
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}
