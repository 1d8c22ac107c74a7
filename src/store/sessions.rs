//! The session that a client's requestToken belongs to: found, or begun.

use super::{Change, Current, Key, Store, StoreError};
use crate::matrix::{ClientSecret, Digest, Purpose, Refusal, Sid, Threepid, Timestamp};
use crate::random;
use crate::session::Session;
use crate::telemetry::RequestId;

/// Whose session it is to be.
#[derive(Debug)]
pub struct Client<'a> {
    pub threepid: &'a Threepid,
    pub purpose: Purpose,
    pub client_secret: &'a ClientSecret,
    pub request_id: &'a RequestId,
}

/// What a session that has to be begun is made of.
#[derive(Debug)]
pub struct Fresh {
    pub sid: Sid,
    pub nonce: Digest,
    pub expires: Timestamp,
}

impl Fresh {
    pub fn draw(expires: Timestamp) -> Result<Self, Refusal> {
        let nonce = Digest::of(&random::bytes::<32>()?);
        Ok(Self { sid: Sid::from_random(random::bytes()?), nonce, expires })
    }
}

impl Store {
    /// The client's session that still takes requests, or a fresh one. The note in flight sees to it that no two do
    /// this at once for one client.
    pub async fn find_or_begin(
        &self,
        client: &Client<'_>,
        fresh: Fresh,
        now: Timestamp,
    ) -> Result<(Sid, Session), StoreError> {
        let current = Key::current(client.threepid, client.client_secret, client.purpose);
        if let Some(Current { sid }) = self.get(&current, now).await?
            && let Some(session) = self.get(&Key::session(&sid), now).await?
            && session.takes_requests(now)
        {
            return Ok((sid, session));
        }
        let Fresh { sid, nonce, expires } = fresh;
        let session = Session::begin(
            client.threepid.clone(),
            client.purpose,
            client.client_secret,
            client.request_id.clone(),
            nonce,
            expires,
        );
        let until = session.kept_until();
        let put = |_| (Change::Put { record: session.clone(), until }, ());
        self.update(&Key::session(&sid), now, put).await?;
        let record = Current { sid: sid.clone() };
        self.update(&current, now, |_| (Change::Put { record: record.clone(), until }, ())).await?;
        Ok((sid, session))
    }

    /// Changes a session that is there; `None` when there is none.
    pub async fn update_session<T>(
        &self,
        sid: &Sid,
        now: Timestamp,
        decide: impl Fn(&mut Session) -> T,
    ) -> Result<Option<T>, StoreError> {
        let decide = |current: Option<Session>| match current {
            Some(mut session) => {
                let before = session.clone();
                let told = decide(&mut session);
                let until = session.kept_until();
                let change = if session == before { Change::Keep } else { Change::Put { record: session, until } };
                (change, Some(told))
            }
            None => (Change::Keep, None),
        };
        self.update(&Key::session(sid), now, decide).await
    }
}
