//! What crosses a door, one file per trip.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "a test that cannot go on should stop where it stands, and its helpers are shared inside this crate only"
)]

mod attacks;
mod browser;
mod client;
mod completion;
mod config;
mod email;
mod flows;
mod forward;
mod homeserver;
mod identity;
mod layers;
mod legacy;
mod limits;
mod mailbox;
mod operations;
mod policies;
mod postfix;
mod process;
mod request_token;
mod secure;
mod sequences;
mod shim;
mod versions;
