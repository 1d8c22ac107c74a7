//! HTTP/2 at the client door: what the homeserver is asked in HTTP/1.1, and what comes back.

mod ends;
pub mod frames;
mod hostile;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use threepid_shim::config::TlsFiles;
use threepid_shim::serve::Tls;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::client::{Client, PASSWORD, creds};
use crate::forward::{Front, Speaking};
use crate::homeserver::{Homeserver, soon};
use crate::legacy::{legacy, unique};
use crate::shim::{Wanted, authority};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A door that speaks h2c, before this homeserver.
pub fn in_clear(homeserver: &Homeserver) -> Front {
    Front::speaking(Speaking { h2c: true, ..Speaking::default() }, homeserver, &[])
}

/// A client's connection, and its end.
pub async fn connected(address: SocketAddr) -> (SendRequest<Upload>, JoinHandle<hyper::Result<()>>) {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = Builder::new(TokioExecutor::new()).handshake(io).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// The body of a request: frames whose whole length is told to nobody.
#[derive(Default)]
pub struct Upload {
    frames: VecDeque<Frame<Bytes>>,
    /// Behind them the last one over and over, and how many bytes of it were taken.
    endless: Option<(Bytes, Arc<AtomicUsize>)>,
    /// Nothing comes behind them, and not the end.
    stalls: bool,
}

impl Upload {
    fn of(bytes: impl Into<Bytes>) -> Self {
        Self { frames: [Frame::data(bytes.into())].into(), ..Self::default() }
    }

    fn endless() -> (Self, Arc<AtomicUsize>) {
        let taken = Arc::<AtomicUsize>::default();
        (Self { endless: Some((vec![b'x'; 16_384].into(), Arc::clone(&taken))), ..Self::default() }, taken)
    }

    pub fn stalling_after(bytes: impl Into<Bytes>) -> Self {
        Self { stalls: true, ..Self::of(bytes) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.stalls && this.frames.is_empty() {
            return Poll::Pending;
        }
        let again = this.endless.as_ref().map(|(bytes, taken)| {
            taken.fetch_add(bytes.len(), Ordering::SeqCst);
            Frame::data(bytes.clone())
        });
        Poll::Ready(this.frames.pop_front().or(again).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.endless.is_none() && !self.stalls
    }
}

fn get(path: &str) -> Request<Upload> {
    Request::get(format!("http://example.org{path}")).body(Upload::default()).unwrap()
}

async fn whole(response: Response<Incoming>) -> (Bytes, Option<HeaderMap>) {
    let body = soon("the answer's body", response.into_body().collect()).await.unwrap();
    let trailers = body.trailers().cloned();
    (body.to_bytes(), trailers)
}

#[tokio::test]
async fn the_homeserver_is_asked_in_http_1_1() {
    let homeserver = Homeserver::answering(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nUpgrade: h2c\r\n\
         X-End: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    )
    .await;
    let front = in_clear(&homeserver);
    let (mut sender, _end) = connected(front.address).await;
    let request = Request::put("http://example.org:8448/a%2fb?q=%20;x")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("x-forwarded-for", "198.51.100.7")
        .header("content-length", "3")
        .body(Upload::of("abc"))
        .unwrap();
    let response = soon("an answer", sender.send_request(request)).await.unwrap();
    let names: Vec<_> = response.headers().keys().map(|name| name.as_str().to_owned()).collect();
    assert_eq!((response.status().as_u16(), names), (200, vec!["x-end".to_owned()]));
    assert_eq!(whole(response).await.0, "ok");
    let seen = homeserver.request();
    assert_eq!(seen.line(), "PUT /a%2fb?q=%20;x HTTP/1.1");
    let mut fields = seen.fields();
    fields.sort();
    let expected = [
        "Content-Length: 3",
        "Cookie: a=1; b=2",
        "Host: example.org:8448",
        "Te: trailers",
        "X-Forwarded-For: 127.0.0.1",
    ];
    assert_eq!(fields, expected);
    assert_eq!(seen.body(), b"abc");
}

#[tokio::test]
async fn bodies_without_a_length_and_trailers_pass_both_ways() {
    let homeserver = Homeserver::answering(
        "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    let front = in_clear(&homeserver);
    for method in ["POST", "GET", "DELETE"] {
        let (mut sender, _end) = connected(front.address).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-check", "9".parse().unwrap());
        let frames = [Frame::data("abc".into()), Frame::data("de".into()), Frame::trailers(trailers)];
        let request = Request::builder().method(method).uri("http://h/").header("trailer", "x-check");
        let request = request.body(Upload { frames: frames.into(), ..Upload::default() }).unwrap();
        let (body, trailers) = whole(soon("an answer", sender.send_request(request)).await.unwrap()).await;
        assert_eq!(body, "ok");
        assert_eq!(trailers.expect("trailers")["x-sum"], "7");
    }
    for seen in homeserver.received(3).await {
        assert_eq!(seen.all("transfer-encoding"), ["chunked"], "{seen:?}");
        assert_eq!(seen.content(), b"abcde", "{seen:?}");
        assert!(seen.0.ends_with(b"0\r\nX-Check: 9\r\n\r\n"), "{seen:?}");
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length() {
    let rows = [
        ("HEAD", "200 OK\r\nContent-Length: 1234", 200, Some("1234")),
        ("GET", "304 Not Modified\r\nETag: \"x\"", 304, None),
        ("DELETE", "204 No Content", 204, None),
        ("GET", "200 OK\r\nContent-Length: 0", 200, Some("0")),
        ("GET", "103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0", 404, Some("0")),
    ];
    for (method, answer, status, length) in rows {
        let homeserver = Homeserver::answering(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let front = in_clear(&homeserver);
        let (mut sender, _end) = connected(front.address).await;
        let request = Request::builder().method(method).uri("http://h/").body(Upload::default()).unwrap();
        let response = soon("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{answer}");
        assert_eq!(response.headers().get("content-length").map(|it| it.to_str().unwrap()), length, "{answer}");
        assert_eq!(whole(response).await.0, "", "{answer}");
    }
    assert_eq!(rows.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_requests_are_held_at_once_on_one_connection() {
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&go);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let held = Arc::clone(&held);
        async move {
            while let Some(request) = conversation.request().await {
                held.acquire().await.unwrap().forget();
                let path = request.line().split(' ').nth(1).unwrap().to_owned();
                conversation.write(crate::homeserver::json("200 OK", &path)).await;
            }
        }
    })
    .await;
    let front = in_clear(&homeserver);
    let (sender, _end) = connected(front.address).await;
    let asked: Vec<_> = (0..100)
        .map(|number| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let response = sender.send_request(get(&format!("/{number}"))).await.unwrap();
                assert_eq!(whole(response).await.0, format!("/{number}"));
            })
        })
        .collect();
    assert_eq!(homeserver.received(100).await.len(), 100);
    assert_eq!(homeserver.connections(), 100);
    go.add_permits(100);
    for one in asked {
        soon("an answer", one).await.unwrap();
    }
}

/// 24 MB up and down at once on one connection, while a third request is answered.
#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways_at_once() {
    const SIZE: usize = 24 * 1024 * 1024;
    let pattern: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let large = Bytes::from(pattern.clone());
    let homeserver = Homeserver::with(move |request| {
        if request.line().starts_with("GET /large") {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            return [head.as_bytes(), &pattern].concat();
        }
        let same = request.body() == pattern.as_slice();
        crate::homeserver::json("200 OK", if same { "same" } else { "other" })
    })
    .await;
    let front = in_clear(&homeserver);
    let (sender, _end) = connected(front.address).await;
    let (mut up, mut down, mut small) = (sender.clone(), sender.clone(), sender);
    let upload = Request::put("http://h/up").header("content-length", SIZE).body(Upload::of(large.clone())).unwrap();
    let up = tokio::spawn(async move { whole(up.send_request(upload).await.unwrap()).await.0 });
    let down = tokio::spawn(async move { whole(down.send_request(get("/large")).await.unwrap()).await.0 });
    assert_eq!(whole(soon("a small one", small.send_request(get("/small"))).await.unwrap()).await.0, "other");
    assert_eq!(soon("the upload", up).await.unwrap(), "same");
    assert!(soon("the download", down).await.unwrap() == large, "other bytes came down");
}

#[tokio::test]
async fn over_tls_http_2_is_offered_and_http_1_1_still_served() {
    let files = TlsFiles { certificate: authority().leaf.clone(), private_key: authority().key.clone() };
    let tls = Tls::new(Tls::with_http2(Tls::read(&files).unwrap()));
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::speaking(Speaking { tls: Some(tls), ..Speaking::default() }, &homeserver, &[]);
    let client = Client::of(front.address.to_string()).over_http2(&authority().ca);
    for size in [0, 1, 100_000, 5_000_000] {
        let answer = client.send("PUT", "/upload", &vec![b'x'; size]).await;
        assert_eq!((answer.status, answer.text()), (200, "ok".into()));
        assert_eq!(homeserver.requests().last().unwrap().content().len(), size);
    }
    let url = format!("https://localhost:{}/", front.address.port());
    for (asked, spoken) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2"), ("--no-alpn", "1.1")] {
        assert_eq!(curl(&[asked, "--cacert", authority().ca.to_str().unwrap(), &url]).await, format!("ok{spoken}"));
    }
}

#[tokio::test]
async fn in_clear_http_2_is_spoken_when_switched_on_to_clients_that_begin_with_it() {
    let homeserver = Homeserver::answering(OK).await;
    let (on, off) = (in_clear(&homeserver), Front::before(&homeserver));
    let url = format!("http://{}/", on.address);
    assert_eq!(curl(&["--http2-prior-knowledge", &url]).await, "ok2");
    assert_eq!(curl(&["--http1.1", &url]).await, "ok1.1");
    assert_eq!(curl(&["--http2", &url]).await, "ok1.1", "Upgrade: h2c is not answered");
    assert_eq!(curl(&["--http2-prior-knowledge", &format!("http://{}/", off.address)]).await, "0");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Behind a request of HTTP/1.1 it is no preface: whoever is between had another idea of where that one ended.
    for (front, before) in [(&off, ""), (&on, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")] {
        let mut client = front.connect().await;
        client.write(format!("{before}{preface}")).await;
        let said = String::from_utf8_lossy(&soon("the end", client.rest()).await).into_owned();
        assert_eq!(said.matches("HTTP/1.1 200").count(), before.matches("GET").count(), "{said}");
        assert!(!said.contains('\0'), "no frame: {said:?}");
    }
}

/// What curl prints: the body, and the version that was spoken.
async fn curl(arguments: &[&str]) -> String {
    let mut curl = std::process::Command::new("curl");
    curl.args(["-s", "--max-time", "20", "-w", "%{http_version}"]).args(arguments);
    let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_registers_by_email_over_http_2() {
    let synapse = legacy("1.3.1");
    let (certificate, key) = (authority().leaf.display(), authority().key.display());
    let tls = format!("[listen]\ntls = {{ certificate = \"{certificate}\", private_key = \"{key}\" }}\n");
    let shim = synapse.shim(Wanted::config(&tls)).await;
    let client = shim.client().over_http2(&authority().ca);
    let flag = client.get("/_matrix/client/versions").await.ok();
    assert_eq!(flag["unstable_features"]["m.require_identity_server"], false);
    let (name, secret) = (unique("http2"), unique("secret"));
    let email = format!("{name}@example.org");
    let sid = client.request_token("register", &email, &secret, 1).await.sid();
    let waiting = client.register(&name, creds(&sid, &secret)).await;
    assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()));
    assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
    let registered = client.register(&name, creds(&sid, &secret)).await.ok();
    assert_eq!(registered["user_id"], format!("@{name}:localhost"));
    let logged_in = client.login(&email, PASSWORD).await.ok();
    assert_eq!(logged_in["user_id"], registered["user_id"]);
}
