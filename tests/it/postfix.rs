//! Mails through a real mail server that demands TLS and a login, asked for by real old Synapses.

pub mod server;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::client::{PASSWORD, creds};
use crate::legacy::{Legacy, VERSIONS, legacy, unique};
use crate::shim::{Shim, Wanted, link_of};
use server::{PASSWORD as SMTP_PASSWORD, Postfix, USER, parsed, postfix};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_registers_by_a_mail_that_went_through_tls_and_a_login() {
    let mut ran = 0;
    for version in VERSIONS {
        for tls in ["required", "implicit"] {
            let shim = legacy(version).shim(postfix().wanted(tls)).await;
            let (client, name, secret) = (shim.client(), unique("mailed"), unique("secret"));
            let email = format!("{name}@example.org");
            let sid = client.request_token("register", &email, &secret, 1).await.sid();
            let mail = postfix().mail(&email).await;
            assert!(mail.contains("using TLSv1.3"), "{version} {tls}: {mail}");
            assert!(mail.contains(&format!("(Authenticated sender: {USER}")), "{version} {tls}: {mail}");
            assert_eq!(client.click(&link_of(&mail)).await.status, 200);
            client.register(&name, creds(&sid, &secret)).await.ok();
            client.login(&email, PASSWORD).await.ok();
            ran += 1;
        }
    }
    assert_eq!(ran, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mail_is_as_rfc_5322_has_it_and_holds_one_link() {
    let shim = legacy("1.3.1").shim(postfix().wanted("required")).await;
    let known = registered_elsewhere(legacy("1.3.1")).await;
    let unknown = || format!("{}@example.org", unique("headers"));
    let rows = [
        ("register", unknown(), "Confirm your email address for example.org"),
        ("account/password", known, "Reset your password on example.org"),
        ("account/3pid", unknown(), "Add this email address to your account on example.org"),
    ];
    let mut message_ids = std::collections::BTreeSet::new();
    for (purpose, email, subject) in rows {
        let sid = shim.client().request_token(purpose, &email, &unique("secret"), 1).await.sid();
        let mail = parsed(&postfix().mail(&email).await);
        assert_eq!(mail["defects"], serde_json::json!([]), "{mail}");
        assert_eq!(mail["ascii"], true);
        assert!(mail["longest_line"].as_u64() < Some(999));
        assert_eq!(mail["from"], serde_json::json!([["Example Ünïon", "noreply@example.org"]]));
        assert_eq!(mail["to"], serde_json::json!([email]));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(mail["date"].as_u64().unwrap().abs_diff(now) < 600);
        let headers = mail["headers"].as_object().unwrap();
        let of = |name: &str| match headers[name].as_array().unwrap().as_slice() {
            [only] => only.as_str().unwrap().to_owned(),
            several => panic!("{name} stands {} times", several.len()),
        };
        for once in ["from", "to", "date", "content-type"] {
            assert!(!of(once).is_empty());
        }
        assert_eq!(of("subject"), subject);
        assert_eq!(of("mime-version"), "1.0");
        assert_eq!(of("auto-submitted"), "auto-generated");
        assert!(of("message-id").starts_with('<') && of("message-id").ends_with("@example.org>"));
        assert!(message_ids.insert(of("message-id")));
        for never in ["cc", "bcc", "reply-to", "sender"] {
            assert!(!headers.contains_key(never), "{never}");
        }
        assert_eq!(mail["type"], "multipart/alternative");
        let parts = mail["parts"].as_array().unwrap();
        assert_eq!(parts.len(), 2);
        for (part, kind) in parts.iter().zip(["text/plain", "text/html"]) {
            assert_eq!((part["type"].as_str(), part["charset"].as_str()), (Some(kind), Some("utf-8")));
            let links = part["links"].as_array().unwrap();
            assert_eq!(links.len(), 1, "{links:?}");
            let link = links[0].as_str().unwrap();
            assert!(link.starts_with(&format!("http://{}/_matrix/", shim.clients)) && link.contains(&sid), "{link}");
        }
    }
    assert_eq!(message_ids.len(), 3);
}

/// The mail server is given the password that the shim has all along: what changes is not the shim.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_mails_nothing_and_the_same_attempt_mails_later() {
    let (user, right) = (unique("login"), unique("right"));
    postfix().set_password(&user, "wrong");
    let wanted = Wanted { email: Some(postfix().email("required", &user, &right)), ..Wanted::default() };
    let shim = legacy("1.3.1").shim(wanted).await;
    let (address, secret) = (format!("{user}@example.org"), unique("secret"));
    let ask = async || shim.client().request_token("register", &address, &secret, 1).await;
    // More often than an address may be mailed: what was not mailed is not counted there either.
    for _ in 0..6 {
        assert_eq!(ask().await.verdict(), (500, "M_EMAIL_SEND_ERROR".into()));
    }
    postfix().set_password(&user, &right);
    let sid = ask().await.sid();
    assert!(link_of(&postfix().mail(&address).await).contains(&sid));
    assert_eq!(ask().await.sid(), sid, "now it is counted");
    nothing_more_for(&shim, &address, 1).await;
}

/// S§5.7.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_that_the_mail_server_refuses_is_the_clients_error() {
    for version in VERSIONS {
        let shim = legacy(version).shim(postfix().wanted("required")).await;
        let ask = shim.client().request_token("register", "refused@example.org", &unique("secret"), 1).await;
        assert_eq!(ask.verdict(), (400, "M_EMAIL_SEND_ERROR".into()), "{version}");
        let ask = shim.client().request_token("register", "nobody@elsewhere.example", &unique("secret"), 1).await;
        assert_eq!(ask.verdict(), (400, "M_EMAIL_SEND_ERROR".into()), "{version}: nothing is relayed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_is_busy_is_tried_once_more_and_then_an_error_within_the_deadline() {
    let own = Postfix::start();
    let wanted =
        Wanted { email: Some(own.email("required", USER, SMTP_PASSWORD) + "deadline = \"8s\"\n"), ..Wanted::default() };
    let shim = legacy("1.3.1").shim(wanted).await;
    let began = Instant::now();
    let ask = shim.client().request_token("register", "later@example.org", &unique("secret"), 1).await;
    assert_eq!(ask.verdict(), (500, "M_EMAIL_SEND_ERROR".into()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(own.logged(" RCPT from ", 2).await.matches(": 450 4.2.1 ").count(), 2);
    assert!(own.arrived("later@example.org").is_empty());
}

/// S§4.24.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_38686_a_mail_server_whose_certificate_is_not_trusted_gets_no_login_and_no_mail() {
    let own = Postfix::start();
    let mut ran = 0;
    for tls in ["required", "implicit"] {
        let email = own.email(tls, USER, SMTP_PASSWORD).replace("ca_file", "# ca_file");
        let wanted = Wanted { email: Some(email), ..Wanted::default() };
        let shim = legacy("1.3.1").shim(wanted).await;
        let address = format!("{}@example.org", unique("untrusted"));
        let ask = shim.client().request_token("register", &address, &unique("secret"), 1).await;
        assert_eq!(ask.verdict(), (500, "M_EMAIL_SEND_ERROR".into()), "{tls}");
        assert!(own.arrived(&address).is_empty());
        ran += 1;
    }
    assert_eq!(ran, 2);
    // Postfix sums up each connection: `disconnect from localhost[127.0.0.1] ehlo=1 starttls=0/1 commands=1/2`.
    let log = own.logged("SSL_accept error", 2).await;
    for word in ["auth=", "mail=", "rcpt=", "data=", "sasl_username"] {
        assert!(!log.contains(word), "{word} in {log}");
    }
}

/// Somebody with an address, whose mail went to an outbox.
async fn registered_elsewhere(synapse: &Legacy) -> String {
    let shim = synapse.shim(Wanted::default()).await;
    let (name, secret) = (unique("known"), unique("secret"));
    let email = format!("{name}@example.org");
    let sid = shim.verify("register", &email, &secret).await;
    shim.client().register(&name, creds(&sid, &secret)).await.ok();
    email
}

/// Mails are put into mailboxes in the order they came: once a later one is there, an earlier one would be.
async fn nothing_more_for(shim: &Shim, address: &str, so_far: usize) {
    let later = format!("{}@example.org", unique("later"));
    shim.client().request_token("register", &later, &unique("secret"), 1).await.sid();
    postfix().mail(&later).await;
    assert_eq!(postfix().arrived(address).len(), so_far);
}
