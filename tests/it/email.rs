//! Mails on their way out: what reaches the mail server, and what becomes of every way it can fail.

mod told;

use std::sync::Arc;
use std::time::{Duration, Instant};

use threepid_shim::config::{Email, EmailTransport, Sms, Smtp, SmtpTls};
use threepid_shim::delivery::{Delivery, DeliveryError, Mail, Stage};
use threepid_shim::matrix::{Address, Purpose, Sid, Timestamp};
use threepid_shim::telemetry::{Metrics, RequestId};
use threepid_shim::wording::{MailFacts, Wording};

use crate::mailbox::{At, Certificate, Fault, Mailbox, Script};

const LINK: &str =
    "https://matrix.example.org/submit_token?token=0123456789abcdef0123456789abcdef&sid=shim_0&client_secret=a.b";

fn delivery(transport: EmailTransport, metrics: Metrics) -> Delivery {
    let from = "Example <noreply@example.org>".parse().unwrap();
    Delivery::new(&Email { from, transport }, &Sms::default(), "hs.example.org", metrics).unwrap()
}

fn by_smtp(smtp: Smtp) -> Delivery {
    delivery(EmailTransport::Smtp(smtp), Metrics::new())
}

fn with_deadline(mailbox: &Mailbox, millis: u64) -> Delivery {
    by_smtp(Smtp { deadline: Duration::from_millis(millis), ..mailbox.smtp() })
}

fn mail() -> Mail {
    let wording = Wording::new("en", []).unwrap();
    let facts = MailFacts {
        language: &wording.language(None),
        purpose: Purpose::Register,
        server_name: "example.org",
        link: LINK,
        lifetime: Duration::from_secs(3600),
    };
    Mail {
        to: Address::email("Alice+tag@Example.NET").unwrap(),
        text: wording.mail(&facts).unwrap(),
        sid: Sid::from_random([7; 16]),
        request_id: RequestId::from_random([3; 8]),
        now: Timestamp::from_millis(1_600_000_000_000),
    }
}

/// Starts a mailbox, sends one mail within the deadline, and gives both back.
async fn sent(script: Script, deadline_millis: u64) -> (Mailbox, Result<(), DeliveryError>) {
    let mailbox = Mailbox::start(script).await;
    let (delivery, mail) = (with_deadline(&mailbox, deadline_millis), mail());
    let began = Instant::now();
    let result = delivery.mail(&mail).await;
    let limit = Duration::from_millis(deadline_millis) + Duration::from_secs(2);
    assert!(began.elapsed() < limit, "the deadline holds: {:?}", began.elapsed());
    (mailbox, result)
}

fn nothing_private_was_said(mailbox: &Mailbox) {
    assert!(!mailbox.heard_auth_in_clear());
    let said = mailbox.commands();
    let private = ["AUTH", "MAIL", "RCPT", "DATA"];
    assert!(
        !said.iter().any(|it| private.iter().any(|begin| it.line.to_ascii_uppercase().starts_with(begin))),
        "{said:?}"
    );
    assert!(mailbox.messages().is_empty());
}

/// S§4.24.
#[tokio::test]
async fn bytes_injected_before_tls_are_never_used() {
    for injected in [
        Fault::reply(At::Starttls, "220 ready\r\n250-mailbox\r\n250 AUTH PLAIN"),
        Fault::reply(At::Starttls, "220 ready\r\n2"),
        Fault::reply(At::Ehlo, "250-mailbox\r\n250 STARTTLS\r\n220 ready"),
        Fault::reply(At::Greeting, "220 mailbox\r\n250 STARTTLS"),
    ] {
        let script = Script::starttls().login("user", "secret", "PLAIN LOGIN").always(injected.clone());
        let (mailbox, result) = sent(script, 2000).await;
        assert!(matches!(result, Err(DeliveryError::Unfit { .. })), "{injected:?} {result:?}");
        nothing_private_was_said(&mailbox);
        assert_eq!(mailbox.connections(), 1, "an attack is not tried again");
    }
}

/// S§4.24.
#[tokio::test]
async fn a_stripped_starttls_never_falls_back_to_clear() {
    let script = Script::starttls().login("user", "secret", "PLAIN LOGIN").always(Fault::no_starttls());
    let (mailbox, result) = sent(script, 2000).await;
    assert!(matches!(result, Err(DeliveryError::Unfit { stage: Stage::Tls, .. })), "{result:?}");
    nothing_private_was_said(&mailbox);
}

#[tokio::test]
async fn a_refused_starttls_never_falls_back_to_clear() {
    let script = Script::starttls().login("user", "secret", "PLAIN").always(Fault::reply(At::Starttls, "454 no TLS"));
    let (mailbox, result) = sent(script, 2000).await;
    assert!(matches!(result, Err(DeliveryError::Refused { stage: Stage::Tls, code: 454, .. })), "{result:?}");
    nothing_private_was_said(&mailbox);
}

/// S§4.24.
#[tokio::test]
async fn a_certificate_of_nobody_or_of_somebody_else_gets_no_mail_and_no_login() {
    for script in [Script::starttls(), Script::implicit()] {
        for certificate in [Certificate::SelfSigned, Certificate::WrongName, Certificate::Expired] {
            let script = script.clone().login("user", "secret", "PLAIN").certificate(certificate);
            let (mailbox, result) = sent(script, 2000).await;
            let Err(error @ DeliveryError::Untrusted { .. }) = result else { panic!("{result:?}") };
            let is_late = certificate == Certificate::Expired;
            assert_eq!(error.chain().contains("expired"), is_late, "{}", error.chain());
            nothing_private_was_said(&mailbox);
            assert_eq!(mailbox.connections(), 1);
        }
    }
}

#[tokio::test]
async fn a_certificate_for_a_name_is_none_for_the_address_behind_it() {
    let mailbox = Mailbox::start(Script::implicit()).await;
    let host = mailbox.address().ip().to_string();
    let result = by_smtp(Smtp { host, ..mailbox.smtp() }).mail(&mail()).await;
    assert!(matches!(result, Err(DeliveryError::Untrusted { .. })), "{result:?}");
    nothing_private_was_said(&mailbox);
}

#[tokio::test]
async fn a_mail_arrives_by_every_kind_of_connection_and_login() {
    let mut ran = 0;
    for script in [Script::clear(), Script::starttls(), Script::implicit()] {
        for mechanisms in [None, Some("PLAIN LOGIN"), Some("LOGIN"), Some("XOAUTH2 plain")] {
            let script = match mechanisms {
                Some(mechanisms) => script.clone().login("user", "pass word\u{e9}", mechanisms),
                None => script.clone(),
            };
            let (mailbox, result) = sent(script, 5000).await;
            result.unwrap();
            let got = mailbox.wait_for_mail().await;
            assert_eq!(got.to, ["alice+tag@example.net"]);
            assert_eq!(got.from, "noreply@example.org");
            assert_eq!(got.link(), LINK);
            ran += 1;
        }
    }
    assert_eq!(ran, 12);
}

#[tokio::test]
async fn what_arrives_is_the_mail_that_was_worded() {
    let (mailbox, result) = sent(Script::starttls(), 5000).await;
    result.unwrap();
    let (got, mail) = (mailbox.wait_for_mail().await, mail());
    assert_eq!(got.text().trim_end(), mail.text.text.trim_end());
    assert_eq!(got.html().trim_end(), mail.text.html.trim_end());
    assert_eq!(got.header("Subject").unwrap(), mail.text.subject);
    assert_eq!(got.header("To").unwrap(), "alice+tag@example.net");
    assert_eq!(got.header("Message-ID").unwrap(), "<0303030303030303.070707070707@hs.example.org>");
    assert_eq!(got.header("Auto-Submitted").unwrap(), "auto-generated");
    assert_eq!(got.header("Bcc"), None);
    let lines: Vec<String> = mailbox.commands().into_iter().map(|it| it.line).collect();
    let hello = "EHLO hs.example.org";
    let rest = ["MAIL FROM:<noreply@example.org>", "RCPT TO:<alice+tag@example.net>", "DATA", "QUIT"];
    assert_eq!(lines, [&[hello, "STARTTLS", hello], &rest[..]].concat());
}

#[tokio::test]
async fn a_server_without_our_logins_gets_no_mail() {
    let (mailbox, result) = sent(Script::starttls().login("user", "secret", "GSSAPI"), 2000).await;
    assert!(matches!(result, Err(DeliveryError::Unfit { stage: Stage::Auth, .. })), "{result:?}");
    nothing_private_was_said(&mailbox);
}

#[tokio::test]
async fn a_wrong_password_is_told_with_the_servers_own_words() {
    let mailbox = Mailbox::start(Script::starttls().login("user", "secret", "PLAIN")).await;
    let mut smtp = mailbox.smtp();
    smtp.login.as_mut().unwrap().password = threepid_shim::config::Secret::new("wrong".to_owned());
    let result = by_smtp(smtp).mail(&mail()).await;
    let Err(DeliveryError::Refused { stage: Stage::Auth, code: 535, text }) = result else { panic!("{result:?}") };
    assert_eq!(text, "5.7.8 bad credentials");
    assert_eq!((mailbox.connections(), mailbox.messages().len()), (1, 0));
}

/// S§5.8.
#[tokio::test]
async fn a_server_that_hangs_is_left_at_the_deadline_whatever_it_hangs_at() {
    let rows = [
        (At::Greeting, Stage::Connect),
        (At::Ehlo, Stage::Ehlo),
        (At::Starttls, Stage::Tls),
        (At::Auth, Stage::Auth),
        (At::MailFrom, Stage::MailFrom),
        (At::Rcpt, Stage::Rcpt),
        (At::Data, Stage::Data),
        (At::Dot, Stage::Data),
    ];
    let mut ready = Vec::new();
    for (at, stage) in rows {
        let script = Script::starttls().login("user", "secret", "PLAIN").always(Fault::hang(at));
        let mailbox = Mailbox::start(script).await;
        ready.push((at, stage, with_deadline(&mailbox, 1500), mail(), mailbox));
    }
    let mut trying = tokio::task::JoinSet::new();
    for (at, stage, delivery, mail, mailbox) in ready {
        trying.spawn(async move { (at, stage, delivery.mail(&mail).await, mailbox) });
    }
    let mut ran = 0;
    while let Some(tried) = trying.join_next().await {
        let (at, stage, result, mailbox) = tried.unwrap();
        let Err(DeliveryError::Deadline { during }) = result else { panic!("{at:?}: {result:?}") };
        assert_eq!(during, stage, "{at:?}");
        assert_eq!(mailbox.connections(), 1, "{at:?}");
        ran += 1;
    }
    assert_eq!(ran, 8);
}

#[tokio::test]
async fn a_server_that_hangs_in_the_tls_handshake_is_left_at_the_deadline() {
    // Speaks nothing at all, where implicit TLS is expected.
    let mailbox = Mailbox::start(Script::clear().always(Fault::hang(At::Greeting))).await;
    let smtp = Smtp { tls: SmtpTls::Implicit, deadline: Duration::from_millis(300), ..mailbox.smtp() };
    let result = by_smtp(smtp).mail(&mail()).await;
    assert!(matches!(result, Err(DeliveryError::Deadline { during: Stage::Tls })), "{result:?}");
}

#[tokio::test]
async fn a_slow_goodbye_delays_nobody_and_fails_nothing() {
    let (mailbox, result) = sent(Script::clear().always(Fault::hang(At::Quit)), 5000).await;
    result.unwrap();
    assert_eq!(mailbox.mails().len(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable_at_connect() {
    let mailbox = Mailbox::start(Script::clear()).await;
    let smtp = mailbox.smtp();
    mailbox.stop().await;
    let result = by_smtp(Smtp { ca_file: None, ..smtp }).mail(&mail()).await;
    assert!(matches!(result, Err(DeliveryError::Unreachable { stage: Stage::Connect, .. })), "{result:?}");
    let nowhere = Smtp { host: "nowhere.invalid".to_owned(), ..Mailbox::start(Script::clear()).await.smtp() };
    let result = by_smtp(nowhere).mail(&mail()).await;
    assert!(matches!(result, Err(DeliveryError::Unreachable { stage: Stage::Dns, .. })), "{result:?}");
}

/// S§5.6.
#[tokio::test]
async fn what_passes_is_tried_once_more_with_the_very_same_bytes() {
    let mut ran = 0;
    for fault in [
        Fault::reply(At::Greeting, "421 too busy"),
        Fault::close(At::Greeting),
        Fault::close(At::Ehlo),
        Fault::close(At::Starttls),
        Fault::reply(At::MailFrom, "451 not now"),
        Fault::reply(At::Rcpt, "450 4.2.0 greylisted"),
        Fault::close(At::Rcpt),
        Fault::reply(At::Data, "421 closing"),
        Fault::reply(At::Dot, "451 try again"),
    ] {
        let (mailbox, result) = sent(Script::starttls().first(fault.clone()), 5000).await;
        assert!(result.is_ok(), "{fault:?} {result:?}");
        assert_eq!(mailbox.connections(), 2, "{fault:?}");
        assert_eq!(mailbox.mails().len(), 1, "{fault:?}");
        let messages = mailbox.messages();
        assert!(messages.iter().all(|it| *it == messages[0]), "{fault:?}");
        ran += 1;
    }
    assert_eq!(ran, 9);
}

/// S§5.6.
#[tokio::test]
async fn what_does_not_pass_is_an_error_after_the_second_try() {
    let (mailbox, result) = sent(Script::clear().always(Fault::reply(At::Rcpt, "450 4.2.0 greylisted")), 5000).await;
    let error = result.unwrap_err();
    assert!(matches!(error, DeliveryError::Refused { stage: Stage::Rcpt, code: 450, .. }), "{error:?}");
    assert!(!error.refused_recipient());
    assert_eq!((mailbox.connections(), mailbox.messages().len()), (2, 0));
}

/// S§5.7.
#[tokio::test]
async fn a_recipient_refused_for_good_is_not_tried_again_and_not_quoted() {
    let refusal = "550-5.1.1 <alice+tag@example.net>\r\n550 no such user alice+tag";
    let (mailbox, result) = sent(Script::clear().always(Fault::reply(At::Rcpt, refusal)), 5000).await;
    let error = result.unwrap_err();
    assert!(error.refused_recipient());
    assert!(!format!("{error} {error:?}").contains("alice"), "{error:?}");
    assert_eq!(mailbox.connections(), 1);
    mailbox.wait_for_command("QUIT").await;
}

#[tokio::test]
async fn a_message_refused_for_good_is_not_tried_again() {
    let (mailbox, result) = sent(Script::clear().always(Fault::reply(At::Dot, "554 5.7.1 spam")), 5000).await;
    let error = result.unwrap_err();
    assert_eq!((error.stage(), error.refused_recipient()), (Stage::Data, false));
    assert_eq!((mailbox.connections(), mailbox.messages().len()), (1, 1));
}

/// S§5.6.
#[tokio::test]
async fn a_lost_250_is_a_failure_and_never_a_second_mail() {
    let (mailbox, result) = sent(Script::clear().always(Fault::close(At::Dot)), 5000).await;
    assert!(matches!(result, Err(DeliveryError::Unanswered { .. })), "{result:?}");
    assert_eq!((mailbox.connections(), mailbox.messages().len()), (1, 1));
}

#[tokio::test]
async fn a_message_cut_in_the_middle_is_sent_again_whole() {
    let mailbox = Mailbox::start(Script::clear().first(Fault::close(At::Message))).await;
    let mut mail = mail();
    // More than the sockets can hold, so that the cut comes before the final dot is written.
    mail.text.html = "<p>This is a line of a very long mail indeed</p>\r\n".repeat(200_000);
    by_smtp(Smtp { deadline: Duration::from_secs(60), ..mailbox.smtp() }).mail(&mail).await.unwrap();
    let got = mailbox.wait_for_mail().await;
    assert_eq!(got.raw.matches("very long mail").count(), 200_000);
    assert_eq!((mailbox.connections(), mailbox.messages().len()), (2, 1));
}

/// S§5.8.
#[tokio::test]
async fn no_more_than_max_connections_are_open_and_all_mails_arrive() {
    let mailbox = Mailbox::start(Script::clear().always(Fault::hold(At::Dot))).await;
    let delivery = Arc::new(by_smtp(Smtp { max_connections: 2, ..mailbox.smtp() }));
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let delivery = Arc::clone(&delivery);
        sending.spawn(async move { delivery.mail(&mail()).await });
    }
    mailbox.wait_for_connections(2).await;
    for _ in 0..6 {
        mailbox.release(1);
        sending.join_next().await.unwrap().unwrap().unwrap();
    }
    assert_eq!((mailbox.mails().len(), mailbox.connections(), mailbox.most_open()), (6, 6, 2));
}

#[tokio::test]
async fn waiting_for_a_free_connection_counts_into_the_deadline() {
    let mailbox = Mailbox::start(Script::clear().always(Fault::hang(At::Data))).await;
    let deadline = Duration::from_millis(1500);
    let delivery = Arc::new(by_smtp(Smtp { max_connections: 1, deadline, ..mailbox.smtp() }));
    let (one, other) = (mail(), mail());
    let began = Instant::now();
    let (first, second) = tokio::join!(delivery.mail(&one), delivery.mail(&other));
    assert!(matches!(first, Err(DeliveryError::Deadline { during: Stage::Data })), "{first:?}");
    assert!(matches!(second, Err(DeliveryError::Deadline { .. })), "{second:?}");
    assert!(began.elapsed() < deadline * 2, "both deadlines ran at once: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_mail_abandoned_halfway_leaves_nothing_behind_for_the_next() {
    // lettre's pool hands on a connection whose transaction was cut; here every mail has its own.
    let mailbox = Mailbox::start(Script::clear().first(Fault::hold(At::Rcpt))).await;
    let delivery = by_smtp(mailbox.smtp());
    let mut abandoned = mail();
    abandoned.to = Address::email("bob@example.net").unwrap();
    tokio::select! {
        result = delivery.mail(&abandoned) => panic!("it is held: {result:?}"),
        () = mailbox.wait_for_command("RCPT") => {}
    }
    delivery.mail(&mail()).await.unwrap();
    mailbox.release(1);
    let got = mailbox.wait_for_mail().await;
    assert_eq!(got.to, ["alice+tag@example.net"]);
    assert_eq!((mailbox.mails().len(), mailbox.connections()), (1, 2));
}
