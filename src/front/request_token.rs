//! requestToken without `id_server`: add ours, let the homeserver decide, answer with what the identity door did.

#[doc(hidden)] // Open to tests/fuzz, no room's to name.
pub mod asked;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::body::{self, Object};
use crate::config::{Config, NamedIdServer, RouteMode, Shared};
use crate::front::forward::{Body, Forward};
use crate::in_flight::{self, Note};
use crate::limit::{Limit, client_key};
use crate::matrix::{self, Errcode, Medium, Purpose, Refusal, Sid};
use crate::serve::{self, Clock, Detached, Stamp};
use crate::store::{Change, Client, ForeignSid, Fresh, Key, Store};
use crate::telemetry::{Neighbour, Outcome, Recent, RequestId, Subject};
use asked::Asked;

/// The largest answer to a requestToken that is read.
const ANSWER_LIMIT: usize = 64 * 1024;
/// How long it is remembered which identity server a relayed sid came from; a UIA session of old Synapse lives as long.
const FOREIGN_SID_LIFETIME: Duration = Duration::from_secs(48 * 3600);
/// Between two tries to take a note away, while the store cannot be told; and how many, until it has lapsed by itself.
const CONCLUDE_AGAIN: Duration = Duration::from_millis(500);
const CONCLUDE_TRIES: u32 = 240;
/// With `hide_existence` every answer leaves this long after its request.
const HIDDEN_ANSWER_AFTER: Duration = Duration::from_secs(1);

/// POST `/_matrix/client/:version/{register,account/password,account/3pid}/:medium/requestToken`
/// ([specification](https://spec.matrix.org/v1.1/client-server-api/#post_matrixclientv3registeremailrequesttoken),
/// [MSC2263](https://github.com/matrix-org/matrix-spec-proposals/pull/2263)).
#[derive(Debug, Clone)]
pub struct RequestToken {
    config: Shared,
    store: Arc<Store>,
    forward: Forward,
    per_ip: Arc<Limit>,
    clock: Clock,
    recent: Recent,
    detached: Detached,
}

impl RequestToken {
    pub fn new(
        config: Shared,
        store: Arc<Store>,
        forward: Forward,
        per_ip: Arc<Limit>,
        clock: Clock,
        recent: Recent,
        detached: Detached,
    ) -> Self {
        Self { config, store, forward, per_ip, clock, recent, detached }
    }

    pub async fn handle(
        &self,
        request: Request<Incoming>,
        config: Arc<Config>,
        purpose: Purpose,
        medium: Medium,
    ) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        body::refuse_encoded(&head.headers)?;
        let bytes = body::read(body, body::REQUEST_TOKEN_LIMIT).await?;
        let object = Object::parse(&bytes)?;
        if let Some(name) = foreign_id_server(&object, &config)? {
            return self.relay_foreign(head, &bytes, object, name).await;
        }
        if config.routes.request_token(purpose, medium) != RouteMode::Handle {
            return Err(Refusal::medium());
        }
        let asked = Asked::parse(&object, medium, &config.session.next_link_hosts)?;
        let stamp = stamp(&head)?;
        let client_ip = serve::client_ip(&head.headers, stamp.peer, &config.trusted_proxies);
        let rate = config.limits.request_token_per_ip;
        let request_id = request_id(&head)?;
        let client = client(&asked, purpose, &request_id);
        let key = client_key(client_ip);
        let (taken, current) =
            tokio::join!(self.per_ip.take(&key, rate, stamp.now), self.store.current(&client, stamp.now));
        taken?;
        let current = current?;
        let exchange = Exchange { parts: self.clone(), config, head, asked, purpose, current };
        if exchange.config.session.hide_existence { exchange.run_hidden().await } else { exchange.run_detached().await }
    }

    /// `observe`: the request goes on as it came, and what `handle` would have done is counted.
    pub async fn observe(&self, request: Request<Incoming>, medium: Medium) -> Result<Response<Body>, Refusal> {
        let refused = body::refuse_encoded(request.headers()).is_err()
            || body::is_long(request.headers(), body::REQUEST_TOKEN_LIMIT);
        if refused || !body::is_short(request.headers(), body::REQUEST_TOKEN_LIMIT) {
            let mut response = self.forward.handle(request).await?;
            response.extensions_mut().insert(if refused { Outcome::WouldRefuse } else { Outcome::Relayed });
            return Ok(response);
        }
        let (head, body) = request.into_parts();
        let bytes = body::read(body, body::REQUEST_TOKEN_LIMIT).await?;
        let config = self.config.load_full();
        let would = || -> Result<Outcome, Refusal> {
            let object = Object::parse(&bytes)?;
            if foreign_id_server(&object, &config)?.is_some() {
                return Ok(Outcome::WouldForward);
            }
            Asked::parse(&object, medium, &config.session.next_link_hosts)?;
            Ok(Outcome::WouldHandle)
        };
        let outcome = would().unwrap_or(Outcome::WouldRefuse);
        let mut response = self.forward.relay(&head, bytes.clone()).await?;
        response.extensions_mut().insert(outcome);
        Ok(response)
    }

    /// Another identity server is named: the homeserver's business, but for `id_access_token`, which Synapse 1.0 to
    /// 1.3.1 answers with 500. Where its sid came from is remembered for creds that forget to say it.
    async fn relay_foreign(
        &self,
        head: Parts,
        bytes: &Bytes,
        mut object: Object<'_>,
        id_server: String,
    ) -> Result<Response<Body>, Refusal> {
        let client_secret = object.string("client_secret").unwrap_or_default();
        let sent = if object.remove("id_access_token") { object.to_bytes() } else { bytes.clone() };
        let answer = self.forward.ask(&head, sent, ANSWER_LIMIT).await?;
        let sid = Object::parse(answer.body()).ok().and_then(|object| object.string("sid"));
        if let Some(sid) = sid.filter(|sid| answer.status() == StatusCode::OK && !Sid::is_ours(sid)) {
            let now = self.clock.now();
            let put = |_| {
                let record = ForeignSid { id_server: id_server.clone() };
                (Change::Put { record, until: now.after(FOREIGN_SID_LIFETIME) }, ())
            };
            self.store.update(&Key::foreign_sid(&sid).of_client(&client_secret), now, put).await?;
        }
        Ok(answer.map(Body::from))
    }
}

/// The identity server a request names, when it is neither absent (absent, null, empty, not a string) nor ours, and the
/// operator lets it through.
fn foreign_id_server(object: &Object<'_>, config: &Config) -> Result<Option<String>, Refusal> {
    let Some(name) = object.string("id_server").filter(|name| !name.is_empty() && *name != config.identity.name) else {
        return Ok(None);
    };
    let untrusted = || {
        let error = "This identity server is not trusted here; leave id_server out";
        Err(Refusal::bad_request(Errcode::MServerNotTrusted, error))
    };
    let trusted = &config.routes.trusted_id_servers;
    match config.routes.named_id_server {
        NamedIdServer::Replace => Ok(None),
        NamedIdServer::Reject => untrusted(),
        NamedIdServer::Forward if !trusted.is_empty() && !trusted.contains(&name) => untrusted(),
        NamedIdServer::Forward => Ok(Some(name)),
    }
}

fn stamp(head: &Parts) -> Result<Stamp, Refusal> {
    head.extensions.get::<Stamp>().copied().ok_or_else(Refusal::internal)
}

/// One request of ours on its way.
struct Exchange {
    parts: RequestToken,
    config: Arc<Config>,
    head: Parts,
    asked: Asked,
    purpose: Purpose,
    /// The client's session so far.
    current: Option<Sid>,
}

/// What came of it.
enum Came {
    /// The identity door was asked and decided.
    Decided(Result<Sid, Refusal>, Option<Response<Bytes>>),
    /// The homeserver answered by itself, or could not be reached.
    Homeserver(Result<Response<Bytes>, Refusal>),
}

impl Exchange {
    /// Runs to its end even when the client goes: the homeserver does, too.
    async fn run_detached(self) -> Result<Response<Body>, Refusal> {
        let subject = Subject::of(&self.head.extensions);
        let answer_with = self.answer();
        let detached = self.parts.detached.clone();
        let outcome = detached.spawn(self.run()).await.map_err(|_panicked| Refusal::internal())??;
        match outcome {
            // What the identity door did counts, whatever the homeserver made of it: Dendrite turns its errors into 500.
            Came::Decided(verdict, answer) => {
                let sid = verdict?;
                subject.note_sid(&sid);
                let ok = answer.filter(|answer| answer.status() == StatusCode::OK);
                Ok(ok.unwrap_or_else(|| answer_with(&sid)).map(Body::from))
            }
            Came::Homeserver(answer) => answer.map(|answer| answer.map(Body::from)),
        }
    }

    /// `hide_existence`: the answer leaves at its time, with a sid, whatever the homeserver says of the address; the
    /// mail goes out behind it. What tells nothing of the address is still told.
    async fn run_hidden(mut self) -> Result<Response<Body>, Refusal> {
        let leave = tokio::time::Instant::now() + HIDDEN_ANSWER_AFTER;
        let sid = self.begin_session().await?;
        self.current = Some(sid.clone());
        Subject::of(&self.head.extensions).note_sid(&sid);
        let answer_with = self.answer();
        let detached = self.parts.detached.clone();
        let early = tokio::time::timeout_at(leave, detached.spawn(self.run())).await;
        tokio::time::sleep_until(leave).await;
        match early {
            Ok(joined) => match joined.map_err(|_panicked| Refusal::internal())?? {
                Came::Homeserver(Err(refusal)) => Err(refusal),
                Came::Homeserver(Ok(answer)) if !tells_existence(&answer) => Ok(answer.map(Body::from)),
                Came::Homeserver(Ok(_)) | Came::Decided(..) => Ok(answer_with(&sid).map(Body::from)),
            },
            Err(_still_mailing) => Ok(answer_with(&sid).map(Body::from)),
        }
    }

    async fn run(self) -> Result<Came, Refusal> {
        let Self { parts, head, .. } = &self;
        let key = in_flight::key(&self.asked.threepid, &self.asked.client_secret);
        let note = self.note()?;
        if let Err(error) = in_flight::announce(&parts.store, &key, &note, || parts.clock.now()).await {
            // It may be there all the same: an answer that came too late is no answer.
            conclude_later(parts.clone(), key, note.request_id);
            return Err(error.into());
        }
        let answer = parts.forward.ask(head, self.asked.to_body(&self.config.identity.name), ANSWER_LIMIT).await;
        let concluded = in_flight::conclude(&parts.store, &key, &note.request_id, || parts.clock.now()).await;
        if concluded.is_err() {
            conclude_later(parts.clone(), key, note.request_id.clone());
        }
        let verdict = concluded?;
        self.note_trust(verdict.is_some(), &answer);
        Ok(match verdict {
            Some(verdict) => Came::Decided(verdict.into_result(), answer.ok()),
            None => Came::Homeserver(answer),
        })
    }

    /// Whether the homeserver called back, at this shim or another; or failed in a way that shows that it cannot. What it
    /// decides by itself shows neither.
    fn note_trust(&self, called_back: bool, answer: &Result<Response<Bytes>, Refusal>) {
        let recent = &self.parts.recent;
        let Ok(answer) = answer else { return };
        if called_back {
            recent.worked(Neighbour::Trust, None);
        } else if answer.status().is_server_error() {
            recent.failed(Neighbour::Trust, "no_callback");
        } else if errcode_of(answer).is_some_and(|errcode| errcode == "M_SERVER_NOT_TRUSTED") {
            recent.failed(Neighbour::Trust, "not_trusted");
        }
    }

    /// The session whose sid is answered before anything is known of the address.
    async fn begin_session(&self) -> Result<Sid, Refusal> {
        let now = self.parts.clock.now();
        let request_id = request_id(&self.head)?;
        let client = client(&self.asked, self.purpose, &request_id);
        let fresh = Fresh::draw(now.after(self.config.session.unvalidated_lifetime))?;
        Ok(self.parts.store.find_or_begin(&client, fresh, now).await?.0)
    }

    /// What a client is answered whose request has a sid.
    fn answer(&self) -> impl Fn(&Sid) -> Response<Bytes> + Send + use<> {
        let (config, address) = (Arc::clone(&self.config), self.asked.threepid.address.clone());
        move |sid| matrix::json(StatusCode::OK, &matrix::requested(sid, &address, config.public_base_url.as_str()))
    }

    fn note(&self) -> Result<Note, Refusal> {
        let language = self.head.headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let mut note = Note::new(
            request_id(&self.head)?,
            self.purpose,
            self.asked.send_attempt,
            self.asked.next_link.clone(),
            language.map(|language| language.chars().take(100).collect()),
            self.parts.clock.now(),
        );
        note.current.clone_from(&self.current);
        Ok(note)
    }
}

/// A note that is left behind has the client's next request wait for it.
fn conclude_later(parts: RequestToken, key: Key<Note>, request_id: RequestId) {
    parts.detached.clone().spawn(async move {
        for _ in 0..CONCLUDE_TRIES {
            tokio::time::sleep(CONCLUDE_AGAIN).await;
            if in_flight::conclude(&parts.store, &key, &request_id, || parts.clock.now()).await.is_ok() {
                return;
            }
        }
    });
}

fn client<'a>(asked: &'a Asked, purpose: Purpose, request_id: &'a RequestId) -> Client<'a> {
    Client { threepid: &asked.threepid, purpose, client_secret: &asked.client_secret, request_id }
}

fn request_id(head: &Parts) -> Result<RequestId, Refusal> {
    head.extensions.get::<RequestId>().cloned().ok_or_else(Refusal::internal)
}

/// Whether an answer of the homeserver's says that an address has an account, or has none.
fn tells_existence(answer: &Response<Bytes>) -> bool {
    errcode_of(answer).is_some_and(|errcode| errcode == "M_THREEPID_IN_USE" || errcode == "M_THREEPID_NOT_FOUND")
}

fn errcode_of(answer: &Response<Bytes>) -> Option<String> {
    Object::parse(answer.body()).ok().and_then(|object| object.string("errcode"))
}
