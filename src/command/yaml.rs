//! A YAML file as the homeserver's `PyYAML` reads it: one document, words such as `yes` and `on` as booleans, the last of two keys.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

/// Values that aliases may make of one file: one of a few lines can stand for billions.
const MOST: usize = 100_000;
/// One in another; `PyYAML` itself ends at about a thousand.
const DEEPEST: usize = 100;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error("line {line}: {said}")]
    Syntax { line: usize, said: String },
    #[error("it is nested deeper than {DEEPEST} times, or its aliases stand for more than {MOST} values")]
    TooMuch,
}

/// The first document; null, if there is none.
pub(super) fn parse(text: &str) -> Result<Value, YamlError> {
    let mut tree = Tree::default();
    for event in Parser::new_from_str(text) {
        let (event, _) =
            event.map_err(|error| YamlError::Syntax { line: error.marker().line(), said: error.info().to_owned() })?;
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                tree.put(scalar(&text, style, tag.as_deref()), anchor)?;
            }
            Event::Alias(anchor) => {
                let value = tree.anchors.get(&anchor).cloned().unwrap_or_default();
                tree.put(value, 0)?;
            }
            Event::SequenceStart(anchor, _) => tree.open.push(Open { anchor, of: Of::List(Vec::new()) }),
            Event::MappingStart(anchor, _) => tree.open.push(Open { anchor, of: Of::Map(Map::new(), None) }),
            Event::SequenceEnd | Event::MappingEnd => tree.close()?,
            Event::DocumentEnd => break,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
        if tree.open.len() > DEEPEST {
            return Err(YamlError::TooMuch);
        }
    }
    Ok(tree.root)
}

#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Value>,
    count: usize,
    root: Value,
}

struct Open {
    anchor: usize,
    of: Of,
}

enum Of {
    List(Vec<Value>),
    /// With the key whose value comes next.
    Map(Map<String, Value>, Option<String>),
}

impl Tree {
    fn put(&mut self, value: Value, anchor: usize) -> Result<(), YamlError> {
        self.count += size(&value);
        if self.count > MOST {
            return Err(YamlError::TooMuch);
        }
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut().map(|open| &mut open.of) {
            None => self.root = value,
            Some(Of::List(items)) => items.push(value),
            Some(Of::Map(map, key)) => match key.take() {
                None => *key = Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
                Some(key) if key == "<<" => merge(map, value),
                Some(key) => drop(map.insert(key, value)),
            },
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let Some(Open { anchor, of }) = self.open.pop() else { return Ok(()) };
        let value = match of {
            Of::List(items) => Value::Array(items),
            Of::Map(map, _) => Value::Object(map),
        };
        self.put(value, anchor)
    }
}

/// What stands in the map itself is stronger, wherever it stands.
fn merge(map: &mut Map<String, Value>, value: Value) {
    match value {
        Value::Object(other) => {
            for (key, value) in other {
                map.entry(key).or_insert(value);
            }
        }
        Value::Array(others) => others.into_iter().for_each(|other| merge(map, other)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 1,
        Value::Object(map) => map.values().map(size).sum::<usize>() + 1,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    if style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str") {
        return text.into();
    }
    let word = text.to_ascii_lowercase();
    match word.as_str() {
        "" | "~" | "null" => Value::Null,
        "true" | "yes" | "on" => true.into(),
        "false" | "no" | "off" => false.into(),
        _ => text.parse::<i64>().map_or_else(|_text| text.into(), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_read_as_pyyaml_reads_it() {
        let text = "a: yes\nb: 'yes'\nc: 25\nd: \"25\"\ne: ~\nf:\ng: [x, {y: off}]\nh: &one\n  i: 1\n  k: 2\nl:\n  <<: *one\n  k: 3\n\
                    m: *one\nn: |\n  two\n  lines\no: text with spaces # and a comment\na: no\n...\nsecond: document\n";
        let expected = json!({
            "a": false, "b": "yes", "c": 25, "d": "25", "e": null, "f": null, "g": ["x", {"y": false}],
            "h": {"i": 1, "k": 2}, "l": {"i": 1, "k": 3}, "m": {"i": 1, "k": 2}, "n": "two\nlines\n",
            "o": "text with spaces",
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("# nothing\n").unwrap(), Value::Null);
    }

    #[test]
    fn what_is_no_yaml_and_what_never_ends_is_refused() {
        assert!(
            matches!(parse("a: 1\nb: [\nc: }\n"), Err(YamlError::Syntax { line: 3, .. })),
            "{:?}",
            parse("a: 1\nb: [\nc: }\n")
        );
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..10 {
            let before = vec![format!("*a{}", n - 1); 10].join(", ");
            laughs = format!("{laughs}a{n}: &a{n} [{before}]\n");
        }
        assert!(matches!(parse(&laughs), Err(YamlError::TooMuch)));
        assert!(parse(&"[".repeat(5000)).is_err());
        assert!(matches!(parse(&"a: [".repeat(60)), Err(YamlError::TooMuch)));
    }
}
