//! Which request it is, and of which process.

use std::fmt;
use std::num::ParseIntError;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::matrix::Timestamp;

/// One run of the shim, among those that may share a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Process(u32);

impl Process {
    pub fn from_random(random: [u8; 4]) -> Self {
        Self(u32::from_be_bytes(random))
    }
}

impl From<Process> for String {
    fn from(process: Process) -> Self {
        process.to_string()
    }
}

impl TryFrom<String> for Process {
    type Error = ParseIntError;

    fn try_from(name: String) -> Result<Self, ParseIntError> {
        u32::from_str_radix(&name, 16).map(Self)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Draws the ids of one process's requests.
#[derive(Debug)]
pub struct RequestIds {
    process: Process,
    next: AtomicU32,
}

impl RequestIds {
    /// From where the clock stands, in case another process, before or after, is called the same.
    pub fn of(process: Process, now: Timestamp) -> Self {
        let [.., a, b, c, d] = now.as_millis().to_be_bytes();
        Self { process, next: AtomicU32::new(u32::from_be_bytes([a, b, c, d])) }
    }

    pub fn draw(&self) -> RequestId {
        RequestId(format!("{}{:08x}", self.process, self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// Ties the client's call, the homeserver's callback, the mail's `Message-ID` and the click together: 16 hexadecimal
/// digits, in every log line that belongs to them. The first 8 are the process's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RequestId(String);

impl RequestId {
    pub fn from_random(random: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(random)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Which process drew it.
    pub fn process(&self) -> Option<Process> {
        u32::from_str_radix(self.0.get(..8)?, 16).ok().map(Process)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
