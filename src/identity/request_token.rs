//! The homeserver has said yes: find the note of the request, send the link or the code, answer with the sid.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::{Allowance, Asked};
use crate::config::{Config, Shared};
use crate::delivery::{self, DeliveryError, Mail, Sms};
use crate::in_flight::{self, Note, Verdict};
use crate::matrix::{self, Errcode, Medium, Refusal, Sid, Timestamp, Token};
use crate::random;
use crate::serve::Clock;
use crate::session::{self, Session};
use crate::store::{Client, Fresh, Store};
use crate::wording::{self, MailFacts, SmsFacts, WordingError};

/// POST `/_matrix/identity/api/v1/validate/{email,msisdn}/requestToken`
/// ([specification](https://matrix.org/docs/spec/identity_service/r0.2.1#deprecated-post-matrix-identity-api-v1-validate-email-requesttoken)).
#[derive(Debug)]
pub struct RequestToken {
    pub config: Shared,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub wording: wording::Shared,
    pub delivery: delivery::Shared,
    pub allowance: Arc<Allowance>,
}

impl RequestToken {
    /// The note that a client's request left for this very attempt.
    pub(super) async fn claim(&self, asked: &Asked) -> Result<Option<Note>, Refusal> {
        let key = in_flight::key(&asked.threepid, &asked.client_secret);
        let note = in_flight::claim(&self.store, &key, self.clock.now()).await?;
        Ok(note.filter(|note| note.send_attempt == asked.send_attempt))
    }

    pub(super) async fn handle(&self, asked: Asked, note: Note) -> Result<Response<Bytes>, Refusal> {
        let key = in_flight::key(&asked.threepid, &asked.client_secret);
        let config = self.config.load_full();
        let sent = self.send(&config, &asked, &note).await;
        let verdict = match &sent {
            Ok(sid) => Verdict::Sent { sid: sid.clone() },
            Err(refusal) => Verdict::refused(refusal),
        };
        in_flight::decide(&self.store, &key, &verdict, self.clock.now()).await?;
        let errcode = sent.as_ref().err().map(|refusal| refusal.errcode.as_str());
        let sid = sent.as_ref().ok().map(Sid::as_str);
        tracing::info!(request_id = %note.request_id, sid, errcode, "the homeserver asked for a message");
        let sid = sent?;
        Ok(matrix::json(
            StatusCode::OK,
            &matrix::requested(&sid, &asked.threepid.address, config.public_base_url.as_str()),
        ))
    }

    pub(super) async fn send(&self, config: &Config, asked: &Asked, note: &Note) -> Result<Sid, Refusal> {
        let now = self.clock.now();
        let expires = now.after(config.session.unvalidated_lifetime);
        let client = Client {
            threepid: &asked.threepid,
            purpose: note.purpose,
            client_secret: &asked.client_secret,
            request_id: &note.request_id,
        };
        let (sid, session) = self.store.find_or_begin(&client, Fresh::draw(expires)?, now).await?;
        if session.asked(note.send_attempt) == session::Asked::Same {
            return Ok(sid);
        }
        let taken = self.allowance.take(config, &asked.threepid, now).await?;
        let message = Message { config, asked, note, sid: &sid, expires };
        let sent = match asked.threepid.medium {
            Medium::Email => self.mail(&message).await,
            Medium::Msisdn => self.text(&message).await,
        };
        if let Err(refusal) = sent {
            self.allowance.give_back(config, &taken, self.clock.now()).await;
            return Err(refusal);
        }
        let count = |session: &mut Session| session.mailed(note.send_attempt);
        self.store.update_session(&sid, self.clock.now(), count).await?;
        Ok(sid)
    }

    async fn mail(&self, message: &Message<'_>) -> Result<(), Refusal> {
        let Message { config, asked, note, sid, expires } = *message;
        let token = Token::from_random(random::bytes()?);
        self.keep(message, &token, expires).await?;
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token.expose())
            .append_pair("client_secret", asked.client_secret.expose())
            .append_pair("sid", sid.as_str())
            .finish();
        let link = format!("{}{}?{query}", config.public_base_url.as_str(), note.purpose.link_path());
        let wording = self.wording.load_full();
        let text = wording.mail(&MailFacts {
            language: &wording.language(note.accept_language.as_deref()),
            purpose: note.purpose,
            server_name: &config.server_name,
            link: &link,
            lifetime: config.session.unvalidated_lifetime,
        });
        let text = text.map_err(|error| unwritten(&error, note))?;
        let to = asked.threepid.address.clone();
        let (sid, request_id, now) = (sid.clone(), note.request_id.clone(), self.clock.now());
        let delivery = self.delivery.load_full();
        delivery
            .mail(&Mail { to, text, sid, request_id, now })
            .await
            .map_err(|error| undelivered(&error, Medium::Email))
    }

    async fn text(&self, message: &Message<'_>) -> Result<(), Refusal> {
        let Message { config, asked, note, sid, .. } = *message;
        let code = Token::code_from_random(random::bytes()?);
        self.keep(message, &code, self.clock.now().after(session::CODE_LIFETIME)).await?;
        let wording = self.wording.load_full();
        let text = wording.sms(&SmsFacts {
            language: &wording.language(note.accept_language.as_deref()),
            purpose: note.purpose,
            server_name: &config.server_name,
            code: code.expose(),
            lifetime: session::CODE_LIFETIME,
        });
        let sms = Sms {
            to: asked.threepid.address.clone(),
            text: text.map_err(|error| unwritten(&error, note))?,
            code: code.expose().to_owned(),
            sid: sid.clone(),
            request_id: note.request_id.clone(),
            attempt: note.send_attempt,
        };
        self.delivery.load_full().sms(&sms).await.map_err(|error| undelivered(&error, Medium::Msisdn))
    }

    /// The token is stored before it is sent, so that nothing that was taken is unknown here.
    async fn keep(&self, message: &Message<'_>, token: &Token, expires: Timestamp) -> Result<(), Refusal> {
        let note = message.note;
        let add = |session: &mut Session| {
            session.add_token(token, note.next_link.clone(), note.request_id.clone(), expires);
        };
        self.store.update_session(message.sid, self.clock.now(), add).await?;
        Ok(())
    }
}

/// What is to be sent, and for whom.
struct Message<'a> {
    config: &'a Config,
    asked: &'a Asked,
    note: &'a Note,
    sid: &'a Sid,
    expires: Timestamp,
}

fn unwritten(error: &WordingError, note: &Note) -> Refusal {
    tracing::error!(error = error as &dyn std::error::Error, request_id = %note.request_id, "a message cannot be written");
    Refusal::internal()
}

/// What the client is told; which stage failed, and why, is in the log.
fn undelivered(error: &DeliveryError, medium: Medium) -> Refusal {
    let (errcode, refused) = match medium {
        Medium::Email => (Errcode::MEmailSendError, "The mail server does not take mail for this address"),
        Medium::Msisdn => (Errcode::MSendError, "Messages cannot be sent to this number"),
    };
    if error.refused_recipient() {
        return Refusal::bad_request(errcode, refused);
    }
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, errcode, "The message could not be sent; try again later")
}
