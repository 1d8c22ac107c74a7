//! Door 2, for the homeserver only: requestToken, getValidated3pid, bind, unbind; everything else is not there.

mod allowance;
#[doc(hidden)] // Open to tests/fuzz, no room's to name.
pub mod asked;
mod delegated;
mod request_token;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::body::{self, Fields, Form};
use crate::config::Shared;
use crate::matrix::{self, ClientSecret, Errcode, Medium, Purpose, Refusal, Sid};
use crate::serve::{Clock, Detached, Door, Stamp, is_trusted};
use crate::session::Session;
use crate::store::{Edit, Effect, Key, Store};
use crate::telemetry::{Metrics, Neighbour, RequestIds, Seldom, Subject};
pub use allowance::Allowance;
use asked::Asked;
pub use request_token::RequestToken;

/// What is counted here; what a client's request asks for is counted at the client door.
pub const ROUTES: [&str; 3] = ["delegated.email", "delegated.msisdn", delegated::SUBMIT_TOKEN];

/// The largest body a homeserver sends here.
const BODY_LIMIT: usize = 64 * 1024;

/// The subset of the [identity service API v1](https://matrix.org/docs/spec/identity_service/r0.2.1) that old
/// homeservers call to have an address verified.
#[derive(Debug, Clone)]
pub struct Identity {
    pub config: Shared,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub metrics: Metrics,
    pub ids: Arc<RequestIds>,
    pub request_token: Arc<RequestToken>,
    pub detached: Detached,
    pub strangers: Arc<Seldom>,
}

impl Door for Identity {
    type Body = http_body_util::Full<Bytes>;

    async fn answer(&self, request: Request<Incoming>) -> Response<Self::Body> {
        self.handle(request).await.unwrap_or_else(Refusal::into_response).map(Self::Body::new)
    }
}

impl Identity {
    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let peer = request.extensions().get::<Stamp>().map(|stamp| stamp.peer);
        if !peer.is_some_and(|peer| is_trusted(peer, &self.config.load().identity.allowed_peers)) {
            if let Some(times) = self.strangers.happened() {
                tracing::warn!(
                    ?peer,
                    times,
                    "a peer that identity.allowed_peers does not list came to the identity door"
                );
            }
            self.metrics.recent.stranger();
            let error = "Only the homeserver may come here";
            return Err(Refusal::new(StatusCode::FORBIDDEN, Errcode::MForbidden, error));
        }
        let path = request.uri().path().strip_prefix("/_matrix/identity/api/v1/");
        match (request.method(), path) {
            (&Method::POST, Some(path @ ("validate/email/requestToken" | "validate/msisdn/requestToken"))) => {
                let medium = if path.contains("email") { Medium::Email } else { Medium::Msisdn };
                let subject = Subject::default();
                subject.note_trace(request.headers());
                let asked = Asked::parse(&read(request).await?, medium)?;
                let parts = self.clone();
                // Who asked may hang up, as a homeserver does after a minute or when it is restarted; what has begun is to
                // be told, counted and given back all the same.
                let asking = self.detached.spawn(async move { parts.request(asked, subject).await });
                asking.await.map_err(|_panicked| Refusal::internal())?
            }
            (&Method::POST, Some("validate/msisdn/submitToken")) if self.accepts_unannounced() => {
                self.submit_delegated(request).await
            }
            (&Method::GET, Some("3pid/getValidated3pid")) => self.get_validated_3pid(request.uri().query()).await,
            (&Method::POST, Some("3pid/bind")) => self.bind(request).await,
            // `3pid/unbind` among them: Synapse takes a 404 for "no-support", which is the truth; a 401, 403 or 500 would
            // keep its user from ever removing the address.
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, Errcode::MUnrecognized, "Unrecognized request")),
        }
    }

    /// A requestToken is a client's, announced at the client door, or the homeserver's own.
    async fn request(&self, asked: Asked, subject: Subject) -> Result<Response<Bytes>, Refusal> {
        let (note, allowed) = self.request_token.claim(&asked).await?;
        if note.is_some() || self.accepts_unannounced() {
            self.metrics.recent.worked(Neighbour::Trust, None);
        }
        if let Some(note) = note {
            return self.request_token.handle(asked, note, allowed).await;
        }
        if self.accepts_unannounced() {
            return self.request_delegated(asked, allowed, subject).await;
        }
        self.request_token.give_back(&allowed).await;
        tracing::warn!("the homeserver asked for a message that no request in flight asked for");
        let error = "No request in flight asks for this";
        Err(Refusal::new(StatusCode::FORBIDDEN, Errcode::MForbidden, error))
    }

    fn accepts_unannounced(&self) -> bool {
        self.config.load().identity.accept_unannounced
    }

    /// GET `/_matrix/identity/api/v1/3pid/getValidated3pid`
    ///
    /// 200 with an errcode while there is nothing to tell: old Synapse hands any other status to the client, which then
    /// stops polling, and takes `{}` for a validated session if it is Dendrite.
    async fn get_validated_3pid(&self, query: Option<&str>) -> Result<Response<Bytes>, Refusal> {
        let invalid = || Refusal::bad_request(Errcode::MInvalidParam, "sid and client_secret are wanted, each once");
        let form = Form::parse(query.unwrap_or_default().as_bytes()).ok_or_else(invalid)?;
        let sid = form.get("sid").and_then(Sid::parse);
        let client_secret = form.get("client_secret").and_then(ClientSecret::parse);
        let (Some(sid), Some(client_secret)) = (sid, client_secret) else {
            return Ok(errcode(Errcode::MNoValidSession, "No session with this sid and client_secret"));
        };
        match self.tell(&sid, &client_secret, self.accepts_unannounced()).await? {
            Some((session, validated_at)) => Ok(matrix::json(
                StatusCode::OK,
                &serde_json::json!({
                    "medium": session.threepid.medium.as_str(),
                    "address": session.threepid.address.expose(),
                    "validated_at": validated_at,
                }),
            )),
            None => Ok(errcode(Errcode::MSessionNotValidated, "This validation session has not yet been completed")),
        }
    }

    /// POST `/_matrix/identity/api/v1/3pid/bind`
    ///
    /// Publishes nothing. Answered as old Synapse needs it, or it answers 500 after it made the account.
    async fn bind(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let body = read(request).await?;
        let refused = || Refusal::bad_request(Errcode::MSessionNotValidated, "No validated session to bind");
        let fields = Fields::parse(&body).ok_or_else(refused)?;
        let sid = fields.get("sid").as_deref().and_then(Sid::parse).ok_or_else(refused)?;
        let client_secret = fields.get("client_secret").as_deref().and_then(ClientSecret::parse).ok_or_else(refused)?;
        let (session, validated_at) = self.tell(&sid, &client_secret, false).await?.ok_or_else(refused)?;
        let binding = serde_json::json!({
            "medium": session.threepid.medium.as_str(),
            "address": session.threepid.address.expose(),
            "mxid": fields.get("mxid").unwrap_or_default(),
            "not_before": validated_at,
            "not_after": validated_at,
            "ts": validated_at,
            "signatures": {},
        });
        Ok(matrix::json(StatusCode::OK, &binding))
    }

    /// The session and when it was validated, if the homeserver may be told so. It asks whenever a client does, so that the
    /// store is asked once.
    async fn tell(
        &self,
        sid: &Sid,
        client_secret: &ClientSecret,
        delegates: bool,
    ) -> Result<Option<(Session, u64)>, Refusal> {
        let now = self.clock.now();
        let edits = Session::telling(client_secret).map(|(when, from, to)| Edit {
            when: when.to_vec(),
            from: from.to_owned(),
            effect: Effect::Replace(to.to_owned()),
        });
        let marked = self.store.mark(&Key::session(sid), now, &edits, Session::kept_until).await?;
        let Some((mut session, _)) = marked else { return Ok(None) };
        if let Some(at) = session.tell(client_secret, now) {
            return Ok(Some((session, at.as_millis())));
        }
        if !delegates || session.purpose != Purpose::Delegated {
            return Ok(None);
        }
        let tell = |session: &mut Session| {
            session.tell_delegating(client_secret, now).map(|at| (session.clone(), at.as_millis()))
        };
        Ok(self.store.update_session(sid, now, tell).await?.flatten())
    }
}

async fn read(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    body::read(request.into_body(), BODY_LIMIT).await
}

fn errcode(errcode: Errcode, error: &str) -> Response<Bytes> {
    matrix::json(StatusCode::OK, &serde_json::json!({ "errcode": errcode.as_str(), "error": error }))
}
