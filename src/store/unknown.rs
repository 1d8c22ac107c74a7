//! Fields of a record that a later version of the shim has put there: who does not know them leaves them as they are.

use serde_json::{Map, Value};

use super::{Record, StoreError, read, write};

/// Adds to `record`, which takes the place of `current`, what this version does not know of `current`. Two versions share
/// one store during a rolling update, and one of them may be rolled back.
///
/// What is inside of a field, or of an element of a list, is carried as long as what is known of that has not changed: what is
/// not known of one reservation must not get into the next. Fields stand behind those that are known, where no
/// [`Edit`](super::Edit) takes them for one.
pub(super) fn carry<R: Record>(current: &[u8], record: &mut Vec<u8>) -> Result<(), StoreError> {
    let known = write(&read::<R>(current)?)?;
    if known == current {
        return Ok(());
    }
    let (current, known, mut next) = (fields::<R>(current)?, fields::<R>(&known)?, fields::<R>(record)?);
    for (name, current) in current {
        match (known.get(&name), next.get_mut(&name)) {
            (Some(known), Some(next)) => keep(current, known, next),
            (None, None) => drop(next.insert(name, current)),
            (Some(_), None) | (None, Some(_)) => {}
        }
    }
    *record = serde_json::to_vec(&next).map_err(|source| StoreError::Unwritable { kind: R::KIND, source })?;
    Ok(())
}

fn keep(current: Value, known: &Value, next: &mut Value) {
    if next == known {
        *next = current;
    } else if let (Value::Array(current), Value::Array(known), Value::Array(next)) = (current, known, next) {
        for next in next {
            let at = known.iter().position(|known| known == next);
            if let Some(current) = at.and_then(|at| current.get(at)) {
                next.clone_from(current);
            }
        }
    }
}

fn fields<R: Record>(bytes: &[u8]) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Unreadable { kind: R::KIND, source })
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::super::ForeignSid;
    use super::*;

    fn carried<R: Record>(current: &str, next: &str) -> String {
        let mut record = next.as_bytes().to_vec();
        carry::<R>(current.as_bytes(), &mut record).unwrap();
        String::from_utf8(record).unwrap()
    }

    #[test]
    fn only_what_is_not_known_is_carried_into_the_next_record() {
        for (current, expected) in [
            (r#"{"id_server":"a"}"#, r#"{"id_server":"b"}"#),
            (r#"{ "id_server": "a" }"#, r#"{"id_server":"b"}"#),
            (r#"{"x":[1],"id_server":"a"}"#, r#"{"id_server":"b","x":[1]}"#),
            (r#"{"id_server":"a","y":"}","x":null}"#, r#"{"id_server":"b","y":"}","x":null}"#),
        ] {
            assert_eq!(carried::<ForeignSid>(current, r#"{"id_server":"b"}"#), expected, "{current}");
        }
    }

    #[derive(Serialize, Deserialize)]
    struct Known {
        n: u8,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<One>,
        list: Vec<One>,
    }

    #[derive(Serialize, Deserialize)]
    struct One {
        id: u8,
    }

    impl Record for Known {
        const KIND: &'static str = "known";
    }

    #[test]
    fn what_is_inside_of_a_field_is_carried_unless_what_is_known_of_that_changes() {
        let current = r#"{"n":1,"held":{"id":1,"x":1},"list":[{"id":1,"x":1},{"x":2,"id":2}]}"#;
        for (next, expected) in [
            (r#"{"n":2,"held":{"id":1},"list":[]}"#, r#"{"n":2,"held":{"id":1,"x":1},"list":[]}"#),
            (
                r#"{"n":2,"held":{"id":2},"list":[{"id":2},{"id":3}]}"#,
                r#"{"n":2,"held":{"id":2},"list":[{"x":2,"id":2},{"id":3}]}"#,
            ),
            (r#"{"n":1,"list":[{"id":1},{"id":2}]}"#, r#"{"n":1,"list":[{"id":1,"x":1},{"x":2,"id":2}]}"#),
        ] {
            assert_eq!(carried::<Known>(current, next), expected);
        }
    }
}
