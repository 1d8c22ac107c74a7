//! A requestToken on its way through the homeserver: what the front tells the identity door of it, and what comes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::matrix::{ClientSecret, Errcode, NextLink, Purpose, Refusal, Sid, Threepid, Timestamp};
use crate::store::{Change, Edit, Effect, IN_FLIGHT, Key, Record, Store, StoreError, Wait, Watch, digest_of};
use crate::telemetry::{Process, RequestId};

/// How long a note lives at most: the homeserver gives up its callback after 60 s, and what that began ends within 60 s more.
const LEASE: Duration = Duration::from_secs(120);
/// How long a callback that was given up is waited for: longer than any message may take.
const UNDECIDED: Duration = Duration::from_secs(60);
/// Between two looks whether the callback has decided.
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
    /// To which process. Older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<Process>,
    verdict: Option<Verdict>,
    until: Timestamp,
}

/// In the text of a note, and nowhere else in it.
const UNCLAIMED: &str = r#""claimed":false"#;
const DECIDED: &str = r#""verdict":{"#;

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
            by: None,
            verdict: None,
            until,
        }
    }
}

/// The key of the one note there is for a threepid and a client_secret.
pub fn key(threepid: &Threepid, client_secret: &ClientSecret) -> Key<Note> {
    Key::new(digest_of(threepid, client_secret).as_hex())
}

/// Puts the note there. While another request's is, waits, unless its process is dead: what that one sends, this one must not
/// send again, and one for another purpose must not be taken for it. `clock` is asked at every look.
pub async fn announce(
    store: &Store,
    key: &Key<Note>,
    note: &Note,
    clock: impl Fn() -> Timestamp,
) -> Result<(), StoreError> {
    let mut wait = Wait::default();
    loop {
        let now = clock();
        let fresh = Note { until: now.after(LEASE), ..note.clone() };
        let decide = |current: Option<Note>| match current {
            // Its own: the store was slow to say that it is there.
            Some(note) if note.request_id == fresh.request_id => (Change::Keep, None),
            Some(note) if wait.dead() != Some(&note.request_id) => (Change::Keep, Some(note.request_id)),
            Some(_) | None => (Change::Put { record: fresh.clone(), until: fresh.until }, None),
        };
        let Some(other) = store.update(key, now, decide).await? else { return Ok(()) };
        wait.a_while(store, other, now).await?;
    }
}

/// The callback takes the note up; `None` when there is none of this attempt or it was taken up already.
pub async fn claim(
    store: &Store,
    key: &Key<Note>,
    send_attempt: i64,
    now: Timestamp,
) -> Result<Option<Note>, StoreError> {
    let when = vec![format!("\"send_attempt\":{send_attempt},")];
    let effect = Effect::Replace(format!(r#""claimed":true,"by":"{}""#, store.process()));
    let claimed = Edit { when, from: UNCLAIMED.to_owned(), effect };
    let marked = store.mark(key, now, &[claimed], |note: &Note| note.until).await?;
    Ok(marked.filter(|(_, claimed)| *claimed).map(|(note, _)| note))
}

/// Leaves the verdict for the front, in the note that was taken up: if it is gone, another's is none of its business.
pub async fn decide(
    store: &Store,
    key: &Key<Note>,
    request_id: &RequestId,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<(), StoreError> {
    let decide = |current: Option<Note>| match current {
        Some(note) if note.request_id == *request_id => {
            let decided = Note { verdict: Some(verdict.clone()), ..note };
            (Change::Put { until: decided.until, record: decided }, ())
        }
        Some(_) | None => (Change::Keep, ()),
    };
    store.update(key, now, decide).await
}

/// The front is done with the homeserver: takes the note away and reads what the identity door decided, if it was asked. A
/// homeserver that gave up its callback does not have the message stopped: what becomes of it is waited for, while the process
/// that sends it lives.
pub async fn conclude(
    store: &Store,
    key: &Key<Note>,
    request_id: &RequestId,
    clock: impl Fn() -> Timestamp,
) -> Result<Option<Verdict>, StoreError> {
    let from = format!("\"request_id\":\"{request_id}\"");
    let own = |when: &[&str]| Edit {
        when: when.iter().map(|&text| text.to_owned()).collect(),
        from: from.clone(),
        effect: Effect::Remove,
    };
    let (until, mut edits) = (Instant::now() + UNDECIDED, vec![own(&[UNCLAIMED]), own(&[DECIDED])]);
    loop {
        match store.mark(key, clock(), &edits, |note: &Note| note.until).await {
            Ok(Some((note, true))) => return Ok(note.verdict),
            Ok(Some((note, false))) if note.request_id == *request_id => {}
            Ok(Some(_) | None) => return Ok(None),
            Err(error) => {
                if matches!(error, StoreError::Unreadable { .. }) {
                    // Left there, the client's next request would wait for it.
                    store.mark(key, clock(), &[own(&[])], |note: &Note| note.until).await.ok();
                }
                return Err(error);
            }
        }
        if !decides(store, key, request_id, &clock, until).await? {
            edits = vec![own(&[])];
        }
    }
}

/// Waits for the verdict of a callback that was given up: `false` when there will be none, since it is late, or the process that
/// sends the message is dead.
async fn decides(
    store: &Store,
    key: &Key<Note>,
    request_id: &RequestId,
    clock: impl Fn() -> Timestamp,
    until: Instant,
) -> Result<bool, StoreError> {
    let mut watch = Watch::default();
    while Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = clock();
        let note = store.get(key, now).await?.filter(|note| note.request_id == *request_id);
        let Some(note) = note.filter(|note| note.verdict.is_none()) else {
            // The attempt is counted at the same time: whoever asks again finds it counted.
            tokio::time::sleep(LOOK_AGAIN).await;
            return Ok(true);
        };
        if let Some(by) = note.by
            && !store.is_alive(by, &mut watch, now).await?
        {
            break;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Address, Medium};
    use crate::telemetry::Metrics;

    /// The identity door was slow, and the homeserver gave it up: the client's next request has the note by then.
    #[tokio::test(start_paused = true)]
    async fn a_late_verdict_is_not_left_in_the_next_note() {
        let store = Store::open(&crate::config::Store::Memory, &Metrics::new()).unwrap();
        let threepid = Threepid { medium: Medium::Email, address: Address::email("a@example.org").unwrap() };
        let (key, now) = (key(&threepid, &ClientSecret::parse("s").unwrap()), Timestamp::from_millis(1000));
        let [late, next] = [1, 2].map(|n| RequestId::from_random([n; 8]));
        for id in [&late, &next] {
            let note = Note::new(id.clone(), Purpose::Register, 1, None, None, now);
            announce(&store, &key, &note, || now).await.unwrap();
            claim(&store, &key, 1, now).await.unwrap().unwrap();
            if *id == late {
                assert_eq!(conclude(&store, &key, id, || now).await.unwrap(), None);
            }
        }
        let sent = |n| Verdict::Sent { sid: Sid::from_random([n; 16]) };
        decide(&store, &key, &next, &sent(2), now).await.unwrap();
        decide(&store, &key, &late, &sent(1), now).await.unwrap();
        assert_eq!(conclude(&store, &key, &next, || now).await.unwrap(), Some(sent(2)));
    }
}
