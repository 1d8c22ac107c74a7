//! Completions: every way clients have written creds, who may repeat one, and what the shim leaves as it came.

mod foreign;
mod lost;

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Client, PASSWORD, creds};
use crate::flows::registered;
use crate::legacy::{Legacy, VERSIONS, legacy, unique};
use crate::shim::{ROOMY, Wanted};

const EMAIL_STAGE: &str = "m.login.email.identity";
/// How long an owner may repeat what he has completed.
const REPEAT: Duration = Duration::from_secs(600);

fn refused() -> (u16, String) {
    (400, "M_THREEPID_AUTH_FAILED".to_owned())
}

fn waiting() -> (u16, String) {
    (401, "M_UNAUTHORIZED".to_owned())
}

/// An object with creds under one name: each spelling there has been, as an object and as a list, with names inside in
/// either style, naming nobody or somebody else.
fn spellings(sid: &str, client_secret: &str) -> Vec<Value> {
    let inner = [
        json!({ "sid": sid, "client_secret": client_secret }),
        json!({ "sid": sid, "client_secret": client_secret, "id_server": "vector.im", "id_access_token": "token" }),
        json!({ "sid": sid, "clientSecret": client_secret, "idServer": "vector.im" }),
    ];
    let names = ["threepid_creds", "threepidCreds", "three_pid_creds", "threePidCreds"];
    let shapes = names.iter().flat_map(|name| inner.iter().map(move |one| (name, one)));
    shapes.flat_map(|(name, one)| [json!({ *name: one }), json!({ *name: [one] })]).collect()
}

fn in_auth(spelling: &Value) -> Value {
    let mut auth = spelling.clone();
    auth["type"] = EMAIL_STAGE.into();
    auth
}

async fn post(client: &Client, endpoint: &str, body: Value) -> Answer {
    client.post(&format!("/_matrix/client/r0/{endpoint}"), body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_creds_registers_resets_and_adds() {
    let rows = spellings("", "").len();
    assert_eq!(rows, 24);
    for (version, turn) in VERSIONS.into_iter().zip(0..) {
        let shim = legacy(version).shim(Wanted::config(ROOMY)).await;
        let client = shim.client();
        let (name, email) = registered(&shim).await;
        let user = shim.client().logged_in(&client.register_plainly(&unique("user")).await);
        for at in (turn..rows).step_by(VERSIONS.len()) {
            let (secret, fresh) = (unique("secret"), unique("spelling"));
            let address = format!("{fresh}@example.org");

            let sid = shim.verify("register", &address, &secret).await;
            let auth = in_auth(&spellings(&sid, &secret)[at]);
            let answer =
                post(&client, "register", json!({ "username": fresh, "password": PASSWORD, "auth": auth })).await;
            assert_eq!(answer.status, 200, "{version} {auth}: {}", answer.text());
            assert_eq!(client.login(&address, PASSWORD).await.ok()["user_id"], format!("@{fresh}:localhost"));

            let sid = shim.verify("account/password", &email, &secret).await;
            let auth = in_auth(&spellings(&sid, &secret)[at]);
            let answer = post(&client, "account/password", json!({ "new_password": fresh, "auth": auth })).await;
            assert_eq!(answer.status, 200, "{version} {auth}: {}", answer.text());
            assert_eq!(client.login(&email, &fresh).await.ok()["user_id"], format!("@{name}:localhost"));

            let added = format!("added-{address}");
            let sid = shim.verify("account/3pid", &added, &secret).await;
            let body = spellings(&sid, &secret)[at].clone();
            let answer = post(&user, "account/3pid", body.clone()).await;
            assert_eq!(answer.status, 200, "{version} {body}: {}", answer.text());
            assert!(user.addresses().await.contains(&added));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_poll_before_the_click_is_told_to_wait() {
    for version in VERSIONS {
        let shim = legacy(version).shim(Wanted::config(ROOMY)).await;
        let (client, name, secret) = (shim.client(), unique("poll"), unique("secret"));
        let (address, known) = (format!("{name}@example.org"), registered(&shim).await.1);
        let begun = post(&client, "register", json!({ "username": name, "password": PASSWORD })).await;
        assert_eq!(begun.status, 401);
        let uia_session = begun.json()["session"].clone();

        let sid = client.request_token("register", &address, &secret, 1).await.sid();
        let auth = json!({ "type": EMAIL_STAGE, "session": uia_session, "threepid_creds": creds(&sid, &secret) });
        let reset = client.request_token("account/password", &known, &secret, 1).await.sid();
        for _ in 0..3 {
            assert_eq!(post(&client, "register", json!({ "auth": auth })).await.verdict(), waiting());
            assert_eq!(client.reset_password("new", creds(&reset, &secret)).await.verdict(), waiting());
            shim.later(Duration::from_secs(120));
        }
        assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
        assert_eq!(client.click(&shim.link(&reset)).await.status, 200);
        let answer = post(&client, "register", json!({ "auth": auth })).await.ok();
        assert_eq!(answer["user_id"], format!("@{name}:localhost"), "the body of the UIA session's first request");
        client.reset_password("new", creds(&reset, &secret)).await.ok();
        client.login(&known, "new").await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_completed_may_be_repeated_by_its_owner_for_ten_minutes() {
    let synapse = legacy("1.3.1");
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let (client, name, secret) = (shim.client(), unique("repeat"), unique("secret"));
    let address = format!("{name}@example.org");
    let registered = shim.verify("register", &address, &secret).await;
    client.register(&name, creds(&registered, &secret)).await.ok();
    let taken = (400, "M_USER_IN_USE".to_owned());
    let user = shim.client().logged_in(&client.register_plainly(&unique("user")).await);
    let other = shim.client().logged_in(&client.register_plainly(&unique("user")).await);
    let added = shim.verify("account/3pid", &format!("added-{address}"), &secret).await;
    user.add_3pid(creds(&added, &secret)).await.ok();
    let reset = shim.verify("account/password", &address, &secret).await;
    client.reset_password("new", creds(&reset, &secret)).await.ok();

    shim.later(Duration::from_secs(599));
    let again = client.register(&name, creds(&registered, &secret)).await;
    assert_eq!(again.verdict(), taken, "the homeserver answers the very same request again");
    client.reset_password("new", creds(&reset, &secret)).await.ok();
    user.add_3pid(creds(&added, &secret)).await.ok();
    let second = client.register(&unique("second"), creds(&registered, &secret)).await;
    assert_eq!(second.verdict(), refused(), "another request is no repeat");
    assert_eq!(client.reset_password("evil", creds(&reset, &secret)).await.verdict(), refused());
    assert_eq!(other.add_3pid(creds(&added, &secret)).await.verdict(), refused());

    shim.later(Duration::from_secs(1));
    assert_eq!(client.register(&name, creds(&registered, &secret)).await.verdict(), refused());
    assert_eq!(client.reset_password("new", creds(&reset, &secret)).await.verdict(), refused());
    assert_eq!(user.add_3pid(creds(&added, &secret)).await.verdict(), refused());
}

/// A homeserver whose registration demands an address and its terms.
fn with_terms() -> Legacy {
    let folder = tempfile::tempdir().unwrap().keep();
    let extra = folder.join("extra.yaml");
    let consent = format!("{{template_dir: {}, version: '1.0', require_at_registration: true}}", folder.display());
    std::fs::write(&extra, format!("user_consent: {consent}\n")).unwrap();
    let legacy = Legacy::start("1.3.1", &[("REQUIRE_3PID", "email"), ("EXTRA_CONFIG", extra.to_str().unwrap())]);
    std::fs::remove_dir_all(folder).unwrap();
    legacy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_with_a_further_stage_is_completed_by_its_uia_session_alone() {
    let synapse = with_terms();
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let client = shim.client();
    for address_first in [true, false] {
        let (name, secret) = (unique("terms"), unique("secret"));
        let body = json!({ "username": name, "password": PASSWORD });
        let begun = post(&client, "register", body).await.json();
        assert!(begun["flows"].as_array().unwrap().iter().all(|flow| flow["stages"].to_string().contains(EMAIL_STAGE)));
        let uia_session = &begun["session"];
        let sid = shim.verify("register", &format!("{name}@example.org"), &secret).await;
        let terms = json!({ "auth": { "type": "m.login.terms", "session": uia_session } });
        let address =
            json!({ "auth": { "type": EMAIL_STAGE, "session": uia_session, "threepid_creds": creds(&sid, &secret) } });
        let (first, last) = if address_first { (&address, &terms) } else { (&terms, &address) };
        let halfway = post(&client, "register", first.clone()).await;
        assert_eq!((halfway.status, &halfway.json()["completed"]), (401, &json!([first["auth"]["type"]])));

        if address_first {
            let stolen = client.register(&unique("thief"), creds(&sid, &secret)).await;
            assert_eq!(stolen.verdict(), refused(), "bound to its UIA session");
        }
        let done = post(&client, "register", last.clone()).await.ok();
        assert_eq!(done["user_id"], format!("@{name}:localhost"));
        client.login(&format!("{name}@example.org"), PASSWORD).await.ok();
        shim.later(REPEAT);
        let late = post(&client, "register", address).await;
        assert_eq!(late.verdict(), refused(), "consumed, also by a request without creds");
    }
}
