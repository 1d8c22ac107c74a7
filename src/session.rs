//! What a validation session may do next: requested → validated → consumed, or expired. No I/O, no clock, no randomness.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::matrix::{ClientSecret, Digest, NextLink, Purpose, Threepid, Timestamp, Token};
use crate::telemetry::RequestId;

/// How long one request may hold a session. Old homeservers give a callback 60 s; this is for a shim that died holding it.
pub const RESERVATION: Duration = Duration::from_secs(300);
/// How long the owner of a consumed session may repeat his request, having lost the answer.
const REPEAT: Duration = Duration::from_secs(600);
/// How long an expired session is remembered, so that its link says "expired" rather than "unknown".
const REMEMBERED: Duration = Duration::from_secs(86_400);
/// Links of one session that are good at the same time; a further mail makes the oldest unusable.
const MOST_TOKENS: usize = 10;

/// The verification of one threepid for one purpose, begun by whoever holds the client_secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub threepid: Threepid,
    pub purpose: Purpose,
    pub next_link: Option<NextLink>,
    /// Of the request whose mail went out last.
    pub request_id: RequestId,
    /// What the page's form has to send back besides the link's own values.
    pub nonce: Digest,
    client_secret: Digest,
    tokens: Vec<Mailed>,
    send_attempt: Option<i64>,
    state: State,
    expires: Timestamp,
    owner: Option<Owner>,
    reservation: Option<Reservation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mailed {
    token: Digest,
    expires: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Requested,
    Validated { at: Timestamp },
    Consumed { validated: Timestamp, at: Timestamp },
}

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

    /// Creds sent at once, without a UIA session, have no owner but the request itself: its exact repeat.
    pub fn request(body: &[u8]) -> Self {
        Self(Digest::of(&[b"request ", body].concat()))
    }
}

/// One request's hold on a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reservation {
    holder: RequestId,
    until: Timestamp,
    /// The homeserver has been told, under this reservation, that the address is validated.
    told: bool,
}

/// The lifetimes of `[session]`.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    pub unvalidated: Duration,
    pub validated: Duration,
}

/// What a requestToken means for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A new attempt: mail it, then count it with [`Session::mailed`].
    Mail,
    /// A retry of an attempt that is already counted: same sid, no mail.
    Same,
}

/// Why a link or a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The sid is right, the client_secret is not: to be told apart from an unknown sid by nobody.
    #[error("no session with this sid and client_secret")]
    Secret,
    #[error("the token is not the one that was sent")]
    Token,
    #[error("the session has expired")]
    Expired,
}

/// What became of a right token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    First,
    Again,
}

/// Whether a request may be forwarded with this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    Granted,
    /// Another request holds it.
    Wait,
    Refused,
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
    pub fn begin(
        threepid: Threepid,
        purpose: Purpose,
        client_secret: &ClientSecret,
        request_id: RequestId,
        nonce: Digest,
        expires: Timestamp,
    ) -> Self {
        Self {
            threepid,
            purpose,
            next_link: None,
            request_id,
            nonce,
            client_secret: client_secret.digest(),
            tokens: Vec::new(),
            send_attempt: None,
            state: State::Requested,
            expires,
            owner: None,
            reservation: None,
        }
    }

    /// Until when a store has to keep it.
    pub fn kept_until(&self) -> Timestamp {
        self.expires.after(REMEMBERED)
    }

    /// Whether a further requestToken of its client belongs to it; after validation it begins a new one (P§1.4).
    pub fn takes_requests(&self, now: Timestamp) -> bool {
        self.state == State::Requested && now < self.expires
    }

    /// Only a `send_attempt` above the highest counted one is mailed
    /// ([requestToken](https://spec.matrix.org/v1.1/client-server-api/#post_matrixclientv3registeremailrequesttoken)).
    pub fn asked(&self, send_attempt: i64) -> Asked {
        if self.send_attempt.is_some_and(|counted| send_attempt <= counted) { Asked::Same } else { Asked::Mail }
    }

    /// Notes a token before it is mailed, so that no accepted mail is unknown to the store. Earlier links stay good.
    pub fn add_token(&mut self, token: &Token, next_link: Option<NextLink>, request_id: RequestId, expires: Timestamp) {
        if self.tokens.len() >= MOST_TOKENS {
            self.tokens.remove(0);
        }
        self.tokens.push(Mailed { token: token.digest(), expires });
        self.expires = self.expires.max(expires);
        self.next_link = next_link;
        self.request_id = request_id;
    }

    /// The mail server has taken the mail: the attempt counts.
    pub fn mailed(&mut self, send_attempt: i64) {
        self.send_attempt = Some(self.send_attempt.map_or(send_attempt, |counted| counted.max(send_attempt)));
    }

    /// Whether the link is right, and if so whether it was confirmed already. Changes nothing.
    pub fn look(&self, client_secret: &ClientSecret, token: &Token, now: Timestamp) -> Result<Submitted, Wrong> {
        if self.client_secret != client_secret.digest() {
            return Err(Wrong::Secret);
        }
        let digest = token.digest();
        let mailed = self.tokens.iter().find(|mailed| mailed.token == digest).ok_or(Wrong::Token)?;
        match self.state {
            State::Requested if now >= mailed.expires => Err(Wrong::Expired),
            State::Requested => Ok(Submitted::First),
            State::Validated { .. } | State::Consumed { .. } if now >= self.expires => Err(Wrong::Expired),
            State::Validated { .. } | State::Consumed { .. } => Ok(Submitted::Again),
        }
    }

    /// Validates. A second time is the same success and extends nothing.
    pub fn submit(
        &mut self,
        client_secret: &ClientSecret,
        token: &Token,
        now: Timestamp,
        lifetimes: Lifetimes,
    ) -> Result<Submitted, Wrong> {
        let submitted = self.look(client_secret, token, now)?;
        if submitted == Submitted::First {
            self.state = State::Validated { at: now };
            self.expires = now.after(lifetimes.validated);
        }
        Ok(submitted)
    }

    /// Whether `owner` may have a request with this session forwarded on a path for `purpose`, and if so reserves it:
    /// old homeservers let the last of two simultaneous users have the address (P§2.4).
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
        if self.reservation.as_ref().is_some_and(|held| now < held.until) {
            return Reserved::Wait;
        }
        self.reservation = Some(Reservation { holder: holder.clone(), until: now.after(RESERVATION), told: false });
        Reserved::Granted
    }

    /// The homeserver asks whether the address is validated: since when, or `None`. Only a request that was let through
    /// by [`Session::reserve`] gets a yes, whatever another parser makes of its creds.
    pub fn validated(&self, client_secret: &ClientSecret, now: Timestamp) -> Option<Timestamp> {
        let reserved = self.reservation.as_ref().is_some_and(|held| now < held.until);
        if !reserved || self.client_secret != client_secret.digest() || now >= self.expires {
            return None;
        }
        match self.state {
            State::Requested => None,
            State::Validated { at } | State::Consumed { validated: at, .. } => Some(at),
        }
    }

    /// The homeserver has been told yes under the present reservation.
    pub fn tell(&mut self) {
        if let Some(held) = &mut self.reservation {
            held.told = true;
        }
    }

    /// Whether the homeserver was told yes on behalf of this holder.
    pub fn told(&self, holder: &RequestId) -> bool {
        self.reservation.as_ref().is_some_and(|held| held.told && held.holder == *holder)
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
    use super::*;
    use crate::matrix::{Address, Medium};

    const LIFETIMES: Lifetimes =
        Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000 + seconds * 1000)
    }

    fn secret(text: &str) -> ClientSecret {
        ClientSecret::parse(text).unwrap()
    }

    fn token(n: u8) -> Token {
        Token::from_random([n; 32])
    }

    fn id(n: u8) -> RequestId {
        RequestId::from_random([n; 8])
    }

    fn session() -> Session {
        let address = Address::email("a@example.org").unwrap();
        let threepid = Threepid { medium: Medium::Email, address };
        let nonce = Digest::of(b"nonce");
        Session::begin(threepid, Purpose::Register, &secret("s3cr3t"), id(1), nonce, at(3600))
    }

    fn mailed() -> Session {
        let mut session = session();
        session.add_token(&token(1), None, id(1), at(3600));
        session.mailed(1);
        session
    }

    fn validated() -> Session {
        let mut session = mailed();
        assert_eq!(session.submit(&secret("s3cr3t"), &token(1), at(10), LIFETIMES), Ok(Submitted::First));
        session
    }

    fn reserve(session: &mut Session, holder: u8, owner: &str, seconds: u64) -> Reserved {
        let secret = secret("s3cr3t");
        session.reserve(&id(holder), Purpose::Register, Some(&secret), &Owner::uia_session(owner), at(seconds))
    }

    #[test]
    fn equal_send_attempt_is_a_retry_and_mails_nothing() {
        let mut session = session();
        assert_eq!(session.asked(1), Asked::Mail);
        session.add_token(&token(1), None, id(1), at(3600));
        assert_eq!(session.asked(1), Asked::Mail, "an attempt counts only when the mail server has taken it");
        session.mailed(1);
        assert_eq!(session.asked(1), Asked::Same);
        assert_eq!(session.asked(i64::MIN), Asked::Same);
        assert_eq!(session.asked(2), Asked::Mail);
        session.mailed(i64::MAX);
        session.mailed(2);
        assert_eq!(session.asked(i64::MAX), Asked::Same);
    }

    #[test]
    fn a_later_mail_leaves_the_earlier_link_good_until_that_expires() {
        let mut session = mailed();
        session.add_token(&token(2), None, id(2), at(3700));
        let look = |n, seconds| session.look(&secret("s3cr3t"), &token(n), at(seconds));
        assert_eq!(look(1, 3599), Ok(Submitted::First));
        assert_eq!(look(1, 3600), Err(Wrong::Expired));
        assert_eq!(look(2, 3699), Ok(Submitted::First));
        assert_eq!(look(2, 3700), Err(Wrong::Expired));
    }

    #[test]
    fn more_links_than_the_cap_make_the_oldest_unusable() {
        let mut session = session();
        for n in 0..=10 {
            session.add_token(&token(n), None, id(1), at(3600));
        }
        assert_eq!(session.look(&secret("s3cr3t"), &token(0), at(0)), Err(Wrong::Token));
        assert_eq!(session.look(&secret("s3cr3t"), &token(1), at(0)), Ok(Submitted::First));
    }

    #[test]
    fn s4_2_a_second_submit_is_the_same_success_and_extends_nothing() {
        let mut session = validated();
        let before = session.clone();
        assert_eq!(session.submit(&secret("s3cr3t"), &token(1), at(500), LIFETIMES), Ok(Submitted::Again));
        assert_eq!(session, before);
        let end = 10 + 86_400;
        assert_eq!(session.look(&secret("s3cr3t"), &token(1), at(end - 1)), Ok(Submitted::Again));
        assert_eq!(session.look(&secret("s3cr3t"), &token(1), at(end)), Err(Wrong::Expired));
    }

    #[test]
    fn wrong_secret_and_wrong_token_validate_nothing() {
        let mut session = mailed();
        assert_eq!(session.submit(&secret("other"), &token(1), at(1), LIFETIMES), Err(Wrong::Secret));
        assert_eq!(session.submit(&secret("s3cr3t"), &token(9), at(1), LIFETIMES), Err(Wrong::Token));
        assert_eq!(session, mailed());
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
        assert_eq!(session.validated(&secret("s3cr3t"), at(20)), None);
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        assert_eq!(session.validated(&secret("s3cr3t"), at(20)), Some(at(10)));
        assert_eq!(session.validated(&secret("other"), at(20)), None);
        session.settle(&id(1), Settled::Released, at(21));
        assert_eq!(session.validated(&secret("s3cr3t"), at(21)), None);
    }

    #[test]
    fn one_request_at_a_time_holds_a_session_and_the_next_waits() {
        let mut session = validated();
        assert_eq!(reserve(&mut session, 1, "u", 20), Reserved::Granted);
        assert_eq!(reserve(&mut session, 2, "u", 21), Reserved::Wait);
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
        assert_eq!(session.validated(&secret("s3cr3t"), at(22)), Some(at(10)));
        session.settle(&id(2), Settled::Consumed(Owner::uia_session("u")), at(600));
        assert_eq!(reserve(&mut session, 3, "u", 620), Reserved::Granted, "the repeat counts from the first success");
        session.settle(&id(3), Settled::Released, at(620));
        assert_eq!(reserve(&mut session, 4, "u", 621), Reserved::Refused);
    }

    #[test]
    fn an_expired_session_is_refused_and_takes_no_requests() {
        let mut session = mailed();
        assert!(session.takes_requests(at(3599)));
        assert!(!session.takes_requests(at(3600)));
        assert_eq!(reserve(&mut session, 1, "u", 3600), Reserved::Refused);
        assert!(!validated().takes_requests(at(11)), "after validation the client begins a new session");
    }
}
