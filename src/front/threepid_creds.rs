//! Registration, password, 3pid: where a request carries a sid of ours, point it at us, and only where it may be used.

mod creds;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::value::RawValue;

use crate::body::{self, Form, Object};
use crate::config::{RouteMode, Shared};
use crate::front::forward::{Body, Forward};
use crate::matrix::{ClientSecret, Medium, Purpose, Refusal, Sid};
use crate::serve::Clock;
use crate::session::{Owner, Reserved, Session, Settled};
use crate::store::{Change, Key, Store, UiaStage};
use crate::telemetry::{RequestId, Subject};
use creds::{Creds, Place};

/// The largest answer to a completion that is read.
const ANSWER_LIMIT: usize = 1024 * 1024;
/// Between two looks whether another request's reservation has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long an old homeserver remembers a completed stage (Synapse 1.3.1: 48 h in memory, from the last use).
const UIA_STAGE_LIFETIME: Duration = Duration::from_secs(96 * 3600);

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
}

/// A session of ours that a request carries, by its sid or by the UIA session it was shown in.
struct Carried {
    sid: Sid,
    /// `None` when only the UIA session says it.
    client_secret: Option<ClientSecret>,
}

impl ThreepidCreds {
    pub fn new(config: Shared, store: Arc<Store>, forward: Forward, clock: Clock) -> Self {
        Self { config, store, forward, clock }
    }

    pub async fn handle(&self, request: Request<Incoming>, completion: Completion) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        body::refuse_encoded(&head.headers)?;
        let bytes = body::read(body, body::CREDS_LIMIT).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return self.forward.relay(&head, bytes).await;
        }
        let mut object = Object::parse(&bytes)?;
        let all = creds::read(&object)?;
        let uia_session = creds::uia_session(&object);
        let stage = match &uia_session {
            Some(id) => self.store.get(&Key::uia_session(id), self.clock.now()).await?,
            None => None,
        };
        // A stage completed for one purpose completes any endpoint of an old homeserver.
        if stage.as_ref().is_some_and(|stage| Some(stage.purpose) != completion.purpose()) {
            return Err(Refusal::creds());
        }
        let (carried, sent) = if let Some(carried) = ours(&all)? {
            creds::point_at_us(&mut object, completion.place(), &self.config.load().identity.name);
            (carried, object.to_bytes())
        } else if let Some(stage) = stage {
            (Carried { sid: stage.sid, client_secret: None }, bytes.clone())
        } else {
            let sent = self.mend_foreign(&mut object, &all, completion).await?;
            return self.forward.relay(&head, sent.unwrap_or_else(|| bytes.clone())).await;
        };
        Subject::of(&head.extensions).note_sid(&carried.sid);
        let purpose = completion.purpose().ok_or_else(Refusal::creds)?;
        let holder = head.extensions.get::<RequestId>().cloned().ok_or_else(Refusal::internal)?;
        let owner = owner(completion, &head, uia_session.as_deref(), &bytes);
        let parts = self.clone();
        let exchange = Exchange { parts, head, sent, purpose, holder, carried, owner, uia_session };
        // Runs to its end even when the client goes: what the homeserver did with the session has to be known.
        tokio::spawn(exchange.run()).await.map_err(|_panicked| Refusal::internal())?
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
        let mut came_from = HashMap::new();
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
/// sessions, and homeservers would take different ones.
fn ours(all: &[Creds]) -> Result<Option<Carried>, Refusal> {
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

/// One request with a session of ours on its way.
struct Exchange {
    parts: ThreepidCreds,
    head: Parts,
    sent: Bytes,
    purpose: Purpose,
    holder: RequestId,
    carried: Carried,
    owner: Owner,
    uia_session: Option<String>,
}

impl Exchange {
    async fn run(self) -> Result<Response<Body>, Refusal> {
        self.reserve().await?;
        let answer = self.parts.forward.ask(&self.head, self.sent.clone(), ANSWER_LIMIT).await;
        let shown = answer.as_ref().map_or_else(|_| Shown::default(), Shown::by);
        self.settle(&shown).await?;
        Ok(answer?.map(Body::from))
    }

    /// Waits while another request holds the session; it never fails because of that.
    async fn reserve(&self) -> Result<(), Refusal> {
        loop {
            let now = self.parts.clock.now();
            let secret = self.carried.client_secret.as_ref();
            let reserve = |session: &mut Session| {
                let reserved = session.reserve(&self.holder, self.purpose, secret, &self.owner, now);
                (reserved, session.threepid.medium)
            };
            let reserved = self.parts.store.update_session(&self.carried.sid, now, reserve).await?;
            if let Some((_, medium)) = reserved {
                Subject::of(&self.head.extensions).note_medium(medium);
            }
            match reserved.map(|(reserved, _)| reserved) {
                Some(Reserved::Granted) => return Ok(()),
                Some(Reserved::Wait) => tokio::time::sleep(LOOK_AGAIN).await,
                Some(Reserved::Refused) | None => return Err(Refusal::creds()),
            }
        }
    }

    async fn settle(&self, shown: &Shown) -> Result<(), Refusal> {
        let now = self.parts.clock.now();
        let by_uia_session_alone = self.carried.client_secret.is_none();
        let owner = match (&self.uia_session, &shown.uia_session) {
            (None, Some(id)) => Owner::uia_session(id),
            (Some(_) | None, _) => self.owner.clone(),
        };
        let settle = |session: &mut Session| {
            let told = session.told(&self.holder);
            let used = told || by_uia_session_alone;
            let settled = match shown.outcome {
                Some(Completed::Request) if used => Settled::Consumed(owner.clone()),
                Some(Completed::Stage) if told => Settled::Bound(owner.clone()),
                Some(Completed::Request | Completed::Stage) | None => Settled::Released,
            };
            session.settle(&self.holder, settled, now);
            told
        };
        let told = self.parts.store.update_session(&self.carried.sid, now, settle).await?.unwrap_or(false);
        let uia_sessions = [&self.uia_session, &shown.uia_session];
        for id in uia_sessions.into_iter().flatten().filter(|_| told) {
            let stage = UiaStage { sid: self.carried.sid.clone(), purpose: self.purpose };
            let until = now.after(UIA_STAGE_LIFETIME);
            let put = |_| (Change::Put { record: stage.clone(), until }, ());
            self.parts.store.update(&Key::uia_session(id), now, put).await?;
        }
        Ok(())
    }
}

/// What an answer of the homeserver shows of the stage that our session stands for.
#[derive(Debug, Default)]
struct Shown {
    outcome: Option<Completed>,
    uia_session: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completed {
    /// 2xx: the whole request.
    Request,
    /// A 401 that lists the stage among the completed ones.
    Stage,
}

impl Shown {
    fn by(answer: &Response<Bytes>) -> Self {
        if answer.status().is_success() {
            return Self { outcome: Some(Completed::Request), uia_session: None };
        }
        let object = Object::parse(answer.body()).ok().filter(|_| answer.status() == StatusCode::UNAUTHORIZED);
        let Some(object) = object else { return Self::default() };
        let completed = object.get("completed").and_then(body::elements).unwrap_or_default();
        let stage = |raw: &&RawValue| matches!(raw.get(), "\"m.login.email.identity\"" | "\"m.login.msisdn\"");
        let outcome = completed.iter().any(stage).then_some(Completed::Stage);
        Self { outcome, uia_session: object.string("session") }
    }
}
