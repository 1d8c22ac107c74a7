//! The homeserver itself: reached, which version, whether it needs the shim, its clock, and its password resets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{StatusCode, header};

use super::web::{self, Answer};
use super::{Report, Verdict};
use crate::config::{Config, HomeserverAddress, NeedsShim, RouteMode};
use crate::front::versions;

const PATIENCE: Duration = Duration::from_secs(10);
/// Beyond it links and codes end when nobody expects it.
const MOST_SKEW: Duration = Duration::from_secs(60);
/// 2025-01-01: no clock that is right is behind it.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// Returns whether the way back from it can be tried: it answers, and needs the shim.
pub(super) async fn look(report: &mut Report, config: &Config) -> bool {
    let homeserver = &config.homeserver;
    let at = match &homeserver.address {
        HomeserverAddress::Tcp { host, port } => format!("{host}:{port}"),
        HomeserverAddress::Unix(socket) => format!("unix:{}", socket.display()),
    };
    let write =
        "write where its listener with resource \"client\" is (homeserver.yaml: listeners: port, bind_addresses)";
    let answer = match web::ask(&homeserver.address, "/_matrix/client/versions", None, PATIENCE).await {
        Ok(answer) => answer,
        Err(error) => {
            report.bad("homeserver", format!("{at} cannot be reached: {error}"), "homeserver.url", write);
            report.skipped("callback", "the homeserver has to be reached first");
            return false;
        }
    };
    let Some(learnt) = versions::learnt_msc2263(&answer.body).filter(|_| answer.status == StatusCode::OK) else {
        let says = format!("{at} answers GET /_matrix/client/versions with {} and is no homeserver", answer.status);
        report.bad("homeserver", says, "homeserver.url", write);
        report.skipped("callback", "the homeserver has to be reached first");
        return false;
    };
    let software = answer.header(header::SERVER).unwrap_or("a homeserver that does not say its version");
    report.good("homeserver", format!("{at} is {software}"));
    clock(report, &answer);
    let needs = needs(report, learnt, homeserver.needs_shim);
    if needs && config.routes.password_email == RouteMode::Handle {
        password(report, config).await;
    }
    if !needs && !config.identity.accept_unannounced {
        report.skipped("callback", "the homeserver verifies by itself");
    }
    needs
}

fn needs(report: &mut Report, learnt: bool, said: NeedsShim) -> bool {
    match (learnt, said) {
        (false, NeedsShim::No) => {
            let says = "it still demands id_server, and the shim is told not to give it";
            report.bad("needs shim", says, "homeserver.needs_shim", "write \"auto\"");
            true
        }
        (true, NeedsShim::Yes) => {
            let says = "it needs no id_server any more, and may answer an added one with 400";
            report.bad("needs shim", says, "homeserver.needs_shim", "write \"auto\"");
            false
        }
        (true, NeedsShim::Auto | NeedsShim::No) => {
            let says = "it has learnt MSC2263: every route is handed over to it";
            report.add(
                "needs shim",
                Verdict::Warning,
                says,
                Some("remove the shim, unless it sends messages for it".to_owned()),
            );
            false
        }
        (false, NeedsShim::Auto | NeedsShim::Yes) => {
            report.good("needs shim", "it demands id_server");
            true
        }
    }
}

fn clock(report: &mut Report, answer: &Answer) {
    let change = "set the clocks of both machines: timedatectl set-ntp true";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if now < EARLIEST {
        report.bad_elsewhere("clock", "this machine's clock stands in the past", change);
        return;
    }
    let Some(its) = answer.header(header::DATE).and_then(seconds) else {
        report.skipped("clock", "the homeserver does not say the time");
        return;
    };
    let skew = now.as_secs().abs_diff(its);
    if skew > MOST_SKEW.as_secs() {
        let says = format!("this machine's clock and the homeserver's differ by {skew} s");
        report.bad_elsewhere("clock", says, change);
    } else {
        report.good("clock", "the homeserver's is the same");
    }
}

/// Asked for an address that nobody has, so that nobody is mailed.
async fn password(report: &mut Report, config: &Config) {
    let path = "/_matrix/client/r0/account/password/email/requestToken";
    let body = super::callback::probe(&config.identity.name);
    match web::ask(&config.homeserver.address, path, Some(&body), PATIENCE).await {
        Ok(answer) if answer.field("error").contains("disabled") => {
            let says = format!("the homeserver refuses them: {}", answer.field("error"));
            let change = "homeserver.yaml: email.trust_identity_server_for_password_resets: true";
            report.bad_elsewhere("password resets", says, change);
        }
        Ok(answer) if answer.status.is_server_error() => {
            let says = format!("the homeserver answers {} to a request that is in order", answer.status);
            report.bad_elsewhere("password resets", says, "homeserver.log: read what stands there at this time");
        }
        Ok(_) => report.good("password resets", "the homeserver takes them"),
        Err(error) => {
            report.bad_elsewhere("password resets", error.to_string(), "homeserver.log: read what stands there");
        }
    }
}

/// `Date`, as RFC 9110 has it: `Sun, 06 Nov 1994 08:49:37 GMT`, in seconds since 1970.
fn seconds(date: &str) -> Option<u64> {
    let mut words = date.split_ascii_whitespace().skip(1);
    let day: u64 = words.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = words.next()?;
    let month = u64::try_from(months.iter().position(|name| *name == month)?).ok()? + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut time = words.next()?.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    // Years that begin in March, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = (365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day).checked_sub(719_469)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_second_it_says() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        assert_eq!(seconds("Tue, 24 Nov 2026 02:30:00 GMT"), Some(1_795_487_400));
        for no_date in ["", "now", "Sun, 06 Now 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(seconds(no_date), None, "{no_date}");
        }
    }
}
