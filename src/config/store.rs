//! Where sessions are kept.

use std::path::PathBuf;

use crate::config::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    Memory,
    /// One file in this folder.
    File {
        directory: PathBuf,
    },
    Redis(Redis),
}

/// Redis or Valkey, wherever it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    pub servers: RedisServers,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub sentinel_password: Option<Secret>,
    /// CA certificates to trust instead of the system's, as a PEM file.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisServers {
    Single(RedisUrl),
    /// The sentinels, and what they call the master.
    Sentinel {
        sentinels: Vec<RedisUrl>,
        master: String,
    },
    /// Some of the nodes; they know the others.
    Cluster(Vec<RedisUrl>),
}

/// `redis://host[:port]`, or `rediss://` for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    pub tls: bool,
    /// A name or an IP address, IPv6 without its brackets.
    pub host: String,
    pub port: Option<u16>,
}
