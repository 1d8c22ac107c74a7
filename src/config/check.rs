//! `RawConfig` → `Config`: what keys must say together. Every fault is collected; a key that is wrong by itself is not
//! blamed a second time.

mod branding;
mod email;
mod sms;
mod store;

use std::path::{Path, PathBuf};

use crate::config::fault::{Fault, Faults, Place, Wrong};
use crate::config::raw::RawConfig;
use crate::config::source::{Reading, Source};
use crate::config::written::{Given, Sheet, shown};
use crate::config::{
    Config, Endpoint, Homeserver, Identity, IdentityTls, Limits, Listen, Log, NamedIdServer, Routes, Secret,
    SessionRules, Shutdown, TlsFiles, Wording, address, named_file,
};

/// Checks all that was written; relative paths of files to be read begin at `folder`, and `source` notes each of them.
pub(crate) fn check(mut sheet: Sheet, folder: &Path, source: Source) -> Reading {
    let raw = RawConfig::take(&mut sheet);
    let mut check = Check { sheet, folder, source, warnings: Vec::new() };
    let config = match check.config(&raw) {
        Some(config) if check.sheet.faults.is_empty() => Ok(Config { warnings: check.warnings, ..config }),
        Some(_) | None => Err(Faults::sorted(check.sheet.faults)),
    };
    Reading { config, source: check.source }
}

/// The check under way. Its methods give `None` once a fault has been noted.
pub(crate) struct Check<'a> {
    sheet: Sheet,
    folder: &'a Path,
    source: Source,
    warnings: Vec<String>,
}

impl Check<'_> {
    fn config(&mut self, raw: &RawConfig) -> Option<Config> {
        let state_dir = raw.state_dir.value.as_ref().map(|path| self.folder.join(path));
        self.public_base_url(raw);
        let listen = self.listen(raw);
        let shutdown = self.shutdown(raw);
        let identity = self.identity(raw, state_dir.as_deref());
        self.networks("is believed whatever address it claims", &raw.trusted_proxies);
        let routes = self.routes(raw);
        let email = self.email(raw, state_dir.as_deref());
        let sms = self.sms(raw);
        let wording = self.wording(raw);
        let branding = self.branding(raw);
        let store = self.store(raw, state_dir.as_deref());
        Some(Config {
            server_name: raw.server_name.value.clone()?,
            public_base_url: raw.public_base_url.value.clone()?,
            state_dir: state_dir?,
            listen: listen?,
            shutdown: shutdown?,
            homeserver: Homeserver {
                address: raw.homeserver_url.value.clone()?,
                connect_timeout: raw.homeserver_connect_timeout.value?,
                needs_shim: raw.homeserver_needs_shim.value?,
            },
            identity: identity?,
            trusted_proxies: raw.trusted_proxies.value.clone()?,
            routes: routes?,
            session: SessionRules {
                unvalidated_lifetime: raw.unvalidated_lifetime.value?,
                validated_lifetime: raw.validated_lifetime.value?,
                next_link_hosts: raw.next_link_hosts.value.clone()?,
                hide_existence: raw.hide_existence.value?,
            },
            store: store?,
            email: email?,
            sms: sms?,
            limits: Limits {
                request_token_per_ip: raw.request_token_per_ip.value?,
                request_token_per_address: raw.request_token_per_address.value?,
                request_token_per_client_secret: raw.request_token_per_client_secret.value?,
                email_total: raw.email_total.value?,
                submit_token_per_ip: raw.submit_token_per_ip.value?,
                sms_per_number: raw.sms_per_number.value?,
                sms_per_country: raw.sms_per_country.value?,
                sms_per_day: raw.sms_per_day.value?,
                connections: raw.connections.value?,
                connections_per_peer: raw.connections_per_peer.value?,
            },
            wording: wording?,
            branding,
            log: Log { format: raw.log_format.value?, level: raw.log_level.value? },
            warnings: Vec::new(),
            source: self.source.clone(),
        })
    }

    fn public_base_url(&mut self, raw: &RawConfig) {
        let Some(url) = &raw.public_base_url.value else { return };
        let Some(authority) = url.origin().strip_prefix("http://") else { return };
        if !address::split_authority(authority).is_some_and(|(host, _)| address::is_loopback(host)) {
            self.warn(
                &raw.public_base_url,
                "the links in mails and their tokens travel in clear",
                "write an https URL",
            );
        }
    }

    fn listen(&mut self, raw: &RawConfig) -> Option<Listen> {
        let doors = [&raw.listen_clients, &raw.listen_identity, &raw.listen_admin];
        let mut taken: Vec<(&Endpoint, &str)> = Vec::new();
        for door in doors {
            for endpoint in door.value.iter().flatten() {
                if let Some((_, other)) = taken.iter().find(|(other, _)| collide(endpoint, other)) {
                    let wrong = format!("{:?} is already taken by {other}", endpoint.to_string());
                    self.fault(door, wrong, "write another port or path");
                }
                taken.push((endpoint, door.key));
            }
        }
        for (door, whom) in [(&raw.listen_clients, "clients"), (&raw.listen_identity, "the homeserver")] {
            if door.value.as_ref().is_some_and(Vec::is_empty) {
                self.fault(door, format!("is empty, so that {whom} cannot come in"), "write at least one address");
            }
        }
        let only_tcp = !raw.listen_clients.value.iter().flatten().any(|one| matches!(one, Endpoint::Unix(_)));
        let nobody = raw.trusted_proxies.value.as_ref().is_some_and(Vec::is_empty);
        if raw.listen_proxy_protocol.value == Some(true) && only_tcp && nobody {
            let wrong = "is true, so that nobody can come in: no proxy is trusted";
            self.fault(&raw.listen_proxy_protocol, wrong, "write the proxy's network into clients.trusted_proxies");
        }
        let tls = self.tls_files(&raw.listen_tls_certificate, &raw.listen_tls_private_key);
        Some(Listen {
            clients: raw.listen_clients.value.clone()?,
            identity: raw.listen_identity.value.clone()?,
            admin: raw.listen_admin.value.clone()?,
            tls,
            h2c: raw.listen_h2c.value?,
            proxy_protocol: raw.listen_proxy_protocol.value?,
        })
    }

    fn shutdown(&mut self, raw: &RawConfig) -> Option<Shutdown> {
        let grace = raw.shutdown_grace.value?;
        if grace.as_secs() < 30 {
            self.warn(&raw.shutdown_grace, "a /sync waits 30 seconds and would be cut", "write \"30s\" or more");
        }
        Some(Shutdown { delay: raw.shutdown_delay.value?, grace })
    }

    fn identity(&mut self, raw: &RawConfig, state_dir: Option<&Path>) -> Option<Identity> {
        let what = if raw.identity_accept_unannounced.value == Some(true) {
            "may have messages sent, and ask which addresses have been confirmed"
        } else {
            "may ask which addresses have been confirmed"
        };
        self.networks(what, &raw.identity_allowed_peers);
        let files = self.tls_files(&raw.identity_tls_certificate, &raw.identity_tls_private_key);
        Some(Identity {
            name: raw.identity_name.value.clone()?,
            allowed_peers: raw.identity_allowed_peers.value.clone()?,
            accept_unannounced: raw.identity_accept_unannounced.value?,
            tls: match files {
                Some(files) => IdentityTls::Files(files),
                None => {
                    IdentityTls::Generated { ca_directory: state_dir?.join(raw.identity_ca_directory.value.as_ref()?) }
                }
            },
        })
    }

    /// A network of all addresses is allowed (a sealed container network may want it), but seldom meant.
    fn networks(&mut self, what: &str, given: &Given<Vec<ipnet::IpNet>>) {
        for everybody in given.value.iter().flatten().filter(|network| network.prefix_len() == 0) {
            self.warn(given, format!("with {everybody} everybody {what}"), "write the networks that are meant");
        }
    }

    fn routes(&mut self, raw: &RawConfig) -> Option<Routes> {
        let named_id_server = raw.named_id_server.value;
        let some_trusted = raw.trusted_id_servers.value.as_ref().is_some_and(|names| !names.is_empty());
        if some_trusted && named_id_server.is_some_and(|mode| mode != NamedIdServer::Forward) {
            let wrong = "says nothing unless routes.named_id_server is \"forward\"";
            self.warn(&raw.trusted_id_servers, wrong, "remove it");
        }
        Some(Routes {
            register_email: raw.register_email.value?,
            register_msisdn: raw.register_msisdn.value?,
            password_email: raw.password_email.value?,
            password_msisdn: raw.password_msisdn.value?,
            account_3pid_email: raw.account_3pid_email.value?,
            account_3pid_msisdn: raw.account_3pid_msisdn.value?,
            versions: raw.versions.value?,
            account_3pid_add: raw.account_3pid_add.value?,
            named_id_server: named_id_server?,
            trusted_id_servers: raw.trusted_id_servers.value.clone()?,
        })
    }

    fn tls_files(&mut self, certificate: &Given<PathBuf>, private_key: &Given<PathBuf>) -> Option<TlsFiles> {
        for (present, absent) in [(certificate, private_key), (private_key, certificate)] {
            if present.is_written() && !absent.is_written() {
                self.missing(absent, "is missing", format!("write it, or remove {}", present.key));
            }
        }
        let files = (self.beside(certificate), self.beside(private_key));
        let chain = files.0.as_ref().and_then(|path| self.noted(certificate, named_file::certificates(path)));
        let key = files.1.as_ref().and_then(|path| self.noted(private_key, named_file::private_key(path)));
        let key = key.map(|found| self.with_warning(private_key, found));
        self.noted(certificate, named_file::belong_together(chain?, &key?));
        Some(TlsFiles { certificate: files.0?, private_key: files.1? })
    }

    fn ca_file(&mut self, given: &Given<PathBuf>) -> Option<PathBuf> {
        let path = self.beside(given)?;
        self.noted(given, named_file::certificates(&path))?;
        Some(path)
    }

    fn wording(&mut self, raw: &RawConfig) -> Option<Wording> {
        let directory = self.beside(&raw.wording_directory);
        // Writing a default changes nothing: `templates` may be absent, written or not.
        let may_be_absent = raw.wording_directory.value.as_deref() == Some(Path::new("templates"));
        let templates = named_file::templates(&directory?, may_be_absent);
        Some(Wording {
            templates: self.noted(&raw.wording_directory, templates)?,
            default_language: raw.default_language.value.clone()?,
        })
    }

    /// A secret, written here or alone in a file.
    fn secret(&mut self, inline: &Given<Secret>, file: &Given<PathBuf>) -> Option<Secret> {
        if inline.is_written() && file.is_written() {
            self.fault(file, format!("is written besides {}", inline.key), "keep one of the two");
        }
        self.warn_if_others_may_read(inline);
        if !file.is_written() {
            return inline.value.clone();
        }
        let path = self.beside(file)?;
        self.noted(file, named_file::secret(&path)).map(|found| self.with_warning(file, found))
    }

    /// For what is secret and stands in the configuration file itself.
    fn warn_if_others_may_read<T>(&mut self, inline: &Given<T>) {
        if let Some(Place::Line { file, .. }) = &inline.place
            && let Some(warning) = named_file::others_may_read(Path::new(file))
        {
            self.warn(inline, warning.wrong, warning.write);
        }
    }

    /// A file to be read: beside the configuration file.
    fn beside(&mut self, given: &Given<PathBuf>) -> Option<PathBuf> {
        let path = given.value.as_ref().map(|path| self.folder.join(path))?;
        self.source.note(&path);
        Some(path)
    }

    fn noted<T, V>(&mut self, given: &Given<T>, result: Result<V, Wrong>) -> Option<V> {
        result.map_err(|wrong| self.fault(given, wrong.wrong, wrong.write)).ok()
    }

    fn with_warning<T, V>(&mut self, given: &Given<T>, found: named_file::Found<V>) -> V {
        if let Some(warning) = found.warning {
            self.warn(given, warning.wrong, warning.write);
        }
        found.value
    }

    fn unused<T>(&mut self, given: &Given<T>, why: &str) {
        if given.is_written() {
            self.warn(given, why, "remove it");
        }
    }

    fn missing<T>(&mut self, given: &Given<T>, wrong: &str, write: String) {
        self.fault(given, wrong, write);
    }

    fn fault<T>(&mut self, given: &Given<T>, wrong: impl Into<String>, write: impl Into<String>) {
        let fault = self.at(given, Wrong::new(wrong, write));
        self.sheet.faults.push(fault);
    }

    fn warn<T>(&mut self, given: &Given<T>, wrong: impl Into<String>, write: impl Into<String>) {
        let warning = self.at(given, Wrong::new(wrong, write));
        self.warnings.push(warning.to_string());
    }

    fn at<T>(&self, given: &Given<T>, wrong: Wrong) -> Fault {
        let place = given.place.clone().unwrap_or_else(|| self.sheet.nowhere());
        Fault { key: shown(given.key, &place), place, wrong }
    }
}

/// Whether two sockets cannot both be opened: the same one, or all addresses of a family beside one of it. Port 0 is a
/// new port each time.
fn collide(a: &Endpoint, b: &Endpoint) -> bool {
    let (Endpoint::Tcp(a), Endpoint::Tcp(b)) = (a, b) else { return a == b };
    let same_host =
        a.ip() == b.ip() || a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified());
    a.port() != 0 && a.port() == b.port() && same_host
}
