//! What was written: every known key of the file with its line, then the environment's on top.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::fault::{Fault, Place, Wrong, nearest};
use crate::config::grammar::Grammar;

/// `THREEPID_SHIM__EMAIL__HOST` is `email.host`.
pub(crate) const PREFIX: &str = "THREEPID_SHIM__";

/// A value before anybody has looked at its meaning. No `Debug`: it may be a secret.
#[derive(Clone)]
pub(crate) enum Written {
    Text(String),
    Integer(String),
    Flag(bool),
    List(Vec<Written>),
    Table(BTreeMap<String, Written>),
    /// What no key takes, by its name: a float, a date.
    Other(&'static str),
    /// From the environment, where everything is text until a grammar knows better.
    Variable(String),
}

impl Written {
    fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => Self::Integer(number.as_str().to_owned()),
            DeValue::Integer(_) => Self::Other("a number that is not decimal"),
            DeValue::Boolean(flag) => Self::Flag(*flag),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::from_toml(item.get_ref())).collect()),
            DeValue::Table(table) => Self::Table(
                table
                    .iter()
                    .map(|(key, value)| (key.get_ref().to_string(), Self::from_toml(value.get_ref())))
                    .collect(),
            ),
            DeValue::Float(_) => Self::Other("a number with a fraction"),
            DeValue::Datetime(_) => Self::Other("a date"),
        }
    }

    /// A value in TOML's spelling, as the table of keys gives its defaults.
    pub(crate) fn parse(toml: &str) -> Option<Self> {
        DeValue::parse(toml).ok().map(|value| Self::from_toml(value.get_ref()))
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) | Self::Variable(text) = self { Some(text) } else { None }
    }

    pub(crate) fn integer(&self) -> Option<&str> {
        if let Self::Integer(digits) | Self::Variable(digits) = self { Some(digits) } else { None }
    }

    pub(crate) fn flag(&self) -> Option<bool> {
        match self {
            Self::Flag(flag) => Some(*flag),
            Self::Variable(text) => text.parse().ok(),
            Self::Text(_) | Self::Integer(_) | Self::List(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }

    /// A list; from the environment either TOML's (`["a", "b"]`) or divided by commas.
    pub(crate) fn list(&self) -> Option<Vec<Self>> {
        match self {
            Self::List(items) => Some(items.clone()),
            Self::Variable(text) if text.trim_start().starts_with('[') => Self::parse(text.trim())?.list(),
            Self::Variable(text) if text.trim().is_empty() => Some(Vec::new()),
            Self::Variable(text) => Some(text.split(',').map(|item| Self::Variable(item.trim().to_owned())).collect()),
            Self::Text(_) | Self::Integer(_) | Self::Flag(_) | Self::Table(_) | Self::Other(_) => None,
        }
    }

    /// A table whose keys are the operator's; from the environment TOML's `{ a = "b" }`.
    pub(crate) fn table(&self) -> Option<BTreeMap<String, Self>> {
        match self {
            Self::Table(table) => Some(table.clone()),
            Self::Variable(text) if text.trim_start().starts_with('{') => Self::parse(text.trim())?.table(),
            Self::Text(_) | Self::Integer(_) | Self::Flag(_) | Self::List(_) | Self::Other(_) | Self::Variable(_) => {
                None
            }
        }
    }

    /// What it is, for a fault that must not repeat it.
    pub(crate) fn sort(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Variable(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Flag(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(sort) => sort,
        }
    }
}

/// What a key is when nobody writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Required,
    /// Nothing, and that means something.
    Optional,
    /// A value in TOML's spelling.
    Default(&'static str),
}

/// The value of one key and where it comes from. No value: it is optional and absent, or a fault has been noted.
#[derive(Debug)]
pub(crate) struct Given<T> {
    pub(crate) value: Option<T>,
    pub(crate) key: &'static str,
    /// `None`: nobody wrote it.
    pub(crate) place: Option<Place>,
}

impl<T> Given<T> {
    pub(crate) fn is_written(&self) -> bool {
        self.place.is_some()
    }
}

/// All that was written, until each key has been taken by its grammar.
pub(crate) struct Sheet {
    known: &'static [&'static str],
    file: Option<String>,
    entries: BTreeMap<&'static str, (Place, Written)>,
    pub(crate) faults: Vec<Fault>,
}

impl Sheet {
    pub(crate) fn new(file: Option<&Path>, known: &'static [&'static str]) -> Self {
        let file = file.map(|path| path.display().to_string());
        Self { known, file, entries: BTreeMap::new(), faults: Vec::new() }
    }

    /// Where a key should have been that is nowhere.
    pub(crate) fn nowhere(&self) -> Place {
        self.file.clone().map_or(Place::Environment, Place::File)
    }

    /// Notes every known key of the file and a fault for every other one. A text that is not TOML is one fault, behind
    /// which the lines that are TOML have been read.
    pub(crate) fn read_file(&mut self, text: &str) -> Result<(), Fault> {
        let (document, errors) = DeTable::parse_recoverable(text);
        self.walk("", document.get_ref(), text);
        let Some(error) = errors.first() else { return Ok(()) };
        // Only the message: the error's own display repeats the line, which may hold a secret.
        let wrong = Wrong::new(error.message(), "correct the line");
        let place = self.line(text, error.span().map_or(0, |span| span.start));
        Err(Fault { place, key: "not TOML".into(), wrong })
    }

    fn walk(&mut self, section: &str, table: &DeTable<'_>, text: &str) {
        for (key, value) in table {
            let place = self.line(text, key.span().start);
            let name = full_name(section, key);
            if let Some(known) = self.known.iter().copied().find(|known| *known == name) {
                self.entries.insert(known, (place, Written::from_toml(value.get_ref())));
                continue;
            }
            let wrong = if !is_section(&name, self.known) {
                unknown(section, &name, self.known)
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.walk(&name, inner, text);
                continue;
            } else {
                let sort = Written::from_toml(value.get_ref()).sort();
                Wrong::new(format!("is {sort}, not a table"), format!("write [{name}] and its keys below"))
            };
            self.faults.push(Fault { place, key: name, wrong });
        }
    }

    /// Lays the variables that begin with our prefix over what the file said.
    pub(crate) fn read_environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        let names: Vec<String> = self.known.iter().map(|key| variable(key)).collect();
        for (name, value) in variables.filter(|(name, _)| name.starts_with(PREFIX)) {
            let known = self.known.iter().zip(&names).find(|(_, of_key)| **of_key == name);
            let wrong = match known {
                Some(_) if value.contains(char::REPLACEMENT_CHARACTER) => {
                    Wrong::new("is not UTF-8", "write it in UTF-8")
                }
                Some((key, _)) => {
                    self.entries.insert(key, (Place::Environment, Written::Variable(value)));
                    continue;
                }
                None => nearest(&name, names.iter().map(String::as_str)).map_or_else(
                    || Wrong::new("names no key", format!("unset it, or write {PREFIX}SECTION__KEY")),
                    |near| Wrong::new("names no key", format!("did you mean {near}?")),
                ),
            };
            self.faults.push(Fault { place: Place::Environment, key: name, wrong });
        }
    }

    /// What was written of a key, and where, before it is taken.
    pub(crate) fn written(&self, key: &str) -> Option<&(Place, Written)> {
        self.entries.get(key)
    }

    /// Reads one key by its grammar; what is wrong with it is noted.
    pub(crate) fn take<G: Grammar>(&mut self, key: &'static str, grammar: &G, presence: Presence) -> Given<G::Value> {
        let Some((place, written)) = self.entries.remove(key) else {
            let value = match presence {
                Presence::Default(toml) => Written::parse(toml).and_then(|written| grammar.read(&written).ok()),
                Presence::Optional => None,
                Presence::Required => {
                    let wrong = Wrong::new("is missing", grammar.write());
                    let place = self.nowhere();
                    self.faults.push(Fault { key: shown(key, &place), place, wrong });
                    None
                }
            };
            return Given { value, key, place: None };
        };
        let value = grammar.read(&written).map_err(|wrongs| {
            let at = |wrong| Fault { place: place.clone(), key: shown(key, &place), wrong };
            self.faults.extend(wrongs.into_iter().map(at));
        });
        Given { value: value.ok(), key, place: Some(place) }
    }

    fn line(&self, text: &str, offset: usize) -> Place {
        let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        Place::Line { file: self.file.clone().unwrap_or_default(), line }
    }
}

/// The key as its place spells it.
pub(crate) fn shown(key: &str, place: &Place) -> String {
    if *place == Place::Environment { variable(key) } else { key.to_owned() }
}

/// The environment's name for a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn full_name(section: &str, key: &Spanned<std::borrow::Cow<'_, str>>) -> String {
    let key = key.get_ref();
    // `"log.level" = ...` is one key with a dot in its name, not `log.level`.
    let key = if key.contains('.') { format!("{key:?}") } else { key.to_string() };
    if section.is_empty() { key } else { format!("{section}.{key}") }
}

fn is_section(name: &str, known: &[&str]) -> bool {
    known.iter().any(|key| key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// An unknown key: mistyped, or put under the wrong table; else the table's keys are listed.
fn unknown(section: &str, name: &str, known: &[&'static str]) -> Wrong {
    let inside = |key: &'static str| {
        if section.is_empty() { Some(key) } else { key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) }
    };
    let mut siblings: Vec<&str> = known.iter().filter_map(|key| inside(key)?.split('.').next()).collect();
    siblings.dedup();
    let own = name.strip_prefix(section).map_or(name, |rest| rest.trim_start_matches('.'));
    let dot = if section.is_empty() { "" } else { "." };
    let elsewhere = || known.iter().find(|key| key.rsplit('.').next() == Some(own)).map(|key| (*key).to_owned());
    let meant = nearest(own, siblings.iter().copied()).map(|near| format!("{section}{dot}{near}")).or_else(elsewhere);
    match meant {
        Some(key) => Wrong::new("is no key", format!("did you mean {key}?")),
        None => Wrong::new("is no key", format!("remove it, or write one of {}", siblings.join(", "))),
    }
}
