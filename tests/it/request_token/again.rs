//! requestToken a second time: when the same sid is answered, and when a mail goes out again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{asked, registered};
use crate::client::{creds, request_token_path};
use crate::homeserver::{self, Homeserver, soon};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::secure::{API, as_synapse, call, call_and_hang_up};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

async fn shim_with(version: &'static str, mailbox: &Mailbox) -> Shim {
    legacy(version).shim(Wanted::config(ROOMY).mailing_to(mailbox.address())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_higher_send_attempt_mails_again_and_the_older_link_stays_good() {
    for version in VERSIONS {
        let mailbox = Mailbox::start(Script::clear()).await;
        let shim = shim_with(version, &mailbox).await;
        let (client, name, secret) = (shim.client(), unique("attempt"), unique("secret"));
        let email = format!("{name}@example.org");
        let sid = client.request_token("register", &email, &secret, 5).await.sid();
        let mut mails = 1;
        for (attempt, mailed) in [(5, 0), (4, 0), (-1, 0), (6, 1), (6, 0), (5, 0), (i64::MAX, 1), (7, 0)] {
            let again = client.request_token("register", &email, &secret, attempt).await.sid();
            mails += mailed;
            assert_eq!((again, mailbox.mails().len()), (sid.clone(), mails), "{version} attempt {attempt}");
        }
        let shouted = client.request_token("register", &email.to_uppercase(), &secret, 6).await.sid();
        assert_eq!((shouted, mailbox.mails().len()), (sid.clone(), mails), "one address in any case");
        let other = client.request_token("register", &email, &unique("secret"), 5).await.sid();
        assert_ne!(other, sid, "another client's session is another");

        let links: Vec<_> = mailbox.mails().iter().map(crate::mailbox::Mail::link).collect();
        assert_eq!(client.click(&links[0]).await.status, 200, "the first mail's link");
        assert!(client.open(&links[1]).await.text().contains("lready"), "the second one says that it is done");
        let fresh = client.request_token("register", &email, &secret, 5).await.sid();
        assert_ne!(fresh, sid, "after validation the same client begins a new session");
        assert_eq!(mailbox.mails().len(), mails + 2);
        client.register(&name, creds(&sid, &secret)).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_counts_only_once_the_mail_server_has_taken_the_mail() {
    for version in VERSIONS {
        let refused = Fault::reply(At::Rcpt, "550 5.1.1 no such user");
        let script = Script::clear().first(refused.clone()).first(refused);
        let mailbox = Mailbox::start(script).await;
        let shim = shim_with(version, &mailbox).await;
        let (client, email, secret) = (shim.client(), unique("failed") + "@example.org", unique("secret"));
        for _ in 0..2 {
            let answer = client.request_token("register", &email, &secret, 1).await;
            assert_eq!(answer.verdict(), (400, "M_EMAIL_SEND_ERROR".into()), "the mail server refused the recipient");
            assert!(!answer.text().contains(&email) && answer.json()["error"].is_string());
        }
        let sid = client.request_token("register", &email, &secret, 1).await.sid();
        assert_eq!(client.click(&mailbox.wait_for_mail().await.link()).await.status, 200);
        let name = unique("failed");
        client.register(&name, creds(&sid, &secret)).await.ok();
    }
}

/// S§5.6.
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_that_is_not_there_is_an_error_and_spoils_no_older_link() {
    for version in VERSIONS {
        let mailbox = Mailbox::start(Script::clear()).await;
        let shim = shim_with(version, &mailbox).await;
        let (client, email, secret) = (shim.client(), unique("down") + "@example.org", unique("secret"));
        let sid = client.request_token("register", &email, &secret, 1).await.sid();
        let link = mailbox.wait_for_mail().await.link();
        mailbox.stop().await;
        let answer = client.request_token("register", &email, &secret, 2).await;
        assert_eq!(answer.verdict(), (500, "M_EMAIL_SEND_ERROR".into()));
        assert_eq!(client.request_token("register", &email, &secret, 1).await.sid(), sid, "that one was mailed");
        assert_eq!(client.click(&link).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_request_while_the_first_is_still_mailing_gets_its_sid_and_no_second_mail() {
    let mailbox = Mailbox::start(Script::clear().always(Fault::hold(At::Dot))).await;
    let shim = shim_with("1.3.1", &mailbox).await;
    let body = asked(&(unique("twice") + "@example.org"), &unique("secret"));
    let post = || {
        let (client, body) = (shim.client(), body.clone());
        tokio::spawn(async move { client.post(&request_token_path("register"), body).await.sid() })
    };
    let first = post();
    mailbox.wait_for_command("DATA").await;
    let mut others = [post(), post()];
    let early = tokio::time::timeout(Duration::from_millis(250), &mut others[0]).await;
    assert!(early.is_err(), "it waits for the first: {early:?}");
    mailbox.release(3);
    let sid = soon("the first answer", first).await.unwrap();
    for other in others {
        assert_eq!(soon("the others' answers", other).await.unwrap(), sid);
    }
    assert_eq!((mailbox.mails().len(), mailbox.connections()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_purpose_waits_for_the_first_and_gets_a_session_of_its_own() {
    let mailbox = Mailbox::start(Script::clear().first(Fault::hold(At::Dot))).await;
    let shim = shim_with("1.3.1", &mailbox).await;
    let body = asked(&(unique("purpose") + "@example.org"), &unique("secret"));
    let post = |purpose| {
        let (client, body, path) = (shim.client(), body.clone(), request_token_path(purpose));
        tokio::spawn(async move { client.post(&path, body).await.sid() })
    };
    let register = post("register");
    mailbox.wait_for_command("DATA").await;
    let mut add = post("account/3pid");
    let early = tokio::time::timeout(Duration::from_millis(250), &mut add).await;
    assert!(early.is_err(), "it waits for the first: {early:?}");
    mailbox.release(1);
    let (register, add) = (register.await.unwrap(), soon("the second answer", add).await.unwrap());
    assert_ne!(register, add);
    let (first, second) = (mailbox.wait_for_mail().await.link(), mailbox.wait_for_mail().await.link());
    assert!(first.contains("/threepid_shim/register/") && first.contains(&register), "{first}");
    assert!(second.contains("/threepid_shim/account_3pid/") && second.contains(&add), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_asked_for_again_after_it_was_confirmed_begins_anew() {
    let mailbox = Mailbox::start(Script::clear()).await;
    let shim = shim_with("0.99.5.2", &mailbox).await;
    let (client, secret) = (shim.client(), unique("secret"));
    let outbox = legacy("0.99.5.2").shim(Wanted::default()).await;
    let (_, email) = registered(&outbox).await;
    let mut sids = Vec::new();
    for _ in 0..3 {
        sids.push(client.request_token("account/password", &email, &secret, 1).await.sid());
        assert_eq!(client.click(&mailbox.wait_for_mail().await.link()).await.status, 200);
    }
    sids.dedup();
    assert_eq!(sids.len(), 3);
    client.reset_password("another password", creds(&sids[1], &secret)).await.ok();
}

/// A homeserver's patience ends after a minute, and it may be restarted at any time. S§4.8, S§5.8.
#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_hangs_up_while_a_mail_is_sent_has_it_sent_once_and_told() {
    let mailbox = Arc::new(Mailbox::start(Script::clear().always(Fault::hold(At::Dot))).await);
    let door = Reserved::new(1).take();
    let name = format!("localhost:{}", door.local_addr().unwrap().port());
    let (mails, calls) = (Arc::clone(&mailbox), Arc::<AtomicUsize>::default());
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let (name, mails, calls) = (name.clone(), Arc::clone(&mails), Arc::clone(&calls));
        async move {
            while let Some(request) = conversation.request().await {
                if !request.line().contains("/requestToken") {
                    conversation.write(homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)).await;
                    continue;
                }
                let ((kind, body), target) = (as_synapse(&request.json()), format!("{API}validate/email/requestToken"));
                if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                    call_and_hang_up(&name, &target, kind, &body, mails.wait_for_command("DATA")).await;
                    conversation.write(homeserver::json("500 X", r#"{"errcode":"M_UNKNOWN"}"#)).await;
                } else {
                    let told = call(&name, "POST", &target, kind, &body).await;
                    conversation.write(homeserver::json(&format!("{} X", told.status), &told.text())).await;
                }
            }
        }
    })
    .await;
    let wanted = Wanted::config(ROOMY).mailing_to(mailbox.address());
    let shim = Shim::before(&homeserver.address.to_string(), door, wanted).await;
    let ask = || {
        let client = shim.client();
        tokio::spawn(async move { client.request_token("register", "a@example.org", "secret", 1).await.sid() })
    };
    let mut first = ask();
    mailbox.wait_for_command("DATA").await;
    // hyper takes a caller that hung up for gone after 0.9 s.
    let early = tokio::time::timeout(Duration::from_millis(1500), &mut first).await;
    assert!(early.is_err(), "nobody knows yet what becomes of the mail: {early:?}");
    let again = ask();
    mailbox.release(2);
    let sid = soon("the first answer", first).await.unwrap();
    assert_eq!(soon("the second answer", again).await.unwrap(), sid);
    assert_eq!((mailbox.messages().len(), mailbox.connections()), (1, 1));
    assert_eq!(shim.client().click(&mailbox.wait_for_mail().await.link()).await.status, 200);
}
