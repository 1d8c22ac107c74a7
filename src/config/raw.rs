//! The table of keys: what is written where, what it takes, and what it is when nobody writes it. Everything else that
//! knows the keys (the faults' suggestions, the environment's names, the manual, the shipped example) follows from it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use lettre::message::Mailbox;

use crate::config::branding::{Colour, Support};
use crate::config::grammar::{
    BASE_URL, BRAND_NAME, COLOUR, COUNTRY, Count, ENDPOINT, FOOTER, Flag, GATEWAY_URL, Grammar, HOMESERVER, HOST,
    ID_SERVER_NAME, LANGUAGE, LINK_HOST, ListOf, MAILBOX, NETWORK, OneOf, PATH, POINTER, RATE, REDIS_URL, SECRET,
    SERVER_NAME, SUPPORT, Span, TEMPLATE, TEXT, TableOf,
};
use crate::config::sms::GatewayUrl;
use crate::config::written::{Given, Presence, Sheet};
use crate::config::{
    Account3pidAdd, Endpoint, GatewayMethod, HomeserverAddress, LogFormat, LogLevel, NamedIdServer, NeedsShim,
    PublicBaseUrl, Rate, RedisUrl, RouteMode, Secret, SmtpTls,
};

/// One key; displayed as its entry in the reference manual begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub name: &'static str,
    /// Type and bounds.
    pub takes: String,
    pub presence: Presence,
    /// What it takes, as a JSON schema.
    pub schema: serde_json::Value,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}   {}, ", self.name, self.takes)?;
        match self.presence {
            Presence::Required => f.write_str("required"),
            Presence::Optional => f.write_str("no default"),
            Presence::Default(toml) => write!(f, "default {toml}"),
        }
    }
}

macro_rules! presence {
    (required) => {
        Presence::Required
    };
    (optional) => {
        Presence::Optional
    };
    // A literal is spelled alike in Rust and in TOML.
    (default($toml:tt)) => {
        Presence::Default(stringify!($toml))
    };
}

macro_rules! keys {
    ($($field:ident: $value:ty = $name:literal, $grammar:expr, $presence:ident $(($default:tt))?;)*) => {
        /// What was written, key by key.
        #[derive(Debug)]
        pub(crate) struct RawConfig {
            $(pub(crate) $field: Given<$value>,)*
        }

        impl RawConfig {
            pub(crate) fn take(sheet: &mut Sheet) -> Self {
                Self { $($field: sheet.take($name, &$grammar, presence!($presence $(($default))?)),)* }
            }
        }

        pub(crate) const NAMES: &[&str] = &[$($name),*];

        /// Every key there is, in the order of the manual.
        pub fn keys() -> Vec<Key> {
            vec![$(Key {
                name: $name,
                takes: $grammar.takes(),
                presence: presence!($presence $(($default))?),
                schema: $grammar.schema(),
            }),*]
        }
    };
}

keys! {
    server_name: String = "server_name", SERVER_NAME, required;
    public_base_url: PublicBaseUrl = "public_base_url", BASE_URL, required;
    state_dir: PathBuf = "state_dir", PATH, default("/var/lib/threepid-shim");

    listen_clients: Vec<Endpoint> = "listen.clients", ListOf(ENDPOINT), default(["127.0.0.1:8080"]);
    listen_identity: Vec<Endpoint> = "listen.identity", ListOf(ENDPOINT), default(["127.0.0.1:8091"]);
    listen_admin: Vec<Endpoint> = "listen.admin", ListOf(ENDPOINT), default(["127.0.0.1:9091"]);
    listen_tls_certificate: PathBuf = "listen.tls.certificate", PATH, optional;
    listen_tls_private_key: PathBuf = "listen.tls.private_key", PATH, optional;
    listen_h2c: bool = "listen.h2c", Flag, default(false);
    listen_proxy_protocol: bool = "listen.proxy_protocol", Flag, default(false);

    shutdown_delay: Duration = "shutdown.delay", Span { least: ZERO, most: minutes(10) }, default("0s");
    shutdown_grace: Duration = "shutdown.grace", Span { least: seconds(1), most: hours(1) }, default("40s");

    homeserver_url: HomeserverAddress = "homeserver.url", HOMESERVER, default("http://127.0.0.1:8008");
    homeserver_connect_timeout: Duration =
        "homeserver.connect_timeout", Span { least: TENTH, most: minutes(1) }, default("5s");
    homeserver_needs_shim: NeedsShim = "homeserver.needs_shim", NEEDS_SHIM, default("auto");

    identity_name: String = "identity.name", ID_SERVER_NAME, default("localhost:8091");
    identity_allowed_peers: Vec<IpNet> =
        "identity.allowed_peers", ListOf(NETWORK), default(["127.0.0.0/8", "::1/128"]);
    identity_accept_unannounced: bool = "identity.accept_unannounced", Flag, default(false);
    identity_ca_directory: PathBuf = "identity.ca_directory", PATH, default("tls");
    identity_tls_certificate: PathBuf = "identity.tls.certificate", PATH, optional;
    identity_tls_private_key: PathBuf = "identity.tls.private_key", PATH, optional;

    trusted_proxies: Vec<IpNet> =
        "clients.trusted_proxies", ListOf(NETWORK), default(["127.0.0.0/8", "::1/128"]);

    register_email: RouteMode = "routes.register.email", ROUTE, default("handle");
    register_msisdn: RouteMode = "routes.register.msisdn", ROUTE, default("refuse");
    password_email: RouteMode = "routes.password.email", ROUTE, default("handle");
    password_msisdn: RouteMode = "routes.password.msisdn", ROUTE, default("refuse");
    account_3pid_email: RouteMode = "routes.account_3pid.email", ROUTE, default("handle");
    account_3pid_msisdn: RouteMode = "routes.account_3pid.msisdn", ROUTE, default("refuse");
    versions: RouteMode = "routes.versions", VERSIONS_ROUTE, default("handle");
    named_id_server: NamedIdServer = "routes.named_id_server", NAMED_ID_SERVER, default("forward");
    trusted_id_servers: Vec<String> = "routes.trusted_id_servers", ListOf(SERVER_NAME), default([]);
    account_3pid_add: Account3pidAdd = "routes.account_3pid_add", ACCOUNT_3PID_ADD, default("forward");

    unvalidated_lifetime: Duration =
        "session.unvalidated_lifetime", Span { least: seconds(1), most: days(7) }, default("1h");
    validated_lifetime: Duration =
        "session.validated_lifetime", Span { least: seconds(1), most: days(30) }, default("24h");
    next_link_hosts: Vec<String> = "session.next_link_hosts", ListOf(LINK_HOST), default([]);
    hide_existence: bool = "session.hide_existence", Flag, default(false);

    store_kind: StoreKind = "store.kind", STORE_KIND, default("memory");
    store_mode: StoreMode = "store.mode", STORE_MODE, default("single");
    store_url: RedisUrl = "store.url", REDIS_URL, optional;
    store_urls: Vec<RedisUrl> = "store.urls", ListOf(REDIS_URL), optional;
    store_master: String = "store.master", TEXT, optional;
    store_username: String = "store.username", TEXT, optional;
    store_password: Secret = "store.password", SECRET, optional;
    store_password_file: PathBuf = "store.password_file", PATH, optional;
    store_sentinel_password: Secret = "store.sentinel_password", SECRET, optional;
    store_sentinel_password_file: PathBuf = "store.sentinel_password_file", PATH, optional;
    store_ca_file: PathBuf = "store.ca_file", PATH, optional;

    email_transport: Transport = "email.transport", EMAIL_TRANSPORT, default("file");
    email_from: Mailbox = "email.from", MAILBOX, optional;
    email_directory: PathBuf = "email.directory", PATH, default("outbox");
    email_host: String = "email.host", HOST, optional;
    email_port: u16 = "email.port", Count { least: 1, most: u16::MAX }, optional;
    email_tls: SmtpTls = "email.tls", SMTP_TLS, default("required");
    email_username: String = "email.username", TEXT, optional;
    email_password: Secret = "email.password", SECRET, optional;
    email_password_file: PathBuf = "email.password_file", PATH, optional;
    email_ca_file: PathBuf = "email.ca_file", PATH, optional;
    email_max_connections: usize = "email.max_connections", Count { least: 1, most: 1000 }, default(4);
    email_deadline: Duration = "email.deadline", Span { least: TENTH, most: LONGEST_DELIVERY }, default("20s");
    email_allow_plaintext: bool = "email.allow_plaintext", Flag, default(false);

    sms_transport: Carrier = "sms.transport", SMS_TRANSPORT, default("none");
    sms_from: String = "sms.from", TEXT, optional;
    sms_countries: Vec<String> = "sms.countries", ListOf(COUNTRY), default([]);
    sms_account: String = "sms.account", TEXT, optional;
    sms_token: Secret = "sms.token", SECRET, optional;
    sms_token_file: PathBuf = "sms.token_file", PATH, optional;
    sms_base_url: GatewayUrl = "sms.base_url", GATEWAY_URL, default("https://api.twilio.com");
    sms_url: GatewayUrl = "sms.url", GATEWAY_URL, optional;
    sms_method: GatewayMethod = "sms.method", HTTP_METHOD, default("POST");
    sms_headers: BTreeMap<String, Secret> = "sms.headers", TableOf(SECRET), optional;
    sms_body: Secret = "sms.body", TEMPLATE, optional;
    sms_signature_header: String = "sms.signature_header", TEXT, optional;
    sms_signature_secret: Secret = "sms.signature_secret", SECRET, optional;
    sms_signature_secret_file: PathBuf = "sms.signature_secret_file", PATH, optional;
    sms_success_status: Vec<u16> =
        "sms.success_status", ListOf(Count { least: 200, most: 299 }), default([]);
    sms_success_pointer: String = "sms.success_pointer", POINTER, optional;
    sms_success_value: String = "sms.success_value", TEXT, optional;
    sms_ca_file: PathBuf = "sms.ca_file", PATH, optional;
    sms_max_connections: usize = "sms.max_connections", Count { least: 1, most: 1000 }, default(4);
    sms_deadline: Duration = "sms.deadline", Span { least: TENTH, most: LONGEST_DELIVERY }, default("10s");
    sms_allow_plaintext: bool = "sms.allow_plaintext", Flag, default(false);

    request_token_per_ip: Rate = "limits.request_token_per_ip", RATE, default("20/10m");
    request_token_per_address: Rate = "limits.request_token_per_address", RATE, default("5/1h");
    request_token_per_client_secret: Rate = "limits.request_token_per_client_secret", RATE, default("20/1h");
    email_total: Rate = "limits.email_total", RATE, default("5000/1h");
    submit_token_per_ip: Rate = "limits.submit_token_per_ip", RATE, default("60/10m");
    connections: usize = "limits.connections", Count { least: 1, most: 1_000_000 }, default(20000);
    connections_per_peer: usize = "limits.connections_per_peer", Count { least: 1, most: 1_000_000 }, default(1000);
    sms_per_number: Rate = "limits.sms_per_number", RATE, default("3/1h");
    sms_per_country: Rate = "limits.sms_per_country", RATE, default("100/1h");
    sms_per_day: u32 = "limits.sms_per_day", Count { least: 1, most: 1_000_000 }, default(500);

    default_language: String = "wording.default_language", LANGUAGE, default("en");
    wording_directory: PathBuf = "wording.directory", PATH, default("templates");

    branding_name: String = "branding.name", BRAND_NAME, optional;
    branding_logo: PathBuf = "branding.logo", PATH, optional;
    branding_colour: Colour = "branding.colour", COLOUR, optional;
    branding_support: Support = "branding.support", SUPPORT, optional;
    branding_footer: String = "branding.footer", FOOTER, optional;

    log_format: LogFormat = "log.format", LOG_FORMAT, default("text");
    log_level: LogLevel = "log.level", LOG_LEVEL, default("info");
}

/// `store.kind`, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    Memory,
    File,
    Redis,
}

/// `store.mode`, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreMode {
    Single,
    Sentinel,
    Cluster,
}

/// `email.transport`, before the keys that belong to it are known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Smtp,
    File,
    Log,
}

/// `sms.transport`, likewise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    None,
    Twilio,
    Http,
    Log,
}

const NEEDS_SHIM: OneOf<NeedsShim> =
    OneOf { words: &[("auto", NeedsShim::Auto), ("yes", NeedsShim::Yes), ("no", NeedsShim::No)] };
const ROUTE: OneOf<RouteMode> = OneOf {
    words: &[
        ("handle", RouteMode::Handle),
        ("forward", RouteMode::Forward),
        ("refuse", RouteMode::Refuse),
        ("observe", RouteMode::Observe),
    ],
};
const VERSIONS_ROUTE: OneOf<RouteMode> =
    OneOf { words: &[("handle", RouteMode::Handle), ("forward", RouteMode::Forward)] };
const ACCOUNT_3PID_ADD: OneOf<Account3pidAdd> =
    OneOf { words: &[("forward", Account3pidAdd::Forward), ("translate", Account3pidAdd::Translate)] };
const NAMED_ID_SERVER: OneOf<NamedIdServer> = OneOf {
    words: &[
        ("forward", NamedIdServer::Forward),
        ("replace", NamedIdServer::Replace),
        ("reject", NamedIdServer::Reject),
    ],
};
const STORE_KIND: OneOf<StoreKind> =
    OneOf { words: &[("memory", StoreKind::Memory), ("file", StoreKind::File), ("redis", StoreKind::Redis)] };
const STORE_MODE: OneOf<StoreMode> = OneOf {
    words: &[("single", StoreMode::Single), ("sentinel", StoreMode::Sentinel), ("cluster", StoreMode::Cluster)],
};
const EMAIL_TRANSPORT: OneOf<Transport> =
    OneOf { words: &[("smtp", Transport::Smtp), ("file", Transport::File), ("log", Transport::Log)] };
const SMTP_TLS: OneOf<SmtpTls> =
    OneOf { words: &[("required", SmtpTls::Required), ("implicit", SmtpTls::Implicit), ("none", SmtpTls::None)] };
const SMS_TRANSPORT: OneOf<Carrier> = OneOf {
    words: &[("none", Carrier::None), ("twilio", Carrier::Twilio), ("http", Carrier::Http), ("log", Carrier::Log)],
};
const HTTP_METHOD: OneOf<GatewayMethod> =
    OneOf { words: &[("POST", GatewayMethod::Post), ("PUT", GatewayMethod::Put), ("GET", GatewayMethod::Get)] };
const LOG_FORMAT: OneOf<LogFormat> = OneOf { words: &[("text", LogFormat::Text), ("json", LogFormat::Json)] };
const LOG_LEVEL: OneOf<LogLevel> = OneOf {
    words: &[
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ],
};

const ZERO: Duration = Duration::ZERO;
const TENTH: Duration = Duration::from_millis(100);
/// A homeserver waits for a minute.
const LONGEST_DELIVERY: Duration = seconds(50);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn minutes(count: u64) -> Duration {
    seconds(count * 60)
}

const fn hours(count: u64) -> Duration {
    minutes(count * 60)
}

const fn days(count: u64) -> Duration {
    hours(count * 24)
}
