//! What the shim has by itself: its folder, its store, the way out for mails and messages, its wording.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::{Report, Verdict};
use crate::config::{Config, EmailTransport, Fault, SmsTransport, SmtpTls};
use crate::delivery::{Delivery, DeliveryError, Mail, Stage};
use crate::matrix::{Address, Purpose, Sid};
use crate::random;
use crate::serve::Clock;
use crate::state_dir::{self, StateDir};
use crate::store::{Change, ForeignSid, Key, Store};
use crate::telemetry::{Metrics, RequestId, chain};
use crate::wording::{MailFacts, Wording};

/// Whether what follows may write where the shim writes: what root makes there, the shim's user cannot use.
pub(super) fn state_dir(report: &mut Report, config: &Config) -> bool {
    let folder = config.state_dir.display();
    let owner = |path: &std::path::Path| fs::metadata(path).map(|found| found.uid());
    match (owner(&config.state_dir), owner("/proc/self".as_ref())) {
        (Ok(owner), Ok(me)) if owner != me => {
            let says = format!("{folder} belongs to user {owner}, and this is user {me}");
            report.bad("state", says, "state_dir", format!("run doctor as the shim's user: setpriv --reuid={owner}"));
            return false;
        }
        (Err(error), _) if error.kind() != std::io::ErrorKind::NotFound => {
            let write = "write a folder that the shim's user may read and write";
            report.bad("state", format!("{folder}: {error}"), "state_dir", write);
            return false;
        }
        _ => {}
    }
    match state_dir::prepare(config) {
        Err(error) => {
            let write = "write a folder that the shim's user may make, or make it for him";
            report.bad("state", chain(&error), "state_dir", write);
            return false;
        }
        Ok(StateDir::Closed) => report.good("state", format!("{folder} is there, and closed to others")),
        Ok(StateDir::Foreign(mode)) => {
            report.good("state", format!("{folder} is there; its owner has opened it to others ({mode:04o})"));
        }
        Ok(StateDir::Through) => {
            let says = format!("others can go through {folder}, since the homeserver may be reading the CA below it");
            let change = format!(
                "{}: identity.ca_directory: write a folder elsewhere, and the homeserver's SSL_CERT_FILE after it",
                report.file
            );
            report.add("state", Verdict::Warning, says, Some(change));
        }
    }
    true
}

pub(super) async fn store(report: &mut Report, config: &Config) {
    use crate::config::Store as Kind;
    let key = match &config.store {
        Kind::Memory => {
            report.good("store", "in memory: a restart forgets links that were mailed");
            return;
        }
        Kind::File { .. } => "store.kind",
        Kind::Redis(_) => "store.url",
    };
    let now = Clock::system().now();
    let tried = match Store::open(&config.store, &Metrics::new()) {
        Ok(store) => {
            // A record of its own that nobody asks for, and that is over at once: what can be written can be read.
            let put = |_| {
                let record = ForeignSid { id_server: "doctor".to_owned() };
                (Change::Put { record, until: now.after(Duration::from_secs(1)) }, ())
            };
            store.update(&Key::foreign_sid("threepid-shim doctor"), now, put).await.map_err(|error| chain(&error))
        }
        Err(error) if error.is_in_use() => {
            report.good("store", "the file is held by the shim that runs");
            return;
        }
        Err(error) => Err(chain(&error)),
    };
    match tried {
        Ok(()) => report.good("store", "takes a record and keeps it"),
        Err(why) if matches!(config.store, Kind::Redis(_)) => {
            let write =
                format!("write where Redis is, and how to log in to it (store.password_file, store.ca_file); {why}");
            report.bad("store", "Redis cannot be used", key, write);
        }
        Err(why) => {
            let says = format!("the file in {} cannot be used: {why}", config.state_dir.display());
            report.bad(
                "store",
                says,
                "state_dir",
                "write a folder on a disk that takes it, or give the file back to the shim's user",
            );
        }
    }
}

pub(super) async fn mail(report: &mut Report, config: &Config, send_test_mail: Option<&str>) {
    let Some(delivery) = delivery(report, config) else { return };
    match delivery.try_mail().await {
        Err(error) => {
            mail_failed(report, config, &error);
            return;
        }
        Ok(()) => match &config.email.transport {
            EmailTransport::Smtp(smtp) => {
                let login = if smtp.login.is_some() { ", with login" } else { "" };
                report.good("mail", format!("{}:{} can be used{login}", smtp.host, smtp.port));
            }
            EmailTransport::File { directory } => {
                let change = format!("{}: email.transport: write \"smtp\"", report.file);
                let says = format!("mails go to nobody, but into {}", directory.display());
                report.add("mail", Verdict::Warning, says, Some(change));
            }
            EmailTransport::Log => {
                let change = format!("{}: email.transport: write \"smtp\"", report.file);
                report.add("mail", Verdict::Warning, "mails go nowhere", Some(change));
            }
        },
    }
    let Some(to) = send_test_mail else { return };
    match test_mail(config, &delivery, to).await {
        Ok(()) => report.good("test mail", "taken; look whether it came, and not as spam"),
        Err(TestMail::Delivery(error)) => mail_failed(report, config, &error),
        Err(TestMail::Unwritten(why)) => {
            report.bad_elsewhere("test mail", why, "command line: --send-test-mail: write one address, a@example.org");
        }
    }
}

enum TestMail {
    Delivery(DeliveryError),
    Unwritten(String),
}

/// What the shim mails, but with a link that confirms nothing.
async fn test_mail(config: &Config, delivery: &Delivery, to: &str) -> Result<(), TestMail> {
    let unwritten = |error: &dyn std::error::Error| TestMail::Unwritten(error.to_string());
    let no_randomness = |_| TestMail::Unwritten("no randomness".to_owned());
    let to = Address::email(to).map_err(|error| unwritten(&error))?;
    let wording = Wording::of(config).map_err(|error| unwritten(&error))?;
    let facts = MailFacts {
        language: &wording.language(None),
        purpose: Purpose::Account3pid,
        server_name: &config.server_name,
        link: config.public_base_url.as_str(),
        lifetime: config.session.unvalidated_lifetime,
    };
    let mail = Mail {
        to,
        text: wording.mail(&facts).map_err(|error| unwritten(&error))?,
        sid: Sid::from_random(random::bytes().map_err(no_randomness)?),
        request_id: RequestId::from_random(random::bytes().map_err(no_randomness)?),
        now: Clock::system().now(),
    };
    delivery.mail(&mail).await.map_err(TestMail::Delivery)
}

fn mail_failed(report: &mut Report, config: &Config, error: &DeliveryError) {
    let EmailTransport::Smtp(smtp) = &config.email.transport else {
        report.bad("mail", error.chain(), "email.directory", "write a folder that the shim's user may write to");
        return;
    };
    let says = format!("{}:{}: {}", smtp.host, smtp.port, error.chain());
    let (key, write) = match error.stage() {
        Stage::Dns => ("email.host", "write a name that this machine can look up"),
        Stage::Connect => (
            "email.port",
            "write the port that the mail server listens on (587, 465 or 25), and open it in the firewall",
        ),
        Stage::Tls if matches!(error, DeliveryError::Untrusted { .. }) && !is_unspoken(error) => (
            "email.ca_file",
            "write the file with the mail server's CA, or into email.host the name that its certificate is for",
        ),
        Stage::Tls if smtp.tls == SmtpTls::Implicit => {
            ("email.tls", "write \"required\": this port seems to want STARTTLS")
        }
        Stage::Tls => ("email.tls", "write \"implicit\" with port 465, or have the mail server offer STARTTLS"),
        Stage::Auth if smtp.login.is_some() => ("email.password", "write the password that belongs to email.username"),
        Stage::Auth | Stage::MailFrom if smtp.login.is_none() => {
            ("email.username", "write it, and email.password_file: the server wants a login")
        }
        Stage::MailFrom => ("email.from", "write a sender that this login may use"),
        Stage::Rcpt => ("email.username", "write a login that may send to other domains, or another test address"),
        Stage::Deadline if smtp.tls == SmtpTls::Implicit => {
            ("email.tls", "write \"required\": this port seems to want STARTTLS; or a larger email.deadline")
        }
        Stage::Deadline => (
            "email.tls",
            "write \"implicit\": this port seems to want TLS from the first byte; or a larger email.deadline",
        ),
        Stage::Setup
        | Stage::Compose
        | Stage::Wait
        | Stage::Ehlo
        | Stage::Auth
        | Stage::Data
        | Stage::Gateway
        | Stage::Quit
        | Stage::Outbox => ("email.host", "write a mail server that takes mail from this machine"),
    };
    report.bad("mail", says, key, write);
}

/// Whether the other side answered TLS with something that is none: no question of trust.
fn is_unspoken(error: &DeliveryError) -> bool {
    error.chain().contains("corrupt message")
}

pub(super) async fn sms(report: &mut Report, config: &Config) {
    let (gateway, key) = match &config.sms.transport {
        SmsTransport::None => return,
        SmsTransport::Log => {
            let change = format!("{}: sms.transport: write \"http\" or \"twilio\"", report.file);
            report.add("sms", Verdict::Warning, "messages go nowhere", Some(change));
            return;
        }
        SmsTransport::Twilio(twilio) => (&twilio.gateway, "sms.base_url"),
        SmsTransport::Http(http) => (&http.gateway, "sms.url"),
    };
    let Some(delivery) = delivery(report, config) else { return };
    let at = format!("{}:{}", gateway.host, gateway.port);
    match delivery.try_sms().await {
        Ok(()) => report.good("sms", format!("{at} can be reached; whether it takes the login only a message shows")),
        Err(error @ DeliveryError::Untrusted { .. }) if !is_unspoken(&error) => {
            report.bad(
                "sms",
                format!("{at}: {}", error.chain()),
                "sms.ca_file",
                "write the file with the gateway's CA",
            );
        }
        Err(error) => {
            report.bad(
                "sms",
                format!("{at}: {}", error.chain()),
                key,
                "write where the gateway is, and open the firewall",
            );
        }
    }
}

pub(super) fn wording(report: &mut Report, config: &Config) {
    match Wording::of(config) {
        Ok(_) => report.good("wording", "every template can be filled in every language"),
        Err(faults) => {
            for Fault { place, key, wrong } in faults.iter() {
                let change = format!("{place}: {key}: {}", wrong.write);
                report.bad_elsewhere("wording", wrong.wrong.clone(), change);
            }
        }
    }
}

fn delivery(report: &mut Report, config: &Config) -> Option<Delivery> {
    match Delivery::new(&config.email, &config.sms, &config.server_name, Metrics::new()) {
        Ok(delivery) => Some(delivery),
        Err(error @ (DeliveryError::Setup { .. } | DeliveryError::Several(_))) => {
            for (what, why) in error.setups() {
                report.bad("mail", why, &what, "write what can be used");
            }
            None
        }
        Err(error) => {
            report.bad("mail", error.chain(), "email.host", "write what can be used");
            None
        }
    }
}
