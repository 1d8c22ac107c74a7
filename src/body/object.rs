//! A JSON object of which some keys are read or changed and every other byte keeps its meaning.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::matrix::{Errcode, Refusal};

/// Keys of one object; a client needs less than twenty. Bounds the search for a key that stands twice.
const MOST_KEYS: usize = 500;
/// Python gives up at about 1000, Go at 10,000; clients need less than ten.
const MOST_DEPTH: usize = 500;

/// A JSON object with its keys in order, each value as its bytes: numbers, escapes and what lies deeper stay as sent.
#[derive(Clone)]
pub struct Object<'a> {
    fields: Vec<(String, Cow<'a, RawValue>)>,
}

crate::matrix::hidden!(Object<'_>);

/// Why a body is not an object we can read as the homeserver would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnObject {
    #[error("Content not JSON.")]
    NotJson,
    #[error("Content must be a JSON object.")]
    NotObject,
    #[error("Content has the same key twice.")]
    Duplicate,
    #[error("Content has too many keys.")]
    TooManyKeys,
    #[error("Content has too many elements in a list.")]
    TooManyElements,
    #[error("Content is nested too deeply.")]
    TooDeep,
}

impl From<NotAnObject> for Refusal {
    fn from(error: NotAnObject) -> Self {
        let errcode = match error {
            NotAnObject::NotJson => Errcode::MNotJson,
            NotAnObject::NotObject
            | NotAnObject::Duplicate
            | NotAnObject::TooManyKeys
            | NotAnObject::TooManyElements
            | NotAnObject::TooDeep => Errcode::MBadJson,
        };
        Self::bad_request(errcode, error.to_string())
    }
}

impl<'a> Object<'a> {
    /// The object that `bytes` are. A byte order mark, `NaN`, UTF-16 and anything behind the object are not JSON here;
    /// a key that stands twice is refused, since Python reads the last and others the first.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NotAnObject> {
        let raw: &RawValue = serde_json::from_slice(bytes).map_err(|_syntax| NotAnObject::NotJson)?;
        if too_deep(bytes) {
            return Err(NotAnObject::TooDeep);
        }
        Self::of(raw)
    }

    /// The object that a value is.
    pub fn of(raw: &'a RawValue) -> Result<Self, NotAnObject> {
        if !raw.get().starts_with('{') {
            return Err(NotAnObject::NotObject);
        }
        let Fields(fields) = serde_json::from_str(raw.get()).map_err(|_syntax| NotAnObject::NotJson)?;
        let fields: Vec<_> = fields.into_iter().map(|(name, value)| (name, Cow::Borrowed(value))).collect();
        let twice =
            |(at, (name, _)): (usize, &(String, _))| fields.iter().skip(at + 1).any(|(other, _)| same(name, other));
        if fields.len() > MOST_KEYS {
            return Err(NotAnObject::TooManyKeys);
        }
        if fields.iter().enumerate().any(twice) {
            return Err(NotAnObject::Duplicate);
        }
        Ok(Self { fields })
    }

    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.entry(name).map(|(_, value)| value)
    }

    /// The key as it was written, and its value.
    pub fn entry(&self, name: &str) -> Option<(&str, &RawValue)> {
        self.fields.iter().find(|(field, _)| same(field, name)).map(|(field, value)| (field.as_str(), value.as_ref()))
    }

    /// The value when it is a string.
    pub fn string(&self, name: &str) -> Option<String> {
        self.get(name).and_then(|value| serde_json::from_str(value.get()).ok())
    }

    /// Puts a value in the place of the old one, or at the end.
    pub fn set(&mut self, name: &str, value: Box<RawValue>) {
        match self.fields.iter_mut().find(|(field, _)| same(field, name)) {
            Some(field) => *field = (name.to_owned(), Cow::Owned(value)),
            None => self.fields.push((name.to_owned(), Cow::Owned(value))),
        }
    }

    pub fn set_string(&mut self, name: &str, value: &str) {
        if let Ok(raw) = serde_json::value::to_raw_value(value) {
            self.set(name, raw);
        }
    }

    /// Whether there was one to remove.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.fields.len();
        self.fields.retain(|(field, _)| !same(field, name));
        self.fields.len() < before
    }

    pub fn to_raw(&self) -> Box<RawValue> {
        let mut out = String::from("{");
        for (at, (name, value)) in self.fields.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(name.as_str()).to_string());
            out.push(':');
            out.push_str(value.get());
        }
        out.push('}');
        RawValue::from_string(out).unwrap_or_default()
    }

    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(String::from(Box::<str>::from(self.to_raw())))
    }
}

/// The elements of a JSON array, or `None` when the value is none.
pub fn elements(raw: &RawValue) -> Option<Vec<&RawValue>> {
    raw.get()
        .starts_with('[')
        .then(|| serde_json::from_str::<Elements<'_>>(raw.get()).ok())
        .flatten()
        .map(|Elements(all)| all)
}

/// Go, in which Dendrite is written, matches names without regard to case, by Unicode's simple folding: U+017F is an
/// `s` and U+212A a `k` to it. So they are to us, or the homeserver would find creds where we see none.
fn same(one: &str, other: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    one.chars().map(fold).eq(other.chars().map(fold))
}

/// Whether brackets of this JSON nest deeper than `MOST_DEPTH`. Needs no stack.
fn too_deep(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    json.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MOST_DEPTH
    })
}

struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

struct Elements<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Elements<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Elements<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
                let mut all = Vec::new();
                while let Some(element) = seq.next_element()? {
                    all.push(element);
                }
                Ok(Elements(all))
            }
        }
        deserializer.deserialize_seq(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_touched_keeps_its_bytes_and_its_order() {
        let text =
            r#"{"z":1e400,"a" : [1.0,{"x":1,"x":2}],"\u0061b":"\ud83d\ude00","big":123456789012345678901234567890}"#;
        let mut object = Object::parse(text.as_bytes()).unwrap();
        object.set_string("id_server", "localhost:8091");
        assert!(!object.remove("missing"));
        let expected = r#"{"z":1e400,"a":[1.0,{"x":1,"x":2}],"ab":"\ud83d\ude00","big":123456789012345678901234567890,"id_server":"localhost:8091"}"#;
        assert_eq!(object.to_bytes(), expected);
    }

    #[test]
    fn a_key_is_replaced_in_its_place() {
        let mut object = Object::parse(br#"{"a":1,"id_server":null,"b":2}"#).unwrap();
        object.set_string("id_server", "x");
        assert_eq!(object.to_bytes(), r#"{"a":1,"id_server":"x","b":2}"#);
        assert!(object.remove("a"));
        assert_eq!(object.to_bytes(), r#"{"id_server":"x","b":2}"#);
    }

    #[test]
    fn s4_29_what_parsers_disagree_about_is_refused() {
        let table: [(&[u8], NotAnObject); 14] = [
            (b"", NotAnObject::NotJson),
            (b"{nope", NotAnObject::NotJson),
            (b"{} x", NotAnObject::NotJson),
            (b"\xef\xbb\xbf{}", NotAnObject::NotJson),
            (b"{\x00}\x00", NotAnObject::NotJson),
            (b"{\"a\":NaN}", NotAnObject::NotJson),
            (b"{\"a\":\"\xff\"}", NotAnObject::NotJson),
            (b"{\"\\ud800\":1}", NotAnObject::NotJson),
            (b"[]", NotAnObject::NotObject),
            (b"null", NotAnObject::NotObject),
            (br#"{"sid":1,"sid":2}"#, NotAnObject::Duplicate),
            (br#"{"sid":1,"\u0073id":2}"#, NotAnObject::Duplicate),
            (br#"{"sid":1,"SID":2}"#, NotAnObject::Duplicate),
            ("{\"sid\":1,\"\u{17f}id\":2}".as_bytes(), NotAnObject::Duplicate),
        ];
        for (bytes, expected) in table {
            assert_eq!(Object::parse(bytes).unwrap_err(), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn s4_28_a_hundred_thousand_keys_are_refused_without_effort() {
        let many: Vec<_> = (0..100_000).map(|n| format!("\"k{n}\":0")).collect();
        let body = format!("{{{}}}", many.join(","));
        assert_eq!(Object::parse(body.as_bytes()).unwrap_err(), NotAnObject::TooManyKeys);
    }

    #[test]
    fn s4_29_depth_is_bounded_and_needs_no_stack() {
        let nested =
            |depth| format!("{{\"a\":{}{},\"b\":\"[\\\"{}\"}}", "[".repeat(depth), "]".repeat(depth), "[".repeat(999));
        assert!(Object::parse(nested(MOST_DEPTH - 1).as_bytes()).is_ok());
        assert_eq!(Object::parse(nested(MOST_DEPTH).as_bytes()).unwrap_err(), NotAnObject::TooDeep);
        assert_eq!(Object::parse(nested(400_000).as_bytes()).unwrap_err(), NotAnObject::TooDeep);
    }
}
