//! threepid-shim gives MSC2263 to a Matrix homeserver that cannot be upgraded.

pub mod body;
pub mod config;
pub mod in_flight;
pub mod limit;
pub mod matrix;
pub mod random;
pub mod serve;
pub mod session;
pub mod store;
pub mod telemetry;
