//! Whose request it is once the proxies we trust have spoken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use super::Peer;

/// The rightmost address of all `X-Forwarded-For` lines that is no trusted proxy's, since everything to its left is
/// hearsay (CVE-2022-31813 and its kin). A peer that is not trusted is the client itself. A unix socket counts as
/// trusted, and as 127.0.0.1 when nothing is named.
pub fn client_ip(headers: &HeaderMap, peer: Peer, trusted: &[IpNet]) -> IpAddr {
    let mut nearest = match peer {
        Peer::Ip(ip) => ip.to_canonical(),
        Peer::Local => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    if !is_trusted(peer, trusted) {
        return nearest;
    }
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    for hop in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        // What cannot be read hides whoever is to its left: the proxy that passed it on answers for it.
        let Some(ip) = parse(hop) else { return nearest };
        nearest = ip;
        if !contains(trusted, ip) {
            return nearest;
        }
    }
    nearest
}

/// Whether a peer is of these networks, so that its `X-Forwarded-For` is believed, or it may come in. Who can connect to a unix
/// socket is of all.
pub(crate) fn is_trusted(peer: Peer, trusted: &[IpNet]) -> bool {
    match peer {
        Peer::Ip(ip) => contains(trusted, ip.to_canonical()),
        Peer::Local => true,
    }
}

/// What one host commands: an IPv4 address, or the /64 of an IPv6 address, by its first.
pub(crate) fn host(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

fn contains(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&ip))
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let ip = hop
        .parse::<IpAddr>()
        .or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()))
        .or_else(|_| hop.trim_start_matches('[').trim_end_matches(']').parse())
        .ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(lines: &[&str], peer: &str) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        let peer = if peer == "unix" { Peer::Local } else { Peer::Ip(peer.parse().unwrap()) };
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        client_ip(&headers, peer, &trusted).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxy_is_the_client() {
        let rows: &[(&[&str], &str, &str)] = &[
            (&[], "192.0.2.1", "192.0.2.1"),
            (&["198.51.100.7"], "192.0.2.1", "192.0.2.1"),
            (&[], "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.7"], "10.0.0.1", "198.51.100.7"),
            (&["203.0.113.9, 198.51.100.7"], "10.0.0.1", "198.51.100.7"),
            (&["203.0.113.9", "198.51.100.7"], "10.0.0.1", "198.51.100.7"),
            (&["203.0.113.9, 198.51.100.7, 10.1.1.1"], "10.0.0.1", "198.51.100.7"),
            (&["203.0.113.9, 198.51.100.7", "10.1.1.1,10.2.2.2"], "10.0.0.1", "198.51.100.7"),
            (&["10.3.3.3, 10.1.1.1"], "10.0.0.1", "10.3.3.3"),
            (&["203.0.113.9, unknown, 10.1.1.1"], "10.0.0.1", "10.1.1.1"),
            (&["203.0.113.9, "], "10.0.0.1", "10.0.0.1"),
            (&["198.51.100.7:4711"], "10.0.0.1", "198.51.100.7"),
            (&["[2001:db8::7]:4711"], "10.0.0.1", "2001:db8::7"),
            (&["[2001:db8::7]"], "10.0.0.1", "2001:db8::7"),
            (&["2001:db8::7"], "::1", "2001:db8::7"),
            (&["::ffff:198.51.100.7"], "::ffff:10.0.0.1", "198.51.100.7"),
            (&["198.51.100.7"], "unix", "198.51.100.7"),
            (&[], "unix", "127.0.0.1"),
        ];
        for (lines, peer, expected) in rows {
            assert_eq!(seen(lines, peer), *expected, "{lines:?} from {peer}");
        }
        assert_eq!(rows.len(), 18);
    }
}
