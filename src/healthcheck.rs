//! Whether the shim of this configuration is alive, asked at its admin door: for containers, which have neither shell nor curl.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::Endpoint;

/// To connect, and for each read. Docker gives the whole check 3 s in our Dockerfile.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    #[error("listen.admin names no door to ask at")]
    NoDoor,
    #[error("nobody answers at {door}, the first of listen.admin")]
    Silent {
        door: Endpoint,
        #[source]
        source: io::Error,
    },
    #[error("{door} answers, but not as a shim that is well: {said}")]
    Unwell { door: Endpoint, said: String },
}

/// GET `/healthz` at the first of the admin doors.
pub fn look(admin: &[Endpoint]) -> Result<(), Unhealthy> {
    let door = admin.first().ok_or(Unhealthy::NoDoor)?;
    let said = ask(door).map_err(|source| Unhealthy::Silent { door: door.clone(), source })?;
    if said.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(Unhealthy::Unwell { door: door.clone(), said })
}

/// The answer's first line.
fn ask(door: &Endpoint) -> io::Result<String> {
    match door {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            answer(stream)
        }
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            answer(stream)
        }
    }
}

fn answer(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(4096)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// A door on all addresses is on loopback, too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    address
}
