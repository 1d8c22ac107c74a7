//! A session as its operator may see it: how far it has come, and nothing of whose it is.

use std::fmt;

use super::{Session, State};
use crate::matrix::Timestamp;

/// Displayed as one line each, name and value.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    session: &'a Session,
    now: Timestamp,
}

impl Session {
    pub fn shown(&self, now: Timestamp) -> Shown<'_> {
        Shown { session: self, now }
    }
}

impl Shown<'_> {
    fn state(&self) -> &'static str {
        match self.session.state {
            State::Requested if self.session.is_dead() => "dead: too many wrong codes",
            _ if self.now >= self.session.expires => "expired",
            State::Requested => "requested: its link or code has not been used",
            State::Validated { .. } => "validated: the client has not completed its request",
            State::Consumed { .. } => "consumed: it has served its purpose",
        }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, now } = *self;
        writeln!(f, "state        {}", self.state())?;
        writeln!(f, "purpose      {}", session.purpose.as_str())?;
        writeln!(f, "medium       {}", session.threepid.medium.as_str())?;
        match session.send_attempt {
            Some(attempt) => writeln!(f, "delivered    yes, last for send_attempt {attempt}")?,
            None => writeln!(f, "delivered    no: nothing was handed over")?,
        }
        let good = session.tokens.iter().filter(|mailed| now < mailed.expires).count();
        writeln!(f, "good links   {good} of {} sent", session.tokens.len())?;
        writeln!(f, "wrong codes  {}", session.wrong_codes)?;
        if now < session.expires {
            writeln!(f, "expires in   {} s", now.until(session.expires).as_secs())?;
        } else {
            writeln!(f, "expired      {} s ago", session.expires.until(now).as_secs())?;
        }
        let held = session.reservation.is_some();
        writeln!(f, "in use       {}", if held { "a request with it is on its way" } else { "no" })?;
        writeln!(f, "bound        {}", if session.owner.is_some() { "to the client that used it" } else { "no" })?;
        writeln!(f, "request_id   {}", session.request_id)
    }
}

#[cfg(test)]
mod tests {
    use crate::session::tests::{at, mailed, validated};

    #[test]
    fn a_session_shows_how_far_it_has_come_and_not_whose_it_is() {
        let shown = mailed().shown(at(600)).to_string();
        for line in [
            "state        requested: its link or code has not been used\n",
            "purpose      register\n",
            "medium       email\n",
            "delivered    yes, last for send_attempt 1\n",
            "good links   1 of 1 sent\n",
            "expires in   3000 s\n",
            "bound        no\n",
        ] {
            assert!(shown.contains(line), "{line}{shown}");
        }
        assert!(!shown.contains("example") && !shown.contains("s3cr3t"), "{shown}");
        assert!(mailed().shown(at(3700)).to_string().contains("state        expired\n"));
        assert!(mailed().shown(at(3700)).to_string().contains("expired      100 s ago\n"));
        assert!(validated().shown(at(20)).to_string().contains("state        validated: "));
    }
}
