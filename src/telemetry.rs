//! Log format, metrics, and what is never written down: no address, `client_secret`, token, access token, body or query.

mod answered;
mod exposition;
mod labels;
mod metrics;
mod recent;
mod request_id;
mod seldom;

use std::io::IsTerminal as _;
use std::sync::{Arc, OnceLock};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry as Spans;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Log, LogFormat, LogLevel};
use crate::matrix::{Medium, Sid};

pub use answered::Answered;
pub use labels::{
    Delivered, DeliveredBy, Door, Intercepted, LimitReached, Reloaded, Staged, StoreKind, StoreOperation, TurnedAway,
    Verified,
};
pub use metrics::{Ended, Metrics};
pub use recent::{Failure, Hour, MINUTES, Neighbour, Percentiles, Recent, Refused, Use, Uses};
pub use request_id::{Process, RequestId, RequestIds};
pub use seldom::Seldom;

/// The level in force: the log is the process's, and so is this.
static LEVEL: OnceLock<reload::Handle<Targets, Spans>> = OnceLock::new();

/// Where the sources were a git repository; `deploy/build` says so.
const COMMIT: Option<&str> = option_env!("THREEPID_SHIM_COMMIT");

/// What the program was made of, or `unknown`.
pub fn commit() -> &'static str {
    COMMIT.filter(|commit| !commit.is_empty()).unwrap_or("unknown")
}

/// Begins to log to standard error.
pub fn init(log: &Log) {
    let (targets, level) = reload::Layer::new(targets(log.level));
    let lines = layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    };
    if tracing_subscriber::registry().with(lines.with_filter(targets)).try_init().is_err() {
        tracing::debug!("logging had begun before; it stays as it was");
    } else if LEVEL.set(level).is_err() {
        tracing::debug!("the level had a handle before");
    }
}

/// Logs at another level from now on, if `init` has begun to.
pub fn set_level(level: LogLevel) {
    if let Some(handle) = LEVEL.get()
        && let Err(error) = handle.reload(targets(level))
    {
        tracing::error!(%error, "log.level cannot be changed");
    }
}

/// Others' code logs only warnings, whatever the level: libraries write down addresses and bodies when asked for more.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_target("threepid_shim", level).with_default(level.min(LevelFilter::WARN))
}

/// What is known of an intercepted request for its one line, noted by whoever learns it first. Cheap to clone; all clones
/// are one.
#[derive(Debug, Clone, Default)]
pub struct Subject(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    sid: OnceLock<Sid>,
    medium: OnceLock<Medium>,
    relayed_errcode: OnceLock<String>,
    trace_id: OnceLock<String>,
}

impl Subject {
    /// The one that a request carries.
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    pub fn note_sid(&self, sid: &Sid) {
        self.0.sid.get_or_init(|| sid.clone());
    }

    pub fn note_medium(&self, medium: Medium) {
        self.0.medium.get_or_init(|| medium);
    }

    /// Of an answer of the homeserver's; whatever is no error code is not kept.
    pub fn note_errcode(&self, answer: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Answer {
            errcode: String,
        }
        let Ok(Answer { errcode }) = serde_json::from_slice(answer) else { return };
        let is_code =
            |errcode: &str| errcode.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b"_.".contains(&b));
        if errcode.len() <= 64 && is_code(&errcode) {
            self.0.relayed_errcode.get_or_init(|| errcode);
        }
    }

    /// Of a `traceparent` ([Trace Context](https://www.w3.org/TR/trace-context/#traceparent-header)), so that the line can be
    /// found by it; the field itself goes on as it came.
    pub fn note_trace(&self, headers: &http::HeaderMap) {
        let mut fields = headers.get_all("traceparent").iter();
        let (Some(field), None) = (fields.next(), fields.next()) else { return };
        let Some(trace_id) = field.to_str().ok().and_then(|field| field.split('-').nth(1)) else { return };
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if trace_id.len() == 32 && trace_id.bytes().all(is_digit) && trace_id.bytes().any(|byte| byte != b'0') {
            self.0.trace_id.get_or_init(|| trace_id.to_owned());
        }
    }

    pub fn sid(&self) -> Option<&str> {
        self.0.sid.get().map(Sid::as_str)
    }

    pub fn medium(&self) -> Option<&'static str> {
        self.0.medium.get().map(|medium| medium.as_str())
    }

    pub fn trace_id(&self) -> Option<&str> {
        self.0.trace_id.get().map(String::as_str)
    }

    pub fn errcode(&self) -> Option<&str> {
        self.0.relayed_errcode.get().map(String::as_str)
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}

/// Whose fault it was that a request did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    Client,
    Homeserver,
    Store,
    Smtp,
    Sms,
    Shim,
}

impl Fault {
    /// All but none.
    pub const ALL: [Self; 6] = [Self::Client, Self::Homeserver, Self::Store, Self::Smtp, Self::Sms, Self::Shim];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Client => "client",
            Self::Homeserver => "homeserver",
            Self::Store => "store",
            Self::Smtp => "smtp",
            Self::Sms => "sms",
            Self::Shim => "shim",
        }
    }
}

/// Whose fault an answer of one of our own routes is.
fn fault(status: http::StatusCode, errcode: Option<&str>) -> Fault {
    match (status.as_u16(), errcode) {
        (..400, _) => Fault::None,
        (_, Some("M_EMAIL_SEND_ERROR")) => Fault::Smtp,
        (_, Some("M_SEND_ERROR")) => Fault::Sms,
        (400..500, _) | (503, Some("M_LIMIT_EXCEEDED")) => Fault::Client,
        (503, Some(_)) => Fault::Store,
        (502 | 504, _) | (_, None) => Fault::Homeserver,
        (_, Some(_)) => Fault::Shim,
    }
}

/// How an intercepted request ended; rides on its answer when it is not plain to see from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Relayed,
    Refused,
    /// On a route in `observe`: what `handle` would have done.
    WouldHandle,
    WouldForward,
    WouldRefuse,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Refused => "refused",
            Self::WouldHandle => "would_handle",
            Self::WouldForward => "would_forward",
            Self::WouldRefuse => "would_refuse",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_32_hexadecimal_digits_of_the_only_traceparent_or_none() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let noted = |fields: &[&str]| {
            let (subject, mut headers) = (Subject::default(), http::HeaderMap::new());
            for field in fields {
                headers.append("traceparent", field.parse().unwrap());
            }
            subject.note_trace(&headers);
            subject.trace_id().map(str::to_owned)
        };
        let good = format!("00-{trace}-0123456789012345-01");
        assert_eq!(noted(&[&good]).as_deref(), Some(trace));
        for bad in [
            "",
            "-",
            trace,
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-0123456789012345-01",
            "00-00000000000000000000000000000000-0123456789012345-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-0123456789012345-01",
            "00-alice@example.org-0123456789012345-01",
        ] {
            assert_eq!(noted(&[bad]), None, "{bad}");
        }
        assert_eq!(noted(&[&good, &good]), None, "two");
    }
}
