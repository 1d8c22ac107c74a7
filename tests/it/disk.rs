//! The session file below the real binary, which is one process's alone.

use std::path::Path;
use std::process::Command;

use crate::legacy::{legacy, unique};
use crate::process::Process;

const FILE: &str = "[store]\nkind = \"file\"\n";

/// A disk of 512 KiB. It needs root, as these tests do.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(folder.path()).output().unwrap();
        assert!(mounted.status.success(), "a tmpfs is needed: {}", String::from_utf8_lossy(&mounted.stderr));
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is left.
    pub fn fill(&self) {
        std::fs::write(self.path().join("ballast"), vec![7; 1 << 20]).unwrap_err();
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").args(["-l".as_ref(), self.0.path().as_os_str()]).status().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_shim_on_one_state_dir_ends_and_says_why_and_the_first_goes_on() {
    let homeserver = legacy("1.3.1");
    let first = Process::start(&homeserver.address, homeserver.door(), FILE).serving().await;
    let state_dir = format!("THREEPID_SHIM__STATE_DIR={}", first.state_dir().display());
    let second = Process::under(&["env", &state_dir], &homeserver.address, homeserver.door(), FILE);
    let (code, log) = second.ended().await;
    let said = "sessions.redb is in use by another process; stop that one, or give this one a state_dir of its own";
    assert!(code == Some(1) && log.contains(said) && log.contains("ERROR"), "{code:?}: {log}");
    first.client().request_token("register", &(unique("first") + "@example.org"), &unique("secret"), 1).await.sid();
}

/// As a power cut leaves a file.
#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_session_file_is_an_error_in_the_log_and_the_first_start_is_none() {
    let homeserver = legacy("1.3.1");
    let mut shim = Process::start(&homeserver.address, homeserver.door(), FILE).serving().await;
    let complaints = |shim: &Process| {
        let lines = shim.lines().into_iter().filter(|line| line["level"] == "ERROR").collect::<Vec<_>>();
        lines.iter().map(|line| format!("{} {}", line["message"], line["found"])).collect::<Vec<_>>()
    };
    assert_eq!(complaints(&shim), Vec::<String>::new());
    shim.kill();
    let folder = shim.state_dir().join("sessions");
    std::fs::write(folder.join("sessions.redb"), "").unwrap();
    let shim = shim.killed_and_started_again().await;
    let said = complaints(&shim);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("sessions.redb is damaged; it is kept as") && said[0].contains("it is empty"), "{said:?}");
    shim.client().request_token("register", &(unique("anew") + "@example.org"), &unique("secret"), 1).await.sid();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2, "the empty one is kept beside it");
}
