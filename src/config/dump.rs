//! The configuration in effect as TOML: every key, its value and who said so; secrets only as being there.

use std::fmt::Write as _;

use serde_json::Value;

use crate::config::fault::{Fault, Faults, Place, Wrong};
use crate::config::raw::{Key, keys};
use crate::config::written::{Presence, Written, shown};
use crate::config::{Config, EmailTransport};

impl Config {
    /// Reads the source again: its faults, if it has become faulty meanwhile.
    pub fn dump(&self) -> Result<String, Faults> {
        let sheet = self.source.clone().sheet().map_err(|fault| Faults(vec![fault]))?;
        let mut text =
            "# The configuration in effect. Secrets are left out: \"(set)\" stands for each that is there.\n"
                .to_owned();
        let mut open = "";
        for key in keys() {
            let (section, name) = key.name.split_once('.').unwrap_or(("", key.name));
            if section != open {
                line(&mut text, format_args!("\n[{section}]"));
                open = section;
            }
            match (sheet.written(key.name), &key.presence) {
                (Some((place, written)), _) => {
                    line(&mut text, format_args!("{name} = {}  # {place}", toml(written, &key.schema)));
                }
                (None, Presence::Default(toml)) => line(&mut text, format_args!("{name} = {toml}  # default")),
                (None, Presence::Required | Presence::Optional) => match self.follows(&key) {
                    Some(value) => line(&mut text, format_args!("{name} = {value}")),
                    None => line(&mut text, format_args!("# {name} is not set")),
                },
            }
        }
        Ok(text)
    }

    /// A fault of a key whose value is good by itself, at its place. Reads the source again. `key` may go on behind a
    /// key's name: `sms.headers.x-token`.
    #[must_use]
    pub fn fault(&self, key: &str, wrong: Wrong) -> Fault {
        let sheet = self.source.clone().sheet();
        let mut names = std::iter::successors(Some(key), |name| name.rsplit_once('.').map(|(section, _)| section));
        let place = sheet.ok().map(|sheet| {
            let written = names.find_map(|name| sheet.written(name));
            written.map_or_else(|| sheet.nowhere(), |(place, _)| place.clone())
        });
        let place = place.unwrap_or(Place::Environment);
        Fault { key: shown(key, &place), place, wrong }
    }

    /// What a key without a default is, when other keys say so.
    fn follows(&self, key: &Key) -> Option<String> {
        match &self.email.transport {
            EmailTransport::Smtp(smtp) if key.name == "email.port" => {
                Some(format!("{}  # follows from email.tls", smtp.port))
            }
            EmailTransport::Smtp(_) | EmailTransport::File { .. } | EmailTransport::Log => None,
        }
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // A String takes everything.
    writeln!(text, "{line}").ok();
}

/// In TOML's spelling; what came from the environment as the schema has it.
fn toml(written: &Written, schema: &Value) -> String {
    let of = |name: &str| schema.get(name).unwrap_or(&Value::Null);
    if of("writeOnly") == true {
        let url = written.text().filter(|_| of("format") == "uri");
        return match url.map(|url| (url, host(url))) {
            Some((url, None)) => quoted(url),
            Some((_, Some(host))) => quoted(&format!("{host}(set)")),
            None => quoted("(set)"),
        };
    }
    if let Some(items) = written.list().filter(|_| of("type") == "array") {
        let items: Vec<_> = items.iter().map(|item| toml(item, of("items"))).collect();
        return format!("[{}]", items.join(", "));
    }
    if let Some(table) = written.table().filter(|_| of("type") == "object") {
        let value = |item| toml(item, of("additionalProperties"));
        let entries: Vec<_> = table.iter().map(|(name, item)| format!("{} = {}", quoted(name), value(item))).collect();
        return format!("{{ {} }}", entries.join(", "));
    }
    if let Some(digits) = written.integer().filter(|_| of("type") == "integer") {
        return digits.to_owned();
    }
    if let Some(flag) = written.flag().filter(|_| of("type") == "boolean") {
        return flag.to_string();
    }
    quoted(written.text().unwrap_or_default())
}

/// A URL as far as it is no secret; `None`: all of it.
fn host(url: &str) -> Option<&str> {
    let authority = url.find("://")? + 3;
    let end = url.get(authority..)?.find(['/', '?', '#'])?;
    url.get(..=authority + end)
}

/// JSON's escapes are TOML's; only DEL is none in JSON.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn load(text: &str, environment: &[(&str, &str)]) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shim.toml");
        std::fs::write(&file, text).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut config = Config::load(Some(&file), environment).unwrap();
        // The folder goes; the text stays.
        config.source = Source::of_text("shim.toml", text);
        config
    }

    #[test]
    fn what_is_dumped_reads_back_as_the_same_configuration() {
        let shipped = include_str!("../../config/threepid-shim.toml");
        let more = "\nserver_name = \"example.org\"\npublic_base_url = \"https://m.example.org\"\n\
                    session.next_link_hosts = [\"a.example.org\", \"b.example.org\"]\n\
                    listen.h2c = true\nlimits.connections = 7\n\
                    email = { transport = \"smtp\", host = \"m.example.org\", from = \"\\\"Jo, X\\\" <a@example.org>\" }\n";
        for text in [shipped, more] {
            let config = Config::from_text(text).unwrap();
            let dumped = config.dump().unwrap();
            let again = Config::from_text(&dumped).unwrap_or_else(|faults| panic!("{faults}\n{dumped}"));
            let show = |config: &Config| format!("{:?}", Config { warnings: Vec::new(), ..config.clone() });
            assert_eq!(show(&again), show(&config), "{dumped}");
        }
    }

    #[test]
    fn no_secret_is_dumped_and_whoever_said_a_value_is_named() {
        let text = "server_name = \"example.org\"\npublic_base_url = \"https://m.example.org\"\n\
                    email = { transport = \"smtp\", host = \"m.example.org\", from = \"a@example.org\", username = \"u\", password = \"s3cr3t-1\" }\n\
                    [sms]\ntransport = \"http\"\nurl = \"https://g.example.org/s3cr3t-2\"\n\
                    headers = { Authorization = \"s3cr3t-3\" }\nbody = \"s3cr3t-4\"\nsignature_header = \"X\"\nsignature_secret = \"s3cr3t-5\"\n";
        let dumped = load(text, &[]).dump().unwrap();
        assert!(!dumped.contains("s3cr3t"), "{dumped}");
        // The first line says what it means.
        assert_eq!(dumped.matches("(set)\"").count(), 1 + 5, "{dumped}");
        for line in [
            "password = \"(set)\"  # shim.toml:3\n",
            "url = \"https://g.example.org/(set)\"  # shim.toml:6\n",
            "server_name = \"example.org\"  # shim.toml:1\n",
            "port = 587  # follows from email.tls\n",
            "headers = { \"Authorization\" = \"(set)\" }  # shim.toml:7\n",
            "needs_shim = \"auto\"  # default\n",
            "# tls.certificate is not set\n",
        ] {
            assert!(dumped.contains(line), "{line}\n{dumped}");
        }
    }
}
