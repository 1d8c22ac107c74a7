//! Error codes, and `Refusal`, our own non-2xx answer.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};

/// Error codes that the shim itself answers with
/// ([common error codes](https://spec.matrix.org/v1.18/client-server-api/#common-error-codes)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Errcode {
    MBadJson,
    MDestinationRejected,
    MEmailSendError,
    MForbidden,
    MInvalidParam,
    MLimitExceeded,
    MMissingParam,
    MNoValidSession,
    MNotJson,
    MSendError,
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
            Self::MDestinationRejected => "M_DESTINATION_REJECTED",
            Self::MEmailSendError => "M_EMAIL_SEND_ERROR",
            Self::MForbidden => "M_FORBIDDEN",
            Self::MInvalidParam => "M_INVALID_PARAM",
            Self::MLimitExceeded => "M_LIMIT_EXCEEDED",
            Self::MMissingParam => "M_MISSING_PARAM",
            Self::MNoValidSession => "M_NO_VALID_SESSION",
            Self::MNotJson => "M_NOT_JSON",
            Self::MSendError => "M_SEND_ERROR",
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

    /// 500 `M_UNKNOWN`, for what the shim itself is to blame; the cause is in its log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Errcode::MUnknown, "Internal server error")
    }

    /// 400 `M_THREEPID_AUTH_FAILED`: these creds will never do, which ends a client's polling.
    pub fn creds() -> Self {
        Self::bad_request(Errcode::MThreepidAuthFailed, "This validation session cannot be used here")
    }

    /// 400 `M_THREEPID_MEDIUM_NOT_SUPPORTED`.
    pub fn medium() -> Self {
        let error = "This server does not verify addresses of this kind";
        Self::bad_request(Errcode::MThreepidMediumNotSupported, error)
    }

    /// 400 `M_INVALID_PARAM` for a link that `session.next_link_hosts` or its own shape forbids.
    pub fn next_link() -> Self {
        let error = "next_link must be an http or https URL of a host that this server allows";
        Self::bad_request(Errcode::MInvalidParam, error)
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
            response.headers_mut().insert(header::RETRY_AFTER, retry_after(after));
        }
        response
    }
}

/// The value of `Retry-After`: whole seconds, never too soon.
pub fn retry_after(after: Duration) -> HeaderValue {
    let seconds = after.as_millis().div_ceil(1000).max(1);
    HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX))
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
