//! What people read: mails, messages and pages, from templates and words that an operator can replace.

mod language;
mod sms;
mod template;

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
use template::{Templates, wrapped};

const CONFIRM: &str = "confirm.html";
const NOTICE: &str = "notice.html";

/// Every template and language, each rendered once when this was made.
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
    /// language's `.json` adds that language. All are rendered with sample values, so that a fault shows at the start.
    pub fn new(
        default_language: &str,
        overrides: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, WordingError> {
        let (catalogues, templates): (Vec<_>, Vec<_>) =
            overrides.into_iter().partition(|(file, _)| file.strip_suffix(".json").is_some());
        let languages = Languages::new(default_language, catalogues)?;
        let mut wording = Self { templates: Templates::new(templates)?, languages, style_hash: String::new() };
        wording.style_hash = wording.try_everything()?;
        Ok(wording)
    }

    /// The best language there is for an `Accept-Language` field, or for a tag that `Language::as_str` gave.
    pub fn language(&self, accept_language: Option<&str>) -> Language {
        self.languages.negotiate(accept_language)
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
        for section in sections {
            for (path, text) in catalogue {
                let Some((parent, key)) = path.rsplit_once('.') else { continue };
                if parent == *section {
                    words.insert(key.to_owned(), language.fill(path, text, fills)?.into());
                }
            }
        }
        Ok(BTreeMap::from([
            ("t", Value::from(words)),
            ("lang", language.as_str().into()),
            ("dir", catalogue.get("direction").map_or("ltr", String::as_str).into()),
            ("server_name", server_name.into()),
        ]))
    }

    /// Renders every mail, message and page in every language with sample values, and gives back the hash of the style.
    fn try_everything(&self) -> Result<String, WordingError> {
        let mut styles = Vec::new();
        for language in self.languages.all() {
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

fn samples() -> impl Iterator<Item = PageKind<'static>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\"'><svg onload=alert(1)>{{ 7*7 }}</style><a href=\"https://evil.example\">\r\nBcc: x@y";
    const LINK: &str = "https://matrix.example.org/submit_token?token=0123&sid=shim_0&client_secret=a.b=c";

    fn english() -> (Wording, Language) {
        let wording = Wording::new("en", []).unwrap();
        let language = wording.language(Some("en"));
        (wording, language)
    }

    fn mail(purpose: Purpose, server_name: &str, link: &str) -> MailText {
        let (wording, language) = english();
        let lifetime = Duration::from_secs(3600);
        wording.mail(&MailFacts { language: &language, purpose, server_name, link, lifetime }).unwrap()
    }

    fn page(kind: PageKind<'_>, server_name: &str) -> String {
        let (wording, language) = english();
        wording.page(&Page { language: &language, server_name, kind }).unwrap()
    }

    /// S§4.19.
    #[test]
    fn every_mail_says_what_for_where_how_long_and_what_to_do_if_it_was_not_you() {
        let mut subjects = std::collections::BTreeSet::new();
        for purpose in Purpose::ALL {
            let mail = mail(purpose, "example.org", LINK);
            let text = mail.text.split_whitespace().collect::<Vec<_>>().join(" ");
            for sentence in ["If this was not you", "The link works for 1 hour.", "on example.org"] {
                assert!(text.contains(sentence), "{purpose:?} text lacks {sentence}");
                assert!(mail.html.contains(sentence), "{purpose:?} html lacks {sentence}");
            }
            assert!(mail.subject.contains("example.org") && !mail.subject.contains("http"));
            subjects.insert(mail.subject);
        }
        assert_eq!(subjects.len(), Purpose::ALL.len());
    }

    #[test]
    fn a_mail_holds_exactly_one_link_in_each_part() {
        for purpose in Purpose::ALL {
            let mail = mail(purpose, "example.org", LINK);
            assert_eq!(mail.text.matches("://").count(), 1);
            assert!(mail.text.lines().any(|line| line == LINK), "the link is a line of its own");
            assert_eq!(mail.html.matches("://").count(), 1);
            assert_eq!(mail.html.matches("href=").count(), 1);
            assert!(mail.html.contains(&format!("<a href=\"{}\"", LINK.replace('&', "&amp;"))));
        }
    }

    /// S§4.15.
    #[test]
    fn hostile_values_make_no_element_and_no_header_in_any_mail() {
        for purpose in Purpose::ALL {
            let (plain, hostile) = (mail(purpose, "x", "y"), mail(purpose, HOSTILE, HOSTILE));
            assert_eq!(plain.html.matches('<').count(), hostile.html.matches('<').count());
            assert!(!hostile.subject.contains(['\r', '\n']));
        }
    }

    #[test]
    fn hostile_values_make_no_element_on_any_page() {
        let mut ran = 0;
        for kind in samples() {
            let hostile = match kind {
                PageKind::Confirm { purpose, next_link_host, .. } => PageKind::Confirm {
                    purpose,
                    masked_address: HOSTILE,
                    next_link_host: next_link_host.map(|_| HOSTILE),
                    fields: &[(HOSTILE, HOSTILE)],
                },
                PageKind::Confirmed
                | PageKind::AlreadyConfirmed
                | PageKind::Invalid
                | PageKind::TryLater
                | PageKind::Limited => kind,
            };
            let (plain, hostile) = (page(kind, "example.org"), page(hostile, HOSTILE));
            for mark in ["<", ">", "\""] {
                assert_eq!(plain.matches(mark).count(), hostile.matches(mark).count(), "{mark} in {hostile}");
            }
            assert!(!hostile.contains("49"), "a value is never a template");
            ran += 1;
        }
        assert_eq!(ran, 13);
    }

    #[test]
    fn the_confirm_page_says_what_where_whose_and_what_to_do_if_it_was_not_you() {
        for purpose in Purpose::ALL {
            let fields = &[("token", "0123"), ("sid", "shim_0")];
            let next_link_host = Some("app.example.net");
            let masked_address = "a•••@example.com";
            let page = page(PageKind::Confirm { purpose, masked_address, next_link_host, fields }, "example.org");
            assert!(page.contains("If you did not ask for this, close this page."), "{purpose:?}");
            for fact in [masked_address, "<dd>example.org</dd>", "<dd>app.example.net</dd>"] {
                assert!(page.contains(fact), "{purpose:?} lacks {fact}");
            }
            assert_eq!(page.matches("<button type=\"submit\"").count(), 1);
            assert!(page.contains("<form method=\"post\" action=\"?\""));
            assert!(page.contains("<input type=\"hidden\" name=\"token\" value=\"0123\">"));
        }
    }

    #[test]
    fn every_page_stands_alone_and_speaks_to_a_screen_reader() {
        for kind in samples() {
            let page = page(kind, "example.org");
            assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\" dir=\"ltr\">"));
            for once in ["<main>", "<h1>", "<title>", "<style>", "name=\"viewport\"", "content=\"noindex\""] {
                assert_eq!(page.matches(once).count(), 1, "{once}");
            }
            for never in ["://", "src=", "href=", "style=", "<script", "<link", "url(", "@import"] {
                assert!(!page.contains(never), "{never}");
            }
            assert!(page.contains("prefers-color-scheme: dark") && page.contains(":focus-visible"));
        }
    }

    #[test]
    fn the_style_hash_is_that_of_the_style_on_the_page() {
        let over = [("style.css".to_owned(), "p {\r\n color: red }".to_owned())];
        let wording = Wording::new("en", over).unwrap();
        // As `openssl dgst -sha256 -binary | base64` says of "p {\n color: red }".
        assert_eq!(wording.style_hash(), "sha256-++wI16RAoC2SQAZ77WKyRauqH1O4ZVHUj5Kwxl7Iejg=");
        let language = wording.language(None);
        let page = Page { language: &language, server_name: "x", kind: PageKind::Invalid };
        assert!(wording.page(&page).unwrap().contains("<style>p {\n color: red }</style>"));
        assert_ne!(english().0.style_hash(), wording.style_hash());
    }

    #[test]
    fn a_broken_override_fails_at_the_start_with_its_file_and_line() {
        let fault = |file: &str, source: &str| {
            Wording::new("en", [(file.to_owned(), source.to_owned())])
                .err()
                .map(|it| it.to_string())
                .unwrap_or_default()
        };
        assert!(fault("mail.txt", "x\n{{ client_secret }}").starts_with("mail.txt:2: undefined value"));
        assert!(fault("confirm.html", "{% block %}").starts_with("confirm.html:1: syntax error"));
        assert_eq!(fault("notice.html", "no style").lines().count(), 1);
        assert!(fault("nonsense.txt", "").contains("there is no such template"));
        assert_eq!(
            fault("en.json", r#"{"confirm":{"next":"{host}"}}"#),
            "en.json: confirm.next: {host} is not known here"
        );
    }
}
