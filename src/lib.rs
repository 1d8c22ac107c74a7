//! threepid-shim gives MSC2263 to a Matrix homeserver that cannot be upgraded.

pub mod config;
pub mod delivery;
pub mod matrix;
pub mod serve;
pub mod telemetry;
pub mod wording;
