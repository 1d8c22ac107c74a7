//! The ordinary request, byte for byte, through a served door.

mod answers;
mod door;
mod doors;
mod draining;
mod homes;
mod requests;
mod streams;
mod tunnels;
mod turns;

pub use door::{Front, Mode, Speaking};
pub use homes::gzip;
