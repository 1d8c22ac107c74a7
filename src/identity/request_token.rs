//! The homeserver has said yes: find the note of the request, send the link or the code, answer with the sid.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::allowance::Taken;
use super::{Allowance, Asked};
use crate::config::{Config, Shared};
use crate::delivery::{self, DeliveryError, Mail, Sms};
use crate::in_flight::{self, Note, Verdict};
use crate::matrix::{self, Errcode, Medium, Purpose, Refusal, Sid, Token};
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
    /// The note that a client's request left for this very attempt, and one message taken from all limits on messages.
    pub(super) async fn claim(&self, asked: &Asked) -> Result<(Option<Note>, Allowed), Refusal> {
        let (key, now, config) =
            (in_flight::key(&asked.threepid, &asked.client_secret), self.clock.now(), self.config.load_full());
        let (note, allowed) = tokio::join!(
            in_flight::claim(&self.store, &key, asked.send_attempt, now),
            self.allowance.take(&config, &asked.threepid, &asked.client_secret, now)
        );
        let allowed = Allowed(allowed);
        match note {
            Ok(note) => Ok((note, allowed)),
            Err(error) => {
                self.give_back(&allowed).await;
                Err(error.into())
            }
        }
    }

    /// Nothing is sent after all.
    pub(super) async fn give_back(&self, allowed: &Allowed) {
        if let Allowed(Ok(taken)) = allowed {
            self.allowance.give_back(&self.config.load_full(), taken, self.clock.now()).await;
        }
    }

    pub(super) async fn handle(&self, asked: Asked, note: Note, allowed: Allowed) -> Result<Response<Bytes>, Refusal> {
        let key = in_flight::key(&asked.threepid, &asked.client_secret);
        let config = self.config.load_full();
        let sent = self.send(&config, &asked, &note, allowed).await;
        let verdict = match &sent {
            Ok((sid, _)) => Verdict::Sent { sid: sid.clone() },
            Err(refusal) => Verdict::refused(refusal),
        };
        let now = self.clock.now();
        let counted = async {
            match &sent {
                Ok((sid, To::Count)) => self.count(sid, note.send_attempt).await,
                Ok((_, To::Rest)) | Err(_) => Ok(()),
            }
        };
        let (counted, decided) =
            tokio::join!(counted, in_flight::decide(&self.store, &key, &note.request_id, &verdict, now));
        counted?;
        decided?;
        let errcode = sent.as_ref().err().map(|refusal| refusal.errcode.as_str());
        let sid = sent.as_ref().ok().map(|(sid, _)| sid.as_str());
        tracing::info!(request_id = %note.request_id, sid, errcode, "the homeserver asked for a message");
        let (sid, _) = sent?;
        Ok(matrix::json(
            StatusCode::OK,
            &matrix::requested(&sid, &asked.threepid.address, config.public_base_url.as_str()),
        ))
    }

    /// Finds or begins the session, and sends what was asked for unless it was sent already.
    pub(super) async fn send(
        &self,
        config: &Config,
        asked: &Asked,
        note: &Note,
        allowed: Allowed,
    ) -> Result<(Sid, To), Refusal> {
        let medium = asked.threepid.medium;
        let lifetime = match medium {
            Medium::Email => config.session.unvalidated_lifetime,
            Medium::Msisdn => session::CODE_LIFETIME,
        };
        let (sid, _, token) = match self.keep(config, asked, note, allowed.0.is_ok().then_some(lifetime)).await {
            Ok((sid, session::Asked::Same, _)) => {
                self.give_back(&allowed).await;
                return Ok((sid, To::Rest));
            }
            Ok(kept) => kept,
            Err(refusal) => {
                self.give_back(&allowed).await;
                return Err(refusal);
            }
        };
        let used = allowed.0?;
        let message = Message { config, asked, note, sid: &sid, token: &token, lifetime };
        let sent = match medium {
            Medium::Email => self.mail(&message).await,
            Medium::Msisdn => self.text(&message).await,
        };
        if let Err(refusal) = sent {
            self.allowance.give_back(config, &used, self.clock.now()).await;
            return Err(refusal);
        }
        Ok((sid, To::Count))
    }

    /// The mail server has taken it.
    pub(super) async fn count(&self, sid: &Sid, send_attempt: i64) -> Result<(), Refusal> {
        let count = |session: &mut Session| session.mailed(send_attempt);
        self.store.update_session(sid, self.clock.now(), count).await?;
        Ok(())
    }

    /// The client's session, and a token that is stored in it before it is sent, so that nothing that was taken is unknown
    /// here. No lifetime: it may not be sent, and is not stored.
    async fn keep(
        &self,
        config: &Config,
        asked: &Asked,
        note: &Note,
        lifetime: Option<Duration>,
    ) -> Result<(Sid, session::Asked, Token), Refusal> {
        let now = self.clock.now();
        let token = match asked.threepid.medium {
            Medium::Email => Token::from_random(random::bytes()?),
            Medium::Msisdn => Token::code_from_random(random::bytes()?),
        };
        let client = Client {
            threepid: &asked.threepid,
            purpose: note.purpose,
            client_secret: &asked.client_secret,
            request_id: &note.request_id,
        };
        let add = |session: &mut Session| {
            let attempt = session.asked(note.send_attempt);
            if let (session::Asked::Mail, Some(lifetime)) = (attempt, lifetime) {
                session.add_token(&token, note.next_link.clone(), note.request_id.clone(), now.after(lifetime));
            }
            attempt
        };
        let fresh = || Fresh::draw(now.after(config.session.unvalidated_lifetime));
        // One that nobody announced has no note, and is not alone with its client.
        if note.purpose != Purpose::Delegated
            && let Some((sid, attempt)) =
                self.store.change_or_begin(&client, note.current.as_ref(), fresh()?, now, add).await?
        {
            return Ok((sid, attempt, token));
        }
        let (sid, _) = self.store.find_or_begin(&client, fresh()?, now).await?;
        let attempt = self.store.update_session(&sid, now, add).await?;
        Ok((sid, attempt.ok_or_else(Refusal::internal)?, token))
    }

    async fn mail(&self, message: &Message<'_>) -> Result<(), Refusal> {
        let Message { config, asked, note, sid, token, lifetime } = *message;
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
            lifetime,
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
        let Message { config, asked, note, sid, token: code, lifetime } = *message;
        let wording = self.wording.load_full();
        let text = wording.sms(&SmsFacts {
            language: &wording.language(note.accept_language.as_deref()),
            purpose: note.purpose,
            server_name: &config.server_name,
            code: code.expose(),
            lifetime,
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
}

/// What is to be sent, and for whom.
struct Message<'a> {
    config: &'a Config,
    asked: &'a Asked,
    note: &'a Note,
    sid: &'a Sid,
    token: &'a Token,
    lifetime: Duration,
}

/// Whether one more message may go out, and what was taken for it.
#[derive(Debug)]
pub(super) struct Allowed(Result<Taken, Refusal>);

/// What is still to be done for a request whose sid is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    Count,
    Rest,
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
