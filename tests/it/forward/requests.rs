//! Requests on their way up: what the homeserver is sent, byte for byte.
//!
//! This is also the table of what hyper and httparse refuse or settle before we see it.

use crate::forward::Front;
use crate::homeserver::{Conversation, Homeserver, soon};

/// What becomes of a request.
enum Becomes {
    /// The same bytes.
    Same,
    /// These bytes.
    Bytes(String),
    /// Refused by us: 400 `M_UNKNOWN`, and the connection is closed.
    Refused,
    /// Refused by hyper, with this status and no body.
    Unread(u16),
    /// Closed without a word.
    Dropped,
}
use Becomes::{Bytes, Dropped, Refused, Same, Unread};

const HOST: &str = "Host: example.org\r\n";
/// From a trusted proxy, so that nothing has to be added.
const FOR: &str = "X-Forwarded-For: 203.0.113.9\r\n";

fn get(target: &str) -> String {
    head(&format!("GET {target} HTTP/1.1"), "")
}

fn head(line: &str, fields: &str) -> String {
    format!("{line}\r\n{HOST}{FOR}{fields}\r\n")
}

fn field(fields: &str) -> String {
    head("GET /path HTTP/1.1", fields)
}

fn post(fields: &str, body: &str) -> String {
    head("POST /path HTTP/1.1", fields) + body
}

fn targets() -> Vec<(String, Becomes)> {
    let same = [
        "/",
        "/path",
        "//double//slash",
        "/a/./b/../c",
        "/%2f%2F%2e%65",
        "/a;p=1;q",
        "/a?",
        "/a??b=c?",
        "/a?b=c&b=d&=&&",
        "/a?x=%ZZ&y=+%20",
        "/_matrix/client/r0/rooms/!abc:example.org/send/m.room.message/m1.2",
        "/_matrix/client/r0/directory/room/%23a%3Aexample.org",
        "/_matrix/media/r0/download/example.org/aB-_c?allow_remote=false",
        "/_matrix/identity/api/v1",
        "/:80/@x/~y/$z/'()*,",
        "/{\"json\":1}",
        "/ümlaut",
        "/a|b^c",
        "/a[0]\\b",
        "/_matrix/client/versions/",
    ];
    let mut rows: Vec<_> = same.iter().map(|target| (get(target), Same)).collect();
    rows.push((get(&format!("/long/{}", "x".repeat(60_000))), Same));
    rows.extend([
        (head("OPTIONS * HTTP/1.1", ""), Same),
        (get("/a#fragment"), Bytes(get("/a"))),
        (get("http://example.org/absolute?q"), Bytes(get("/absolute?q"))),
        (get("http://EXAMPLE.org"), Bytes(get("/"))),
        (get("https://example.org/x"), Bytes(get("/x"))),
        (get("http://other.org/absolute"), Refused),
        (get("http://example.org:80/absolute"), Refused),
        (get("http://user@example.org/absolute"), Refused),
        (get("ftp://example.org/absolute"), Refused),
        (get("example.org"), Refused),
        (get("example.org:80"), Refused),
        (head("CONNECT example.org:80 HTTP/1.1", ""), Refused),
        (get("relative/path"), Unread(400)),
        (get("/sp ace"), Unread(400)),
        (get("/less<than>"), Same),
        (get("/back`tick"), Same),
        (head("GET * HTTP/1.1", ""), Refused),
        (get(&format!("/{}", "x".repeat(65_535))), Unread(431)),
        ("GET /h1.0 HTTP/1.0\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n".into(), Same),
        (head("GET /h1.0 HTTP/1.0", ""), Same),
        (head("GET /h1.2 HTTP/1.2", ""), Unread(400)),
        (head("GET  /two-spaces HTTP/1.1", ""), Unread(400)),
        ("GET /h0.9\r\n".into(), Unread(400)),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Dropped),
        ("\x16\x03\x01\x02\x00\x01\x00".into(), Unread(400)),
    ]);
    rows
}

fn methods() -> Vec<(String, Becomes)> {
    let same = ["HEAD", "OPTIONS", "DELETE", "PROPFIND", "M-SEARCH", "TRACE", "get", "X_Y"];
    same.iter().map(|method| (head(&format!("{method} /path HTTP/1.1"), ""), Same)).collect()
}

fn fields() -> Vec<(String, Becomes)> {
    let same = [
        "X-One: 1\r\nx-two: 2\r\nX-tHrEe: 3\r\n",
        "Cookie: a=1\r\nCookie: b=2\r\n",
        "X-Same: 1\r\nx-same: 2\r\nX-SAME: 1\r\n",
        "X-Empty:\r\nX-Next: 1\r\n",
        "X-Latin: \u{e9}\u{fc}\r\n",
        "Authorization: Bearer syt_abc\r\nOrigin: https://app.example.org\r\n",
        "X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\nForwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.2\r\n",
        "X-HTTP-Method-Override: DELETE\r\n",
        "Accept-Encoding: gzip, deflate, br\r\nRange: bytes=0-1\r\nIf-None-Match: \"x\"\r\n",
        "Proxy-Authorization: Basic eDp5\r\n",
        "TE: trailers\r\n",
        "Via: 1.1 somebody\r\nMax-Forwards: 3\r\n",
        "Access-Control-Request-Method: POST\r\n",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
    ];
    let mut rows: Vec<_> = same.iter().map(|fields| (field(fields), Same)).collect();
    let many = (0..190).fold(String::new(), |fields, n| fields + &format!("X-Field-{n}: {n}\r\n"));
    let large = format!("X-Large: {}\r\n", "x".repeat(60_000));
    rows.extend([
        (field(&many), Same),
        (field(&large), Same),
        (field("X-Spaces:   inner  space  \t\r\n"), Same),
        (field("X-Tight:tight\r\n"), Same),
        (field("X-A: 1\r\nX-B: 2\r\nX-A: 3\r\n"), Same),
        (field("Connection: keep-alive\r\n"), Bytes(field(""))),
        (field("Connection: close\r\n"), Bytes(field(""))),
        (field("Connection: X-Gone, keep-alive\r\nX-Gone: 1\r\n"), Bytes(field(""))),
        (field("X-Two: 2\r\nConnection: x-one\r\nConnection: X-TWO\r\nX-One: 1\r\n"), Bytes(field(""))),
        (field("Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n"), Bytes(field(""))),
        (
            field("Connection: X-Forwarded-For, Host, Authorization, Content-Length\r\nAuthorization: x\r\n"),
            Bytes(field("Authorization: x\r\n")),
        ),
        (field("TE: gzip, Trailers;q=0.5\r\n"), Bytes(field(""))),
        (field("TE: gzip, trailers\r\n"), Bytes(field("TE: trailers\r\n"))),
        (field("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n"), Bytes(field(""))),
        (field("Upgrade: websocket\r\n"), Bytes(field(""))),
        (
            post("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n", "hi"),
            Bytes(post("Content-Length: 2\r\n", "hi")),
        ),
        (field("Host: example.org\r\n"), Refused),
        (field("Transfer_Encoding: chunked\r\n"), Refused),
        (field("Content_Length: 3\r\n"), Refused),
        ("GET / HTTP/1.1\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n".into(), Refused),
        ("GET / HTTP/1.1\r\nHost: [::g]\r\n\r\n".into(), Refused),
        (format!("GET / HTTP/1.1\r\nHost: [::1]:8008\r\n{FOR}\r\n"), Same),
        (format!("GET / HTTP/1.1\r\nHost: a.b-c_d:8448\r\n{FOR}\r\n"), Same),
        (field("X-Space : 1\r\n"), Unread(400)),
        (field(" X-Fold: 1\r\n"), Unread(400)),
        (field("X-Fold: 1\r\n 2\r\n"), Unread(400)),
        (field("X-Nul: a\0b\r\n"), Unread(400)),
        (field("X-Cr: a\rb\r\n"), Unread(400)),
        (field("No colon\r\n"), Unread(400)),
        (field("X-\u{e9}: 1\r\n"), Unread(400)),
        (field("X-Lf: 1\nX-Next: 2\r\n"), Bytes(field("X-Lf: 1\r\nX-Next: 2\r\n"))),
        (field(&"X-Many: 1\r\n".repeat(201)), Unread(431)),
        (field(&format!("X-Large: {}\r\n", "x".repeat(70_000))), Unread(431)),
    ]);
    rows
}

fn bodies() -> Vec<(String, Becomes)> {
    let chunked = "Transfer-Encoding: chunked\r\n";
    vec![
        (post("Content-Length: 5\r\n", "hello"), Same),
        (post("content-length: 0\r\n", ""), Same),
        (post("", ""), Same),
        (field("Content-Length: 0\r\n"), Same),
        (field("Content-Length: 5\r\n") + "hello", Same),
        (head("DELETE /path HTTP/1.1", "Content-Length: 2\r\n") + "{}", Same),
        (head("PUT /path HTTP/1.1", "Content-Length: 12\r\n") + "\0\u{1}\r\n\r\nPUT /\t", Same),
        (head("OPTIONS /path HTTP/1.1", "Content-Length: 1\r\n") + "x", Same),
        (post(&format!("Content-Length: {}\r\n", 300_000), &"x".repeat(300_000)), Same),
        (post(chunked, "5\r\nhello\r\n0\r\n\r\n"), Same),
        (post("TRANSFER-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), Same),
        (post(chunked, "0\r\n\r\n"), Same),
        (field(chunked) + "2\r\n{}\r\n0\r\n\r\n", Same),
        (post("Content-Encoding: gzip\r\nContent-Length: 3\r\n", "\u{1f}\u{0b}\0"), Same),
        (post("Expect: something-else\r\nContent-Length: 2\r\n", "hi"), Same),
        (post("Expect: 100-continue\r\nContent-Length: 0\r\n", ""), Same),
        (
            post(
                "Trailer: X-Sum\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n",
                "2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n",
            ),
            Same,
        ),
        (post(chunked, "005;ext=1\r\nhello\r\n0;last\r\n\r\n"), Same),
        (post(chunked, "0\r\nx-unannounced: 1\r\n\r\n"), Same),
        // One reading is left: hyper keeps one of two equal lengths.
        (post("Content-Length: 2\r\nContent-Length: 2\r\n", "hi"), Bytes(post("Content-Length: 2\r\n", "hi"))),
        // One reading is left: hyper takes the coding, drops the length, and closes the connection behind it.
        (
            post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n"),
            Bytes(post(chunked, "2\r\nhi\r\n0\r\n\r\n")),
        ),
        (
            post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "2\r\nhi\r\n0\r\n\r\n"),
            Bytes(post(chunked, "2\r\nhi\r\n0\r\n\r\n")),
        ),
        (post("Content-Length: 2\r\nContent-Length: 3\r\n", "hi!"), Unread(400)),
        (post("Content-Length: 2, 2\r\n", "hi"), Unread(400)),
        (post("Content-Length: +2\r\n", "hi"), Unread(400)),
        (post("Content-Length: -2\r\n", "hi"), Unread(400)),
        (post("Content-Length: 0x2\r\n", "hi"), Unread(400)),
        (post("Content-Length:\r\n", "hi"), Unread(400)),
        (post("Content-Length: 99999999999999999999\r\n", ""), Unread(400)),
        (post("Content-Length: 02\r\n", "hi"), Refused),
        (post("Transfer-Encoding: Chunked\r\n", "0\r\n\r\n"), Refused),
        (post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), Refused),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), Refused),
        (post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"), Refused),
        (post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), Unread(400)),
        (post("Transfer-Encoding: identity\r\nContent-Length: 2\r\n", "hi"), Unread(400)),
        (post("Transfer-Encoding: xchunked\r\n", "hi"), Unread(400)),
        (post("Transfer-Encoding:\r\n", "hi"), Unread(400)),
        (head("POST /path HTTP/1.0", chunked) + "0\r\n\r\n", Unread(400)),
    ]
}

async fn check(rows: Vec<(String, Becomes)>) {
    for (sent, becomes) in rows {
        let homeserver = Homeserver::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let front = Front::before(&homeserver);
        let mut client = Conversation::with(front.address).await;
        client.write(&sent).await;
        let shown: String = sent.chars().take(400).collect();
        let expected = match becomes {
            Same => sent,
            Bytes(bytes) => bytes,
            Refused => {
                let answer = soon(&shown, client.answer(false)).await.unwrap_or_else(|| panic!("dropped: {shown:?}"));
                assert_eq!(answer.status(), 400, "{shown:?}: {answer:?}");
                assert_eq!(answer.json()["errcode"], "M_UNKNOWN", "{shown:?}: {answer:?}");
                assert_eq!(answer.field("access-control-allow-origin").as_deref(), Some("*"), "{shown:?}");
                soon(&shown, client.gone()).await;
                assert!(homeserver.requests().is_empty(), "{shown:?}");
                continue;
            }
            Unread(status) => {
                let answer = soon(&shown, client.answer(false)).await.unwrap_or_else(|| panic!("dropped: {shown:?}"));
                assert_eq!(answer.status(), status, "{shown:?}: {answer:?}");
                soon(&shown, client.gone()).await;
                assert!(homeserver.requests().is_empty(), "{shown:?}");
                continue;
            }
            Dropped => {
                assert_eq!(soon(&shown, client.rest()).await, b"", "{shown:?}");
                assert!(homeserver.requests().is_empty(), "{shown:?}");
                continue;
            }
        };
        let answer = soon(&shown, client.answer(expected.starts_with("HEAD"))).await;
        let answer = answer.unwrap_or_else(|| panic!("dropped: {shown:?}"));
        assert_eq!(answer.status(), 200, "{shown:?}: {answer:?}");
        let received = homeserver.request();
        assert_eq!(String::from_utf8_lossy(&received.0), expected, "{shown:?}");
    }
}

#[tokio::test]
async fn targets_go_up_as_sent_or_not_at_all() {
    let rows = targets();
    assert_eq!(rows.len(), 46);
    check(rows).await;
}

#[tokio::test]
async fn methods_go_up_as_sent() {
    let rows = methods();
    assert_eq!(rows.len(), 8);
    check(rows).await;
}

#[tokio::test]
async fn fields_go_up_as_sent_but_for_those_of_the_hop() {
    let rows = fields();
    assert_eq!(rows.len(), 53);
    check(rows).await;
}

#[tokio::test]
async fn bodies_go_up_as_sent_with_one_length() {
    let rows = bodies();
    assert_eq!(rows.len(), 39);
    check(rows).await;
}
