//! `submit_url`: the code that came by SMS, as JSON or as a form.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body::{self, Fields};
use crate::config::Shared;
use crate::limit::{Limit, client_key};
use crate::matrix::{self, ClientSecret, Errcode, Medium, Refusal, Sid, Token};
use crate::serve::{self, Clock, Stamp};
use crate::session::{Lifetimes, Session, Wrong};
use crate::store::Store;
use crate::telemetry::Subject;

const BODY_LIMIT: usize = 8 * 1024;

/// POST `/_matrix/client/unstable/threepid_shim/msisdn/submit_token`
/// ([submitToken](https://spec.matrix.org/v1.18/identity-service-api/#post_matrixidentityv2validatemsisdnsubmittoken),
/// which `submit_url` of a [requestToken answer](https://spec.matrix.org/v1.1/client-server-api/#post_matrixclientv3registermsisdnrequesttoken)
/// speaks).
#[derive(Debug, Clone)]
pub struct SubmitToken {
    pub config: Shared,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub per_ip: Arc<Limit>,
}

impl SubmitToken {
    pub async fn handle(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        match *request.method() {
            Method::POST => self.submit(request).await.map_err(Refusal::unsuccessful),
            // Web clients of another origin ask first.
            Method::OPTIONS => Ok(matrix::json(StatusCode::OK, &serde_json::json!({}))),
            _ => {
                let error = "This endpoint knows POST";
                Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Errcode::MUnrecognized, error))
            }
        }
    }

    /// The answer has `success` beside the errcode, and 400 with it: some clients read the one, some the other (P§1.6).
    async fn submit(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let config = self.config.load_full();
        let stamp = request.extensions().get::<Stamp>().copied().ok_or_else(Refusal::internal)?;
        let client_ip = serve::client_ip(request.headers(), stamp.peer, &config.trusted_proxies);
        let rate = config.limits.submit_token_per_ip;
        self.per_ip.take(&client_key(client_ip), rate, stamp.now).map_err(Refusal::limited)?;
        body::refuse_encoded(request.headers())?;
        let subject = Subject::of(request.extensions());
        let body = body::read(request.into_body(), BODY_LIMIT).await?;
        let invalid = || Refusal::bad_request(Errcode::MInvalidParam, "The body must be a JSON object or a form");
        let fields = Fields::parse(&body).ok_or_else(invalid)?;
        let wanted = ["sid", "client_secret", "token"];
        if let Some(missing) = wanted.into_iter().find(|name| fields.get(name).is_none()) {
            return Err(Refusal::bad_request(Errcode::MMissingParam, format!("Missing params: ['{missing}']")));
        }
        let sid = fields.get("sid").as_deref().and_then(Sid::parse).ok_or_else(no_session)?;
        subject.note_sid(&sid);
        let client_secret =
            fields.get("client_secret").as_deref().and_then(ClientSecret::parse).ok_or_else(no_session)?;
        let token = fields.get("token").as_deref().map(str::trim).and_then(Token::parse).ok_or_else(wrong_code)?;
        let lifetimes = Lifetimes {
            unvalidated: config.session.unvalidated_lifetime,
            validated: config.session.validated_lifetime,
        };
        let now = self.clock.now();
        let submit = |session: &mut Session| match session.threepid.medium {
            Medium::Msisdn => session.submit(&client_secret, &token, now, lifetimes),
            // A mailed link is confirmed on its page, by whoever holds the mail.
            Medium::Email => Err(Wrong::Secret),
        };
        match self.store.update_session(&sid, now, submit).await? {
            Some(Ok(_)) => Ok(matrix::json(StatusCode::OK, &serde_json::json!({ "success": true }))),
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
