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
use crate::store::{Change, Key, StoreError, UiaStage, Watch};
use crate::telemetry::{RequestId, Subject};

/// The largest answer to a completion that is read.
const ANSWER_LIMIT: usize = 1024 * 1024;
/// Between two looks whether another request with the UIA session has ended.
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
    pub(super) carried: AllCarried,
    pub(super) owner: Owner,
    pub(super) uia_session: Option<String>,
    /// The homeserver has learnt MSC2263 since the session began. If it delegates to the identity door it asks; if it
    /// does not ask, it never will, and the client has to begin again.
    pub(super) handed_over: bool,
}

/// Whose request holds a session.
enum Held {
    Ours,
    Theirs(RequestId),
    /// It is none that this request may have.
    Never,
}

/// What became of an exchange that was begun.
pub(super) enum Ran {
    Answered(Response<Body>),
    /// Another request holds one of the sessions; nothing has happened.
    Busy {
        exchange: Box<Exchange>,
        holder: RequestId,
    },
}

impl Exchange {
    /// Has to run to its end even when the client goes: what was written of it has to be made good, and what the homeserver did
    /// with the sessions has to be known. `dead`: who holds them no longer, if that is known.
    pub(super) async fn run(mut self: Box<Self>, dead: Option<RequestId>) -> Result<Ran, Refusal> {
        match self.hold(dead.as_ref()).await {
            Ok(Held::Ours) => self.ask().await.map(Ran::Answered),
            Ok(Held::Theirs(holder)) => Ok(Ran::Busy { exchange: self, holder }),
            Ok(Held::Never) => Err(Refusal::creds()),
            Err(error) => {
                // What was to be written may be there all the same: an answer that came too late is no answer.
                self.settle_later(Shown::default(), Vec::new());
                Err(error.into())
            }
        }
    }

    async fn ask(self: Box<Self>) -> Result<Response<Body>, Refusal> {
        let answer = self.parts.forward.ask(&self.head, self.sent.clone(), ANSWER_LIMIT).await;
        let shown = answer.as_ref().map_or_else(|_| Shown::unknown(), Shown::by);
        let mut told = Vec::new();
        if let Err(error) = self.settle(&shown, &mut told).await {
            self.settle_later(shown, told);
            return Err(error.into());
        }
        if self.handed_over && told.iter().all(|told| *told == Told::Nothing) && shown.waits {
            return Err(Refusal::creds());
        }
        Ok(answer?.map(Body::from))
    }

    /// All sessions that are carried, and the UIA session for what this request is for; or nothing of it.
    async fn hold(&mut self, dead: Option<&RequestId>) -> Result<Held, StoreError> {
        loop {
            for (before, carried) in self.carried.iter().enumerate() {
                let held = self.reserve(carried, dead).await?;
                if !matches!(held, Held::Ours) {
                    if before > 0 {
                        self.let_go().await?;
                    }
                    return Ok(held);
                }
            }
            let remembered = self.mark_uia_session().await?;
            match remembered.map(|remembered| self.carried.remember(&remembered)) {
                Some(Ok(true)) => return Ok(Held::Ours),
                // Others were completed in the UIA session meanwhile, and are to be reserved before this one is.
                Some(Ok(false)) => self.let_go().await?,
                Some(Err(_)) | None => {
                    self.let_go().await?;
                    return Ok(Held::Never);
                }
            }
        }
    }

    /// The homeserver was asked nothing.
    async fn let_go(&self) -> Result<(), StoreError> {
        self.settle(&Shown::default(), &mut Vec::new()).await
    }

    /// Says what the UIA session is for before the homeserver completes a stage in it: from then on it would complete any
    /// endpoint, and the answer that shows it is still to come. What was completed there so far; `None` when it is for something
    /// else already.
    async fn mark_uia_session(&self) -> Result<Option<Vec<Sid>>, StoreError> {
        let Some(id) = &self.uia_session else { return Ok(Some(Vec::new())) };
        let mut watch = Watch::default();
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
            if remembered.is_none() || !self.parts.under_way.elsewhere(id, self.purpose, &mut watch).await? {
                return Ok(remembered);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A request of this process that is over, or of one before it, holds nothing, and neither does `dead`.
    async fn reserve(&self, carried: &Carried, dead: Option<&RequestId>) -> Result<Held, StoreError> {
        let (store, alive, now) = (&self.parts.store, &self.parts.alive, self.parts.clock.now());
        let lives = |holder: &RequestId| {
            let elsewhere = store.is_shared() && holder.process() != Some(store.process());
            if elsewhere { dead != Some(holder) } else { alive.has(holder) }
        };
        let secret = carried.client_secret.as_ref();
        let reserve = |session: &mut Session| {
            session.abandon_unless(lives);
            let reserved = session.reserve(&self.living.holder, self.purpose, secret, &self.owner, now);
            (reserved, session.threepid.medium, session.holder().cloned())
        };
        let Some((reserved, medium, holder)) = store.update_session(&carried.sid, now, reserve).await? else {
            return Ok(Held::Never);
        };
        if secret.is_some() || self.carried.is_one() {
            Subject::of(&self.head.extensions).note_medium(medium);
        }
        Ok(match reserved {
            Reserved::Granted => Held::Ours,
            Reserved::Wait => holder.map_or(Held::Never, Held::Theirs),
            Reserved::Refused => Held::Never,
        })
    }

    /// What the homeserver did with the session is done, whether the store can be told at the moment or not: while it cannot,
    /// the session stays reserved.
    fn settle_later(self: Box<Self>, shown: Shown, mut told: Vec<Told>) {
        let shown = Shown { again: true, ..shown };
        self.parts.detached.clone().spawn(async move {
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
    async fn settle(&self, shown: &Shown, done: &mut Vec<Told>) -> Result<(), StoreError> {
        let now = self.parts.clock.now();
        for carried in self.carried.iter().skip(done.len()) {
            done.push(self.settle_session(carried, shown, now).await?);
        }
        let validated = || self.carried.iter().zip(done.iter()).filter(|(_, told)| shown.may_have_completed(**told));
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

    async fn settle_session(&self, carried: &Carried, shown: &Shown, now: Timestamp) -> Result<Told, StoreError> {
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
    /// The store was told before, and may have kept it although it seemed to fail: then nobody knows any more what the homeserver
    /// was told.
    again: bool,
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
    fn may_have_completed(&self, told: Told) -> bool {
        told == Told::Validated || (self.again && self.outcome.is_some() && told == Told::Nothing)
    }

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
        Self { outcome, uia_session: object.string("session"), waits: outcome.is_none() && !about_token, again: false }
    }
}
