//! Mails, messages and pages as they go out, with sample values: which there are, and files of them to look at.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, Faults};
use crate::delivery::{self, DeliveryError, Mail};
use crate::matrix::{Address, Purpose, Sid};
use crate::serve::Clock;
use crate::telemetry::RequestId;
use crate::wording::{
    self, Language, MailFacts, Page, PageKind, SmsFacts, TEMPLATES, Wording, WordingError, WordingErrors,
};

/// Why not everything was written.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("there is no language {tag}; there are {known}")]
    NoLanguage { tag: String, known: String },
    #[error(transparent)]
    Faulty(#[from] Faults),
    #[error(transparent)]
    BuiltIn(#[from] WordingErrors),
    #[error(transparent)]
    Wording(#[from] WordingError),
    #[error(transparent)]
    Mail(#[from] DeliveryError),
    #[error("{}: {source}", file.display())]
    Write { file: PathBuf, source: io::Error },
}

/// A line for each language and each template: its name, and where it is from.
pub fn list(config: &Config) -> Result<String, RenderError> {
    let mut text = String::new();
    let wording = Wording::of(config)?;
    let overrides: Vec<&str> = config.wording.templates.keys().map(String::as_str).collect();
    let built_in = Wording::new("en", [])?;
    for language in wording.languages() {
        let file = overrides.iter().find(|file| file.eq_ignore_ascii_case(&format!("{}.json", language.as_str())));
        let from = match (built_in.languages().any(|known| known == language), file) {
            (true, None) => "built in".to_owned(),
            (true, Some(file)) => format!("built in, with words from {file}"),
            (false, file) => format!("from {}", file.unwrap_or(&"")),
        };
        // A String takes everything.
        writeln!(text, "language  {:<14}{from}", language.as_str()).ok();
    }
    for (file, _) in TEMPLATES {
        let from = if overrides.contains(&file) { "from wording.directory" } else { "built in" };
        writeln!(text, "template  {file:<14}{from}").ok();
    }
    Ok(text)
}

/// Writes into a folder for each language, or for one; says each file's name in `done` as soon as it is there.
pub fn render(
    config: &Config,
    only: Option<&str>,
    folder: &Path,
    done: &mut dyn FnMut(&Path),
) -> Result<(), RenderError> {
    let wording = Wording::of(config)?;
    let wanted: Vec<&Language> = wording
        .languages()
        .filter(|language| only.is_none_or(|tag| tag.eq_ignore_ascii_case(language.as_str())))
        .collect();
    if wanted.is_empty() {
        let known: Vec<&str> = wording.languages().map(Language::as_str).collect();
        return Err(RenderError::NoLanguage { tag: only.unwrap_or_default().to_owned(), known: known.join(", ") });
    }
    for language in wanted {
        for (name, bytes) in rendered(config, &wording, language)? {
            let file = folder.join(language.as_str()).join(name);
            let write = |source| RenderError::Write { file: file.clone(), source };
            fs::create_dir_all(file.parent().unwrap_or(folder)).map_err(write)?;
            fs::write(&file, bytes).map_err(write)?;
            done(&file);
        }
    }
    Ok(())
}

/// File names, and what is in them.
fn rendered(config: &Config, wording: &Wording, language: &Language) -> Result<Vec<(String, Vec<u8>)>, RenderError> {
    let (server_name, lifetime) = (config.server_name.as_str(), config.session.unvalidated_lifetime);
    let mut files = Vec::new();
    for purpose in Purpose::ALL {
        let name = purpose.as_str();
        let link = format!("{}/sample?token=0123456789", config.public_base_url.as_str().trim_end_matches('/'));
        let text = wording.mail(&MailFacts { language, purpose, server_name, link: &link, lifetime })?;
        let sms = wording.sms(&SmsFacts { language, purpose, server_name, code: "012345", lifetime })?;
        files.push((format!("mail-{name}.txt"), text.text.clone().into_bytes()));
        files.push((format!("mail-{name}.html"), text.html.clone().into_bytes()));
        files.push((format!("mail-{name}.eml"), eml(config, text)?));
        files.push((format!("sms-{name}.txt"), sms.into_bytes()));
    }
    for kind in wording::samples() {
        let page = wording.page(&Page { language, server_name, kind })?;
        files.push((page_name(kind), page.into_bytes()));
    }
    Ok(files)
}

fn eml(config: &Config, text: wording::MailText) -> Result<Vec<u8>, RenderError> {
    let why = |error: &dyn std::error::Error| DeliveryError::Compose { why: error.to_string() };
    let mail = Mail {
        to: Address::email("alice@example.org").map_err(|error| why(&error))?,
        text,
        sid: Sid::from_random([0; 16]),
        request_id: RequestId::from_random([0; 8]),
        now: Clock::system().now(),
    };
    Ok(delivery::eml(&config.email, &config.server_name, &mail)?)
}

fn page_name(kind: PageKind<'_>) -> String {
    let name = match kind {
        PageKind::Confirm { purpose, next_link_host: None, .. } => {
            return format!("page-confirm-{}.html", purpose.as_str());
        }
        PageKind::Confirm { purpose, .. } => return format!("page-confirm-{}-then-elsewhere.html", purpose.as_str()),
        PageKind::Confirmed => "confirmed",
        PageKind::AlreadyConfirmed => "already_confirmed",
        PageKind::Invalid => "invalid",
        PageKind::TryLater => "try_later",
        PageKind::Limited => "limited",
    };
    format!("page-{name}.html")
}
