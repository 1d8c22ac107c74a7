//! Tries every neighbour as the shim would use it, and says what to change, in the words of the file that is to be edited.

mod callback;
mod expiry;
mod homeserver;
mod link;
mod own;
mod web;

use std::io::{self, Write};

use serde::Serialize;

use crate::config::{Config, Faults};

/// What became of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    Warning,
    Bad,
    /// It could not be looked at, because of something else that is bad.
    Skipped,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub look: &'static str,
    pub verdict: Verdict,
    pub says: String,
    /// `FILE: key: what to write`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}

/// Everything that was looked at, in that order.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// The configuration's own file, as it was given.
    #[serde(skip)]
    file: String,
}

impl Report {
    /// Looks at everything. Mails nobody unless `send_test_mail` names somebody.
    pub async fn make(config: &Config, file: String, send_test_mail: Option<&str>) -> Self {
        let mut report = Self { findings: Vec::new(), file };
        report.good("configuration", "every key is good");
        for warning in &config.warnings {
            let (says, change) = warning.rsplit_once("; ").unwrap_or((warning, ""));
            report.add("configuration", Verdict::Warning, says, Some(change.to_owned()).filter(|it| !it.is_empty()));
        }
        if own::state_dir(&mut report, config) {
            own::store(&mut report, config).await;
            own::mail(&mut report, config, send_test_mail).await;
            own::sms(&mut report, config).await;
        }
        own::wording(&mut report, config);
        if homeserver::look(&mut report, config).await {
            callback::look(&mut report, config).await;
        }
        expiry::of_clients(&mut report, config);
        link::look(&mut report, config).await;
        report
    }

    /// Of a configuration that is not good, beyond which nothing can be looked at.
    pub fn of_faults(faults: &Faults) -> Self {
        let mut report = Self::default();
        for fault in faults.iter() {
            let change = format!("{}: {}: {}", fault.place, fault.key, fault.wrong.write);
            report.add("configuration", Verdict::Bad, fault.wrong.wrong.clone(), Some(change));
        }
        report
    }

    pub fn is_well(&self) -> bool {
        !self.findings.iter().any(|finding| finding.verdict == Verdict::Bad)
    }

    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let report = serde_json::json!({ "well": self.is_well(), "findings": self.findings });
        writeln!(out, "{report:#}")
    }

    /// One line a finding, and one more that says what to change.
    pub fn write_text(&self, out: &mut dyn Write, colours: bool) -> io::Result<()> {
        for finding in &self.findings {
            let (word, colour) = match finding.verdict {
                Verdict::Good => ("good", "32"),
                Verdict::Warning => ("warning", "33"),
                Verdict::Bad => ("BAD", "1;31"),
                Verdict::Skipped => ("skipped", "2"),
            };
            let (on, off) = if colours { (format!("\x1b[{colour}m"), "\x1b[0m") } else { (String::new(), "") };
            writeln!(out, "{on}{word:7}{off}  {}: {}", finding.look, finding.says)?;
            if let Some(change) = &finding.change {
                writeln!(out, "         -> {change}")?;
            }
        }
        Ok(())
    }

    fn add(&mut self, look: &'static str, verdict: Verdict, says: impl Into<String>, change: Option<String>) {
        // What a server said, or a file is called, may hold anything; a finding is a line.
        let line = |text: String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        self.findings.push(Finding { look, verdict, says: line(says.into()), change: change.map(line) });
    }

    fn good(&mut self, look: &'static str, says: impl Into<String>) {
        self.add(look, Verdict::Good, says, None);
    }

    fn skipped(&mut self, look: &'static str, says: impl Into<String>) {
        self.add(look, Verdict::Skipped, says, None);
    }

    /// A key of the shim's own configuration is to be changed.
    fn bad(&mut self, look: &'static str, says: impl Into<String>, key: &str, write: impl std::fmt::Display) {
        let change = format!("{}: {key}: {write}", self.file);
        self.add(look, Verdict::Bad, says, Some(change));
    }

    /// Something else is to be changed: the homeserver's configuration, its environment, the machine.
    fn bad_elsewhere(&mut self, look: &'static str, says: impl Into<String>, change: impl Into<String>) {
        self.add(look, Verdict::Bad, says, Some(change.into()));
    }
}
