//! Where something is, as the configuration writes it: networks, endpoints, hosts, server names, URLs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use http::Uri;
use ipnet::IpNet;

use crate::config::fault::Wrong;
use crate::config::sms::GatewayUrl;
use crate::config::values::is_all;
use crate::config::{Endpoint, HomeserverAddress, PublicBaseUrl, RedisUrl, Secret};

/// A network, or one address.
pub(crate) fn network(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = text.parse().map_err(|_neither| {
        Wrong::new(format!("{text:?} is neither a network nor an IP address"), "write \"10.0.0.0/8\" or \"10.1.2.3\"")
    })?;
    if network.addr() != network.network() {
        let write = format!(
            "write {:?} for the network or {:?} for the one address",
            network.trunc().to_string(),
            network.addr().to_string()
        );
        return Err(Wrong::new(format!("{text:?} has bits set beyond its prefix"), write));
    }
    Ok(network)
}

/// `127.0.0.1:8080`, `[::1]:8080` or `unix:/path`.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket(text, path).map(Endpoint::Unix);
    }
    text.parse::<SocketAddr>().map(Endpoint::Tcp).map_err(|_no_address| {
        let write = "write an IP address and a port such as \"127.0.0.1:8080\" or \"[::1]:8080\", or \"unix:/path\"";
        Wrong::new(format!("{text:?} is not an address to listen on"), write)
    })
}

fn socket(text: &str, path: &str) -> Result<PathBuf, Wrong> {
    // 107 bytes and a NUL is what the kernel's sockaddr_un holds.
    if !path.starts_with('/') || path.len() > 107 || path.chars().any(char::is_control) {
        let wrong = format!("{text:?} is not the path of a socket");
        return Err(Wrong::new(wrong, "write \"unix:\" and an absolute path of at most 107 bytes"));
    }
    Ok(PathBuf::from(path))
}

/// A Matrix server name; old ones may have upper-case letters.
pub(crate) fn server_name(text: &str) -> Result<String, Wrong> {
    authority(text, "example.org")
}

/// The shim's name as an identity server. Homeservers compare it byte for byte, so there is one spelling: lower case.
pub(crate) fn id_server_name(text: &str) -> Result<String, Wrong> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let wrong = format!("{text:?} has upper-case letters, which homeservers would compare as they stand");
        return Err(Wrong::new(wrong, format!("write {:?}", text.to_ascii_lowercase())));
    }
    authority(text, "localhost:8091")
}

fn authority(text: &str, example: &str) -> Result<String, Wrong> {
    let write = || format!("write a host, with a port if it has one, such as {example:?}");
    if text.contains('/') {
        return Err(Wrong::new(format!("{text:?} has a scheme or a slash"), write()));
    }
    split_authority(text)
        .map(|_| text.to_owned())
        .ok_or_else(|| Wrong::new(format!("{text:?} is not host[:port]"), write()))
}

/// The host of a neighbour: a name or an IP address (IPv6 with or without brackets), without a port.
pub(crate) fn host(text: &str) -> Result<String, Wrong> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() || is_host_name(text) {
        return Ok(bare.to_owned());
    }
    let write = "write a name such as \"mail.example.org\" (an international name in its xn-- form) or an IP address";
    Err(Wrong::new(format!("{text:?} is not a host"), write))
}

/// A host as a URL has it: lower case, IPv6 in brackets.
pub(crate) fn link_host(text: &str) -> Result<String, Wrong> {
    let host = host(text)?.to_ascii_lowercase();
    Ok(if host.contains(':') { format!("[{host}]") } else { host })
}

/// An http(s) URL with at most a path; lower-cased where case means nothing, without a slash at the end and without
/// the scheme's own port, so that its origin is spelled as browsers spell it.
pub(crate) fn base_url(text: &str) -> Result<PublicBaseUrl, Wrong> {
    let write = "write the address clients use, such as \"https://matrix.example.org\"";
    let url = http_url(text, write)?;
    let path = url.uri.path().trim_end_matches('/');
    if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte)) || path.contains("//") {
        return Err(Wrong::new(format!("{text:?} has an odd path"), write));
    }
    let scheme = if url.https { "https" } else { "http" };
    let own_port = if url.https { 443 } else { 80 };
    let port = url.port.filter(|port| *port != own_port).map(|port| format!(":{port}")).unwrap_or_default();
    Ok(PublicBaseUrl(format!("{scheme}://{}{port}{path}", url.host.to_ascii_lowercase())))
}

/// Any page of the web: a query and a fragment may be its own.
pub(crate) fn page_url(text: &str, write: &str) -> Result<(), Wrong> {
    http_url(text.split(['?', '#']).next().unwrap_or(text), write).map(drop)
}

/// `http://host[:port]`, or `unix:/path`.
pub(crate) fn homeserver(text: &str) -> Result<HomeserverAddress, Wrong> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket(text, path).map(HomeserverAddress::Unix);
    }
    let write = "write \"http://127.0.0.1:8008\" or \"unix:/run/synapse.sock\"";
    let url = http_url(text, write)?;
    if url.https {
        return Err(Wrong::new(
            "the shim talks to its homeserver in clear on loopback",
            "write the homeserver's http listener, such as \"http://127.0.0.1:8008\"",
        ));
    }
    if !matches!(url.uri.path(), "" | "/") {
        return Err(Wrong::new(format!("{text:?} has a path, but requests keep theirs"), write));
    }
    let host = url.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(HomeserverAddress::Tcp { host, port: url.port.unwrap_or(80) })
}

/// Where a gateway takes messages. The host has to be written out, so that no message goes elsewhere; path and query may
/// be a template. They may hold a key of the account, so a fault never repeats them.
pub(crate) fn gateway_url(text: &str) -> Result<GatewayUrl, Wrong> {
    let wrong = |wrong| Wrong::new(wrong, "write a URL such as \"https://gateway.example.org/send\"");
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is not an http or https URL"))?;
    let https = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err(wrong("is not an http or https URL")),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(Wrong::new("has a user name", "write the login as a header: Authorization = \"Basic ...\""));
    }
    if path.contains('#') {
        return Err(wrong("has a fragment"));
    }
    let (host, port) = split_authority(authority).ok_or_else(|| wrong("has no host that is written out"))?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let port = port.unwrap_or(if https { 443 } else { 80 });
    Ok(GatewayUrl { https, host: host.to_owned(), port, path: Secret(format!("{slash}{path}")) })
}

/// `redis://host[:port]` or `rediss://host[:port]`. A fault never repeats it: it may have a password in it.
pub(crate) fn redis_url(text: &str) -> Result<RedisUrl, Wrong> {
    let wrong = |wrong| Wrong::new(wrong, "write redis://host[:port], or rediss:// for TLS");
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is not a redis or rediss URL"))?;
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return Err(wrong("is not a redis or rediss URL")),
    };
    if rest.contains('@') {
        return Err(Wrong::new("has a user name or password", "write store.username and store.password_file"));
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = split_authority(authority).ok_or_else(|| wrong("has more or less than a host and a port"))?;
    Ok(RedisUrl { tls, host: host.to_owned(), port })
}

/// Whether what is sent to this host (without brackets) never leaves the machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let by_name = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    by_name || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The host (IPv6 without its brackets) and the port of `host[:port]`.
pub(crate) fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        if !is_host_name(host) {
            return None;
        }
        (host, port)
    };
    match port {
        None => Some((host, None)),
        Some(digits) if is_all(digits, u8::is_ascii_digit) => {
            Some((host, Some(digits.parse().ok().filter(|p| *p != 0)?)))
        }
        Some(_) => None,
    }
}

struct HttpUrl {
    uri: Uri,
    https: bool,
    /// IPv6 in brackets.
    host: String,
    port: Option<u16>,
}

/// An http(s) URL without user, query and fragment; a user's password is never repeated.
fn http_url(text: &str, write: &str) -> Result<HttpUrl, Wrong> {
    let https = text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
    let http = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let extra = [('@', "a user name"), ('?', "a query"), ('#', "a fragment")];
    if let Some((_, what)) = extra.into_iter().find(|(mark, _)| text.contains(*mark)) {
        return Err(Wrong::new(format!("has {what}"), write));
    }
    let wrong = || Wrong::new(format!("{text:?} is not an http or https URL"), write);
    let uri: Uri = text.parse().map_err(|_no_uri| wrong())?;
    let authority = uri.authority().filter(|_| https || http).ok_or_else(wrong)?;
    let (host, port) = split_authority(authority.as_str()).ok_or_else(wrong)?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Ok(HttpUrl { uri, https, host, port })
}

/// Letters, digits, hyphens and, as container networks name their hosts, underscores.
fn is_host_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_label = |label: &str| {
        let inner = label.bytes().all(|byte| is_letter(byte) || byte == b'-');
        inner && matches!(label.len(), 1..=63) && !label.starts_with('-') && !label.ends_with('-')
    };
    let numeric = text.rsplit('.').next().is_some_and(|last| is_all(last, u8::is_ascii_digit));
    // A name whose last label is a number is an IPv4 address or nothing: `127.1` and `1.2.3.999` are neither.
    text.len() <= 253 && text.split('.').all(is_label) && (!numeric || text.parse::<Ipv4Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_host_with_or_without_a_port() {
        let good =
            ["localhost:8091", "localhost", "id.example.org", "my_shim:8091", "127.0.0.1:1", "[::1]:8091", "[::1]"];
        for text in good {
            assert_eq!(id_server_name(text).as_deref(), Ok(text));
        }
        let bad = [
            "",
            " localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:+1",
            "::1",
            "[::1",
            "[::1]8091",
        ];
        let odd = [
            "https://localhost",
            "localhost/",
            "Localhost",
            "a..b",
            "-a",
            "a:1:2",
            "127.1",
            "1.2.3.999",
            "exämple.org",
            "a@b",
        ];
        for text in bad.into_iter().chain(odd) {
            assert!(id_server_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_base_url_has_a_scheme_a_host_and_at_most_a_path() {
        for text in ["https://a", "http://127.0.0.1:8080", "https://a/b/c", "https://xn--exmple-cua.org"] {
            assert_eq!(base_url(text).map(|url| url.as_str().to_owned()).as_deref(), Ok(text));
        }
        let bad = [
            "",
            "a",
            "//a",
            "ftp://a",
            "https:a",
            "https://",
            "https:///a",
            "https://a:0",
            "https://a?b",
            "https://a#b",
        ];
        for text in
            bad.into_iter().chain(["https://a@b", "https://a b", "https://a/\"b", "https://a//b", "https://a/\\b"])
        {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_homeserver_is_spoken_to_in_clear_without_a_path() {
        let tcp = |host: &str, port| Ok(HomeserverAddress::Tcp { host: host.to_owned(), port });
        assert_eq!(homeserver("http://synapse:8008/"), tcp("synapse", 8008));
        assert_eq!(homeserver("http://127.0.0.1"), tcp("127.0.0.1", 80));
        for text in ["https://synapse", "http://synapse/x", "http://a@b", "unix:", "unix:relative", "synapse:8008"] {
            assert!(homeserver(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_gateways_host_is_written_out_and_its_path_may_be_a_template() {
        let rows = [
            ("https://sms.example.org/send", ("sms.example.org", 443, "/send")),
            ("HTTP://[::1]:8080", ("::1", 8080, "/")),
            ("https://a?to={{ to }}&text={{ text }}", ("a", 443, "/?to={{ to }}&text={{ text }}")),
            ("https://a/{{ msisdn }}", ("a", 443, "/{{ msisdn }}")),
        ];
        for (text, expected) in rows {
            let url = gateway_url(text).unwrap();
            assert_eq!((url.host.as_str(), url.port, url.path.expose()), expected);
        }
        let bad = ["", "a", "redis://a", "https://", "https:///a", "https://a:0/", "https://a@b/", "https://a/#b"];
        for text in bad.into_iter().chain(["https://{{ to }}/", "https://a:{{ to }}/", "https://a.{{ to }}/x"]) {
            assert!(gateway_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_is_this_machine_by_name_or_by_address() {
        for host in ["localhost", "LOCALHOST", "mail.localhost", "127.8.9.1", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example.org", "128.0.0.1", "0.0.0.0", "::", "mail"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_network_with_bits_beyond_its_prefix_is_not_guessed_at() {
        assert!(network("10.0.0.0/8").is_ok() && network("10.1.2.3").is_ok() && network("::/0").is_ok());
        for text in ["10.1.2.3/8", "fd00::1/64", "10.0.0.0/33", "10.0.0/8", "", "localhost"] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
