//! Fields of a query or of an `application/x-www-form-urlencoded` body, each at most once.

/// Names and values, decoded.
pub struct Form(Vec<(String, String)>);

crate::matrix::hidden!(Form);

impl Form {
    /// `None` when a name stands twice: Dendrite builds its query without escaping, so that a client could smuggle a
    /// second `sid` into it.
    pub fn parse(encoded: &[u8]) -> Option<Self> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(encoded) {
            if fields.len() >= 50 || fields.iter().any(|(other, _)| *other == name) {
                return None;
            }
            fields.push((name.into_owned(), value.into_owned()));
        }
        Some(Self(fields))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused_in_any_spelling() {
        assert_eq!(Form::parse(b"sid=a%20b&client_secret=c+d").unwrap().get("sid"), Some("a b"));
        for smuggled in ["sid=a&sid=b", "sid=a&s%69d=b", "x&x", "sid=1&client_secret=2&sid=1"] {
            assert!(Form::parse(smuggled.as_bytes()).is_none(), "{smuggled}");
        }
    }
}
