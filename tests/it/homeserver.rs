//! The noun `Homeserver`: a scripted one on a raw socket, which records every byte it is sent.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use threepid_shim::config::{self, HomeserverAddress, NeedsShim};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

/// A homeserver on a free port of loopback; gone when dropped.
pub struct Homeserver {
    pub address: SocketAddr,
    record: Arc<Record>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct Record {
    requests: Mutex<Vec<Raw>>,
    more: Notify,
    connections: AtomicUsize,
}

/// A message as it came over the wire, head and body, not a byte changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw(pub Vec<u8>);

/// One connection, in the script's hands. Either side of it: tests use it as a client, too.
pub struct Conversation {
    stream: TcpStream,
    /// Read, but not yet asked for.
    ahead: Vec<u8>,
    record: Option<Arc<Record>>,
}

/// Fails a test that would else hang.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let happened = tokio::time::timeout(Duration::from_secs(20), future).await;
    happened.unwrap_or_else(|_elapsed| panic!("nothing happened: {what}"))
}

impl Homeserver {
    /// Answers every request with the same bytes.
    pub async fn answering(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::with(move |_| bytes.clone()).await
    }

    /// Answers every request with what the function makes of it.
    pub async fn with(answer: impl Fn(&Raw) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), answer).await
    }

    /// As `with`, at an address of one's own.
    pub async fn at(address: SocketAddr, answer: impl Fn(&Raw) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::scripted_at(address, move |mut conversation| {
            let answer = Arc::clone(&answer);
            async move {
                while let Some(request) = conversation.request().await {
                    conversation.write(answer(&request)).await;
                }
            }
        })
        .await
    }

    /// Answers every request with the same bytes, those with this in their first line only when they are let.
    pub async fn holding(what: &'static str, bytes: impl Into<Vec<u8>>) -> (Self, Arc<Semaphore>) {
        let (bytes, let_go) = (bytes.into(), Arc::new(Semaphore::new(0)));
        let held = Arc::clone(&let_go);
        let homeserver = Self::scripted(move |mut conversation| {
            let (bytes, held) = (bytes.clone(), Arc::clone(&held));
            async move {
                while let Some(request) = conversation.request().await {
                    if request.line().contains(what) {
                        held.acquire().await.unwrap().forget();
                    }
                    conversation.write(bytes.clone()).await;
                }
            }
        })
        .await;
        (homeserver, let_go)
    }

    /// Gives every connection to a script of its own.
    pub async fn scripted<F, Fut>(script: F) -> Self
    where
        F: Fn(Conversation) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::scripted_at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    async fn scripted_at<F, Fut>(address: SocketAddr, script: F) -> Self
    where
        F: Fn(Conversation) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let record = Arc::<Record>::default();
        let recorder = Arc::clone(&record);
        let accepting = tokio::spawn(async move {
            let mut conversations = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                recorder.connections.fetch_add(1, Ordering::SeqCst);
                let mut conversation = Conversation::over(stream);
                conversation.record = Some(Arc::clone(&recorder));
                conversations.spawn(script(conversation));
            }
        });
        Self { address, record, accepting: accepting.abort_handle() }
    }

    /// What the configuration says of it.
    pub fn config(&self) -> config::Homeserver {
        config_of(self.address)
    }

    /// Every request so far, in the order in which they were complete.
    pub fn requests(&self) -> Vec<Raw> {
        self.record.requests.lock().unwrap().clone()
    }

    /// The only request there was.
    pub fn request(&self) -> Raw {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }

    /// Waits until there were this many requests.
    pub async fn received(&self, count: usize) -> Vec<Raw> {
        soon("a request", async {
            loop {
                let more = self.record.more.notified();
                if self.requests().len() >= count {
                    return self.requests();
                }
                more.await;
            }
        })
        .await
    }

    /// Waits until there was a request with this in its first line.
    pub async fn met(&self, what: &str) {
        let mut seen = 0;
        while !self.received(seen + 1).await.iter().any(|request| request.line().contains(what)) {
            seen += 1;
        }
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.record.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Homeserver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The configuration of a homeserver at this address.
pub fn config_of(address: SocketAddr) -> config::Homeserver {
    config::Homeserver {
        address: HomeserverAddress::Tcp { host: address.ip().to_string(), port: address.port() },
        connect_timeout: Duration::from_secs(5),
        needs_shim: NeedsShim::Auto,
    }
}

/// A whole answer with a JSON body.
pub fn json(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}").into()
}

impl Conversation {
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, ahead: Vec::new(), record: None }
    }

    pub async fn with(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    /// The next whole request, with its body; `None` when there is no more. Recorded.
    pub async fn request(&mut self) -> Option<Raw> {
        let mut bytes = self.head().await?;
        let head = Raw(bytes.clone());
        self.body_of(&head, &mut bytes).await;
        Some(self.remember(Raw(bytes)))
    }

    /// The next whole answer. `bodiless`: of a HEAD request.
    pub async fn answer(&mut self, bodiless: bool) -> Option<Raw> {
        soon("an answer", async {
            let mut bytes = self.head().await?;
            let head = Raw(bytes.clone());
            let status = head.status();
            if !bodiless && status != 204 && status != 304 && status >= 200 {
                let framed = head.field("content-length").is_some() || head.field("transfer-encoding").is_some();
                if framed {
                    self.body_of(&head, &mut bytes).await;
                } else {
                    bytes.extend(self.rest().await);
                }
            }
            Some(Raw(bytes))
        })
        .await
    }

    /// Bytes up to and with the empty line; `None` when there are none.
    pub async fn head(&mut self) -> Option<Vec<u8>> {
        self.until(b"\r\n\r\n").await
    }

    /// Bytes up to and with these.
    pub async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end) {
                return Some(self.ahead.drain(..at + end.len()).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count {
            assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.ahead));
        }
        self.ahead.drain(..count).collect()
    }

    /// As `exactly`, or as many as there are.
    pub async fn up_to(&mut self, count: usize) -> Vec<u8> {
        while self.ahead.len() < count && self.fill().await {}
        let count = count.min(self.ahead.len());
        self.ahead.drain(..count).collect()
    }

    /// Everything up to the end; a reset ends it, too.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.ahead)
    }

    /// Waits for the other side to close or reset.
    pub async fn gone(&mut self) {
        soon("the other side closes", async { while self.fill().await {} }).await;
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // The other side may have closed, which is the test's to notice.
        self.stream.write_all(bytes.as_ref()).await.ok();
    }

    /// Whether the other side still takes bytes.
    pub async fn writes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// No more from this side.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.ok();
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    fn remember(&self, request: Raw) -> Raw {
        if let Some(record) = &self.record {
            record.requests.lock().unwrap().push(request.clone());
            record.more.notify_waiters();
        }
        request
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.ahead).await, Ok(1..))
    }

    async fn body_of(&mut self, head: &Raw, bytes: &mut Vec<u8>) {
        if let Some(length) = head.field("content-length") {
            bytes.extend(self.exactly(length.parse().unwrap()).await);
        } else if head.field("transfer-encoding").is_some() {
            loop {
                let Some(size) = self.until(b"\r\n").await else { return };
                let digits = String::from_utf8_lossy(&size).split([';', '\r']).next().unwrap().to_owned();
                let length = usize::from_str_radix(digits.trim(), 16).unwrap();
                bytes.extend(&size);
                if length == 0 {
                    break;
                }
                bytes.extend(self.exactly(length + 2).await);
            }
            loop {
                let Some(line) = self.until(b"\r\n").await else { return };
                bytes.extend(&line);
                if line == b"\r\n" {
                    return;
                }
            }
        }
    }
}

impl Raw {
    /// The first line.
    pub fn line(&self) -> String {
        self.head().lines().next().unwrap_or_default().to_owned()
    }

    pub fn head(&self) -> String {
        let end = self.0.windows(4).position(|window| window == b"\r\n\r\n").map_or(self.0.len(), |at| at + 4);
        String::from_utf8_lossy(&self.0[..end]).into_owned()
    }

    /// The lines between the first and the empty one, as they came.
    pub fn fields(&self) -> Vec<String> {
        self.head().lines().skip(1).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The values of all fields of this name, whatever its case.
    pub fn all(&self, name: &str) -> Vec<String> {
        let fields = self.fields();
        let pairs = fields.iter().filter_map(|line| line.split_once(':'));
        pairs.filter(|(it, _)| it.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).collect()
    }

    pub fn field(&self, name: &str) -> Option<String> {
        self.all(name).into_iter().next()
    }

    pub fn status(&self) -> u16 {
        self.line().split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// The body as framed on the wire.
    pub fn body(&self) -> &[u8] {
        self.0.windows(4).position(|window| window == b"\r\n\r\n").map_or(&[], |at| &self.0[at + 4..])
    }

    /// The body without its framing.
    pub fn content(&self) -> Vec<u8> {
        if self.field("transfer-encoding").is_none() {
            return self.body().to_vec();
        }
        let (mut content, mut rest) = (Vec::new(), self.body());
        while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
            let size = String::from_utf8_lossy(&rest[..at]).split(';').next().unwrap().to_owned();
            let length = usize::from_str_radix(size.trim(), 16).unwrap();
            if length == 0 {
                break;
            }
            content.extend(&rest[at + 2..at + 2 + length]);
            rest = &rest[at + 4 + length..];
        }
        content
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.content()).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}
