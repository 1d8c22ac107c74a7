//! Fields of a record that a later version of the shim has put there: who does not know them leaves them as they are.

use serde_json::{Map, Value};

use super::{Record, StoreError, read, write};

/// Adds to `record`, which takes the place of `current`, what this version does not know of `current`. Two versions share
/// one store during a rolling update, and one of them may be rolled back.
///
/// Only a record's own fields: what is inside of one is replaced with it. They stand behind those that are known, where no
/// [`Edit`](super::Edit) takes them for one.
pub(super) fn carry<R: Record>(current: &[u8], record: &mut Vec<u8>) -> Result<(), StoreError> {
    let known = write(&read::<R>(current)?)?;
    if known == current {
        return Ok(());
    }
    let known: Map<String, Value> = fields::<R>(&known)?;
    let mut unknown = fields::<R>(current)?;
    unknown.retain(|name, _| !known.contains_key(name));
    if unknown.is_empty() || record.pop() != Some(b'}') {
        return Ok(());
    }
    let unknown = serde_json::to_vec(&unknown).map_err(|source| StoreError::Unwritable { kind: R::KIND, source })?;
    record.push(b',');
    record.extend_from_slice(unknown.get(1..).unwrap_or_default());
    Ok(())
}

fn fields<R: Record>(bytes: &[u8]) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Unreadable { kind: R::KIND, source })
}

#[cfg(test)]
mod tests {
    use super::super::ForeignSid;
    use super::*;

    #[test]
    fn only_what_is_not_known_is_carried_into_the_next_record() {
        let carried = |current: &str| {
            let mut record = br#"{"id_server":"b"}"#.to_vec();
            carry::<ForeignSid>(current.as_bytes(), &mut record).unwrap();
            String::from_utf8(record).unwrap()
        };
        for (current, expected) in [
            (r#"{"id_server":"a"}"#, r#"{"id_server":"b"}"#),
            (r#"{ "id_server": "a" }"#, r#"{"id_server":"b"}"#),
            (r#"{"x":[1],"id_server":"a"}"#, r#"{"id_server":"b","x":[1]}"#),
            (r#"{"id_server":"a","y":"}","x":null}"#, r#"{"id_server":"b","y":"}","x":null}"#),
        ] {
            assert_eq!(carried(current), expected, "{current}");
        }
    }
}
