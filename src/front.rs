//! Door 1, for clients.

pub mod forward;
pub mod versions;
