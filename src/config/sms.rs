//! How messages to phone numbers leave, as the operator decided.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use crate::config::Secret;

#[derive(Debug, Clone, Default)]
pub struct Sms {
    pub transport: SmsTransport,
    /// ISO 3166-1 alpha-2, upper case: whose numbers get messages; empty: every country's.
    pub countries: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub enum SmsTransport {
    /// No messages: no route handles phone numbers then.
    #[default]
    None,
    /// A log line that a message would have been sent; the message itself goes nowhere.
    Log,
    Twilio(Box<Twilio>),
    Http(Box<HttpGateway>),
}

/// The host that messages are handed to, and how patiently. No other host is ever spoken to.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub https: bool,
    /// A name or an IP address, IPv6 without its brackets.
    pub host: String,
    pub port: u16,
    /// A CA certificate to trust besides the system's, as a PEM file.
    pub ca_file: Option<PathBuf>,
    pub max_connections: usize,
    pub deadline: Duration,
}

/// [Twilio's Messages resource](https://www.twilio.com/docs/messaging/api/message-resource).
#[derive(Debug, Clone)]
pub struct Twilio {
    pub gateway: Gateway,
    /// What precedes `/2010-04-01`, without a slash at its end; usually empty.
    pub base_path: String,
    pub account: String,
    pub token: Secret,
    pub sender: TwilioSender,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TwilioSender {
    /// A number or a name.
    From(String),
    /// A messaging service, by its SID.
    MessagingService(String),
}

/// Any gateway that takes a message by one HTTP request. Path, header values and body are templates.
#[derive(Debug, Clone)]
pub struct HttpGateway {
    pub gateway: Gateway,
    pub method: GatewayMethod,
    /// Begins with `/`; its query, too, may be a template or hold a key of the account.
    pub path: Secret,
    pub headers: Vec<(HeaderName, Secret)>,
    /// `None`: the usual body of the content type.
    pub body: Option<Secret>,
    /// What templates know as `from`.
    pub from: Option<String>,
    pub signature: Option<Signature>,
    pub success: Success,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatewayMethod {
    Post,
    Put,
    /// Without a body.
    Get,
}

/// HMAC-SHA256 over the body, in this header.
#[derive(Debug, Clone)]
pub struct Signature {
    pub header: HeaderName,
    pub secret: Secret,
}

/// Which answers mean that the gateway has taken the message.
#[derive(Debug, Clone, Default)]
pub struct Success {
    /// Empty: any 2xx.
    pub statuses: Vec<u16>,
    pub answer: Option<SuccessAnswer>,
}

/// The answer is JSON in which `pointer` (RFC 6901) finds `value`.
#[derive(Debug, Clone)]
pub struct SuccessAnswer {
    pub pointer: String,
    pub value: String,
}

/// A gateway's URL: the host is written out, path and query may be a template.
#[derive(Debug, Clone)]
pub(crate) struct GatewayUrl {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: Secret,
}
