//! What a validation session may do next: requested → validated → consumed, or expired. No I/O, no clock, no randomness.

mod reservation;
mod shown;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::matrix::{ClientSecret, Digest, Medium, NextLink, Purpose, Threepid, Timestamp, Token};
use crate::telemetry::RequestId;
use reservation::Reservation;
pub use reservation::{Owner, Reserved, Settled, Told};

/// How long an expired session is remembered, so that its link says "expired" rather than "unknown".
const REMEMBERED: Duration = Duration::from_secs(86_400);
/// Links of one session that are good at the same time; a further mail makes the oldest unusable.
const MOST_TOKENS: usize = 10;
/// How long a code is good.
pub const CODE_LIFETIME: Duration = Duration::from_secs(600);
/// Wrong tries that a code of six digits survives: one guess in 200,000 gets in.
const MOST_WRONG_CODES: u8 = 5;

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
    /// Counted for codes only; nobody guesses a link.
    wrong_codes: u8,
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

/// Where a change has brought a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    Validated,
    Consumed,
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
            wrong_codes: 0,
            state: State::Requested,
            expires,
            owner: None,
            reservation: None,
        }
    }

    /// Where it has come since it was like `before`.
    pub fn reached_since(&self, before: &Self) -> Option<Reached> {
        match (before.state, self.state) {
            (State::Requested, State::Validated { .. }) => Some(Reached::Validated),
            (State::Requested | State::Validated { .. }, State::Consumed { .. }) => Some(Reached::Consumed),
            (State::Requested | State::Validated { .. }, State::Requested)
            | (State::Validated { .. }, State::Validated { .. })
            | (State::Consumed { .. }, _) => None,
        }
    }

    /// Until when a store has to keep it.
    pub fn kept_until(&self) -> Timestamp {
        self.expires.after(REMEMBERED)
    }

    /// Whether a further requestToken of its client belongs to it; after validation it begins a new one.
    pub fn takes_requests(&self, now: Timestamp) -> bool {
        self.state == State::Requested && now < self.expires && !self.is_dead()
    }

    /// Only a `send_attempt` above the highest counted one is mailed
    /// ([requestToken](https://spec.matrix.org/v1.1/client-server-api/#post_matrixclientv3registeremailrequesttoken)).
    pub fn asked(&self, send_attempt: i64) -> Asked {
        if self.send_attempt.is_some_and(|counted| send_attempt <= counted) { Asked::Same } else { Asked::Mail }
    }

    /// Notes a token before it is sent, so that nothing that was sent is unknown to the store. Earlier links stay good;
    /// earlier codes do not, since every good one makes a guess likelier.
    pub fn add_token(&mut self, token: &Token, next_link: Option<NextLink>, request_id: RequestId, expires: Timestamp) {
        match self.threepid.medium {
            Medium::Msisdn => self.tokens.clear(),
            Medium::Email if self.tokens.len() >= MOST_TOKENS => drop(self.tokens.remove(0)),
            Medium::Email => {}
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

    /// Whether the link is right, and if so whether it was confirmed already. Changes nothing, and so tells nothing of a
    /// code: whoever tries one has to be counted.
    pub fn look(&self, client_secret: &ClientSecret, token: &Token, now: Timestamp) -> Result<Submitted, Wrong> {
        match self.threepid.medium {
            Medium::Email => self.compare(client_secret, token, now),
            Medium::Msisdn => Err(Wrong::Token),
        }
    }

    fn compare(&self, client_secret: &ClientSecret, token: &Token, now: Timestamp) -> Result<Submitted, Wrong> {
        if self.client_secret != client_secret.digest() {
            return Err(Wrong::Secret);
        }
        if self.is_dead() {
            return Err(Wrong::Expired);
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

    /// Whether too many wrong codes were tried.
    fn is_dead(&self) -> bool {
        self.wrong_codes >= MOST_WRONG_CODES
    }

    /// Validates. A second time is the same success and extends nothing. A wrong code counts.
    pub fn submit(
        &mut self,
        client_secret: &ClientSecret,
        token: &Token,
        now: Timestamp,
        lifetimes: Lifetimes,
    ) -> Result<Submitted, Wrong> {
        let compared = self.compare(client_secret, token, now);
        if compared == Err(Wrong::Token) && self.threepid.medium == Medium::Msisdn && self.state == State::Requested {
            self.wrong_codes += 1;
        }
        let submitted = compared?;
        if submitted == Submitted::First {
            self.state = State::Validated { at: now };
            self.expires = now.after(lifetimes.validated);
        }
        Ok(submitted)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::matrix::Address;

    const LIFETIMES: Lifetimes =
        Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };

    pub(crate) fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000 + seconds * 1000)
    }

    pub(crate) fn secret(text: &str) -> ClientSecret {
        ClientSecret::parse(text).unwrap()
    }

    pub(crate) fn token(n: u8) -> Token {
        Token::from_random([n; 32])
    }

    pub(crate) fn id(n: u8) -> RequestId {
        RequestId::from_random([n; 8])
    }

    fn session() -> Session {
        let address = Address::email("a@example.org").unwrap();
        let threepid = Threepid { medium: Medium::Email, address };
        let nonce = Digest::of(b"nonce");
        Session::begin(threepid, Purpose::Register, &secret("s3cr3t"), id(1), nonce, at(3600))
    }

    pub(crate) fn mailed() -> Session {
        let mut session = session();
        session.add_token(&token(1), None, id(1), at(3600));
        session.mailed(1);
        session
    }

    pub(crate) fn validated() -> Session {
        let mut session = mailed();
        assert_eq!(session.submit(&secret("s3cr3t"), &token(1), at(10), LIFETIMES), Ok(Submitted::First));
        session
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

    /// S§4.4. What a store keeps, and whoever reads it, cannot be used: only digests, which are compared in constant time.
    #[test]
    fn a_session_as_it_is_kept_holds_neither_token_nor_client_secret() {
        let session = mailed();
        let kept = serde_json::to_string(&session).unwrap();
        assert!(
            kept.contains(secret("s3cr3t").digest().as_hex()) && kept.contains(token(1).digest().as_hex()),
            "{kept}"
        );
        for private in ["s3cr3t", token(1).expose()] {
            assert!(!kept.contains(private) && !format!("{session:?}").contains(private), "{kept} {session:?}");
        }
        assert_eq!(serde_json::from_str::<Session>(&kept).unwrap(), session);
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
    fn s4_5_a_look_tells_nothing_of_a_code_and_a_submit_counts_it() {
        let address = Address::msisdn("GB", "07400 123456").unwrap();
        let mut session = mailed();
        session.threepid = Threepid { medium: Medium::Msisdn, address };
        for n in [1, 2] {
            assert_eq!(session.look(&secret("s3cr3t"), &token(n), at(1)), Err(Wrong::Token));
        }
        for _ in 0..MOST_WRONG_CODES {
            assert_eq!(session.submit(&secret("s3cr3t"), &token(2), at(1), LIFETIMES), Err(Wrong::Token));
        }
        assert_eq!(session.submit(&secret("s3cr3t"), &token(1), at(1), LIFETIMES), Err(Wrong::Expired));
    }

    #[test]
    fn wrong_secret_and_wrong_token_validate_nothing() {
        let mut session = mailed();
        assert_eq!(session.submit(&secret("other"), &token(1), at(1), LIFETIMES), Err(Wrong::Secret));
        assert_eq!(session.submit(&secret("s3cr3t"), &token(9), at(1), LIFETIMES), Err(Wrong::Token));
        assert_eq!(session, mailed());
    }

    /// S§4.3.
    #[test]
    fn an_expired_session_takes_no_requests() {
        let session = mailed();
        assert!(session.takes_requests(at(3599)));
        assert!(!session.takes_requests(at(3600)));
        assert!(!validated().takes_requests(at(11)), "after validation the client begins a new session");
    }
}
