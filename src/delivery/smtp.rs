//! The dialogue with the mail server: one connection a mail, one deadline over all of it, and no byte from before TLS
//! is ever believed. lettre writes the commands; its own connections know no deadline and keep what was sent before TLS.

mod talk;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lettre::address::Address as LettreAddress;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::commands::{Auth, Data, Ehlo, Mail as MailFrom, Quit, Rcpt, Starttls};
use lettre::transport::smtp::extension::ClientId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::{DeliveryError, Mail, Stage, scrubbed};
use crate::config::{Smtp, SmtpTls};

use talk::{Reply, Talk, by};

/// The mail has been taken by then; a server that dawdles over its goodbye delays nobody longer than this.
const GOODBYE: Duration = Duration::from_millis(250);

/// One mail server, as configured.
pub(super) struct Server {
    smtp: Smtp,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    hello: ClientId,
    permits: Semaphore,
}

/// What is handed over: exactly one recipient.
pub(super) struct Letter<'a> {
    pub(super) from: &'a LettreAddress,
    pub(super) to: &'a LettreAddress,
    pub(super) bytes: &'a [u8],
    pub(super) mail: &'a Mail,
}

impl Server {
    pub(super) fn new(smtp: &Smtp, hello: &str) -> Result<Self, DeliveryError> {
        let tls = match smtp.tls {
            SmtpTls::None => None,
            SmtpTls::Required | SmtpTls::Implicit => Some(connector(smtp)?),
        };
        let permits = Semaphore::new(smtp.max_connections);
        Ok(Self { smtp: smtp.clone(), tls, hello: ClientId::Domain(hello.to_owned()), permits })
    }

    /// Hands the letter over within the deadline, with one more try when the first failed in passing. Returns what the
    /// server said when it took the letter.
    pub(super) async fn send(&self, letter: &Letter<'_>) -> Result<String, DeliveryError> {
        let until = Instant::now() + self.smtp.deadline;
        let permit = timeout_at(until, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(DeliveryError::Deadline { during: Stage::Wait }) };
        let error = match self.hand_over(letter, until).await {
            Err(error) if error.is_passing() => error,
            settled => return settled,
        };
        let (request_id, sid, stage) = (&letter.mail.request_id, letter.mail.sid.as_str(), error.stage());
        tracing::warn!(%request_id, sid, %stage, error = error.chain(), "mail not handed over; one more try");
        let again = Instant::now() + (self.smtp.deadline / 20).min(Duration::from_secs(1));
        if again >= until {
            return Err(error);
        }
        sleep_until(again).await;
        self.hand_over(letter, until).await
    }

    async fn hand_over(&self, letter: &Letter<'_>, until: Instant) -> Result<String, DeliveryError> {
        let tcp = self.connected(until).await?;
        let address = letter.mail.to.expose();
        match (&self.tls, self.smtp.tls) {
            (Some(tls), SmtpTls::Implicit) => {
                let mut talk = Talk::new(secured(tls, tcp, until).await?, until, address);
                talk.reply(Stage::Connect, 2).await?;
                self.converse(talk, letter).await
            }
            (Some(tls), SmtpTls::Required) => {
                let mut talk = Talk::new(tcp, until, address);
                talk.reply(Stage::Connect, 2).await?;
                let offers = talk.command(Stage::Ehlo, Ehlo::new(self.hello.clone()), 2).await?;
                if !offers.names("STARTTLS") {
                    return Err(DeliveryError::Unfit { stage: Stage::Tls, why: "it offers no STARTTLS" });
                }
                talk.command(Stage::Tls, Starttls, 2).await?;
                let tls = secured(tls, talk.into_silent()?, until).await?;
                self.converse(Talk::new(tls, until, address), letter).await
            }
            (None, _) | (_, SmtpTls::None) => {
                let mut talk = Talk::new(tcp, until, address);
                talk.reply(Stage::Connect, 2).await?;
                self.converse(talk, letter).await
            }
        }
    }

    /// From EHLO to QUIT, on a connection as private as it is going to be.
    async fn converse<S>(&self, mut talk: Talk<'_, S>, letter: &Letter<'_>) -> Result<String, DeliveryError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let result = self.transaction(&mut talk, letter).await;
        if matches!(result, Ok(_) | Err(DeliveryError::Refused { .. })) {
            // Taken is taken and refused is refused, whatever becomes of the goodbye.
            drop(timeout(GOODBYE, talk.command(Stage::Data, Quit, 2)).await);
        }
        result.map(|taken| scrubbed(&taken.text(), letter.mail.to.expose()))
    }

    async fn transaction<S>(&self, talk: &mut Talk<'_, S>, letter: &Letter<'_>) -> Result<Reply, DeliveryError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let offers = talk.command(Stage::Ehlo, Ehlo::new(self.hello.clone()), 2).await?;
        if let Some(login) = &self.smtp.login {
            let credentials = Credentials::new(login.username.clone(), login.password.expose().to_owned());
            authenticate(talk, &offers, &credentials).await?;
        }
        talk.command(Stage::MailFrom, MailFrom::new(Some(letter.from.clone()), vec![]), 2).await?;
        talk.command(Stage::Rcpt, Rcpt::new(letter.to.clone(), vec![]), 2).await?;
        talk.command(Stage::Data, Data, 3).await?;
        talk.message(letter.bytes).await
    }

    /// The first of the server's addresses that answers; one that is silent leaves time for the others.
    async fn connected(&self, until: Instant) -> Result<TcpStream, DeliveryError> {
        let host = (self.smtp.host.as_str(), self.smtp.port);
        let addresses: Vec<_> = by(until, Stage::Dns, lookup_host(host)).await?.collect();
        let mut last = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        for (left, address) in (1..=addresses.len()).rev().zip(addresses) {
            let patience = until.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
            last = match timeout(patience, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => stream.set_nodelay(true).map(|()| stream),
                Ok(Err(error)) => Err(error),
                Err(_) if left == 1 => return Err(DeliveryError::Deadline { during: Stage::Connect }),
                Err(elapsed) => Err(elapsed.into()),
            };
            if last.is_ok() {
                break;
            }
        }
        last.map_err(|source| DeliveryError::Unreachable { stage: Stage::Connect, source })
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({}:{})", self.smtp.host, self.smtp.port)
    }
}

/// PLAIN before LOGIN. What LOGIN's prompts say is not looked at: every server words them in its own way.
async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    talk: &mut Talk<'_, S>,
    offers: &Reply,
    credentials: &Credentials,
) -> Result<(), DeliveryError> {
    let unfit = |why| DeliveryError::Unfit { stage: Stage::Auth, why };
    let auth = |mechanism, prompt: Option<&str>| {
        let auth = Auth::new(mechanism, credentials.clone(), prompt.map(str::to_owned));
        auth.map_err(|_unprintable| unfit("the credentials cannot be written"))
    };
    if offers.names_mechanism("PLAIN") {
        talk.command(Stage::Auth, auth(Mechanism::Plain, None)?, 2).await?;
    } else if offers.names_mechanism("LOGIN") {
        talk.command(Stage::Auth, auth(Mechanism::Login, None)?, 3).await?;
        talk.command(Stage::Auth, auth(Mechanism::Login, Some("Username:"))?, 3).await?;
        talk.command(Stage::Auth, auth(Mechanism::Login, Some("Password:"))?, 2).await?;
    } else {
        return Err(unfit("it offers neither AUTH PLAIN nor AUTH LOGIN"));
    }
    Ok(())
}

type Secured = tokio_rustls::client::TlsStream<TcpStream>;

async fn secured(
    (connector, name): &(TlsConnector, ServerName<'static>),
    tcp: TcpStream,
    until: Instant,
) -> Result<Secured, DeliveryError> {
    let secured = by(until, Stage::Tls, connector.connect(name.clone(), tcp)).await;
    match secured {
        Err(DeliveryError::Unreachable { source, .. }) if is_broken_promise(&source) => {
            Err(DeliveryError::Untrusted { source })
        }
        settled => settled,
    }
}

/// Whether TLS itself failed, a certificate say, and not the connection below it.
fn is_broken_promise(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

/// TLS 1.2 or 1.3, the server's name and chain verified against the system's roots and `ca_file` (CVE-2023-38686).
fn connector(smtp: &Smtp) -> Result<(TlsConnector, ServerName<'static>), DeliveryError> {
    let fault = |what: &str, why: String| DeliveryError::Setup { what: what.to_owned(), why };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &smtp.ca_file {
        let why = |error: &dyn std::error::Error| fault("email.ca_file", format!("{}: {error}", file.display()));
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| why(&error))? {
            let certificate = certificate.map_err(|error| why(&error))?;
            roots.add(certificate).map_err(|error| why(&error))?;
        }
        if roots.len() == before {
            return Err(fault("email.ca_file", format!("{}: holds no certificate", file.display())));
        }
    }
    if roots.is_empty() {
        return Err(fault("email.ca_file", "the system has no CA certificates; name a file".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| fault("TLS", error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(smtp.host.clone()).map_err(|error| fault("email.host", error.to_string()))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}
