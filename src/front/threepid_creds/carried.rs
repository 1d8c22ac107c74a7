//! The sessions of ours that a request carries: the one its creds name, and those its UIA session was completed with.

use super::creds::Creds;
use crate::matrix::{ClientSecret, Refusal, Sid};

/// Sessions that one UIA session is completed with at most: an e-mail's and a phone's, and those of second thoughts.
const MOST: usize = 8;

#[derive(Debug)]
pub(super) struct Carried {
    pub(super) sid: Sid,
    /// Of its creds; `None` when only the UIA session says it.
    pub(super) client_secret: Option<ClientSecret>,
    /// The homeserver has it among the UIA session's completed stages, and may go by that without asking again.
    pub(super) is_remembered: bool,
}

/// All of them, in the one order in which every request reserves them, so that no two wait for each other.
#[derive(Debug)]
pub(super) struct AllCarried(Vec<Carried>);

impl AllCarried {
    pub(super) fn new(in_creds: Option<Carried>, remembered: &[Sid]) -> Result<Self, Refusal> {
        let mut all = Self(in_creds.into_iter().collect());
        all.remember(remembered)?;
        Ok(all)
    }

    /// What the UIA session was completed with. Whether all of it was known.
    pub(super) fn remember(&mut self, remembered: &[Sid]) -> Result<bool, Refusal> {
        let before = self.0.len();
        for sid in remembered {
            match self.0.iter_mut().find(|carried| carried.sid == *sid) {
                Some(carried) => carried.is_remembered = true,
                None => self.0.push(Carried { sid: sid.clone(), client_secret: None, is_remembered: true }),
            }
        }
        if self.0.len() > MOST {
            return Err(Refusal::creds());
        }
        self.0.sort_by(|one, other| one.sid.as_str().cmp(other.sid.as_str()));
        Ok(self.0.len() == before)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Carried> {
        self.0.iter()
    }

    /// The one that the request is about: its creds', else any.
    pub(super) fn main(&self) -> Option<&Carried> {
        self.0.iter().find(|carried| carried.client_secret.is_some()).or(self.0.first())
    }

    pub(super) fn is_one(&self) -> bool {
        self.0.len() == 1
    }
}

/// The session of ours that creds carry, when one of them does. Creds of a body that disagree are one request for two
/// sessions, and homeservers would take different ones. A sid that is no sid, for us to vouch for, is one that reads as
/// ours once the homeserver has put it into its question: Synapse unpacks a list, Dendrite escapes nothing. A
/// name of the server to ask that is written in another case is none to Synapse, which takes the other one then.
pub(super) fn ours(all: &[Creds], us: &str) -> Result<Option<Carried>, Refusal> {
    let is_ours = |creds: &Creds| creds.sid.as_deref().is_some_and(Sid::is_ours);
    let names_us = |creds: &Creds| creds.id_servers().any(|name| name == us);
    if all.iter().any(|creds| {
        creds.packed_sid || (creds.odd_sid && names_us(creds)) || (!is_ours(creds) && creds.names_two_servers())
    }) {
        return Err(Refusal::creds());
    }
    let Some(first) = all.iter().find(|creds| is_ours(creds)) else {
        return Ok(None);
    };
    let disagree = all.iter().any(|creds| creds.sid != first.sid || creds.client_secret != first.client_secret);
    let sid = first.sid.as_deref().and_then(Sid::parse);
    let client_secret = first.client_secret.as_deref().and_then(ClientSecret::parse);
    match (sid, client_secret) {
        (Some(sid), Some(client_secret)) if !disagree => {
            Ok(Some(Carried { sid, client_secret: Some(client_secret), is_remembered: false }))
        }
        (Some(_), Some(_)) | (None, _) | (_, None) => Err(Refusal::creds()),
    }
}
