//! The shipped example and the reference manual say what the code does.

use std::path::Path;

use threepid_shim::config::{Config, Presence, keys};

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every `key = value` of the example in its order, and whether it is commented out.
fn written_in_the_example(text: &str) -> Vec<(String, String, bool)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        }
        let (line, is_comment) = line.strip_prefix("# ").map_or((line, false), |line| (line, true));
        let Some((key, value)) = line.split_once(" = ") else { continue };
        if key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.".contains(&byte)) {
            keys.push((format!("{section}{key}"), value.to_owned(), is_comment));
        }
    }
    keys
}

#[test]
fn the_example_lists_every_key_with_its_default() {
    let written = written_in_the_example(&shipped("threepid-shim.toml"));
    let names: Vec<&str> = written.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(names, keys().iter().map(|key| key.name).collect::<Vec<_>>());
    for (key, (name, value, is_comment)) in keys().iter().zip(&written) {
        match key.presence {
            Presence::Default(toml) => assert_eq!((value.as_str(), *is_comment), (toml, false), "{name}"),
            Presence::Required => assert!(!is_comment, "{name}"),
            // The one sender that has to be written, as long as a route handles e-mail.
            Presence::Optional => assert_eq!(*is_comment, name != "email.from", "{name}"),
        }
    }
}

#[test]
fn the_readmes_minimal_configuration_is_good() {
    let readme = shipped("../README.md");
    let (_, from_block) = readme.split_once("```toml\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("threepid-shim.toml");
    std::fs::write(&file, from_block.split("```").next().unwrap()).unwrap();
    std::fs::write(folder.path().join("smtp-password"), "secret\n").unwrap();
    let config = Config::load(Some(&file), std::iter::empty()).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.identity.name, "localhost:8091", "what the README tells the homeserver");
}

#[test]
fn the_example_gives_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("threepid-shim.toml");
    std::fs::write(&file, shipped("threepid-shim.toml")).unwrap();
    let example = Config::load(Some(&file), std::iter::empty()).unwrap();
    let required = [
        ("THREEPID_SHIM__SERVER_NAME", "example.org"),
        ("THREEPID_SHIM__PUBLIC_BASE_URL", "https://matrix.example.org"),
        ("THREEPID_SHIM__EMAIL__FROM", "Example <noreply@example.org>"),
    ];
    let variables = required.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let defaults = Config::load(None, variables.into_iter()).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{defaults:#?}"));
    assert_eq!(example.warnings, Vec::<String>::new());
}

#[test]
fn the_manual_has_an_entry_for_every_key_with_type_bounds_and_default() {
    let manual = shipped("README.md");
    let entries: Vec<&str> = manual
        .lines()
        .filter_map(|line| line.strip_prefix('`')?.strip_suffix("`  "))
        .filter(|entry| entry.contains("   "))
        .collect();
    assert_eq!(entries, keys().iter().map(ToString::to_string).collect::<Vec<_>>());
    for entry in &entries {
        let (_, after) = manual.split_once(&format!("`{entry}`  \n")).unwrap();
        assert!(after.lines().next().is_some_and(|line| line.len() > 20), "{entry} says nothing");
    }
}

#[test]
fn a_default_is_a_good_value_of_its_key() {
    for key in keys() {
        let Presence::Default(toml) = key.presence else { continue };
        let text = format!(
            "{} = {toml}\nserver_name = \"a\"\npublic_base_url = \"https://a\"\nemail.from = \"a@example.org\"\n",
            key.name
        );
        assert!(Config::from_text(&text).is_ok(), "{text}");
    }
}
