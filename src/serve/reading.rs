//! One reading or none: a request that two parsers could take for two different ones is refused.
//!
//! What hyper and httparse refuse or settle before we see it is listed, row by row, in `tests/it/forward/requests.rs`.

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header};
use http_body::Body;

use crate::matrix::{Errcode, Refusal};
use crate::wire;

/// What two parsers could disagree about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    #[error("Content-Length must be one plain number")]
    ContentLength,
    #[error("Content-Length and Transfer-Encoding exclude each other")]
    TwoLengths,
    #[error("Transfer-Encoding can only be chunked")]
    TransferEncoding,
    #[error("Chunks must be a hexadecimal length and as many bytes")]
    Chunk,
    #[error("a field name that some servers take for Content-Length or Transfer-Encoding")]
    Lookalike,
    #[error("exactly one Host is needed")]
    HostCount,
    #[error("Host is not a host")]
    Host,
    #[error("the target's authority is not the Host")]
    Authority,
    #[error("the target must be a path")]
    Target,
    #[error("CONNECT is not served here")]
    Connect,
}

impl From<Ambiguous> for Refusal {
    fn from(ambiguous: Ambiguous) -> Self {
        Self::bad_request(Errcode::MUnknown, format!("Ambiguous request: {ambiguous}"))
    }
}

/// Refuses what has more than one reading; an absolute-form target that agrees with its Host becomes origin-form.
pub(super) fn settle<B>(request: &mut Request<B>) -> Result<(), Ambiguous> {
    if *request.method() == Method::CONNECT {
        return Err(Ambiguous::Connect);
    }
    let host = host(request.headers(), request.version())?;
    let uri = request.uri();
    if uri.path() == "*" && *request.method() != Method::OPTIONS {
        return Err(Ambiguous::Target);
    }
    if uri.scheme().is_some() || uri.authority().is_some() {
        let origin = origin_form(uri, host)?;
        *request.uri_mut() = origin;
    }
    one_length(request.headers())
}

/// As `settle`, for HTTP/2: the request is given the form that it would have had in HTTP/1.1
/// ([RFC 9113 §8.3](https://www.rfc-editor.org/rfc/rfc9113#section-8.3)). Fields that concern a connection, and bodies
/// that are not as long as `Content-Length` says, h2 has refused.
pub(super) fn settle_http2<B: Body>(request: &mut Request<B>) -> Result<(), Ambiguous> {
    *request.version_mut() = Version::HTTP_11;
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_opaque| Ambiguous::Host)?;
        // One that is there is held against the authority below.
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    join_cookies(request.headers_mut());
    let coded = request.headers().contains_key(header::TRANSFER_ENCODING);
    if !coded && !request.headers().contains_key(header::CONTENT_LENGTH) && !request.body().is_end_stream() {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    settle(request)
}

/// HTTP/2 may divide cookies, HTTP/1.1 may not ([RFC 9113 §8.2.3](https://www.rfc-editor.org/rfc/rfc9113#section-8.2.3)).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice()))
    {
        headers.insert(header::COOKIE, cookie);
    }
}

/// At most one length, with one reading. For answers of the homeserver as well.
pub fn one_length(headers: &HeaderMap) -> Result<(), Ambiguous> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if let Some(length) = length
        && (lengths.next().is_some() || wire::content_length(length.as_bytes()).is_none())
    {
        return Err(Ambiguous::ContentLength);
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if length.is_some() {
            return Err(Ambiguous::TwoLengths);
        }
        if codings.next().is_some() || !wire::is_chunked(coding.as_bytes()) {
            return Err(Ambiguous::TransferEncoding);
        }
    }
    if headers.keys().any(|name| wire::is_lookalike(name.as_str())) {
        return Err(Ambiguous::Lookalike);
    }
    Ok(())
}

/// The one Host; only HTTP/1.0 may do without.
fn host(headers: &HeaderMap, version: Version) -> Result<Option<&str>, Ambiguous> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() || (host.is_none() && version != Version::HTTP_10) {
        return Err(Ambiguous::HostCount);
    }
    let Some(host) = host else { return Ok(None) };
    let host = host.to_str().map_err(|_opaque| Ambiguous::Host)?;
    if wire::is_host(host.as_bytes()) { Ok(Some(host)) } else { Err(Ambiguous::Host) }
}

fn origin_form(uri: &Uri, host: Option<&str>) -> Result<Uri, Ambiguous> {
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(Ambiguous::Target);
    }
    let authority = uri.authority().map(Authority::as_str);
    match (authority, host) {
        (Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => {}
        _ => return Err(Ambiguous::Authority),
    }
    let origin = match uri.query() {
        Some(query) => format!("{}?{query}", uri.path()),
        None => uri.path().to_owned(),
    };
    Uri::try_from(origin).map_err(|_not_a_path| Ambiguous::Target)
}
