//! What the README's table is made of: one line for each homeserver, flow and client, from a run.

use std::fs::OpenOptions;
use std::io::Write as _;

pub const WORKS: &str = "works";
/// The client as MSC2263 would have it, which knows no identity server.
pub const MSC2263: &str = "MSC2263";

/// Notes what became of a flow through the shim, and without it. `tests/table` says where.
pub fn cell(homeserver: &str, flow: &str, client: &str, through_the_shim: &str, without_it: &str) {
    let Some(file) = std::env::var_os("THREEPID_SHIM_TEST_CELLS") else { return };
    let line = format!("{homeserver}\t{flow}\t{client}\t{through_the_shim}\t{without_it}\n");
    OpenOptions::new().create(true).append(true).open(file).unwrap().write_all(line.as_bytes()).unwrap();
}
