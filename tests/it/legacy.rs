//! The noun `Legacy`: a real old Synapse, one of each version for all tests of this process.

use std::collections::HashMap;
use std::net::TcpListener;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use tempfile::TempDir;

use crate::client::Client;
use crate::shim::{Reserved, Shim, Wanted, authority};

/// Identity doors that one homeserver trusts: a test that starts a shim takes one.
const DOORS: usize = 320;

pub struct Legacy {
    pub version: &'static str,
    /// `host:port`
    pub address: String,
    doors: Reserved,
    state: TempDir,
}

/// One of each kind: what a homeserver does with an identity server differs between 0.x and 1.x.
pub const VERSIONS: [&str; 2] = ["1.3.1", "0.99.5.2"];
/// Those that every flow is run against.
pub const EVERY_VERSION: [&str; 5] = ["0.34.1.1", "0.99.5.2", "1.0.0", "1.2.1", "1.3.1"];

/// The homeserver of that version, started when it is first asked for.
pub fn legacy(version: &'static str) -> &'static Legacy {
    static STARTED: LazyLock<Mutex<HashMap<&str, &Legacy>>> = LazyLock::new(Mutex::default);
    let mut started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    started.entry(version).or_insert_with(|| Box::leak(Box::new(Legacy::start(version, &[]))))
}

impl Legacy {
    /// One of its own, with other settings; see `tests/homeserver/up`.
    pub fn start(version: &'static str, settings: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let legacy = Self { version, address: format!("127.0.0.1:{}", port()), doors: Reserved::new(DOORS), state };
        legacy.up(settings);
        legacy
    }

    /// Another version takes its place, with the same address, database and keys.
    pub fn replace(&mut self, version: &'static str, settings: &[(&str, &str)]) {
        let down = self.tool("down").output().expect("tests/homeserver/down can be run");
        assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        self.version = version;
        self.up(settings);
    }

    fn up(&self, settings: &[(&str, &str)]) {
        let output = self
            .tool("up")
            .arg("--daemon")
            .env("ID_SERVER", self.doors.names())
            .env("CA_FILE", &authority().ca)
            .env("STOP_WITH", std::process::id().to_string())
            .envs(settings.iter().copied())
            .output()
            .expect("tests/homeserver/up can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "Synapse {} is needed (./tests/run installs it): {said}", self.version);
    }

    fn tool(&self, name: &str) -> Command {
        let mut tool = Command::new(format!("{}/tests/homeserver/{name}", env!("CARGO_MANIFEST_DIR")));
        let port = self.address.split(':').next_back().unwrap();
        tool.args([self.version, port]).arg(self.state.path());
        tool
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.path().join("homeserver.log")).unwrap()
    }

    /// A client of the bare homeserver, around any shim.
    pub fn bare(&self) -> Client {
        Client::of(&self.address)
    }

    /// A socket that this homeserver trusts as an identity server.
    pub fn door(&self) -> TcpListener {
        self.doors.take()
    }

    /// A shim in front of it.
    pub async fn shim(&self, wanted: Wanted) -> Shim {
        Shim::before(&self.address, self.door(), wanted).await
    }
}

impl Drop for Legacy {
    /// Before its folder goes, in which its process id stands.
    fn drop(&mut self) {
        self.tool("down").output().ok();
    }
}

/// A free port below those that the system gives to whoever asks for any: nobody takes it before the server it is for.
pub fn port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap();
    let first = std::process::id() % 200 * 100;
    let mut ports = (0..20_000).map(|next| u16::try_from(10_000 + (first + next) % 20_000).unwrap());
    let is_free = |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = ports.find(is_free).expect("a free port");
    given.push(port);
    port
}

/// A name or secret that no other test uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    format!("{prefix}{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
