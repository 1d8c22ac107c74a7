//! Everything else, untouched: hop-by-hop headers, streaming, upgrades, homeserver down.

mod answered;
mod fields;
mod tunnel;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use ipnet::IpNet;

use crate::config;
use crate::homeserver::{Answer, Homeserver, Sent, Sockets, Unanswered, Wanted};
use crate::matrix::{Errcode, Refusal};
use crate::serve::{Drain, Peer, STALLED, Stamp, is_trusted, one_length};
use crate::telemetry::{Metrics, Subject};

pub use answered::{Relayed, Whole};
pub(in crate::front) use answered::{decode, fit};

use tunnel::Tunnel;

/// What the client door answers with: bytes of our own, or the homeserver's as they come.
pub enum Body {
    Ours(Full<Bytes>),
    Relayed(Relayed),
}

/// The way to the homeserver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Forward(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    homeserver: Homeserver,
    trusted_proxies: Vec<IpNet>,
    metrics: Metrics,
}

impl Forward {
    pub fn new(homeserver: &config::Homeserver, trusted_proxies: &[IpNet], metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            homeserver: Homeserver::new(homeserver),
            trusted_proxies: trusted_proxies.to_vec(),
            metrics,
        }))
    }

    /// Idle connections for one worker.
    pub(super) fn sockets(&self) -> Sockets {
        Sockets::new(self.0.homeserver.clone())
    }

    /// Whether this peer's word about whose request it is counts.
    pub(super) fn trusts(&self, peer: Peer) -> bool {
        is_trusted(peer, &self.0.trusted_proxies)
    }

    /// A request that hyper read: nothing of its body is, everything streams.
    pub async fn handle(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (mut head, body) = request.into_parts();
        let tunnel = Tunnel::asked(&mut head, &body);
        let drain = head.extensions.remove::<Drain>();
        let waits_to_be_asked = waits_to_be_asked(&head) && !http_body::Body::is_end_stream(&body);
        self.lead_up(&mut head);
        if let Some(tunnel) = &tunnel {
            tunnel.ask(&mut head.headers);
        }
        let (request, wanted) = if waits_to_be_asked {
            let (body, wanted) = Sent::expected(body, STALLED);
            let mut request = Request::from_parts(head, body);
            let say = wanted.clone();
            hyper::ext::on_informational(&mut request, move |informational| {
                if informational.status() == StatusCode::CONTINUE {
                    say.yes();
                }
            });
            (request, Some(wanted))
        } else {
            (Request::from_parts(head, Sent::streamed(body, STALLED)), None)
        };
        let mut response = self.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let tunnel = tunnel.and_then(|tunnel| tunnel.agreed(&mut response)).ok_or_else(|| self.broken())?;
            tunnel.dig(drain.as_ref());
        }
        if let Some(wanted) = wanted.filter(|wanted| !wanted.is_yes()) {
            decline(&mut response, wanted);
        }
        Ok(self.count(response.map(|body| Body::Relayed(body.into()))))
    }

    /// A request whose body was read, and perhaps edited; its answer streams.
    pub async fn relay(&self, head: &Parts, body: Bytes) -> Result<Response<Body>, Refusal> {
        let request = Request::from_parts(self.with_body(head, &body), Sent::whole(body));
        let response = self.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.broken());
        }
        Ok(self.count(response.map(|body| Body::Relayed(body.into()))))
    }

    /// A request whose answer we have to read: whole and in plain bytes, if the homeserver can be brought to it.
    pub async fn ask(&self, head: &Parts, body: Bytes, limit: usize) -> Result<Response<Bytes>, Refusal> {
        let subject = Subject::of(&head.extensions);
        let (head, body) = self.ask_for_plain(head, body).await?.into_parts();
        match self.whole(body, limit).await? {
            Whole::Read(bytes) => {
                let answer = answered::plain(Response::from_parts(head, bytes), limit);
                if !answer.status().is_success() {
                    subject.note_errcode(answer.body());
                }
                Ok(answer)
            }
            Whole::TooLong(_) => {
                Err(unknown(StatusCode::BAD_GATEWAY, "The homeserver's answer is too long to be read"))
            }
        }
    }

    /// As `ask`, but the answer is not read yet.
    pub(super) async fn ask_for_plain(&self, head: &Parts, body: Bytes) -> Result<Response<Relayed>, Refusal> {
        let mut head = self.with_body(head, &body);
        fields::ask_for_plain(&mut head.headers);
        let response = self.send(Request::from_parts(head, Sent::whole(body))).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.broken());
        }
        Ok(self.count(response).map(Into::into))
    }

    /// The bytes of an answer, up to a limit; refused when it is cut short.
    pub(super) async fn whole(&self, answer: Relayed, limit: usize) -> Result<Whole, Refusal> {
        answered::read(answer, limit).await.map_err(|_cut| self.broken())
    }

    async fn send(&self, request: Request<Sent>) -> Result<Response<Answer>, Refusal> {
        let mut response = self.0.homeserver.send(request).await.map_err(|unanswered| self.unanswered(&unanswered))?;
        if let Err(ambiguous) = one_length(response.headers()) {
            tracing::warn!(%ambiguous, "ambiguous answer of the homeserver");
            return Err(self.broken());
        }
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            fields::drop_hop_by_hop(response.headers_mut());
        }
        // Ours, whatever the homeserver speaks; hyper lowers it for a client of 1.0.
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }

    /// The head as the homeserver is to see it.
    fn lead_up(&self, head: &mut Parts) {
        let peer = head.extensions.remove::<Stamp>().map_or(Peer::Local, |stamp| stamp.peer);
        fields::drop_hop_by_hop(&mut head.headers);
        fields::forwarded_for(&mut head.headers, peer, &self.0.trusted_proxies);
    }

    /// The head for a body that we hold.
    fn with_body(&self, head: &Parts, body: &Bytes) -> Parts {
        let mut head = head.clone();
        self.lead_up(&mut head);
        let had_body = fields::forget_framing(&mut head.headers);
        if had_body || !body.is_empty() {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        head
    }

    pub(super) fn unanswered(&self, unanswered: &Unanswered) -> Refusal {
        tracing::debug!(error = unanswered as &dyn std::error::Error, "no answer");
        self.0.metrics.homeserver_unreachable.inc();
        let status = match unanswered {
            Unanswered::Connect(_) | Unanswered::Broken(_) => StatusCode::BAD_GATEWAY,
            Unanswered::ConnectTimeout => StatusCode::GATEWAY_TIMEOUT,
        };
        unknown(status, "The homeserver cannot be reached at the moment")
    }

    pub(super) fn broken(&self) -> Refusal {
        self.0.metrics.homeserver_unreachable.inc();
        unknown(StatusCode::BAD_GATEWAY, "The homeserver's answer cannot be understood")
    }

    fn count<B>(&self, response: Response<B>) -> Response<B> {
        self.count_status(response.status().as_u16());
        response
    }

    pub(super) fn count_status(&self, status: u16) {
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = self.0.metrics.forwarded.get(class) {
            counter.inc();
        }
    }
}

fn unknown(status: StatusCode, error: &'static str) -> Refusal {
    Refusal::new(status, Errcode::MUnknown, error)
}

fn waits_to_be_asked(head: &Parts) -> bool {
    head.version == Version::HTTP_11
        && head.headers.get(header::EXPECT).is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The homeserver answered without asking for the body. Whether the client sends it all the same nobody knows, so
/// nothing can follow on its connection.
fn decline(response: &mut Response<Answer>, wanted: Wanted) {
    response.body_mut().unasked(wanted);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Ours(Full::new(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Ours(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Relayed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ours(body) => body.is_end_stream(),
            Self::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Ours(body) => body.size_hint(),
            Self::Relayed(body) => body.size_hint(),
        }
    }
}
