//! `[store]`: where sessions are kept, and what Redis needs.

use std::path::Path;

use crate::config::check::Check;
use crate::config::raw::{RawConfig, StoreKind, StoreMode};
use crate::config::{Redis, RedisServers, RedisUrl, Store, address};

impl Check<'_> {
    pub(crate) fn store(&mut self, raw: &RawConfig, state_dir: Option<&Path>) -> Option<Store> {
        match raw.store_kind.value? {
            StoreKind::Memory => {
                self.no_redis(raw);
                Some(Store::Memory)
            }
            StoreKind::File => {
                self.no_redis(raw);
                // A folder of its own, closed to all: the homeserver has to read what is in `tls` beside it.
                Some(Store::File { directory: state_dir?.join("sessions") })
            }
            StoreKind::Redis => self.redis(raw).map(Store::Redis),
        }
    }

    fn no_redis(&mut self, raw: &RawConfig) {
        let why = "is not used unless store.kind is \"redis\"";
        self.unused(&raw.store_url, why);
        self.unused(&raw.store_urls, why);
        self.unused(&raw.store_master, why);
        self.unused(&raw.store_username, why);
        self.unused(&raw.store_password, why);
        self.unused(&raw.store_password_file, why);
        self.unused(&raw.store_sentinel_password, why);
        self.unused(&raw.store_sentinel_password_file, why);
        self.unused(&raw.store_ca_file, why);
    }

    fn redis(&mut self, raw: &RawConfig) -> Option<Redis> {
        let password = self.secret(&raw.store_password, &raw.store_password_file);
        let sentinel_password = self.secret(&raw.store_sentinel_password, &raw.store_sentinel_password_file);
        let ca_file = self.ca_file(&raw.store_ca_file);
        let mode = raw.store_mode.value?;
        if mode == StoreMode::Single {
            let why = "is not used unless store.mode is \"sentinel\" or \"cluster\"";
            self.unused(&raw.store_urls, why);
        } else {
            self.unused(&raw.store_url, "is not used unless store.mode is \"single\"");
        }
        if mode != StoreMode::Sentinel {
            let why = "is not used unless store.mode is \"sentinel\"";
            self.unused(&raw.store_master, why);
            self.unused(&raw.store_sentinel_password, why);
            self.unused(&raw.store_sentinel_password_file, why);
        }
        let servers = match mode {
            StoreMode::Single => RedisServers::Single(self.redis_url(raw)?),
            StoreMode::Sentinel => {
                if raw.store_master.value.is_none() && !raw.store_master.is_written() {
                    let write = "write the name that the sentinels know the master by, such as \"mymaster\"";
                    self.missing(&raw.store_master, "is missing", write.to_owned());
                }
                let sentinels = self.redis_urls(raw, "the URLs of the sentinels");
                RedisServers::Sentinel { sentinels: sentinels?, master: raw.store_master.value.clone()? }
            }
            StoreMode::Cluster => RedisServers::Cluster(self.redis_urls(raw, "the URLs of some of the nodes")?),
        };
        Some(Redis { servers, username: raw.store_username.value.clone(), password, sentinel_password, ca_file })
    }

    fn redis_url(&mut self, raw: &RawConfig) -> Option<RedisUrl> {
        if !raw.store_url.is_written() {
            self.missing(&raw.store_url, "is missing", "write \"redis://host:6379\", or rediss:// for TLS".to_owned());
        }
        let url = raw.store_url.value.clone()?;
        if in_clear(&url) {
            self.warn(&raw.store_url, IN_CLEAR, "write a rediss URL");
        }
        Some(url)
    }

    fn redis_urls(&mut self, raw: &RawConfig, what: &str) -> Option<Vec<RedisUrl>> {
        let urls = raw.store_urls.value.clone();
        if !raw.store_urls.is_written() {
            self.missing(&raw.store_urls, "is missing", format!("write {what}, in brackets"));
        } else if urls.as_ref().is_some_and(Vec::is_empty) {
            self.fault(&raw.store_urls, "is empty", format!("write {what}"));
        }
        let urls = urls.filter(|urls| !urls.is_empty())?;
        if urls.iter().any(|url| url.tls) && !urls.iter().all(|url| url.tls) {
            self.fault(
                &raw.store_urls,
                "has URLs with TLS and without",
                "write all of them with redis:// or all with rediss://",
            );
        } else if urls.iter().any(in_clear) {
            self.warn(&raw.store_urls, IN_CLEAR, "write rediss URLs");
        }
        Some(urls)
    }
}

const IN_CLEAR: &str = "sessions, and the password, travel in clear";

fn in_clear(url: &RedisUrl) -> bool {
    !url.tls && !address::is_loopback(&url.host)
}
