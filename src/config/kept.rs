//! What of a configuration is fixed for as long as the process lives.

use std::path::{Path, PathBuf};

use crate::config::{Config, EmailTransport, IdentityTls};

impl Config {
    /// This configuration as far as it can be put in force beside the sockets, connections and files that are there,
    /// and the keys of what has to wait for the next start.
    pub fn keeping(mut self, running: &Self) -> (Self, Vec<&'static str>) {
        let written = &self.state_dir;
        if let EmailTransport::File { directory } = &mut self.email.transport {
            below(directory, written, &running.state_dir);
        }
        if let IdentityTls::Generated { ca_directory } = &mut self.identity.tls {
            below(ca_directory, written, &running.state_dir);
        }
        let mut kept = Kept(Vec::new());
        kept.keep("state_dir", &mut self.state_dir, &running.state_dir);
        let (listen, ours) = (&running.listen, &mut self.listen);
        kept.keep("listen.clients", &mut ours.clients, &listen.clients);
        kept.keep("listen.identity", &mut ours.identity, &listen.identity);
        kept.keep("listen.admin", &mut ours.admin, &listen.admin);
        if ours.tls.is_some() != listen.tls.is_some() {
            kept.keep("listen.tls", &mut ours.tls, &listen.tls);
        }
        kept.keep("listen.h2c", &mut ours.h2c, &listen.h2c);
        kept.keep("listen.proxy_protocol", &mut ours.proxy_protocol, &listen.proxy_protocol);
        let (shutdown, ours) = (&running.shutdown, &mut self.shutdown);
        kept.keep("shutdown.delay", &mut ours.delay, &shutdown.delay);
        kept.keep("shutdown.grace", &mut ours.grace, &shutdown.grace);
        let (homeserver, ours) = (&running.homeserver, &mut self.homeserver);
        kept.keep("homeserver.url", &mut ours.address, &homeserver.address);
        kept.keep("homeserver.connect_timeout", &mut ours.connect_timeout, &homeserver.connect_timeout);
        kept.keep("homeserver.needs_shim", &mut ours.needs_shim, &homeserver.needs_shim);
        // Requests on their way have the homeserver call us by the old name, and it has to be told the new one anyway.
        kept.keep("identity.name", &mut self.identity.name, &running.identity.name);
        kept.keep("clients.trusted_proxies", &mut self.trusted_proxies, &running.trusted_proxies);
        kept.keep("store", &mut self.store, &running.store);
        kept.keep("log.format", &mut self.log.format, &running.log.format);
        (self, kept.0)
    }
}

/// A folder below the `state_dir` that was written is below the one that is kept.
fn below(folder: &mut PathBuf, written: &Path, kept: &Path) {
    if let Ok(rest) = folder.strip_prefix(written) {
        *folder = kept.join(rest);
    }
}

struct Kept(Vec<&'static str>);

impl Kept {
    fn keep<T: PartialEq + Clone>(&mut self, key: &'static str, ours: &mut T, running: &T) {
        if ours != running {
            ours.clone_from(running);
            self.0.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "server_name = \"example.org\"\npublic_base_url = \"https://matrix.example.org\"\n\
                        email.from = \"noreply@example.org\"\n";

    fn config(more: &str) -> Config {
        Config::from_text(&format!("{GOOD}{more}")).unwrap()
    }

    #[test]
    fn what_cannot_change_beside_what_is_open_is_kept_and_named() {
        let running = config("");
        let rows = [
            ("state_dir", "state_dir = \"/elsewhere\""),
            ("listen.clients", "listen.clients = [\"127.0.0.1:1\"]"),
            ("listen.identity", "listen.identity = [\"127.0.0.1:2\"]"),
            ("listen.admin", "listen.admin = []"),
            ("shutdown.delay", "shutdown.delay = \"1s\""),
            ("shutdown.grace", "shutdown.grace = \"50s\""),
            ("homeserver.url", "homeserver.url = \"unix:/run/synapse.sock\""),
            ("homeserver.connect_timeout", "homeserver.connect_timeout = \"1s\""),
            ("homeserver.needs_shim", "homeserver.needs_shim = \"yes\""),
            ("identity.name", "identity.name = \"elsewhere\""),
            ("clients.trusted_proxies", "clients.trusted_proxies = []"),
            ("log.format", "log.format = \"json\""),
        ];
        let all: Vec<&str> = rows.iter().map(|(_, line)| *line).collect();
        let (kept, keys) = config(&all.join("\n")).keeping(&running);
        assert_eq!(keys, rows.map(|(key, _)| key));
        let show = |config: &Config| format!("{:?}", Config { warnings: Vec::new(), ..config.clone() });
        assert_eq!(show(&kept), show(&running), "and the outbox stays where it was");
    }

    #[test]
    fn everything_else_is_taken_as_it_was_written() {
        let written = "limits.submit_token_per_ip = \"1/1h\"\nroutes.register.email = \"refuse\"\nlog.level = \"warn\"\n\
                       session.hide_existence = true\nemail.directory = \"/mails\"\nidentity.allowed_peers = []\n";
        let (taken, keys) = config(written).keeping(&config(""));
        assert_eq!(keys, Vec::<&str>::new());
        assert_eq!(format!("{taken:?}"), format!("{:?}", config(written)));
    }
}
