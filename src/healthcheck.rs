//! The running shim of this configuration, asked at its admin door: whether it is alive (containers have neither shell nor curl),
//! what it knows of a session.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::Endpoint;
use crate::matrix::Sid;

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
    let (door, answer) = get(admin, "/healthz")?;
    let said = answer.lines().next().unwrap_or_default().to_owned();
    if said.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(Unhealthy::Unwell { door, said })
}

/// What the running shim knows of a session, from the first of the admin doors; `None`: it knows none of that sid.
pub fn session(admin: &[Endpoint], sid: &Sid) -> Result<Option<String>, Unhealthy> {
    let (door, answer) = get(admin, &format!("/sessions/{}", sid.as_str()))?;
    let status = answer.lines().next().unwrap_or_default().to_owned();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    match body {
        Some(body) if status.starts_with("HTTP/1.1 200 ") => Ok(Some(body)),
        Some(body) if status.starts_with("HTTP/1.1 404 ") && body.starts_with("no session") => Ok(None),
        Some(_) | None => Err(Unhealthy::Unwell { door, said: status }),
    }
}

/// The whole answer.
fn get(admin: &[Endpoint], path: &str) -> Result<(Endpoint, String), Unhealthy> {
    let door = admin.first().ok_or(Unhealthy::NoDoor)?;
    let answer = ask(door, path).map_err(|source| Unhealthy::Silent { door: door.clone(), source })?;
    Ok((door.clone(), answer))
}

fn ask(door: &Endpoint, path: &str) -> io::Result<String> {
    match door {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            answer(stream, path)
        }
        Endpoint::Unix(path_of_door) => {
            let stream = UnixStream::connect(path_of_door)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            answer(stream, path)
        }
    }
}

fn answer(mut stream: impl Read + Write, path: &str) -> io::Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let read = stream.take(4096).read_to_end(&mut answer);
    // Who does not close after the answer is no shim; what was said tells who.
    if answer.is_empty() {
        read?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A door on all addresses is on loopback, too.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    address
}
