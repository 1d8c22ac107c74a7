//! One request with a session of ours on its way: reserved before it is forwarded, settled by what the answer shows.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::value::RawValue;

use super::alive::Living;
use super::{Carried, ThreepidCreds};
use crate::body::{self, Object};
use crate::front::forward::Body;
use crate::matrix::{Purpose, Refusal, Timestamp};
use crate::session::{Owner, Reserved, Session, Settled, Told};
use crate::store::{Change, Key, UiaStage};
use crate::telemetry::Subject;

/// The largest answer to a completion that is read.
const ANSWER_LIMIT: usize = 1024 * 1024;
/// Between two looks whether another request's reservation has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// Between two tries to tell the store what became of a session, while it cannot be told; and how many, which together
/// take about as long as the session is reserved.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);
const SETTLE_TRIES: u32 = 290;
/// How long it is remembered what a completed stage was for. An old homeserver forgets it 48 h after its last use, and
/// some uses do not come by here (the fallback pages of other stages).
const UIA_STAGE_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// The same while it is not known yet whether it will be completed: longer than a session is reserved.
const UIA_STAGE_LEASE: Duration = Duration::from_secs(600);

/// One request with a session of ours on its way.
pub(super) struct Exchange {
    pub(super) parts: ThreepidCreds,
    pub(super) head: Parts,
    pub(super) sent: Bytes,
    pub(super) purpose: Purpose,
    pub(super) living: Living,
    pub(super) carried: Carried,
    pub(super) owner: Owner,
    pub(super) uia_session: Option<String>,
    /// The homeserver has learnt MSC2263 since the session began. If it delegates to the identity door it asks; if it
    /// does not ask, it never will, and the client has to begin again.
    pub(super) handed_over: bool,
}

impl Exchange {
    pub(super) async fn run(self) -> Result<Response<Body>, Refusal> {
        self.reserve().await?;
        if !self.mark_uia_session().await? {
            self.settle(&Shown::default(), &mut None).await?;
            return Err(Refusal::creds());
        }
        let answer = self.parts.forward.ask(&self.head, self.sent.clone(), ANSWER_LIMIT).await;
        let shown = answer.as_ref().map_or_else(|_| Shown::default(), Shown::by);
        let mut told = None;
        let told = match self.settle(&shown, &mut told).await {
            Ok(told) => told,
            Err(refusal) => {
                self.settle_later(shown, told);
                return Err(refusal);
            }
        };
        if self.handed_over && told == Told::Nothing && shown.waits {
            return Err(Refusal::creds());
        }
        Ok(answer?.map(Body::from))
    }

    /// Says what the UIA session is for before the homeserver completes a stage in it: from then on it would complete any
    /// endpoint, and the answer that shows it is still to come. `false` when it is for something else already.
    async fn mark_uia_session(&self) -> Result<bool, Refusal> {
        let Some(id) = &self.uia_session else { return Ok(true) };
        let now = self.parts.clock.now();
        let mark = |current: Option<UiaStage>| {
            if let Some(stage) = current {
                return (Change::Keep, stage.purpose == self.purpose);
            }
            let record = UiaStage { purpose: self.purpose, sid: None };
            (Change::Put { record, until: now.after(UIA_STAGE_LEASE) }, true)
        };
        let fits = self.parts.store.update(&Key::uia_session(id), now, mark).await?;
        while fits && self.parts.under_way.elsewhere(id, self.purpose).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(fits)
    }

    /// Waits while another request holds the session; it never fails because of that. One of a process that ended is not
    /// waited for, where that can be known: in a store that is this process's alone.
    async fn reserve(&self) -> Result<(), Refusal> {
        let (is_shared, alive) = (self.parts.store.is_shared(), &self.parts.alive);
        loop {
            let now = self.parts.clock.now();
            let secret = self.carried.client_secret.as_ref();
            let reserve = |session: &mut Session| {
                if !is_shared {
                    session.abandon_unless(|holder| alive.has(holder));
                }
                let reserved = session.reserve(&self.living.holder, self.purpose, secret, &self.owner, now);
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

    /// What the homeserver did with the session is done, whether the store can be told at the moment or not: while it cannot,
    /// the session stays reserved.
    fn settle_later(self, shown: Shown, mut told: Option<Told>) {
        tokio::spawn(async move {
            for _ in 0..SETTLE_TRIES {
                tokio::time::sleep(SETTLE_AGAIN).await;
                if self.settle(&shown, &mut told).await.is_ok() {
                    return;
                }
            }
            tracing::error!(request_id = %self.living.holder, "what became of a session could not be kept");
        });
    }

    /// `done`: what the homeserver had been told, once the session itself is settled.
    async fn settle(&self, shown: &Shown, done: &mut Option<Told>) -> Result<Told, Refusal> {
        let now = self.parts.clock.now();
        let told = match *done {
            Some(told) => told,
            None => *done.insert(self.settle_session(shown, now).await?),
        };
        let uia_sessions = [&self.uia_session, &shown.uia_session];
        for id in uia_sessions.into_iter().flatten().filter(|_| told == Told::Validated) {
            let stage = UiaStage { purpose: self.purpose, sid: Some(self.carried.sid.clone()) };
            let until = now.after(UIA_STAGE_LIFETIME);
            let put = |_| (Change::Put { record: stage.clone(), until }, ());
            self.parts.store.update(&Key::uia_session(id), now, put).await?;
        }
        Ok(told)
    }

    async fn settle_session(&self, shown: &Shown, now: Timestamp) -> Result<Told, Refusal> {
        let by_uia_session_alone = self.carried.client_secret.is_none();
        // The homeserver's word for the UIA session: it begins another when it does not know the client's.
        let owner = shown.uia_session.as_deref().map_or_else(|| self.owner.clone(), Owner::uia_session);
        let settle = |session: &mut Session| {
            let told = session.told(&self.living.holder);
            let used = told == Told::Validated || by_uia_session_alone;
            let settled = match shown.outcome {
                Some(Completed::Request) if used => Settled::Consumed(owner.clone()),
                Some(Completed::Stage) if told == Told::Validated => Settled::Bound(owner.clone()),
                Some(Completed::Request | Completed::Stage) | None => Settled::Released,
            };
            session.settle(&self.living.holder, settled, now);
            told
        };
        Ok(self.parts.store.update_session(&self.carried.sid, now, settle).await?.unwrap_or(Told::Nothing))
    }
}

/// What an answer of the homeserver shows of the stage that our session stands for.
#[derive(Debug, Default)]
struct Shown {
    outcome: Option<Completed>,
    uia_session: Option<String>,
    /// A 401 that has the client send its creds again, for ever. One about the access token has it log in.
    waits: bool,
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
            return Self { outcome: Some(Completed::Request), ..Self::default() };
        }
        let object = Object::parse(answer.body()).ok().filter(|_| answer.status() == StatusCode::UNAUTHORIZED);
        let Some(object) = object else { return Self::default() };
        let completed = object.get("completed").and_then(body::elements).unwrap_or_default();
        let stage = |raw: &&RawValue| matches!(raw.get(), "\"m.login.email.identity\"" | "\"m.login.msisdn\"");
        let outcome = completed.iter().any(stage).then_some(Completed::Stage);
        let errcode = object.string("errcode");
        let about_token = matches!(errcode.as_deref(), Some("M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN"));
        Self { outcome, uia_session: object.string("session"), waits: outcome.is_none() && !about_token }
    }
}
