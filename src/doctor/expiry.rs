//! Whether the doors' certificates last.

use std::path::Path;

use super::{Report, Verdict};
use crate::config::Config;
use crate::matrix::Timestamp;
use crate::reload::EXPIRES_SOON;
use crate::serve::{Clock, Tls};

const DAY: u64 = 24 * 60 * 60;

/// The client door's: for what else it is worth is its clients' to say.
pub(super) fn of_clients(report: &mut Report, config: &Config) {
    let Some(files) = &config.listen.tls else { return };
    let certified = match Tls::read(files) {
        Ok(certified) => certified,
        Err(error) => {
            report.bad("certificate", error.to_string(), "listen.tls.certificate", "write a certificate and its key");
            return;
        }
    };
    match soon(certified.ends, Clock::system().now()) {
        None => report.good("certificate", format!("{} lasts", files.certificate.display())),
        Some(0) => report.bad(
            "certificate",
            format!("{} expires today, or has expired", files.certificate.display()),
            "listen.tls.certificate",
            "write a new one; it is read without a restart",
        ),
        Some(days) => warn(report, &files.certificate, days, "listen.tls.certificate"),
    }
}

/// How many days are left, if these are few.
pub(super) fn soon(ends: Option<Timestamp>, now: Timestamp) -> Option<u64> {
    ends.map(|ends| now.until(ends)).filter(|left| *left <= EXPIRES_SOON).map(|left| left.as_secs() / DAY)
}

pub(super) fn warn(report: &mut Report, certificate: &Path, days: u64, key: &str) {
    let says = format!("{} expires in {days} days", certificate.display());
    let change = format!("{}: {key}: write a new one; it is read without a restart", report.file);
    report.add("certificate", Verdict::Warning, says, Some(change));
}
