//! A requestToken on its way through the homeserver: what the front tells the identity door of it, and what comes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::matrix::{ClientSecret, Errcode, NextLink, Purpose, Refusal, Sid, Threepid, Timestamp};
use crate::store::{Change, Edit, Effect, IN_FLIGHT, Key, Record, Store, StoreError, digest_of};
use crate::telemetry::RequestId;

/// How long a note lives at most: the homeserver gives up its callback after 60 s.
const LEASE: Duration = Duration::from_secs(120);
/// Between two looks whether another request's note is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// One request of ours between the front and the homeserver's callback. The callback tells neither purpose nor
/// next_link nor language, and none is believed without its note.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    pub request_id: RequestId,
    pub purpose: Purpose,
    pub send_attempt: i64,
    pub next_link: Option<NextLink>,
    /// `Accept-Language` as the client sent it.
    pub accept_language: Option<String>,
    /// The client's session so far, as the front saw it: the identity door need not look for it.
    #[serde(default)]
    pub current: Option<Sid>,
    /// The callback has come: it comes once.
    claimed: bool,
    verdict: Option<Verdict>,
    until: Timestamp,
}

impl Record for Note {
    const KIND: &'static str = IN_FLIGHT;
}

/// What the identity door decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Sent { sid: Sid },
    Refused { status: u16, errcode: Errcode, error: String, retry_after_ms: Option<u64> },
}

impl Verdict {
    pub fn refused(refusal: &Refusal) -> Self {
        Self::Refused {
            status: refusal.status.as_u16(),
            errcode: refusal.errcode,
            error: refusal.error.clone().into_owned(),
            retry_after_ms: refusal.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// The sid, or the refusal for the client.
    pub fn into_result(self) -> Result<Sid, Refusal> {
        match self {
            Self::Sent { sid } => Ok(sid),
            Self::Refused { status, errcode, error, retry_after_ms } => {
                let status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
                let mut refusal = Refusal::new(status, errcode, error);
                refusal.retry_after = retry_after_ms.map(Duration::from_millis);
                Err(refusal)
            }
        }
    }
}

impl Note {
    pub fn new(
        request_id: RequestId,
        purpose: Purpose,
        send_attempt: i64,
        next_link: Option<NextLink>,
        accept_language: Option<String>,
        now: Timestamp,
    ) -> Self {
        let until = now.after(LEASE);
        let current = None;
        Self {
            request_id,
            purpose,
            send_attempt,
            next_link,
            accept_language,
            current,
            claimed: false,
            verdict: None,
            until,
        }
    }
}

/// The key of the one note there is for a threepid and a client_secret.
pub fn key(threepid: &Threepid, client_secret: &ClientSecret) -> Key<Note> {
    Key::new(digest_of(threepid, client_secret).as_hex())
}

/// Puts the note there. While another request's is, waits: what that one sends, this one must not send again, and one
/// for another purpose must not be taken for it. `clock` is asked at every look.
pub async fn announce(
    store: &Store,
    key: &Key<Note>,
    note: &Note,
    clock: impl Fn() -> Timestamp,
) -> Result<(), StoreError> {
    loop {
        let now = clock();
        let fresh = Note { until: now.after(LEASE), ..note.clone() };
        let decide = |current: Option<Note>| match current {
            // Its own: the store was slow to say that it is there.
            Some(note) if note.request_id == fresh.request_id => (Change::Keep, true),
            Some(_) => (Change::Keep, false),
            None => (Change::Put { record: fresh.clone(), until: fresh.until }, true),
        };
        if store.update(key, now, decide).await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The callback takes the note up; `None` when there is none or it was taken up already.
pub async fn claim(store: &Store, key: &Key<Note>, now: Timestamp) -> Result<Option<Note>, StoreError> {
    let from = r#""claimed":false"#.to_owned();
    let claimed = Edit { when: Vec::new(), from, effect: Effect::Replace(r#""claimed":true"#.to_owned()) };
    let marked = store.mark(key, now, &[claimed], |note: &Note| note.until).await?;
    Ok(marked.filter(|(_, claimed)| *claimed).map(|(note, _)| note))
}

/// Leaves the verdict for the front.
pub async fn decide(store: &Store, key: &Key<Note>, verdict: &Verdict, now: Timestamp) -> Result<(), StoreError> {
    let decide = |current: Option<Note>| match current {
        Some(note) => {
            let decided = Note { verdict: Some(verdict.clone()), ..note };
            (Change::Put { until: decided.until, record: decided }, ())
        }
        None => (Change::Keep, ()),
    };
    store.update(key, now, decide).await
}

/// The front is done with the homeserver: takes the note away and reads what the identity door decided, if it was asked.
pub async fn conclude(
    store: &Store,
    key: &Key<Note>,
    request_id: &RequestId,
    now: Timestamp,
) -> Result<Option<Verdict>, StoreError> {
    let from = format!("\"request_id\":\"{request_id}\"");
    let concluded = Edit { when: Vec::new(), from, effect: Effect::Remove };
    let marked = store.mark(key, now, &[concluded], |note: &Note| note.until).await?;
    Ok(marked.filter(|(_, concluded)| *concluded).and_then(|(note, _)| note.verdict))
}
