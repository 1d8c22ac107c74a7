//! threepid-shim gives MSC2263 to a Matrix homeserver that cannot be upgraded.

pub mod certificates;
pub mod config;
pub mod front;
pub mod homeserver;
pub mod matrix;
pub mod serve;
pub mod telemetry;
