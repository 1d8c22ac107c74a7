//! What people read: mails, messages and pages, from templates and words that an operator can replace.

mod language;
mod sms;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use minijinja::Value;

use crate::matrix::Purpose;

pub use language::Language;
use language::Languages;
pub use sms::SmsFacts;
pub use template::TEMPLATES;
use template::{Templates, wrapped};

const CONFIRM: &str = "confirm.html";
const NOTICE: &str = "notice.html";

/// Every template and language there is, and none that cannot be rendered.
pub struct Wording {
    templates: Templates,
    languages: Languages,
    style_hash: String,
}

/// The wording in force; a reload puts another in its place.
pub type Shared = Arc<ArcSwap<Wording>>;

/// What a mail says. Nothing in it was written by whoever asked for the mail (CVE-2021-29432).
#[derive(Debug, Clone, Copy)]
pub struct MailFacts<'a> {
    pub language: &'a Language,
    pub purpose: Purpose,
    pub server_name: &'a str,
    pub link: &'a str,
    /// How long the link is good.
    pub lifetime: Duration,
}

/// A mail's words, rendered. `subject` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailText {
    pub subject: String,
    pub text: String,
    pub html: String,
}

#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    pub language: &'a Language,
    pub server_name: &'a str,
    pub kind: PageKind<'a>,
}

#[derive(Debug, Clone, Copy)]
pub enum PageKind<'a> {
    /// The page behind the mailed link. Its button POSTs `fields` to the page's own path, without the query.
    Confirm {
        purpose: Purpose,
        masked_address: &'a str,
        next_link_host: Option<&'a str>,
        fields: &'a [(&'a str, &'a str)],
    },
    Confirmed,
    AlreadyConfirmed,
    /// Unknown, wrong or expired: which of them is nobody's business.
    Invalid,
    /// The store cannot be asked just now.
    TryLater,
    Limited,
}

#[derive(Debug, thiserror::Error)]
pub enum WordingError {
    #[error("{file}: there is no such template; there are {known}")]
    UnknownTemplate { file: String, known: String },
    #[error("{file}:{line}: {why}")]
    Template { file: String, line: usize, why: String },
    #[error("{file}: {why}")]
    Language { file: String, why: String },
    #[error("page.html: a page has to hold exactly one <style> element, the same on every page")]
    Style,
}

impl Wording {
    /// `overrides` are files by name: a template replaces the built-in one, `en.json` the words it holds, and another
    /// language's `.json` adds that language. With any of them everything is rendered with sample values, so that a fault shows at the start.
    pub fn new(
        default_language: &str,
        overrides: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, WordingError> {
        let (catalogues, templates): (Vec<_>, Vec<_>) =
            overrides.into_iter().partition(|(file, _)| file.strip_suffix(".json").is_some());
        // What was compiled in is tried by the tests.
        let is_as_built = catalogues.is_empty() && templates.is_empty();
        let languages = Languages::new(default_language, catalogues)?;
        let mut wording = Self { templates: Templates::new(templates)?, languages, style_hash: String::new() };
        let default = [wording.language(None)];
        wording.style_hash = if is_as_built {
            wording.try_everything(default.iter())?
        } else {
            wording.try_everything(wording.languages.all())?
        };
        Ok(wording)
    }

    /// The best language there is for an `Accept-Language` field, or for a tag that `Language::as_str` gave.
    pub fn language(&self, accept_language: Option<&str>) -> Language {
        self.languages.negotiate(accept_language)
    }

    pub fn languages(&self) -> impl Iterator<Item = &Language> {
        self.languages.all()
    }

    pub fn mail(&self, facts: &MailFacts<'_>) -> Result<MailText, WordingError> {
        let lifetime = self.languages.lifetime(facts.language, facts.lifetime)?;
        let fills = [("server_name", facts.server_name), ("lifetime", &lifetime)];
        let sections = ["mail", &format!("mail.{}", facts.purpose.as_str())];
        let mut context = self.context(facts.language, facts.server_name, &sections, &fills)?;
        context.insert("purpose", facts.purpose.as_str().into());
        context.insert("link", facts.link.into());
        let subject = self.templates.render("subject.txt", &context)?;
        Ok(MailText {
            subject: subject.split_whitespace().collect::<Vec<_>>().join(" "),
            text: wrapped(&self.templates.render("mail.txt", &context)?),
            html: self.templates.render("mail.html", &context)?,
        })
    }

    pub fn page(&self, page: &Page<'_>) -> Result<String, WordingError> {
        let fills = [("server_name", page.server_name)];
        let context = |sections: &[&str]| self.context(page.language, page.server_name, sections, &fills);
        let notice = |section: &str, done: bool| {
            context(&[section]).map(|mut context| {
                context.insert("done", done.into());
                context
            })
        };
        let (template, context) = match page.kind {
            PageKind::Confirm { purpose, masked_address, next_link_host, fields } => {
                let mut context = context(&["confirm", &format!("confirm.{}", purpose.as_str())])?;
                let fields: Vec<Value> = fields
                    .iter()
                    .map(|(name, value)| Value::from(vec![Value::from(*name), Value::from(*value)]))
                    .collect();
                context.insert("purpose", purpose.as_str().into());
                context.insert("masked_address", masked_address.into());
                context.insert("next_link_host", next_link_host.into());
                context.insert("fields", fields.into());
                (CONFIRM, context)
            }
            PageKind::Confirmed => (NOTICE, notice("confirmed", true)?),
            PageKind::AlreadyConfirmed => (NOTICE, notice("already_confirmed", true)?),
            PageKind::Invalid => (NOTICE, notice("invalid", false)?),
            PageKind::TryLater => (NOTICE, notice("try_later", false)?),
            PageKind::Limited => (NOTICE, notice("limited", false)?),
        };
        self.templates.render(template, &context)
    }

    /// `sha256-...` of the pages' one style element, for `style-src` of their Content-Security-Policy.
    pub fn style_hash(&self) -> &str {
        &self.style_hash
    }

    /// What every template may name: `t`, the words of `sections` (the later wins), and whose page it is.
    fn context(
        &self,
        language: &Language,
        server_name: &str,
        sections: &[&str],
        fills: &[(&str, &str)],
    ) -> Result<BTreeMap<&'static str, Value>, WordingError> {
        let mut words: BTreeMap<String, Value> = BTreeMap::new();
        let (language, catalogue) = self.languages.catalogue(language);
        let direction = catalogue.get("direction").map_or("ltr", String::as_str);
        // A name from the left stands apart among words from the right, or its dots and what follows change places.
        let apart = format!("\u{2068}{server_name}\u{2069}");
        let fill = |(name, value)| (name, if name == "server_name" && direction == "rtl" { &*apart } else { value });
        let fills: Vec<(&str, &str)> = fills.iter().copied().map(fill).collect();
        for section in sections {
            for (path, text) in catalogue {
                let Some((parent, key)) = path.rsplit_once('.') else { continue };
                if parent == *section {
                    words.insert(key.to_owned(), language.fill(path, text, &fills)?.into());
                }
            }
        }
        Ok(BTreeMap::from([
            ("t", Value::from(words)),
            ("lang", language.as_str().into()),
            ("dir", direction.into()),
            ("server_name", server_name.into()),
        ]))
    }

    /// Renders every mail, message and page in these languages with sample values, and gives back the hash of the style.
    fn try_everything<'a>(&self, languages: impl Iterator<Item = &'a Language>) -> Result<String, WordingError> {
        let mut styles = Vec::new();
        for language in languages {
            for purpose in Purpose::ALL {
                for minutes in [1, 30, 60, 120, 24 * 60, 48 * 60] {
                    let lifetime = Duration::from_secs(60 * minutes);
                    let link = "https://matrix.example.org/";
                    self.mail(&MailFacts { language, purpose, server_name: "example.org", link, lifetime })?;
                    self.sms(&SmsFacts { language, purpose, server_name: "example.org", code: "000000", lifetime })?;
                }
            }
            for kind in samples() {
                let page = self.page(&Page { language, server_name: "example.org", kind })?;
                styles.push(style_of(&page).ok_or(WordingError::Style)?.to_owned());
            }
        }
        styles.dedup();
        match styles.as_slice() {
            [style] => Ok(style_hash(style)),
            _ => Err(WordingError::Style),
        }
    }
}

impl std::fmt::Debug for Wording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wording(..)")
    }
}

/// Every kind of page, with sample values.
pub fn samples() -> impl Iterator<Item = PageKind<'static>> {
    use PageKind::{AlreadyConfirmed, Confirm, Confirmed, Invalid, Limited, TryLater};
    let confirm = |(purpose, next_link_host)| {
        let fields = &[("token", "0")];
        Confirm { purpose, masked_address: "a•••@example.org", next_link_host, fields }
    };
    let purposes = Purpose::ALL.into_iter().flat_map(|purpose| [(purpose, None), (purpose, Some("app.example.org"))]);
    [Confirmed, AlreadyConfirmed, Invalid, TryLater, Limited].into_iter().chain(purposes.map(confirm))
}

fn style_of(page: &str) -> Option<&str> {
    let (_, after) = page.split_once("<style>")?;
    let (style, rest) = after.split_once("</style>")?;
    (!rest.contains("<style")).then_some(style)
}

fn style_hash(style: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, style.as_bytes());
    format!("sha256-{}", base64::engine::general_purpose::STANDARD.encode(digest))
}
