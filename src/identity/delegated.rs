//! A homeserver that has addresses verified by itself (`identity.accept_unannounced`): no client's request came by the
//! client door, so that these requests are counted and logged here.

use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::request_token::{Allowed, To};
use super::{Asked, Identity};
use crate::body;
use crate::config::{Config, SmsTransport};
use crate::in_flight::Note;
use crate::matrix::{self, Medium, NextLink, Purpose, Refusal, Sid};
use crate::session::Session;
use crate::submission::{self, Submission};
use crate::telemetry::{Answered, Outcome, RequestId, Subject};

pub(super) const SUBMIT_TOKEN: &str = "delegated.submit_token";

impl Identity {
    /// POST `/_matrix/identity/api/v1/validate/{email,msisdn}/requestToken`, which no request in flight asks for.
    pub(super) async fn request_delegated(
        &self,
        asked: Asked,
        allowed: Allowed,
        subject: Subject,
    ) -> Result<Response<Bytes>, Refusal> {
        let began = Instant::now();
        let request_id = self.ids.draw();
        let medium = asked.threepid.medium;
        subject.note_medium(medium);
        let sent = self.send_delegated(&asked, request_id.clone(), allowed).await;
        if let Ok(sid) = &sent {
            subject.note_sid(sid);
        }
        let base = self.config.load_full();
        let requested = |sid: &Sid| matrix::requested(sid, &asked.threepid.address, base.public_base_url.as_str());
        let answered = sent.map(|sid| matrix::json(StatusCode::OK, &requested(&sid)));
        self.note(Purpose::Delegated.route(medium), &answered, &subject, &request_id, began);
        answered
    }

    /// The homeserver tells neither purpose nor language, and it alone knows who asks.
    async fn send_delegated(&self, asked: &Asked, request_id: RequestId, allowed: Allowed) -> Result<Sid, Refusal> {
        let config = self.config.load_full();
        let next_link = match wanted(asked, &config) {
            Ok(next_link) => next_link,
            Err(refusal) => {
                self.request_token.give_back(&allowed).await;
                return Err(refusal);
            }
        };
        let note = Note::new(request_id, Purpose::Delegated, asked.send_attempt, next_link, None, self.clock.now());
        let (sid, to) = self.request_token.send(&config, asked, &note, allowed).await?;
        if to == To::Count {
            self.request_token.count(&sid, note.send_attempt).await?;
        }
        Ok(sid)
    }

    /// POST `/_matrix/identity/api/v1/validate/msisdn/submitToken`
    /// ([specification](https://matrix.org/docs/spec/identity_service/r0.2.1#deprecated-post-matrix-identity-api-v1-validate-msisdn-submittoken)):
    /// Synapse has its clients submit codes to itself, and sends them on.
    ///
    /// 200 with `success: false` for a code that will not do: of any other status Synapse tells the client only that the
    /// identity server could not be contacted.
    pub(super) async fn submit_delegated(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let began = Instant::now();
        let request_id = self.ids.draw();
        let subject = Subject::default();
        subject.note_trace(request.headers());
        subject.note_medium(Medium::Msisdn);
        let submitted = self.submit(request, &subject).await;
        let answered = submitted.map(|()| matrix::json(StatusCode::OK, &serde_json::json!({ "success": true })));
        self.note(SUBMIT_TOKEN, &answered, &subject, &request_id, began);
        answered.or_else(|refusal| {
            if refusal.status != StatusCode::BAD_REQUEST {
                return Err(refusal);
            }
            let mut response = refusal.unsuccessful().into_response();
            *response.status_mut() = StatusCode::OK;
            Ok(response)
        })
    }

    async fn submit(&self, request: Request<Incoming>, subject: &Subject) -> Result<(), Refusal> {
        body::refuse_encoded(request.headers())?;
        let body = body::read(request.into_body(), submission::BODY_LIMIT).await?;
        let delegated = |session: &Session| session.purpose == Purpose::Delegated;
        let rules = self.config.load().session.clone();
        Submission::parse(&body, subject)?.submit(&self.store, &rules, self.clock.now(), delegated).await
    }

    /// The request's one line, and its place in the metrics.
    fn note(
        &self,
        route: &'static str,
        answered: &Result<Response<Bytes>, Refusal>,
        subject: &Subject,
        request_id: &RequestId,
        began: Instant,
    ) {
        let (outcome, status, errcode) = match answered {
            Ok(response) => (Outcome::Relayed, response.status(), None),
            Err(refusal) => (Outcome::Refused, refusal.status, Some(refusal.errcode)),
        };
        let took = began.elapsed();
        let answered = Answered { route, outcome, status, errcode, is_ours: true, subject, request_id, took };
        self.metrics.answered(&answered, "the homeserver asked by itself");
    }
}

/// Where the link leads to in the end, of a request that can be done.
fn wanted(asked: &Asked, config: &Config) -> Result<Option<NextLink>, Refusal> {
    let medium = asked.threepid.medium;
    if medium == Medium::Msisdn && matches!(config.sms.transport, SmsTransport::None) {
        return Err(Refusal::medium());
    }
    let Some(written) = asked.next_link.as_ref().filter(|_| medium == Medium::Email) else { return Ok(None) };
    NextLink::parse(written, &config.session.next_link_hosts).map(Some).ok_or_else(Refusal::next_link)
}
