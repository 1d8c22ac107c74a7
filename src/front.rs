//! Door 1, for clients: one look-up of the path, and one match.

pub mod confirm;
pub mod fast;
pub mod forward;
pub mod request_token;
mod route;
pub mod separate_add;
pub mod submit_token;
pub mod threepid_creds;
pub mod versions;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::{Account3pidAdd, Config, RouteMode, Shared};
use crate::matrix::Refusal;
use crate::needs_shim::NeedsShim;
use crate::serve::{Carrying, Door, Http2, Unusual};
use crate::telemetry::{Answered, Metrics, Outcome, RequestIds, Subject};
use confirm::Confirm;
use fast::Fast;
use forward::{Body, Forward};
use request_token::RequestToken;
pub use route::NAMES as ROUTES;
use route::{Ours, Route};
use separate_add::{Separate, SeparateAdd};
use submit_token::SubmitToken;
use threepid_creds::{Completion, ThreepidCreds};
use versions::{Features, Versions};

/// The client door.
#[derive(Debug)]
pub struct Front {
    pub config: Shared,
    pub needs_shim: NeedsShim,
    pub metrics: Metrics,
    pub ids: Arc<RequestIds>,
    pub forward: Forward,
    pub versions: Versions,
    pub request_token: RequestToken,
    pub threepid_creds: ThreepidCreds,
    pub separate_add: SeparateAdd,
    pub confirm: Confirm,
    pub submit_token: SubmitToken,
}

/// The client door as one worker opens it: what is ordinary needs nobody else.
#[derive(Debug)]
pub struct Worker {
    pub front: Arc<Front>,
    pub fast: Fast,
}

impl Door for Worker {
    const HTTP2: Option<Http2<Self>> = Http2::SERVED;
    type Body = Body;

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        self.front.answer(request).await
    }

    async fn carry<S>(&self, io: &mut S, read: &mut Vec<u8>, carrying: &mut Carrying) -> Option<Unusual>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.fast.carry(io, read, carrying).await
    }
}

impl Front {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let route = Route::of(request.method(), request.uri().path());
        let answered = match route {
            Route::Forward => self.forward.handle(request).await,
            Route::Versions => self.versions.handle(request, self.features(&self.config.load())).await,
            Route::Ours(ours) => {
                // Taken once: a reload between two looks must not have a request refused that is to be forwarded.
                let config = self.config.load_full();
                if self.is_ours(ours, &config) {
                    return self.intercept(ours, request, config).await;
                }
                self.forward.handle(request).await
            }
        };
        answered.unwrap_or_else(|refusal| refusal.into_response().map(Body::from))
    }

    /// No session is begun for a homeserver that has learnt MSC2263, nor on a route that is to be forwarded.
    fn is_ours(&self, ours: Ours, config: &Config) -> bool {
        match ours {
            Ours::RequestToken(purpose, medium) => {
                self.needs_shim.get() && config.routes.request_token(purpose, medium) != RouteMode::Forward
            }
            Ours::Separate(Separate::Bind | Separate::Unbind) => self.features(config).separate_add_and_bind,
            Ours::Separate(Separate::Add) | Ours::ThreepidCreds(_) | Ours::Confirm(_) | Ours::SubmitToken => true,
        }
    }

    fn features(&self, config: &Config) -> Features {
        let routes = &config.routes;
        let ours = self.needs_shim.get() && routes.versions == RouteMode::Handle;
        Features {
            no_identity_server_required: ours && routes.none_is_forwarded(),
            separate_add_and_bind: ours && routes.account_3pid_add == Account3pidAdd::Translate,
        }
    }

    /// Runs one of our own routes, and writes its one line.
    async fn intercept(&self, ours: Ours, mut request: Request<Incoming>, config: Arc<Config>) -> Response<Body> {
        let began = Instant::now();
        let request_id = self.ids.draw();
        request.extensions_mut().insert(request_id.clone());
        let subject = Subject::default();
        request.extensions_mut().insert(subject.clone());
        subject.note_trace(request.headers());
        if let Some(medium) = ours.medium() {
            subject.note_medium(medium);
        }
        let answered = self.answer_ours(ours, request, config).await;
        let errcode = answered.as_ref().err().map(|refusal| refusal.errcode);
        let response = answered.unwrap_or_else(|refusal| refusal.into_response().map(Body::from));
        let plain = if errcode.is_some() { Outcome::Refused } else { Outcome::Relayed };
        let answered = Answered {
            route: ours.name(),
            outcome: response.extensions().get::<Outcome>().copied().unwrap_or(plain),
            status: response.status(),
            errcode,
            // The page behind a link says what is wrong without an error code.
            is_ours: matches!(ours, Ours::Confirm(_)),
            subject: &subject,
            request_id: &request_id,
            took: began.elapsed(),
        };
        self.metrics.answered(&answered, "intercepted");
        response
    }

    async fn answer_ours(
        &self,
        ours: Ours,
        request: Request<Incoming>,
        config: Arc<Config>,
    ) -> Result<Response<Body>, Refusal> {
        let own = |answer: Response<Bytes>| answer.map(Body::from);
        match ours {
            Ours::RequestToken(purpose, medium) => match config.routes.request_token(purpose, medium) {
                RouteMode::Observe => self.request_token.observe(request, medium).await,
                RouteMode::Handle | RouteMode::Refuse | RouteMode::Forward => {
                    self.request_token.handle(request, config, purpose, medium).await
                }
            },
            Ours::ThreepidCreds(completion) => self.complete(request, completion).await,
            Ours::Separate(endpoint) if self.features(&config).separate_add_and_bind => {
                self.separate_add.handle(request, endpoint).await
            }
            Ours::Separate(_) => self.complete(request, Completion::Account3pid).await,
            Ours::Confirm(purpose) => self.confirm.handle(request, purpose).await.map(own),
            Ours::SubmitToken => self.submit_token.handle(request).await.map(own),
        }
    }

    async fn complete(&self, request: Request<Incoming>, completion: Completion) -> Result<Response<Body>, Refusal> {
        if self.needs_shim.get() {
            return self.threepid_creds.handle(request, completion).await;
        }
        self.threepid_creds.hand_over(request, completion).await
    }
}
