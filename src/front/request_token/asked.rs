//! The fields of an e-mail requestToken, parsed once, and the body of them that the homeserver gets.

use bytes::Bytes;

use crate::body::Object;
use crate::matrix::{Address, ClientSecret, Errcode, Medium, NextLink, Refusal, Threepid};

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) threepid: Threepid,
    pub(super) client_secret: ClientSecret,
    pub(super) send_attempt: i64,
    pub(super) next_link: Option<NextLink>,
}

impl Asked {
    pub(super) fn parse(object: &Object<'_>, next_link_hosts: &[String]) -> Result<Self, Refusal> {
        let required = ["client_secret", "email", "send_attempt"];
        let missing: Vec<_> = required.into_iter().filter(|name| object.get(name).is_none()).collect();
        if !missing.is_empty() {
            let names = missing.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
            return Err(Refusal::bad_request(Errcode::MMissingParam, format!("Missing params: [{names}]")));
        }
        let invalid = |error: String| Refusal::bad_request(Errcode::MInvalidParam, error);
        let client_secret = object
            .string("client_secret")
            .and_then(|written| ClientSecret::parse(&written))
            .ok_or_else(|| invalid("client_secret must be 1 to 255 of 0-9 a-z A-Z . = _ - :".into()))?;
        let written = object.string("email").ok_or_else(|| invalid("email must be a string".into()))?;
        let address = Address::email(&written).map_err(|error| invalid(format!("email: {error}")))?;
        let send_attempt = object
            .get("send_attempt")
            .and_then(|value| value.get().parse::<i64>().ok())
            .ok_or_else(|| invalid("send_attempt must be an integer of 64 bits".into()))?;
        let threepid = Threepid { medium: Medium::Email, address };
        Ok(Self { threepid, client_secret, send_attempt, next_link: next_link(object, next_link_hosts)? })
    }

    /// The fields every old homeserver knows and no other: Synapse 1.0 to 1.3.1 answers an unknown one with 500 (P§0.5).
    pub(super) fn to_body(&self, id_server: &str) -> Bytes {
        let mut fields = serde_json::json!({
            "id_server": id_server,
            "client_secret": self.client_secret.expose(),
            "email": self.threepid.address.expose(),
            "send_attempt": self.send_attempt,
        });
        if let (Some(fields), Some(next_link)) = (fields.as_object_mut(), &self.next_link) {
            fields.insert("next_link".into(), next_link.as_str().into());
        }
        Bytes::from(fields.to_string())
    }
}

/// Absent, null and empty mean none, as in the homeservers.
fn next_link(object: &Object<'_>, hosts: &[String]) -> Result<Option<NextLink>, Refusal> {
    let invalid = || {
        let error = "next_link must be an http or https URL of a host that this server allows";
        Refusal::bad_request(Errcode::MInvalidParam, error)
    };
    match object.get("next_link") {
        None => Ok(None),
        Some(value) if value.get() == "null" => Ok(None),
        Some(_) => {
            let written = object.string("next_link").ok_or_else(invalid)?;
            if written.is_empty() {
                return Ok(None);
            }
            NextLink::parse(&written, hosts).map(Some).ok_or_else(invalid)
        }
    }
}
