//! The specification's words as types: what exists is valid. Error codes, and `Refusal`, our own non-2xx answer.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// What kind of address a threepid is ([3PID types](https://spec.matrix.org/v1.1/appendices/#3pid-types)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    Email,
    Msisdn,
}

impl Medium {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Msisdn => "msisdn",
        }
    }
}

/// Which of the three requestToken families a session was begun on; it can complete nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Register,
    Password,
    #[serde(rename = "account_3pid")]
    Account3pid,
}

impl Purpose {
    pub const ALL: [Self; 3] = [Self::Register, Self::Password, Self::Account3pid];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Password => "password",
            Self::Account3pid => "account_3pid",
        }
    }
}

/// A canonical address: for e-mail an ASCII local part and an A-label domain, lower case, one `@`.
/// The same string is mailed, stored, sent to the homeserver and returned by it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address(String);

impl Address {
    /// Longest e-mail address accepted, in bytes (Sydent and Synapse cap it there too).
    pub const MAX_EMAIL: usize = 500;

    /// The canonical form of an e-mail address as a client wrote it, or why there is none.
    ///
    /// Strict on purpose: no quoting, no comments, no routes, nothing that two parsers could read differently
    /// (CVE-2019-11340, CVE-2023-27043). Non-ASCII local parts are refused since an old homeserver's `lower()` maps
    /// U+212A to `k`; domains are mapped once, by UTS 46, to A-labels.
    pub fn email(written: &str) -> Result<Self, AddressError> {
        if written.len() > Self::MAX_EMAIL {
            return Err(AddressError::TooLong);
        }
        let (local, domain) = written.split_once('@').ok_or(AddressError::NotOneAt)?;
        if domain.contains('@') {
            return Err(AddressError::NotOneAt);
        }
        let atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
        if local.is_empty() || local.len() > 64 || !local.chars().all(atom) {
            return Err(AddressError::LocalPart);
        }
        if local.starts_with('.') || local.ends_with('.') || local.contains("..") {
            return Err(AddressError::LocalPart);
        }
        let domain = canonical_domain(domain).ok_or(AddressError::Domain)?;
        Ok(Self(format!("{}@{domain}", local.to_ascii_lowercase())))
    }

    /// The canonical string itself, for the homeserver, the mail server and the store; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Enough to recognise one's own address, not enough to learn another's: `a•••@example.org`.
    pub fn masked(&self) -> String {
        let (local, domain) = self.0.split_once('@').unwrap_or((&self.0, ""));
        let first: String = local.chars().take(1).collect();
        format!("{first}•••@{domain}")
    }

    /// The mailbox that limits count: `a+x@d` fills the same inbox as `a@d`.
    pub fn mailbox(&self) -> String {
        match self.0.split_once('@') {
            Some((local, domain)) => {
                let base = local.split('+').next().filter(|base| !base.is_empty()).unwrap_or(local);
                format!("{base}@{domain}")
            }
            None => self.0.clone(),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(..)")
    }
}

/// Why a string is not an e-mail address here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("the address is longer than 500 bytes")]
    TooLong,
    #[error("the address must hold exactly one '@'")]
    NotOneAt,
    #[error("the part before the '@' may hold ASCII letters, digits and !#$%&'*+-/=?^_`{{|}}~ with single dots inside")]
    LocalPart,
    #[error("the part after the '@' is not a domain name")]
    Domain,
}

/// UTS 46, strict: lower-cased A-labels of letters, digits and inner hyphens, at least two of them.
fn canonical_domain(written: &str) -> Option<String> {
    // A character that UTS 46 maps to something else than its lower case (fullwidth, ligatures) is a look-alike: the
    // mail would go elsewhere than where the eye reads. What is already canonical maps to itself.
    let ascii = idna::domain_to_ascii_strict(written).ok()?;
    let (unicode, result) = idna::domain_to_unicode(&ascii);
    result.ok()?;
    if unicode != written.to_lowercase() && ascii != written.to_ascii_lowercase() {
        return None;
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let labels = ascii.split('.').count();
    let all_digits = ascii.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    (ascii.len() <= 253 && labels >= 2 && !all_digits && ascii.split('.').all(label)).then_some(ascii)
}

/// A medium and an address of it: what is verified.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Threepid {
    pub medium: Medium,
    pub address: Address,
}

/// The secret a client made up for its session: 1 to 255 of `[0-9a-zA-Z.=_-]` and `:`, which clients of 2019 sent
/// (Synapse #6767).
#[derive(Clone)]
pub struct ClientSecret(String);

impl ClientSecret {
    pub fn parse(written: &str) -> Option<Self> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b".=_-:".contains(&b);
        ((1..=255).contains(&written.len()) && written.bytes().all(ok)).then(|| Self(written.to_owned()))
    }

    /// The secret itself, for the homeserver and the mailed link; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(..)")
    }
}

/// A session id of ours: `shim_` and 32 hexadecimal digits of operating system randomness, so that "ours" needs no
/// look-up and never meets another identity server's sids.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sid(String);

impl Sid {
    const MARK: &'static str = "shim_";

    pub fn from_random(random: [u8; 16]) -> Self {
        Self(format!("{}{}", Self::MARK, hex(&random)))
    }

    /// Whether a sid on the wire claims to be one of ours; it may still be malformed.
    pub fn is_ours(written: &str) -> bool {
        written.starts_with(Self::MARK)
    }

    pub fn parse(written: &str) -> Option<Self> {
        let digits = written.strip_prefix(Self::MARK)?;
        let ok = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ok.then(|| Self(written.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is mailed: 256 bits in a link, as 64 hexadecimal digits. Only its digest is kept.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(hex(&random))
    }

    /// Any short printable string: whether it is *the* token is for the digest to say.
    pub fn parse(written: &str) -> Option<Self> {
        let ok = (1..=128).contains(&written.len()) && written.bytes().all(|b| b.is_ascii_alphanumeric());
        ok.then(|| Self(written.to_owned()))
    }

    /// The token itself, for the mailed link; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// SHA-256 of something we only have to recognise. Compared in constant time.
#[derive(Clone, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()))
    }

    pub fn as_hex(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Error codes that the shim itself answers with
/// ([common error codes](https://spec.matrix.org/v1.18/client-server-api/#common-error-codes)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Errcode {
    MBadJson,
    MEmailSendError,
    MForbidden,
    MInvalidParam,
    MLimitExceeded,
    MMissingParam,
    MNoValidSession,
    MNotJson,
    MServerNotTrusted,
    MSessionExpired,
    MSessionNotValidated,
    MThreepidAuthFailed,
    MThreepidMediumNotSupported,
    MTokenIncorrect,
    MTooLarge,
    MUnknown,
    MUnrecognized,
}

impl Errcode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MBadJson => "M_BAD_JSON",
            Self::MEmailSendError => "M_EMAIL_SEND_ERROR",
            Self::MForbidden => "M_FORBIDDEN",
            Self::MInvalidParam => "M_INVALID_PARAM",
            Self::MLimitExceeded => "M_LIMIT_EXCEEDED",
            Self::MMissingParam => "M_MISSING_PARAM",
            Self::MNoValidSession => "M_NO_VALID_SESSION",
            Self::MNotJson => "M_NOT_JSON",
            Self::MServerNotTrusted => "M_SERVER_NOT_TRUSTED",
            Self::MSessionExpired => "M_SESSION_EXPIRED",
            Self::MSessionNotValidated => "M_SESSION_NOT_VALIDATED",
            Self::MThreepidAuthFailed => "M_THREEPID_AUTH_FAILED",
            Self::MThreepidMediumNotSupported => "M_THREEPID_MEDIUM_NOT_SUPPORTED",
            Self::MTokenIncorrect => "M_TOKEN_INCORRECT",
            Self::MTooLarge => "M_TOO_LARGE",
            Self::MUnknown => "M_UNKNOWN",
            Self::MUnrecognized => "M_UNRECOGNIZED",
        }
    }
}

/// Our own non-2xx answer: a status, an error code, one sentence for the client, and when to come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub errcode: Errcode,
    pub error: Cow<'static, str>,
    pub retry_after: Option<Duration>,
    /// Adds `"success": false`, which clients of submit_url read.
    pub unsuccessful: bool,
}

impl Refusal {
    pub fn new(status: StatusCode, errcode: Errcode, error: impl Into<Cow<'static, str>>) -> Self {
        Self { status, errcode, error: error.into(), retry_after: None, unsuccessful: false }
    }

    /// 400, the status of nearly every refusal of the specification.
    pub fn bad_request(errcode: Errcode, error: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, errcode, error)
    }

    /// 429 `M_LIMIT_EXCEEDED` with `retry_after_ms` and `Retry-After`.
    pub fn limited(retry_after: Duration) -> Self {
        let mut refusal =
            Self::new(StatusCode::TOO_MANY_REQUESTS, Errcode::MLimitExceeded, "Too many requests; try again later");
        refusal.retry_after = Some(retry_after);
        refusal
    }

    #[must_use]
    pub fn unsuccessful(mut self) -> Self {
        self.unsuccessful = true;
        self
    }

    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The answer on the wire, with the CORS fields every client-server answer carries.
    pub fn into_response(self) -> Response<Bytes> {
        let mut body = serde_json::Map::new();
        if self.unsuccessful {
            body.insert("success".into(), false.into());
        }
        body.insert("errcode".into(), self.errcode.as_str().into());
        body.insert("error".into(), self.error.into());
        if let (Some(after), Errcode::MLimitExceeded) = (self.retry_after, self.errcode) {
            body.insert("retry_after_ms".into(), u64::try_from(after.as_millis()).unwrap_or(u64::MAX).into());
        }
        let mut response = json(self.status, &serde_json::Value::Object(body));
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        response
    }
}

/// A JSON answer of the shim's own: never cached, readable by any web client.
pub fn json(status: StatusCode, body: &serde_json::Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    cors(headers);
    response
}

/// The CORS fields of the specification
/// ([web browser clients](https://spec.matrix.org/v1.1/client-server-api/#web-browser-clients)).
pub fn cors(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("X-Requested-With, Content-Type, Authorization"),
    );
}

/// Milliseconds since the Unix epoch, the specification's timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long until then; zero when it has passed.
    pub fn until(self, then: Self) -> Duration {
        Duration::from_millis(then.0.saturating_sub(self.0))
    }
}
