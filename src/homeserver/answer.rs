//! The body of an answer, which gives its connection back when it has been read to the end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;

use super::{Homeserver, Sent, Wanted};

/// Streams; dropped before its end, it closes the connection and so tells the homeserver that nobody listens.
///
/// It claims to know neither its length nor its end: then hyper believes the homeserver's own `Content-Length`, and
/// keeps it on the 204, 304 and HEAD answers that it would else rewrite.
pub struct Answer {
    body: Incoming,
    lease: Option<Lease>,
    wanted: Option<Wanted>,
}

pub(super) struct Lease {
    pub(super) sender: SendRequest<Sent>,
    pub(super) homeserver: Homeserver,
}

impl Answer {
    pub(super) fn new(body: Incoming, lease: Lease) -> Self {
        let mut answer = Self { body, lease: Some(lease), wanted: None };
        if answer.body.is_end_stream() {
            answer.give_back();
        }
        answer
    }

    /// The say over a request body that was not asked for before this answer came.
    pub fn unasked(&mut self, wanted: Wanted) {
        self.wanted = Some(wanted);
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.homeserver.put(lease.sender);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            None => this.give_back(),
            // hyper asks no further once it has all it was promised, nor behind trailers.
            Some(Ok(frame)) if frame.is_trailers() || this.body.is_end_stream() => this.give_back(),
            Some(Ok(_)) => {}
            Some(Err(_)) => this.lease = None,
        }
        Poll::Ready(frame)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(wanted) = &self.wanted {
            wanted.no();
        }
    }
}
