//! Draining from within a container, where there is no `kill`.

use std::path::Path;
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process};

/// What Linux shows as the name of our process: the first 15 bytes.
const NAME: &str = "threepid-shim";

/// Why the shim was not told.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error("process 1 cannot be seen: {0}")]
    Unseen(io::Error),
    #[error("process 1 is {0} and not {NAME}: this is for its own container")]
    Another(String),
    #[error("process 1 cannot be told: {0}")]
    Untold(io::Error),
}

/// Tells process 1, if it is the shim, to drain and end: SIGTERM, as a container's runtime would send at the very end.
/// A sidecar gets that only after the homeserver has ended, which would be too late for the requests it still waits for.
pub fn drain() -> Result<(), DrainError> {
    is_shim(Path::new("/proc/1/comm"))?;
    kill_process(Pid::INIT, Signal::TERM).map_err(|error| DrainError::Untold(error.into()))
}

/// Elsewhere process 1 is the machine's.
fn is_shim(comm: &Path) -> Result<(), DrainError> {
    let name = fs::read_to_string(comm).map_err(DrainError::Unseen)?;
    match name.trim_end() {
        NAME => Ok(()),
        another => Err(DrainError::Another(another.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_1_that_is_the_shim_is_told_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let comm = folder.path().join("comm");
        assert!(matches!(is_shim(&comm), Err(DrainError::Unseen(_))));
        fs::write(&comm, "systemd\n").unwrap();
        assert!(matches!(is_shim(&comm), Err(DrainError::Another(name)) if name == "systemd"));
        fs::write(&comm, "threepid-shim\n").unwrap();
        assert!(is_shim(&comm).is_ok());
    }
}
