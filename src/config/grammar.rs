//! What a key takes: its type and bounds, as a value that reads what was written and says so in the manual's words.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use lettre::message::Mailbox;
use serde_json::{Value, json};

use crate::config::branding::{Colour, Support};
use crate::config::fault::{Wrong, nearest};
use crate::config::sms::GatewayUrl;
use crate::config::values::is_all;
use crate::config::written::Written;
use crate::config::{Endpoint, HomeserverAddress, PublicBaseUrl, Rate, RedisUrl, Secret, address, branding, values};

pub(crate) trait Grammar {
    type Value;

    /// The value, or everything that is wrong with it.
    fn read(&self, written: &Written) -> Result<Self::Value, Vec<Wrong>>;

    /// Type and bounds, as the manual says them.
    fn takes(&self) -> String;

    /// The same as a JSON schema; `writeOnly` marks what is shown to nobody.
    fn schema(&self) -> Value;

    /// What to write instead of a wrong value.
    fn write(&self) -> String;

    /// The fault of a value that is not even of the right sort; it never repeats the value.
    fn mismatch<T>(&self, written: &Written) -> Result<T, Vec<Wrong>> {
        Err(vec![Wrong::new(format!("is {}", written.sort()), self.write())])
    }
}

/// A text with a meaning, which one function of [`values`] knows.
pub(crate) struct Of<T: 'static> {
    takes: &'static str,
    /// Ends "write ...".
    write: &'static str,
    parse: fn(&str) -> Result<T, Wrong>,
    schema: fn() -> Value,
}

macro_rules! texts {
    ($($name:ident: $value:ty = $takes:literal, $write:literal, $parse:path $(, $sort:ident)?;)*) => {
        $(pub(crate) const $name: Of<$value> =
            Of { takes: $takes, write: $write, parse: $parse, schema: schema!($($sort)?) };)*
    };
}

macro_rules! schema {
    () => {
        || json!({ "type": "string" })
    };
    (secret) => {
        || json!({ "type": "string", "writeOnly": true })
    };
    // The path may be the key to a gateway.
    (secret_path) => {
        || json!({ "type": "string", "format": "uri", "writeOnly": true })
    };
}

texts! {
    TEXT: String = "text", "a text in double quotes", values::text;
    TEMPLATE: Secret = "template", "a text in quotes", values::template, secret;
    POINTER: String = "JSON pointer", "a JSON pointer such as \"/messages/0/status\"", values::pointer;
    SECRET: Secret = "secret", "a text in double quotes", values::secret, secret;
    PATH: PathBuf = "path", "a path in double quotes", values::path;
    SERVER_NAME: String = "server name", "a server name such as \"example.org\"", address::server_name;
    ID_SERVER_NAME: String = "host[:port]", "a name such as \"localhost:8091\"", address::id_server_name;
    HOST: String = "host", "a host such as \"mail.example.org\"", address::host;
    LINK_HOST: String = "host", "a host such as \"app.example.org\"", address::link_host;
    BASE_URL: PublicBaseUrl = "URL", "a URL such as \"https://matrix.example.org\"", address::base_url;
    HOMESERVER: HomeserverAddress =
        "http URL or unix:/path", "\"http://127.0.0.1:8008\" or \"unix:/run/synapse.sock\"", address::homeserver;
    REDIS_URL: RedisUrl = "redis or rediss URL", "a URL such as \"redis://127.0.0.1:6379\"", address::redis_url;
    GATEWAY_URL: GatewayUrl =
        "URL", "a URL such as \"https://gateway.example.org/send\"", address::gateway_url, secret_path;
    ENDPOINT: Endpoint =
        "IP:port or unix:/path", "addresses such as \"127.0.0.1:8080\" or \"unix:/path\"", address::endpoint;
    NETWORK: IpNet = "network", "networks such as \"10.0.0.0/8\" or \"10.1.2.3\"", address::network;
    RATE: Rate = "rate, 1 to 1000000 per 1s to 1d", "a number of times per duration such as \"20/10m\"", values::rate;
    MAILBOX: Mailbox = "mailbox", "a sender such as \"Example <noreply@example.org>\"", values::mailbox;
    LANGUAGE: String = "language tag", "a language tag such as \"en\" or \"pt-BR\"", values::language;
    COUNTRY: String = "country code", "country codes such as \"GB\"", values::country;
    BRAND_NAME: String = "text, at most 60 characters", "a name in double quotes", branding::name;
    FOOTER: String = "text, at most 300 characters", "a text in double quotes", branding::footer;
    COLOUR: Colour = "colour", "a colour such as \"#0b6b4f\"", branding::colour;
    SUPPORT: Support =
        "mail address or URL", "\"help@example.org\" or \"https://example.org/help\"", branding::support;
}

impl<T> Grammar for Of<T> {
    type Value = T;

    fn read(&self, written: &Written) -> Result<T, Vec<Wrong>> {
        let Some(text) = written.text() else { return self.mismatch(written) };
        (self.parse)(text).map_err(|wrong| vec![wrong])
    }

    fn schema(&self) -> Value {
        (self.schema)()
    }

    fn takes(&self) -> String {
        self.takes.to_owned()
    }

    fn write(&self) -> String {
        format!("write {}", self.write)
    }
}

/// A duration within bounds.
pub(crate) struct Span {
    pub(crate) least: Duration,
    pub(crate) most: Duration,
}

impl Grammar for Span {
    type Value = Duration;

    fn read(&self, written: &Written) -> Result<Duration, Vec<Wrong>> {
        let Some(text) = written.text() else { return self.mismatch(written) };
        let duration = values::duration(text).map_err(|wrong| vec![wrong])?;
        if (self.least..=self.most).contains(&duration) {
            return Ok(duration);
        }
        Err(vec![Wrong::new(format!("{text:?} is out of bounds"), self.write())])
    }

    fn schema(&self) -> Value {
        json!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$" })
    }

    fn takes(&self) -> String {
        format!("duration, {} to {}", values::shown(self.least), values::shown(self.most))
    }

    fn write(&self) -> String {
        format!("write a duration from \"{}\" to \"{}\"", values::shown(self.least), values::shown(self.most))
    }
}

/// A whole number within bounds.
pub(crate) struct Count<T> {
    pub(crate) least: T,
    pub(crate) most: T,
}

impl<T: FromStr + PartialOrd + Copy + Display> Grammar for Count<T> {
    type Value = T;

    fn read(&self, written: &Written) -> Result<T, Vec<Wrong>> {
        let Some(digits) = written.integer() else { return self.mismatch(written) };
        match digits.parse() {
            Ok(number) if number >= self.least && number <= self.most => Ok(number),
            Err(_) if !is_all(digits.trim_start_matches('-'), u8::is_ascii_digit) => {
                Err(vec![Wrong::new(format!("{digits:?} is not a number"), self.write())])
            }
            Ok(_) | Err(_) => Err(vec![Wrong::new(format!("{digits} is out of bounds"), self.write())]),
        }
    }

    fn schema(&self) -> Value {
        let (least, most) = (self.least.to_string().parse::<u64>(), self.most.to_string().parse::<u64>());
        json!({ "type": "integer", "minimum": least.ok(), "maximum": most.ok() })
    }

    fn takes(&self) -> String {
        format!("number, {} to {}", self.least, self.most)
    }

    fn write(&self) -> String {
        format!("write a number from {} to {}", self.least, self.most)
    }
}

pub(crate) struct Flag;

impl Grammar for Flag {
    type Value = bool;

    fn read(&self, written: &Written) -> Result<bool, Vec<Wrong>> {
        written.flag().map_or_else(|| self.mismatch(written), Ok)
    }

    fn schema(&self) -> Value {
        json!({ "type": "boolean" })
    }

    fn takes(&self) -> String {
        "boolean".to_owned()
    }

    fn write(&self) -> String {
        "write true or false".to_owned()
    }
}

/// One of some words.
pub(crate) struct OneOf<T: 'static> {
    pub(crate) words: &'static [(&'static str, T)],
}

impl<T: Copy> Grammar for OneOf<T> {
    type Value = T;

    fn read(&self, written: &Written) -> Result<T, Vec<Wrong>> {
        let Some(text) = written.text() else { return self.mismatch(written) };
        if let Some((_, value)) = self.words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let write = nearest(text, self.words.iter().map(|(word, _)| *word))
            .map_or_else(|| self.write(), |near| format!("did you mean {near:?}?"));
        Err(vec![Wrong::new(format!("{text:?} is none of the words it takes"), write)])
    }

    fn schema(&self) -> Value {
        json!({ "enum": self.words.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
    }

    fn takes(&self) -> String {
        let words: Vec<&str> = self.words.iter().map(|(word, _)| *word).collect();
        words.join(" | ")
    }

    fn write(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|(word, _)| format!("{word:?}")).collect();
        match words.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("write {} or {last}", rest.join(", ")),
            Some(_) | None => format!("write {}", words.concat()),
        }
    }
}

/// Any number of them.
pub(crate) struct ListOf<G>(pub(crate) G);

impl<G: Grammar> Grammar for ListOf<G> {
    type Value = Vec<G::Value>;

    fn read(&self, written: &Written) -> Result<Self::Value, Vec<Wrong>> {
        let Some(items) = written.list() else { return self.mismatch(written) };
        let mut values = Vec::new();
        let mut wrongs = Vec::new();
        for item in items {
            self.0.read(&item).map_or_else(|wrong| wrongs.extend(wrong), |value| values.push(value));
        }
        if wrongs.is_empty() { Ok(values) } else { Err(wrongs) }
    }

    fn schema(&self) -> Value {
        json!({ "type": "array", "items": self.0.schema() })
    }

    fn takes(&self) -> String {
        format!("[{}, ...]", self.0.takes())
    }

    fn write(&self) -> String {
        format!("{}, in brackets", self.0.write())
    }
}

/// A table whose keys the operator chooses.
pub(crate) struct TableOf<G>(pub(crate) G);

impl<G: Grammar> Grammar for TableOf<G> {
    type Value = BTreeMap<String, G::Value>;

    fn read(&self, written: &Written) -> Result<Self::Value, Vec<Wrong>> {
        let Some(table) = written.table() else { return self.mismatch(written) };
        let mut values = BTreeMap::new();
        let mut wrongs = Vec::new();
        for (key, item) in table {
            let of_key = |wrong: Wrong| Wrong::new(format!("{key}: {}", wrong.wrong), wrong.write);
            match self.0.read(&item) {
                Ok(value) => drop(values.insert(key, value)),
                Err(wrong) => wrongs.extend(wrong.into_iter().map(of_key)),
            }
        }
        if wrongs.is_empty() { Ok(values) } else { Err(wrongs) }
    }

    fn schema(&self) -> Value {
        json!({ "type": "object", "additionalProperties": self.0.schema() })
    }

    fn takes(&self) -> String {
        format!("{{ name = {}, ... }}", self.0.takes())
    }

    fn write(&self) -> String {
        "write a table { \"name\" = \"value\" }".to_owned()
    }
}
