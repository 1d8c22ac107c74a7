//! The addresses of a name in turn: one that is silent leaves time for the others.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// A connection to the first that takes one. When time is over the error is `TimedOut`.
pub async fn reach(addresses: Vec<SocketAddr>, until: Instant) -> io::Result<TcpStream> {
    let mut last = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    for (left, address) in (1..=addresses.len()).rev().zip(addresses) {
        let patience = until.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(u32::MAX);
        last = timeout(patience, TcpStream::connect(address)).await.unwrap_or_else(|elapsed| Err(elapsed.into()));
        if last.is_ok() {
            break;
        }
    }
    last.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
}

/// Whether it failed because there was no more time, and not because of what a system said.
pub fn is_late(error: &io::Error, until: Instant) -> bool {
    error.kind() == io::ErrorKind::TimedOut && Instant::now() >= until
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    /// One that takes no connections, and does not say so.
    fn silent() -> (SocketAddr, impl Sized) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        // The queue holds one more than its length; the next has to wait.
        let queued = std::net::TcpStream::connect(address).unwrap();
        (address, (socket, queued))
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_leaves_its_share_of_the_time_to_the_next() {
        let (silent, _held) = silent();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let (patience, began) = (Duration::from_secs(6), Instant::now());
        let reached = reach(vec![silent, silent, good], began + patience).await.unwrap();
        assert_eq!(reached.peer_addr().unwrap(), good);
        let took = began.elapsed();
        assert!(took >= patience * 2 / 3 && took < patience, "{took:?}");
        let until = Instant::now() + patience;
        let late = reach(vec![silent, silent], until).await.unwrap_err();
        assert!(is_late(&late, until), "{late:?}");
        assert_eq!(reach(Vec::new(), until).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
