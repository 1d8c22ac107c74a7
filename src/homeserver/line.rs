//! A socket to the homeserver as hyper sees it: a write that fails does not hide an answer that is already there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A homeserver that has had enough of an upload answers and closes; hyper would take the broken pipe for the end and
/// never read the answer. So what cannot be written is discarded until reading has come to its own end.
pub(super) struct Line<S> {
    inner: S,
    broken: bool,
    read_to_the_end: bool,
}

impl<S> Line<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, broken: false, read_to_the_end: false }
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>, wanted: usize) -> Poll<io::Result<usize>> {
        if !self.read_to_the_end && matches!(&result, Poll::Ready(Err(error)) if is_hangup(error)) {
            self.broken = true;
            return Poll::Ready(Ok(wanted));
        }
        result
    }
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        if matches!(result, Poll::Ready(_)) && buf.filled().len() == before {
            this.read_to_the_end = true;
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.broken && !this.read_to_the_end {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.wrote(result, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if this.broken && !this.read_to_the_end {
            return Poll::Ready(Ok(wanted));
        }
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.wrote(result, wanted)
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
