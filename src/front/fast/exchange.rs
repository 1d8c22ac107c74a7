//! One request up and its answer down, as bytes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::homeserver::Socket;
use crate::serve::{Carrying, PATIENCE};
use crate::wire::{Framing, Persistence};

use super::answer::{Answer, Broken};
use super::stalled::Stalled;

/// What a client may send behind a request before that is answered; beyond, it is not heard.
const BEHIND: usize = 64 * 1024;

/// What is to be carried.
pub(super) struct Request {
    /// The head as the homeserver is to see it, and what of the body came with it.
    pub(super) first: Vec<u8>,
    /// What is still to come of the body.
    pub(super) upload: Framing,
    pub(super) is_head: bool,
    /// Whether the client lets another request follow.
    pub(super) persistence: Persistence,
    /// No body, and asking twice does no harm.
    pub(super) repeatable: bool,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// The answer is through, and this is whether another request may follow.
    Done(Persistence),
    /// The homeserver closed a socket that had been idle before it can have seen this request, or one to be repeated.
    Stale,
    /// The homeserver gave no answer, or none with one reading. Nothing has been sent to the client.
    Unanswered,
    /// The client's body has no reading. Nothing has been sent to the client.
    Malformed,
    /// The client is gone, or has to see that its answer is cut.
    Cut,
}

/// An exchange under way.
pub(super) struct Exchange<'a, S> {
    client: &'a mut S,
    homeserver: Socket,
    request: &'a mut Request,
    /// What the client sent behind this request.
    behind: &'a mut Vec<u8>,
    /// The socket had carried a request before.
    reused: bool,
    carrying: &'a Carrying,
    first_written: usize,
    to_homeserver: Unwritten,
    /// The homeserver takes no more; its answer may be there all the same.
    deaf: bool,
    answer: Answer,
    to_client: Unwritten,
    unflushed: bool,
    /// When a client that sends no more is taken for gone.
    gone: Option<Pin<Box<Sleep>>>,
    stalled: Stalled,
}

/// Bytes that the other side had no room for.
#[derive(Default)]
struct Unwritten {
    bytes: Vec<u8>,
    written: usize,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Exchange<'a, S> {
    pub(super) fn new(
        client: &'a mut S,
        homeserver: Socket,
        reused: bool,
        request: &'a mut Request,
        behind: &'a mut Vec<u8>,
        carrying: &'a Carrying,
    ) -> Self {
        let answer = Answer::new(request.is_head);
        Self {
            client,
            homeserver,
            request,
            behind,
            reused,
            carrying,
            first_written: 0,
            to_homeserver: Unwritten::default(),
            deaf: false,
            answer,
            to_client: Unwritten::default(),
            unflushed: false,
            gone: None,
            stalled: Stalled::default(),
        }
    }

    /// Runs it to its end. `scratch` is the thread's: nothing of it is kept while waiting.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<End> {
        if let Poll::Ready(Err(end)) = self.poll_up(cx, scratch) {
            return Poll::Ready(end);
        }
        match self.poll_down(cx, scratch) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            Poll::Ready(Ok(())) if self.deaf || self.is_sent() => {
                // Who sends no more may have sent another request before.
                let open = !self.deaf && (self.gone.is_none() || !self.behind.is_empty());
                return Poll::Ready(End::Done(if open { self.request.persistence } else { Persistence::Close }));
            }
            // Its upload goes on, for as long as the homeserver takes it.
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.poll_stalled(cx).is_ready() {
            return Poll::Ready(End::Cut);
        }
        self.poll_gone(cx)
    }

    /// Of the answer, once it has begun: from then on no other can be given.
    pub(super) fn status(&self) -> Option<u16> {
        self.answer.status()
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), End>> {
        loop {
            ready!(self.poll_write_up(cx))?;
            if self.request.upload.is_done() {
                return self.poll_behind(cx, scratch);
            }
            let came = match ready!(poll_read(self.client, cx, &mut scratch.read)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(End::Cut)),
                Ok(came) => came,
            };
            self.stalled.moved();
            let bytes = scratch.read.get(..came).unwrap_or_default();
            let Ok(mine) = self.request.upload.advance(bytes) else {
                return Poll::Ready(Err(if self.status().is_some() { End::Cut } else { End::Malformed }));
            };
            let (body, behind) = bytes.split_at(mine);
            self.behind.extend_from_slice(behind);
            if self.deaf {
                continue;
            }
            match Pin::new(&mut self.homeserver).poll_write(cx, body) {
                Poll::Ready(Ok(written)) => self.to_homeserver.keep(body.get(written..).unwrap_or_default()),
                Poll::Ready(Err(_)) => self.deaf = true,
                Poll::Pending => self.to_homeserver.keep(body),
            }
        }
    }

    fn poll_write_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while !self.deaf {
            let unwritten = match self.request.first.get(self.first_written..) {
                Some(first) if !first.is_empty() => first,
                _ if self.to_homeserver.is_empty() => break,
                _ => self.to_homeserver.left(),
            };
            let of_the_first = self.first_written < self.request.first.len();
            match ready!(Pin::new(&mut self.homeserver).poll_write(cx, unwritten)) {
                Ok(written) if of_the_first => self.first_written += written,
                Ok(written) => self.to_homeserver.wrote(written),
                // Nothing of it has left: any request may be sent again.
                Err(_) if self.reused && self.first_written == 0 => return Poll::Ready(Err(End::Stale)),
                Err(_) => self.deaf = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The request is through: its client may send the next ones, and sends nothing more in the end.
    fn poll_behind(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), End>> {
        while self.gone.is_none() {
            let room = BEHIND.saturating_sub(self.behind.len());
            let Some(into) = scratch.read.get_mut(..room).filter(|into| !into.is_empty()) else { break };
            match ready!(poll_read(self.client, cx, into)) {
                Ok(0) => self.gone = Some(Box::pin(tokio::time::sleep(PATIENCE))),
                Ok(came) => self.behind.extend_from_slice(into.get(..came).unwrap_or_default()),
                // TLS that ends without a farewell is a FIN as well.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.gone = Some(Box::pin(tokio::time::sleep(PATIENCE)));
                }
                Err(_) => return Poll::Ready(Err(End::Cut)),
            }
        }
        Poll::Pending
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), End>> {
        loop {
            ready!(self.poll_write_down(cx))?;
            if self.answer.is_over() {
                return Poll::Ready(Ok(()));
            }
            let Scratch { read, write } = &mut *scratch;
            let out = match ready!(poll_read(&mut self.homeserver, cx, read)) {
                Ok(came) if came > 0 => {
                    if self.answer.is_awaited() && self.carrying.is_closing() {
                        self.request.persistence = Persistence::Close;
                    }
                    self.answer.take(read.get(..came).unwrap_or_default(), write, self.request.persistence)
                }
                // A kept connection that ends before anything of an answer has come.
                ended if self.answer.is_awaited() && self.reused && self.request.repeatable => {
                    drop(ended);
                    return Poll::Ready(Err(End::Stale));
                }
                ended => self.answer.end(ended.is_ok()),
            };
            let out = match out {
                Ok(out) => out,
                Err(Broken::Unanswered) => return Poll::Ready(Err(End::Unanswered)),
                Err(Broken::Cut) => return Poll::Ready(Err(End::Cut)),
            };
            if out.is_empty() {
                continue;
            }
            self.unflushed = true;
            match Pin::new(&mut *self.client).poll_write(cx, out) {
                Poll::Ready(Ok(written)) => {
                    self.still_there();
                    self.to_client.keep(out.get(written..).unwrap_or_default());
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Cut)),
                Poll::Pending => self.to_client.keep(out),
            }
        }
    }

    fn poll_write_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while !self.to_client.is_empty() {
            match ready!(Pin::new(&mut *self.client).poll_write(cx, self.to_client.left())) {
                Ok(written) => {
                    self.still_there();
                    self.to_client.wrote(written);
                }
                Err(_) => return Poll::Ready(Err(End::Cut)),
            }
        }
        if self.unflushed {
            if ready!(Pin::new(&mut *self.client).poll_flush(cx)).is_err() {
                return Poll::Ready(Err(End::Cut));
            }
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Who takes bytes is there.
    fn still_there(&mut self) {
        self.stalled.moved();
        if let Some(gone) = &mut self.gone {
            gone.as_mut().reset(Instant::now() + PATIENCE);
        }
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        // Who is slow is there.
        if !self.to_client.is_empty() {
            return Poll::Pending;
        }
        match &mut self.gone {
            Some(gone) => gone.as_mut().poll(cx).map(|()| End::Cut),
            None => Poll::Pending,
        }
    }

    /// Who neither sends what is waited for nor takes what is there holds us, and the homeserver, for no longer than
    /// its time.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let body_awaited = !self.request.upload.is_done() && (self.deaf || self.is_written_up());
        if !body_awaited && self.to_client.is_empty() && !self.unflushed {
            self.stalled.forget();
            return Poll::Pending;
        }
        self.stalled.poll(cx)
    }

    fn is_written_up(&self) -> bool {
        self.first_written >= self.request.first.len() && self.to_homeserver.is_empty()
    }

    fn is_sent(&self) -> bool {
        self.request.upload.is_done() && self.to_homeserver.is_empty()
    }

    /// The homeserver's socket, if another request can follow on it.
    pub(super) fn into_socket(self) -> Option<Socket> {
        let kept = self.answer.persistence() == Persistence::KeepAlive;
        (kept && self.is_sent() && !self.deaf).then_some(self.homeserver)
    }
}

/// What a thread reads into and writes from, for as long as it does not wait.
pub(super) struct Scratch {
    pub(super) read: Vec<u8>,
    pub(super) write: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { read: vec![0; BEHIND], write: Vec::with_capacity(64 * 1024) }
    }
}

pub(super) fn poll_read<S>(io: &mut S, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>>
where
    S: AsyncRead + Unpin,
{
    let mut buf = ReadBuf::new(into);
    ready!(Pin::new(io).poll_read(cx, &mut buf))?;
    Poll::Ready(Ok(buf.filled().len()))
}

impl Unwritten {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn left(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written >= self.bytes.len() {
            // A connection that waits holds no buffer.
            *self = Self::default();
        }
    }
}
