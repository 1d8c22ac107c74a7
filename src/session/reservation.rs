//! Who may use a validated session, one request at a time, and whose it becomes by that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Session, State};
use crate::matrix::{ClientSecret, Digest, Purpose, Timestamp};
use crate::telemetry::RequestId;

/// How long one request may hold a session. Old homeservers give a callback 60 s; this is for a shim that died holding it.
const RESERVATION: Duration = Duration::from_secs(300);
/// How long the owner of a consumed session may repeat his request, having lost the answer.
const REPEAT: Duration = Duration::from_secs(600);

/// Whose session it is once it served: a UIA session, an access token, or one very request; kept as a hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Owner(Digest);

impl Owner {
    pub fn uia_session(id: &str) -> Self {
        Self(Digest::of(format!("uia {id}").as_bytes()))
    }

    pub fn access_token(token: &str) -> Self {
        Self(Digest::of(format!("token {token}").as_bytes()))
    }

    /// Creds sent at once, without a UIA session, have no owner but the request itself: its exact repeat, by whom its
    /// `Authorization` and its query say.
    pub fn request(body: &[u8], authorization: Option<&[u8]>, query: Option<&str>) -> Self {
        let mut request = [b"request ", body].concat();
        for (name, value) in [(b'a', authorization), (b'q', query.map(str::as_bytes))] {
            if let Some(value) = value {
                // No JSON, field or query holds a NUL.
                request.extend_from_slice(&[0, name]);
                request.extend_from_slice(value);
            }
        }
        Self(Digest::of(&request))
    }
}

/// One request's hold on a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reservation {
    holder: RequestId,
    until: Timestamp,
    told: Told,
    /// Whose the session is if nobody ever says what became of it. Older versions kept none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
}

/// Whether a request may be forwarded with this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    Granted,
    /// Another request holds it.
    Wait,
    Refused,
}

/// What the homeserver has heard under a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It has not asked.
    Nothing,
    NotYet,
    Validated,
}

/// What the homeserver's answer to a reserved request shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Nothing came of it.
    Released,
    /// The stage is completed in this UIA session, or by this access token.
    Bound(Owner),
    /// 2xx: the session has done what it was begun for.
    Consumed(Owner),
}

impl Session {
    /// Whether `owner` may have a request with this session forwarded on a path for `purpose`, and if so reserves it:
    /// old homeservers let the last of two simultaneous users have the address.
    ///
    /// A session that is not validated yet is granted too: the homeserver's 401 tells the client to keep waiting.
    pub fn reserve(
        &mut self,
        holder: &RequestId,
        purpose: Purpose,
        client_secret: Option<&ClientSecret>,
        owner: &Owner,
        now: Timestamp,
    ) -> Reserved {
        self.abandon_unless_held(now);
        let secret_fits = client_secret.is_none_or(|secret| self.client_secret == secret.digest());
        let owner_fits = self.owner.as_ref().is_none_or(|bound| bound == owner);
        if self.purpose != purpose || !secret_fits || !owner_fits || now >= self.expires {
            return Reserved::Refused;
        }
        if let State::Consumed { at, .. } = self.state
            && now >= at.after(REPEAT)
        {
            return Reserved::Refused;
        }
        // Its own: the store was slow to say that it is there.
        if self.reservation.as_ref().is_some_and(|held| held.holder != *holder && now < held.until) {
            return Reserved::Wait;
        }
        let (holder, until) = (holder.clone(), now.after(RESERVATION));
        self.reservation = Some(Reservation { holder, until, told: Told::Nothing, owner: Some(owner.clone()) });
        Reserved::Granted
    }

    /// Ends the reservation of a request that died, by what can be known of its holder. The homeserver may have done what it
    /// was asked, or still do it: so a session that could be used is from then on its owner's alone, who may repeat it.
    pub fn abandon_unless(&mut self, lives: impl Fn(&RequestId) -> bool) {
        let Some(dead) = self.reservation.take_if(|held| !lives(&held.holder)) else { return };
        match self.state {
            State::Requested => {}
            State::Validated { .. } | State::Consumed { .. } => self.owner = self.owner.take().or(dead.owner),
        }
    }

    /// The same of one that has lasted too long.
    fn abandon_unless_held(&mut self, now: Timestamp) {
        let until = self.reservation.as_ref().map(|held| held.until);
        self.abandon_unless(|_| until.is_some_and(|until| now < until));
    }

    /// The homeserver asks whether the address is validated: since when, or `None`. That it was told is noted. Only a
    /// request that was let through by [`Session::reserve`] gets a yes, whatever another parser makes of its creds.
    pub fn tell(&mut self, client_secret: &ClientSecret, now: Timestamp) -> Option<Timestamp> {
        let held = self.reservation.as_mut().filter(|held| now < held.until)?;
        if self.client_secret != client_secret.digest() || now >= self.expires {
            return None;
        }
        match self.state {
            State::Requested => {
                held.told = Told::NotYet;
                None
            }
            State::Validated { at } | State::Consumed { validated: at, .. } => {
                held.told = Told::Validated;
                Some(at)
            }
        }
    }

    /// What [`Session::tell`] changes, as edits of the JSON that a session is kept as: which texts are there, and which is
    /// replaced by which. The first that fits is made.
    pub fn telling(client_secret: &ClientSecret) -> [([String; 2], &'static str, &'static str); 4] {
        let secret = format!("\"client_secret\":\"{}\"", client_secret.digest().as_hex());
        let when = |state: &str| [secret.clone(), format!("\"state\":{state}")];
        [
            (when("\"requested\""), r#""told":"nothing""#, r#""told":"not_yet""#),
            (when("{\"validated\""), r#""told":"nothing""#, r#""told":"validated""#),
            (when("{\"validated\""), r#""told":"not_yet""#, r#""told":"validated""#),
            (when("{\"consumed\""), r#""told":"nothing""#, r#""told":"validated""#),
        ]
    }

    /// The same for a session that the homeserver began by itself: none of its requests comes by here, so that it is told
    /// without a reservation, and again for as long after the first time as an owner may repeat a request.
    pub fn tell_delegating(&mut self, client_secret: &ClientSecret, now: Timestamp) -> Option<Timestamp> {
        let secret_fits = self.client_secret == client_secret.digest();
        if self.purpose != Purpose::Delegated || !secret_fits || now >= self.expires {
            return None;
        }
        match self.state {
            State::Requested => None,
            State::Validated { at: validated } => {
                self.state = State::Consumed { validated, at: now };
                Some(validated)
            }
            State::Consumed { validated, at } => (now < at.after(REPEAT)).then_some(validated),
        }
    }

    /// Whose request holds it.
    pub fn holder(&self) -> Option<&RequestId> {
        self.reservation.as_ref().map(|held| &held.holder)
    }

    /// What the homeserver was told on behalf of this holder.
    pub fn told(&self, holder: &RequestId) -> Told {
        self.reservation.as_ref().filter(|held| held.holder == *holder).map_or(Told::Nothing, |held| held.told)
    }

    /// Ends a reservation with what the answer showed. Another holder's reservation is left alone.
    pub fn settle(&mut self, holder: &RequestId, settled: Settled, now: Timestamp) {
        if self.reservation.as_ref().is_none_or(|held| held.holder != *holder) {
            return;
        }
        self.reservation = None;
        match settled {
            Settled::Released => {}
            Settled::Bound(owner) => self.owner = self.owner.take().or(Some(owner)),
            Settled::Consumed(owner) => {
                self.owner = self.owner.take().or(Some(owner));
                if let State::Validated { at: validated } = self.state {
                    self.state = State::Consumed { validated, at: now };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Lifetimes;
    use super::super::tests::{at, id, mailed, secret, token, validated};
    use super::*;

    fn reserve(session: &mut Session, holder: u8, owner: &str, seconds: u64) -> Reserved {
        let secret = secret("s3cr3t");
        session.reserve(&id(holder), Purpose::Register, Some(&secret), &Owner::uia_session(owner), at(seconds))
    }

    #[test]
    fn s4_20_a_session_serves_its_own_purpose_only() {
        let mut session = validated();
        let owner = Owner::uia_session("u");
        for purpose in [Purpose::Password, Purpose::Account3pid] {
            let reserved = session.reserve(&id(1), purpose, Some(&secret("s3cr3t")), &owner, at(20));
            assert_eq!(reserved, Reserved::Refused);
        }
        let reserved = session.reserve(&id(1), Purpose::Register, Some(&secret("other")), &owner, at(20));
        assert_eq!(reserved, Reserved::Refused);
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
    }

    #[test]
    fn the_homeserver_is_told_only_under_a_reservation() {
        let mut session = validated();
        assert_eq!(session.tell(&secret("s3cr3t"), at(20)), None);
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        assert_eq!(session.tell(&secret("s3cr3t"), at(20)), Some(at(10)));
        assert_eq!(session.told(&id(1)), Told::Validated);
        assert_eq!(session.tell(&secret("other"), at(20)), None);
        session.settle(&id(1), Settled::Released, at(21));
        assert_eq!(session.tell(&secret("s3cr3t"), at(21)), None);
    }

    #[test]
    fn what_telling_edits_is_what_tell_changes() {
        let edited = |session: &Session, client_secret: &str| {
            let json = serde_json::to_string(session).unwrap();
            let edits = Session::telling(&secret(client_secret));
            let fits =
                edits.iter().find(|(when, from, _)| when.iter().all(|when| json.contains(when)) && json.contains(from));
            serde_json::from_str(&fits.map_or(json.clone(), |(_, from, to)| json.replacen(from, to, 1))).unwrap()
        };
        let (mut asked, mut refused) = (mailed(), validated());
        assert_eq!(edited(&refused, "s3cr3t"), refused, "nothing is told without a reservation");
        assert_eq!(reserve(&mut asked, 1, "u", 5), Reserved::Granted);
        assert_eq!(reserve(&mut refused, 1, "u", 20), Reserved::Granted);
        assert_eq!(edited(&refused, "other"), refused);
        let mut rows = 0;
        let click = |session: &mut Session| {
            let lifetimes =
                Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };
            session.submit(&secret("s3cr3t"), &token(1), at(10), lifetimes).unwrap();
        };
        for (clicks, seconds, told) in [
            (false, 6, Told::NotYet),
            (false, 7, Told::NotYet),
            (true, 20, Told::Validated),
            (true, 21, Told::Validated),
        ] {
            if clicks {
                click(&mut asked);
            }
            let by_edit = edited(&asked, "s3cr3t");
            asked.tell(&secret("s3cr3t"), at(seconds));
            assert_eq!((by_edit, asked.told(&id(1))), (asked.clone(), told));
            rows += 1;
        }
        assert_eq!(rows, 4);
        asked.settle(&id(1), Settled::Consumed(Owner::uia_session("u")), at(22));
        assert_eq!(reserve(&mut asked, 1, "u", 23), Reserved::Granted);
        let by_edit = edited(&asked, "s3cr3t");
        asked.tell(&secret("s3cr3t"), at(24));
        assert_eq!((by_edit, asked.told(&id(1))), (asked.clone(), Told::Validated));
    }

    #[test]
    fn a_delegated_session_is_told_to_the_homeserver_alone_and_for_ten_minutes() {
        let mut session = Session { purpose: Purpose::Delegated, ..validated() };
        for purpose in [Purpose::Register, Purpose::Password, Purpose::Account3pid] {
            let (secret, owner) = (secret("s3cr3t"), Owner::uia_session("u"));
            assert_eq!(session.reserve(&id(1), purpose, Some(&secret), &owner, at(20)), Reserved::Refused);
        }
        assert_eq!(session.tell(&secret("s3cr3t"), at(20)), None, "there is no reservation to tell it under");
        assert_eq!(session.tell_delegating(&secret("other"), at(20)), None);
        assert_eq!(session.tell_delegating(&secret("s3cr3t"), at(20)), Some(at(10)));
        assert_eq!(session.tell_delegating(&secret("s3cr3t"), at(619)), Some(at(10)));
        assert_eq!(session.tell_delegating(&secret("s3cr3t"), at(620)), None);

        let mut late = Session { purpose: Purpose::Delegated, ..validated() };
        assert_eq!(late.tell_delegating(&secret("s3cr3t"), at(10 + 86_400)), None, "expired");
        let mut waiting = Session { purpose: Purpose::Delegated, ..mailed() };
        assert_eq!(waiting.tell_delegating(&secret("s3cr3t"), at(20)), None, "not validated");
        let mut announced = validated();
        assert_eq!(announced.tell_delegating(&secret("s3cr3t"), at(20)), None, "a client's own session");
        assert_eq!(announced, validated());
    }

    #[test]
    fn one_request_at_a_time_holds_a_session_and_the_next_waits() {
        let mut session = validated();
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        assert_eq!(reserve(&mut session, 2, "u", 21), Reserved::Wait);
        assert_eq!(reserve(&mut session, 1, "u", 21), Reserved::Granted, "nobody waits for itself");
        session.settle(&id(2), Settled::Consumed(Owner::uia_session("u")), at(22));
        assert_eq!(reserve(&mut session, 2, "u", 22), Reserved::Wait, "only its holder ends a reservation");
        session.settle(&id(1), Settled::Released, at(23));
        assert_eq!(reserve(&mut session, 2, "u", 23), Reserved::Granted);
        assert_eq!(
            reserve(&mut session, 3, "u", 23 + 300),
            Reserved::Granted,
            "a holder that died is waited for so long"
        );
    }

    #[test]
    fn what_a_dead_request_held_is_its_owners_alone_once_it_could_be_used() {
        let mut session = validated();
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        session.abandon_unless(|holder| *holder == id(1));
        assert_eq!(reserve(&mut session, 2, "u", 21), Reserved::Wait, "it lives");
        session.abandon_unless(|_| false);
        assert_eq!(reserve(&mut session, 2, "thief", 21), Reserved::Refused);
        assert_eq!(reserve(&mut session, 3, "u", 21), Reserved::Granted);

        let mut late = validated();
        assert_eq!(reserve(&mut late, 1, "u", 20), Reserved::Granted);
        assert_eq!(
            reserve(&mut late, 2, "thief", 20 + 300),
            Reserved::Refused,
            "where nobody knows who lives, after its time"
        );
        assert_eq!(reserve(&mut late, 3, "u", 20 + 300), Reserved::Granted);

        let mut polled = mailed();
        assert_eq!(reserve(&mut polled, 1, "u", 5), Reserved::Granted);
        polled.abandon_unless(|_| false);
        assert_eq!(reserve(&mut polled, 2, "v", 6), Reserved::Granted, "there was nothing to be had by it");
    }

    #[test]
    fn a_bound_session_is_refused_to_everybody_but_its_owner() {
        let mut session = validated();
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        session.settle(&id(1), Settled::Bound(Owner::uia_session("u")), at(21));
        assert_eq!(reserve(&mut session, 2, "thief", 22), Reserved::Refused);
        assert_eq!(reserve(&mut session, 3, "u", 22), Reserved::Granted);
    }

    #[test]
    fn a_consumed_session_is_answered_again_to_its_owner_for_ten_minutes() {
        let mut session = validated();
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        session.settle(&id(1), Settled::Consumed(Owner::uia_session("u")), at(21));
        assert_eq!(reserve(&mut session, 2, "thief", 22), Reserved::Refused);
        assert_eq!(reserve(&mut session, 2, "u", 22), Reserved::Granted);
        assert_eq!(session.tell(&secret("s3cr3t"), at(22)), Some(at(10)));
        session.settle(&id(2), Settled::Consumed(Owner::uia_session("u")), at(600));
        assert_eq!(reserve(&mut session, 3, "u", 620), Reserved::Granted, "the repeat counts from the first success");
        session.settle(&id(3), Settled::Released, at(620));
        assert_eq!(reserve(&mut session, 4, "u", 621), Reserved::Refused);
    }

    #[test]
    fn an_expired_session_is_refused() {
        assert_eq!(reserve(&mut mailed(), 1, "u", 3600), Reserved::Refused);
    }
}
