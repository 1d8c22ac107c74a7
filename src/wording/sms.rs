//! What a message says: one line, short enough for one SMS.

use std::time::Duration;

use super::{Language, Place, Wording, WordingError};
use crate::matrix::Purpose;

/// What a message says. Nothing in it was written by whoever asked for it.
#[derive(Clone, Copy)]
pub struct SmsFacts<'a> {
    pub language: &'a Language,
    pub purpose: Purpose,
    pub server_name: &'a str,
    pub code: &'a str,
    /// How long the code is good.
    pub lifetime: Duration,
}

crate::matrix::hidden!(SmsFacts<'_>);

impl Wording {
    /// The text of a message. In English and with a server name of usual length it fits one SMS of 160 characters.
    pub fn sms(&self, facts: &SmsFacts<'_>) -> Result<String, WordingError> {
        let lifetime = self.languages.lifetime(facts.language, facts.lifetime)?;
        let fills = [("code", facts.code), ("lifetime", lifetime.as_str())];
        let sections = ["sms", &format!("sms.{}", facts.purpose.as_str())];
        let mut context = self.context(facts.language, facts.server_name, Place::Message, &sections, &fills)?;
        context.insert("purpose", facts.purpose.as_str().into());
        context.insert("code", facts.code.into());
        let text = self.templates.render("sms.txt", &context)?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GSM 03.38's basic alphabet without its Greek letters: a character more makes the whole message UCS-2, with less
    /// than half its room.
    const GSM_7: &str = "@£$¥èéùìòÇ\nØø\rÅåÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿\
                         abcdefghijklmnopqrstuvwxyzäöñüà_";

    /// How many messages it is billed as.
    fn segments(text: &str) -> usize {
        let (length, alone, each) = if text.chars().all(|c| GSM_7.contains(c)) {
            (text.chars().count(), 160, 153)
        } else {
            (text.encode_utf16().count(), 70, 67)
        };
        if length <= alone { 1 } else { length.div_ceil(each) }
    }

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
            assert_eq!(segments(&text), 1, "{} characters: {text}", text.len());
        }
    }

    /// What config/README.md says it costs.
    #[test]
    fn in_no_language_does_a_message_take_more_than_three_sms_and_where_gsm_7_has_all_letters_not_more_than_two() {
        let wording = Wording::new("en", []).unwrap();
        let mut ran = 0;
        for language in wording.languages() {
            let most = match language.as_str() {
                "de" | "en" | "fr" | "it" | "nl" | "ja" | "zh-hans" => (1, 2),
                _ => (2, 3),
            };
            for purpose in Purpose::ALL {
                for minutes in [10, 11, 60, 120] {
                    let lifetime = Duration::from_secs(60 * minutes);
                    let facts = |server_name| SmsFacts { language, purpose, server_name, code: "042137", lifetime };
                    // 11 and 40 characters.
                    for (server_name, most) in
                        [("example.org", most.0), ("homeserver.chat.department.example.co.uk", most.1)]
                    {
                        let text = wording.sms(&facts(server_name)).unwrap();
                        assert!(segments(&text) <= most, "{language:?}: {} of {most}: {text}", segments(&text));
                        ran += 1;
                    }
                }
            }
        }
        assert_eq!(ran, 12 * 4 * 4 * 2);
    }

    #[test]
    fn an_operators_message_is_tried_at_the_start() {
        let fault = |source: &str| Wording::new("en", [("sms.txt".to_owned(), source.to_owned())]).err();
        assert!(fault("{{ code }} for {{ server_name }}").is_none());
        let fault = fault("{{ cod }}").map(|error| error.to_string()).unwrap_or_default();
        assert!(fault.starts_with("sms.txt:1: undefined value"), "{fault}");
    }
}
