//! /versions: one flag added, the rest as it came.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use hyper::body::Incoming;
use serde_json::{Map, Value};

use crate::front::forward::{Body, Forward, Whole, decode, fit};
use crate::matrix::Refusal;

/// What MSC2263 calls itself in `unstable_features`.
const REQUIRE_IDENTITY_SERVER: &str = "m.require_identity_server";
/// What MSC2290 calls itself there.
const SEPARATE_ADD_AND_BIND: &str = "m.separate_add_and_bind";
/// Longest answer that is looked into.
const LIMIT: usize = 1024 * 1024;

/// What is true of the homeserver and the shim together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// `m.require_identity_server: false`
    pub no_identity_server_required: bool,
    /// `m.separate_add_and_bind: true`
    pub separate_add_and_bind: bool,
}

impl Features {
    fn flags(self) -> impl Iterator<Item = (&'static str, bool)> {
        let required = self.no_identity_server_required.then_some((REQUIRE_IDENTITY_SERVER, false));
        let separate = self.separate_add_and_bind.then_some((SEPARATE_ADD_AND_BIND, true));
        required.into_iter().chain(separate)
    }
}

/// GET `/_matrix/client/versions`
/// ([versions](https://spec.matrix.org/v1.1/client-server-api/#get_matrixclientversions)).
#[derive(Debug, Clone)]
pub struct Versions {
    forward: Forward,
}

impl Versions {
    pub fn new(forward: Forward) -> Self {
        Self { forward }
    }

    /// The homeserver's answer, with the flags of what is true. Whatever is not a 200 with a JSON object goes on byte for
    /// byte.
    pub async fn handle(&self, request: Request<Incoming>, features: Features) -> Result<Response<Body>, Refusal> {
        if features == Features::default() || *request.method() != Method::GET || !request.body().is_end_stream() {
            return self.forward.handle(request).await;
        }
        let (head, _empty) = request.into_parts();
        let response = self.forward.ask_for_plain(&head, Bytes::new()).await?;
        if response.status() != StatusCode::OK {
            return Ok(response.map(Body::Relayed));
        }
        let (mut head, answer) = response.into_parts();
        let body = match self.forward.whole(answer, LIMIT).await? {
            Whole::TooLong(relayed) => Body::Relayed(relayed),
            Whole::Read(bytes) => {
                let plain = decode(head.headers.get(header::CONTENT_ENCODING), &bytes, LIMIT);
                match with_flags(plain.as_ref().unwrap_or(&bytes), features) {
                    Some(flagged) => {
                        forget_the_old_body(&mut head.headers);
                        fit(&mut head.headers, flagged.len());
                        flagged.into()
                    }
                    None => bytes.into(),
                }
            }
        };
        Ok(Response::from_parts(head, body))
    }
}

/// Whether a homeserver with this `/versions` answers requestToken without `id_server` by itself. `None`: not an
/// answer to `/versions`. Only the flag and the exact `r0.6.0` prove it: Dendrite lists r0.6.1 and v1.x, and still
/// demands `id_server`.
pub fn learnt_msc2263(body: &[u8]) -> Option<bool> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let versions = body.get("versions")?.as_array()?;
    let flag = body.get("unstable_features").and_then(|features| features.get(REQUIRE_IDENTITY_SERVER));
    Some(flag == Some(&Value::Bool(false)) || versions.iter().any(|version| version == "r0.6.0"))
}

/// The object with the flags, or `None` when there is nothing that a flag can be added to.
fn with_flags(body: &[u8], features: Features) -> Option<Bytes> {
    let mut object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let unstable = object.entry("unstable_features").or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
    unstable.extend(features.flags().map(|(name, value)| (name.to_owned(), Value::Bool(value))));
    serde_json::to_vec(&object).ok().map(Bytes::from)
}

/// Fields that speak of the bytes as they were.
fn forget_the_old_body(headers: &mut HeaderMap) {
    for name in [header::CONTENT_ENCODING, header::ETAG, header::LAST_MODIFIED, header::ACCEPT_RANGES] {
        headers.remove(name);
    }
    for name in ["content-md5", "digest", "content-digest", "repr-digest"] {
        headers.remove(HeaderName::from_static(name));
    }
}
