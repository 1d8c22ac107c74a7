//! `submit_url`: the code that came by SMS, as JSON or as a form.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body;
use crate::config::Shared;
use crate::limit::{Limit, client_key};
use crate::matrix::{self, Errcode, Refusal};
use crate::serve::{self, Clock, Stamp};
use crate::store::Store;
use crate::submission::{self, Submission};
use crate::telemetry::Subject;

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

    /// The answer has `success` beside the errcode, and 400 with it: some clients read the one, some the other.
    async fn submit(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let config = self.config.load_full();
        let stamp = request.extensions().get::<Stamp>().copied().ok_or_else(Refusal::internal)?;
        let client_ip = serve::client_ip(request.headers(), stamp.peer, &config.trusted_proxies);
        let rate = config.limits.submit_token_per_ip;
        self.per_ip.take(&client_key(client_ip), rate, stamp.now).await?;
        body::refuse_encoded(request.headers())?;
        let subject = Subject::of(request.extensions());
        let body = body::read(request.into_body(), submission::BODY_LIMIT).await?;
        let submission = Submission::parse(&body, &subject)?;
        submission.submit(&self.store, &config.session, self.clock.now(), |_| true).await?;
        Ok(matrix::json(StatusCode::OK, &serde_json::json!({ "success": true })))
    }
}
