//! First line: edits, `name=value` and `-name`, with `;` between them. Behind it: a body.
//!
//! A body is taken or refused as the second opinion would, with its reason. After the edits every other member has its
//! bytes and its place.

use threepid_shim::body::{NotAnObject, Object};

use super::first_line;
use super::json::{self, Json, Not, fold};

/// A member as it should be written: bytes of the client's, or a string of ours.
#[derive(Debug, Clone, PartialEq)]
enum Written {
    Theirs(String),
    Ours(String),
}

pub fn run(data: &[u8]) {
    let (edits, body) = first_line(data);
    let parsed = Object::parse(body);
    let read = json::read(body);
    let Ok(tree) = &read else {
        let error = parsed.expect_err("it is refused");
        // Deep and no JSON is one or the other.
        assert!(
            error == NotAnObject::NotJson || (error == NotAnObject::TooDeep && read == Err(Not::Shallow)),
            "{error}"
        );
        return;
    };
    let Some(members) = tree.object() else {
        let error = parsed.expect_err("it is refused");
        return assert_eq!(error, why_not(tree));
    };
    let mut object = parsed.expect("it is taken");
    let mut expected: Vec<_> =
        members.iter().map(|(name, value)| ((*name).to_owned(), Written::Theirs(value.raw.to_owned()))).collect();
    for (name, value) in &members {
        assert_eq!(object.get(name).expect("it is there").get(), value.raw);
        assert_eq!(object.string(name).as_deref(), value.string());
    }
    same(&object, &expected);
    for edit in String::from_utf8_lossy(edits).split(';') {
        if let Some(name) = edit.strip_prefix('-') {
            let before = expected.len();
            expected.retain(|(other, _)| fold(other) != fold(name));
            assert_eq!(object.remove(name), expected.len() < before);
            assert!(object.get(name).is_none());
        } else if let Some((name, value)) = edit.split_once('=') {
            object.set_string(name, value);
            assert_eq!(object.string(name).as_deref(), Some(value));
            let member = (name.to_owned(), Written::Ours(value.to_owned()));
            match expected.iter().position(|(other, _)| fold(other) == fold(name)) {
                Some(at) => expected[at] = member,
                None => expected.push(member),
            }
        }
    }
    same(&object, &expected);
}

/// What is sent on is what was expected, member for member, and reads as itself.
fn same(object: &Object<'_>, expected: &[(String, Written)]) {
    let sent = object.to_bytes();
    let tree = json::read(&sent).expect("JSON is sent");
    let json::Kind::Object(members) = &tree.kind else { panic!("an object is sent") };
    assert_eq!(members.len(), expected.len());
    for ((name, value), (expected_name, written)) in members.iter().zip(expected) {
        assert_eq!(name.as_ref(), Some(expected_name));
        match written {
            Written::Theirs(raw) => assert_eq!(value.raw, raw),
            Written::Ours(text) => assert_eq!(value.string(), Some(text.as_str())),
        }
    }
    if expected.len() <= 500 {
        assert_eq!(Object::parse(&sent).expect("it is taken").to_bytes(), sent);
    }
}

fn why_not(tree: &Json<'_>) -> NotAnObject {
    let json::Kind::Object(members) = &tree.kind else { return NotAnObject::NotObject };
    if members.iter().any(|(name, _)| name.is_none()) {
        return NotAnObject::NotJson;
    }
    if members.len() > 500 { NotAnObject::TooManyKeys } else { NotAnObject::Duplicate }
}
