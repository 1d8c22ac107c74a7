//! What crosses a door, one file per trip.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "a test that cannot go on should stop where it stands"
)]

mod attacks;
mod client;
mod config;
mod flows;
mod layers;
mod legacy;
mod shim;
