//! Upgrades: after a 101 both connections are one, bytes in and bytes out.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, Version, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::fields::tokens;
use crate::homeserver::Answer;
use crate::serve::Drain;

/// A client's wish to speak something else.
pub(super) struct Tunnel {
    client: OnUpgrade,
    protocols: Vec<HeaderValue>,
}

/// A homeserver's consent.
pub(super) struct Agreed {
    client: OnUpgrade,
    homeserver: OnUpgrade,
}

impl Tunnel {
    /// The wish, if there is one that we pass on. Not HTTP/2: the tunnel would carry requests past everything we do
    /// (h2c smuggling). Nor together with a body, which no protocol needs.
    pub(super) fn asked(head: &mut Parts, body: &Incoming) -> Option<Self> {
        let headers = &head.headers;
        if !headers.contains_key(header::UPGRADE)
            || head.method != Method::GET
            || head.version != Version::HTTP_11
            || !body.is_end_stream()
        {
            return None;
        }
        let named = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
        let http2 = |token: &[u8]| token.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"h2"));
        if !named || tokens(headers, &header::UPGRADE).any(http2) {
            return None;
        }
        let protocols = headers.get_all(header::UPGRADE).iter().cloned().collect();
        Some(Self { client: head.extensions.remove::<OnUpgrade>()?, protocols })
    }

    /// Puts the wish back into a head that has lost all hop-by-hop fields.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        for protocol in &self.protocols {
            headers.append(header::UPGRADE, protocol.clone());
        }
    }

    /// The homeserver's 101 for one of the protocols asked for, made ready for the client.
    pub(super) fn agreed(self, response: &mut Response<Answer>) -> Option<Agreed> {
        let protocol = {
            let mut chosen = response.headers().get_all(header::UPGRADE).iter();
            let protocol = chosen.next()?.clone();
            let asked = self.protocols.iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
            let asked = asked.map(<[u8]>::trim_ascii).any(|it| it.eq_ignore_ascii_case(protocol.as_bytes()));
            if chosen.next().is_some() || !asked {
                return None;
            }
            protocol
        };
        let homeserver = response.extensions_mut().remove::<OnUpgrade>()?;
        let headers = response.headers_mut();
        super::fields::drop_hop_by_hop(headers);
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
        Some(Agreed { client: self.client, homeserver })
    }
}

impl Agreed {
    /// Carries bytes both ways until both sides have ended, in the drain's care.
    pub(super) fn dig(self, drain: Option<&Drain>) {
        let carried = async move {
            match tokio::try_join!(self.client, self.homeserver) {
                Ok((client, homeserver)) => {
                    let (mut client, mut homeserver) = (TokioIo::new(client), TokioIo::new(homeserver));
                    // A half that is closed is closed on the other side, the other half goes on.
                    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut homeserver).await {
                        tracing::debug!(%error, "tunnel cut");
                    }
                }
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no tunnel"),
            }
        };
        match drain {
            Some(drain) => drain.spawn(carried),
            None => drop(tokio::spawn(carried)),
        }
    }
}
