//! The ordinary request, byte for byte, through a served door.

mod answers;
mod door;
mod requests;

pub use door::Front;
