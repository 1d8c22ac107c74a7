//! What the operator gets to see of mails: numbers, the outbox, the log; and what nobody gets to see.

use std::time::Duration;

use threepid_shim::config::{EmailTransport, Smtp};
use threepid_shim::delivery::Stage;
use threepid_shim::telemetry::Metrics;

use super::{LINK, delivery, mail, sent};
use crate::logged;
use crate::mailbox::{self, At, Fault, Mailbox, Script};

#[tokio::test]
async fn every_outcome_is_counted_by_its_stage() {
    let metrics = Metrics::new();
    let script = Script::clear().first(Fault::reply(At::Rcpt, "550 no")).first(Fault::hang(At::Data));
    let mailbox = Mailbox::start(script).await;
    let smtp = Smtp { deadline: Duration::from_secs(2), ..mailbox.smtp() };
    let delivery = delivery(EmailTransport::Smtp(smtp), metrics.clone());
    let mail = mail();
    let results = [delivery.mail(&mail).await, delivery.mail(&mail).await, delivery.mail(&mail).await];
    assert_eq!(results.map(|it| it.is_ok()), [false, false, true]);
    let rendered = metrics.render().unwrap();
    for outcome in ["rcpt", "deadline", "delivered"] {
        let line = format!("threepid_shim_deliveries_total{{medium=\"email\",outcome=\"{outcome}\"}} 1");
        assert!(rendered.contains(&line), "{rendered}");
    }
    assert!(rendered.contains("threepid_shim_delivery_duration_seconds_count{medium=\"email\"} 3"), "{rendered}");
}

#[tokio::test]
async fn the_outbox_gets_one_whole_mail_a_file_named_by_time_and_sid() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("outbox");
    let mail = mail();
    delivery(EmailTransport::File { directory: directory.clone() }, Metrics::new()).mail(&mail).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(files, [format!("1600000000000-{}.eml", mail.sid.as_str()).as_str()]);
    let written = mailbox::Mail::read(&directory.join(&files[0]));
    assert_eq!((written.to.clone(), written.link()), (vec!["alice+tag@example.net".to_owned()], LINK.to_owned()));
}

/// S§5.16.
#[tokio::test]
async fn an_outbox_that_cannot_be_written_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let directory = file.path().join("below-a-file");
    let result = delivery(EmailTransport::File { directory }, Metrics::new()).mail(&mail()).await;
    assert_eq!(result.unwrap_err().stage(), Stage::Outbox);
}

#[tokio::test]
async fn the_operator_reads_stage_and_reply_and_never_address_token_or_password() {
    logged::listen();
    let quoting = format!("451 4.7.1 <alice+tag@example.net> alice+tag: spam in {LINK}");
    let script = Script::starttls().login("user", "sesame-open", "LOGIN");
    let (_mailbox, result) = sent(script.first(Fault::reply(At::Dot, &quoting)), 5000).await;
    result.unwrap();
    let (_mailbox, result) = sent(Script::clear().always(Fault::reply(At::Rcpt, "550 5.1.1 unknown")), 5000).await;
    assert!(result.is_err());
    delivery(EmailTransport::Log, Metrics::new()).mail(&mail()).await.unwrap();
    let log = logged::take();
    for said in [
        "stage=data",
        "451 4.7.1",
        "stage=rcpt",
        "550 5.1.1 unknown",
        "0303030303030303",
        "queued as 4711",
        "a•••@example.net",
    ] {
        assert!(log.contains(said), "{said} is not in {log}");
    }
    for secret in ["alice", "0123456789abcdef", "client_secret", "sesame", "c2VzYW1l"] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
}
