//! The page behind the mailed link: GET looks and changes nothing, POST validates.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::body::{self, Form};
use crate::config::{Config, Shared};
use crate::limit::{Limit, Limited, client_key};
use crate::matrix::{self, ClientSecret, Digest, Errcode, Medium, NextLink, Purpose, Refusal, Sid, Token};
use crate::serve::{self, Clock, Stamp};
use crate::session::{Lifetimes, Session, Submitted, Wrong};
use crate::store::{Key, Store, StoreError};
use crate::telemetry::{RequestId, Subject};
use crate::wording::{self, Language, Page, PageKind, Wording};

/// The largest form: four short fields.
const FORM_LIMIT: usize = 8 * 1024;

/// GET and POST `/_matrix/client/unstable/threepid_shim/{register,password,account_3pid,delegated}/email/submit_token`.
///
/// Mail scanners and link previews fetch every link, so that a GET must not validate (Synapse #8004): whoever asked for
/// the mail with his own client_secret would be let in by the victim's mail server.
#[derive(Debug, Clone)]
pub struct Confirm {
    pub config: Shared,
    pub store: Arc<Store>,
    pub clock: Clock,
    pub wording: wording::Shared,
    pub per_ip: Arc<Limit>,
}

/// What a mailed link carries.
struct Link {
    sid: Sid,
    client_secret: ClientSecret,
    token: Token,
}

impl Link {
    /// `None` when anything is missing or malformed: as wrong as a link can be.
    fn parse(form: &Form) -> Option<Self> {
        Some(Self {
            sid: Sid::parse(form.get("sid")?)?,
            client_secret: ClientSecret::parse(form.get("client_secret")?)?,
            token: Token::parse(form.get("token")?)?,
        })
    }
}

impl Confirm {
    pub async fn handle(&self, request: Request<Incoming>, purpose: Purpose) -> Result<Response<Bytes>, Refusal> {
        let config = self.config.load_full();
        match *request.method() {
            Method::GET | Method::HEAD | Method::POST => {}
            Method::OPTIONS => return Ok(matrix::json(StatusCode::OK, &serde_json::json!({}))),
            _ => {
                let error = "This page knows GET and POST";
                return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Errcode::MUnrecognized, error));
            }
        }
        let stamp = request.extensions().get::<Stamp>().copied().ok_or_else(Refusal::internal)?;
        let client_ip = serve::client_ip(request.headers(), stamp.peer, &config.trusted_proxies);
        let language = request.headers().get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let answer = Answer { parts: self, config: &config, purpose, language: language.map(str::to_owned) };
        let rate = config.limits.submit_token_per_ip;
        match self.per_ip.take(&client_key(client_ip), rate, stamp.now).await {
            Ok(()) => {}
            Err(Limited::For(retry_after)) => return answer.limited(retry_after),
            Err(Limited::Unknown(error)) => return answer.try_later(error),
        }
        if *request.method() == Method::POST { answer.submit(request).await } else { answer.show(&request).await }
    }
}

/// One request for the page.
struct Answer<'a> {
    parts: &'a Confirm,
    config: &'a Config,
    purpose: Purpose,
    language: Option<String>,
}

impl Answer<'_> {
    async fn show(&self, request: &Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        let Some(link) = Form::parse(query.as_bytes()).as_ref().and_then(Link::parse) else {
            return self.invalid();
        };
        Subject::of(request.extensions()).note_sid(&link.sid);
        let now = self.parts.clock.now();
        let session = match self.parts.store.get(&Key::session(&link.sid), now).await {
            Ok(session) => session,
            Err(error) => return self.try_later(error),
        };
        let Some(session) = session.filter(|session| self.is_for(session)) else {
            return self.invalid();
        };
        match session.look(&link.client_secret, &link.token, now) {
            Ok(Submitted::First) => self.ask(&session, &link),
            Ok(Submitted::Again) => self.page(StatusCode::OK, PageKind::AlreadyConfirmed, None),
            Err(Wrong::Secret | Wrong::Token | Wrong::Expired) => self.invalid(),
        }
    }

    /// A phone has no link: tries of its code are counted, and here they are not.
    fn is_for(&self, session: &Session) -> bool {
        session.purpose == self.purpose && session.threepid.medium == Medium::Email
    }

    fn ask(&self, session: &Session, link: &Link) -> Result<Response<Bytes>, Refusal> {
        let next_link = session.next_link.as_ref();
        let fields = [
            ("sid", link.sid.as_str()),
            ("client_secret", link.client_secret.expose()),
            ("token", link.token.expose()),
            ("nonce", session.nonce.as_hex()),
        ];
        let kind = PageKind::Confirm {
            purpose: self.purpose,
            masked_address: &session.threepid.address.masked(),
            next_link_host: next_link.and_then(NextLink::host),
            fields: &fields,
        };
        self.page(StatusCode::OK, kind, next_link)
    }

    async fn submit(&self, request: Request<Incoming>) -> Result<Response<Bytes>, Refusal> {
        let request_id = request.extensions().get::<RequestId>().cloned().ok_or_else(Refusal::internal)?;
        if !from_our_page(request.headers(), self.config.public_base_url.origin()) {
            return self.page(StatusCode::FORBIDDEN, PageKind::Invalid, None);
        }
        let subject = Subject::of(request.extensions());
        let body = body::read(request.into_body(), FORM_LIMIT).await?;
        let form = Form::parse(&body);
        let nonce = form.as_ref().and_then(|form| form.get("nonce")).map(Digest::claimed);
        let Some(link) = form.as_ref().and_then(Link::parse) else {
            return self.invalid();
        };
        subject.note_sid(&link.sid);
        let lifetimes = Lifetimes {
            unvalidated: self.config.session.unvalidated_lifetime,
            validated: self.config.session.validated_lifetime,
        };
        let now = self.parts.clock.now();
        let submit = |session: &mut Session| {
            if !self.is_for(session) || Some(&session.nonce) != nonce.as_ref() {
                return Err(Wrong::Token);
            }
            let submitted = session.submit(&link.client_secret, &link.token, now, lifetimes)?;
            Ok((submitted, session.next_link.clone(), session.request_id.clone()))
        };
        let submitted = match self.parts.store.update_session(&link.sid, now, submit).await {
            Ok(submitted) => submitted,
            Err(error) => return self.try_later(error),
        };
        let Some(Ok((submitted, next_link, mailed_by))) = submitted else {
            return self.invalid();
        };
        tracing::info!(%request_id, mailed_by = %mailed_by, sid = link.sid.as_str(), first = submitted == Submitted::First, "a link was confirmed");
        match (submitted, next_link) {
            (_, Some(next_link)) => self.redirect(&next_link.with_sid(&link.sid)),
            (Submitted::First, None) => self.page(StatusCode::OK, PageKind::Confirmed, None),
            (Submitted::Again, None) => self.page(StatusCode::OK, PageKind::AlreadyConfirmed, None),
        }
    }

    /// The same for unknown, wrong and expired, to the byte: a guess learns nothing.
    fn invalid(&self) -> Result<Response<Bytes>, Refusal> {
        self.page(StatusCode::BAD_REQUEST, PageKind::Invalid, None)
    }

    fn limited(&self, retry_after: Duration) -> Result<Response<Bytes>, Refusal> {
        let mut response = self.page(StatusCode::TOO_MANY_REQUESTS, PageKind::Limited, None)?;
        let seconds = matrix::retry_after(retry_after);
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
        Ok(response)
    }

    fn try_later(&self, error: StoreError) -> Result<Response<Bytes>, Refusal> {
        let refusal = Refusal::from(error);
        let mut response = self.page(refusal.status, PageKind::TryLater, None)?;
        if let Some(after) = refusal.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, matrix::retry_after(after));
        }
        Ok(response)
    }

    fn redirect(&self, target: &str) -> Result<Response<Bytes>, Refusal> {
        let mut response = self.page(StatusCode::SEE_OTHER, PageKind::Confirmed, None)?;
        let location = HeaderValue::from_str(target).map_err(|_unwritable| Refusal::internal())?;
        response.headers_mut().insert(header::LOCATION, location);
        Ok(response)
    }

    fn page(
        &self,
        status: StatusCode,
        kind: PageKind<'_>,
        next_link: Option<&NextLink>,
    ) -> Result<Response<Bytes>, Refusal> {
        let wording = self.parts.wording.load();
        let language = wording.language(self.language.as_deref());
        let page = Page { language: &language, server_name: &self.config.server_name, kind };
        let html = wording.page(&page).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a page cannot be written");
            Refusal::internal()
        })?;
        let mut response = Response::new(Bytes::from(html));
        *response.status_mut() = status;
        protect(response.headers_mut(), &wording, &language, next_link.and_then(NextLink::origin))?;
        Ok(response)
    }
}

/// `no-referrer` makes the page's own POST say `Origin: null`, so that `Sec-Fetch-Site` decides; browsers without it
/// send no Origin, `null` or ours.
fn from_our_page(headers: &HeaderMap, own_origin: &str) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    headers
        .get(header::ORIGIN)
        .is_none_or(|origin| origin == "null" || origin.as_bytes().eq_ignore_ascii_case(own_origin.as_bytes()))
}

/// The fields of a page that shows a secret: not cached, not framed, not indexed, no referrer, nothing from elsewhere.
/// Browsers hold a redirect after a POST to `form-action`, so that next_link's origin is in it. A logo is in the page.
fn protect(
    headers: &mut HeaderMap,
    wording: &Wording,
    language: &Language,
    next_link: Option<&str>,
) -> Result<(), Refusal> {
    let target = next_link.map(|origin| format!(" {origin}")).unwrap_or_default();
    let images = if wording.has_logo() { " img-src data:;" } else { "" };
    let style_hash = wording.style_hash();
    let policy = format!(
        "default-src 'none'; style-src '{style_hash}';{images} base-uri 'none'; frame-ancestors 'none'; form-action 'self'{target}"
    );
    for (name, value) in
        [(header::CONTENT_SECURITY_POLICY, policy.as_str()), (header::CONTENT_LANGUAGE, language.as_str())]
    {
        headers.insert(name, HeaderValue::from_str(value).map_err(|_unwritable| Refusal::internal())?);
    }
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::HeaderName::from_static("x-robots-tag"), "noindex"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(())
}
