//! A mail or message to a threepid: delivered, or why not. Says who failed and where, never to whom or with which link
//! or code.

mod course;
pub mod dial;
mod email;
mod sms;
mod smtp;

use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::config;
use crate::matrix::{Address, Medium, Sid, Timestamp};
use crate::telemetry::{Delivered, DeliveredBy, Metrics, RequestId, chain};
use crate::wording::MailText;

use course::Course;
use email::Mailer;
pub use email::eml;
use sms::Messenger;

/// The way out for mails and messages.
#[derive(Debug)]
pub struct Delivery {
    mailer: Mailer,
    messenger: Messenger,
    metrics: Metrics,
}

/// The way out in force; a mail that is on its way when a reload puts another in its place goes the old one.
pub type Shared = Arc<ArcSwap<Delivery>>;

/// One mail to one address.
#[derive(Debug, Clone)]
pub struct Mail {
    pub to: Address,
    pub text: MailText,
    pub sid: Sid,
    /// Of the client's call that asked for it; becomes part of the `Message-ID`.
    pub request_id: RequestId,
    pub now: Timestamp,
}

/// One message to one phone number. The same `sid`, `attempt` and `code` mean the same message: a gateway that knows
/// `Idempotency-Key` sends it once.
#[derive(Clone)]
pub struct Sms {
    /// The digits of E.164, without `+`.
    pub to: Address,
    /// One line, the code in it.
    pub text: String,
    pub code: String,
    pub sid: Sid,
    /// Of the client's call that asked for it.
    pub request_id: RequestId,
    /// The client's `send_attempt`.
    pub attempt: i64,
}

impl fmt::Debug for Sms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sms({}, ..)", self.sid.as_str())
    }
}

/// Where on its way a mail or a message was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading certificates and the sender at the start.
    Setup,
    Compose,
    /// Waiting until fewer than `max_connections` are open.
    Wait,
    Dns,
    Connect,
    Tls,
    Ehlo,
    Auth,
    MailFrom,
    /// The recipient was refused, by a mail server or by a gateway.
    Rcpt,
    Data,
    /// The goodbye, which fails nothing.
    Quit,
    /// A gateway has the request, or a part of it.
    Gateway,
    Deadline,
    Outbox,
}

impl Stage {
    const ALL: [Self; 15] = [
        Self::Setup,
        Self::Compose,
        Self::Wait,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Ehlo,
        Self::Auth,
        Self::MailFrom,
        Self::Rcpt,
        Self::Data,
        Self::Quit,
        Self::Gateway,
        Self::Deadline,
        Self::Outbox,
    ];

    /// Whether a delivery of this medium can fail there.
    fn fails(self, medium: Medium) -> bool {
        match self {
            Self::Quit => false,
            Self::Ehlo | Self::Auth | Self::MailFrom | Self::Data | Self::Outbox => medium == Medium::Email,
            Self::Gateway => medium == Medium::Msisdn,
            Self::Setup
            | Self::Compose
            | Self::Wait
            | Self::Dns
            | Self::Connect
            | Self::Tls
            | Self::Rcpt
            | Self::Deadline => true,
        }
    }

    /// The label in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Compose => "compose",
            Self::Wait => "wait",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Ehlo => "ehlo",
            Self::Auth => "auth",
            Self::MailFrom => "mail_from",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Quit => "quit",
            Self::Gateway => "gateway",
            Self::Deadline => "deadline",
            Self::Outbox => "outbox",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a mail or message was not handed over. No variant holds the address, the link or the code: `text` and the
/// gateway's `code` have been scrubbed of them.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error("the mail server refused at stage {stage}: {code} {text}")]
    Refused { stage: Stage, code: u16, text: String },
    #[error("the gateway did not take the message: status {status}, code {}", code.as_deref().unwrap_or("none"))]
    NotTaken { status: u16, code: Option<String>, recipient: bool },
    #[error("the server could not be reached at stage {stage}")]
    Unreachable { stage: Stage, source: io::Error },
    #[error("the server could not prove to be the one that is configured")]
    Untrusted { source: io::Error },
    #[error("the server cannot be used at stage {stage}: {why}")]
    Unfit { stage: Stage, why: &'static str },
    #[error("the server took longer than the deadline, at stage {during}")]
    Deadline { during: Stage },
    /// Not tried again, since that could deliver it twice.
    #[error("the server had everything and hung up without a word")]
    Unanswered { during: Stage, source: io::Error },
    #[error("the mail or message could not be written: {why}")]
    Compose { why: String },
    #[error("the outbox could not be written")]
    Outbox { source: io::Error },
    #[error("{what}: {why}")]
    Setup { what: String, why: String },
    /// Two or more, each of them `Setup`.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Self>),
}

impl DeliveryError {
    /// Where it failed.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Refused { stage, .. } | Self::Unreachable { stage, .. } | Self::Unfit { stage, .. } => *stage,
            Self::NotTaken { recipient: true, .. } => Stage::Rcpt,
            Self::NotTaken { .. } => Stage::Gateway,
            Self::Untrusted { .. } => Stage::Tls,
            Self::Deadline { .. } => Stage::Deadline,
            Self::Unanswered { during, .. } => *during,
            Self::Compose { .. } => Stage::Compose,
            Self::Outbox { .. } => Stage::Outbox,
            Self::Setup { .. } | Self::Several(_) => Stage::Setup,
        }
    }

    /// Whether nothing will ever be delivered to this address: the client's fault, not ours or the server's.
    pub fn refused_recipient(&self) -> bool {
        matches!(
            self,
            Self::Refused { stage: Stage::Rcpt, code: 500..=599, .. } | Self::NotTaken { recipient: true, .. }
        )
    }

    /// Whether another try may fare better and cannot deliver the mail twice.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Refused { code: 400..=499, .. })
    }

    /// One of them all, or none.
    fn all(mut errors: Vec<Self>) -> Option<Self> {
        if errors.len() > 1 { Some(Self::Several(errors)) } else { errors.pop() }
    }

    /// The keys that keep a start from making the way out, and why.
    pub fn setups(&self) -> Vec<(String, String)> {
        match self {
            Self::Several(errors) => errors.iter().flat_map(Self::setups).collect(),
            Self::Setup { what, why } => vec![(what.clone(), why.clone())],
            Self::Refused { .. }
            | Self::NotTaken { .. }
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Unfit { .. }
            | Self::Deadline { .. }
            | Self::Unanswered { .. }
            | Self::Compose { .. }
            | Self::Outbox { .. } => vec![("delivery".to_owned(), self.chain())],
        }
    }

    /// The error with its causes, for the log.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

impl Delivery {
    /// Reads the certificates to trust and tries the templates; opens no connection. `server_name` names us to the mail server.
    pub fn new(
        email: &config::Email,
        sms: &config::Sms,
        server_name: &str,
        metrics: Metrics,
    ) -> Result<Self, DeliveryError> {
        let (mailer, messenger) = match (Mailer::new(email, server_name), Messenger::new(sms, server_name)) {
            (Ok(mailer), Ok(messenger)) => (mailer, messenger),
            (Err(of_mail), Err(of_sms)) => return Err(DeliveryError::Several(vec![of_mail, of_sms])),
            (Err(one), Ok(_)) | (Ok(_), Err(one)) => return Err(one),
        };
        for medium in Medium::ALL {
            let failed = Stage::ALL.into_iter().filter(|stage| stage.fails(medium)).map(Stage::as_str);
            for outcome in failed.chain(["delivered"]) {
                metrics.delivered.get_or_create(&Delivered { medium: medium.as_str(), outcome }).inc_by(0);
            }
        }
        Ok(Self { mailer, messenger, metrics })
    }

    /// Hands a mail to the mail server. `Ok` means that the server has taken it.
    pub async fn mail(&self, mail: &Mail) -> Result<(), DeliveryError> {
        let began = Instant::now();
        let result = self.mailer.send(mail, &mut self.course(Medium::Email)).await;
        self.count(Medium::Email, began, result.as_ref().err());
        if let Err(error) = &result {
            let (request_id, sid, stage) = (&mail.request_id, mail.sid.as_str(), error.stage());
            tracing::warn!(%request_id, sid, %stage, error = error.chain(), "mail not handed over");
        }
        result
    }

    /// Hands a message to the gateway. `Ok` means that the gateway has taken it.
    pub async fn sms(&self, sms: &Sms) -> Result<(), DeliveryError> {
        let began = Instant::now();
        let result = self.messenger.send(sms, &mut self.course(Medium::Msisdn)).await;
        self.count(Medium::Msisdn, began, result.as_ref().err());
        if let Err(error) = &result {
            let (request_id, sid, stage) = (&sms.request_id, sms.sid.as_str(), error.stage());
            tracing::warn!(%request_id, sid, %stage, error = error.chain(), "message not handed over");
        }
        result
    }

    /// All but a mail: the mail server up to the end of the login, or the outbox's folder.
    pub async fn try_mail(&self) -> Result<(), DeliveryError> {
        self.mailer.try_out(&mut self.course(Medium::Email)).await
    }

    /// All but a message: a connection to the gateway, on which nothing is asked.
    pub async fn try_sms(&self) -> Result<(), DeliveryError> {
        self.messenger.try_out(&mut self.course(Medium::Msisdn)).await
    }

    fn course(&self, medium: Medium) -> Course {
        Course::new(medium, &self.metrics)
    }

    fn count(&self, medium: Medium, began: Instant, error: Option<&DeliveryError>) {
        let medium = medium.as_str();
        let took = began.elapsed();
        self.metrics.delivery_seconds.get_or_create(&DeliveredBy { medium }).observe(took.as_secs_f64());
        let outcome = error.map_or("delivered", |error| error.stage().as_str());
        self.metrics.delivered.get_or_create(&Delivered { medium, outcome }).inc();
        self.metrics.recent.delivered(medium, outcome, took);
    }
}

/// What a mail server said, fit for a log: servers quote the address, and filters quote links.
fn scrubbed(said: &str, address: &str) -> String {
    let printable: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    let local = address.split('@').next().unwrap_or(address);
    let words = printable.split_whitespace().map(|word| if is_secret(word, address, local) { "(..)" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

fn is_secret(word: &str, address: &str, local: &str) -> bool {
    let word = word.to_ascii_lowercase();
    let link = word.contains("://") || word.contains('=') || word.contains("%3d");
    let token = word.split(|c: char| !c.is_ascii_alphanumeric()).any(|run| run.len() >= 32);
    let bare = word.trim_matches(|c: char| "<>()[]{}\"',;:.".contains(c));
    link || token || word.contains(address) || word.contains('@') || bare == local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_said_is_logged_without_address_and_link() {
        let rows = [
            ("5.1.1 <Alice@Example.ORG>: User unknown", "5.1.1 (..) User unknown"),
            ("no such user alice, sorry", "no such user (..) sorry"),
            ("RCPT TO:<alice@example.org> refused", "RCPT (..) refused"),
            ("blocked: https://m.example.org/x?token=1", "blocked: (..)"),
            ("spam: token%3Dab", "spam: (..)"),
            (&format!("found {}", "0a".repeat(32)), "found (..)"),
            ("a\r\nb\u{1b}[31mc", "a b [31mc"),
            ("2.0.0 Ok: queued as 4Bxyz12345", "2.0.0 Ok: queued as 4Bxyz12345"),
        ];
        let mut ran = 0;
        for (said, logged) in rows {
            assert_eq!(scrubbed(said, "alice@example.org"), logged);
            ran += 1;
        }
        assert_eq!(ran, 8);
        assert!(scrubbed(&"é ".repeat(9999), "a@b").len() < 2000);
    }

    #[test]
    fn only_a_permanent_refusal_at_rcpt_is_the_recipients() {
        let refused = |stage, code| DeliveryError::Refused { stage, code, text: String::new() };
        assert!(refused(Stage::Rcpt, 550).refused_recipient());
        assert!(!refused(Stage::Rcpt, 450).refused_recipient());
        assert!(!refused(Stage::Data, 554).refused_recipient());
        assert!(!DeliveryError::Deadline { during: Stage::Rcpt }.refused_recipient());
    }

    #[test]
    fn a_number_that_a_gateway_refuses_is_the_clients_fault_and_a_refused_message_is_not() {
        let refused = |recipient| DeliveryError::NotTaken { status: 400, code: Some("21614".to_owned()), recipient };
        assert!(refused(true).refused_recipient() && refused(true).stage() == Stage::Rcpt);
        assert!(!refused(false).refused_recipient() && refused(false).stage() == Stage::Gateway);
    }

    #[test]
    fn nothing_whose_fate_is_unknown_is_tried_again() {
        let lost = || io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(DeliveryError::Unreachable { stage: Stage::Data, source: lost() }.is_passing());
        assert!(!DeliveryError::Unanswered { during: Stage::Data, source: lost() }.is_passing());
        assert!(!DeliveryError::Deadline { during: Stage::Data }.is_passing());
        assert!(!DeliveryError::Untrusted { source: lost() }.is_passing());
    }
}
