//! A client's socket as hyper sees it: with time limits on heads and idleness, and without haste when a client that
//! waits for its answer shuts its sending side.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::phase::{BUSY, IDLING, Phase, TUNNEL};

/// A head has to be whole this long after its first byte; the first one, after the connection was made (slowloris).
pub(crate) const HEAD: Duration = Duration::from_secs(30);
/// An idle connection is closed after one to two of these: later than Twisted's 60 s, so that a proxy before us that
/// was set up for the homeserver does not find its connections closed.
pub(crate) const IDLE: Duration = Duration::from_secs(75);
/// A FIN says that the client sends no more; whether it still listens only time or a failing write can tell. hyper
/// would drop the request at once, and the homeserver has to hear of a client that is gone within a second.
pub(crate) const PATIENCE: Duration = Duration::from_millis(900);
/// A client that takes nothing of its answer for this long, or sends nothing of a body that is waited for, is given up:
/// twice what nginx gives it.
pub(crate) const STALLED: Duration = Duration::from_secs(120);
/// How long to read and discard after we closed, since closing with bytes unread resets the connection, and the reset
/// can overtake the answer.
const LINGER: Duration = Duration::from_secs(1);

pub(super) struct Patient<S> {
    inner: S,
    phase: Phase,
    timer: Option<Pin<Box<Sleep>>>,
    /// The client sends no more.
    eof: bool,
    /// When waiting ends: for the rest of a head, or for a client that sends no more.
    until: Option<Instant>,
    /// The number of requests begun when `until` was set for a head; another one means that this head is through.
    requests: u32,
    /// When the current idle period ends, and whether one was already slept through.
    period: Option<Instant>,
    idle_before: bool,
    /// When waiting for a client that takes nothing ends.
    stalled: Option<Instant>,
    lingering: Option<Instant>,
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, phase: Phase) -> Self {
        Self {
            inner,
            phase,
            timer: None,
            eof: false,
            until: Some(Instant::now() + HEAD),
            requests: 0,
            period: None,
            idle_before: false,
            stalled: None,
            lingering: None,
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }

    /// Ready when `then` has passed; else this task is woken by then.
    fn poll_until(&mut self, cx: &mut Context<'_>, then: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(then)));
        if timer.deadline() > then || timer.is_elapsed() {
            timer.as_mut().reset(then);
        }
        ready!(timer.as_mut().poll(cx));
        if Instant::now() >= then {
            return Poll::Ready(());
        }
        timer.as_mut().reset(then);
        timer.as_mut().poll(cx)
    }

    /// The client sends no more: shown to hyper at once, or when a waiting client has been quiet long enough.
    fn poll_eof(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.phase.get() == BUSY {
            let until = *self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
            ready!(self.poll_until(cx, until));
            if !self.phase.is_write_blocked() {
                break;
            }
            self.until = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing came. An EOF of our own making when nothing came for too long.
    fn poll_quiet(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let requests = self.phase.requests();
        if requests != self.requests {
            self.requests = requests;
            self.until = None;
        }
        loop {
            let state = self.phase.get();
            if state == TUNNEL {
                return Poll::Pending;
            }
            if let (IDLING, Some(until)) = (state, self.until) {
                ready!(self.poll_until(cx, until));
                return Poll::Ready(Ok(()));
            }
            // hyper does not read again when a request ends, so this timer also runs while one is on its way.
            let period = *self.period.get_or_insert_with(|| Instant::now() + IDLE);
            ready!(self.poll_until(cx, period));
            self.period = None;
            if state == IDLING && self.idle_before {
                return Poll::Ready(Ok(()));
            }
            self.idle_before = state == IDLING;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.eof {
            return this.poll_eof(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Pending => this.poll_quiet(cx),
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                this.idle_before = false;
                let requests = this.phase.requests();
                if this.phase.get() == IDLING && (requests != this.requests || this.until.is_none()) {
                    this.requests = requests;
                    this.until = Some(Instant::now() + HEAD);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => Poll::Ready(Err(error)),
            // An EOF, or over TLS one without a farewell.
            Poll::Ready(Ok(()) | Err(_)) => {
                this.eof = true;
                this.until = None;
                this.poll_eof(cx)
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.phase.note_write(result.is_pending());
        if result.is_pending() {
            return self.poll_stalled(cx).map(Err);
        }
        self.stalled = None;
        if self.eof && matches!(result, Poll::Ready(Ok(_))) {
            self.until = None;
        }
        result
    }

    /// The client takes nothing. A tunnel may be as quiet as it likes.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.phase.get() == TUNNEL {
            return Poll::Pending;
        }
        let until = *self.stalled.get_or_insert_with(|| Instant::now() + STALLED);
        self.poll_until(cx, until).map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        // TLS takes what its socket has no room for.
        this.phase.note_write(flushed.is_pending());
        if flushed.is_pending() {
            return this.poll_stalled(cx).map(Err);
        }
        this.stalled = None;
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        if this.phase.get() == TUNNEL {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = [0; 4096];
        while !this.eof {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.inner).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    let until = *this.lingering.get_or_insert_with(|| Instant::now() + LINGER);
                    if Instant::now() >= until {
                        break;
                    }
                }
                Poll::Ready(_) => this.eof = true,
                // Only who was still sending is waited for.
                Poll::Pending => match this.lingering {
                    Some(until) => return this.poll_until(cx, until).map(Ok),
                    None => break,
                },
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn connection() -> (DuplexStream, Patient<DuplexStream>, Phase) {
        let (client, server) = duplex(64);
        let phase = Phase::default();
        (client, Patient::new(server, phase.clone()), phase)
    }

    /// How long it takes until a read shows the end.
    async fn end_after(io: &mut Patient<DuplexStream>) -> Duration {
        let begun = Instant::now();
        let mut buffer = [0; 64];
        while io.read(&mut buffer).await.unwrap() > 0 {}
        begun.elapsed()
    }

    fn about(span: Duration, expected: Duration) -> bool {
        span >= expected && span < expected + Duration::from_millis(10)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_given_the_time_of_a_head() {
        let (_client, mut io, _phase) = connection();
        assert!(about(end_after(&mut io).await, HEAD));
    }

    /// S§5.24.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_is_given_its_time_once() {
        let (mut client, mut io, _phase) = connection();
        let trickle = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        assert!(about(end_after(&mut io).await, HEAD));
        drop(io);
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_head_of_a_second_request_has_its_time_too() {
        let (mut client, mut io, phase) = connection();
        client.write_all(b"first").await.unwrap();
        assert_eq!(io.read(&mut [0; 64]).await.unwrap(), 5);
        drop(phase.begin());
        client.write_all(b"half a head").await.unwrap();
        assert!(about(end_after(&mut io).await, HEAD));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_on_its_way_has_no_time_limit_and_idling_behind_it_has() {
        let (_client, mut io, phase) = connection();
        let flight = phase.begin();
        let busy = tokio::time::timeout(Duration::from_secs(86_400), io.read(&mut [0; 64])).await;
        assert!(busy.is_err(), "{busy:?}");
        drop(flight);
        let idle = end_after(&mut io).await;
        assert!(idle >= IDLE && idle <= 2 * IDLE, "{idle:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_believed_gone_only_when_it_waits_in_vain() {
        let (mut client, mut io, phase) = connection();
        let flight = phase.begin();
        client.shutdown().await.unwrap();
        assert!(about(end_after(&mut io).await, PATIENCE));
        drop(flight);
        assert!(about(end_after(&mut io).await, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_waited_for_while_its_answer_flows() {
        let (mut client, mut io, phase) = connection();
        let _flight = phase.begin();
        client.shutdown().await.unwrap();
        let mut scratch = [0; 64];
        for _ in 0..10 {
            let quiet = tokio::time::timeout(PATIENCE / 2, io.read(&mut scratch)).await;
            assert!(quiet.is_err(), "cut although the answer flows");
            io.write_all(b"more").await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
        }
        assert!(about(end_after(&mut io).await, PATIENCE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_at_once_and_never_by_time() {
        let (mut client, mut io, phase) = connection();
        let flight = phase.begin();
        flight.becomes_a_tunnel();
        drop(flight);
        let quiet = tokio::time::timeout(Duration::from_secs(86_400), io.read(&mut [0; 64])).await;
        assert!(quiet.is_err(), "{quiet:?}");
        client.shutdown().await.unwrap();
        assert!(about(end_after(&mut io).await, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_its_answer_is_given_up_and_a_slow_one_is_not() {
        let (mut client, mut io, phase) = connection();
        let flight = phase.begin();
        let nearly = Duration::from_secs(STALLED.as_secs() - 1);
        let slow = tokio::spawn(async move {
            let mut scratch = [0; 8];
            for _ in 0..10 {
                tokio::time::sleep(nearly).await;
                client.read_exact(&mut scratch).await.unwrap();
            }
            client
        });
        let begun = Instant::now();
        let error = io.write_all(&[b'x'; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(about(begun.elapsed(), 10 * nearly + STALLED), "{:?}", begun.elapsed());
        let _client = slow.await.unwrap();
        flight.becomes_a_tunnel();
        let quiet = tokio::time::timeout(Duration::from_secs(86_400), io.write_all(b"x")).await;
        assert!(quiet.is_err(), "a tunnel is cut: {quiet:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn closing_lingers_only_for_who_is_still_sending() {
        let (_client, mut io, _phase) = connection();
        let begun = Instant::now();
        io.shutdown().await.unwrap();
        assert!(about(begun.elapsed(), Duration::ZERO));

        let (mut client, mut io, _phase) = connection();
        client.write_all(b"still sending").await.unwrap();
        let begun = Instant::now();
        io.shutdown().await.unwrap();
        assert!(about(begun.elapsed(), LINGER), "{:?}", begun.elapsed());
    }
}
