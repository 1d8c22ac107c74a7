//! The words in each language: read, checked for completeness, chosen by `Accept-Language`.

#[cfg(test)]
mod built_in;
mod check;
mod plural;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::WordingError;
use check::Checked;

/// The catalogues compiled in, by tag; the first says which words there are. A file more in `config/languages/` and a
/// row here is a language more.
const BUILT_IN: [(&str, &str); 12] = [
    ("en", include_str!("../../config/languages/en.json")),
    ("ar", include_str!("../../config/languages/ar.json")),
    ("de", include_str!("../../config/languages/de.json")),
    ("es", include_str!("../../config/languages/es.json")),
    ("fr", include_str!("../../config/languages/fr.json")),
    ("it", include_str!("../../config/languages/it.json")),
    ("ja", include_str!("../../config/languages/ja.json")),
    ("nl", include_str!("../../config/languages/nl.json")),
    ("pl", include_str!("../../config/languages/pl.json")),
    ("pt", include_str!("../../config/languages/pt.json")),
    ("uk", include_str!("../../config/languages/uk.json")),
    ("zh-hans", include_str!("../../config/languages/zh-Hans.json")),
];

/// A span of time is said in these; each has a text for every plural category of its language.
const UNITS: [&str; 3] = ["minute", "hour", "day"];

/// A language there is a catalogue for, as its tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Language(Arc<str>);

impl Language {
    /// The tag, lower case: `en`, `pt-br`. `Wording::language` reads it back.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This language's `text` (found at `path`) with its `{name}`s filled in.
    pub(super) fn fill(&self, path: &str, text: &str, fills: &[(&str, &str)]) -> Result<String, WordingError> {
        filled(text, fills).map_err(|why| WordingError::Word {
            file: format!("{}.json", self.0),
            line: None,
            key: path.to_owned(),
            why,
            write: "correct it".to_owned(),
        })
    }
}

/// One language's words by dotted key: `mail.register.subject`.
pub(super) type Catalogue = BTreeMap<String, String>;

pub(super) struct Languages {
    catalogues: BTreeMap<Language, Catalogue>,
    /// Once more, so that it is always there.
    default: (Language, Catalogue),
}

impl Languages {
    /// The built-in catalogues, each laid over by the operator's file of the same name (`en.json`); a file for another
    /// language has to be complete.
    pub(super) fn new(
        default: &str,
        overrides: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<WordingError>> {
        let mut errors = Vec::new();
        let mut catalogues: BTreeMap<Language, Catalogue> = BTreeMap::new();
        for (tag, source) in BUILT_IN {
            errors.extend(read(tag, source, catalogues.entry(Language(tag.into())).or_default()).err());
        }
        let reference = catalogues.get(&Language("en".into())).cloned().unwrap_or_default();
        for (file, source) in overrides {
            let tag = file.trim_end_matches(".json").to_ascii_lowercase();
            let words = catalogues.entry(Language(tag.as_str().into())).or_default();
            match read(&file, &source, words) {
                Ok(()) => {
                    let checked = Checked { file: &file, source: &source, tag: &tag, words, reference: &reference };
                    errors.extend(checked.errors());
                }
                Err(error) => errors.push(error),
            }
        }
        let tag = Language(default.to_ascii_lowercase().into());
        let default_words = catalogues.get(&tag).cloned();
        if default_words.is_none() {
            let known = catalogues.keys().map(Language::as_str).collect::<Vec<_>>().join(", ");
            errors.push(WordingError::UnknownLanguage { tag: default.to_owned(), known });
        }
        match default_words.filter(|_| errors.is_empty()) {
            Some(words) => Ok(Self { catalogues, default: (tag, words) }),
            None => Err(errors),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Language> {
        self.catalogues.keys()
    }

    /// The words of a language, or of the default one when a reload has taken that language away.
    pub(super) fn catalogue(&self, language: &Language) -> (&Language, &Catalogue) {
        let (default, words) = &self.default;
        self.catalogues.get_key_value(language).unwrap_or((default, words))
    }

    /// A span in the largest unit that says it exactly: `90 minutes`, `2 hours`, `1 day`.
    pub(super) fn lifetime(&self, language: &Language, span: Duration) -> Result<String, WordingError> {
        let minutes = (span.as_secs() / 60).max(1);
        let (unit, count) = match minutes {
            days if days % (24 * 60) == 0 => ("day", days / (24 * 60)),
            hours if hours % 60 == 0 => ("hour", hours / 60),
            _ => ("minute", minutes),
        };
        let (language, catalogue) = self.catalogue(language);
        let path = format!("lifetime.{unit}.{}", plural::category(language.as_str(), count));
        let text = catalogue.get(&path).map_or("", String::as_str);
        language.fill(&path, text, &[("count", &count.to_string())])
    }

    /// The best of the languages there are, after RFC 4647 look-up: highest weight first, `de-AT` also finds `de`.
    pub(super) fn negotiate(&self, accept_language: Option<&str>) -> Language {
        let mut ranges: Vec<(&str, u16)> =
            accept_language.unwrap_or_default().split(',').filter_map(weighted).collect();
        ranges.sort_by_key(|(_, weight)| Reverse(*weight));
        ranges.into_iter().find_map(|(range, _)| self.find(range)).unwrap_or_else(|| self.default.0.clone())
    }

    fn find(&self, range: &str) -> Option<Language> {
        if range == "*" {
            return Some(self.default.0.clone());
        }
        let range = range.to_ascii_lowercase();
        self.look_up(range.clone()).or_else(|| self.look_up(with_script(&range)?))
    }

    fn look_up(&self, mut range: String) -> Option<Language> {
        loop {
            if let Some(found) = self.all().find(|language| language.as_str() == range) {
                return Some(found.clone());
            }
            range.truncate(range.rfind('-')?);
        }
    }
}

/// Chinese as browsers ask for it, by region, with the script that is read there: who reads one is not given the other.
fn with_script(range: &str) -> Option<String> {
    let rest = range.strip_prefix("zh").filter(|rest| rest.is_empty() || rest.starts_with('-'))?;
    let has = |wanted: &[&str]| rest.split('-').any(|subtag| wanted.contains(&subtag));
    if has(&["hans", "hant"]) {
        return None;
    }
    let script = if has(&["tw", "hk", "mo"]) { "hant" } else { "hans" };
    Some(format!("zh-{script}{rest}"))
}

/// `de-AT;q=0.8` as its range and thousandths of weight; nothing when it is unwanted (`q=0`) or not understood.
fn weighted(item: &str) -> Option<(&str, u16)> {
    let mut parts = item.split(';').map(str::trim);
    let range = parts.next().filter(|range| !range.is_empty())?;
    let weight = match parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="))) {
        None => 1000,
        Some(written) => thousandths(written)?,
    };
    (weight > 0).then_some((range, weight))
}

/// A `qvalue` of RFC 9110 (`1`, `0.8`, `0.125`) in whole numbers, so that weights compare without rounding.
fn thousandths(written: &str) -> Option<u16> {
    let (whole, fraction) = written.split_once('.').unwrap_or((written, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "1" => (fraction == 0).then_some(1000),
        "0" => Some(fraction),
        _ => None,
    }
}

/// Lays what a file says over `words`.
fn read(file: &str, source: &str, words: &mut Catalogue) -> Result<(), WordingError> {
    let wrong = |line, key: String, why: String, write: &str| WordingError::Word {
        file: file.to_owned(),
        line,
        key,
        why,
        write: write.to_owned(),
    };
    let value: Value = serde_json::from_str(source).map_err(|error| {
        let said = error.to_string();
        let why = said.split(" at line ").next().unwrap_or_default().to_owned();
        wrong(Some(error.line()), "not JSON".to_owned(), why, "correct the line")
    })?;
    flatten("", &value, words)
        .map_err(|key| wrong(None, key, "is neither a text nor a table of texts".to_owned(), "write a text"))
}

/// Or the key of what is no text.
fn flatten(path: &str, value: &Value, into: &mut Catalogue) -> Result<(), String> {
    match value {
        Value::String(words) => {
            into.insert(path.to_owned(), words.clone());
            Ok(())
        }
        Value::Object(entries) => entries.iter().try_for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            flatten(&path, value, into)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => Err(path.to_owned()),
    }
}

/// `text` with its `{name}`s filled in, or which of them is unknown.
fn filled(text: &str, fills: &[(&str, &str)]) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(|| "a '{' without its '}'".to_owned())?;
        let (_, value) =
            fills.iter().find(|(known, _)| *known == name).ok_or_else(|| format!("{{{name}}} is not known here"))?;
        out.push_str(before);
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_language_there_is_answers_accept_language() {
        let rows = [
            (None, "en"),
            (Some(""), "en"),
            (Some("de"), "de"),
            (Some("DE-at"), "de"),
            (Some("sv, de;q=0.5"), "de"),
            (Some("de;q=0.5, en;q=0.75"), "en"),
            (Some("de;q=0.501, en;q=0.5"), "de"),
            (Some("de;q=0, *"), "en"),
            (Some("*, de;q=0.9"), "en"),
            (Some("de;q=2, sv"), "en"),
            (Some("de;q=nonsense"), "en"),
            (Some(";;;,,--,\u{0}"), "en"),
            (Some("-"), "en"),
            (Some("pt-BR,pt;q=0.9,en;q=0.8"), "pt"),
            (Some("zh"), "zh-hans"),
            (Some("zh-CN,zh;q=0.9"), "zh-hans"),
            (Some("zh-Hans-SG"), "zh-hans"),
            (Some("zh-TW, ja;q=0.5"), "ja"),
            (Some("zh-Hant-HK"), "en"),
            (Some("ar-EG"), "ar"),
        ];
        let languages = Languages::new("en", []).unwrap();
        let mut ran = 0;
        for (accept, expected) in rows {
            assert_eq!(languages.negotiate(accept).as_str(), expected, "{accept:?}");
            ran += 1;
        }
        assert_eq!(ran, 20);
    }

    #[test]
    fn an_override_replaces_single_words() {
        let over = [("en.json".to_owned(), r#"{"mail":{"open":"Go"}}"#.to_owned())];
        let languages = Languages::new("en", over).unwrap();
        let (_, words) = languages.catalogue(&languages.negotiate(None));
        assert_eq!(words["mail.open"], "Go");
        assert!(words["confirm.unasked"].contains("close this page"));
    }

    fn faults(file: &str, source: &str) -> Vec<String> {
        let errors = Languages::new("en", [(file.to_owned(), source.to_owned())]).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_language_with_words_missing_says_so_once() {
        let named = "already_confirmed.title, confirm.account_3pid.button, confirm.account_3pid.lead";
        let [fault] = faults("sv.json", "{}").try_into().unwrap();
        assert!(
            fault.starts_with(&format!("sv.json: already_confirmed.text is missing, and so is {named}")),
            "{fault}"
        );
        assert!(fault.ends_with(" more"), "{fault}");
    }

    #[test]
    fn each_fault_of_a_catalogue_has_its_file_its_line_and_its_key() {
        let source = "{\n\"mial\": \"x\",\n\"mail\": {\n\"opne\": \"x\", \"lifetime\": \"For a while.\",\n\
                      \"register\": {\"lead\": \"{serve_name}\",\n\"unasked\": \"{name\"}\n},\n\
                      \"sms\": {\"password\": {\"code\": \"{server_name}: your code\"}},\n\
                      \"lifetime\": {\"hour\": {\"one\": \"an hour\", \"other\": \"some hours\", \"few\": \"{count}\"}},\n\
                      \"direction\": \"left\"}";
        let expected = [
            "en.json:10: direction \"left\" is none",
            "en.json:9: lifetime.hour.few is no key",
            "en.json:9: lifetime.hour.other leaves {count} out",
            "en.json:4: mail.lifetime leaves {lifetime} out",
            "en.json:4: mail.opne is no key",
            "en.json:5: mail.register.lead {serve_name} is not known here",
            "en.json:6: mail.register.unasked has a '{' without its '}'",
            "en.json:2: mial is no key",
            "en.json:8: sms.password.code leaves {code} out",
        ];
        assert_eq!(faults("en.json", source), expected);
        assert_eq!(
            faults("en.json", "{\"mail\":{\"open\":1}}"),
            ["en.json: mail.open is neither a text nor a table of texts"]
        );
        assert_eq!(faults("en.json", "{\n oops"), ["en.json:2: not JSON key must be a string"]);
    }

    #[test]
    fn an_unknown_default_language_is_refused_and_the_known_ones_are_named() {
        let faults = Languages::new("xx", []).err().expect("a fault");
        assert_eq!(
            faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["there is no language xx; there are ar, de, en, es, fr, it, ja, nl, pl, pt, uk, zh-hans"]
        );
    }

    #[test]
    fn a_lifetime_is_said_in_its_largest_whole_unit() {
        let languages = Languages::new("en", []).unwrap();
        let minutes = [(0, "1 minute"), (10, "10 minutes"), (60, "1 hour"), (90, "90 minutes"), (120, "2 hours")];
        for (minutes, said) in minutes.into_iter().chain([(24 * 60, "1 day"), (48 * 60, "2 days")]) {
            let span = Duration::from_secs(60 * minutes);
            assert_eq!(languages.lifetime(&languages.negotiate(None), span).unwrap(), said);
        }
    }

    #[test]
    fn placeholders_are_filled_once_and_unknown_ones_are_faults() {
        assert_eq!(filled("{a} and {a}{b}", &[("a", "{b}"), ("b", "2")]).as_deref(), Ok("{b} and {b}2"));
        assert_eq!(filled("{c}", &[]).unwrap_err(), "{c} is not known here");
        assert_eq!(filled("{c", &[]).unwrap_err(), "a '{' without its '}'");
    }
}
