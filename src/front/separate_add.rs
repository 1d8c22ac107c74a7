//! MSC2290 on a homeserver that has only the old `/account/3pid`: add after user-interactive auth, never bind.

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use serde_json::value::RawValue;

use crate::body::{self, Object};
use crate::front::forward::{Body, Forward};
use crate::front::threepid_creds::{Completion, ThreepidCreds};
use crate::matrix::{self, Errcode, Refusal, Sid};

const ANSWER_LIMIT: usize = 1024 * 1024;
/// Deletes no device, and asks the same of the user as MSC2290 wants for an addition.
const GUARDED: &str = "delete_devices";

/// The endpoints that MSC2290 made of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separate {
    Add,
    Bind,
    Unbind,
}

/// POST `/_matrix/client/:version/account/3pid/{add,bind,unbind}`
/// ([add](https://spec.matrix.org/v1.1/client-server-api/#post_matrixclientv3account3pidadd),
/// [MSC2290](https://github.com/matrix-org/matrix-spec-proposals/pull/2290)).
#[derive(Debug, Clone)]
pub struct SeparateAdd {
    forward: Forward,
    threepid_creds: ThreepidCreds,
}

impl SeparateAdd {
    pub fn new(forward: Forward, threepid_creds: ThreepidCreds) -> Self {
        Self { forward, threepid_creds }
    }

    pub async fn handle(&self, request: Request<Incoming>, endpoint: Separate) -> Result<Response<Body>, Refusal> {
        match endpoint {
            Separate::Add => self.add(request).await,
            Separate::Bind => Err(Refusal::bad_request(
                Errcode::MUnrecognized,
                "Addresses verified here are bound to no identity server",
            )),
            Separate::Unbind => {
                let answer = serde_json::json!({ "id_server_unbind_result": "no-support" });
                Ok(matrix::json(StatusCode::OK, &answer).map(Body::from))
            }
        }
    }

    /// Old homeservers ask for no password on `/account/3pid`. Where one does elsewhere, its user has to give it there
    /// first; a stolen access token alone must not put the thief's address on the account.
    async fn add(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        body::refuse_encoded(&head.headers)?;
        let bytes = body::read(body, body::CREDS_LIMIT).await?;
        let object = Object::parse(&bytes)?;
        let sid = object.string("sid").filter(|sid| Sid::is_ours(sid));
        let (Some(sid), Some(client_secret)) = (sid, object.string("client_secret")) else {
            return self.threepid_creds.complete(head, bytes, Completion::Account3pid).await;
        };
        if let Some(answer) = self.guard(&head, object.get("auth")).await? {
            return Ok(answer.map(Body::from));
        }
        let creds = serde_json::json!({ "three_pid_creds": { "sid": sid, "client_secret": client_secret } });
        let head = old(&head, "account/3pid")?;
        self.threepid_creds.complete(head, Bytes::from(creds.to_string()), Completion::Account3pid).await
    }

    /// The homeserver's answer to a user who has not given the password yet; `None`: has, or is not asked for one here.
    async fn guard(&self, head: &Parts, auth: Option<&RawValue>) -> Result<Option<Response<Bytes>>, Refusal> {
        let head = old(head, GUARDED)?;
        let unguarded = Object::parse(b"{\"devices\":[]}")?;
        if let Some(auth) = auth {
            let mut guarded = unguarded.clone();
            guarded.set("auth", auth.to_owned());
            self.threepid_creds.refuse_ours(&guarded)?;
            let answer = self.forward.ask(&head, guarded.to_bytes(), ANSWER_LIMIT).await?;
            if answer.status() == StatusCode::OK {
                return Ok(None);
            }
            // Not to be believed with `auth`: Synapse 1.3.1 answers with the 404 of an identity server that `auth` names.
            if !is_unrecognized(&answer) {
                return Ok(Some(answer));
            }
        }
        let asked = self.forward.ask(&head, unguarded.to_bytes(), ANSWER_LIMIT).await?;
        Ok(Some(asked).filter(|asked| asked.status() != StatusCode::OK && !is_unrecognized(asked)))
    }
}

/// The same request to an endpoint that old homeservers have. They have it under `r0`; clients of today come by `v3`, and
/// under `v2_alpha` Synapse 0.34 has `account/3pid` but nothing that asks for a password.
fn old(head: &Parts, endpoint: &str) -> Result<Parts, Refusal> {
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut head = head.clone();
    head.uri =
        Uri::try_from(format!("/_matrix/client/r0/{endpoint}{query}")).map_err(|_unwritable| Refusal::internal())?;
    Ok(head)
}

/// A homeserver without that endpoint guards nothing by it.
fn is_unrecognized(answer: &Response<Bytes>) -> bool {
    let errcode = Object::parse(answer.body()).ok().and_then(|object| object.string("errcode"));
    answer.status() == StatusCode::NOT_FOUND || errcode.as_deref() == Some("M_UNRECOGNIZED")
}
