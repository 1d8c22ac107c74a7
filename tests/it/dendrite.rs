//! Dendrite, which demands `id_server` to this day: adding an address, by the old endpoint and by MSC2290's.

mod double;

use serde_json::{Value, json};

use crate::client::{Client, PASSWORD, creds};
use crate::legacy::unique;
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::shim::{ROOMY, Shim, Wanted};
use crate::table::{MSC2263, WORKS, cell};
use double::{Dendrite, VERSIONS};

const TRANSLATE: &str = "[routes]\naccount_3pid_add = \"translate\"\n";

fn failed() -> (u16, String) {
    (400, "M_THREEPID_AUTH_FAILED".to_owned())
}

fn user(shim: &Shim, name: &str) -> Client {
    shim.client().speaking("v3").logged_in(name)
}

async fn features(client: &Client) -> Value {
    client.get("/_matrix/client/versions").await.ok()["unstable_features"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_dendrite_adds_an_address() {
    let (dendrite, shim) = Dendrite::behind_a_shim(Wanted::default()).await;
    assert_eq!(features(&dendrite.bare()).await, json!({ "org.matrix.simplified_msc3575": false }));
    assert_eq!(features(&shim.client()).await["m.require_identity_server"], false);
    cell("Dendrite", "flag", MSC2263, WORKS, "missing");
    for api in ["v3", "r0"] {
        let (name, secret) = (unique("dendrite"), unique("secret"));
        let email = format!("{name}@example.org");
        let user = shim.client().speaking(api).logged_in(&name);
        let bare = dendrite.bare().speaking(api).request_token("account/3pid", &email, &secret, 1).await;
        assert_eq!(bare.json()["error"], "Untrusted server ''", "what every client of today gets");

        let sid = user.request_token("account/3pid", &email, &secret, 1).await.sid();
        let called = format!(
            "POST /_matrix/identity/api/v1/validate/email/requestToken client_secret={secret}&email={name}%40example.org&send_attempt=1"
        );
        assert_eq!(dendrite.calls().last(), Some(&called));
        assert_eq!(user.add_3pid(creds(&sid, &secret)).await.verdict(), failed(), "not validated yet");
        assert_eq!(dendrite.owner(""), None);
        assert_eq!(user.click(&shim.link(&sid)).await.status, 200);
        user.add_3pid(creds(&sid, &secret)).await.ok();
        assert_eq!(user.addresses().await, [email.clone()]);
        let again = user.request_token("account/3pid", &email, &unique("secret"), 1).await;
        assert_eq!(again.verdict(), (400, "M_THREEPID_IN_USE".into()), "the homeserver's policy");
        cell("Dendrite", "add e-mail", MSC2263, WORKS, &bare.errcode());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn next_link_is_kept_though_dendrite_drops_it() {
    let (_dendrite, shim) = Dendrite::behind_a_shim(Wanted::default()).await;
    let body = json!({ "client_secret": "s", "email": "next@example.org", "send_attempt": 1, "next_link": "https://app.example/#/x?y" });
    let sid = user(&shim, "u").call("account/3pid/email/requestToken", body).await.sid();
    let clicked = shim.client().click(&shim.link(&sid)).await;
    assert_eq!(
        (clicked.status, clicked.header("Location")),
        (303, Some(&*format!("https://app.example/#/x?y&sid={sid}")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_identity_door_refused_is_told_though_dendrite_makes_500_of_it() {
    let (dendrite, shim) =
        Dendrite::behind_a_shim(Wanted::config("[limits]\nrequest_token_per_address = \"1/1h\"\n")).await;
    let client = user(&shim, "limited");
    let email = unique("limited") + "@example.org";
    client.request_token("account/3pid", &email, "first", 1).await.sid();
    let limited = client.request_token("account/3pid", &email, "second", 1).await;
    assert_eq!(limited.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert!(limited.json()["retry_after_ms"].is_u64() && limited.header("Retry-After").is_some());
    assert_eq!(dendrite.calls().len(), 2, "both came to the identity door");

    let nobody = Fault::reply(At::Rcpt, "550 5.1.1 nobody of this name");
    let mailbox = Mailbox::start(Script::clear().always(nobody)).await;
    let (_dendrite, shim) = Dendrite::behind_a_shim(Wanted::default().mailing_to(mailbox.address())).await;
    let refused = user(&shim, "refused").request_token("account/3pid", &email, "s", 1).await;
    assert_eq!(refused.verdict(), (400, "M_EMAIL_SEND_ERROR".into()));
    mailbox.stop().await;
    let unsent = user(&shim, "refused").request_token("account/3pid", &email, "s", 2).await;
    assert_eq!(unsent.verdict(), (500, "M_EMAIL_SEND_ERROR".into()), "a mail server that is gone");
}

/// `{victim}` is the sid of somebody else's validated session, `{secret}` its client_secret, `{own}` one that the
/// attacker has not validated, `{us}` our name.
const SMUGGLED: [&str; 18] = [
    // Dendrite escapes nothing.
    r#"{"three_pid_creds":{"sid":"x&sid={victim}","client_secret":"{secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"{victim}&client_secret={secret}#","client_secret":"x"}}"#,
    r#"{"three_pid_creds":{"sid":"{own}&sid={victim}","client_secret":"{secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"1","client_secret":"x&sid={victim}&client_secret={secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"1","client_secret":"x&sid={victim}&client_secret={secret}","id_server":"{us}"}}"#,
    r#"{"three_pid_creds":{"sid":"{own}","client_secret":"own&sid={victim}&client_secret={secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"%73him_{rest}","client_secret":"{secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"%73him_{rest}","client_secret":"{secret}","id_server":"{us}"}}"#,
    r#"{"three_pid_creds":{"sid":"&sid={victim}","client_secret":"{secret}","id_server":"{us}"}}"#,
    r#"{"three_pid_creds":{"sid":"{victim}&x=","client_secret":"{secret}","id_server":"{us}"}}"#,
    r#"{"three_pid_creds":{"sid":"{victim}\u0000","client_secret":"{secret}","id_server":"{us}"}}"#,
    // Go reads names in any case, merges, and the last counts.
    r#"{"Three_Pid_Creds":{"Sid":"x&sid={victim}","Client_Secret":"{secret}","Id_Server":"{us}"}}"#,
    r#"{"three_pid_creds":{"sid":"{own}","client_secret":"own"},"Three_pid_creds":{"sid":"{victim}","client_secret":"{secret}","id_server":"{us}"}}"#,
    r#"{"three_pid_creds":{"sid":"{own}","client_secret":"own","SID":"{victim}","CLIENT_SECRET":"{secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"{own}","\u0053id":"{victim}","client_secret":"{secret}"}}"#,
    r#"{"three_pid_creds":{"sid":"{own}","client_secret":"own"},"three_pid_cred\u017f":{"sid":"{victim}","client_secret":"{secret}"}}"#,
    r#"{"three_pid_creds":{"\u017fid":"{victim}","client_secret":"{secret}","id_server":"{us}","sid":"1"}}"#,
    // Not smuggled at all, but somebody else's: the attacker knows all of it but has used it for nothing.
    r#"{"three_pid_creds":{"sid":"{own}","client_secret":"{secret}","id_server":"{us}"}}"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_smuggled_past_the_shim_through_an_unescaped_query() {
    let (dendrite, shim) = Dendrite::behind_a_shim(Wanted::config(ROOMY)).await;
    let secret = unique("secret");
    let victim = shim_verified(&shim, "victim@example.org", &secret).await;
    let own = user(&shim, "attacker").request_token("account/3pid", "attacker@example.org", "own", 1).await.sid();
    let attacker = user(&shim, "attacker");
    for (at, row) in SMUGGLED.into_iter().enumerate() {
        let body = row
            .replace("{victim}", &victim)
            .replace("{rest}", victim.strip_prefix("shim_").unwrap())
            .replace("{secret}", &secret)
            .replace("{own}", &own)
            .replace("{us}", &shim.identity);
        let answer = attacker.send("POST", &attacker.path("account/3pid"), body.as_bytes()).await;
        assert!(answer.status >= 400, "{at} {row}: {}", answer.text());
        assert_eq!(dendrite.owner("victim@example.org"), None, "{at} {row}");
        assert_eq!(dendrite.owner(""), None, "{at} {row}: counted as validated");
    }
    assert_eq!(SMUGGLED.len(), 18);
    let honest = user(&shim, "victim");
    honest.add_3pid(creds(&victim, &secret)).await.ok();
    assert_eq!(dendrite.owner("victim@example.org").as_deref(), Some("victim"), "the session is as good as before");
    let late = attacker.add_3pid(creds(&victim, &secret)).await;
    assert_eq!(late.verdict(), failed(), "one sid, one owner");
}

async fn shim_verified(shim: &Shim, email: &str, secret: &str) -> String {
    let sid = user(shim, "verifier").request_token("account/3pid", email, secret, 1).await.sid();
    assert_eq!(shim.client().click(&shim.link(&sid)).await.status, 200);
    sid
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_client_adds_an_address_after_its_password() {
    let (dendrite, shim) = Dendrite::behind_a_shim(Wanted::config(&format!("{ROOMY}{TRANSLATE}"))).await;
    let bare = dendrite.bare().logged_in("newest");
    let bare = bare.call("account/3pid/add", json!({ "sid": "1", "client_secret": "s" })).await;
    assert_eq!(bare.verdict(), (404, "M_UNRECOGNIZED".into()), "Dendrite has no such endpoint");
    let said = features(&shim.client()).await;
    assert_eq!((&said["m.separate_add_and_bind"], &said["m.require_identity_server"]), (&json!(true), &json!(false)));

    let (name, secret) = (unique("newest"), unique("secret"));
    let (email, user) = (format!("{name}@example.org"), user(&shim, &name));
    let sid = user.request_token("account/3pid", &email, &secret, 1).await.sid();
    let mut body = creds(&sid, &secret);
    let early = user.call("account/3pid/add", body.clone()).await;
    assert_eq!((early.status, &early.json()["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])));
    let auth = |password: &str| {
        let identifier = json!({ "type": "m.id.user", "user": name });
        json!({ "type": "m.login.password", "session": "uia", "identifier": identifier, "password": password })
    };
    body["auth"] = auth("wrong");
    assert_eq!(user.call("account/3pid/add", body.clone()).await.verdict(), (403, "M_FORBIDDEN".into()));
    body["auth"] = auth(PASSWORD);
    assert_eq!(user.call("account/3pid/add", body.clone()).await.verdict(), failed(), "not validated yet");
    shim.client().click(&shim.link(&sid)).await;
    assert_eq!(dendrite.owner(&email), None, "by the add alone");
    let thief = shim.client().speaking("v3").logged_in("thief").call("account/3pid/add", creds(&sid, &secret)).await;
    assert_eq!(thief.status, 401, "a stolen access token is not enough");
    user.call("account/3pid/add", body).await.ok();
    assert_eq!(dendrite.owner(&email), Some(name));
    assert!(dendrite.received("delete_devices").iter().all(|body| body["devices"] == json!([])), "no device is lost");
    let told = dendrite.received("account/3pid");
    assert!(told.iter().all(|body| body.get("auth").is_none() && body.get("bind").is_none()), "{told:?}");

    let bind = user.call("account/3pid/bind", creds(&sid, &secret)).await;
    assert_eq!(bind.verdict(), (400, "M_UNRECOGNIZED".into()));
    let unbind = user.call("account/3pid/unbind", json!({ "medium": "email", "address": email })).await.ok();
    assert_eq!(unbind, json!({ "id_server_unbind_result": "no-support" }));
    let foreign = user.call("account/3pid/add", json!({ "sid": "12345", "client_secret": "s" })).await;
    assert_eq!(foreign.verdict(), (404, "M_UNRECOGNIZED".into()), "a sid that is not ours is the homeserver's");
    cell("Dendrite", "add e-mail", "newest (`3pid/add`)", WORKS, "M_UNRECOGNIZED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_observed_is_left_alone_and_counted() {
    let routes = "[routes]\naccount_3pid.email = \"observe\"\naccount_3pid_add = \"forward\"\n";
    let (dendrite, shim) = Dendrite::behind_a_shim(Wanted::config(routes)).await;
    let path = "/_matrix/client/v3/account/3pid/email/requestToken";
    let unusual = r#"{ "email" : "a@example.org","client_secret":"s",  "send_attempt":1,"x":1.0 }"#;
    let foreign = r#"{"email":"a@example.org","client_secret":"s","send_attempt":1,"id_server":"x.example"}"#;
    let wrong = r#"{"email":"a@b@c","client_secret":"s","send_attempt":1}"#;
    for (body, outcome) in [(unusual, "would_handle"), (foreign, "would_forward"), (wrong, "would_refuse")] {
        let (answer, bare) = (
            shim.client().send("POST", path, body.as_bytes()).await,
            dendrite.bare().send("POST", path, body.as_bytes()).await,
        );
        assert_eq!((answer.status, answer.text()), (bare.status, bare.text()), "{body}");
        // The shim's own look at /versions comes whenever it comes.
        let posts = dendrite.homeserver.requests().into_iter().rev().filter(|one| one.0.starts_with(b"POST "));
        let sent: Vec<_> = posts.take(2).map(|one| one.content()).collect();
        assert_eq!(sent, [body.as_bytes(), body.as_bytes()], "byte for byte");
        let metrics = Client::of(&shim.admin).get("/metrics").await.text();
        let counted = format!("route=\"account_3pid.email\",outcome=\"{outcome}\"}} 1");
        assert!(metrics.contains(&counted), "{counted}: {metrics}");
    }
    assert_eq!(shim.outbox().len(), 0);
    let versions = shim.client().get("/_matrix/client/versions").await;
    assert_eq!(versions.json(), serde_json::from_str::<Value>(VERSIONS).unwrap(), "no flag: it would not be true");
}
