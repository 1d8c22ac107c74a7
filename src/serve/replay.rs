//! A socket as hyper sees it when bytes were read from it before, all of them or those of one request only.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Unusual;

/// How much is read behind the window, to see whether the client is still there.
const BEHIND: usize = 4096;

/// First the bytes that were read, then the socket's own; no more than the window allows.
pub(super) struct Replay<S> {
    inner: S,
    read: Vec<u8>,
    replayed: usize,
    window: Window,
}

/// How many bytes are still to be let through. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Window(Arc<AtomicU64>);

impl Window {
    /// Whether the one request is through.
    pub(super) fn is_through(&self) -> bool {
        self.left() == 0
    }

    fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn spend(&self, bytes: usize) {
        self.0.store(self.left() - bytes as u64, Ordering::Relaxed);
    }
}

impl<S> Replay<S> {
    pub(super) fn new(inner: S, read: Vec<u8>, unusual: Unusual) -> (Self, Window) {
        let window = Window(Arc::new(AtomicU64::new(match unusual {
            Unusual::Once(bytes) => bytes,
            Unusual::ForGood => u64::MAX,
        })));
        (Self { inner, read, replayed: 0, window: window.clone() }, window)
    }

    /// The socket, and what was read behind the window.
    pub(super) fn into_parts(mut self) -> (S, Vec<u8>) {
        let behind = self.read.split_off(self.replayed.min(self.read.len()));
        (self.inner, behind)
    }
}

impl<S: AsyncRead + Unpin> Replay<S> {
    /// What comes behind the window is for whoever takes the socket back once the request is answered. That nothing more will come
    /// is shown: the client may have gone.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; 1024];
        while self.read.len() - self.replayed < BEHIND {
            let mut came = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut came))?;
            if came.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.read.extend_from_slice(came.filled());
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let most = usize::try_from(this.window.left()).unwrap_or(usize::MAX).min(buf.remaining());
        if most == 0 {
            return this.poll_behind(cx);
        }
        let unread = this.read.get(this.replayed..).unwrap_or_default();
        let came = if unread.is_empty() {
            this.read = Vec::new();
            this.replayed = 0;
            let mut within = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut within))?;
            let came = within.filled().len();
            buf.advance(came);
            came
        } else {
            let came = unread.get(..most).unwrap_or(unread);
            buf.put_slice(came);
            this.replayed += came.len();
            came.len()
        };
        this.window.spend(came);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
