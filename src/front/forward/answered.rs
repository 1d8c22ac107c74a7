//! An answer on its way down: relayed as it comes, or read whole when we have to look into it.

use std::collections::VecDeque;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;

use crate::homeserver::Answer;

/// The homeserver's bytes: what was read already, then the rest as it comes.
pub struct Relayed {
    read: VecDeque<Bytes>,
    rest: Answer,
}

/// An answer that was to be read whole.
pub enum Whole {
    Read(Bytes),
    TooLong(Relayed),
}

impl From<Answer> for Relayed {
    fn from(rest: Answer) -> Self {
        Self { read: VecDeque::new(), rest }
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        match this.read.pop_front() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }
}

/// Reads an answer of `limit` bytes at most.
pub(super) async fn read(answer: Relayed, limit: usize) -> Result<Whole, hyper::Error> {
    let Relayed { mut read, rest: mut answer } = answer;
    let mut length = 0;
    while let Some(frame) = answer.frame().await {
        // Trailers of an answer that is read are nobody's.
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len();
        read.push_back(data);
        if length > limit {
            return Ok(Whole::TooLong(Relayed { read, rest: answer }));
        }
    }
    if read.len() == 1 {
        return Ok(Whole::Read(read.pop_front().unwrap_or_default()));
    }
    let mut whole = BytesMut::with_capacity(length);
    for data in &read {
        whole.extend_from_slice(data);
    }
    Ok(Whole::Read(whole.freeze()))
}

/// The answer with its body decoded if we can, and with fields that fit it.
pub(super) fn plain(mut response: Response<Bytes>, limit: usize) -> Response<Bytes> {
    if let Some(decoded) = decode(response.headers().get(header::CONTENT_ENCODING), response.body(), limit) {
        *response.body_mut() = decoded;
        response.headers_mut().remove(header::CONTENT_ENCODING);
    }
    let length = response.body().len();
    fit(response.headers_mut(), length);
    response
}

/// Makes the fields of a head fit a body of this length that we hold.
pub(in crate::front) fn fit(headers: &mut http::HeaderMap, length: usize) {
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::TRAILER);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
}

/// The plain bytes of a coded body of `limit` bytes at most; `None` when it is plain already, or coded in a way we do
/// not read. Old homeservers compress whatever was asked for.
pub(in crate::front) fn decode(coding: Option<&HeaderValue>, body: &[u8], limit: usize) -> Option<Bytes> {
    let coding = coding?.as_bytes().trim_ascii().to_ascii_lowercase();
    let decoded = match coding.as_slice() {
        b"gzip" | b"x-gzip" => inflate(MultiGzDecoder::new(body), limit),
        // With a zlib wrapper as the RFC says, or without as some servers do.
        b"deflate" => inflate(ZlibDecoder::new(body), limit).or_else(|| inflate(DeflateDecoder::new(body), limit)),
        _ => None,
    };
    decoded.map(Bytes::from)
}

fn inflate(decoder: impl Read, limit: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(bound).read_to_end(&mut plain).ok()?;
    (plain.len() <= limit).then_some(plain)
}
