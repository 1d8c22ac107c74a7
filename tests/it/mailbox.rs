//! A mail server in this process: takes mails, remembers everything said to it, and fails as its script says.

mod mail;
mod session;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use threepid_shim::config::{Secret, Smtp, SmtpLogin, SmtpTls};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

pub(crate) use mail::Mail;
use session::accept;
pub(crate) use session::certified;

/// Longer than any test takes; only a broken one waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a mailbox behaves. `first` faults befall one connection each, in order; `always` all connections after them.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    tls: SmtpTls,
    certificate: Certificate,
    login: Option<(&'static str, &'static str)>,
    mechanisms: &'static str,
    first: VecDeque<Fault>,
    always: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// For `localhost`, by the mailbox's own CA, which `Mailbox::smtp` trusts.
    Good,
    SelfSigned,
    WrongName,
    Expired,
}

/// A moment of the dialogue: before the server's reply to that command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Greeting,
    Ehlo,
    Starttls,
    Auth,
    MailFrom,
    Rcpt,
    Data,
    /// In the middle of the message: whatever is still on its way is thrown away.
    Message,
    /// After the final dot.
    Dot,
    Quit,
}

#[derive(Debug, Clone)]
pub(crate) struct Fault(At, What);

#[derive(Debug, Clone)]
enum What {
    Reply(String),
    Hang,
    Close,
    /// Waits for `Mailbox::release`.
    Hold,
    /// Leaves STARTTLS out of what EHLO offers.
    NoStarttls,
}

impl Fault {
    /// Says this instead. It may be several lines, and a refusal or more than was asked for.
    pub(crate) fn reply(at: At, said: &str) -> Self {
        Self(at, What::Reply(format!("{said}\r\n")))
    }

    pub(crate) fn hang(at: At) -> Self {
        Self(at, What::Hang)
    }

    pub(crate) fn close(at: At) -> Self {
        Self(at, What::Close)
    }

    pub(crate) fn hold(at: At) -> Self {
        Self(at, What::Hold)
    }

    pub(crate) fn no_starttls() -> Self {
        Self(At::Ehlo, What::NoStarttls)
    }
}

impl Script {
    pub(crate) fn clear() -> Self {
        let (certificate, mechanisms) = (Certificate::Good, "PLAIN LOGIN");
        Self { tls: SmtpTls::None, certificate, login: None, mechanisms, first: VecDeque::new(), always: None }
    }

    pub(crate) fn starttls() -> Self {
        Self { tls: SmtpTls::Required, ..Self::clear() }
    }

    pub(crate) fn implicit() -> Self {
        Self { tls: SmtpTls::Implicit, ..Self::clear() }
    }

    pub(crate) fn certificate(mut self, certificate: Certificate) -> Self {
        self.certificate = certificate;
        self
    }

    /// Takes mail only after this login, by any of `mechanisms`.
    pub(crate) fn login(mut self, username: &'static str, password: &'static str, mechanisms: &'static str) -> Self {
        (self.login, self.mechanisms) = (Some((username, password)), mechanisms);
        self
    }

    pub(crate) fn first(mut self, fault: Fault) -> Self {
        self.first.push_back(fault);
        self
    }

    pub(crate) fn always(mut self, fault: Fault) -> Self {
        self.always = Some(fault);
        self
    }
}

/// The running server; it stops when dropped.
pub(crate) struct Mailbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    folder: tempfile::TempDir,
}

struct Shared {
    script: Mutex<Script>,
    acceptor: TlsAcceptor,
    seen: Mutex<Seen>,
    changed: Notify,
    held: Semaphore,
}

#[derive(Default)]
struct Seen {
    commands: Vec<Command>,
    /// Every message whose final dot came, taken or not.
    messages: Vec<Mail>,
    taken: Vec<Mail>,
    waited_for: usize,
    connections: usize,
    open: usize,
    most_open: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) encrypted: bool,
    pub(crate) line: String,
}

impl Mailbox {
    pub(crate) async fn start(script: Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (acceptor, ca) = certified(script.certificate);
        std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            acceptor,
            seen: Mutex::default(),
            changed: Notify::new(),
            held: Semaphore::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, accepting, folder }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CA that signed the server's certificate, as PEM.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The configuration that fits: kind of TLS, CA and login.
    pub(crate) fn smtp(&self) -> Smtp {
        let script = self.shared.script.lock().unwrap();
        Smtp {
            host: "localhost".to_owned(),
            port: self.address.port(),
            tls: script.tls,
            login: script.login.map(|(username, password)| SmtpLogin {
                username: username.to_owned(),
                password: Secret::new(password.to_owned()),
            }),
            ca_file: Some(self.ca_file()),
            max_connections: 4,
            deadline: Duration::from_secs(10),
        }
    }

    /// Every mail taken so far.
    pub(crate) fn mails(&self) -> Vec<Mail> {
        self.seen(|seen| seen.taken.clone())
    }

    /// Every message that came whole, also those that were refused or never answered.
    pub(crate) fn messages(&self) -> Vec<Mail> {
        self.seen(|seen| seen.messages.clone())
    }

    pub(crate) fn commands(&self) -> Vec<Command> {
        self.seen(|seen| seen.commands.clone())
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen(|seen| seen.connections)
    }

    pub(crate) fn most_open(&self) -> usize {
        self.seen(|seen| seen.most_open)
    }

    /// Whether a login was ever tried where anybody can listen.
    pub(crate) fn heard_auth_in_clear(&self) -> bool {
        self.commands().iter().any(|it| !it.encrypted && it.line.to_ascii_uppercase().starts_with("AUTH"))
    }

    /// Closes the door and waits until it is closed.
    pub(crate) async fn stop(mut self) {
        self.accepting.abort();
        assert!((&mut self.accepting).await.is_err_and(|it| it.is_cancelled()));
    }

    /// The oldest mail that was not waited for yet.
    pub(crate) async fn wait_for_mail(&self) -> Mail {
        self.wait("a mail", |seen| {
            let mail = seen.taken.get(seen.waited_for).cloned();
            seen.waited_for += usize::from(mail.is_some());
            mail
        })
        .await
    }

    pub(crate) async fn wait_for_connections(&self, open: usize) {
        self.wait("connections", |seen| (seen.open >= open).then_some(())).await;
    }

    pub(crate) async fn wait_for_command(&self, begin: &str) {
        self.wait(begin, |seen| seen.commands.iter().any(|it| it.line.starts_with(begin)).then_some(())).await;
    }

    /// Lets `count` connections go on that `Fault::hold` holds.
    pub(crate) fn release(&self, count: usize) {
        self.shared.held.add_permits(count);
    }

    fn seen<T>(&self, read: impl FnOnce(&Seen) -> T) -> T {
        read(&self.shared.seen.lock().unwrap())
    }

    async fn wait<T>(&self, what: &str, mut ready: impl FnMut(&mut Seen) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = ready(&mut self.shared.seen.lock().unwrap()) {
                    return found;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("the mailbox never saw {what}"))
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
