//! What a homeserver writes to the identity door: Synapse as JSON, Dendrite as a form.

use crate::body::Fields;
use crate::matrix::{Address, ClientSecret, Errcode, Medium, Refusal, Threepid};

/// The fields of the homeserver's requestToken that are used; the rest is in the note, when there is one.
pub struct Asked {
    pub threepid: Threepid,
    pub client_secret: ClientSecret,
    pub send_attempt: i64,
    /// As it was written; believed only where there is no note.
    pub next_link: Option<String>,
}

impl Asked {
    pub fn parse(body: &[u8], medium: Medium) -> Result<Self, Refusal> {
        let invalid = |error: &'static str| Refusal::bad_request(Errcode::MInvalidParam, error);
        let fields = Fields::parse(body).ok_or_else(|| invalid("The body is neither a JSON object nor a form"))?;
        let client_secret = fields.get("client_secret").and_then(|written| ClientSecret::parse(&written));
        let address = match medium {
            Medium::Email => fields.get("email").and_then(|written| Address::email(&written).ok()),
            Medium::Msisdn => {
                let number = fields.get("country").zip(fields.get("phone_number"));
                number.and_then(|(country, number)| Address::msisdn(&country, &number).ok())
            }
        };
        let send_attempt = fields.get("send_attempt").and_then(|written| written.parse().ok());
        Ok(Self {
            threepid: Threepid {
                medium,
                address: address.ok_or_else(|| invalid("email, or country and phone_number"))?,
            },
            client_secret: client_secret.ok_or_else(|| invalid("client_secret"))?,
            send_attempt: send_attempt.ok_or_else(|| invalid("send_attempt"))?,
            next_link: fields.get("next_link").filter(|written| !written.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synapse_writes_json_and_dendrite_a_form_and_both_mean_the_same() {
        for body in [
            r#"{"client_secret":"s3cr3t","email":"a@example.org","next_link":"https://a.b/c","send_attempt":2}"#,
            "client_secret=s3cr3t&email=a%40example.org&send_attempt=2",
        ] {
            let asked = Asked::parse(body.as_bytes(), Medium::Email).unwrap();
            assert_eq!(asked.threepid.address.expose(), "a@example.org");
            assert_eq!(asked.client_secret.expose(), "s3cr3t");
            assert_eq!(asked.send_attempt, 2);
        }
        for body in
            ["", "{", "[]", "email=a%40b.c&email=a%40b.c&client_secret=s&send_attempt=1", r#"{"email":"a@b.c"}"#]
        {
            assert!(Asked::parse(body.as_bytes(), Medium::Email).is_err(), "{body}");
        }
    }
}
