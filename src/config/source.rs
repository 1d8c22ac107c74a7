//! Where a configuration comes from and what was found there, so that it can be read again and a change be seen.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::fault::{Fault, Faults, Place, Wrong};
use crate::config::{Config, Endpoint, check, named_file, raw, written};
use crate::matrix::Digest;

/// File and environment, and what every file had in it that was read from there on. Equal: nothing has changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    origin: Arc<Origin>,
    /// `None`: it cannot be read, or is no file.
    seen: BTreeMap<PathBuf, Option<Digest>>,
}

#[derive(PartialEq, Eq)]
struct Origin {
    file: Option<PathBuf>,
    /// What the file said, when it cannot be read twice.
    text: Option<String>,
    environment: Vec<(String, String)>,
}

/// What a source gave at one time.
#[derive(Debug)]
pub struct Reading {
    pub config: Result<Config, Faults>,
    /// With what was seen, of a faulty configuration too.
    pub source: Source,
}

impl Source {
    pub(super) fn new(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Self {
        // A pipe (`--config <(...)`) is empty for whoever comes second.
        let is_pipe = |path: &&Path| fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
        let text = file.filter(is_pipe).and_then(|path| fs::read_to_string(path).ok());
        let environment = environment.filter(|(name, _)| name.starts_with(written::PREFIX)).collect();
        Self::from_origin(Origin { file: file.map(Path::to_owned), text, environment })
    }

    /// `listen.admin` alone, so far as it can be read: the other keys, and the lines that are no TOML, may be faulty.
    pub fn admin(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Vec<Endpoint>, Faults> {
        let (mut sheet, _not_toml) = Self::new(file, environment).so_far().map_err(|fault| Faults(vec![fault]))?;
        let admin = raw::RawConfig::take(&mut sheet).listen_admin.value;
        admin.ok_or_else(|| Faults::sorted(sheet.faults))
    }

    /// A file of this name in the working directory with this text.
    pub(super) fn of_text(name: &str, text: &str) -> Self {
        Self::from_origin(Origin { file: Some(name.into()), text: Some(text.to_owned()), environment: Vec::new() })
    }

    fn from_origin(origin: Origin) -> Self {
        Self { origin: Arc::new(origin), seen: BTreeMap::new() }
    }

    /// Reads everything, whatever was seen before.
    pub fn read(&self) -> Reading {
        let mut source = Self { origin: Arc::clone(&self.origin), seen: BTreeMap::new() };
        match source.sheet() {
            Ok(sheet) => {
                let folder = self.origin.file.as_deref().and_then(Path::parent);
                check::check(sheet, folder.unwrap_or(Path::new("")), source)
            }
            Err(fault) => Reading { config: Err(Faults(vec![fault])), source },
        }
    }

    /// All that is written, the environment's over the file's.
    pub(super) fn sheet(&mut self) -> Result<written::Sheet, Fault> {
        let (sheet, is_toml) = self.so_far()?;
        is_toml.map(|()| sheet)
    }

    /// What can be read of it, and the first line that cannot.
    fn so_far(&mut self) -> Result<(written::Sheet, Result<(), Fault>), Fault> {
        let text = self.text()?;
        let mut sheet = written::Sheet::new(self.origin.file.as_deref(), raw::NAMES);
        let is_toml = sheet.read_file(&text);
        sheet.read_environment(self.origin.environment.iter().cloned());
        Ok((sheet, is_toml))
    }

    /// The same files as they are now. Through their paths each time: a mounted Kubernetes volume changes by another
    /// target of a symbolic link.
    #[must_use]
    pub fn look(&self) -> Self {
        let seen = self.seen.keys().map(|path| (path.clone(), named_file::digest(path))).collect();
        Self { origin: Arc::clone(&self.origin), seen }
    }

    /// To be called before the file is read: a change between the two then shows at the next look.
    pub(super) fn note(&mut self, path: &Path) {
        self.seen.insert(path.to_owned(), named_file::digest(path));
    }

    fn text(&mut self) -> Result<String, Fault> {
        let origin = Arc::clone(&self.origin);
        match (&origin.text, &origin.file) {
            (Some(text), _) => Ok(text.clone()),
            (None, None) => Ok(String::new()),
            (None, Some(path)) => {
                self.note(path);
                fs::read_to_string(path).map_err(|error| {
                    let wrong =
                        Wrong::new(format!("cannot be read: {error}"), "write the path of a configuration file");
                    Fault { place: Place::File(path.display().to_string()), key: "--config".to_owned(), wrong }
                })
            }
        }
    }
}

/// The environment may hold secrets.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "server_name = \"example.org\"\npublic_base_url = \"https://matrix.example.org\"\n\
                        email.transport = \"log\"\n";

    #[test]
    fn a_pipe_is_read_once_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::write(pipe, GOOD).unwrap()
        });
        let config = Config::load(Some(&pipe), std::iter::empty()).unwrap();
        writer.join().unwrap();
        let again = config.source.read().config.unwrap();
        assert_eq!(format!("{again:?}"), format!("{config:?}"));
        assert!(config.source.look() == config.source);
    }

    #[test]
    fn a_change_shows_wherever_something_was_read_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("shim.toml"), GOOD).unwrap();
        let source = Config::load(Some(&path("shim.toml")), std::iter::empty()).unwrap().source;
        let has_changed = || source.look() != source;
        fs::write(path("shim.toml"), GOOD).unwrap();
        fs::write(path("beside"), "x").unwrap();
        assert!(!has_changed(), "the same content is no change, nor is a file that nobody reads");
        fs::create_dir(path("templates")).unwrap();
        assert!(has_changed());
        let source = source.read().source;
        let has_changed = || source.look() != source;
        fs::write(path("templates/.swp"), "x").unwrap();
        assert!(!has_changed());
        fs::write(path("templates/mail.txt"), "x").unwrap();
        assert!(has_changed());
        fs::remove_file(path("templates/mail.txt")).unwrap();
        assert!(!has_changed());
        fs::remove_file(path("shim.toml")).unwrap();
        assert!(has_changed());
    }
}
