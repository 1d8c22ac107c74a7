//! A mail by SMTP, as a file or as a log line: composed once, so that every try sends the very same bytes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lettre::Message;
use lettre::address::Address as LettreAddress;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};

use super::course::Course;
use super::smtp::{Letter, Server};
use super::{DeliveryError, Mail, Stage};
use crate::config::{self, EmailTransport};
use crate::random;
use crate::wording::{LOGO_ID, MailText};

/// The last second that RFC 5322's `Date` can tell (year 9999); beyond it lettre would panic.
const LAST_MILLISECOND: u64 = 253_402_300_799_000;

#[derive(Debug)]
pub(super) struct Mailer {
    from: Mailbox,
    /// Right side of every `Message-ID`.
    domain: String,
    transport: Transport,
}

#[derive(Debug)]
enum Transport {
    Smtp(Box<Server>),
    File(PathBuf),
    Log,
}

impl Mailer {
    pub(super) fn new(email: &config::Email, server_name: &str) -> Result<Self, DeliveryError> {
        let from = ascii_sender(&email.from)?;
        let domain = own_domain(server_name).unwrap_or_else(|| from.email.domain().to_owned());
        let transport = match &email.transport {
            EmailTransport::Smtp(smtp) => Transport::Smtp(Box::new(Server::new(smtp, &domain)?)),
            EmailTransport::File { directory } => Transport::File(directory.clone()),
            EmailTransport::Log => Transport::Log,
        };
        Ok(Self { from, domain, transport })
    }

    pub(super) async fn try_out(&self, course: &mut Course) -> Result<(), DeliveryError> {
        match &self.transport {
            Transport::Smtp(server) => server.log_in(course).await,
            Transport::File(directory) => try_folder(directory).map_err(|source| DeliveryError::Outbox { source }),
            Transport::Log => Ok(()),
        }
    }

    pub(super) async fn send(&self, mail: &Mail, course: &mut Course) -> Result<(), DeliveryError> {
        let to = recipient(mail)?;
        let message_id = self.message_id(mail);
        let (request_id, sid) = (&mail.request_id, mail.sid.as_str());
        match &self.transport {
            Transport::Smtp(server) => {
                let bytes = self.composed(mail, &to)?;
                let letter = Letter { from: &self.from.email, to: &to, bytes: &bytes, mail };
                let reply = server.send(&letter, course).await?;
                tracing::info!(%request_id, sid, message_id, reply, "mail handed over");
            }
            Transport::File(directory) => {
                let (directory, bytes) = (directory.clone(), self.composed(mail, &to)?);
                let (millis, sid) = (mail.now.as_millis(), sid.to_owned());
                course.enter(Stage::Outbox);
                let written = tokio::task::spawn_blocking(move || file_away(&directory, millis, &sid, &bytes)).await;
                let file =
                    written.map_err(io::Error::other).flatten().map_err(|source| DeliveryError::Outbox { source })?;
                tracing::info!(%request_id, file, message_id, "mail written to the outbox");
            }
            // Whoever wants the link itself uses the outbox: a log is read by more people and kept longer.
            Transport::Log => tracing::info!(%request_id, sid, to = mail.to.masked(), "a mail would have been sent"),
        }
        Ok(())
    }

    /// Ties the mail to the client's call and to the session, and stays the same however often it is handed over.
    fn message_id(&self, mail: &Mail) -> String {
        let digits = mail.sid.as_str().trim_start_matches("shim_");
        let tail: String = digits.chars().take(12).collect();
        format!("<{}.{tail}@{}>", mail.request_id, self.domain)
    }

    fn composed(&self, mail: &Mail, to: &LettreAddress) -> Result<Vec<u8>, DeliveryError> {
        let why = |error: &dyn std::error::Error| DeliveryError::Compose { why: error.to_string() };
        let date = SystemTime::UNIX_EPOCH + Duration::from_millis(mail.now.as_millis().min(LAST_MILLISECOND));
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to.clone()))
            .subject(&mail.text.subject)
            .date(date)
            .message_id(Some(self.message_id(mail)))
            // RFC 3834, and the same for Exchange: no out-of-office answers to a robot.
            .raw_header(raw("Auto-Submitted", "auto-generated"))
            .raw_header(raw("X-Auto-Response-Suppress", "All"))
            // RFC 3282.
            .raw_header(raw("Content-Language", &mail.text.language))
            .multipart(body(&mail.text)?)
            .map_err(|error| why(&error))?;
        Ok(message.formatted())
    }
}

/// The text, and the HTML with its logo: the richest part last.
fn body(text: &MailText) -> Result<MultiPart, DeliveryError> {
    let part = |kind, text: &str| SinglePart::builder().header(kind).body(text.to_owned());
    let html = part(ContentType::TEXT_HTML, &text.html);
    let body = MultiPart::alternative().boundary(boundary()?).singlepart(part(ContentType::TEXT_PLAIN, &text.text));
    let Some(logo) = &text.logo else { return Ok(body.singlepart(html)) };
    let kind = ContentType::parse(logo.media_type);
    let kind = kind.map_err(|error| DeliveryError::Compose { why: error.to_string() })?;
    let logo = Attachment::new_inline(LOGO_ID.to_owned()).body(logo.bytes.clone(), kind);
    Ok(body.multipart(MultiPart::related().boundary(boundary()?).singlepart(html).singlepart(logo)))
}

/// One that nobody can foresee: with a fixed one, text could end its own part (CVE-2021-29432).
fn boundary() -> Result<String, DeliveryError> {
    let random = random::bytes().map_err(|refusal| DeliveryError::Compose { why: refusal.error.into_owned() })?;
    Ok(format!("shim-{:032x}", u128::from_be_bytes(random)))
}

/// The bytes that would be sent.
pub fn eml(email: &config::Email, server_name: &str, mail: &Mail) -> Result<Vec<u8>, DeliveryError> {
    Mailer::new(email, server_name)?.composed(mail, &recipient(mail)?)
}

/// The canonical address itself, byte for byte: no second parser may change whom the mail goes to (CVE-2019-11340).
fn recipient(mail: &Mail) -> Result<LettreAddress, DeliveryError> {
    let written = mail.to.expose();
    let to: Result<LettreAddress, _> = written.parse();
    match to {
        Ok(to) if AsRef::<str>::as_ref(&to) == written && written.matches('@').count() == 1 => Ok(to),
        Ok(_) => Err(DeliveryError::Compose { why: "the recipient would not stay the same".to_owned() }),
        Err(error) => Err(DeliveryError::Compose { why: format!("the recipient is not an address: {error}") }),
    }
}

fn ascii_sender(from: &Mailbox) -> Result<Mailbox, DeliveryError> {
    let fault = |why: String| DeliveryError::Setup { what: "email.from".to_owned(), why };
    let domain = idna::domain_to_ascii(from.email.domain()).map_err(|error| fault(error.to_string()))?;
    if !from.email.user().is_ascii() {
        return Err(fault("the part before the '@' has to be ASCII".to_owned()));
    }
    let email = LettreAddress::new(from.email.user(), domain).map_err(|error| fault(error.to_string()))?;
    Ok(Mailbox::new(from.name.clone(), email))
}

/// The server name without its port, when it is a domain name and not `localhost` or a number.
fn own_domain(server_name: &str) -> Option<String> {
    let host = server_name.split(':').next()?.to_ascii_lowercase();
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let named = host.rsplit('.').next()?.bytes().any(|b| b.is_ascii_alphabetic());
    (named && host.contains('.') && host.split('.').all(label)).then_some(host)
}

fn raw(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

/// Whether a file can be written there; none is left.
fn try_folder(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let tried = directory.join(".tried.partial");
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tried)?;
    fs::remove_file(tried)
}

/// Writes `<unix-ms>-<sid>.eml`, whole or not at all, readable by its owner alone. Returns the name.
fn file_away(directory: &Path, millis: u64, sid: &str, bytes: &[u8]) -> io::Result<String> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    for millis in millis..millis.saturating_add(1000) {
        let name = format!("{millis}-{sid}.eml");
        let (partial, whole) = (directory.join(format!(".{name}.partial")), directory.join(&name));
        // Whoever makes the partial file owns the name until the rename.
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        if whole.try_exists()? {
            fs::remove_file(&partial)?;
            continue;
        }
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&partial, &whole));
        if let Err(error) = written {
            // Best effort: what matters is the first error.
            drop(fs::remove_file(&partial));
            return Err(error);
        }
        File::open(directory)?.sync_all()?;
        return Ok(name);
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::matrix::{Address, Sid, Timestamp};
    use crate::telemetry::RequestId;

    fn mailer(from: &str, server_name: &str) -> Result<Mailer, DeliveryError> {
        let from = from.parse().unwrap();
        Mailer::new(&config::Email { from, transport: EmailTransport::Log }, server_name)
    }

    fn mail(to: &str) -> Mail {
        Mail {
            to: Address::email(to).unwrap(),
            text: MailText {
                language: "en".to_owned(),
                subject: "Hello".to_owned(),
                text: "Hi\n".to_owned(),
                html: "<p>Hi</p>\n".to_owned(),
                logo: None,
            },
            sid: Sid::from_random([0xab; 16]),
            request_id: RequestId::from_random([1; 8]),
            now: Timestamp::from_millis(1_600_000_000_000),
        }
    }

    fn written(mailer: &Mailer, mail: &Mail) -> String {
        String::from_utf8(mailer.composed(mail, &recipient(mail).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_mail_has_the_headers_of_rfc_5322_and_of_a_robot() {
        let written =
            written(&mailer("Example <noreply@example.org>", "hs.example.org:8448").unwrap(), &mail("a@b.example"));
        let (head, body) = written.split_once("\r\n\r\n").unwrap();
        let boundary = head.rsplit_once("boundary=\"").and_then(|(_, rest)| rest.split_once('"')).unwrap().0;
        let expected = [
            "From: Example <noreply@example.org>",
            "To: a@b.example",
            "Subject: Hello",
            "Date: Sun, 13 Sep 2020 12:26:40 +0000",
            "Message-ID: <0101010101010101.abababababab@hs.example.org>",
            "Auto-Submitted: auto-generated",
            "X-Auto-Response-Suppress: All",
            "Content-Language: en",
            "MIME-Version: 1.0",
            &format!("Content-Type: multipart/alternative;\r\n boundary=\"{boundary}\""),
        ];
        assert_eq!(head, expected.join("\r\n"));
        assert_eq!(body.matches(&format!("--{boundary}\r\n")).count(), 2);
        assert!(body.ends_with(&format!("--{boundary}--\r\n")));
        let (plain, html) =
            (body.find("Content-Type: text/plain").unwrap(), body.find("Content-Type: text/html").unwrap());
        assert!(plain < html, "the richest part comes last");
    }

    #[test]
    fn a_logo_is_in_the_mail_beside_the_html_that_shows_it() {
        let mut mail = mail("a@b.example");
        let bytes = (0..=255).collect();
        mail.text.logo = Some(Arc::new(config::Logo { media_type: "image/png", bytes, width: 1, height: 1 }));
        let written = written(&mailer("a@example.org", "x").unwrap(), &mail);
        let at = |what: &str| written.find(what).unwrap_or_else(|| panic!("{what} in {written}"));
        let order = ["multipart/alternative", "text/plain", "multipart/related", "text/html", "Content-ID: <logo@"];
        assert!(order.map(at).is_sorted(), "{written}");
        assert!(written.contains("Content-Type: image/png\r\n") && written.contains("Content-Disposition: inline\r\n"));
        assert!(written.is_ascii() && written.contains("\r\nAAECAwQFBgcICQ"), "{written}");
    }

    #[test]
    fn two_mails_have_two_boundaries_and_one_mail_one_message_id() {
        let (mailer, mail) = (mailer("a@example.org", "example.org").unwrap(), mail("a@b.example"));
        let (one, other) = (written(&mailer, &mail), written(&mailer, &mail));
        assert_ne!(one, other);
        let id = |text: &str| text.lines().find(|line| line.starts_with("Message-ID")).map(str::to_owned);
        assert_eq!(id(&one), id(&other));
    }

    #[test]
    fn everything_sent_is_ascii_in_short_lines_ended_by_crlf() {
        let mut mail = mail("a@b.example");
        mail.text.subject = "Grüße an dich, ".repeat(20);
        mail.text.text = format!("ü {}\n", "x".repeat(3000));
        mail.text.html = format!("<p>{}</p>", "•".repeat(3000));
        let written = written(&mailer("Müller & Söhne <a@bücher.example>", "localhost").unwrap(), &mail);
        assert!(written.is_ascii());
        assert!(written.split("\r\n").all(|line| line.len() < 998 && !line.contains(['\r', '\n'])));
        assert!(
            written.contains("<a@xn--bcher-kva.example>\r\n") && written.contains("@xn--bcher-kva.example>\r\nAuto")
        );
        assert!(written.contains("Subject: =?utf-8?"));
    }

    /// S§4.9.
    #[test]
    fn no_line_end_in_a_subject_begins_a_header() {
        let mut mail = mail("a@b.example");
        mail.text.subject = "Hi\r\nBcc: evil@example.org\r\n\r\n<p>".to_owned();
        let written = written(&mailer("a@example.org", "x").unwrap(), &mail);
        assert!(!written.contains("\nBcc"), "{written}");
    }

    #[test]
    fn a_sender_that_smtp_cannot_say_is_refused_at_the_start() {
        assert!(mailer("ü@example.org", "x").unwrap_err().to_string().starts_with("email.from: "));
    }

    #[test]
    fn the_outbox_holds_whole_mails_for_their_owner_alone_and_loses_none() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let outbox = folder.path().join("a/outbox");
        assert_eq!(file_away(&outbox, 7, "shim_0", b"one").unwrap(), "7-shim_0.eml");
        assert_eq!(file_away(&outbox, 7, "shim_0", b"two").unwrap(), "8-shim_0.eml");
        assert_eq!(fs::read(outbox.join("7-shim_0.eml")).unwrap(), b"one");
        assert_eq!(fs::read_dir(&outbox).unwrap().count(), 2, "nothing partial is left");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&outbox), mode(&outbox.join("8-shim_0.eml"))), (0o700, 0o600));
    }

    proptest! {
        /// S§4.10.
        #[test]
        fn every_canonical_address_is_mailed_byte_for_byte(
            local in "[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}(\\.[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}){0,2}",
            domain in "([a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?\\.){1,4}[a-z]{2,8}",
        ) {
            let Ok(to) = Address::email(&format!("{local}@{domain}")) else { return Ok(()) };
            let mail = Mail { to, ..mail("a@b.example") };
            let to = recipient(&mail).unwrap();
            prop_assert_eq!(AsRef::<str>::as_ref(&to), mail.to.expose());
            let written = written(&mailer("a@example.org", "x").unwrap(), &mail);
            prop_assert!(written.contains(&format!("\r\nTo: {}\r\n", mail.to.expose())), "{}", written);
        }
    }
}
