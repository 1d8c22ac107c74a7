//! Rules for single fields, one for whoever reads them: as bytes, or out of hyper's header map.

/// A byte of a field's name.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `name[:port]`, `v4[:port]` or `[v6][:port]`.
pub fn is_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((v6, after)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", after),
            _ => return false,
        },
        None => match host.find(':') {
            Some(at) => host.split_at(at),
            None => (host, ""),
        },
    };
    let port_fits = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.is_empty() || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
        });
    let name_fits = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'));
    name_fits && port_fits
}

/// A `Content-Length` in the one spelling that everybody reads alike
/// ([RFC 9112 §6](https://www.rfc-editor.org/rfc/rfc9112#section-6)).
pub fn content_length(value: &[u8]) -> Option<u64> {
    let plain = value.iter().all(u8::is_ascii_digit) && (1..19).contains(&value.len());
    if !plain || (value.len() > 1 && value.starts_with(b"0")) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a `Transfer-Encoding` is the only one that everybody reads alike.
pub fn is_chunked(value: &[u8]) -> bool {
    value == b"chunked"
}

/// A name that CGI-like servers, which read `_` as `-`, take for one of the two lengths.
pub fn is_lookalike(name: &str) -> bool {
    let length = ["content-length", "transfer-encoding"].into_iter().find(|length| length.len() == name.len());
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    length.is_some_and(|length| name.contains('_') && name.bytes().map(fold).eq(length.bytes()))
}

/// What no `Connection` may have us drop: whose message it is, what it means, and where it ends. A proxy that obeyed
/// `Connection: X-Forwarded-For` hid every client from the server behind it (CVE-2022-31813).
pub fn is_for_everybody(name: &str) -> bool {
    const NAMES: [&str; 16] = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "location",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "x-real-ip",
    ];
    let forwarding = name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"));
    forwarding || NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}
