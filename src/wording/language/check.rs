//! An operator's catalogue held against the English one: its keys, its plural forms, the values its texts name.

use std::collections::BTreeSet;

use super::{Catalogue, UNITS, plural};
use crate::wording::WordingError;

/// How many of the words that are not there are named.
const NAMED: usize = 5;

/// A file, and all that is said in its language once it has been read.
pub(super) struct Checked<'a> {
    pub(super) file: &'a str,
    pub(super) source: &'a str,
    /// Lower case.
    pub(super) tag: &'a str,
    pub(super) words: &'a Catalogue,
    /// The English words compiled in.
    pub(super) reference: &'a Catalogue,
}

impl Checked<'_> {
    pub(super) fn errors(&self) -> Vec<WordingError> {
        let wanted = wanted_keys(self.tag, self.reference);
        let mut errors: Vec<_> = self.missing(&wanted).into_iter().collect();
        for (key, text) in self.words {
            let wrong = if wanted.contains(key) { self.wrong(key, text) } else { Some(no_such_key(key, &wanted)) };
            // What is as it was compiled in stands in no line of this file, and is right.
            if let (Some((why, write)), Some(line)) = (wrong, line_of(self.source, key)) {
                errors.push(self.error(Some(line), key, why, write));
            }
        }
        errors
    }

    fn missing(&self, wanted: &BTreeSet<String>) -> Option<WordingError> {
        let missing: Vec<&str> =
            wanted.iter().filter(|key| !self.words.contains_key(*key)).map(String::as_str).collect();
        let (first, others) = missing.split_first()?;
        let named = others.get(..NAMED.min(others.len())).unwrap_or_default().join(", ");
        let why = match others.len() {
            0 => "is missing".to_owned(),
            1..=NAMED => format!("is missing, and so is {named}"),
            more => format!("is missing, and so is {named} and {} more", more - NAMED),
        };
        let write = "write it after config/languages/en.json, and for each plural form that CLDR gives the language";
        Some(self.error(None, first, why, write.to_owned()))
    }

    fn error(&self, line: Option<usize>, key: &str, why: String, write: String) -> WordingError {
        WordingError::Word { file: self.file.to_owned(), line, key: key.to_owned(), why, write }
    }

    /// What is wrong with a text, and what to write.
    fn wrong(&self, key: &str, text: &str) -> Option<(String, String)> {
        if key == "direction" {
            let is_known = matches!(text, "ltr" | "rtl");
            return (!is_known).then(|| (format!("{text:?} is none"), "write \"ltr\" or \"rtl\"".to_owned()));
        }
        let known = known_values(key);
        let written = match values(text) {
            Ok(written) => written,
            Err(why) => return Some((why, "write {name} with both its braces".to_owned())),
        };
        if let Some(unknown) = written.iter().find(|name| !known.contains(name)) {
            let known: Vec<String> = known.iter().map(|name| format!("{{{name}}}")).collect();
            return Some((format!("{{{unknown}}} is not known here"), format!("write one of {}", known.join(", "))));
        }
        let wanted = if has_to_count(key) {
            BTreeSet::from(["count"])
        } else if has_to_say_all(key) {
            self.reference.get(key).and_then(|english| values(english).ok()).unwrap_or_default()
        } else {
            BTreeSet::new()
        };
        let left_out = wanted.iter().find(|name| !written.contains(*name))?;
        Some((format!("leaves {{{left_out}}} out"), "write where it stands, as the English text does".to_owned()))
    }
}

fn no_such_key(key: &str, wanted: &BTreeSet<String>) -> (String, String) {
    let near = crate::config::nearest(key, wanted.iter().map(String::as_str));
    let write = near.map_or_else(|| "remove it".to_owned(), |near| format!("did you mean {near}?"));
    ("is no key".to_owned(), write)
}

/// English has them all, but for the plural categories that only another language has.
pub(super) fn wanted_keys(tag: &str, reference: &Catalogue) -> BTreeSet<String> {
    let spans = UNITS
        .into_iter()
        .flat_map(|unit| plural::categories(tag).iter().map(move |category| format!("lifetime.{unit}.{category}")));
    reference.keys().filter(|key| !key.starts_with("lifetime.")).cloned().chain(spans).collect()
}

fn known_values(key: &str) -> &'static [&'static str] {
    match key.split('.').next() {
        Some("lifetime") => &["count"],
        Some("mail") => &["server_name", "name", "lifetime"],
        Some("sms") => &["server_name", "name", "code", "lifetime"],
        _ => &["server_name", "name"],
    }
}

/// What a person decides by: for which server, with which code, for how long.
fn has_to_say_all(key: &str) -> bool {
    matches!(key.rsplit('.').next(), Some("lead" | "code" | "lifetime"))
}

/// A form that is used for one number alone may say it in a word; each other one says the number.
fn has_to_count(key: &str) -> bool {
    let is_said_in_a_word = matches!(key.rsplit('.').next(), Some("zero" | "one" | "two"));
    key.starts_with("lifetime.") && !is_said_in_a_word
}

/// The names in braces.
pub(super) fn values(text: &str) -> Result<BTreeSet<&str>, String> {
    let names = text.split('{').skip(1).map(|rest| rest.split_once('}').map(|(name, _)| name));
    names.collect::<Option<_>>().ok_or_else(|| "has a '{' without its '}'".to_owned())
}

/// The line in which a key's last name stands, in JSON that parses; of the last, where it is written twice.
fn line_of(source: &str, path: &str) -> Option<usize> {
    let (mut line, mut found) = (1, None);
    let (mut names, mut opened): (Vec<String>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut text = String::new();
    let mut characters = source.chars();
    while let Some(character) = characters.next() {
        match character {
            '\n' => line += 1,
            '{' => opened.push(names.len()),
            '}' => drop(opened.pop()),
            // What stood before it was a name: of the object that is open, in place of the one before.
            ':' => {
                names.truncate(opened.last().copied().unwrap_or_default());
                names.push(text.clone());
                if names.join(".") == path {
                    found = Some(line);
                }
            }
            '"' => {
                text.clear();
                while let Some(inner) = characters.next().filter(|inner| *inner != '"') {
                    text.push(inner);
                    if inner == '\\' {
                        text.extend(characters.next());
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_word_is_found_whatever_stands_around_it() {
        let source = "{\n \"a\": {\"x\": \"} \\\" { : \",\n \"y\": \"1\"},\n\n\"b\":\n{ \"x\"\n: \"\" }, \"c\": \"\" }";
        let rows = [("a.x", 2), ("a.y", 3), ("b", 5), ("b.x", 7), ("c", 7)];
        for (path, line) in rows {
            assert_eq!(line_of(source, path), Some(line), "{path}");
        }
        for path in ["x", "a.b", "b.y", "a.c"] {
            assert_eq!(line_of(source, path), None, "{path}");
        }
    }
}
