//! libFuzzer on one of the targets; the environment's `FUZZ_TARGET` says on which.
#![no_main]

use std::sync::LazyLock;

#[path = "../targets/all.rs"]
mod targets;

fn chosen() -> targets::Target {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let target = targets::ALL.iter().find(|(known, _)| *known == name);
    target.unwrap_or_else(|| panic!("FUZZ_TARGET={name} is none of {:?}", targets::ALL.map(|(known, _)| known))).1
}

static TARGET: LazyLock<targets::Target> = LazyLock::new(chosen);

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
