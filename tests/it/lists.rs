//! The lists of attacks (S§4) and of faults (S§5): `tests/README.md` names for each row the tests that show it, held against
//! the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::layers::files;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// How many rows each list has.
const LISTS: [(&str, usize); 2] = [("S§4", 38), ("S§5", 26)];

#[test]
fn every_row_of_the_lists_has_a_test_that_carries_its_number_or_a_reason() {
    let tests = tests();
    assert!(tests.len() > 300, "the tests are found: {}", tests.len());
    let readme = fs::read_to_string(Path::new(ROOT).join("tests/README.md")).unwrap();
    let rows: Vec<_> = readme.lines().filter_map(row).collect();
    let mut faults = Vec::new();
    for (row, names, reason) in &rows {
        if names.is_empty() && reason.is_empty() {
            faults.push(format!("{row} has neither a test nor a reason"));
        }
        for name in names {
            match tests.get(name) {
                None => faults.push(format!("{row} names {name}, and there is no such test")),
                Some(docs) if !carries(row, name, docs) => faults.push(format!("{name} does not carry {row}")),
                Some(_) => {}
            }
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    let expected: Vec<_> =
        LISTS.iter().flat_map(|(list, length)| (1..=*length).map(move |n| format!("{list}.{n}"))).collect();
    let found: Vec<_> = rows.into_iter().map(|(row, ..)| row).collect();
    assert_eq!(found, expected);
}

/// `deploy/README.md` says of each threat which test shows that it comes to nothing.
#[test]
fn every_test_that_the_threat_model_names_exists() {
    let tests = tests();
    let model = fs::read_to_string(Path::new(ROOT).join("deploy/README.md")).unwrap();
    let model = model.split("\n## ").find(|section| section.starts_with("Threat model")).unwrap();
    let named: Vec<_> = model.split('`').filter(|word| is_test_name(word)).collect();
    assert!(named.len() > 20, "the tests are named: {named:?}");
    let missing: Vec<_> = named.into_iter().filter(|name| !tests.contains_key(*name)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

/// `| S§4.7 | what, in a few words | `test` `test` a reason |`.
fn row(line: &str) -> Option<(String, Vec<String>, String)> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    let row = cells.next()?;
    if !LISTS.iter().any(|(list, _)| row.strip_prefix(list).is_some_and(|rest| rest.starts_with('.'))) {
        return None;
    }
    let shown = cells.nth(1).unwrap_or_else(|| panic!("{row} has three cells"));
    let names = shown.split('`').filter(|word| is_test_name(word)).map(str::to_owned).collect();
    let reason = shown.split('`').step_by(2).collect::<String>();
    Some((row.to_owned(), names, reason.trim().to_owned()))
}

/// A sentence of four words and more.
fn is_test_name(word: &str) -> bool {
    word.matches('_').count() > 2 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// `s4_7_…` in the name, or `S§4.7` in the docs.
fn carries(row: &str, name: &str, docs: &str) -> bool {
    let in_name = row.to_lowercase().replace('§', "").replace('.', "_") + "_";
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
    name.contains(&in_name) || docs.split(row).skip(1).any(ends)
}

/// Every test of the sources with the lines of docs and attributes above it.
fn tests() -> BTreeMap<String, String> {
    let mut tests = BTreeMap::new();
    for folder in ["src", "tests/it"] {
        for file in files(&Path::new(ROOT).join(folder)) {
            let mut above = String::new();
            for line in fs::read_to_string(file).unwrap().lines().map(str::trim_start) {
                if line.starts_with("///") || line.starts_with("#[") {
                    above += line;
                    above.push('\n');
                    continue;
                }
                let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if let Some((name, _)) = declared.and_then(|rest| rest.split_once('('))
                    && (above.contains("#[test") || above.contains("#[tokio::test"))
                {
                    tests.insert(name.to_owned(), above.clone());
                }
                above.clear();
            }
        }
    }
    tests
}
