//! Registration, password, 3pid: where a request carries a sid of ours, point it at us, and only where it may be used.

mod alive;
mod carried;
#[doc(hidden)] // Open to tests/fuzz, no room's to name.
pub mod creds;
mod exchange;
mod under_way;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;

use crate::body::{self, Form, Object};
use crate::config::{RouteMode, Shared};
use crate::front::forward::{Body, Forward};
use crate::matrix::{Medium, Purpose, Refusal};
use crate::serve::{Clock, Detached};
use crate::session::Owner;
use crate::store::{Key, Store, Wait};
use crate::telemetry::{RequestId, Subject};
use alive::Alive;
use carried::{AllCarried, ours};
use creds::{Creds, Place};
use exchange::{Exchange, Ran};
use under_way::{Entered, UnderWay};

/// Which endpoint a request with creds came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// Creds inside `auth`, for sessions of one purpose: `/register`, `/account/password`.
    Uia(Purpose),
    /// Creds at the top level: `/account/3pid`, `/account/3pid/add`.
    Account3pid,
    /// Any other endpoint with user-interactive auth: no session of ours is good here.
    OtherUia,
}

impl Completion {
    fn purpose(self) -> Option<Purpose> {
        match self {
            Self::Uia(purpose) => Some(purpose),
            Self::Account3pid => Some(Purpose::Account3pid),
            Self::OtherUia => None,
        }
    }

    fn place(self) -> Place {
        match self {
            Self::Uia(_) | Self::OtherUia => Place::Auth,
            Self::Account3pid => Place::TopLevel,
        }
    }
}

/// POST `/_matrix/client/:version/register`, `account/password`, `account/3pid` and the other endpoints that take
/// [user-interactive auth](https://spec.matrix.org/v1.1/client-server-api/#email-based-identity--homeserver).
#[derive(Debug, Clone)]
pub struct ThreepidCreds {
    config: Shared,
    store: Arc<Store>,
    forward: Forward,
    clock: Clock,
    under_way: UnderWay,
    alive: Alive,
    detached: Detached,
}

impl ThreepidCreds {
    pub fn new(config: Shared, store: Arc<Store>, forward: Forward, clock: Clock, detached: Detached) -> Self {
        let under_way = UnderWay::new(&store, &clock, &detached);
        Self { config, store, forward, clock, under_way, alive: Alive::default(), detached }
    }

    pub async fn handle(&self, request: Request<Incoming>, completion: Completion) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        body::refuse_encoded(&head.headers)?;
        let bytes = body::read(body, body::CREDS_LIMIT).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return self.forward.relay(&head, bytes).await;
        }
        self.complete(head, bytes, completion).await
    }

    /// A request that was read.
    pub(super) async fn complete(
        &self,
        head: Parts,
        bytes: Bytes,
        completion: Completion,
    ) -> Result<Response<Body>, Refusal> {
        let mut object = Object::parse(&bytes)?;
        let all = creds::read(&object)?;
        let uia_session = creds::uia_session(&object);
        // Before the look-up: whoever marks the UIA session later waits until this request is answered.
        let holder = head.extensions.get::<RequestId>().cloned().ok_or_else(Refusal::internal)?;
        let (under_way, stage) = match &uia_session {
            Some(id) => {
                let under_way = self.under_way.enter(id, completion.purpose(), &holder).await?;
                (Some(under_way), self.store.get(&Key::uia_session(id), self.clock.now()).await?)
            }
            None => (None, None),
        };
        // A stage completed for one purpose completes any endpoint of an old homeserver.
        if stage.as_ref().is_some_and(|stage| Some(stage.purpose) != completion.purpose()) {
            return Err(Refusal::creds());
        }
        let us = self.config.load().identity.name.clone();
        let in_creds = ours(&all, &us)?;
        let sent = if in_creds.is_some() {
            creds::point_at_us(&mut object, completion.place(), &us);
            object.to_bytes()
        } else {
            self.mend_foreign(&mut object, &all, completion).await?.unwrap_or_else(|| bytes.clone())
        };
        let carried = AllCarried::new(in_creds, &stage.map(|stage| stage.completed_with()).unwrap_or_default())?;
        let Some(main) = carried.main() else { return self.relay(head, sent, under_way).await };
        Subject::of(&head.extensions).note_sid(&main.sid);
        let purpose = completion.purpose().ok_or_else(Refusal::creds)?;
        let owner = owner(completion, &head, uia_session.as_deref(), &bytes);
        let parts = self.clone();
        let (living, handed_over) = (self.alive.enter(holder, &main.sid)?, false);
        let exchange = Exchange { parts, head, sent, purpose, living, carried, owner, uia_session, handed_over };
        drop(under_way);
        self.run(exchange).await
    }

    /// While another request holds the session this one waits, no longer than its client and than the other's process lives.
    async fn run(&self, exchange: Exchange) -> Result<Response<Body>, Refusal> {
        let (mut exchange, mut wait) = (Box::new(exchange), Wait::default());
        loop {
            let running = self.detached.spawn(exchange.run(wait.dead().cloned()));
            match running.await.map_err(|_panicked| Refusal::internal())?? {
                Ran::Answered(answer) => return Ok(answer),
                Ran::Busy { exchange: back, holder } => {
                    exchange = back;
                    wait.a_while(&self.store, holder, self.clock.now()).await?;
                }
            }
        }
    }

    /// A request of the shim's own making, with `auth` as the client wrote it, is no way around `complete`.
    pub(super) fn refuse_ours(&self, object: &Object<'_>) -> Result<(), Refusal> {
        let us = self.config.load().identity.name.clone();
        ours(&creds::read(object)?, &us)?.map_or(Ok(()), |_| Err(Refusal::creds()))
    }

    /// For a homeserver that has learnt MSC2263: nothing is injected and nothing refused, but sessions of ours that had
    /// begun may still be asked for.
    pub async fn hand_over(
        &self,
        request: Request<Incoming>,
        completion: Completion,
    ) -> Result<Response<Body>, Refusal> {
        if !body::is_short(request.headers(), body::CREDS_LIMIT) {
            return self.forward.handle(request).await;
        }
        let (head, body) = request.into_parts();
        let bytes = body::read(body, body::CREDS_LIMIT).await?;
        let object = Object::parse(&bytes).ok();
        let all = object.as_ref().and_then(|object| creds::read(object).ok()).unwrap_or_default();
        let us = self.config.load().identity.name.clone();
        let Some(in_creds) = ours(&all, &us).unwrap_or_default() else { return self.forward.relay(&head, bytes).await };
        // What the homeserver began by itself is its own affair.
        let session = self.store.get(&Key::session(&in_creds.sid), self.clock.now()).await?;
        Subject::of(&head.extensions).note_sid(&in_creds.sid);
        if session.is_some_and(|session| session.purpose == Purpose::Delegated) {
            return self.forward.relay(&head, bytes).await;
        }
        let uia_session = object.as_ref().and_then(creds::uia_session);
        let purpose = completion.purpose().ok_or_else(Refusal::creds)?;
        let holder = head.extensions.get::<RequestId>().cloned().ok_or_else(Refusal::internal)?;
        let owner = owner(completion, &head, uia_session.as_deref(), &bytes);
        let living = self.alive.enter(holder, &in_creds.sid)?;
        let carried = AllCarried::new(Some(in_creds), &[])?;
        let (parts, sent, handed_over) = (self.clone(), bytes, true);
        let exchange = Exchange { parts, head, sent, purpose, living, carried, owner, uia_session, handed_over };
        self.run(exchange).await
    }

    /// What carries no session of ours. The homeserver goes on with it when the client goes, and so does its mark.
    async fn relay(&self, head: Parts, sent: Bytes, under_way: Option<Entered>) -> Result<Response<Body>, Refusal> {
        let Some(under_way) = under_way else { return self.forward.relay(&head, sent).await };
        let forward = self.forward.clone();
        let relayed = self.detached.spawn(async move {
            let answer = forward.relay(&head, sent).await;
            drop(under_way);
            answer
        });
        relayed.await.map_err(|_panicked| Refusal::internal())?
    }

    /// The body with `id_server` in creds that lack it, when there are such and the route is ours.
    async fn mend_foreign(
        &self,
        object: &mut Object<'_>,
        all: &[Creds],
        completion: Completion,
    ) -> Result<Option<Bytes>, Refusal> {
        let config = self.config.load_full();
        let handled = |purpose| config.routes.request_token(purpose, Medium::Email) == RouteMode::Handle;
        let is_ours = completion.purpose().map_or_else(|| Purpose::ALL.into_iter().any(handled), handled);
        if all.is_empty() || !is_ours {
            return Ok(None);
        }
        let mut came_from = BTreeMap::new();
        for creds in all.iter().filter(|creds| creds.id_server.is_none()) {
            let (Some(sid), client_secret) = (&creds.sid, &creds.client_secret) else { continue };
            let key = Key::foreign_sid(sid).of_client(client_secret.as_deref().unwrap_or_default());
            if let Some(record) = self.store.get(&key, self.clock.now()).await? {
                came_from.insert((sid.clone(), client_secret.clone()), record.id_server);
            }
        }
        creds::mend(object, &came_from, &config.identity.name);
        Ok(Some(object.to_bytes()))
    }
}

/// Whose a session becomes by this request: the UIA session's, the account's, or this very request's.
fn owner(completion: Completion, head: &Parts, uia_session: Option<&str>, body: &[u8]) -> Owner {
    let known = match completion {
        Completion::Account3pid => access_token(head).map(|token| Owner::access_token(&token)),
        Completion::Uia(_) | Completion::OtherUia => uia_session.map(Owner::uia_session),
    };
    let authorization = head.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    known.unwrap_or_else(|| Owner::request(body, authorization, head.uri.query()))
}

/// From the `Authorization` field or, as old clients have it, from the query
/// ([using access tokens](https://spec.matrix.org/v1.1/client-server-api/#using-access-tokens)).
fn access_token(head: &Parts) -> Option<String> {
    let field = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = field.and_then(|value| value.strip_prefix("Bearer ")).map(|token| token.trim().to_owned());
    let query = || Form::parse(head.uri.query()?.as_bytes())?.get("access_token").map(str::to_owned);
    bearer.or_else(query)
}
