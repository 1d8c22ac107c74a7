//! `--key value`, `--switch` and what stands behind `--`.

use std::collections::HashMap;
use std::str::FromStr;

/// The switches; every other key has a value.
const SWITCHES: [&str; 2] = ["tls", "request-token"];

#[derive(Default)]
pub struct Arguments {
    values: HashMap<String, String>,
    pub rest: Vec<String>,
}

impl Arguments {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            if word == "--" {
                arguments.rest = words.collect();
                break;
            }
            let key = word.strip_prefix("--").ok_or_else(|| format!("{word} is no --key"))?;
            let value = if SWITCHES.contains(&key) { Some(String::new()) } else { words.next() };
            let value = value.ok_or_else(|| format!("{word} wants a value"))?;
            arguments.values.insert(key.to_owned(), value);
        }
        Ok(arguments)
    }

    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub fn text(&self, key: &str) -> Result<&str, String> {
        self.values.get(key).map(String::as_str).ok_or_else(|| format!("--{key} is missing"))
    }

    pub fn or<T: FromStr>(&self, key: &str, default: T) -> Result<T, String> {
        match self.values.get(key) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|_| format!("--{key} {value} cannot be read")),
        }
    }
}
