//! The homeserver has said yes: find the note of the request, mail the link, answer with the sid.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::Asked;
use crate::config::{Config, Shared};
use crate::delivery::{Delivery, DeliveryError, Mail};
use crate::in_flight::{self, Note, Verdict};
use crate::limit::Limit;
use crate::matrix::{self, Digest, Errcode, Refusal, Sid, Timestamp, Token};
use crate::random;
use crate::serve::Clock;
use crate::session;
use crate::store::{Client, Fresh, Store};
use crate::wording::{MailFacts, Wording};

/// POST `/_matrix/identity/api/v1/validate/email/requestToken`
/// ([specification](https://matrix.org/docs/spec/identity_service/r0.2.1#deprecated-post-matrix-identity-api-v1-validate-email-requesttoken)).
#[derive(Debug)]
pub struct RequestToken {
    pub config: Shared,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub wording: Arc<Wording>,
    pub delivery: Delivery,
    pub per_address: Arc<Limit>,
}

impl RequestToken {
    pub(super) async fn handle(&self, asked: Asked) -> Result<Response<Bytes>, Refusal> {
        let key = in_flight::key(&asked.threepid, &asked.client_secret);
        let note = in_flight::claim(&self.store, &key, self.clock.now()).await?;
        let Some(note) = note.filter(|note| note.send_attempt == asked.send_attempt) else {
            tracing::warn!("the homeserver asked for a mail that no request in flight asked for");
            let error = "No request in flight asks for this";
            return Err(Refusal::new(StatusCode::FORBIDDEN, Errcode::MForbidden, error));
        };
        let config = self.config.load_full();
        let sent = self.send(&config, &asked, &note).await;
        let verdict = match &sent {
            Ok(sid) => Verdict::Sent { sid: sid.clone() },
            Err(refusal) => Verdict::refused(refusal),
        };
        in_flight::decide(&self.store, &key, &verdict, self.clock.now()).await?;
        let errcode = sent.as_ref().err().map(|refusal| refusal.errcode.as_str());
        let sid = sent.as_ref().ok().map(Sid::as_str);
        tracing::info!(request_id = %note.request_id, sid, errcode, "the homeserver asked for a mail");
        let sid = sent?;
        Ok(matrix::json(StatusCode::OK, &serde_json::json!({ "sid": sid.as_str() })))
    }

    async fn send(&self, config: &Config, asked: &Asked, note: &Note) -> Result<Sid, Refusal> {
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
        let rate = config.limits.request_token_per_address;
        let mailbox = Digest::of(asked.threepid.address.mailbox().as_bytes());
        self.per_address.take(mailbox.as_hex(), rate, now).map_err(Refusal::limited)?;
        let mailed = self.mail(config, asked, note, &sid, expires).await;
        if mailed.is_err() {
            self.per_address.give_back(mailbox.as_hex(), rate, self.clock.now());
        }
        mailed?;
        let count = |session: &mut session::Session| session.mailed(note.send_attempt);
        self.store.update_session(&sid, self.clock.now(), count).await?;
        Ok(sid)
    }

    /// The token is stored before it is mailed, so that no mail that was taken is unknown here.
    async fn mail(
        &self,
        config: &Config,
        asked: &Asked,
        note: &Note,
        sid: &Sid,
        expires: Timestamp,
    ) -> Result<(), Refusal> {
        let now = self.clock.now();
        let token = Token::from_random(random::bytes()?);
        let add = |session: &mut session::Session| {
            session.add_token(&token, note.next_link.clone(), note.request_id.clone(), expires);
        };
        self.store.update_session(sid, now, add).await?;
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token.expose())
            .append_pair("client_secret", asked.client_secret.expose())
            .append_pair("sid", sid.as_str())
            .finish();
        let link = format!("{}{}?{query}", config.public_base_url.as_str(), note.purpose.link_path());
        let language = self.wording.language(note.accept_language.as_deref());
        let text = self.wording.mail(&MailFacts {
            language: &language,
            purpose: note.purpose,
            server_name: &config.server_name,
            link: &link,
            lifetime: config.session.unvalidated_lifetime,
        });
        let text = text.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, request_id = %note.request_id, "a mail cannot be written");
            Refusal::internal()
        })?;
        let to = asked.threepid.address.clone();
        let mail = Mail { to, text, sid: sid.clone(), request_id: note.request_id.clone(), now };
        self.delivery.mail(&mail).await.map_err(|error| undelivered(&error))
    }
}

/// What the client is told; which stage failed, and why, is in the log.
fn undelivered(error: &DeliveryError) -> Refusal {
    if error.refused_recipient() {
        return Refusal::bad_request(Errcode::MEmailSendError, "The mail server does not take mail for this address");
    }
    let error = "The mail could not be sent; try again later";
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Errcode::MEmailSendError, error)
}
