//! What a UIA session was completed with, and is remembered for by old Synapse without being asked again.

use std::time::Duration;

use serde_json::{Value, json};

use super::naive::Naive;
use super::{email_stage, never_do, opens, registered, reset_by_uia_session, roomy, uia_session};
use crate::client::{Answer, Client, PASSWORD, creds};
use crate::legacy::{Legacy, legacy, unique};
use crate::phones::{self, code, gateway, number, request, submit};
use crate::shim::ROOMY;

/// How long an owner may repeat what he has completed.
const REPEAT: Duration = Duration::from_secs(600);
const A_DAY: Duration = Duration::from_secs(86_400);

async fn reset(client: &Client, new_password: &str, auth: Value) -> Answer {
    client.post("/_matrix/client/r0/account/password", json!({ "new_password": new_password, "auth": auth })).await
}

async fn register(client: &Client, name: &str, auth: Value) -> Answer {
    let body = json!({ "username": name, "password": PASSWORD, "auth": auth });
    client.post("/_matrix/client/r0/register", body).await
}

/// Creds without a `type`: Synapse looks at no creds then, only at what the UIA session has.
fn unchecked(sid: &str, secret: &str, uia_session: &str) -> Value {
    json!({ "session": uia_session, "threepid_creds": creds(sid, secret) })
}

fn phone_stage(sid: &str, secret: &str, uia_session: &str) -> Value {
    json!({ "type": "m.login.msisdn", "session": uia_session, "threepid_creds": creds(sid, secret) })
}

/// Who once had the mailbox: the decoy is a session of his own address, which no mail ever validates.
#[tokio::test(flavor = "multi_thread")]
async fn p4_6_a_consumed_session_is_not_used_for_ever_by_its_uia_session_and_a_decoy() {
    let synapse = legacy("1.3.1");
    let shim = roomy(synapse).await;
    let (email, own) = (format!("{}@example.org", unique("victim")), format!("{}@example.org", unique("thief")));
    registered(&shim, &email).await;
    registered(&shim, &own).await;
    let naive = Naive::of(synapse, &email);
    let bare = synapse.bare();
    let uia = uia_session(&bare).await;
    reset(&bare, "once", email_stage(&naive.creds(), Some(&uia))).await.ok();
    let heard = naive.heard().len();
    reset(&bare, "again", unchecked("18", "decoy", &uia)).await.ok();
    assert!(opens(&bare, &email, "again").await && naive.heard().len() == heard, "the attack is real: nobody is asked");

    let client = shim.client();
    let (secret, decoy_secret) = (unique("secret"), unique("secret"));
    let sid = shim.verify("account/password", &email, &secret).await;
    let decoy = client.request_token("account/password", &own, &decoy_secret, 1).await.sid();
    let uia = uia_session(&client).await;
    reset(&client, "first", email_stage(&creds(&sid, &secret), Some(&uia))).await.ok();
    shim.later(REPEAT);
    let attack = unchecked(&decoy, &decoy_secret, &uia);
    assert_eq!(reset(&client, "stolen", attack.clone()).await.verdict(), never_do());
    assert_eq!(reset_by_uia_session(&client, &uia, "stolen").await.verdict(), never_do());
    client.click(&shim.link(&decoy)).await;
    assert_eq!(reset(&client, "stolen", attack).await.verdict(), never_do());
    assert!(opens(&client, &email, "first").await, "nothing was reset again");
    client.reset_password("own", creds(&decoy, &decoy_secret)).await.ok();
    assert!(opens(&client, &own, "own").await, "the decoy itself is as good as it was");
}

/// The same of one that was never consumed, by a request that is refused for another reason; and of one that completes
/// by the UIA session although its own creds are there.
#[tokio::test(flavor = "multi_thread")]
async fn p4_6_nor_is_an_expired_one_and_what_is_used_unchecked_is_consumed() {
    let shim = roomy(legacy("1.3.1")).await;
    let client = shim.client();
    let email = format!("{}@example.org", unique("known"));
    let (secret, other_secret) = (unique("secret"), unique("secret"));
    let sid = shim.verify("register", &email, &secret).await;
    registered(&shim, &email).await;
    let uia = uia_session(&client).await;
    let refused = register(&client, &unique("name"), email_stage(&creds(&sid, &secret), Some(&uia))).await;
    assert_eq!(refused.verdict(), (400, "M_THREEPID_IN_USE".into()), "the stage is completed, the session is not used");
    shim.later(A_DAY);
    let decoy = client.request_token("register", &format!("{other_secret}@example.org"), &other_secret, 1).await.sid();
    let attack = register(&client, &unique("name"), unchecked(&decoy, &other_secret, &uia)).await;
    assert_eq!(attack.verdict(), never_do(), "it has expired");

    let sid = shim.verify("account/password", &email, &secret).await;
    let uia = uia_session(&client).await;
    let wrong = json!({ "auth": email_stage(&creds(&sid, &secret), Some(&uia)) });
    let refused = client.post("/_matrix/client/r0/account/password", wrong).await;
    assert_eq!(refused.verdict(), (400, "M_MISSING_PARAM".into()), "{}", refused.text());
    reset(&client, "once", unchecked(&sid, &secret, &uia)).await.ok();
    let elsewhere = reset(&client, "stolen", email_stage(&creds(&sid, &secret), None)).await;
    assert_eq!(elsewhere.verdict(), never_do(), "its owner's alone");
    shim.later(REPEAT);
    assert_eq!(reset(&client, "stolen", unchecked(&sid, &secret, &uia)).await.verdict(), never_do());
    assert!(opens(&client, &email, "once").await);
}

/// Two sessions of ours complete one UIA session. Synapse 1.3.1 takes the phone alone where both are demanded, and both
/// where the address is.
#[tokio::test(flavor = "multi_thread")]
async fn p4_6_a_registration_by_mail_and_phone_uses_both_up_in_either_order() {
    for (demanded, mail_first) in [("email msisdn", true), ("email", false)] {
        let synapse = Legacy::start("1.3.1", &[("REQUIRE_3PID", demanded)]);
        let gateway = gateway().await;
        let shim = synapse.shim(phones::wanted(&gateway, ROOMY)).await;
        let client = shim.client();
        let (name, secret, phone_secret) = (unique("both"), unique("secret"), unique("secret"));
        let begun =
            client.post("/_matrix/client/r0/register", json!({ "username": name, "password": PASSWORD })).await.json();
        let uia = begun["session"].as_str().unwrap();
        let sid = shim.verify("register", &format!("{name}@example.org"), &secret).await;
        let phone = request(&client, "register", &number(), &phone_secret, 1).await.sid();
        let by_mail = email_stage(&creds(&sid, &secret), Some(uia));
        let by_phone = phone_stage(&phone, &phone_secret, uia);
        assert_eq!(register(&client, &name, by_phone.clone()).await.status, 401, "not validated yet");
        submit(&client, &phone, &phone_secret, &code(&gateway)).await.ok();
        let (first, last) = if mail_first { (&by_mail, &by_phone) } else { (&by_phone, &by_mail) };
        let halfway = register(&client, &name, first.clone()).await;
        assert_eq!((halfway.status, &halfway.json()["completed"]), (401, &json!([first["type"]])));
        let done = register(&client, &name, last.clone()).await.ok();
        assert_eq!(done["user_id"], format!("@{name}:localhost"));

        shim.later(REPEAT - Duration::from_secs(1));
        // At once: each holds both sessions, in the same order.
        let alone = json!({ "session": uia });
        let repeats = [&by_mail, &by_phone, &alone].repeat(4).into_iter().map(|repeat| {
            let (client, name, repeat) = (client.clone(), name.clone(), repeat.clone());
            tokio::spawn(async move { register(&client, &name, repeat).await.ok() })
        });
        for repeated in repeats.collect::<Vec<_>>() {
            assert_eq!(repeated.await.unwrap()["user_id"], done["user_id"]);
        }
        shim.later(Duration::from_secs(1));
        for late in [by_mail, by_phone, alone] {
            assert_eq!(register(&client, &name, late).await.verdict(), never_do());
        }
    }
}

/// The first address turns out to be in use; another is verified in the same UIA session.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_verification_in_the_same_uia_session_registers_and_uses_both_up() {
    let shim = roomy(legacy("1.3.1")).await;
    let client = shim.client();
    let (name, secret, other_secret) = (unique("second"), unique("secret"), unique("secret"));
    let taken = format!("{}@example.org", unique("taken"));
    let first = shim.verify("register", &taken, &secret).await;
    registered(&shim, &taken).await;
    let uia = uia_session(&client).await;
    let first = email_stage(&creds(&first, &secret), Some(&uia));
    assert_eq!(register(&client, &name, first.clone()).await.verdict(), (400, "M_THREEPID_IN_USE".into()));
    let email = format!("{name}@example.org");
    let second = client.request_token("register", &email, &other_secret, 1).await.sid();
    let auth = email_stage(&creds(&second, &other_secret), Some(&uia));
    for _ in 0..3 {
        // A stage that was completed stays so; whether this one is, is asked for anew.
        assert_eq!(register(&client, &name, auth.clone()).await.verdict(), (401, "M_UNAUTHORIZED".into()));
    }
    client.click(&shim.link(&second)).await;
    let done = register(&client, &name, auth.clone()).await.ok();
    assert_eq!(done["user_id"], format!("@{name}:localhost"));
    assert_eq!(client.login(&email, PASSWORD).await.ok()["user_id"], done["user_id"]);
    assert_eq!(register(&client, &name, auth.clone()).await.ok()["user_id"], done["user_id"], "the owner's repeat");
    shim.later(REPEAT);
    for late in [first, auth] {
        assert_eq!(register(&client, &name, late).await.verdict(), never_do());
    }
}
