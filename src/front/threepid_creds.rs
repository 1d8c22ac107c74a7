//! Registration, password, 3pid: where a request carries a sid of ours, point it at us, and only where it may be used.

mod alive;
#[doc(hidden)] // Open to tests/fuzz, no room's to name.
pub mod creds;
mod exchange;
mod under_way;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, header};
use hyper::body::Incoming;

use crate::body::{self, Form, Object};
use crate::config::{RouteMode, Shared};
use crate::front::forward::{Body, Forward};
use crate::matrix::{ClientSecret, Medium, Purpose, Refusal, Sid};
use crate::serve::Clock;
use crate::session::Owner;
use crate::store::{Key, Store};
use crate::telemetry::{RequestId, Subject};
use alive::Alive;
use creds::{Creds, Place};
use exchange::Exchange;
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
}

/// A session of ours that a request carries, by its sid or by the UIA session it was shown in.
struct Carried {
    sid: Sid,
    /// `None` when only the UIA session says it.
    client_secret: Option<ClientSecret>,
}

impl ThreepidCreds {
    pub fn new(config: Shared, store: Arc<Store>, forward: Forward, clock: Clock) -> Self {
        let under_way = UnderWay::new(&store, &clock);
        Self { config, store, forward, clock, under_way, alive: Alive::default() }
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
        let (carried, sent) = if let Some(carried) = ours(&all, &us)? {
            creds::point_at_us(&mut object, completion.place(), &us);
            (carried, object.to_bytes())
        } else if let Some(sid) = stage.and_then(|stage| stage.sid) {
            (Carried { sid, client_secret: None }, bytes.clone())
        } else {
            let sent = self.mend_foreign(&mut object, &all, completion).await?;
            return self.relay(head, sent.unwrap_or_else(|| bytes.clone()), under_way).await;
        };
        Subject::of(&head.extensions).note_sid(&carried.sid);
        let purpose = completion.purpose().ok_or_else(Refusal::creds)?;
        let owner = owner(completion, &head, uia_session.as_deref(), &bytes);
        let parts = self.clone();
        let (living, handed_over) = (self.alive.enter(holder), false);
        let exchange = Exchange { parts, head, sent, purpose, living, carried, owner, uia_session, handed_over };
        drop(under_way);
        // Runs to its end even when the client goes: what the homeserver did with the session has to be known.
        tokio::spawn(exchange.run()).await.map_err(|_panicked| Refusal::internal())?
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
        let Some(carried) = ours(&all, &us).unwrap_or_default() else { return self.forward.relay(&head, bytes).await };
        // What the homeserver began by itself is its own affair.
        let session = self.store.get(&Key::session(&carried.sid), self.clock.now()).await?;
        if session.is_some_and(|session| session.purpose == Purpose::Delegated) {
            Subject::of(&head.extensions).note_sid(&carried.sid);
            return self.forward.relay(&head, bytes).await;
        }
        let uia_session = object.as_ref().and_then(creds::uia_session);
        let purpose = completion.purpose().ok_or_else(Refusal::creds)?;
        let holder = head.extensions.get::<RequestId>().cloned().ok_or_else(Refusal::internal)?;
        let owner = owner(completion, &head, uia_session.as_deref(), &bytes);
        Subject::of(&head.extensions).note_sid(&carried.sid);
        let (parts, sent, living, handed_over) = (self.clone(), bytes, self.alive.enter(holder), true);
        let exchange = Exchange { parts, head, sent, purpose, living, carried, owner, uia_session, handed_over };
        tokio::spawn(exchange.run()).await.map_err(|_panicked| Refusal::internal())?
    }

    /// What carries no session of ours. The homeserver goes on with it when the client goes, and so does its mark.
    async fn relay(&self, head: Parts, sent: Bytes, under_way: Option<Entered>) -> Result<Response<Body>, Refusal> {
        let Some(under_way) = under_way else { return self.forward.relay(&head, sent).await };
        let forward = self.forward.clone();
        let relayed = tokio::spawn(async move {
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
        for sid in all.iter().filter(|creds| creds.id_server.is_none()).filter_map(|creds| creds.sid.as_ref()) {
            if let Some(record) = self.store.get(&Key::foreign_sid(sid), self.clock.now()).await? {
                came_from.insert(sid.clone(), record.id_server);
            }
        }
        creds::mend(object, &came_from, &config.identity.name);
        Ok(Some(object.to_bytes()))
    }
}

/// The session of ours that creds carry, when one of them does. Creds of a body that disagree are one request for two
/// sessions, and homeservers would take different ones. A sid that is no sid, for us to vouch for, is one that reads as
/// ours once the homeserver has put it into its question: Synapse unpacks a list, Dendrite escapes nothing.
fn ours(all: &[Creds], us: &str) -> Result<Option<Carried>, Refusal> {
    if all.iter().any(|creds| creds.odd_sid && creds.id_server.as_deref() == Some(us)) {
        return Err(Refusal::creds());
    }
    let Some(first) = all.iter().find(|creds| creds.sid.as_deref().is_some_and(Sid::is_ours)) else {
        return Ok(None);
    };
    let disagree = all.iter().any(|creds| creds.sid != first.sid || creds.client_secret != first.client_secret);
    let sid = first.sid.as_deref().and_then(Sid::parse);
    let client_secret = first.client_secret.as_deref().and_then(ClientSecret::parse);
    match (sid, client_secret) {
        (Some(sid), Some(client_secret)) if !disagree => Ok(Some(Carried { sid, client_secret: Some(client_secret) })),
        (Some(_), Some(_)) | (None, _) | (_, None) => Err(Refusal::creds()),
    }
}

/// Whose a session becomes by this request: the UIA session's, the account's, or this very request's.
fn owner(completion: Completion, head: &Parts, uia_session: Option<&str>, body: &[u8]) -> Owner {
    let known = match completion {
        Completion::Account3pid => access_token(head).map(|token| Owner::access_token(&token)),
        Completion::Uia(_) | Completion::OtherUia => uia_session.map(Owner::uia_session),
    };
    known.unwrap_or_else(|| Owner::request(body))
}

/// From the `Authorization` field or, as old clients have it, from the query
/// ([using access tokens](https://spec.matrix.org/v1.1/client-server-api/#using-access-tokens)).
fn access_token(head: &Parts) -> Option<String> {
    let field = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = field.and_then(|value| value.strip_prefix("Bearer ")).map(|token| token.trim().to_owned());
    let query = || Form::parse(head.uri.query()?.as_bytes())?.get("access_token").map(str::to_owned);
    bearer.or_else(query)
}
