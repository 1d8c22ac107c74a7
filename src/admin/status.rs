//! How the shim and its neighbours do, gathered for the operator: nothing of it is of a person.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Admin;
use crate::config::{self, Account3pidAdd, Config, EmailTransport, HomeserverAddress, NamedIdServer, RouteMode};
use crate::config::{RedisServers, RedisUrl, SmsTransport, SmtpTls};
use crate::matrix::Timestamp;
use crate::reload::EXPIRES_SOON;
use crate::telemetry::{self, Failure, Hour, Metrics, Refused, TurnedAway, Use, Uses};

/// What GET `/status` answers, and the page shows. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) state: State,
    /// What to look at, one sentence each; empty when all is well.
    pub(super) attention: Vec<String>,
    pub(super) now: Timestamp,
    pub(super) started: Timestamp,
    pub(super) version: &'static str,
    pub(super) server_name: String,
    pub(super) draining: bool,
    pub(super) homeserver: Homeserver,
    pub(super) trust: Trust,
    pub(super) store: Neighbour,
    pub(super) email: Neighbour,
    pub(super) sms: Neighbour,
    pub(super) config: Configuration,
    pub(super) doors: Vec<Door>,
    /// Connections closed as they came, by the key in `[limits]` that was reached.
    pub(super) turned_away: BTreeMap<&'static str, u64>,
    pub(super) panics: u64,
    /// By their keys in `[routes]`.
    pub(super) routes: BTreeMap<&'static str, &'static str>,
    pub(super) last_hour: Hour,
    /// The newest first.
    pub(super) refusals: Vec<Refusal>,
}

#[derive(Debug, Serialize)]
pub(super) struct Refusal {
    /// In words.
    reason: &'static str,
    #[serde(flatten)]
    refused: Refused,
}

/// From good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Good,
    /// Not wanted, or not used since the start: nothing is known of it.
    Unknown,
    Warning,
    Bad,
}

/// Somebody the shim depends on, as of the last use.
#[derive(Debug, Serialize)]
pub(super) struct Neighbour {
    pub(super) state: State,
    /// How it does, in a few words.
    pub(super) says: String,
    /// Where it is, or what it is.
    pub(super) at: String,
    #[serde(flatten)]
    pub(super) last: Use,
}

#[derive(Debug, Serialize)]
pub(super) struct Homeserver {
    #[serde(flatten)]
    pub(super) neighbour: Neighbour,
    pub(super) software: Option<String>,
    pub(super) needs_shim: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Trust {
    #[serde(flatten)]
    pub(super) neighbour: Neighbour,
    /// When somebody came to the identity door whom `identity.allowed_peers` does not list.
    pub(super) stranger: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
pub(super) struct Configuration {
    pub(super) state: State,
    pub(super) says: String,
    /// When it was last read again with success.
    pub(super) reloaded: Option<Timestamp>,
    /// Of the last reload; what is in force is older then.
    pub(super) faults: usize,
    pub(super) warnings: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Door {
    pub(super) name: &'static str,
    pub(super) addresses: Vec<String>,
    pub(super) tls: bool,
    /// When its certificate ends, if that can be read in it.
    pub(super) certificate_ends: Option<Timestamp>,
    pub(super) open_connections: i64,
}

impl Status {
    pub(super) fn of(admin: &Admin) -> Self {
        let (metrics, config) = (&admin.metrics, admin.config.load_full());
        let recent = &metrics.recent;
        metrics.sample();
        let (uses, now, draining) = (recent.uses(), recent.now(), admin.drain.is_draining());
        let faults = admin.last_reload.faults();
        let mut status = Self {
            state: State::Good,
            attention: Vec::new(),
            now,
            started: recent.started(),
            version: env!("CARGO_PKG_VERSION"),
            server_name: config.server_name.clone(),
            draining,
            homeserver: homeserver(&config, &uses, admin.needs_shim.get()),
            trust: trust(&config, &uses, admin.needs_shim.get()),
            store: store(&config, uses.store),
            email: email(&config, uses.email),
            sms: sms(&config, uses.sms),
            config: configuration(&config, uses.config.worked, faults),
            doors: admin.places.iter().map(|place| door(place, metrics)).collect(),
            turned_away: ["connections", "connections_per_peer"]
                .map(|limit| (limit, metrics.turned_away.get_or_create(&TurnedAway { limit }).get()))
                .into(),
            panics: metrics.panics.get(),
            routes: routes(&config.routes),
            last_hour: recent.hour(),
            refusals: recent
                .refusals()
                .into_iter()
                .map(|refused| Refusal { reason: reason(&refused), refused })
                .collect(),
        };
        status.judge();
        status
    }

    /// What of all this wants somebody to look.
    fn judge(&mut self) {
        let parts = [
            ("Homeserver", &self.homeserver.neighbour),
            ("Trust", &self.trust.neighbour),
            ("Store", &self.store),
            ("Mail", &self.email),
            ("SMS", &self.sms),
        ];
        let mut attention: Vec<_> = parts
            .into_iter()
            .filter(|(_, part)| part.state >= State::Warning)
            .map(|(name, part)| (part.state, format!("{name}: {}", part.says)))
            .collect();
        if self.config.state >= State::Warning {
            attention.push((self.config.state, format!("Configuration: {}", self.config.says)));
        }
        for door in &self.doors {
            let Some(left) = door.certificate_ends.map(|ends| self.now.until(ends)) else { continue };
            if left.is_zero() {
                attention.push((State::Bad, format!("Certificate of the {} door: it has expired", door.name)));
            } else if left <= EXPIRES_SOON {
                attention.push((State::Warning, format!("Certificate of the {} door: it expires soon", door.name)));
            }
        }
        if self.panics > 0 {
            attention
                .push((State::Warning, format!("Connections that ended by a panic: {}, see the log", self.panics)));
        }
        if self.draining {
            attention.push((State::Warning, "Draining: no new connections are taken".to_owned()));
        }
        self.state = attention.iter().map(|(state, _)| *state).max().unwrap_or(State::Good);
        self.attention = attention.into_iter().map(|(_, says)| says).collect();
    }
}

impl Neighbour {
    /// `fails` says what to make of a failure.
    fn as_used(at: String, last: Use, works: &str, fails: impl FnOnce(&Failure) -> (State, String)) -> Self {
        let (state, says) = match &last.failed {
            Some(failure) if last.failing_since.is_some() => fails(failure),
            Some(_) | None if last.worked.is_some() => (State::Good, works.to_owned()),
            Some(_) | None => (State::Unknown, "not used since the start".to_owned()),
        };
        Self { state, says, at, last }
    }

    fn unwanted(at: &str, says: &str, last: Use) -> Self {
        Self { state: State::Unknown, says: says.to_owned(), at: at.to_owned(), last }
    }
}

fn door(place: &super::Place, metrics: &Metrics) -> Door {
    let ends = metrics.certificate_expiry.get(&telemetry::Door { door: place.name }).map(|ends| ends.get());
    let millis = |seconds: i64| u64::try_from(seconds).ok().map(|seconds| seconds.saturating_mul(1000));
    Door {
        name: place.name,
        addresses: place.addresses.clone(),
        tls: place.tls,
        certificate_ends: ends.and_then(millis).map(Timestamp::from_millis),
        open_connections: place.open.get(),
    }
}

fn homeserver(config: &Config, uses: &Uses, needs_shim: bool) -> Homeserver {
    let at = match &config.homeserver.address {
        HomeserverAddress::Tcp { host, port } => joined(host, Some(*port)),
        HomeserverAddress::Unix(socket) => format!("unix:{}", socket.display()),
    };
    let works = if needs_shim { "answers" } else { "answers, and needs no shim: every route is handed over to it" };
    let fails = |_: &Failure| (State::Bad, "does not answer GET /_matrix/client/versions".to_owned());
    let neighbour = Neighbour::as_used(at, uses.homeserver.clone(), works, fails);
    Homeserver { neighbour, software: uses.software.clone(), needs_shim }
}

fn trust(config: &Config, uses: &Uses, needs_shim: bool) -> Trust {
    let (name, last) = (&config.identity.name, uses.trust.clone());
    let mut neighbour = if !needs_shim && !config.identity.accept_unannounced {
        Neighbour::unwanted(name, "not needed: the homeserver verifies by itself", last)
    } else {
        Neighbour::as_used(name.clone(), last, "the homeserver calls back", |failure| {
            let says = match failure.what {
                "not_trusted" => "the homeserver does not trust this name: trusted_third_party_id_servers",
                _ => "the homeserver failed without calling back: threepid-shim doctor says why",
            };
            (State::Bad, says.to_owned())
        })
    };
    // Perhaps it is the homeserver that is taken for a stranger.
    if neighbour.state < State::Warning && uses.stranger > uses.trust.worked {
        neighbour.state = State::Warning;
        neighbour.says = String::from("somebody came whom identity.allowed_peers does not list, see the log");
    }
    Trust { neighbour, stranger: uses.stranger }
}

fn store(config: &Config, last: Use) -> Neighbour {
    let all = |servers: &[RedisUrl]| {
        let servers = servers.iter().map(|server| joined(&server.host, server.port));
        servers.collect::<Vec<_>>().join(", ")
    };
    let at = match &config.store {
        config::Store::Memory => "memory, gone with this process".to_owned(),
        config::Store::File { directory } => format!("a file in {}", directory.display()),
        config::Store::Redis(redis) => match &redis.servers {
            RedisServers::Single(server) => format!("Redis at {}", joined(&server.host, server.port)),
            RedisServers::Sentinel { sentinels, master } => format!("Redis {master:?}, by {}", all(sentinels)),
            RedisServers::Cluster(nodes) => format!("a Redis cluster, by {}", all(nodes)),
        },
    };
    Neighbour::as_used(at, last, "keeps sessions", |_| {
        (State::Bad, "sessions cannot be kept: nothing can be verified, see the log".to_owned())
    })
}

fn email(config: &Config, last: Use) -> Neighbour {
    match &config.email.transport {
        EmailTransport::Smtp(smtp) => {
            let tls = match smtp.tls {
                SmtpTls::Required => "STARTTLS",
                SmtpTls::Implicit => "TLS",
                SmtpTls::None => "clear text",
            };
            let at = format!("{}, {tls}", joined(&smtp.host, Some(smtp.port)));
            Neighbour::as_used(at, last, "takes mail", undelivered)
        }
        EmailTransport::File { directory } => {
            let at = format!("an outbox in {}: nothing is mailed", directory.display());
            Neighbour::as_used(at, last, "writes to the outbox", undelivered)
        }
        EmailTransport::Log => Neighbour::as_used("the log: nothing is mailed".to_owned(), last, "logs", undelivered),
    }
}

fn sms(config: &Config, last: Use) -> Neighbour {
    let gateway = |kind: &str, gateway: &config::Gateway| {
        let scheme = if gateway.https { "https" } else { "http, clear text" };
        format!("{kind}{}, {scheme}", joined(&gateway.host, Some(gateway.port)))
    };
    let at = match &config.sms.transport {
        SmsTransport::None => return Neighbour::unwanted("", "off: sms.transport is \"none\"", last),
        SmsTransport::Log => "the log: nothing is sent".to_owned(),
        SmsTransport::Twilio(twilio) => gateway("Twilio at ", &twilio.gateway),
        SmsTransport::Http(http) => gateway("", &http.gateway),
    };
    Neighbour::as_used(at, last, "takes messages", undelivered)
}

/// That one recipient was refused says little of the server.
fn undelivered(failure: &Failure) -> (State, String) {
    match failure.what {
        "rcpt" => (State::Unknown, "refused the last recipient".to_owned()),
        stage => (State::Bad, format!("fails at stage {stage}, see the log")),
    }
}

fn configuration(config: &Config, reloaded: Option<Timestamp>, faults: usize) -> Configuration {
    let (state, says) = match (faults, config.warnings.len()) {
        (0, 0) => (State::Good, "in force as written".to_owned()),
        (0, warnings) => (State::Good, format!("in force as written; warnings: {warnings}, see the log")),
        (faults, _) => {
            (State::Warning, format!("not reloaded, the one before is in force; faults: {faults}, see the log"))
        }
    };
    Configuration { state, says, reloaded, faults, warnings: config.warnings.len() }
}

fn routes(routes: &config::Routes) -> BTreeMap<&'static str, &'static str> {
    let mode = |mode| match mode {
        RouteMode::Handle => "handle",
        RouteMode::Forward => "forward",
        RouteMode::Observe => "observe",
        RouteMode::Refuse => "refuse",
    };
    BTreeMap::from([
        ("register.email", mode(routes.register_email)),
        ("register.msisdn", mode(routes.register_msisdn)),
        ("password.email", mode(routes.password_email)),
        ("password.msisdn", mode(routes.password_msisdn)),
        ("account_3pid.email", mode(routes.account_3pid_email)),
        ("account_3pid.msisdn", mode(routes.account_3pid_msisdn)),
        ("versions", mode(routes.versions)),
        (
            "named_id_server",
            match routes.named_id_server {
                NamedIdServer::Forward => "forward",
                NamedIdServer::Replace => "replace",
                NamedIdServer::Reject => "reject",
            },
        ),
        (
            "account_3pid_add",
            match routes.account_3pid_add {
                Account3pidAdd::Forward => "forward",
                Account3pidAdd::Translate => "translate",
            },
        ),
    ])
}

fn reason(refused: &Refused) -> &'static str {
    match (refused.errcode.as_deref(), refused.status) {
        (Some("M_BAD_JSON" | "M_NOT_JSON"), _) => "body not readable",
        (Some("M_DESTINATION_REJECTED"), _) => "country not served",
        (Some("M_EMAIL_SEND_ERROR"), _) => "mail not taken",
        (Some("M_FORBIDDEN"), _) => "forbidden",
        (Some("M_INVALID_PARAM"), _) => "parameter not valid",
        (Some("M_LIMIT_EXCEEDED"), _) | (None, 429) => "too many requests",
        (Some("M_MISSING_PARAM"), _) => "parameter missing",
        (Some("M_NO_VALID_SESSION"), _) => "session unknown",
        (Some("M_SEND_ERROR"), _) => "message not taken",
        (Some("M_SERVER_NOT_TRUSTED"), _) => "identity server not trusted",
        (Some("M_SESSION_EXPIRED"), _) => "session expired",
        (Some("M_SESSION_NOT_VALIDATED"), _) => "session not validated",
        (Some("M_THREEPID_AUTH_FAILED"), _) => "session not good for this",
        (Some("M_THREEPID_DENIED"), _) => "address not allowed",
        (Some("M_THREEPID_IN_USE"), _) => "address in use",
        (Some("M_THREEPID_MEDIUM_NOT_SUPPORTED"), _) => "medium not handled",
        (Some("M_THREEPID_NOT_FOUND"), _) => "address without account",
        (Some("M_TOKEN_INCORRECT"), _) => "wrong code",
        (Some("M_TOO_LARGE"), _) => "body too large",
        (Some("M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN"), _) => "not logged in",
        (_, 502 | 504) => "homeserver unreachable",
        (_, 503) => "store unavailable",
        (None, 400) => "link wrong or expired",
        (None, 403) => "button pressed from elsewhere",
        _ => "see the log",
    }
}

fn joined(host: &str, port: Option<u16>) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}
