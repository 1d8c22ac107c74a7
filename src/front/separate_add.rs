//! MSC2290 on a homeserver that has only the old `/account/3pid`: add after user-interactive auth, never bind.

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;

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
            return self.forward.relay(&head, bytes).await;
        };
        let mut guarded = Object::parse(b"{\"devices\":[]}")?;
        if let Some(auth) = object.get("auth") {
            guarded.set("auth", auth.to_owned());
        }
        self.threepid_creds.refuse_ours(&guarded)?;
        let answer = self.forward.ask(&sibling(&head, GUARDED)?, guarded.to_bytes(), ANSWER_LIMIT).await?;
        if answer.status() != StatusCode::OK && !is_unrecognized(&answer) {
            return Ok(answer.map(Body::from));
        }
        let creds = serde_json::json!({ "three_pid_creds": { "sid": sid, "client_secret": client_secret } });
        let head = sibling(&head, "account/3pid")?;
        self.threepid_creds.complete(head, Bytes::from(creds.to_string()), Completion::Account3pid).await
    }
}

/// The same request to another endpoint of the same version.
fn sibling(head: &Parts, endpoint: &str) -> Result<Parts, Refusal> {
    let path = head.uri.path().strip_suffix("account/3pid/add").ok_or_else(Refusal::internal)?;
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut head = head.clone();
    head.uri = Uri::try_from(format!("{path}{endpoint}{query}")).map_err(|_unwritable| Refusal::internal())?;
    Ok(head)
}

/// A homeserver without that endpoint guards nothing by it.
fn is_unrecognized(answer: &Response<Bytes>) -> bool {
    let errcode = Object::parse(answer.body()).ok().and_then(|object| object.string("errcode"));
    answer.status() == StatusCode::NOT_FOUND || errcode.as_deref() == Some("M_UNRECOGNIZED")
}
