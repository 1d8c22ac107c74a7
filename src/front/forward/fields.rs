//! Header fields on their way through: which are for the next hop only, and whose request it is.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::serve::{Peer, is_trusted};
use crate::wire;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Drops what concerns one connection only: all that any `Connection` line names, and what always does
/// ([RFC 9110 §7.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1)). `Transfer-Encoding: chunked` stays, as
/// hyper's order to frame the body anew.
pub(super) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        for name in named_by_connection(headers) {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::UPGRADE);
    if headers.contains_key(header::TE) {
        keep_trailers_only(headers);
    }
}

/// Says whose request it is: a trusted peer's word is passed on byte for byte, anybody else's is replaced.
pub(super) fn forwarded_for(headers: &mut HeaderMap, peer: Peer, trusted: &[IpNet]) {
    if is_trusted(peer, trusted) && headers.contains_key(FORWARDED_FOR) {
        return;
    }
    let address = match peer {
        Peer::Ip(ip) => HeaderValue::from_str(&ip.to_string()).ok(),
        Peer::Local => Some(HeaderValue::from_static("127.0.0.1")),
    };
    match address {
        Some(address) => headers.insert(FORWARDED_FOR, address),
        None => headers.remove(FORWARDED_FOR),
    };
}

/// Forgets how a body that we have read was sent; true when there was one.
pub(super) fn forget_framing(headers: &mut HeaderMap) -> bool {
    let coded = headers.remove(header::TRANSFER_ENCODING).is_some();
    let counted = headers.remove(header::CONTENT_LENGTH).is_some();
    headers.remove(header::EXPECT);
    headers.remove(header::TRAILER);
    coded || counted
}

/// Asks for the whole answer and in plain bytes.
pub(super) fn ask_for_plain(headers: &mut HeaderMap) {
    for name in [
        header::RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_RANGE,
        header::TE,
    ] {
        headers.remove(name);
    }
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
}

/// The tokens of all lines of a list, lower or upper case as they come.
pub(super) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    tokens(headers, &header::CONNECTION)
        .filter(|token| !token.eq_ignore_ascii_case(b"keep-alive") && !token.eq_ignore_ascii_case(b"close"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .filter(|name| !wire::is_for_everybody(name.as_str()))
        .collect()
}

fn keep_trailers_only(headers: &mut HeaderMap) {
    let trailers = tokens(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(header::TE);
    }
}
