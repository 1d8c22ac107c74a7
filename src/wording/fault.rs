//! What is wrong with the operator's templates and words: where, and what to write instead.

use crate::config::{Config, Fault, Faults, Place, Wrong};

use super::TEMPLATES;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordingError {
    #[error("{file}: there is no such template")]
    UnknownTemplate { file: String },
    #[error("{file}:{line}: {why}")]
    Template { file: String, line: usize, why: String },
    /// `line`: of a word that is written; `None`: of one that is not.
    #[error("{file}{}: {key} {why}", line.map(|line| format!(":{line}")).unwrap_or_default())]
    Word { file: String, line: Option<usize>, key: String, why: String, write: String },
    #[error("there is no language {tag}; there are {known}")]
    UnknownLanguage { tag: String, known: String },
    #[error("{file}: a page has to hold exactly one <style> element, the same on every page")]
    Style { file: String },
}

/// All of them at once.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct WordingErrors(pub(super) Vec<WordingError>);

impl WordingErrors {
    /// As faults of the configuration that these templates and words were read by.
    #[must_use]
    pub fn faults(&self, config: &Config) -> Faults {
        Faults::of(self.0.iter().map(|error| error.fault(config)).collect())
    }
}

impl WordingError {
    fn fault(&self, config: &Config) -> Fault {
        let path = |file: &str| config.wording.templates.get(file).map(|found| found.path.display().to_string());
        let wrong = |wrong: &str, write: String| Wrong::new(wrong, write);
        let folder = "wording.directory";
        match self {
            Self::UnknownTemplate { file } => {
                let known = TEMPLATES.map(|(file, _)| file).join(", ");
                let wrong =
                    wrong("there is no such template", format!("remove it, or name it one of {known}, de.json"));
                at(config, path(file), None, folder, wrong)
            }
            Self::Template { file, line, why } => {
                let write = if why.starts_with("undefined") {
                    "write a name that config/README.md lists for this template"
                } else {
                    "correct the line, or remove the file"
                };
                at(config, path(file), Some(*line), folder, wrong(why, write.to_owned()))
            }
            Self::Word { file, line, key, why, write } => at(config, path(file), *line, key, wrong(why, write.clone())),
            Self::UnknownLanguage { tag, known } => {
                let wrong =
                    wrong(&format!("there is no language {tag}"), format!("write one of {known}, or add {tag}.json"));
                config.fault("wording.default_language", wrong)
            }
            Self::Style { file } => {
                let what = "has not exactly one <style> element, the same on every page";
                let write = "write <style>{% include \"style.css\" %}</style> once, in page.html";
                at(config, path(file), None, folder, wrong(what, write.to_owned()))
            }
        }
    }
}

/// In the file if it is the operator's, else where the folder is named.
fn at(config: &Config, file: Option<String>, line: Option<usize>, key: &str, wrong: Wrong) -> Fault {
    let place = match (file, line) {
        (Some(file), Some(line)) => Place::Line { file, line },
        (Some(file), None) => Place::File(file),
        (None, _) => return config.fault("wording.directory", wrong),
    };
    Fault { place, key: key.to_owned(), wrong }
}
