//! Everything that crosses a door, in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    unreachable_pub,
    reason = "a test fails by panicking, and its helpers are shared inside this crate only"
)]

mod forward;
mod homeserver;
mod versions;
