//! What systemd is told (`sd_notify`): ready, reloading, stopping. Elsewhere nobody listens, and nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// Cheap to clone; all clones tell the same one.
#[derive(Debug, Clone, Default)]
pub struct Supervisor(Option<Arc<SocketAddr>>);

impl Supervisor {
    /// At what `NOTIFY_SOCKET` says: a path, or `@` and the name of an abstract socket.
    pub fn at(notify_socket: &OsStr) -> io::Result<Self> {
        let address = match notify_socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(notify_socket)?,
        };
        Ok(Self(Some(Arc::new(address))))
    }

    /// All doors are open.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=Serving");
    }

    pub fn reloading(&self) {
        self.tell("RELOADING=1\nSTATUS=Reading the configuration again");
    }

    /// A reload that failed is over, too: the configuration before is in force.
    pub fn reloaded(&self, faults: usize) {
        if faults == 0 {
            return self.ready();
        }
        self.tell(&format!("READY=1\nSTATUS=Serving; configuration not reloaded, faults: {faults}, see the log"));
    }

    /// Draining may take this long; `TimeoutStopSec` counts for whoever takes longer.
    pub fn stopping(&self, longest: Duration) {
        let longest = longest.as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={longest}\nSTATUS=Draining: what is open may finish"));
    }

    fn tell(&self, what: &str) {
        let Some(address) = &self.0 else { return };
        let told = UnixDatagram::unbound().and_then(|socket| {
            // It waits for nobody who does not read.
            socket.set_nonblocking(true)?;
            socket.send_to_addr(what.as_bytes(), address)
        });
        if let Err(error) = told {
            tracing::warn!(%error, "the supervisor at NOTIFY_SOCKET cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        socket.set_nonblocking(true).unwrap();
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_path_and_an_abstract_name_are_told_alike() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("threepid-shim-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (at, socket) in [(path.into_os_string(), by_path), (format!("@{name}").into(), by_name)] {
            let supervisor = Supervisor::at(&at).unwrap();
            supervisor.ready();
            assert_eq!(heard(&socket), "READY=1\nSTATUS=Serving");
            supervisor.stopping(Duration::from_secs(50));
            assert!(heard(&socket).starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=50000000\n"));
        }
    }

    #[test]
    fn nobody_who_listens_or_reads_is_waited_for() {
        Supervisor::default().ready();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let supervisor = Supervisor::at(path.as_os_str()).unwrap();
        supervisor.ready();
        let _full = UnixDatagram::bind(&path).unwrap();
        for _ in 0..10_000 {
            supervisor.ready();
        }
    }
}
