//! What Synapse's `email:` means for the shim's `[session]` and `[email]`.

use serde_json::Value;

use super::{Sheet, text};
use crate::config::{is_loopback, is_mailbox, quoted};

const LONGEST: u64 = 7 * 86_400;

/// `[session]`: how long links are good, and whom they lead to.
pub(super) fn session(sheet: &mut Sheet, yaml: &Value) {
    let email = yaml.get("email").unwrap_or(&Value::Null);
    let lifetime = email.get("validation_token_lifetime").and_then(seconds);
    let app = text(email, "client_base_url").or_else(|| text(email, "riot_base_url"));
    if lifetime.is_none() && app.is_none() {
        return;
    }
    sheet.line("\n[session]");
    if let Some(seconds) = lifetime {
        sheet.line(format!("unvalidated_lifetime = \"{seconds}s\"   # email.validation_token_lifetime"));
    }
    let host = app.and_then(|app| app.split("://").nth(1)).map(|rest| rest.split(['/', ':']).next().unwrap_or(rest));
    if let Some(host) = host {
        sheet.decide("links may lead back to any client; to allow only the one of email.riot_base_url, uncomment:");
        sheet.line(format!("# next_link_hosts = [{}]", quoted(host)));
    }
}

/// Synapse's durations: milliseconds, or a number with one letter. `None` also if the shim would not take it.
fn seconds(written: &Value) -> Option<u64> {
    let seconds = match written.as_str() {
        None => written.as_u64()? / 1000,
        Some(text) => {
            let unit = text.chars().last()?;
            let each = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];
            let (_, each) = each.into_iter().find(|(letter, _)| *letter == unit)?;
            text.trim_end_matches(unit).parse::<u64>().ok()?.checked_mul(each)?
        }
    };
    (1..=LONGEST).contains(&seconds).then_some(seconds)
}

/// `[email]`: the same mail server, the same sender.
pub(super) fn email(sheet: &mut Sheet, yaml: &Value, server_name: &str) {
    let email = yaml.get("email").unwrap_or(&Value::Null);
    sheet.line("\n[email]");
    if let Some(host) = text(email, "smtp_host") {
        smtp(sheet, email, host);
    } else {
        sheet.decide(
            "homeserver.yaml names no mail server: until transport is \"smtp\" and host is written, each mail becomes a file in state_dir/outbox",
        );
        sheet.line("transport = \"file\"");
    }
    let app = text(email, "app_name").unwrap_or("Matrix");
    let from = text(email, "notif_from").map(|from| from.replace("%(app)s", app)).filter(|from| is_mailbox(from));
    let guess = format!("noreply@{}", server_name.split(':').next().unwrap_or(server_name));
    if from.is_none() {
        sheet.decide("email.notif_from is not there, or is no sender; your mail server has to take this one");
    }
    sheet.line(format!("from = {}", quoted(from.as_deref().unwrap_or(&guess))));
    if text(email, "template_dir").is_some() {
        sheet.decide("email.template_dir: the shim has templates of its own; yours would go to wording.directory");
    }
}

fn smtp(sheet: &mut Sheet, email: &Value, host: &str) {
    let is = |key: &str, flag: bool| email.get(key) == Some(&Value::Bool(flag));
    let port = email.get("smtp_port").and_then(Value::as_u64).filter(|port| (1..65_536).contains(port)).unwrap_or(25);
    sheet.line("transport = \"smtp\"");
    sheet.line(format!("host = {}", quoted(host)));
    sheet.line(format!("port = {port}"));
    if port == 465 || is("force_tls", true) {
        sheet.line("tls = \"implicit\"");
    } else if is("require_transport_security", true) {
        sheet.line("tls = \"required\"");
    } else if is_loopback(host) {
        sheet.line("tls = \"none\"   # on this machine");
    } else {
        sheet.decide("Synapse would send in clear where the server offers no STARTTLS, which is seldom meant; if it is: tls = \"none\" and allow_plaintext = true");
        sheet.line("tls = \"required\"");
    }
    if let Some(user) = text(email, "smtp_user") {
        sheet.line(format!("username = {}", quoted(user)));
        sheet.decide(
            "put email.smtp_pass of homeserver.yaml alone into this file beside this one, readable by the shim only",
        );
        sheet.line("password_file = \"smtp-password\"");
    }
}
