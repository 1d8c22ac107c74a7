//! A code that somebody submits: read from a body, tried against its session, and what is said of it.

use crate::body::Fields;
use crate::config::SessionRules;
use crate::matrix::{ClientSecret, Errcode, Medium, Refusal, Sid, Timestamp, Token};
use crate::session::{Lifetimes, Session, Wrong};
use crate::store::Store;
use crate::telemetry::Subject;

/// The largest body: three short fields.
pub const BODY_LIMIT: usize = 8 * 1024;

/// What a [submitToken](https://spec.matrix.org/v1.18/identity-service-api/#post_matrixidentityv2validatemsisdnsubmittoken)
/// says.
#[derive(Debug)]
pub struct Submission {
    sid: Sid,
    client_secret: ClientSecret,
    token: Token,
}

impl Submission {
    /// From JSON or a form. The sid is noted for the request's line as soon as it is known.
    pub fn parse(body: &[u8], subject: &Subject) -> Result<Self, Refusal> {
        let invalid = || Refusal::bad_request(Errcode::MInvalidParam, "The body must be a JSON object or a form");
        let fields = Fields::parse(body).ok_or_else(invalid)?;
        let wanted = ["sid", "client_secret", "token"];
        if let Some(missing) = wanted.into_iter().find(|name| fields.get(name).is_none()) {
            return Err(Refusal::bad_request(Errcode::MMissingParam, format!("Missing params: ['{missing}']")));
        }
        let sid = fields.get("sid").as_deref().and_then(Sid::parse).ok_or_else(no_session)?;
        subject.note_sid(&sid);
        let client_secret =
            fields.get("client_secret").as_deref().and_then(ClientSecret::parse).ok_or_else(no_session)?;
        let token = fields.get("token").as_deref().map(str::trim).and_then(Token::parse).ok_or_else(wrong_code)?;
        Ok(Self { sid, client_secret, token })
    }

    /// Validates the session when the code is right and `takes` says that it is one for this door. A mailed link is
    /// confirmed on its page, by whoever holds the mail.
    pub async fn submit(
        &self,
        store: &Store,
        rules: &SessionRules,
        now: Timestamp,
        takes: impl Fn(&Session) -> bool,
    ) -> Result<(), Refusal> {
        let lifetimes = Lifetimes { unvalidated: rules.unvalidated_lifetime, validated: rules.validated_lifetime };
        let submit = |session: &mut Session| match session.threepid.medium {
            Medium::Msisdn if takes(session) => session.submit(&self.client_secret, &self.token, now, lifetimes),
            Medium::Msisdn | Medium::Email => Err(Wrong::Secret),
        };
        match store.update_session(&self.sid, now, submit).await? {
            Some(Ok(_)) => Ok(()),
            Some(Err(Wrong::Token)) => Err(wrong_code()),
            Some(Err(Wrong::Expired)) => {
                let error = "The code has expired or was tried too often; ask for another";
                Err(Refusal::bad_request(Errcode::MSessionExpired, error))
            }
            Some(Err(Wrong::Secret)) | None => Err(no_session()),
        }
    }
}

fn wrong_code() -> Refusal {
    Refusal::bad_request(Errcode::MTokenIncorrect, "This is not the code that was sent")
}

/// The same for an unknown sid and a wrong client_secret.
fn no_session() -> Refusal {
    Refusal::bad_request(Errcode::MNoValidSession, "No session with this sid and client_secret")
}
