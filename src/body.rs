//! A body read up to a limit, edited as JSON, sent on with the right length. What is not touched keeps its bytes.

mod fields;
mod form;
mod held;
mod object;

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;

pub use fields::Fields;
pub use form::Form;
pub use object::{NotAnObject, Object, elements};

use crate::matrix::{Errcode, Refusal};

/// The largest requestToken body; a client needs less than 4 KiB (CVE-2021-21393: Synapse read any size).
pub const REQUEST_TOKEN_LIMIT: usize = 64 * 1024;
/// The largest body on a path that may carry creds.
pub const CREDS_LIMIT: usize = 1024 * 1024;
/// How long a body may take to come: the largest in this time is 17 kB/s, and who is slower holds us for no longer.
const IN_TIME: Duration = Duration::from_secs(60);
/// When to come again while too many bodies are read.
const ROOM_AFTER: Duration = Duration::from_secs(5);

/// Reads a whole body, or refuses it: 413 `M_TOO_LARGE` past `limit` bytes, 408 `M_UNKNOWN` past its time, 503
/// `M_LIMIT_EXCEEDED` while others take all the room there is.
pub async fn read<B>(body: B, limit: usize) -> Result<Bytes, Refusal>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Errcode::MTooLarge,
            format!("The body is larger than {} KiB", limit / 1024),
        )
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let whole = async {
        let (mut body, mut held) = (pin!(body), held::BUDGET.hold());
        while let Some(frame) = body.frame().await {
            let cut = |_| Refusal::bad_request(Errcode::MUnknown, "The body ended before it was complete");
            // Trailers are nobody's.
            let Ok(data) = frame.map_err(cut)?.into_data() else { continue };
            if held.len() + data.len() > limit {
                return Err(too_large());
            }
            held.extend(&data, limit).map_err(|held::Full| no_room())?;
        }
        Ok(Bytes::from_owner(held))
    };
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, Errcode::MUnknown, "The body did not come in time");
    tokio::time::timeout(IN_TIME, whole).await.map_err(late)?
}

fn no_room() -> Refusal {
    let error = "Too many requests are being read; try again later";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Errcode::MLimitExceeded, error).retry_after(ROOM_AFTER)
}

/// Whether a body may be looked into in passing: its length is told and small, and it is not encoded.
pub fn is_short(headers: &HeaderMap, limit: usize) -> bool {
    told_length(headers).is_some_and(|length| length <= limit) && !headers.contains_key(header::CONTENT_ENCODING)
}

/// Whether a body says of itself that [`read`] would refuse it.
pub fn is_long(headers: &HeaderMap, limit: usize) -> bool {
    told_length(headers).is_some_and(|length| length > limit)
}

fn told_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Old homeservers do not decode bodies: a plain body labelled `gzip` would be read by them and not by us.
pub fn refuse_encoded(headers: &HeaderMap) -> Result<(), Refusal> {
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Ok(());
    }
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(Refusal::new(status, Errcode::MUnknown, "This endpoint takes no Content-Encoding"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn s4_28_a_body_over_the_limit_is_refused() {
        let body = http_body_util::Full::new(Bytes::from(vec![b' '; 100]));
        assert_eq!(read(body.clone(), 100).await.unwrap().len(), 100);
        let refusal = read(body, 99).await.unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.errcode), (413, Errcode::MTooLarge));
    }
    /// S§4.28.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_waited_for_no_longer_than_its_time() {
        let begun = tokio::time::Instant::now();
        let refusal = read(Silent, 100).await.unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.errcode), (408, Errcode::MUnknown));
        assert_eq!(begun.elapsed(), IN_TIME);
    }

    /// A body that never comes.
    struct Silent;

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }
}
