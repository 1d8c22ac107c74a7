//! Upgrades through the shim: the cases of Autobahn's suite, run by `kosoku`, against an echoing server with the shim
//! before it and without.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::forward::{Front, Mode};
use crate::homeserver::config_of;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts/websocket/cases.py");

/// A server that gives back what it gets. It ends with its input.
struct Echo(Child);

fn python() -> Command {
    let cache = std::env::var("THREEPID_SHIM_TEST_CACHE")
        .unwrap_or_else(|_unset| format!("{}/.cache/threepid-shim-tests", std::env::var("HOME").unwrap()));
    let python = format!("{cache}/websocket/bin/python");
    assert!(std::path::Path::new(&python).exists(), "PyPI's kosoku is needed (./tests/run installs it)");
    let mut command = Command::new(python);
    command.arg(SCRIPT);
    command
}

impl Echo {
    fn start() -> (Self, SocketAddr) {
        let mut echo = python().arg("echo").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(echo.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port = port.trim().parse().unwrap_or_else(|_| panic!("no port: {port:?}"));
        (Self(echo), SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cases_of_autobahn_end_as_they_do_without_the_shim() {
    let (_echo, address) = Echo::start();
    let front = Front::start(&config_of(address), Mode::Forward, &["127.0.0.0/8"]);
    let mut compare = python();
    compare.args(["compare", &address.to_string(), &front.address.to_string()]);
    let output = tokio::task::spawn_blocking(move || compare.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("259 cases, 0 different"), "{said}");
}
