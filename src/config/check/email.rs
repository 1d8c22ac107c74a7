//! `[email]`: sender, transport, and what a mail server needs.

use std::path::Path;

use lettre::message::Mailbox;

use crate::config::check::Check;
use crate::config::raw::{RawConfig, Transport};
use crate::config::{Email, EmailTransport, RouteMode, Smtp, SmtpLogin, SmtpTls, address};

impl Check<'_> {
    pub(crate) fn email(&mut self, raw: &RawConfig, state_dir: Option<&Path>) -> Option<Email> {
        let from = self.email_from(raw);
        let smtp = self.smtp(raw);
        let transport = match raw.email_transport.value? {
            Transport::Smtp => EmailTransport::Smtp(smtp?),
            Transport::File => EmailTransport::File { directory: state_dir?.join(raw.email_directory.value.as_ref()?) },
            Transport::Log => EmailTransport::Log,
        };
        Some(Email { from: from?, transport })
    }

    /// The sender has no good default; only where no mail is ever sent is one made up.
    fn email_from(&mut self, raw: &RawConfig) -> Option<Mailbox> {
        if raw.email_from.is_written() {
            return raw.email_from.value.clone();
        }
        let routes = [&raw.register_email, &raw.password_email, &raw.account_3pid_email];
        let is_handled = routes.iter().any(|route| route.value == Some(RouteMode::Handle))
            || raw.identity_accept_unannounced.value == Some(true);
        let server_name = raw.server_name.value.as_deref();
        if is_handled && raw.email_transport.value.is_some_and(|transport| transport != Transport::Log) {
            let example = server_name.map_or("example.org", |name| name.split(':').next().unwrap_or(name));
            self.missing(&raw.email_from, "is missing", format!("write \"Example <noreply@{example}>\""));
            return None;
        }
        let host = server_name.and_then(address::split_authority).map_or("localhost", |(host, _)| host);
        format!("noreply@{host}").parse().or_else(|_no_domain| "noreply@localhost".parse()).ok()
    }

    fn smtp(&mut self, raw: &RawConfig) -> Option<Smtp> {
        if raw.email_transport.value? != Transport::Smtp {
            let why = "is not used unless email.transport is \"smtp\"";
            self.unused(&raw.email_host, why);
            self.unused(&raw.email_port, why);
            self.unused(&raw.email_username, why);
            self.unused(&raw.email_password, why);
            self.unused(&raw.email_password_file, why);
            self.unused(&raw.email_ca_file, why);
            return None;
        }
        if !raw.email_host.is_written() {
            self.missing(&raw.email_host, "is missing", "write the name of the mail server".to_owned());
        }
        let login = self.smtp_login(raw);
        let ca_file = self.ca_file(&raw.email_ca_file);
        self.plaintext(raw);
        let tls = raw.email_tls.value?;
        let own_port = match tls {
            SmtpTls::Required => 587,
            SmtpTls::Implicit => 465,
            SmtpTls::None => 25,
        };
        Some(Smtp {
            host: raw.email_host.value.clone()?,
            port: raw.email_port.value.unwrap_or(own_port),
            tls,
            login,
            ca_file,
            max_connections: raw.email_max_connections.value?,
            deadline: raw.email_deadline.value?,
        })
    }

    fn plaintext(&mut self, raw: &RawConfig) {
        let (Some(SmtpTls::None), Some(host)) = (raw.email_tls.value, &raw.email_host.value) else { return };
        match raw.email_allow_plaintext.value {
            Some(false) if !address::is_loopback(host) => self.fault(
                &raw.email_tls,
                format!("\"none\" would send mails and links in clear to {host}"),
                "write \"required\" or \"implicit\", or email.allow_plaintext = true",
            ),
            Some(true) if !address::is_loopback(host) => {
                self.warn(&raw.email_tls, format!("mails and links travel in clear to {host}"), "write \"required\"");
            }
            Some(_) | None => {}
        }
    }

    fn smtp_login(&mut self, raw: &RawConfig) -> Option<SmtpLogin> {
        let has_password = raw.email_password.is_written() || raw.email_password_file.is_written();
        if raw.email_username.is_written() && !has_password {
            self.fault(&raw.email_username, "has no password", "write email.password_file, or remove the user name");
        }
        let password = self.secret(&raw.email_password, &raw.email_password_file);
        if has_password && !raw.email_username.is_written() {
            self.missing(&raw.email_username, "is missing", "write the user name of the password".to_owned());
        }
        Some(SmtpLogin { username: raw.email_username.value.clone()?, password: password? })
    }
}
