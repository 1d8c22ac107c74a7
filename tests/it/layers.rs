//! Who may name whom: the table in the docs of `lib.rs`, held against every `crate::…` in `src`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

#[test]
fn every_room_names_only_what_the_table_allows() {
    let table = table();
    let files = files(Path::new(SRC));
    assert!(files.len() > 40, "the rooms are found");
    let mut found = 0;
    let mut faults = Vec::new();
    for file in &files {
        let room = room(file);
        let (name, allowed) = row(&table, &room);
        for named in named(&fs::read_to_string(file).unwrap()) {
            found += 1;
            let own = named == name || named.starts_with(&format!("{name}/")) || name.starts_with(&format!("{named}/"));
            let everybodys = name != "matrix" && ["telemetry", "matrix"].contains(&named.as_str());
            let listed = allowed.iter().any(|one| named == *one || named.starts_with(&format!("{one}/")));
            if !(own || everybodys || listed) {
                faults.push(format!("{room} names {named}; the row of {name} allows {allowed:?}"));
            }
        }
    }
    assert!(found > 100, "the names are found: {found}");
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn no_mail_leaves_before_the_homeserver_has_said_yes_and_no_store_touches_ordinary_traffic() {
    let table = table();
    let may = |room: &str| row(&table, room).1;
    for room in
        ["front", "front/request_token", "front/threepid_creds", "front/confirm", "front/versions", "front/forward"]
    {
        assert!(!may(room).iter().any(|named| named == "identity" || named == "delivery"), "{room}");
    }
    for named in ["store", "session", "limit", "in_flight"] {
        assert!(!may("front/forward").contains(&named.to_owned()));
    }
    for room in ["session", "matrix"] {
        assert!(may(room).is_empty(), "{room}");
    }
}

#[test]
fn session_and_matrix_do_no_io_read_no_clock_and_draw_no_randomness() {
    let pure = files(Path::new(SRC)).into_iter().filter(|file| {
        let room = room(file);
        room == "session" || room.starts_with("matrix")
    });
    for file in pure {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for word in
            ["std::fs", "std::net", "std::env", "tokio", "SystemTime", "Instant", "getrandom", "async fn", "random"]
        {
            assert!(
                !code.lines().any(|line| !is_comment(line) && line.contains(&format!("{word}::"))),
                "{file:?}: {word}"
            );
        }
    }
}

#[test]
fn every_file_opens_with_what_its_room_is_for_and_holds_one_room() {
    for file in files(Path::new(SRC)) {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{file:?}");
        assert!(text.lines().count() <= 400, "{file:?} holds two rooms");
    }
}

/// `| room room | named named |`, one entry a room.
fn table() -> BTreeMap<String, Vec<String>> {
    let docs = fs::read_to_string(Path::new(SRC).join("lib.rs")).unwrap();
    let rows = docs.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let words = |cell: &str| {
        cell.split('`')
            .filter(|word| word.starts_with(char::is_alphabetic) && !word.contains(' '))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut table = BTreeMap::new();
    for line in rows {
        let (rooms, named) = line.split_once(" | ").unwrap();
        for room in words(rooms) {
            table.insert(room, words(named));
        }
    }
    assert!(table.len() > 20, "the table is found");
    table
}

/// The row of a room, or of the nearest room above it.
fn row<'a>(table: &'a BTreeMap<String, Vec<String>>, room: &str) -> (String, &'a Vec<String>) {
    let mut name = room;
    loop {
        if let Some(allowed) = table.get(name) {
            return (name.to_owned(), allowed);
        }
        name = name.rsplit_once('/').unwrap_or_else(|| panic!("{room} has no row in the table of lib.rs")).0;
    }
}

/// What a file names with `crate::`, as rooms: `front/forward` for `crate::front::forward::Body`. `lib` and `main` name
/// every room.
fn named(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let mut all = Vec::new();
    for line in code.lines().filter(|line| !is_comment(line)) {
        for rest in line.split("crate::").skip(1) {
            let path: Vec<&str> = rest
                .split("::")
                .map(|part| part.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_'))
                .collect();
            let modules = path.iter().take_while(|part| {
                part.chars().next().is_some_and(char::is_lowercase)
                    && part.chars().all(|c| c.is_alphanumeric() || c == '_')
            });
            let modules: Vec<&str> = modules.copied().collect();
            let room = if modules.first() == Some(&"front") {
                modules.iter().take(2).copied().collect::<Vec<_>>().join("/")
            } else {
                modules.first().copied().unwrap_or_default().to_owned()
            };
            if !room.is_empty() {
                all.push(room);
            }
        }
    }
    all
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn room(file: &Path) -> String {
    let path = file.strip_prefix(SRC).unwrap().with_extension("");
    path.to_str().unwrap().to_owned()
}

pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            all.push(path);
        }
    }
    all
}
