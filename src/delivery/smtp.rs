//! The dialogue with the mail server: one connection a mail, one deadline over all of it, and no byte from before TLS
//! is ever believed. lettre writes the commands; its own connections know no deadline and keep what was sent before TLS.

mod talk;

use std::time::Duration;

use lettre::address::Address as LettreAddress;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::commands::{Auth, Data, Ehlo, Mail as MailFrom, Quit, Rcpt, Starttls};
use lettre::transport::smtp::extension::ClientId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::course::Course;
use super::dial::Tls;
use super::{DeliveryError, Mail, Stage, scrubbed};
use crate::config::{Smtp, SmtpTls};

use talk::{Reply, Talk};

/// The mail has been taken by then; a server that dawdles over its goodbye delays nobody longer than this.
const GOODBYE: Duration = Duration::from_millis(250);

/// One mail server, as configured.
pub(super) struct Server {
    smtp: Smtp,
    tls: Option<Tls>,
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
            SmtpTls::Required | SmtpTls::Implicit => Some(Tls::new(&smtp.host, smtp.ca_file.as_deref(), "email", &[])?),
        };
        let permits = Semaphore::new(smtp.max_connections);
        Ok(Self { smtp: smtp.clone(), tls, hello: ClientId::Domain(hello.to_owned()), permits })
    }

    /// Hands the letter over within the deadline, with one more try when the first failed in passing. Returns what the
    /// server said when it took the letter.
    pub(super) async fn send(&self, letter: &Letter<'_>, course: &mut Course) -> Result<String, DeliveryError> {
        let until = Instant::now() + self.smtp.deadline;
        course.enter(Stage::Wait);
        let permit = timeout_at(until, self.permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(DeliveryError::Deadline { during: Stage::Wait }) };
        let error = match self.hand_over(Some(letter), until, course).await {
            Err(error) if error.is_passing() => error,
            settled => return settled,
        };
        let (request_id, sid, stage) = (&letter.mail.request_id, letter.mail.sid.as_str(), error.stage());
        tracing::warn!(%request_id, sid, %stage, error = error.chain(), "mail not handed over; one more try");
        let again = Instant::now() + (self.smtp.deadline / 20).min(Duration::from_secs(1));
        if again >= until {
            return Err(error);
        }
        course.pause();
        sleep_until(again).await;
        self.hand_over(Some(letter), until, course).await
    }

    /// The whole dialogue up to the end of the login, and no mail.
    pub(super) async fn log_in(&self, course: &mut Course) -> Result<(), DeliveryError> {
        self.hand_over(None, Instant::now() + self.smtp.deadline, course).await.map(drop)
    }

    /// Without a letter the dialogue ends behind the login.
    async fn hand_over(
        &self,
        letter: Option<&Letter<'_>>,
        until: Instant,
        course: &mut Course,
    ) -> Result<String, DeliveryError> {
        let tcp = course.connect(&self.smtp.host, self.smtp.port, until).await?;
        let address = recipient(letter);
        match (&self.tls, self.smtp.tls) {
            (Some(tls), SmtpTls::Implicit) => {
                let tls = course.secure(tls, tcp, until).await?;
                let mut talk = Talk::new(tls, until, address, course);
                talk.reply(Stage::Connect, 2).await?;
                self.converse(talk, letter).await
            }
            (Some(tls), SmtpTls::Required) => {
                let mut talk = Talk::new(tcp, until, address, course);
                talk.reply(Stage::Connect, 2).await?;
                let offers = talk.command(Stage::Ehlo, Ehlo::new(self.hello.clone()), 2).await?;
                if !offers.names("STARTTLS") {
                    return Err(DeliveryError::Unfit { stage: Stage::Tls, why: "it offers no STARTTLS" });
                }
                talk.command(Stage::Tls, Starttls, 2).await?;
                let tcp = talk.into_silent()?;
                let tls = course.secure(tls, tcp, until).await?;
                self.converse(Talk::new(tls, until, address, course), letter).await
            }
            (None, _) | (_, SmtpTls::None) => {
                let mut talk = Talk::new(tcp, until, address, course);
                talk.reply(Stage::Connect, 2).await?;
                self.converse(talk, letter).await
            }
        }
    }

    /// From EHLO to QUIT, on a connection as private as it is going to be.
    async fn converse<S>(&self, mut talk: Talk<'_, S>, letter: Option<&Letter<'_>>) -> Result<String, DeliveryError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let result = self.transaction(&mut talk, letter).await;
        if matches!(result, Ok(_) | Err(DeliveryError::Refused { .. })) {
            // Taken is taken and refused is refused, whatever becomes of the goodbye.
            drop(timeout(GOODBYE, talk.command(Stage::Quit, Quit, 2)).await);
        }
        result.map(|taken| scrubbed(&taken.text(), recipient(letter)))
    }

    async fn transaction<S>(&self, talk: &mut Talk<'_, S>, letter: Option<&Letter<'_>>) -> Result<Reply, DeliveryError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let offers = talk.command(Stage::Ehlo, Ehlo::new(self.hello.clone()), 2).await?;
        if let Some(login) = &self.smtp.login {
            let credentials = Credentials::new(login.username.clone(), login.password.expose().to_owned());
            authenticate(talk, &offers, &credentials).await?;
        }
        let Some(letter) = letter else { return Ok(offers) };
        talk.command(Stage::MailFrom, MailFrom::new(Some(letter.from.clone()), vec![]), 2).await?;
        talk.command(Stage::Rcpt, Rcpt::new(letter.to.clone(), vec![]), 2).await?;
        talk.command(Stage::Data, Data, 3).await?;
        talk.message(letter.bytes).await
    }
}

/// What is scrubbed out of the server's words.
fn recipient<'a>(letter: Option<&Letter<'a>>) -> &'a str {
    letter.map_or("nobody@localhost", |letter| letter.mail.to.expose())
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
