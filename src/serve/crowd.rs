//! How many connections a door holds at once, in all and of one peer: whoever comes beyond is closed on at once.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use ipnet::IpNet;

use super::{Peer, host, is_trusted};
use crate::config::Config;
use crate::telemetry::{Metrics, Seldom, TurnedAway};

/// The connections of one door. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Crowd(Arc<Shared>);

struct Shared {
    /// The limits in force, and whose connections are not counted by peer.
    config: Arc<ArcSwap<Config>>,
    exempt: fn(&Config) -> &[IpNet],
    open: AtomicUsize,
    by_peer: DashMap<IpAddr, usize>,
    metrics: Metrics,
    said: Seldom,
}

/// A place among all connections; given back when dropped.
pub(super) struct Place(Crowd);

/// A place among those of one peer.
pub(super) struct PlaceOfPeer(Option<(Crowd, IpAddr)>);

/// Too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Crowd {
    /// `exempt`: the networks whose every address stands for many clients.
    pub fn new(config: Arc<ArcSwap<Config>>, exempt: fn(&Config) -> &[IpNet], metrics: Metrics) -> Self {
        let (open, by_peer, said) = (AtomicUsize::new(0), DashMap::new(), Seldom::default());
        Self(Arc::new(Shared { config, exempt, open, by_peer, metrics, said }))
    }

    /// As one of all.
    pub(super) fn enter(&self) -> Result<Place, Full> {
        let most = self.0.config.load().limits.connections;
        // Counted before it is compared: two that come at once see each other.
        let before = self.0.open.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone());
        if before < most { Ok(place) } else { Err(self.turn_away("connections")) }
    }

    /// As one of a peer's.
    pub(super) fn enter_as(&self, peer: Peer) -> Result<PlaceOfPeer, Full> {
        let config = self.0.config.load();
        let ip = match peer {
            Peer::Ip(ip) if !is_trusted(peer, (self.0.exempt)(&config)) => host(ip),
            Peer::Ip(_) | Peer::Local => return Ok(PlaceOfPeer(None)),
        };
        {
            let mut open = self.0.by_peer.entry(ip).or_default();
            if *open < config.limits.connections_per_peer {
                *open += 1;
                return Ok(PlaceOfPeer(Some((self.clone(), ip))));
            }
        }
        Err(self.turn_away("connections_per_peer"))
    }

    fn turn_away(&self, limit: &'static str) -> Full {
        self.0.metrics.turned_away.get_or_create(&TurnedAway { limit }).inc();
        if let Some(closed) = self.0.said.happened() {
            tracing::warn!(limit, closed, "too many connections: new ones are closed");
        }
        Full
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for PlaceOfPeer {
    fn drop(&mut self) {
        let Some((crowd, ip)) = &self.0 else { return };
        // One that holds nothing takes no memory.
        crowd.0.by_peer.remove_if_mut(ip, |_, open| {
            *open -= 1;
            *open == 0
        });
    }
}

impl fmt::Debug for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crowd").field("open", &self.0.open).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(limits: &str) -> Crowd {
        let text = format!(
            "server_name = \"example.org\"\npublic_base_url = \"https://example.org\"\n\
             clients.trusted_proxies = [\"10.0.0.0/8\"]\n[limits]\n{limits}\n\
             [email]\nfrom = \"a@example.org\"\n"
        );
        let config = Config::from_text(&text).unwrap();
        Crowd::new(Arc::new(ArcSwap::from_pointee(config)), |config| &config.trusted_proxies, Metrics::new())
    }

    fn from(ip: &str) -> Peer {
        Peer::Ip(ip.parse().unwrap())
    }

    #[test]
    fn a_place_is_for_one_and_free_again_behind_it() {
        let crowd = crowd("connections = 2");
        let (one, two) = (crowd.enter().unwrap(), crowd.enter().unwrap());
        assert_eq!(crowd.enter().err(), Some(Full));
        drop(one);
        let three = crowd.enter().unwrap();
        assert_eq!(crowd.enter().err(), Some(Full), "who was turned away holds no place");
        drop((two, three));
        assert_eq!(crowd.0.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_ipv6_peer_is_its_64_bit_network_and_a_trusted_proxy_is_many() {
        let crowd = crowd("connections_per_peer = 1");
        let rows = [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("10.1.2.3", "10.1.2.3", false),
        ];
        for (one, other, full) in rows {
            let held = crowd.enter_as(from(one)).unwrap();
            assert_eq!(crowd.enter_as(from(other)).is_err(), full, "{one} and {other}");
            drop(held);
            assert!(crowd.enter_as(from(one)).is_ok());
        }
        let _sockets = [(); 3].map(|()| crowd.enter_as(Peer::Local).unwrap());
        assert!(crowd.0.by_peer.is_empty());
    }
}
