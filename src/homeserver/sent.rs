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
    Streamed(Incoming),
    Expected(Box<Expected>),
}

/// A body that the client sends only when asked: polling it is asking.
struct Expected {
    body: Incoming,
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

    pub fn streamed(body: Incoming) -> Self {
        Self(Kind::Streamed(body))
    }

    /// A body held back until the homeserver asks for it.
    pub fn expected(body: Incoming) -> (Self, Wanted) {
        let say = Wanted { wanted: CancellationToken::new(), unwanted: CancellationToken::new() };
        let expected = Expected {
            body,
            say: say.clone(),
            wanted: Box::pin(say.wanted.clone().cancelled_owned()),
            unwanted: Box::pin(say.unwanted.clone().cancelled_owned()),
            unasked: Box::pin(tokio::time::sleep(UNASKED)),
        };
        (Self(Kind::Expected(Box::new(expected))), say)
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
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Kind::Streamed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Expected(expected) => {
                ready!(expected.poll_asked(cx))?;
                Pin::new(&mut expected.body).poll_frame(cx).map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(body) => body.is_end_stream(),
            Kind::Streamed(body) => body.is_end_stream(),
            Kind::Expected(expected) => expected.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(body) => body.size_hint(),
            Kind::Streamed(body) => body.size_hint(),
            Kind::Expected(expected) => expected.body.size_hint(),
        }
    }
}
