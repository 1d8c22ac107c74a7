//! What people read: mails, messages and pages, from templates and words that an operator can replace.

mod branding;
mod fault;
mod language;
mod sms;
mod template;
#[cfg(test)]
mod tests;
mod trial;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use minijinja::Value;

use crate::config::{Branding, Config, Faults, Logo};
use crate::matrix::Purpose;

pub use branding::LOGO_ID;
use branding::{Brand, Place};
pub use fault::{WordingError, WordingErrors};
pub use language::Language;
use language::Languages;
pub use sms::SmsFacts;
pub use template::TEMPLATES;
use template::{Templates, wrapped};
pub use trial::samples;

const SUBJECT: &str = "subject.txt";
const TEXT: &str = "mail.txt";
const HTML: &str = "mail.html";
/// The templates of a mail.
const MAIL: [&str; 3] = [SUBJECT, TEXT, HTML];
const PAGE: &str = "page.html";
const CONFIRM: &str = "confirm.html";
const NOTICE: &str = "notice.html";

/// Every template and language there is, and none that cannot be rendered.
pub struct Wording {
    templates: Templates,
    languages: Languages,
    brand: Brand,
    style_hash: String,
}

/// The wording in force; a reload puts another in its place.
pub type Shared = Arc<ArcSwap<Wording>>;

/// What a mail says. Nothing in it was written by whoever asked for the mail (CVE-2021-29432).
#[derive(Clone, Copy)]
pub struct MailFacts<'a> {
    pub language: &'a Language,
    pub purpose: Purpose,
    pub server_name: &'a str,
    pub link: &'a str,
    /// How long the link is good.
    pub lifetime: Duration,
}

/// A mail's words, rendered. `subject` is one line.
#[derive(Clone, PartialEq, Eq)]
pub struct MailText {
    /// A language tag.
    pub language: String,
    pub subject: String,
    pub text: String,
    pub html: String,
    /// What `html` shows by [`LOGO_ID`], if it does.
    pub logo: Option<Arc<Logo>>,
}

#[derive(Clone, Copy)]
pub struct Page<'a> {
    pub language: &'a Language,
    pub server_name: &'a str,
    pub kind: PageKind<'a>,
}

crate::matrix::hidden!(MailFacts<'_>, MailText, Page<'_>);

#[derive(Clone, Copy)]
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

impl Wording {
    /// As the operator wants it, or everything that is wrong with his files, each fault with its place.
    pub fn of(config: &Config) -> Result<Self, Faults> {
        let files = config.wording.templates.iter().map(|(file, found)| (file.clone(), found.text.clone()));
        let made = Self::branded(&config.wording.default_language, files, config.branding.clone());
        made.map_err(|errors| errors.faults(config))
    }

    /// `overrides` are files by name: a template replaces the built-in one, `en.json` the words it holds, and another
    /// language's `.json` adds that language.
    pub fn new(
        default_language: &str,
        overrides: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, WordingErrors> {
        Self::branded(default_language, overrides, Branding::default())
    }

    /// With any `overrides` everything is rendered with sample values, so that a fault shows at the start.
    pub fn branded(
        default_language: &str,
        overrides: impl IntoIterator<Item = (String, String)>,
        branding: Branding,
    ) -> Result<Self, WordingErrors> {
        let (catalogues, templates): (Vec<_>, Vec<_>) =
            overrides.into_iter().partition(|(file, _)| file.strip_suffix(".json").is_some());
        // What was compiled in is tried by the tests.
        let is_as_built = catalogues.is_empty() && templates.is_empty();
        let (languages, templates) = match (Languages::new(default_language, catalogues), Templates::new(templates)) {
            (Ok(languages), Ok(templates)) => (languages, templates),
            (languages, templates) => {
                let faulty = [languages.err(), templates.err()];
                return Err(WordingErrors(faulty.into_iter().flatten().flatten().collect()));
            }
        };
        let mut wording = Self { templates, languages, brand: Brand::new(branding), style_hash: String::new() };
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
        let context = self.mail_context(facts)?;
        let subject = self.templates.render(SUBJECT, &context)?;
        let html = self.templates.render(HTML, &context)?;
        let (language, _) = self.languages.catalogue(facts.language);
        Ok(MailText {
            language: language.as_str().to_owned(),
            subject: subject.split_whitespace().collect::<Vec<_>>().join(" "),
            text: wrapped(&self.templates.render(TEXT, &context)?),
            logo: self.brand.logo().filter(|_| html.contains(LOGO_ID)).cloned(),
            html,
        })
    }

    fn mail_context(&self, facts: &MailFacts<'_>) -> Result<BTreeMap<&'static str, Value>, WordingError> {
        let lifetime = self.languages.lifetime(facts.language, facts.lifetime)?;
        let sections = ["contact", "mail", &format!("mail.{}", facts.purpose.as_str())];
        let fills = [("lifetime", lifetime.as_str())];
        let mut context = self.context(facts.language, facts.server_name, Place::Mail, &sections, &fills)?;
        context.insert("purpose", facts.purpose.as_str().into());
        context.insert("link", facts.link.into());
        Ok(context)
    }

    pub fn page(&self, page: &Page<'_>) -> Result<String, WordingError> {
        let context = |sections: &[&str]| self.context(page.language, page.server_name, Place::Page, sections, &[]);
        let notice = |section: &str, done: bool| {
            context(&["contact", section]).map(|mut context| {
                context.insert("done", done.into());
                context
            })
        };
        let (template, context) = match page.kind {
            PageKind::Confirm { purpose, masked_address, next_link_host, fields } => {
                let mut context = context(&["contact", "confirm", &format!("confirm.{}", purpose.as_str())])?;
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

    /// Whether pages show an image, which is in them as a `data:` URL.
    pub fn has_logo(&self) -> bool {
        self.brand.logo().is_some()
    }

    /// What every template may name: `t`, the words of `sections` (the later wins), and whose page it is.
    fn context(
        &self,
        language: &Language,
        server_name: &str,
        place: Place,
        sections: &[&str],
        more: &[(&str, &str)],
    ) -> Result<BTreeMap<&'static str, Value>, WordingError> {
        let mut words: BTreeMap<String, Value> = BTreeMap::new();
        let (language, catalogue) = self.languages.catalogue(language);
        let direction = catalogue.get("direction").map_or("ltr", String::as_str);
        let (server, name) = (apart(server_name, direction), apart(self.brand.name(server_name), direction));
        let mut fills = vec![("server_name", server.as_ref()), ("name", name.as_ref())];
        fills.extend(more);
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
            ("brand", self.brand.value(server_name, place)),
        ]))
    }
}

impl std::fmt::Debug for Wording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wording(..)")
    }
}

/// A name that is read in the other direction stands apart (the isolates of UAX #9), or its dots and what follows it
/// change places.
fn apart<'a>(name: &'a str, direction: &str) -> Cow<'a, str> {
    let from_the_right =
        |c: char| matches!(c, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{feff}');
    if direction == "rtl" || name.contains(from_the_right) {
        Cow::from(format!("\u{2068}{name}\u{2069}"))
    } else {
        Cow::from(name)
    }
}
