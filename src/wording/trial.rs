//! Everything there is, rendered with sample values before any of it is used.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;

use super::{
    CONFIRM, Language, MAIL, MailFacts, NOTICE, PAGE, Page, PageKind, SmsFacts, Wording, WordingError, WordingErrors,
};
use crate::matrix::Purpose;

/// One of each plural category that any language has for them.
const MINUTES: [u64; 7] = [1, 2, 30, 60, 5 * 60, 24 * 60, 48 * 60];

#[derive(Default)]
struct Trial {
    /// A template that has failed once is not tried again: an endless one would take its time in every language.
    failed: BTreeSet<&'static str>,
    errors: Vec<WordingError>,
    styles: BTreeSet<String>,
}

impl Trial {
    fn note<T>(&mut self, template: &'static str, rendered: Result<T, WordingError>) -> Option<T> {
        rendered
            .map_err(|error| {
                self.failed.insert(template);
                if !self.errors.contains(&error) {
                    self.errors.push(error);
                }
            })
            .ok()
    }
}

impl Wording {
    /// Renders every mail, message and page in these languages, and gives back the hash of the style.
    pub(super) fn try_everything<'a>(
        &self,
        languages: impl Iterator<Item = &'a Language>,
    ) -> Result<String, WordingErrors> {
        let mut trial = Trial::default();
        for language in languages {
            for purpose in Purpose::ALL {
                for minutes in MINUTES {
                    self.try_purpose(&mut trial, language, purpose, Duration::from_secs(60 * minutes));
                }
            }
            for kind in samples() {
                self.try_page(&mut trial, language, kind);
            }
        }
        match (trial.errors.is_empty(), trial.styles.first(), trial.styles.len()) {
            (true, Some(style), 1) => Ok(style_hash(style)),
            (true, _, _) => Err(WordingErrors(vec![WordingError::Style { file: PAGE.to_owned() }])),
            (false, _, _) => Err(WordingErrors(trial.errors)),
        }
    }

    fn try_purpose(&self, trial: &mut Trial, language: &Language, purpose: Purpose, lifetime: Duration) {
        let (server_name, link) = ("example.org", "https://matrix.example.org/");
        let facts = MailFacts { language, purpose, server_name, link, lifetime };
        for template in MAIL.into_iter().filter(|template| !trial.failed.contains(template)).collect::<Vec<_>>() {
            let rendered = self.mail_context(&facts).and_then(|context| self.templates.render(template, &context));
            trial.note(template, rendered);
        }
        if !trial.failed.contains("sms.txt") {
            let facts = SmsFacts { language, purpose, server_name, code: "000000", lifetime };
            trial.note("sms.txt", self.sms(&facts));
        }
    }

    fn try_page(&self, trial: &mut Trial, language: &Language, kind: PageKind<'_>) {
        let template = if matches!(kind, PageKind::Confirm { .. }) { CONFIRM } else { NOTICE };
        if trial.failed.contains(template) {
            return;
        }
        let rendered = self.page(&Page { language, server_name: "example.org", kind });
        let Some(page) = trial.note(template, rendered) else { return };
        // One that is written anew in a template of its own has a style of its own: the template is at fault.
        match style_of(&page) {
            Some(style) => drop(trial.styles.insert(style.to_owned())),
            None => drop(trial.note::<()>(template, Err(WordingError::Style { file: template.to_owned() }))),
        }
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
