//! Answers on their way down: what the client is sent, byte for byte.

use crate::forward::Front;
use crate::homeserver::{Homeserver, soon};

/// What becomes of an answer.
enum Becomes {
    /// The same bytes.
    Same,
    /// These bytes.
    Bytes(&'static str),
    /// 502 `M_UNKNOWN`.
    Broken,
    /// These bytes, and then the connection is cut before the answer's end.
    Cut(&'static str),
}
use Becomes::{Broken, Bytes, Cut, Same};

/// One answer, of a homeserver that closes behind it or not.
struct Row {
    method: &'static str,
    answer: String,
    closes: bool,
    becomes: Becomes,
}

fn row(method: &'static str, answer: impl Into<String>, becomes: Becomes) -> Row {
    Row { method, answer: answer.into(), closes: false, becomes }
}

fn closing(answer: &str, becomes: Becomes) -> Row {
    Row { method: "GET", answer: answer.into(), closes: true, becomes }
}

fn heads() -> Vec<Row> {
    let ok = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\n{{}}");
    vec![
        row("GET", ok(""), Same),
        row("GET", ok("Server: Synapse/1.3.1\r\nDate: Mon, 01 Jan 2020 00:00:00 GMT\r\n"), Same),
        row("GET", ok("X-lOwEr: 1\r\nx-UPPER: 2\r\n"), Same),
        row("GET", ok("Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nset-cookie: c=3\r\n"), Same),
        row("GET", ok("X-Latin: \u{e9}\r\n"), Same),
        row("GET", ok("Content-Encoding: gzip\r\nETag: \"x\"\r\nVary: Authorization\r\n"), Same),
        row("GET", ok("Access-Control-Allow-Origin: *\r\nCache-Control: public, max-age=600\r\n"), Same),
        row("GET", ok(&(0..150).fold(String::new(), |fields, n| fields + &format!("X-{n}: {n}\r\n"))), Same),
        row("GET", ok(&format!("X-Large: {}\r\n", "x".repeat(60_000))), Same),
        row("GET", ok("Proxy-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\n"), Same),
        row("GET", ok("X-Empty: \r\n"), Same),
        row("GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", Bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")),
        row(
            "GET",
            ok("Keep-Alive: timeout=5\r\nConnection: keep-alive\r\n"),
            Bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        ),
        row(
            "GET",
            ok("Connection: x-hop\r\nX-Hop: 1\r\nConnection: X-HIP\r\nX-Hip: 1\r\n"),
            Bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        ),
        row(
            "GET",
            ok("Connection: Content-Length, Set-Cookie\r\nSet-Cookie: a\r\n"),
            Bytes("HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nContent-Length: 2\r\n\r\n{}"),
        ),
        row("GET", ok("Upgrade: h2c\r\n"), Bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")),
        row("GET", ok("X-Trail:  inner  \t\r\n"), Same),
        row("GET", "HTTP/1.1 200 Fine By Me\r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", Bytes("HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n")),
        row("GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", ok("X-Space : 1\r\n"), Broken),
        row("GET", ok("X-Fold: 1\r\n 2\r\n"), Broken),
        row("GET", ok("X-Nul: a\0b\r\n"), Broken),
        row("GET", ok(&"X-Many: 1\r\n".repeat(200)), Broken),
        row("GET", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", Broken),
        row("GET", "ICY 200 OK\r\n\r\n", Broken),
        row("GET", "HTTP/1.1 20 OK\r\n\r\n", Broken),
        row("GET", "SSH-2.0-OpenSSH_9.6\r\n", Broken),
        row("GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", Broken),
    ]
}

fn statuses() -> Vec<Row> {
    let mut rows = Vec::new();
    for status in [
        "201 Created",
        "202 Accepted",
        "301 Moved Permanently",
        "302 Found",
        "400 Bad Request",
        "401 Unauthorized",
        "403 Forbidden",
        "404 Not Found",
        "413 Request Entity Too Large",
        "418 I'm a teapot",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Time-out",
        "599 Whatever",
        "799 Odd",
    ] {
        rows.push(row("POST", format!("HTTP/1.1 {status}\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{{}}"), Same));
    }
    rows
}

fn bodies() -> Vec<Row> {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    vec![
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Same),
        row("POST", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\0\r\n\u{1}", Same),
        row("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n{}", "x".repeat(500_000)), Same),
        row("GET", format!("{CHUNKED}5\r\nhello\r\n0\r\n\r\n"), Same),
        row("GET", format!("{CHUNKED}0\r\n\r\n"), Same),
        row("GET", "HTTP/1.1 200 OK\r\ntransfer-ENCODING: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", Same),
        row("GET", format!("{CHUNKED}0005;x=y\r\nhello\r\n00\r\n\r\n"), Same),
        row("GET", format!("{CHUNKED}2\r\n{{}}\r\n0\r\nX-Unasked: 1\r\n\r\n"), Same),
        // No body, whatever the fields say of one.
        row("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"x\"\r\n\r\n", Same),
        row("HEAD", "HTTP/1.1 200 OK\r\nX-No-Length: 1\r\n\r\n", Same),
        row("HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", Same),
        row("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Same),
        row("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", Same),
        row("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\n\r\n", Same),
        row("OPTIONS", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAllow: GET\r\n\r\n{}", Same),
        row("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n", Same),
        // The end of a connection becomes the end of a coding.
        closing(
            "HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nhello",
            Bytes("HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ),
        closing(
            "HTTP/1.0 200 OK\r\n\r\nhello",
            Bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ),
        closing(
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            Bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        closing(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
            Bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ),
        // More than was announced is nobody's.
        closing(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello",
            Bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhe"),
        ),
        closing(
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            Cut("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"),
        ),
        closing(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Cut("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        ),
        closing(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello",
            Cut("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello"),
        ),
        // A chunk that has no reading shows before anything of the answer has left.
        closing("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", Broken),
    ]
}

fn broken() -> Vec<Row> {
    vec![
        closing("", Broken),
        closing("HTTP/1.1 200 OK\r\nContent-Le", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length: 02\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Broken),
        row(
            "GET",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Broken,
        ),
        row("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nTransfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", Broken),
        row("GET", "HTTP/1.1 200 OK\r\nContent_Length: 5\r\nContent-Length: 2\r\n\r\n{}", Broken),
    ]
}

async fn check(rows: Vec<Row>) {
    for Row { method, answer, closes, becomes } in rows {
        let shown: String = answer.chars().take(300).collect();
        let sent = answer.clone();
        let homeserver = Homeserver::scripted(move |mut conversation| {
            let sent = sent.clone();
            async move {
                while conversation.request().await.is_some() {
                    conversation.write(&sent).await;
                    if closes {
                        return;
                    }
                }
            }
        })
        .await;
        let front = Front::before(&homeserver);
        let mut client = front.connect().await;
        client.write(format!("{method} / HTTP/1.1\r\nHost: example.org\r\n\r\n")).await;
        let expected = match becomes {
            Same => answer,
            Bytes(bytes) => bytes.to_owned(),
            Broken => {
                let answer = client.answer(false).await.unwrap_or_else(|| panic!("dropped: {shown:?}"));
                assert_eq!(answer.status(), 502, "{shown:?}: {answer:?}");
                assert_eq!(answer.json()["errcode"], "M_UNKNOWN", "{shown:?}: {answer:?}");
                assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"), "{shown:?}");
                assert_eq!(homeserver.requests().len(), 1, "{shown:?}");
                continue;
            }
            Cut(bytes) => {
                let all = soon(&shown, client.rest()).await;
                assert_eq!(String::from_utf8_lossy(&all), bytes, "{shown:?}");
                continue;
            }
        };
        let mut received = Vec::new();
        for _ in 0..expected.matches("HTTP/1.1 ").count() {
            let next = client.answer(method == "HEAD").await.unwrap_or_else(|| panic!("dropped: {shown:?}"));
            received.extend(next.0);
        }
        assert_eq!(String::from_utf8_lossy(&received), expected, "{shown:?}");
        assert_eq!(homeserver.requests().len(), 1, "{shown:?}");
    }
}

#[tokio::test]
async fn heads_come_down_as_sent_but_for_the_fields_of_the_hop() {
    let (heads, statuses) = (heads(), statuses());
    assert_eq!((heads.len(), statuses.len()), (32, 17));
    check(heads).await;
    check(statuses).await;
}

/// S§5.5.
#[tokio::test]
async fn bodies_come_down_as_sent_and_cuts_stay_visible() {
    let (bodies, broken) = (bodies(), broken());
    assert_eq!((bodies.len(), broken.len()), (26, 16));
    check(bodies).await;
    check(broken).await;
}
