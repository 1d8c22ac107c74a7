//! The noun `Client`: somebody at a client door, in plain HTTP/1.1, and what a person does with a browser and a mail.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn errcode(&self) -> String {
        self.json()["errcode"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and errcode, to compare at one glance.
    pub fn verdict(&self) -> (u16, String) {
        (self.status, self.errcode())
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    #[track_caller]
    pub fn sid(self) -> String {
        self.ok()["sid"].as_str().expect("a sid").to_owned()
    }
}

/// One client of the server at `address` (host:port).
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
    headers: Vec<(String, String)>,
    /// The version segment of its paths.
    api: &'static str,
    /// Arguments of curl, when it is curl that asks.
    curl: Option<Vec<String>>,
}

impl Client {
    pub fn of(address: impl Into<String>) -> Self {
        Self { address: address.into(), headers: Vec::new(), api: "r0", curl: None }
    }

    pub fn speaking(mut self, api: &'static str) -> Self {
        self.api = api;
        self
    }

    /// Over HTTP/2 and TLS, by curl.
    pub fn over_http2(mut self, ca: &std::path::Path) -> Self {
        self.curl = Some(vec!["--http2".into(), "--cacert".into(), ca.display().to_string()]);
        self
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same client of another server.
    pub fn at(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    pub fn logged_in(self, access_token: &str) -> Self {
        self.with("Authorization", &format!("Bearer {access_token}"))
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[]).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, body.to_string().as_bytes()).await
    }

    /// POST to an endpoint of the client-server API.
    pub async fn call(&self, endpoint: &str, body: Value) -> Answer {
        self.post(&self.path(endpoint), body).await
    }

    pub fn path(&self, endpoint: &str) -> String {
        format!("/_matrix/client/{}/{endpoint}", self.api)
    }

    pub async fn send(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        if let Some(arguments) = &self.curl {
            return self.send_by_curl(arguments.clone(), method, target, body.to_vec()).await;
        }
        let mut stream = TcpStream::connect(&self.address).await.expect("the server takes connections");
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        // A server that refuses a body may answer before all of it is taken.
        let sent = stream.write_all(body).await;
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes).await;
        assert!(!bytes.is_empty(), "no answer to {method} {target}: {sent:?} {read:?}");
        parse(&bytes)
    }

    async fn send_by_curl(&self, arguments: Vec<String>, method: &str, target: &str, body: Vec<u8>) -> Answer {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", "--max-time", "60", "-X", method, "-w", "%{stderr}%{http_version}"]).args(arguments);
        for (name, value) in &self.headers {
            curl.args(["-H", &format!("{name}: {value}")]);
        }
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            curl.args(["-H", "Content-Type: application/json"]);
        }
        if !body.is_empty() || method == "POST" {
            curl.args(["--data-binary", "@-"]);
        }
        let port = self.address.split(':').next_back().unwrap();
        curl.arg(format!("https://localhost:{port}{target}"));
        let output = tokio::task::spawn_blocking(move || {
            let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // One without a body may be through already.
            curl.stdin.take().unwrap().write_all(&body).ok();
            curl.wait_with_output().unwrap()
        })
        .await
        .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "2", "HTTP/2 was spoken");
        parse(&output.stdout)
    }

    /// The three requestTokens, as a client of today sends them: without `id_server`.
    pub async fn request_token(&self, purpose: &str, email: &str, client_secret: &str, send_attempt: i64) -> Answer {
        let body = json!({ "client_secret": client_secret, "email": email, "send_attempt": send_attempt });
        self.call(&format!("{purpose}/email/requestToken"), body).await
    }

    /// Completes a registration with creds as they are.
    pub async fn register(&self, username: &str, creds: Value) -> Answer {
        let auth = json!({ "type": "m.login.email.identity", "threepid_creds": creds });
        self.call("register", json!({ "username": username, "password": PASSWORD, "auth": auth })).await
    }

    pub async fn reset_password(&self, new_password: &str, creds: Value) -> Answer {
        let auth = json!({ "type": "m.login.email.identity", "threepid_creds": creds });
        self.call("account/password", json!({ "new_password": new_password, "auth": auth })).await
    }

    pub async fn add_3pid(&self, creds: Value) -> Answer {
        self.call("account/3pid", json!({ "three_pid_creds": creds })).await
    }

    pub async fn login(&self, email: &str, password: &str) -> Answer {
        let identifier = json!({ "type": "m.id.thirdparty", "medium": "email", "address": email });
        let body = json!({ "type": "m.login.password", "identifier": identifier, "password": password });
        self.call("login", body).await
    }

    /// A user without any address, for the account that adds one.
    pub async fn register_plainly(&self, username: &str) -> String {
        let auth = json!({ "type": "m.login.dummy" });
        let body = json!({ "username": username, "password": PASSWORD, "auth": auth });
        let answer = self.call("register", body).await.ok();
        answer["access_token"].as_str().expect("an access token").to_owned()
    }

    pub async fn addresses(&self) -> Vec<String> {
        let all = self.get(&self.path("account/3pid")).await.ok();
        all["threepids"].as_array().unwrap().iter().map(|one| one["address"].as_str().unwrap().to_owned()).collect()
    }

    /// Opens a mailed link as a browser would: the page, unchanged.
    pub async fn open(&self, link: &str) -> Answer {
        self.get(&target_of(link)).await
    }

    /// Opens a mailed link and presses its button.
    pub async fn click(&self, link: &str) -> Answer {
        let page = self.open(link).await;
        assert_eq!(page.status, 200, "{}", page.text());
        self.press(link, &page).await
    }

    /// Presses the button of an opened page.
    pub async fn press(&self, link: &str, page: &Answer) -> Answer {
        let target = target_of(link);
        let path = target.split('?').next().unwrap();
        let form = self.clone().with("Content-Type", "application/x-www-form-urlencoded");
        form.with("Sec-Fetch-Site", "same-origin").send("POST", path, fields(&page.text()).as_bytes()).await
    }
}

pub const PASSWORD: &str = "correct horse battery staple";

pub fn request_token_path(purpose: &str) -> String {
    format!("/_matrix/client/r0/{purpose}/email/requestToken")
}

pub fn creds(sid: &str, client_secret: &str) -> Value {
    json!({ "sid": sid, "client_secret": client_secret })
}

/// What a server answers to bytes as they are, until it closes the connection.
pub async fn raw(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("the server takes connections");
    let sent = stream.write_all(bytes).await;
    let mut answered = Vec::new();
    let read = stream.read_to_end(&mut answered).await;
    assert!(!answered.is_empty(), "no answer: {sent:?} {read:?}");
    answered
}

/// Path and query of a link.
pub fn target_of(link: &str) -> String {
    let (_, rest) = link.split_once("://").expect("a link");
    rest.find('/').map_or_else(|| "/".to_owned(), |at| rest[at..].to_owned())
}

/// The hidden inputs of a page's form, url-encoded.
pub fn fields(page: &str) -> String {
    let attribute = |input: &str, name: &str| {
        let (_, rest) = input.split_once(&format!("{name}=\""))?;
        Some(rest.split('"').next().unwrap().replace("&#x3a;", ":").replace("&amp;", "&"))
    };
    let inputs = page.split("<input").skip(1).map(|rest| rest.split('>').next().unwrap());
    let pairs = inputs.filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value")?)));
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// A whole answer, as it came over the wire.
pub fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head") + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    if status == 100 {
        return parse(&bytes[end..]);
    }
    let headers: Vec<_> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let chunked =
        headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("transfer-encoding") && value == "chunked");
    let body = if chunked { dechunk(&bytes[end..]) } else { bytes[end..].to_vec() };
    Answer { status, headers, body }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
}
