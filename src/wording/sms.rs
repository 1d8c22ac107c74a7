//! What a message says: one line, short enough for one SMS.

use std::time::Duration;

use super::{Language, Wording, WordingError};
use crate::matrix::Purpose;

/// What a message says. Nothing in it was written by whoever asked for it.
#[derive(Debug, Clone, Copy)]
pub struct SmsFacts<'a> {
    pub language: &'a Language,
    pub purpose: Purpose,
    pub server_name: &'a str,
    pub code: &'a str,
    /// How long the code is good.
    pub lifetime: Duration,
}

impl Wording {
    /// The text of a message. In English and with a server name of usual length it fits one SMS of 160 characters.
    pub fn sms(&self, facts: &SmsFacts<'_>) -> Result<String, WordingError> {
        let lifetime = self.languages.lifetime(facts.language, facts.lifetime)?;
        let fills = [("server_name", facts.server_name), ("code", facts.code), ("lifetime", &lifetime)];
        let sections = ["sms", &format!("sms.{}", facts.purpose.as_str())];
        let mut context = self.context(facts.language, facts.server_name, &sections, &fills)?;
        context.insert("purpose", facts.purpose.as_str().into());
        context.insert("code", facts.code.into());
        let text = self.templates.render("sms.txt", &context)?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of GSM 03.38's basic alphabet, what our words may hold: one character each, and none that makes the whole message
    /// UCS-2, which halves its room.
    const GSM_7: &str = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;-'\"!?()/%&*+<=>@_";

    fn sms(purpose: Purpose, server_name: &str) -> String {
        let wording = Wording::new("en", []).unwrap();
        let language = wording.language(None);
        let lifetime = Duration::from_secs(600);
        wording.sms(&SmsFacts { language: &language, purpose, server_name, code: "042137", lifetime }).unwrap()
    }

    #[test]
    fn a_message_says_what_for_where_how_long_and_what_to_do_if_it_was_not_you() {
        let mut texts = std::collections::BTreeSet::new();
        for purpose in Purpose::ALL {
            let text = sms(purpose, "example.org");
            for part in ["042137 ", "example.org", "10 minutes", "If you did not ask for it, ignore this."] {
                assert_eq!(text.matches(part).count(), 1, "{purpose:?}: {part} in {text}");
            }
            assert!(!text.contains("://") && !text.contains(['\n', '\r']));
            texts.insert(text);
        }
        assert_eq!(texts.len(), Purpose::ALL.len());
    }

    #[test]
    fn an_english_message_fits_one_sms() {
        for purpose in Purpose::ALL {
            let text = sms(purpose, "matrix.chat.example.org");
            assert!(text.len() <= 160, "{} characters: {text}", text.len());
            assert!(text.chars().all(|c| GSM_7.contains(c)), "{text}");
        }
    }

    #[test]
    fn an_operators_message_is_tried_at_the_start() {
        let fault = |source: &str| Wording::new("en", [("sms.txt".to_owned(), source.to_owned())]).err();
        assert!(fault("{{ code }} for {{ server_name }}").is_none());
        let fault = fault("{{ cod }}").map(|error| error.to_string()).unwrap_or_default();
        assert!(fault.starts_with("sms.txt:1: undefined value"), "{fault}");
    }
}
