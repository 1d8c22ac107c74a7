//! The service manager: the unit as systemd reads it, and what the binary tells whoever started it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::client::creds;
use crate::homeserver::{self, Homeserver};
use crate::legacy::{legacy, unique};
use crate::process::Process;
use crate::shim::{Reserved, link_of};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/threepid-shim.service");

fn heard(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 512];
    let length = socket.recv(&mut bytes).expect("the shim says something within 20 s");
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_supervisor_hears_of_the_start_each_reload_and_the_stop() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let wrapper = ["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display())];
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let config = "[shutdown]\ngrace = \"30s\"\n";
    let shim = Process::under(&wrapper, &homeserver.address.to_string(), Reserved::new(1).take(), config);
    assert_eq!(heard(&socket), "READY=1\nSTATUS=Serving");
    assert_eq!(shim.readiness().await, 200, "all doors are open by then");
    shim.hang_up();
    assert!(heard(&socket).starts_with("RELOADING=1\n"));
    assert_eq!(heard(&socket), "READY=1\nSTATUS=Serving");
    std::fs::write(shim.config_file(), "nonsense").unwrap();
    shim.hang_up();
    assert!(heard(&socket).starts_with("RELOADING=1\n"));
    let failed = heard(&socket);
    assert!(failed.starts_with("READY=1\nSTATUS=Serving; configuration not reloaded, faults: "), "{failed}");
    shim.terminate();
    let stopping = heard(&socket);
    assert!(stopping.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\n"), "{stopping}");
    assert_eq!(shim.ended().await.0, Some(0));
}

/// The unit answers every other system call with EPERM.
#[tokio::test(flavor = "multi_thread")]
async fn the_shim_makes_no_system_call_that_its_unit_forbids() {
    let synapse = legacy("1.3.1");
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    // -D: the shim is our child, and strace its.
    let wrapper = ["strace", "-D", "-f", "-qq", "-o", trace.to_str().unwrap()];
    let config = "[store]\nkind = \"file\"\n";
    let shim = Process::under(&wrapper, &synapse.address, synapse.door(), config).serving().await;
    let (client, name, secret) = (shim.client(), unique("traced"), unique("secret"));
    let sid = client.request_token("register", &format!("{name}@example.org"), &secret, 1).await.sid();
    client.click(&link_of(&shim.outbox().pop().unwrap())).await;
    client.register(&name, creds(&sid, &secret)).await.ok();
    shim.hang_up();
    shim.logged(|line| line["message"] == "configuration reloaded").await;
    shim.terminate();
    assert_eq!(shim.ended().await.0, Some(0));
    let sets = sets();
    let unit = std::fs::read_to_string(UNIT).unwrap();
    let mut allowed = expand(&sets, "@default");
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let all: BTreeSet<String> =
            line.trim_start_matches('~').split(' ').flat_map(|name| expand(&sets, name)).collect();
        allowed = if line.starts_with('~') { &allowed - &all } else { &allowed | &all };
    }
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: BTreeSet<String> = trace
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        .map(|(call, _)| call.to_owned())
        .filter(|call| call.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .collect();
    assert!(calls.len() > 30 && calls.contains("epoll_wait") && calls.contains("fdatasync"), "{calls:?}");
    assert_eq!(&calls - &allowed, BTreeSet::new());
}

/// systemd's own sets of system calls, by name.
fn sets() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new("systemd-analyze").arg("syscall-filter").output().unwrap();
    let mut sets = BTreeMap::<String, BTreeSet<String>>::new();
    let mut open = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        match line.trim() {
            name if line.starts_with('@') => name.clone_into(&mut open),
            name if name.is_empty() || name.starts_with('#') => {}
            name => drop(sets.entry(open.clone()).or_default().insert(name.to_owned())),
        }
    }
    sets
}

fn expand(sets: &BTreeMap<String, BTreeSet<String>>, name: &str) -> BTreeSet<String> {
    match sets.get(name) {
        Some(set) => set.iter().flat_map(|name| expand(sets, name)).collect(),
        None => BTreeSet::from([name.to_owned()]),
    }
}

#[test]
fn systemd_finds_no_fault_with_the_unit_and_calls_it_confined() {
    let text = std::fs::read_to_string(UNIT).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("threepid-shim.service");
    // Installed, the binary is in /usr/bin.
    std::fs::write(&unit, text.replace("/usr/bin/threepid-shim", env!("CARGO_BIN_EXE_threepid-shim"))).unwrap();
    let analyze = |arguments: &[&str], unit: &Path| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(arguments).arg(unit).env("SYSTEMD_LOG_LEVEL", "warning").output();
        let output = output.expect("Debian's systemd has systemd-analyze");
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(analyze(&["verify", "--man=no"], &unit), (true, String::new()));
    let (good, said) = analyze(&["security", "--offline=true", "--threshold=20"], &unit);
    assert!(good && said.contains("Overall exposure level for threepid-shim.service: "), "below 2.0: {said}");
    std::fs::write(&unit, "[Service]\nExecStart=/bin/true\n").unwrap();
    assert!(!analyze(&["security", "--offline=true", "--threshold=20"], &unit).0, "another unit would not pass");
}
