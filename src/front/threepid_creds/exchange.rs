//! One request with a session of ours on its way: reserved before it is forwarded, settled by what the answer shows.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::value::RawValue;

use super::ThreepidCreds;
use super::alive::Living;
use super::carried::{AllCarried, Carried};
use crate::body::{self, Object};
use crate::front::forward::Body;
use crate::matrix::{Purpose, Refusal, Sid, Timestamp};
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
/// some uses do not come by here (P§2.4; the fallback pages of other stages).
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
    pub(super) carried: AllCarried,
    pub(super) owner: Owner,
    pub(super) uia_session: Option<String>,
    /// The homeserver has learnt MSC2263 since the session began. If it delegates to the identity door it asks; if it
    /// does not ask, it never will, and the client has to begin again.
    pub(super) handed_over: bool,
}

impl Exchange {
    pub(super) async fn run(mut self) -> Result<Response<Body>, Refusal> {
        loop {
            self.reserve().await?;
            let remembered = self.mark_uia_session().await?;
            let fits = match &remembered {
                Some(remembered) => self.carried.remember(remembered),
                None => Err(Refusal::creds()),
            };
            if let Ok(true) = fits {
                break;
            }
            // Others were completed in the UIA session meanwhile, and are to be reserved before this one is.
            self.settle(&Shown::default(), &mut Vec::new()).await?;
            fits?;
        }
        let answer = self.parts.forward.ask(&self.head, self.sent.clone(), ANSWER_LIMIT).await;
        let shown = answer.as_ref().map_or_else(|_| Shown::unknown(), Shown::by);
        let mut told = Vec::new();
        if let Err(refusal) = self.settle(&shown, &mut told).await {
            self.settle_later(shown, told);
            return Err(refusal);
        }
        if self.handed_over && told.iter().all(|told| *told == Told::Nothing) && shown.waits {
            return Err(Refusal::creds());
        }
        Ok(answer?.map(Body::from))
    }

    /// Says what the UIA session is for before the homeserver completes a stage in it: from then on it would complete any
    /// endpoint, and the answer that shows it is still to come. What was completed there so far; `None` when it is for something
    /// else already.
    async fn mark_uia_session(&self) -> Result<Option<Vec<Sid>>, Refusal> {
        let Some(id) = &self.uia_session else { return Ok(Some(Vec::new())) };
        loop {
            let now = self.parts.clock.now();
            let mark = |current: Option<UiaStage>| {
                if let Some(stage) = current {
                    return (Change::Keep, (stage.purpose == self.purpose).then(|| stage.completed_with()));
                }
                let record = UiaStage::new(self.purpose);
                (Change::Put { record, until: now.after(UIA_STAGE_LEASE) }, Some(Vec::new()))
            };
            let remembered = self.parts.store.update(&Key::uia_session(id), now, mark).await?;
            if remembered.is_none() || !self.parts.under_way.elsewhere(id, self.purpose).await? {
                return Ok(remembered);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// All sessions that are carried, or none.
    async fn reserve(&self) -> Result<(), Refusal> {
        for carried in self.carried.iter() {
            if let Err(refusal) = self.reserve_one(carried).await {
                if !self.carried.is_one() {
                    self.settle(&Shown::default(), &mut Vec::new()).await?;
                }
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Waits while another request holds the session; it never fails because of that. One of a process that ended is not
    /// waited for, where that can be known: in a store that is this process's alone.
    async fn reserve_one(&self, carried: &Carried) -> Result<(), Refusal> {
        let (is_shared, alive) = (self.parts.store.is_shared(), &self.parts.alive);
        loop {
            let now = self.parts.clock.now();
            let secret = carried.client_secret.as_ref();
            let reserve = |session: &mut Session| {
                if !is_shared {
                    session.abandon_unless(|holder| alive.has(holder));
                }
                let reserved = session.reserve(&self.living.holder, self.purpose, secret, &self.owner, now);
                (reserved, session.threepid.medium)
            };
            let reserved = self.parts.store.update_session(&carried.sid, now, reserve).await?;
            if let Some((_, medium)) = reserved.filter(|_| secret.is_some() || self.carried.is_one()) {
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
    fn settle_later(self, shown: Shown, mut told: Vec<Told>) {
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

    /// `done`: what the homeserver had been told of each session, once it is settled.
    async fn settle(&self, shown: &Shown, done: &mut Vec<Told>) -> Result<(), Refusal> {
        let now = self.parts.clock.now();
        for carried in self.carried.iter().skip(done.len()) {
            done.push(self.settle_session(carried, shown, now).await?);
        }
        let validated = || self.carried.iter().zip(done.iter()).filter(|(_, told)| **told == Told::Validated);
        let uia_sessions = [&self.uia_session, &shown.uia_session];
        for id in uia_sessions.into_iter().flatten().filter(|_| validated().next().is_some()) {
            let until = now.after(UIA_STAGE_LIFETIME);
            let put = |current: Option<UiaStage>| {
                let mut record = current.unwrap_or_else(|| UiaStage::new(self.purpose));
                record.purpose = self.purpose;
                validated().for_each(|(carried, _)| record.add(&carried.sid));
                (Change::Put { record, until }, ())
            };
            self.parts.store.update(&Key::uia_session(id), now, put).await?;
        }
        Ok(())
    }

    async fn settle_session(&self, carried: &Carried, shown: &Shown, now: Timestamp) -> Result<Told, Refusal> {
        // The homeserver's word for the UIA session: it begins another when it does not know the client's.
        let owner = shown.uia_session.as_deref().map_or_else(|| self.owner.clone(), Owner::uia_session);
        let settle = |session: &mut Session| {
            let told = session.told(&self.living.holder);
            let used = told == Told::Validated || carried.is_remembered;
            let settled = match shown.outcome {
                Some(Completed::Request) if used => Settled::Consumed(owner.clone()),
                Some(Completed::Stage) if told == Told::Validated => Settled::Bound(owner.clone()),
                Some(Completed::Unknown) if used => Settled::Bound(self.owner.clone()),
                Some(Completed::Request | Completed::Stage | Completed::Unknown) | None => Settled::Released,
            };
            session.settle(&self.living.holder, settled, now);
            told
        };
        Ok(self.parts.store.update_session(&carried.sid, now, settle).await?.unwrap_or(Told::Nothing))
    }
}

/// What an answer of the homeserver shows of the stage that our session stands for.
#[derive(Default)]
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
    /// No answer, or one that says nothing of what was done before it failed.
    Unknown,
}

impl Shown {
    fn unknown() -> Self {
        Self { outcome: Some(Completed::Unknown), ..Self::default() }
    }

    fn by(answer: &Response<Bytes>) -> Self {
        if answer.status().is_success() {
            return Self { outcome: Some(Completed::Request), ..Self::default() };
        }
        if answer.status().is_server_error() {
            return Self::unknown();
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
