//! The noun `Gateway`: takes messages over HTTP or HTTPS in this process, remembers every request as it came, and
//! answers or fails as its script says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::mailbox::{Certificate, certified};

/// Longer than any test takes; only a broken one waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What becomes of one connection.
#[derive(Debug, Clone)]
pub enum Does {
    Answers(u16, String),
    /// These bytes, then the end of the connection.
    Says(String),
    /// Takes the request and says nothing, or nothing more than this.
    Hangs(String),
    /// Goes as soon as it has come, before a byte of TLS or HTTP.
    Breaks,
    /// Waits for `Gateway::release`, then answers 201.
    Holds,
}

impl Does {
    pub fn answer(status: u16, body: &str) -> Self {
        Self::Answers(status, body.to_owned())
    }

    pub fn say(bytes: &str) -> Self {
        Self::Says(bytes.to_owned())
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Got {
    /// `POST /path HTTP/1.1`.
    pub line: String,
    fields: Vec<(String, String)>,
    pub body: String,
}

impl Got {
    /// The only field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        let found = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} comes twice");
        found
    }

    /// The body of a form, decoded.
    pub fn form(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }
}

/// A running gateway; it stops when dropped.
pub struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    folder: tempfile::TempDir,
    https: bool,
}

struct Shared {
    /// One connection each, in order; `always` all connections after them.
    first: Mutex<VecDeque<Does>>,
    always: Does,
    tls: Option<TlsAcceptor>,
    seen: Mutex<Seen>,
    changed: Notify,
    held: Semaphore,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Got>,
    connections: usize,
    open: usize,
    most_open: usize,
}

impl Gateway {
    pub async fn http(always: Does) -> Self {
        Self::start(None, [], always).await
    }

    pub async fn failing_first(first: impl IntoIterator<Item = Does>, always: Does) -> Self {
        Self::start(None, first, always).await
    }

    pub async fn https(certificate: Certificate, first: impl IntoIterator<Item = Does>, always: Does) -> Self {
        Self::start(Some(certificate), first, always).await
    }

    async fn start(certificate: Option<Certificate>, first: impl IntoIterator<Item = Does>, always: Does) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tls = certificate.map(|certificate| {
            let (acceptor, ca) = certified(certificate);
            std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
            acceptor
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, https) = (listener.local_addr().unwrap(), tls.is_some());
        let shared = Arc::new(Shared {
            first: Mutex::new(first.into_iter().collect()),
            always,
            tls,
            seen: Mutex::default(),
            changed: Notify::new(),
            held: Semaphore::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting, folder, https }
    }

    /// Its address, and with https its CA, as the configuration writes them.
    pub fn keys(&self, key: &str, path: &str) -> String {
        let port = self.address.port();
        if !self.https {
            return format!("{key} = \"http://127.0.0.1:{port}{path}\"\n");
        }
        format!("{key} = \"https://localhost:{port}{path}\"\nca_file = \"{}\"\n", self.ca_file().display())
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn requests(&self) -> Vec<Got> {
        self.shared.seen.lock().unwrap().requests.clone()
    }

    pub fn connections(&self) -> usize {
        self.shared.seen.lock().unwrap().connections
    }

    pub fn most_open(&self) -> usize {
        self.shared.seen.lock().unwrap().most_open
    }

    pub async fn wait_for_requests(&self, count: usize) {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.shared.seen.lock().unwrap().requests.len() >= count {
                    return;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("the gateway never saw {count} requests"));
    }

    /// Lets `count` connections go on that `Does::Holds` holds.
    pub fn release(&self, count: usize) {
        self.shared.held.add_permits(count);
    }

    /// Closes the door and waits until it is closed.
    pub async fn stop(&mut self) {
        self.accepting.abort();
        assert!((&mut self.accepting).await.is_err_and(|it| it.is_cancelled()));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        shared.note(|seen| {
            seen.connections += 1;
            seen.open += 1;
            seen.most_open = seen.most_open.max(seen.open);
        });
        let does = shared.first.lock().unwrap().pop_front().unwrap_or_else(|| shared.always.clone());
        connections.spawn(async move {
            serve(stream, &shared, does).await;
            shared.note(|seen| seen.open -= 1);
        });
    }
}

/// `None` wherever the connection is over: nobody here minds how.
async fn serve(stream: TcpStream, shared: &Shared, does: Does) -> Option<()> {
    if matches!(does, Does::Breaks) {
        return None;
    }
    match &shared.tls {
        Some(tls) => converse(tls.accept(stream).await.ok()?, shared, does).await,
        None => converse(stream, shared, does).await,
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(stream: S, shared: &Shared, does: Does) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let got = hear(&mut stream).await?;
    shared.note(|seen| seen.requests.push(got));
    let whole = |status, body: &str| format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (said, hangs) = match does {
        Does::Answers(status, body) => (whole(status, &body), false),
        Does::Says(said) => (said, false),
        Does::Hangs(said) => (said, true),
        Does::Breaks => return None,
        Does::Holds => {
            shared.held.acquire().await.unwrap().forget();
            (whole(201, "{}"), false)
        }
    };
    stream.write_all(said.as_bytes()).await.ok()?;
    stream.flush().await.ok()?;
    if hangs {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await.ok()
}

async fn hear<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufReader<S>) -> Option<Got> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let line = lines.remove(0);
    let fields: Vec<_> = lines.iter().map(|line| line.split_once(": ").unwrap()).collect();
    let fields: Vec<_> = fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut got = Got { line, fields, body: String::new() };
    let mut body = vec![0; got.field("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    got.body = String::from_utf8(body).unwrap();
    Some(got)
}

impl Shared {
    fn note(&self, write: impl FnOnce(&mut Seen)) {
        write(&mut self.seen.lock().unwrap());
        self.changed.notify_waiters();
    }
}
