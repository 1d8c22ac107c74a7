//! The folder for what the shim writes: closed to everybody else.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::certificates;
use crate::config::{Config, IdentityTls};

const CLOSED: u32 = 0o700;
/// To go through a folder without looking into it.
const THROUGH: u32 = 0o011;

/// How the folder is, once it has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateDir {
    Closed,
    /// Others can go through it, to what a homeserver may be reading below it.
    Through,
    /// It belongs to somebody else, who opened it so far.
    Foreign(u32),
}

/// Why there is no folder to write in.
#[derive(Debug, thiserror::Error)]
#[error("state_dir: {} cannot be {what}", path.display())]
pub struct StateDirError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Makes the folder, or closes one of ours that others can look into. A homeserver that has read the CA below it so far still
/// can: it would find out at its next start only.
pub fn prepare(config: &Config) -> Result<StateDir, StateDirError> {
    let path = config.state_dir.as_path();
    let bundle = match &config.identity.tls {
        IdentityTls::Generated { ca_directory } if ca_directory.starts_with(path) => {
            Some(certificates::bundle_in(ca_directory))
        }
        IdentityTls::Generated { .. } | IdentityTls::Files(_) => None,
    };
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path).map_err(failed("made", path))?;
            StateDir::Closed
        }
        Err(error) => return Err(failed("looked at", path)(error)),
        Ok(found) => close(path, found.mode() & 0o777, found.uid(), bundle.as_deref())?,
    };
    match (found, bundle) {
        (StateDir::Closed, Some(bundle)) => tracing::info!(
            bundle = %bundle.display(),
            "state_dir is closed, and the CA in it: for a homeserver of another user write identity.ca_directory"
        ),
        (StateDir::Through, Some(bundle)) => tracing::warn!(
            bundle = %bundle.display(),
            "others can go through state_dir, since the homeserver may be reading the CA below it: write \
             identity.ca_directory, and the homeserver's SSL_CERT_FILE after it"
        ),
        (StateDir::Closed | StateDir::Through | StateDir::Foreign(_), _) => {}
    }
    Ok(found)
}

fn close(path: &Path, mode: u32, owner: u32, bundle: Option<&Path>) -> Result<StateDir, StateDirError> {
    if mode & !CLOSED == 0 {
        return Ok(StateDir::Closed);
    }
    if !fs::metadata("/proc/self").is_ok_and(|me| me.uid() == owner) {
        tracing::info!(mode = %format_args!("{mode:04o}"), "state_dir is open to others, and somebody else's to close");
        return Ok(StateDir::Foreign(mode));
    }
    let is_read = mode & THROUGH != 0 && bundle.is_some_and(Path::exists);
    let wanted = if is_read { CLOSED | mode & THROUGH } else { CLOSED };
    if mode != wanted {
        fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(failed("closed", path))?;
        tracing::warn!(
            was = %format_args!("{mode:04o}"),
            is = %format_args!("{wanted:04o}"),
            "state_dir was open to others"
        );
    }
    Ok(if is_read { StateDir::Through } else { StateDir::Closed })
}

/// Folders above it are anybody's to look into.
fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).create(parent)?;
    }
    DirBuilder::new().mode(CLOSED).create(path)
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> StateDirError {
    move |source| StateDirError { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state folder, opened so far, with the CA where the configuration puts it.
    fn prepared(open: Option<u32>, is_old: bool, more: &str) -> (StateDir, u32) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("lib/shim");
        let ca = folder.path().join("cache");
        let text = format!(
            "server_name = \"example.org\"\npublic_base_url = \"https://matrix.example.org\"\n\
             state_dir = \"{}\"\nemail.from = \"a@example.org\"\n{}",
            state.display(),
            more.replace("CACHE", &ca.display().to_string()),
        );
        let config = Config::from_text(&text).unwrap();
        if let Some(mode) = open {
            fs::create_dir_all(state.join("tls")).unwrap();
            if is_old {
                fs::write(state.join("tls/ca-bundle.pem"), "").unwrap();
            }
            fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        }
        let found = prepare(&config).unwrap();
        (found, fs::metadata(&state).unwrap().mode() & 0o777)
    }

    #[test]
    fn the_folder_is_closed_unless_a_homeserver_reads_the_ca_below_it_already() {
        let elsewhere = "identity.ca_directory = \"CACHE\"\n";
        for (mode, is_old, more, found, is) in [
            (None, false, "", StateDir::Closed, 0o700),
            (None, false, elsewhere, StateDir::Closed, 0o700),
            (Some(0o755), false, "", StateDir::Closed, 0o700),
            (Some(0o777), false, elsewhere, StateDir::Closed, 0o700),
            (Some(0o755), true, elsewhere, StateDir::Closed, 0o700),
            (Some(0o755), true, "", StateDir::Through, 0o711),
            (Some(0o711), true, "", StateDir::Through, 0o711),
            (Some(0o750), true, "", StateDir::Through, 0o710),
            (Some(0o744), true, "", StateDir::Closed, 0o700),
            (Some(0o700), true, "", StateDir::Closed, 0o700),
            (Some(0o500), false, "", StateDir::Closed, 0o500),
        ] {
            assert_eq!(prepared(mode, is_old, more), (found, is), "{mode:?} {is_old} {more}");
        }
    }
}
