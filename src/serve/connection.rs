//! One connection: TLS if any, then its door and hyper by turns.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::task::AbortOnDropHandle;

use super::by_hyper::{self, Failed};
use super::patience::{Patient, Phase};
use super::{Carrying, Door, Peer, Serving};

/// A TLS handshake is two round trips; who needs longer is not coming.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection to its end. A panic in it stays in its task and is counted.
pub(super) async fn serve<D, S>(io: S, peer: Peer, door: Arc<D>, serving: Serving)
where
    D: Door,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _counted = Counted::new(&serving);
    let result = match &serving.tls {
        None => http(io, peer, door, &serving).await,
        Some(tls) => match Box::pin(tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(io))).await {
            Ok(Ok(io)) => http(io, peer, door, &serving).await,
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        },
    };
    if let Err(error) = result {
        tracing::debug!(error = &*error, "connection ended");
    }
}

/// Requests that the door does not carry itself are hyper's, one by one or with all that follow.
async fn http<D, S>(mut io: S, peer: Peer, door: Arc<D>, serving: &Serving) -> Result<(), Failed>
where
    D: Door,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut read = Vec::new();
    let mut carrying = Carrying::new(peer, &serving.drain);
    while let Some(unusual) = door.carry(&mut io, &mut read, &mut carrying).await {
        let by_hyper = by_hyper::serve(io, read, unusual, peer, Arc::clone(&door), serving.clone());
        // Rare, and large: an ordinary connection has no room for it.
        let by_hyper = Box::pin(by_hyper);
        let ended = match &serving.elsewhere {
            None => by_hyper.await,
            Some(elsewhere) => match AbortOnDropHandle::new(elsewhere.spawn(by_hyper)).await {
                Ok(ended) => ended,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_cancelled) => return Ok(()),
                },
            },
        };
        match ended? {
            Some(more) => (io, read) = more,
            None => return Ok(()),
        }
    }
    Patient::new(io, Phase::default()).shutdown().await?;
    Ok(())
}

/// Counts a connection for as long as it lives, and the panic if it ends by one.
struct Counted<'a>(&'a Serving);

impl<'a> Counted<'a> {
    fn new(serving: &'a Serving) -> Self {
        serving.open.inc();
        Self(serving)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.open.dec();
        if std::thread::panicking() {
            self.0.panics.inc();
        }
    }
}
