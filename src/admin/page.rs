//! The status page: one document without anything from elsewhere, written here and shown by no other door.

use std::error::Error;

use base64::Engine;
use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use super::plot;
use super::status::Status;
use crate::config::Config;
use crate::matrix::Timestamp;

const PAGE: &str = include_str!("status.html");
const STYLE: &str = include_str!("status.css");
const SCRIPT: &str = include_str!("status.js");

/// What a page from elsewhere is told that calls this door by a name of its own.
pub(super) const NOT_OURS: &str = "this is shown by IP address, by localhost, by a name without dots or of .local or .internal, \
     and by names of server_name and public_base_url\n";

/// Whether a browser that asks by this `Host` shows the page to its operator. A name of somebody else's that leads here (DNS rebinding)
/// would make this door that somebody's own origin, and the page readable by his; such a name is public, and none of ours.
pub(super) fn is_ours(host: Option<&[u8]>, config: &Config) -> bool {
    // No browser leaves it out.
    let Some(host) = host else { return true };
    let Some(host) = str::from_utf8(host).ok().and_then(host_of) else { return false };
    let is_ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let is_private = |top: &str| ["localhost", "local", "internal"].contains(&top);
    let public_base_url = config.public_base_url.origin();
    let own = [public_base_url.split_once("://").map_or(public_base_url, |(_, rest)| rest), &config.server_name];
    let is_own = |own: String| host == own || host.strip_suffix(&own).is_some_and(|rest| rest.ends_with('.'));
    is_ip
        || host.rsplit_once('.').is_none_or(|(_, top)| is_private(top))
        || own.into_iter().filter_map(host_of).any(is_own)
}

/// The name in `name:port`.
fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    Some(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

/// GET `/status`: the same for programs.
pub(super) fn json(status: &Status) -> Response<Full<Bytes>> {
    match serde_json::to_vec(status) {
        Ok(json) => shown(json.into(), "application/json", "default-src 'none'; frame-ancestors 'none'"),
        Err(error) => unwritten(&error),
    }
}

/// GET `/`: works without scripts; with them it fetches itself again and shows what has changed.
pub(super) fn html(status: &Status) -> Response<Full<Bytes>> {
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    match written(status) {
        Ok(html) => shown(html.into(), "text/html; charset=utf-8", &policy),
        Err(error) => unwritten(&error),
    }
}

fn written(status: &Status) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_filter("ago", |at: u64, now: u64| ago(now.saturating_sub(at)));
    environment.add_filter("utc", |at: u64| format!("{}T{}Z", date(at), clock(Timestamp::from_millis(at))));
    environment.add_filter("date", date);
    environment.add_filter("clock", |at: u64| clock(Timestamp::from_millis(at)));
    environment.render_named_str(
        "status.html",
        PAGE,
        context! {
            status => Value::from(Serde(status)),
            plots => Value::from(Serde(plot::all(&status.last_hour, status.now))),
            style => Value::from_safe_string(STYLE.to_owned()),
            script => Value::from_safe_string(SCRIPT.to_owned()),
        },
    )
}

/// Never cached, framed, indexed or included from elsewhere; no CORS field lets another origin read it.
fn shown(body: Bytes, kind: &'static str, policy: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    let headers = response.headers_mut();
    match HeaderValue::from_str(policy) {
        Ok(policy) => headers.insert(header::CONTENT_SECURITY_POLICY, policy),
        Err(error) => return unwritten(&error),
    };
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("x-robots-tag"), "noindex"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn unwritten(error: &(dyn Error + 'static)) -> Response<Full<Bytes>> {
    tracing::error!(error, "the status page cannot be written");
    super::plain(StatusCode::INTERNAL_SERVER_ERROR, "the status page cannot be written, see the log\n")
}

/// As a Content-Security-Policy names what stands in the page itself.
fn hash(of: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, of.as_bytes());
    format!("sha256-{}", base64::engine::general_purpose::STANDARD.encode(digest))
}

/// `05:21:07`, in UTC.
pub(super) fn clock(at: Timestamp) -> String {
    let seconds = at.as_millis() / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// `2026-11-28`, in UTC: days since 1970 in years that begin in March, so that the leap day is a year's last.
fn date(millis: u64) -> String {
    let days = millis / 86_400_000 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (year + era * 400 + month / 10, (month + 2) % 12 + 1);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `3 min ago`, to the unit that matters.
fn ago(millis: u64) -> String {
    match millis / 1000 {
        0..2 => "just now".to_owned(),
        seconds @ 2..120 => format!("{seconds} s ago"),
        seconds @ 120..7200 => format!("{} min ago", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_name_that_leads_here_is_shown_nothing() {
        let config = "server_name = \"example.org:8448\"\npublic_base_url = \"https://matrix.example.net:8443/x\"\n\
                      email.from = \"a@example.org\"\n";
        let config = Config::from_text(config).unwrap();
        let ours = [
            "127.0.0.1:9091",
            "[::1]:9091",
            "192.0.2.7",
            "localhost:9091",
            "LOCALHOST.",
            "status.localhost",
            "shim:9091",
            "shim.matrix.svc.cluster.local:9091",
            "shim.lan.internal",
            "example.org",
            "status.Example.ORG:9091",
            "matrix.example.net",
        ];
        for host in ours {
            assert!(is_ours(Some(host.as_bytes()), &config), "{host}");
        }
        let foreign = [
            "evil.example.com",
            "evil-example.org",
            "example.org.evil.com",
            "127.0.0.1.evil.com:9091",
            "localhost.evil.com",
            "example.net",
            "local.com",
            "a b",
            "",
            "\u{e9}.org",
        ];
        for host in foreign {
            assert!(!is_ours(Some(host.as_bytes()), &config), "{host}");
        }
        assert!(!is_ours(Some(b"\xff"), &config) && is_ours(None, &config));
    }

    #[test]
    fn a_date_is_the_day_it_says() {
        let rows = [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_795_487_400, "2026-11-24T02:30:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ];
        for (seconds, said) in rows {
            let millis = seconds * 1000;
            assert_eq!(format!("{}T{}", date(millis), clock(Timestamp::from_millis(millis))), said);
        }
    }

    #[test]
    fn how_long_ago_is_said_in_the_unit_that_matters() {
        let rows = [(1, "just now"), (2, "2 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h")];
        for (seconds, said) in rows.into_iter().chain([(172_800, "2 d"), (864_000, "10 d")]) {
            assert_eq!(ago(seconds * 1000).trim_end_matches(" ago"), said);
        }
    }
}
