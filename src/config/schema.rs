//! The configuration file as a JSON schema, for editors and for whatever renders files: the table of keys in other words.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::config::raw::{Key, keys};
use crate::config::written::{Presence, Written};

/// Says above each key what it is for.
const SHIPPED: &str = include_str!("../../config/threepid-shim.toml");

/// JSON Schema 2020-12 of the whole file.
pub fn schema() -> Value {
    let said = said();
    let mut root = object();
    for key in keys() {
        let property = property(&key, said.get(key.name));
        put(&mut root, key.name, property);
    }
    root.insert("$schema".to_owned(), "https://json-schema.org/draft/2020-12/schema".into());
    root.insert("title".to_owned(), "threepid-shim.toml".into());
    let required = keys().into_iter().filter(|key| key.presence == Presence::Required).map(|key| key.name);
    root.insert("required".to_owned(), required.collect());
    Value::Object(root)
}

fn object() -> Map<String, Value> {
    let object = json!({ "type": "object", "additionalProperties": false, "properties": {} });
    if let Value::Object(object) = object { object } else { Map::new() }
}

/// Into the table that the name's first part opens, and so on.
fn put(table: &mut Map<String, Value>, name: &str, property: Value) {
    let Some(Value::Object(properties)) = table.get_mut("properties") else { return };
    match name.split_once('.') {
        None => drop(properties.insert(name.to_owned(), property)),
        Some((first, rest)) => {
            let inner = properties.entry(first).or_insert_with(|| Value::Object(object()));
            if let Value::Object(inner) = inner {
                put(inner, rest, property);
            }
        }
    }
}

fn property(key: &Key, said: Option<&String>) -> Value {
    let mut property = key.schema.clone();
    let Value::Object(fields) = &mut property else { return property };
    let said = said.map_or_else(String::new, |said| format!("{said} "));
    fields.insert("description".to_owned(), format!("{said}({})", key.takes).into());
    if let Presence::Default(toml) = key.presence {
        fields.insert("default".to_owned(), Written::parse(toml).map_or(Value::Null, |written| value(&written)));
    }
    property
}

fn value(written: &Written) -> Value {
    match written {
        Written::Text(text) | Written::Variable(text) => text.as_str().into(),
        Written::Integer(digits) => digits.parse::<u64>().map_or(Value::Null, Value::from),
        Written::Flag(flag) => (*flag).into(),
        Written::List(items) => items.iter().map(value).collect(),
        Written::Table(table) => table.iter().map(|(name, item)| (name.clone(), value(item))).collect(),
        Written::Other(_) => Value::Null,
    }
}

/// The comment above each key of the shipped file; one comment may stand above several.
fn said() -> BTreeMap<String, String> {
    let (mut said, mut section, mut comment, mut grows) = (BTreeMap::new(), String::new(), String::new(), false);
    for line in SHIPPED.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let name = bare.split_once(" = ").map(|(name, _)| name).filter(|name| !name.contains(' '));
        if let Some(name) = name {
            let dot = if section.is_empty() { "" } else { "." };
            said.insert(format!("{section}{dot}{name}"), comment.clone());
            grows = false;
        } else if let Some(opened) = line.strip_prefix('[') {
            (section, comment) = (opened.trim_end_matches(']').to_owned(), String::new());
        } else if line.starts_with('#') {
            comment = if grows { format!("{comment} {bare}") } else { bare.to_owned() };
            grows = true;
        } else {
            (comment, grows) = (String::new(), false);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_place_its_default_and_what_it_is_for() {
        let schema = schema();
        for key in keys() {
            let pointer = format!("/properties/{}", key.name.replace('.', "/properties/"));
            let found = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"));
            let description = found["description"].as_str().unwrap();
            let (said, takes) = description.rsplit_once(" (").unwrap_or_else(|| panic!("{pointer}: {description}"));
            assert!(said.len() > 10 && takes.len() > 2, "{pointer}: {description}");
            assert_eq!(found.get("default").is_some(), matches!(key.presence, Presence::Default(_)), "{pointer}");
            assert_ne!(found.get("default"), Some(&Value::Null), "{pointer}");
        }
        assert_eq!(schema["required"], json!(["server_name", "public_base_url"]));
    }
}
