//! The noun `Process`: the real binary, what it logs, and how it ends.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::client::Client;
use crate::homeserver::soon;
use crate::shim::{authority, outbox_in};

/// A running `threepid-shim serve`. Killed when dropped.
pub struct Process {
    pub clients: String,
    pub admin: String,
    child: Child,
    log: Arc<Log>,
    folder: TempDir,
    wrapper: Vec<String>,
}

/// In a configuration: the identity door's certificate is one that the shim makes.
pub const OWN_CA: &str = "# own CA\n";

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    more: Notify,
}

impl Process {
    /// In front of the homeserver at `host:port`, which knows `identity` by its name. `config` is put behind the tables
    /// every test has. Returns at once; see `serving`.
    pub fn start(homeserver: &str, identity: TcpListener, config: &str) -> Self {
        Self::under(&[], homeserver, identity, config)
    }

    /// The same, run by a command such as `prlimit --nofile=64`.
    pub fn under(wrapper: &[&str], homeserver: &str, identity: TcpListener, config: &str) -> Self {
        let (clients, admin) = (free(), free());
        let identity_port = identity.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let ca = authority();
        // A test may have a mail server of its own.
        let outbox = "[email]\ntransport = \"file\"\nfrom = \"noreply@example.org\"\n";
        let email = if config.contains("[email]") { "" } else { outbox };
        let tls =
            format!("tls = {{ certificate = \"{}\", private_key = \"{}\" }}", ca.leaf.display(), ca.key.display());
        let tls = if config.contains(OWN_CA) { String::new() } else { tls };
        let text = format!(
            "server_name = \"example.org\"\npublic_base_url = \"http://{clients}\"\nstate_dir = \"{state}\"\n\
             [listen]\nclients = [\"{clients}\"]\nidentity = [\"127.0.0.1:{identity_port}\"]\nadmin = [\"{admin}\"]\n\
             [homeserver]\nurl = \"http://{homeserver}\"\n\
             [identity]\nname = \"localhost:{identity_port}\"\n\
             {tls}\n\
             {email}[log]\nformat = \"json\"\n{config}",
            state = folder.path().join("state").display(),
        );
        let file = folder.path().join("shim.toml");
        std::fs::write(&file, text).unwrap();
        // The homeserver was told this port long ago; it is free from here on until the binary binds it.
        drop(identity);
        let log = Arc::<Log>::default();
        let wrapper: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
        Self { clients, admin, child: spawn(&wrapper, &file, &log), log, folder, wrapper }
    }

    /// SIGKILL, and once more from the start, with what is on the disk.
    pub async fn killed_and_started_again(mut self) -> Self {
        self.kill();
        self.started_again().await
    }

    /// Once more from the start, when it has ended by itself.
    pub async fn started_again(mut self) -> Self {
        self.log.lines.lock().unwrap().clear();
        self.child = spawn(&self.wrapper, &self.config_file(), &self.log);
        self.serving().await
    }

    /// Waits until all doors are open.
    pub async fn serving(self) -> Self {
        self.logged(|line| line["message"] == "serving").await;
        self
    }

    pub fn client(&self) -> Client {
        Client::of(&self.clients)
    }

    pub async fn readiness(&self) -> u16 {
        Client::of(&self.admin).get("/readyz").await.status
    }

    pub fn outbox(&self) -> Vec<String> {
        outbox_in(&self.state_dir())
    }

    /// What it makes by itself.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Everything logged so far, as it was written.
    pub fn log(&self) -> String {
        self.log.lines.lock().unwrap().join("\n")
    }

    /// Every line so far, parsed.
    pub fn lines(&self) -> Vec<Value> {
        let lines = self.log.lines.lock().unwrap();
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }

    /// Waits for the first line like this.
    pub async fn logged(&self, like: impl Fn(&Value) -> bool) -> Value {
        soon("a log line", async {
            loop {
                let more = self.log.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if let Some(line) = self.lines().into_iter().find(&like) {
                    return line;
                }
                more.await;
            }
        })
        .await
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("shim.toml")
    }

    /// What the system says of it, in `/proc`.
    pub fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.child.id());
        String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
    }

    /// Of `/proc/PID/status`, in kB.
    pub fn memory(&self, line: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':')).expect("a line of memory");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code, once it has ended by itself.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let code = soon("the process ends", self.exited()).await;
        (code, self.log())
    }

    /// The same, for as long as it takes.
    pub async fn exited(&mut self) -> Option<i32> {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn spawn(wrapper: &[String], file: &Path, log: &Arc<Log>) -> Child {
    let own = [env!("CARGO_BIN_EXE_threepid-shim"), "serve", "--config"];
    let command: Vec<&str> = wrapper.iter().map(String::as_str).chain(own).collect();
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .arg(file)
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let keep = Arc::clone(log);
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            keep.lines.lock().unwrap().push(line);
            keep.more.notify_waiters();
        }
    });
    child
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An endpoint nobody else will take: a port of a loopback address that only this process uses.
fn free() -> String {
    let id = std::process::id();
    let ip = format!("127.{}.{}.{}", 64 + (id >> 16) % 64, (id >> 8) % 256, id % 256);
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().to_string()
}
