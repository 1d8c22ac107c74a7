//! The mailbox's side of one connection, and where it goes wrong.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use threepid_shim::config::SmtpTls;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{At, Certificate, Command, Fault, Mail, Seen, Shared, What};

/// TLS with a fresh certificate, and the CA it should have been signed by.
pub(crate) fn certified(kind: Certificate) -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let name = if kind == Certificate::WrongName { "elsewhere.example" } else { "localhost" };
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if kind == Certificate::Expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let leaf = match kind {
        Certificate::SelfSigned => params.self_signed(&key).unwrap(),
        Certificate::Good | Certificate::WrongName | Certificate::Expired => params.signed_by(&key, &issuer).unwrap(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}

pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        shared.note(|seen| {
            seen.connections += 1;
            seen.open += 1;
            seen.most_open = seen.most_open.max(seen.open);
        });
        connections.spawn(async move {
            serve(stream, &shared).await;
            shared.note(|seen| seen.open -= 1);
        });
    }
}

/// `None` wherever the connection is over: nobody here minds how.
async fn serve(stream: TcpStream, shared: &Shared) -> Option<()> {
    let (tls, fault) = {
        let mut script = shared.script.lock().unwrap();
        let fault = script.first.pop_front().or_else(|| script.always.clone());
        (script.tls, fault)
    };
    if tls == SmtpTls::Implicit {
        let stream = shared.acceptor.accept(stream).await.ok()?;
        Session { stream: BufReader::new(stream), shared, fault, encrypted: true }.run(true).await?;
        return Some(());
    }
    let session = Session { stream: BufReader::new(stream), shared, fault: fault.clone(), encrypted: false };
    let stream = session.run(true).await?;
    let stream = shared.acceptor.accept(stream).await.ok()?;
    Session { stream: BufReader::new(stream), shared, fault, encrypted: true }.run(false).await?;
    Some(())
}

impl Shared {
    fn note(&self, write: impl FnOnce(&mut Seen)) {
        write(&mut self.seen.lock().unwrap());
        self.changed.notify_waiters();
    }
}

struct Session<'a, S> {
    stream: BufReader<S>,
    shared: &'a Shared,
    fault: Option<Fault>,
    encrypted: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<'_, S> {
    /// The bare stream when it is time for TLS.
    async fn run(mut self, greet: bool) -> Option<S> {
        let (login, mechanisms, tls) = {
            let script = self.shared.script.lock().unwrap();
            (script.login, script.mechanisms, script.tls)
        };
        let mut logged_in = login.is_none();
        let (mut from, mut to) = (None, Vec::new());
        if greet {
            self.say(At::Greeting, "220 mailbox ESMTP").await?;
        }
        loop {
            let line = self.hear().await?;
            let upper = line.to_ascii_uppercase();
            match upper.split([' ', ':']).next().unwrap() {
                "EHLO" => {
                    let tls = tls == SmtpTls::Required && !self.encrypted && !self.hides_starttls();
                    let starttls = if tls { "250-STARTTLS\r\n" } else { "" };
                    let auth = if login.is_some() { format!("250-AUTH {mechanisms}\r\n") } else { String::new() };
                    self.say(At::Ehlo, &format!("250-mailbox\r\n{starttls}{auth}250 8BITMIME")).await?;
                }
                "STARTTLS" if tls == SmtpTls::Required && !self.encrypted => {
                    self.say(At::Starttls, "220 ready").await?;
                    return Some(self.stream.into_inner());
                }
                "AUTH" => logged_in |= self.authenticate(&line, login).await?,
                "MAIL" if !logged_in => self.write("530 5.7.0 log in first\r\n").await?,
                "MAIL" => {
                    from = angled(&line);
                    to.clear();
                    self.say(At::MailFrom, "250 2.1.0 ok").await?;
                }
                "RCPT" if from.is_some() => {
                    if self.say(At::Rcpt, "250 2.1.5 ok").await? {
                        to.extend(angled(&line));
                    }
                }
                "DATA" if !to.is_empty() => {
                    if self.say(At::Data, "354 go on").await? {
                        let mail = Mail { from: from.take()?, to: std::mem::take(&mut to), raw: self.message().await? };
                        self.shared.note(|seen| seen.messages.push(mail.clone()));
                        // Kept before it is answered: whoever has read the answer may look for the mail at once.
                        if self.is_well(At::Dot) {
                            self.shared.note(|seen| seen.taken.push(mail));
                        }
                        self.say(At::Dot, "250 2.0.0 queued as 4711").await?;
                    }
                }
                "QUIT" => {
                    self.say(At::Quit, "221 bye").await?;
                    return None;
                }
                _ => self.write("503 5.5.1 not now\r\n").await?,
            }
        }
    }

    async fn authenticate(&mut self, line: &str, login: Option<(&str, &str)>) -> Option<bool> {
        let words: Vec<&str> = line.split(' ').collect();
        let decoded = |word: &str| String::from_utf8(STANDARD.decode(word).unwrap()).unwrap();
        let given = match words.as_slice() {
            [_, "PLAIN", initial] => decoded(initial).trim_start_matches('\0').replace('\0', " "),
            [_, "LOGIN"] => {
                self.write(&format!("334 {}\r\n", STANDARD.encode("Who are you?"))).await?;
                let username = decoded(&self.hear().await?);
                self.write(&format!("334 {}\r\n", STANDARD.encode("Prove it:"))).await?;
                format!("{username} {}", decoded(&self.hear().await?))
            }
            _ => String::new(),
        };
        let good = login.is_some_and(|(username, password)| given == format!("{username} {password}"));
        self.say(At::Auth, if good { "235 2.7.0 welcome" } else { "535 5.7.8 bad credentials" }).await?;
        Some(good)
    }

    /// Says what is usual, or does what the fault wants. True when the usual was said.
    async fn say(&mut self, at: At, usual: &str) -> Option<bool> {
        let Some(Fault(_, what)) = self.fault.clone().filter(|Fault(when, _)| *when == at) else {
            self.write(&format!("{usual}\r\n")).await?;
            return Some(true);
        };
        match what {
            What::Reply(said) => {
                self.write(&said).await?;
                Some(false)
            }
            What::Hang => std::future::pending().await,
            What::Close => None,
            What::Hold => {
                self.shared.held.acquire().await.unwrap().forget();
                self.write(&format!("{usual}\r\n")).await?;
                Some(true)
            }
            What::NoStarttls => {
                self.write(&format!("{usual}\r\n")).await?;
                Some(true)
            }
        }
    }

    fn hides_starttls(&self) -> bool {
        matches!(self.fault, Some(Fault(_, What::NoStarttls)))
    }

    /// Whether a message's end gets its usual answer, perhaps late.
    fn is_well(&self, at: At) -> bool {
        !matches!(&self.fault, Some(Fault(when, what)) if *when == at && !matches!(what, What::Hold))
    }

    async fn message(&mut self) -> Option<String> {
        let mut message = String::new();
        loop {
            let line = self.line().await?;
            if line == ".\r\n" {
                return Some(message);
            }
            message.push_str(line.strip_prefix('.').unwrap_or(&line));
            if matches!(self.fault, Some(Fault(At::Message, _))) {
                return None;
            }
        }
    }

    async fn hear(&mut self) -> Option<String> {
        let line = self.line().await?.trim_end().to_owned();
        let command = Command { encrypted: self.encrypted, line: line.clone() };
        self.shared.note(|seen| seen.commands.push(command));
        Some(line)
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await.ok()?;
        (read > 0).then_some(line)
    }

    async fn write(&mut self, said: &str) -> Option<()> {
        self.stream.write_all(said.as_bytes()).await.ok()?;
        self.stream.flush().await.ok()
    }
}

fn angled(line: &str) -> Option<String> {
    let (_, rest) = line.split_once('<')?;
    rest.rsplit_once('>').map(|(address, _)| address.to_owned())
}
