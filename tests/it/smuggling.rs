//! The hostile messages of `tests/bench/fidelity`, which compares their fate with nginx's and HAProxy's, through the shim
//! alone.

use std::process::Command;

/// CL beside TE in every spelling, lengths twice, chunk extensions, bare LF and CR, folded lines, NUL, a blank before the
/// colon, lengths on answers that have no body, chunks in HTTP/1.0, pipelining, absolute form with another Host. S§4.33.
#[test]
fn no_hostile_message_is_another_one_to_who_reads_it_next() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/fidelity");
    let ran = Command::new("python3")
        .args([script, "--alone", env!("CARGO_BIN_EXE_threepid-shim")])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python3 is needed");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert_eq!(said.lines().next(), Some("193 hostile cases, 0 do harm"), "{said}");
}
