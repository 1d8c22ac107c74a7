//! The body of a request on its way to the homeserver.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A client that waits for `100 Continue` is asked for its body after this long without a word from the homeserver:
/// one that knows nothing of `Expect` waits for the body.
const UNASKED: Duration = Duration::from_secs(1);

/// What is sent: a body we hold, or one that streams in.
pub struct Sent(Kind);

enum Kind {
    Whole(Full<Bytes>),
    Streamed(Streamed),
    Expected(Box<Expected>),
}

/// A body that comes as the client sends it.
struct Streamed {
    body: Incoming,
    /// How long a client may send nothing of it while the homeserver waits; the timer runs while it does.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// A body that the client sends only when asked: polling it is asking.
struct Expected {
    body: Streamed,
    say: Wanted,
    wanted: Pin<Box<WaitForCancellationFutureOwned>>,
    unwanted: Pin<Box<WaitForCancellationFutureOwned>>,
    unasked: Pin<Box<Sleep>>,
}

/// The say over an expected body.
#[derive(Clone)]
pub struct Wanted {
    wanted: CancellationToken,
    unwanted: CancellationToken,
}

impl Sent {
    pub fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    pub fn whole(body: Bytes) -> Self {
        Self(Kind::Whole(Full::new(body)))
    }

    /// A body that may pause for as long as `patience`.
    pub fn streamed(body: Incoming, patience: Duration) -> Self {
        Self(Kind::Streamed(Streamed::new(body, patience)))
    }

    /// A body held back until the homeserver asks for it.
    pub fn expected(body: Incoming, patience: Duration) -> (Self, Wanted) {
        let say = Wanted { wanted: CancellationToken::new(), unwanted: CancellationToken::new() };
        let expected = Expected {
            body: Streamed::new(body, patience),
            say: say.clone(),
            wanted: Box::pin(say.wanted.clone().cancelled_owned()),
            unwanted: Box::pin(say.unwanted.clone().cancelled_owned()),
            unasked: Box::pin(tokio::time::sleep(UNASKED)),
        };
        (Self(Kind::Expected(Box::new(expected))), say)
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

impl Streamed {
    fn new(body: Incoming, patience: Duration) -> Self {
        Self { body, patience, stalled: None }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.stalled = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
    }
}

impl Wanted {
    /// The homeserver said `100 Continue`, or nothing for too long.
    pub fn yes(&self) {
        self.wanted.cancel();
    }

    /// The homeserver has answered and the answer is through: a body not asked for by now never will be.
    pub fn no(&self) {
        self.unwanted.cancel();
    }

    /// Whether it was asked for.
    pub fn is_yes(&self) -> bool {
        self.wanted.is_cancelled()
    }
}

impl Expected {
    fn poll_asked(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wanted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if self.unasked.as_mut().poll(cx).is_ready() {
            self.say.yes();
            return Poll::Ready(Ok(()));
        }
        self.unwanted.as_mut().poll(cx).map(|()| Err(io::Error::other("answered without asking for the body")))
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Kind::Streamed(body) => body.poll_frame(cx),
            Kind::Expected(expected) => {
                ready!(expected.poll_asked(cx))?;
                expected.body.poll_frame(cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::Streamed(streamed) => streamed.body.is_end_stream(),
            Kind::Expected(expected) => expected.body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(body) => body.size_hint(),
            Kind::Streamed(streamed) => streamed.body.size_hint(),
            Kind::Expected(expected) => expected.body.body.size_hint(),
        }
    }
}
