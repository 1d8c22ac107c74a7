//! The fields of a requestToken, parsed once, and the body of them that the homeserver gets.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::body::Object;
use crate::matrix::{Address, ClientSecret, Errcode, Medium, NextLink, Refusal, Threepid};

/// What a client asked for.
pub struct Asked {
    pub threepid: Threepid,
    pub client_secret: ClientSecret,
    pub send_attempt: i64,
    pub next_link: Option<NextLink>,
    /// The fields that name the address, as the homeserver gets them.
    named_by: Vec<(&'static str, String)>,
}

crate::matrix::hidden!(Asked);

impl Asked {
    pub fn parse(object: &Object<'_>, medium: Medium, next_link_hosts: &[String]) -> Result<Self, Refusal> {
        let required: &[&str] = match medium {
            Medium::Email => &["client_secret", "email", "send_attempt"],
            Medium::Msisdn => &["client_secret", "country", "phone_number", "send_attempt"],
        };
        let missing: Vec<_> = required.iter().filter(|name| object.get(name).is_none()).collect();
        if !missing.is_empty() {
            let names = missing.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
            return Err(Refusal::bad_request(Errcode::MMissingParam, format!("Missing params: [{names}]")));
        }
        let client_secret = object
            .string("client_secret")
            .and_then(|written| ClientSecret::parse(&written))
            .ok_or_else(|| invalid("client_secret must be 1 to 255 of 0-9 a-z A-Z . = _ - :".into()))?;
        let send_attempt = object
            .get("send_attempt")
            .and_then(|value| value.get().parse::<i64>().ok())
            .ok_or_else(|| invalid("send_attempt must be an integer of 64 bits".into()))?;
        let (address, named_by) = match medium {
            Medium::Email => email(object)?,
            Medium::Msisdn => msisdn(object)?,
        };
        let next_link = next_link(object, next_link_hosts)?;
        Ok(Self { threepid: Threepid { medium, address }, client_secret, send_attempt, next_link, named_by })
    }

    /// The fields every old homeserver knows and no other: Synapse 1.0 to 1.3.1 answers an unknown one with 500.
    pub fn to_body(&self, id_server: &str) -> Bytes {
        let mut fields = Map::new();
        fields.insert("id_server".into(), id_server.into());
        fields.insert("client_secret".into(), self.client_secret.expose().into());
        fields.extend(self.named_by.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
        fields.insert("send_attempt".into(), self.send_attempt.into());
        if let Some(next_link) = &self.next_link {
            fields.insert("next_link".into(), next_link.as_str().into());
        }
        Bytes::from(Value::Object(fields).to_string())
    }
}

type Named = (Address, Vec<(&'static str, String)>);

/// The homeserver gets the canonical address: it compares with regard to case.
fn email(object: &Object<'_>) -> Result<Named, Refusal> {
    let written = object.string("email").ok_or_else(|| invalid("email must be a string".into()))?;
    let address = Address::email(&written).map_err(|error| invalid(format!("email: {error}")))?;
    let canonical = address.expose().to_owned();
    Ok((address, vec![("email", canonical)]))
}

/// The homeserver gets country and number as they were written, and reads them by the same rules as we do.
fn msisdn(object: &Object<'_>) -> Result<Named, Refusal> {
    let text = |name: &str| object.string(name).ok_or_else(|| invalid(format!("{name} must be a string")));
    let (country, number) = (text("country")?, text("phone_number")?);
    let address = Address::msisdn(&country, &number).map_err(|error| invalid(format!("phone_number: {error}")))?;
    Ok((address, vec![("country", country), ("phone_number", number)]))
}

fn invalid(error: String) -> Refusal {
    Refusal::bad_request(Errcode::MInvalidParam, error)
}

/// Absent, null and empty mean none, as in the homeservers.
fn next_link(object: &Object<'_>, hosts: &[String]) -> Result<Option<NextLink>, Refusal> {
    match object.get("next_link") {
        None => Ok(None),
        Some(value) if value.get() == "null" => Ok(None),
        Some(_) => {
            let written = object.string("next_link").ok_or_else(Refusal::next_link)?;
            if written.is_empty() {
                return Ok(None);
            }
            NextLink::parse(&written, hosts).map(Some).ok_or_else(Refusal::next_link)
        }
    }
}
