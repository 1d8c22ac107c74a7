//! File and environment → `RawConfig` → `Config`, or every fault at once. `Config` is complete: what exists is valid.

mod address;
mod branding;
mod check;
mod dump;
mod fault;
mod grammar;
mod kept;
mod named_file;
mod raw;
mod schema;
mod sms;
mod source;
mod store;
mod values;
mod written;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;

pub(crate) use crate::config::address::is_loopback;
pub use crate::config::branding::{Branding, Colour, Logo, Support};
pub(crate) use crate::config::dump::quoted;
pub(crate) use crate::config::fault::nearest;
pub use crate::config::fault::{Fault, Faults, Place, Wrong};
pub use crate::config::raw::{Key, keys};
pub use crate::config::schema::schema;
pub use crate::config::sms::{
    Gateway, GatewayMethod, HttpGateway, Signature, Sms, SmsTransport, Success, SuccessAnswer, Twilio, TwilioSender,
};
pub use crate::config::source::{Reading, Source};
pub use crate::config::store::{Redis, RedisServers, RedisUrl, Store};
pub(crate) use crate::config::values::is_mailbox;
pub use crate::config::written::Presence;
use crate::matrix::{Medium, Purpose};

/// Everything the operator decided, with defaults filled in and alternatives as enums.
#[derive(Debug, Clone)]
pub struct Config {
    pub server_name: String,
    pub public_base_url: PublicBaseUrl,
    pub state_dir: PathBuf,
    pub listen: Listen,
    pub shutdown: Shutdown,
    pub homeserver: Homeserver,
    pub identity: Identity,
    /// Networks whose `X-Forwarded-For` is believed and passed on.
    pub trusted_proxies: Vec<IpNet>,
    pub routes: Routes,
    pub session: SessionRules,
    pub store: Store,
    pub email: Email,
    pub sms: Sms,
    pub limits: Limits,
    pub wording: Wording,
    pub branding: Branding,
    pub log: Log,
    /// What is allowed but deserves a look, one line each in the form of a fault.
    pub warnings: Vec<String>,
    /// Where all of it can be read again.
    pub source: Source,
}

impl Config {
    /// Reads `file` (without one: the defaults) and lays the variables named `THREEPID_SHIM__SECTION__KEY` over it.
    pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, Faults> {
        Source::new(file, environment).read().config
    }

    /// What a file `threepid-shim.toml` in the working directory would give, with an empty environment.
    pub fn from_text(text: &str) -> Result<Self, Faults> {
        Source::of_text("threepid-shim.toml", text).read().config
    }
}

/// The configuration in force; a reload puts another in its place, and a request keeps the one it began with.
pub type Shared = Arc<ArcSwap<Config>>;

/// Where clients reach the shim: scheme, authority and perhaps a path, without a slash at the end.
#[derive(Debug, Clone)]
pub struct PublicBaseUrl(pub(crate) String);

impl PublicBaseUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `https://host[:port]`, as browsers send it in `Origin`.
    pub fn origin(&self) -> &str {
        let authority = self.0.find("://").map_or(0, |at| at + 3);
        let end = self.0.get(authority..).and_then(|rest| rest.find('/')).map_or(self.0.len(), |at| authority + at);
        self.0.get(..end).unwrap_or(&self.0)
    }
}

/// A place to listen: `127.0.0.1:8080` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Listen {
    pub clients: Vec<Endpoint>,
    pub identity: Vec<Endpoint>,
    pub admin: Vec<Endpoint>,
    pub tls: Option<TlsFiles>,
    /// HTTP/2 without TLS, to clients that begin with it.
    pub h2c: bool,
    /// Whether trusted proxies say before each connection of a client whom it comes from.
    pub proxy_protocol: bool,
}

#[derive(Debug, Clone)]
pub struct Shutdown {
    pub delay: Duration,
    pub grace: Duration,
}

#[derive(Debug, Clone)]
pub struct Homeserver {
    pub address: HomeserverAddress,
    pub connect_timeout: Duration,
    pub needs_shim: NeedsShim,
}

/// Where the homeserver listens, in clear text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HomeserverAddress {
    /// A name or an IP address, IPv6 without its brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// Whether the homeserver still demands `id_server`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeedsShim {
    Auto,
    Yes,
    No,
}

#[derive(Debug, Clone)]
pub struct Identity {
    /// Literally what the homeserver's `trusted_third_party_id_servers` lists.
    pub name: String,
    pub allowed_peers: Vec<IpNet>,
    /// Whether the homeserver may have addresses verified by itself, for no request that came to the client door.
    pub accept_unannounced: bool,
    pub tls: IdentityTls,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityTls {
    /// A CA and a certificate that the shim makes in `state_dir/tls`. What the homeserver has to trust is put into
    /// `ca_directory`, which others than the shim's user can read.
    Generated {
        ca_directory: PathBuf,
    },
    Files(TlsFiles),
}

/// What happens to one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteMode {
    Handle,
    Forward,
    /// Forwards, and counts what `Handle` would have done.
    Observe,
    Refuse,
}

/// What happens to requests that name another identity server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedIdServer {
    Forward,
    Replace,
    Reject,
}

/// What happens to `/account/3pid/add` (MSC2290).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account3pidAdd {
    Forward,
    /// Served on the old `/account/3pid`.
    Translate,
}

/// The table `[routes]`: read per request, replaced by a reload.
#[derive(Debug, Clone)]
pub struct Routes {
    pub register_email: RouteMode,
    pub register_msisdn: RouteMode,
    pub password_email: RouteMode,
    pub password_msisdn: RouteMode,
    pub account_3pid_email: RouteMode,
    pub account_3pid_msisdn: RouteMode,
    /// `Handle` or `Forward`.
    pub versions: RouteMode,
    pub named_id_server: NamedIdServer,
    /// With `NamedIdServer::Forward`: when not empty, other names get `M_SERVER_NOT_TRUSTED`.
    pub trusted_id_servers: Vec<String>,
    pub account_3pid_add: Account3pidAdd,
}

impl Routes {
    pub fn request_token(&self, purpose: Purpose, medium: Medium) -> RouteMode {
        match (purpose, medium) {
            (Purpose::Register, Medium::Email) => self.register_email,
            (Purpose::Register, Medium::Msisdn) => self.register_msisdn,
            (Purpose::Password, Medium::Email) => self.password_email,
            (Purpose::Password, Medium::Msisdn) => self.password_msisdn,
            (Purpose::Account3pid, Medium::Email) => self.account_3pid_email,
            (Purpose::Account3pid, Medium::Msisdn) => self.account_3pid_msisdn,
            // No client asks for it.
            (Purpose::Delegated, _) => RouteMode::Refuse,
        }
    }

    /// Whether `m.require_identity_server: false` is true: no requestToken is left to a homeserver that demands
    /// `id_server`.
    pub fn none_is_forwarded(&self) -> bool {
        let all = [
            self.register_email,
            self.register_msisdn,
            self.password_email,
            self.password_msisdn,
            self.account_3pid_email,
            self.account_3pid_msisdn,
        ];
        !all.iter().any(|mode| matches!(mode, RouteMode::Forward | RouteMode::Observe))
    }
}

#[derive(Debug, Clone)]
pub struct SessionRules {
    pub unvalidated_lifetime: Duration,
    pub validated_lifetime: Duration,
    /// Hosts that `next_link` may name, lower case; empty: any.
    pub next_link_hosts: Vec<String>,
    pub hide_existence: bool,
}

#[derive(Debug, Clone)]
pub struct Email {
    /// RFC 5322 mailbox: `Example <noreply@example.org>`.
    pub from: lettre::message::Mailbox,
    pub transport: EmailTransport,
}

#[derive(Debug, Clone)]
pub enum EmailTransport {
    Smtp(Smtp),
    /// One `.eml` a mail in this folder.
    File {
        directory: PathBuf,
    },
    /// A log line that a mail would have been sent; the mail itself goes nowhere.
    Log,
}

#[derive(Debug, Clone)]
pub struct Smtp {
    pub host: String,
    pub port: u16,
    pub tls: SmtpTls,
    pub login: Option<SmtpLogin>,
    /// A CA certificate to trust besides the system's, as a PEM file.
    pub ca_file: Option<PathBuf>,
    pub max_connections: usize,
    pub deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// STARTTLS or nothing.
    Required,
    /// TLS from the first byte.
    Implicit,
    None,
}

#[derive(Debug, Clone)]
pub struct SmtpLogin {
    pub username: String,
    pub password: Secret,
}

/// A secret of the operator's: read with `expose`, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) String);

impl Secret {
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(..)")
    }
}

/// `count` requests per `per`: `"20/10m"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

impl Rate {
    /// From one to the next.
    pub fn interval(self) -> Duration {
        self.per / self.count.max(1)
    }
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub request_token_per_ip: Rate,
    pub request_token_per_address: Rate,
    pub request_token_per_client_secret: Rate,
    /// Mails to everybody together: what the name of the mail server is worth.
    pub email_total: Rate,
    pub submit_token_per_ip: Rate,
    pub sms_per_number: Rate,
    pub sms_per_country: Rate,
    /// Messages of one day, whoever they go to: what the operator is ready to pay for.
    pub sms_per_day: u32,
    /// Open at once at one door, and of them from one address (IPv6: one /64).
    pub connections: usize,
    pub connections_per_peer: usize,
}

#[derive(Debug, Clone)]
pub struct Wording {
    pub default_language: String,
    /// Found in the operator's folder, by file name; each replaces the built-in one.
    pub templates: BTreeMap<String, Template>,
}

/// A template or a catalogue of the operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub path: PathBuf,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}
