//! The session that a client's requestToken belongs to: found, or begun.

use super::{Change, Current, Key, Store, StoreError};
use crate::matrix::{ClientSecret, Digest, Purpose, Refusal, Sid, Threepid, Timestamp};
use crate::random;
use crate::session::{Reached, Session};
use crate::telemetry::{RequestId, Verified};

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

    fn begin(self, client: &Client<'_>) -> (Sid, Session) {
        let Self { sid, nonce, expires } = self;
        let (threepid, request_id) = (client.threepid.clone(), client.request_id.clone());
        (sid, Session::begin(threepid, client.purpose, client.client_secret, request_id, nonce, expires))
    }
}

impl Store {
    /// The client's session that still takes requests, or a fresh one. Of two requests of one client that do this at
    /// once, one begins it and both get it.
    pub async fn find_or_begin(
        &self,
        client: &Client<'_>,
        fresh: Fresh,
        now: Timestamp,
    ) -> Result<(Sid, Session), StoreError> {
        let current = Key::current(client.threepid, client.client_secret, client.purpose);
        let (sid, session) = fresh.begin(client);
        let until = session.kept_until();
        loop {
            let seen = self.get(&current, now).await?;
            if let Some(Current { sid }) = &seen
                && let Some(session) = self.get(&Key::session(sid), now).await?
                && session.takes_requests(now)
            {
                return Ok((sid.clone(), session));
            }
            let put = |_| (Change::Put { record: session.clone(), until }, ());
            self.update(&Key::session(&sid), now, put).await?;
            let record = Current { sid: sid.clone() };
            let claim = |present: Option<Current>| {
                let unchanged = present == seen;
                (if unchanged { Change::Put { record: record.clone(), until } } else { Change::Keep }, unchanged)
            };
            if self.update(&current, now, claim).await? {
                self.metrics.sessions_begun.get_or_create(&labels(&session)).inc();
                return Ok((sid, session));
            }
            self.update(&Key::session(&sid), now, |_| (Change::Remove, ())).await?;
        }
    }

    /// The client's session so far, which may take no further requests.
    pub async fn current(&self, client: &Client<'_>, now: Timestamp) -> Result<Option<Sid>, StoreError> {
        let key = Key::current(client.threepid, client.client_secret, client.purpose);
        Ok(self.get(&key, now).await?.map(|current| current.sid))
    }

    /// As `find_or_begin` and then `update_session`, all at once, if the session is what it is supposed to be: `current`, or
    /// none so far. `None` when it is not, and then nothing has changed. Only for who is alone with its client, as the holder
    /// of a note is: two of them might both begin.
    pub async fn change_or_begin<T>(
        &self,
        client: &Client<'_>,
        current: Option<&Sid>,
        fresh: Fresh,
        now: Timestamp,
        decide: impl Fn(&mut Session) -> T,
    ) -> Result<Option<(Sid, T)>, StoreError> {
        if let Some(sid) = current {
            let decide = |session: &mut Session| session.takes_requests(now).then(|| decide(session));
            let told = self.update_session(sid, now, decide).await?.flatten();
            return Ok(told.map(|told| (sid.clone(), told)));
        }
        let (sid, mut session) = fresh.begin(client);
        let told = decide(&mut session);
        let until = session.kept_until();
        let put = |_| (Change::Put { record: session.clone(), until }, ());
        let record = Current { sid: sid.clone() };
        let claim = |present: Option<Current>| match present {
            None => (Change::Put { record: record.clone(), until }, true),
            Some(_) => (Change::Keep, false),
        };
        let (session_key, current_key) =
            (Key::session(&sid), Key::current(client.threepid, client.client_secret, client.purpose));
        let (put, claimed) = tokio::join!(self.update(&session_key, now, put), self.update(&current_key, now, claim));
        put?;
        if claimed? {
            self.metrics.sessions_begun.get_or_create(&labels(&session)).inc();
            return Ok(Some((sid, told)));
        }
        self.update(&session_key, now, |_| (Change::Remove, ())).await?;
        Ok(None)
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
                let reached = session.reached_since(&before).map(|reached| (reached, labels(&session)));
                let until = session.kept_until();
                let change = if session == before { Change::Keep } else { Change::Put { record: session, until } };
                (change, Some((told, reached)))
            }
            None => (Change::Keep, None),
        };
        let Some((told, reached)) = self.update(&Key::session(sid), now, decide).await? else { return Ok(None) };
        if let Some((reached, labels)) = reached {
            let sessions = match reached {
                Reached::Validated => &self.metrics.sessions_validated,
                Reached::Consumed => &self.metrics.sessions_consumed,
            };
            sessions.get_or_create(&labels).inc();
        }
        Ok(Some(told))
    }
}

fn labels(session: &Session) -> Verified {
    Verified { purpose: session.purpose.as_str(), medium: session.threepid.medium.as_str() }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;
    use crate::config;
    use crate::matrix::{Address, Medium};
    use crate::telemetry::Metrics;

    /// With `hide_existence` two identical requests get their sids before either has its note: one of them would wait
    /// for a session that no mail ever validates.
    #[test]
    fn two_requests_of_one_client_at_once_get_one_session() {
        const AT_ONCE: u8 = 4;
        let now = Timestamp::from_millis(1_000_000);
        let store = Store::open(&config::Store::Memory, &Metrics::new()).unwrap();
        let threepid = Threepid { medium: Medium::Email, address: Address::email("a@example.org").unwrap() };
        for round in 0..500 {
            let client_secret = ClientSecret::parse(&format!("secret{round}")).unwrap();
            let start = Barrier::new(AT_ONCE.into());
            let ask = |n: u8| {
                let request_id = RequestId::from_random([n; 8]);
                let (purpose, secret) = (Purpose::Register, &client_secret);
                let client = Client { threepid: &threepid, purpose, client_secret: secret, request_id: &request_id };
                let fresh = Fresh::draw(now.after(Duration::from_secs(60))).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                start.wait();
                runtime.block_on(store.find_or_begin(&client, fresh, now)).unwrap().0
            };
            let ask = &ask;
            let sids: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..AT_ONCE).map(|n| scope.spawn(move || ask(n))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(sids.iter().all(|sid| *sid == sids[0]), "round {round}");
        }
    }
}
