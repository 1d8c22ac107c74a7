//! What is wrong with a configuration, where, and what to write instead: one line a fault, all of them at once.

use std::fmt;

/// Every fault of one configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    /// Puts the faults of the file first, by line; then keys that are missing; then the environment.
    pub(crate) fn sorted(mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| a.place.cmp(&b.place));
        Self(faults)
    }

    /// What is wrong beyond the keys themselves: with a template, a catalogue, a part that is made of them.
    pub fn of(faults: Vec<Fault>) -> Self {
        Self::sorted(faults)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, fault) in self.0.iter().enumerate() {
            let end_of_line = if nth == 0 { "" } else { "\n" };
            write!(f, "{end_of_line}{fault}")?;
        }
        Ok(())
    }
}

/// One fault: `FILE:LINE: key: what is wrong; what to write`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    pub key: String,
    pub wrong: Wrong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.key, self.wrong)
    }
}

/// Where a key was written, or should have been.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Line {
        file: String,
        line: usize,
    },
    File(String),
    /// The key is then the variable's name.
    Environment,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::File(file) => f.write_str(file),
            Self::Environment => f.write_str("environment"),
        }
    }
}

/// What is wrong with a value, and what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub wrong: String,
    pub write: String,
}

impl Wrong {
    pub fn new(wrong: impl Into<String>, write: impl Into<String>) -> Self {
        Self { wrong: wrong.into(), write: write.into() }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file's name or an operating system's message may hold a line end; a fault is one line.
        write!(f, "{}; {}", one_line(&self.wrong), one_line(&self.write))
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The known word that a mistyped one most likely meant: at most one slip in three letters.
pub(crate) fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (slips(typed, word), word))
        .filter(|(slips, word)| *slips <= (word.chars().count() / 3).clamp(1, 4))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, word)| word)
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other
/// (optimal string alignment), kept in three rows.
fn slips(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut previous = None;
    for (row, letter) in a.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in b.iter().enumerate() {
            let at = |cells: &[usize], index: usize| cells.get(index).copied().unwrap_or(usize::MAX - 1);
            let replaced = at(&above, column) + usize::from(letter != *other);
            let mut least = replaced.min(at(&above, column + 1) + 1).min(at(&current, column) + 1);
            let neighbour = column.checked_sub(1).and_then(|left| b.get(left));
            if previous == Some(*other) && neighbour == Some(&letter) {
                least = least.min(at(&before, column - 1) + 1);
            }
            current.push(least);
        }
        before = std::mem::replace(&mut above, current);
        previous = Some(letter);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_an_insertion_a_deletion_a_substitution_or_a_swap() {
        let rows = [("host", "host", 0), ("hosts", "host", 1), ("hst", "host", 1), ("hast", "host", 1)];
        for (a, b, expected) in rows.into_iter().chain([("hsot", "host", 1), ("", "host", 4), ("port", "host", 2)]) {
            assert_eq!(slips(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_word_is_suggested_and_a_far_one_is_not() {
        let known = ["host", "port", "transport", "deadline"];
        assert_eq!(nearest("hots", known), Some("host"));
        assert_eq!(nearest("trasnport", known), Some("transport"));
        assert_eq!(nearest("timeout", known), None);
    }

    #[test]
    fn a_fault_stays_on_one_line() {
        let wrong = Wrong::new("\"a\nb\" is odd", "write c");
        assert_eq!(wrong.to_string(), "\"a b\" is odd; write c");
    }
}
