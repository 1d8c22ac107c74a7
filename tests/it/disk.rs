//! The session file below the real binary: synced before anything is said, one process's alone, and on a disk that is full.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::client::creds;
use crate::homeserver::{self, soon};
use crate::legacy::{legacy, unique};
use crate::mailbox::{Mailbox, Script};
use crate::process::Process;
use crate::secure::{Caller, as_synapse};
use crate::shim::{ROOMY, Reserved};

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

/// A homeserver that asks the identity door at once, and the shim's answer is its own.
async fn asking() -> (Caller, std::net::TcpListener) {
    let door = Reserved::new(1).take();
    let caller = Caller::start(&door, as_synapse, |request, said| match said {
        Some(said) => homeserver::json("200 OK", &said.text()),
        None if request.line().contains("/versions") => homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#),
        None => homeserver::json("200 OK", "{}"),
    })
    .await;
    (caller, door)
}

/// What the trace of system calls shows, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Asked,
    Written,
    Synced,
    Mailed,
    Answered,
}

/// Of a line of strace, which writes a call in two when another thread's comes between.
fn seen(line: &str, unfinished: &mut Vec<String>) -> Option<Seen> {
    let (thread, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(').unwrap_or((call.trim_start(), ""));
    let is_of_sessions = arguments.split_once(',').map_or(arguments, |(fd, _)| fd).contains("/sessions.redb>");
    match name {
        "fdatasync" | "fsync" if is_of_sessions && call.ends_with("= 0") => Some(Seen::Synced),
        "fdatasync" | "fsync" if is_of_sessions => {
            assert!(call.ends_with("<unfinished ...>"), "a sync that failed: {line}");
            unfinished.push(thread.to_owned());
            None
        }
        "pwrite64" | "write" if is_of_sessions => Some(Seen::Written),
        _ if name.starts_with("<... f") && name.contains("sync resumed>") => {
            let at = unfinished.iter().position(|other| other == thread)?;
            unfinished.remove(at);
            line.ends_with("= 0").then_some(Seen::Synced)
        }
        "write" if arguments.contains("/outbox/") => Some(Seen::Mailed),
        _ if arguments.contains("POST /_matrix/client/r0/register/email/requestToken") => Some(Seen::Asked),
        _ if arguments.contains(r#"{\"sid\":\"shim_"#) && arguments.contains("HTTP/1.1 200") => Some(Seen::Answered),
        _ => None,
    }
}

/// S§5.12. A page cache outlives a process that is killed, and no power cut.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_file_was_given_is_synced_before_a_mail_leaves_and_before_the_client_is_answered() {
    let (caller, door) = asking().await;
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    // -D: the shim is our child, and strace its. -y: a descriptor is written with its file.
    let calls = "trace=read,write,writev,pwrite64,recvfrom,sendto,sendmsg,fsync,fdatasync";
    let wrapper = ["strace", "-D", "-f", "-y", "-qq", "-s", "1024", "-e", calls, "-o", trace.to_str().unwrap()];
    let shim = Process::under(&wrapper, &caller.address(), door, FILE).serving().await;
    shim.client().request_token("register", "a@example.org", "s3cr3t", 1).await.sid();
    shim.terminate();
    assert_eq!(shim.ended().await.0, Some(0));
    let mut unfinished = Vec::new();
    let trace = std::fs::read_to_string(trace).unwrap();
    let seen: Vec<Seen> = trace.lines().filter_map(|line| seen(line, &mut unfinished)).collect();
    let asked = seen.iter().position(|one| *one == Seen::Asked).expect("the client's request");
    let on_the_way = &seen[asked..];
    for told in [Seen::Mailed, Seen::Answered] {
        let told = on_the_way.iter().position(|one| *one == told).unwrap_or_else(|| panic!("{told:?}: {seen:?}"));
        let before: Vec<Seen> =
            on_the_way[..told].iter().copied().filter(|one| [Seen::Written, Seen::Synced].contains(one)).collect();
        assert!(before.contains(&Seen::Written), "the session is in the file: {on_the_way:?}");
        assert_eq!(before.last(), Some(&Seen::Synced), "{on_the_way:?}");
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

/// S§5.16.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_requests_for_mails_are_503_all_else_goes_on_and_no_session_or_mail_is_lost() {
    let (homeserver, mailbox, disk) = (legacy("1.3.1"), Mailbox::start(Script::clear()).await, Disk::new());
    let state_dir = format!("THREEPID_SHIM__STATE_DIR={}", disk.path().join("state").display());
    let email = format!(
        "[email]\ntransport = \"smtp\"\nhost = \"{}\"\nport = {}\ntls = \"none\"\nfrom = \"noreply@example.org\"\n",
        mailbox.address().ip(),
        mailbox.address().port()
    );
    let config = format!("{email}{ROOMY}{FILE}");
    let shim = Process::under(&["env", &state_dir], &homeserver.address, homeserver.door(), &config).serving().await;
    let client = shim.client();
    let ask = async |secret: &str| client.request_token("register", &format!("{secret}@example.org"), secret, 1).await;
    let links = || mailbox.messages().iter().map(crate::mailbox::Mail::link).collect::<Vec<_>>();
    let (asked_for, validated) = (unique("asked"), unique("validated"));
    let sids = [ask(&asked_for).await.sid(), ask(&validated).await.sid()];
    assert_eq!(client.click(&links()[1]).await.status, 200);
    disk.fill();
    let mut mails = 2;
    let refused = loop {
        let answer = ask(&unique("full")).await;
        if answer.status != 200 {
            break answer;
        }
        mails += 1;
        assert!(mails < 300, "the disk is full");
    };
    assert_eq!(refused.verdict(), (503, "M_UNKNOWN".into()), "{}", refused.text());
    assert!(refused.header("Retry-After").is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{refused:?}");
    let begun = std::time::Instant::now();
    assert_eq!(client.get("/_matrix/client/r0/login").await.status, 200, "ordinary traffic goes on");
    client.register_plainly(&unique("ordinary")).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    disk.make_room();
    soon("there is room again", async {
        while ask(&unique("room")).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let shim = shim.killed_and_started_again().await;
    assert!(!shim.log().contains("is damaged"), "{}", shim.log());
    for link in links() {
        assert_eq!(shim.client().open(&link).await.status, 200, "a mail that is out leads nowhere: {link}");
    }
    assert!(links().len() > mails, "{mails}");
    let unclicked = client.register(&unique("unclicked"), creds(&sids[0], &asked_for)).await;
    assert_eq!(unclicked.verdict(), (401, "M_UNAUTHORIZED".into()));
    assert_eq!(client.click(&links()[0]).await.status, 200);
    for (sid, secret) in sids.iter().zip([asked_for, validated]) {
        client.register(&unique("full"), creds(sid, &secret)).await.ok();
    }
}
