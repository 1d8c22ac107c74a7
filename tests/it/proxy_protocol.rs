//! The PROXY protocol at the client door: who may speak it, who has to, and what becomes of the address.

use std::process::{Child, Command, Stdio};

use threepid_shim::config::TlsFiles;
use threepid_shim::serve::Tls;

use crate::forward::{Front, Speaking};
use crate::homeserver::{Conversation, Homeserver, soon};
use crate::legacy::port;
use crate::shim::authority;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";

fn announced(homeserver: &Homeserver, trusted: &[&str]) -> Front {
    Front::speaking(Speaking { proxy_protocol: true, h2c: true, tls: None }, homeserver, trusted)
}

fn version_2(source: [u8; 4]) -> Vec<u8> {
    let addresses = [&source[..], &[198, 51, 100, 1, 220, 4, 1, 187]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &addresses].concat()
}

#[tokio::test]
async fn the_address_announced_is_the_clients_and_no_proxy_by_that() {
    let rows = [
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 1\r\n".as_bytes().to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 1\r\n".to_vec(), "2001:db8::7"),
        (version_2([192, 0, 2, 7]), "192.0.2.7"),
        // A proxy that is trusted itself, and the one before us speaking for itself: they are believed.
        (b"PROXY TCP4 127.0.0.9 198.51.100.1 1 1\r\n".to_vec(), "203.0.113.9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "203.0.113.9"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), "203.0.113.9"),
    ];
    for (header, expected) in &rows {
        let homeserver = Homeserver::answering(OK).await;
        let front = announced(&homeserver, &["127.0.0.0/8"]);
        let mut client = front.connect().await;
        client.write([header, GET.as_bytes(), GET.as_bytes()].concat()).await;
        for _ in 0..2 {
            assert_eq!(soon("an answer", client.answer(false)).await.unwrap().status(), 200);
        }
        for seen in homeserver.requests() {
            assert_eq!(seen.all("x-forwarded-for"), [*expected], "{header:?}");
        }
    }
    assert_eq!(rows.len(), 6);
}

#[tokio::test]
async fn who_may_not_announce_does_not_or_wrongly_is_closed_on_unanswered() {
    let good = b"PROXY TCP4 192.0.2.7 198.51.100.1 1 1\r\n".as_slice();
    let rows = [
        ("10.0.0.0/8", good),
        ("10.0.0.0/8", b""),
        ("127.0.0.0/8", b""),
        ("127.0.0.0/8", b"\r\n"),
        ("127.0.0.0/8", b"PROXY TCP4 192.0.2.7\r\n"),
        ("127.0.0.0/8", b"PROXY TCP4 192.0.2.7 198.51.100.1 1 1\n"),
        ("127.0.0.0/8", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c"),
        ("127.0.0.0/8", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0\0"),
        ("127.0.0.0/8", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ];
    for (trusted, header) in rows {
        let homeserver = Homeserver::answering(OK).await;
        let front = announced(&homeserver, &[trusted]);
        let mut client = front.connect().await;
        client.write([header, GET.as_bytes()].concat()).await;
        assert_eq!(soon("the end", client.rest()).await, b"", "{header:?} from {trusted}");
        assert_eq!(homeserver.requests().len(), 0, "{header:?} from {trusted}");
    }
    assert_eq!(rows.len(), 9);
}

#[tokio::test]
async fn a_header_twice_or_where_none_is_expected_is_no_request() {
    let header = "PROXY TCP4 192.0.2.7 198.51.100.1 1 1\r\n";
    let homeserver = Homeserver::answering(OK).await;
    for (front, before) in [(announced(&homeserver, &["127.0.0.0/8"]), header), (Front::before(&homeserver), "")] {
        let mut client = front.connect().await;
        client.write(format!("{before}{header}{GET}")).await;
        let said = String::from_utf8_lossy(&soon("the end", client.rest()).await).into_owned();
        assert!(!said.contains("200 OK"), "{said}");
    }
    assert_eq!(homeserver.requests().len(), 0);
}

/// HAProxy before a door, in clear or with the door's TLS passed through.
struct HaProxy(Child);

impl HaProxy {
    fn start(folder: &std::path::Path, own: u16, door: u16, send: &str) -> Self {
        let file = folder.join("haproxy.cfg");
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
             listen shim\n bind 127.0.0.1:{own}\n server shim 127.0.0.1:{door} {send}\n"
        );
        std::fs::write(&file, text).unwrap();
        let haproxy = Command::new("/usr/sbin/haproxy").args(["-db", "-f"]).arg(&file).stderr(Stdio::null()).spawn();
        Self(haproxy.expect("Debian's haproxy is needed (./tests/run installs it)"))
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_announces_its_clients_in_both_versions_also_before_tls_and_http_2() {
    let files = TlsFiles { certificate: authority().leaf.clone(), private_key: authority().key.clone() };
    for send in
        ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
    {
        let homeserver = Homeserver::answering(OK).await;
        let tls = Some(Tls::new(Tls::with_http2(Tls::read(&files).unwrap())));
        let clear = announced(&homeserver, &["127.0.0.1/32"]);
        let over_tls =
            Front::speaking(Speaking { proxy_protocol: true, h2c: false, tls }, &homeserver, &["127.0.0.1/32"]);
        for (front, url, version) in [
            (&clear, "http://127.0.0.1", "--http1.1"),
            (&clear, "http://127.0.0.1", "--http2-prior-knowledge"),
            (&over_tls, "https://localhost", "--http1.1"),
            (&over_tls, "https://localhost", "--http2"),
        ] {
            let (folder, own) = (tempfile::tempdir().unwrap(), port());
            let _haproxy = HaProxy::start(folder.path(), own, front.address.port(), send);
            soon("HAProxy listens", async {
                while tokio::net::TcpStream::connect(("127.0.0.1", own)).await.is_err() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let mut curl = Command::new("curl");
            // Another address of loopback than HAProxy's own: one that is not trusted.
            curl.args(["-sS", "--max-time", "20", "--interface", "127.0.0.7", "-H", "X-Forwarded-For: 203.0.113.9"]);
            curl.args([version, "--cacert"]).arg(&authority().ca).arg(format!("{url}:{own}/"));
            let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
            assert_eq!(output.stdout, b"ok", "{send} {version}: {output:?}");
            let seen = homeserver.requests().pop().unwrap();
            assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.7"], "{send} {version}");
        }
        assert_eq!(homeserver.requests().len(), 4);
    }
}

#[tokio::test]
async fn a_unix_socket_is_announced_on_as_well() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let homeserver = Homeserver::answering(OK).await;
    let front = announced(&homeserver, &[]);
    let mut refused = Conversation::with(front.address).await;
    refused.write(GET).await;
    assert_eq!(soon("the end", refused.rest()).await, b"");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients.sock");
    let speaking = Speaking { proxy_protocol: true, ..Speaking::default() };
    let _front = Front::at_socket(&path, speaking, &homeserver.config());
    let mut proxy = tokio::net::UnixStream::connect(&path).await.unwrap();
    let close = GET.replace("Host: h", "Host: h\r\nConnection: close");
    proxy.write_all(format!("PROXY TCP4 192.0.2.7 198.51.100.1 1 1\r\n{close}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", proxy.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    assert_eq!(homeserver.request().all("x-forwarded-for"), ["192.0.2.7"]);
}

/// Both sides by a socket's file, as bytes and by hyper.
#[tokio::test(flavor = "multi_thread")]
async fn clients_and_homeserver_are_both_reached_by_unix_sockets() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let [clients, behind] = ["clients.sock", "homeserver.sock"].map(|name| folder.path().join(name));
    let listener = tokio::net::UnixListener::bind(&behind).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut read = Vec::new();
                while stream.read_buf(&mut read).await.is_ok_and(|came| came > 0) {
                    while let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                        let head: Vec<u8> = read.drain(..end + 4).collect();
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
                        stream.write_all(&[answer.as_bytes(), &head].concat()).await.unwrap();
                    }
                }
            });
        }
    });
    let homeserver = Homeserver::answering(OK).await;
    let mut config = homeserver.config();
    config.address = threepid_shim::config::HomeserverAddress::Unix(behind);
    let _front = Front::at_socket(&clients, Speaking { h2c: true, ..Speaking::default() }, &config);
    let mut client = tokio::net::UnixStream::connect(&clients).await.unwrap();
    let closing = GET.replace("Host: h", "Host: h\r\nConnection: close");
    client.write_all(format!("{GET}{GET}{closing}").as_bytes()).await.unwrap();
    let mut answers = String::new();
    soon("three answers", client.read_to_string(&mut answers)).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert_eq!(answers.matches("X-Forwarded-For: 203.0.113.9").count(), 3, "{answers}");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--http2-prior-knowledge", "http://h/", "--unix-socket"]).arg(&clients);
    let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    assert!(output.stdout.starts_with(b"GET / HTTP/1.1\r\n"), "{output:?}");
}
