//! The noun `Postfix`: Debian's mail server on loopback, with a login and TLS of its own.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::legacy::port;
use crate::shim::Wanted;

pub const USER: &str = "threepid-shim";
pub const PASSWORD: &str = "p\\a\"s s=w0rd";

const PART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts/postfix");

/// A running postfix. It is stopped when it is dropped, or else with this process.
pub struct Postfix {
    folder: TempDir,
    starttls: u16,
    implicit: u16,
}

/// One for all tests of this process; a test asks for the mails of its own addresses.
pub fn postfix() -> &'static Postfix {
    static STARTED: LazyLock<Postfix> = LazyLock::new(Postfix::start);
    &STARTED
}

impl Postfix {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (starttls, implicit) = (port(), port());
        let output = Command::new(PART)
            .arg("up")
            .arg(folder.path())
            .args([&starttls.to_string(), &implicit.to_string(), USER, PASSWORD])
            .env("STOP_WITH", std::process::id().to_string())
            .output()
            .expect("tests/parts/postfix can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "Debian's postfix is needed (./tests/run installs it): {said}");
        Self { folder, starttls, implicit }
    }

    /// The `[email]` table of a shim that sends through it; `tls` is `required` or `implicit`.
    pub fn email(&self, tls: &str, user: &str, password: &str) -> String {
        let port = if tls == "implicit" { self.implicit } else { self.starttls };
        let (ca_file, password) = (self.folder.path().join("ca.pem"), Value::from(password));
        format!(
            "transport = \"smtp\"\nhost = \"localhost\"\nport = {port}\ntls = \"{tls}\"\nca_file = \"{}\"\n\
             username = \"{user}\"\npassword = {password}\nfrom = \"Example Ünïon <noreply@example.org>\"\n",
            ca_file.display()
        )
    }

    /// What a shim is told that may send through it.
    pub fn wanted(&self, tls: &str) -> Wanted {
        Wanted { email: Some(self.email(tls, USER, PASSWORD)), ..Wanted::default() }
    }

    /// From now on this is the password of `user`.
    pub fn set_password(&self, user: &str, password: &str) {
        let database = self.folder.path().join("postfix/etc/sasldb2");
        let mut tool = Command::new("/usr/sbin/saslpasswd2")
            .args(["-p", "-c", "-u", "localhost", user, "-f"])
            .arg(database)
            .stdin(Stdio::piped())
            .spawn()
            .expect("saslpasswd2 of sasl2-bin is needed (./tests/run installs it)");
        tool.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        assert!(tool.wait().unwrap().success());
    }

    /// The mails that have arrived for this address, as files.
    pub fn arrived(&self, address: &str) -> Vec<PathBuf> {
        let folder = self.folder.path().join("mail/new");
        let delivered_to = format!("\nDelivered-To: {address}\n");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| std::fs::read_to_string(file).unwrap().contains(&delivered_to)).collect()
    }

    /// The only mail for this address, as soon as postfix has put it into the mailbox.
    pub async fn mail(&self, address: &str) -> String {
        let files = self.until(|| Some(self.arrived(address)).filter(|files| !files.is_empty())).await;
        assert_eq!(files.len(), 1, "mails for {address}");
        std::fs::read_to_string(&files[0]).unwrap()
    }

    /// The log, as soon as `word` stands in it so often.
    pub async fn logged(&self, word: &str, times: usize) -> String {
        self.until(|| Some(self.log()).filter(|log| log.matches(word).count() >= times)).await
    }

    /// Postfix writes mails and log after it has answered; nobody tells when.
    async fn until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "waited in vain:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("maillog")).unwrap()
    }
}

impl Drop for Postfix {
    /// The folder says which it is, and goes with this value: whoever looks for it later finds nothing to stop.
    fn drop(&mut self) {
        drop(Command::new(PART).arg("down").arg(self.folder.path()).output());
    }
}

/// A mail as Python's `email` library reads it; see `tests/parts/mail.py`.
pub fn parsed(mail: &str) -> Value {
    let mut python = Command::new("/usr/bin/python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts/mail.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed (./tests/run installs it)");
    python.stdin.take().unwrap().write_all(mail.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "no mail to Python: {mail}");
    serde_json::from_slice(&output.stdout).unwrap()
}
