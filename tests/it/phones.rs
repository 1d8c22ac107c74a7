//! Phone numbers through real old Synapses and a gateway in this process: the code, its tries, and what completes by it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Client, creds};
use crate::gateway::{Does, Gateway};
use crate::legacy::{EVERY_VERSION, legacy, unique};
use crate::process::Process;
use crate::redis::Redis;
use crate::shim::{Shim, Wanted};
use crate::table::{MSC2263, WORKS, cell};

const SUBMIT: &str = "/_matrix/client/unstable/threepid_shim/msisdn/submit_token";

pub async fn gateway() -> Gateway {
    Gateway::http(Does::answer(200, "{}")).await
}

pub fn wanted(gateway: &Gateway, limits: &str) -> Wanted {
    let routes =
        "[routes]\nregister.msisdn = \"handle\"\npassword.msisdn = \"handle\"\naccount_3pid.msisdn = \"handle\"\n";
    let sms = format!("[sms]\ntransport = \"http\"\nfrom = \"Example\"\n{}", gateway.keys("url", "/send"));
    Wanted::config(&format!("{routes}{sms}{limits}"))
}

/// A British mobile number that no other test uses, as a person writes it.
pub fn number() -> String {
    let n: u32 = unique("").parse().unwrap();
    format!("07400 {:06}", 100_000 + n)
}

pub async fn request(client: &Client, purpose: &str, number: &str, secret: &str, attempt: i64) -> Answer {
    let body = json!({ "client_secret": secret, "country": "GB", "phone_number": number, "send_attempt": attempt });
    client.post(&format!("/_matrix/client/r0/{purpose}/msisdn/requestToken"), body).await
}

/// The code of the newest message.
pub fn code(gateway: &Gateway) -> String {
    let text: Value = serde_json::from_str(&gateway.requests().last().unwrap().body).unwrap();
    let text = text["text"].as_str().unwrap().to_owned();
    text.split(|c: char| !c.is_ascii_digit()).find(|word| word.len() == 6).unwrap().to_owned()
}

pub async fn submit(client: &Client, sid: &str, secret: &str, token: &str) -> Answer {
    client.post(SUBMIT, json!({ "sid": sid, "client_secret": secret, "token": token })).await
}

/// The same six digits, but one.
pub fn wrong(code: &str) -> String {
    let last = if code.ends_with('0') { '1' } else { '0' };
    format!("{}{last}", &code[..5])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_adds_a_phone_number_by_the_code_that_came() {
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let gateway = gateway().await;
        let shim = synapse.shim(wanted(&gateway, "")).await;
        let user = shim.client().logged_in(&shim.client().register_plainly(&unique("phone")).await);
        let (number, secret) = (number(), unique("secret"));
        let bare = request(&synapse.bare(), "account/3pid", &number, &secret, 1).await;
        assert_eq!(bare.verdict(), (400, "M_MISSING_PARAM".into()), "the bare homeserver cannot do it");

        let asked = request(&user, "account/3pid", &number, &secret, 1).await.ok();
        let msisdn = format!("44{}", number.replace(' ', "").trim_start_matches('0'));
        assert_eq!((asked["msisdn"].as_str(), asked["success"].as_bool()), (Some(msisdn.as_str()), Some(true)));
        assert!(asked["intl_fmt"].as_str().unwrap().starts_with("+44 7400 "), "{asked}");
        assert_eq!(asked["submit_url"], format!("http://{}{SUBMIT}", shim.clients));
        let sid = asked["sid"].as_str().unwrap();
        let waiting = user.add_3pid(creds(sid, &secret)).await;
        assert_eq!(waiting.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "{version}");

        let form = format!("sid={sid}&client_secret={secret}&token={}", wrong(&code(&gateway)));
        let refused = user.send("POST", SUBMIT, form.as_bytes()).await;
        assert_eq!(refused.verdict(), (400, "M_TOKEN_INCORRECT".into()));
        assert_eq!(refused.json()["success"], false);
        assert_eq!(submit(&user, sid, &secret, &code(&gateway)).await.ok(), json!({ "success": true }));
        user.add_3pid(creds(sid, &secret)).await.ok();
        assert_eq!(user.addresses().await, [msisdn], "{version}");
        cell(version, "add phone", MSC2263, WORKS, &bare.errcode());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_registers_by_a_phone_number() {
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let gateway = gateway().await;
        let shim = synapse.shim(wanted(&gateway, "")).await;
        let client = shim.client();
        let (name, number, secret) = (unique("phone"), number(), unique("secret"));
        let bare = request(&synapse.bare(), "register", &number, &secret, 1).await;
        assert_eq!(bare.verdict(), (400, "M_MISSING_PARAM".into()));
        let asked = request(&client, "register", &number, &secret, 1).await.ok();
        let sid = asked["sid"].as_str().unwrap();
        submit(&client, sid, &secret, &code(&gateway)).await.ok();
        let auth = json!({ "type": "m.login.msisdn", "threepid_creds": creds(sid, &secret) });
        let body = json!({ "username": name, "password": "correct horse", "auth": auth });
        let answer = client.post("/_matrix/client/r0/register", body).await;
        if version == "0.34.1.1" {
            // It believes the shim, but none of its flows has the stage.
            assert_eq!((answer.status, &answer.json()["completed"]), (401, &json!(["m.login.msisdn"])));
            cell(version, "register by phone", MSC2263, "not offered", &bare.errcode());
            continue;
        }
        assert_eq!(answer.ok()["user_id"], format!("@{name}:localhost"), "{version}");
        cell(version, "register by phone", MSC2263, WORKS, &bare.errcode());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_cannot_reset_a_password_by_phone_since_no_old_homeserver_can() {
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let gateway = gateway().await;
        let shim = synapse.shim(wanted(&gateway, "")).await;
        let user = shim.client().logged_in(&shim.client().register_plainly(&unique("phone")).await);
        let (number, secret) = (number(), unique("secret"));
        let sid = request(&user, "account/3pid", &number, &secret, 1).await.sid();
        submit(&user, &sid, &secret, &code(&gateway)).await.ok();
        user.add_3pid(creds(&sid, &secret)).await.ok();

        let bare = request(&synapse.bare(), "account/password", &number, &secret, 1).await;
        let asked = request(&user, "account/password", &number, &secret, 1).await;
        if version == "1.0.0" {
            assert_eq!((asked.status, bare.status), (500, 500), "it fails over its own configuration");
            cell(version, "reset by phone", MSC2263, "500 of the homeserver", "500");
            continue;
        }
        let sid = asked.sid();
        submit(&user, &sid, &secret, &code(&gateway)).await.ok();
        let auth = json!({ "type": "m.login.msisdn", "threepid_creds": creds(&sid, &secret) });
        let reset = shim.client().call("account/password", json!({ "new_password": "new", "auth": auth })).await;
        assert_eq!(reset.verdict(), (500, "M_UNKNOWN".into()), "{version}: the shim's part is done");
        cell(version, "reset by phone", MSC2263, "500 of the homeserver", &bare.errcode());
    }
}

async fn asked(shim: &Shim, secret: &str, attempt: i64, number: &str) -> String {
    request(&shim.client(), "register", number, secret, attempt).await.sid()
}

/// S§4.5.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_lives_ten_minutes_and_dies_after_five_wrong_tries() {
    let gateway = gateway().await;
    let shim = legacy("1.3.1").shim(wanted(&gateway, "")).await;
    let (client, number, secret) = (shim.client(), number(), unique("secret"));
    let sid = asked(&shim, &secret, 1, &number).await;
    let first = code(&gateway);
    assert_eq!(asked(&shim, &secret, 1, &number).await, sid, "a retry sends nothing");
    assert_eq!(gateway.requests().len(), 1);
    shim.later(Duration::from_secs(599));
    assert_eq!(submit(&client, &sid, &secret, &wrong(&first)).await.verdict(), (400, "M_TOKEN_INCORRECT".into()));
    shim.later(Duration::from_secs(1));
    assert_eq!(submit(&client, &sid, &secret, &first).await.verdict(), (400, "M_SESSION_EXPIRED".into()));

    assert_eq!(asked(&shim, &secret, 2, &number).await, sid);
    let second = code(&gateway);
    for _ in 0..4 {
        assert_eq!(submit(&client, &sid, &secret, &wrong(&second)).await.errcode(), "M_TOKEN_INCORRECT");
    }
    let dead = submit(&client, &sid, &secret, &second).await;
    assert_eq!(dead.verdict(), (400, "M_SESSION_EXPIRED".into()), "the fifth wrong try was the last");
    let again = asked(&shim, &secret, 3, &number).await;
    assert_ne!(again, sid, "a dead session is not continued");
    submit(&client, &again, &secret, &code(&gateway)).await.ok();

    let unknown = submit(&client, &format!("shim_{}", "0".repeat(32)), &secret, &second).await;
    let other = submit(&client, &again, "another", &second).await;
    assert_eq!(unknown.verdict(), (400, "M_NO_VALID_SESSION".into()));
    assert_eq!((unknown.status, unknown.body), (other.status, other.body), "an unknown sid and a wrong secret are one");
}

/// S§4.5.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_tries_at_two_shims_with_one_redis_are_counted_together() {
    let (redis, gateway) = (Redis::single().await, gateway().await);
    let config = wanted(&gateway, &redis.servers[0].table());
    let [here, there] = [legacy("1.3.1").shim(config.clone()).await, legacy("1.3.1").shim(config).await];
    let (number, secret) = (number(), unique("secret"));
    let sid = asked(&here, &secret, 1, &number).await;
    let code = code(&gateway);
    for shim in [&here, &there, &here, &there, &here] {
        let refused = submit(&shim.client(), &sid, &secret, &wrong(&code)).await;
        assert_eq!(refused.verdict(), (400, "M_TOKEN_INCORRECT".into()));
    }
    let dead = submit(&there.client(), &sid, &secret, &code).await;
    assert_eq!(dead.verdict(), (400, "M_SESSION_EXPIRED".into()), "the fifth was the last, wherever it was");
}

/// S§4.5.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_tries_before_a_restart_count_after_it() {
    let (synapse, gateway) = (legacy("1.3.1"), gateway().await);
    let config = wanted(&gateway, "[store]\nkind = \"file\"\n").config;
    let mut shim = Process::start(&synapse.address, synapse.door(), &config).serving().await;
    let (number, secret) = (number(), unique("secret"));
    let sid = request(&shim.client(), "register", &number, &secret, 1).await.sid();
    let code = code(&gateway);
    for tries in [3, 2] {
        for _ in 0..tries {
            let refused = submit(&shim.client(), &sid, &secret, &wrong(&code)).await;
            assert_eq!(refused.verdict(), (400, "M_TOKEN_INCORRECT".into()));
        }
        shim = shim.killed_and_started_again().await;
    }
    let dead = submit(&shim.client(), &sid, &secret, &code).await;
    assert_eq!(dead.verdict(), (400, "M_SESSION_EXPIRED".into()));
}

/// S§4.6, S§4.37.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_limited_by_number_and_country_and_no_costly_number_gets_one() {
    let gateway = gateway().await;
    let limits = "countries = [\"GB\"]\n[limits]\nsms_per_number = \"2/1h\"\nsms_per_country = \"3/1h\"\n";
    let shim = legacy("1.3.1").shim(wanted(&gateway, limits)).await;
    let (client, first) = (shim.client(), number());
    for attempt in 1..=2 {
        asked(&shim, "secret", attempt, &first).await;
    }
    let third = request(&client, "register", &first, "secret", 3).await;
    assert_eq!((third.verdict(), third.header("retry-after").is_some()), ((429, "M_LIMIT_EXCEEDED".into()), true));
    asked(&shim, "secret", 1, &number()).await;
    assert_eq!(request(&client, "register", &number(), "secret", 1).await.errcode(), "M_LIMIT_EXCEEDED");
    for costly in ["0906 7012345", "+33 6 12 34 56 78", "+881 612345678", "070 1234 5678"] {
        let refused = request(&client, "register", costly, "secret", 1).await;
        assert_eq!(refused.status, 400, "{costly}: {}", refused.text());
        assert!(["M_DESTINATION_REJECTED", "M_INVALID_PARAM"].contains(&refused.errcode().as_str()), "{costly}");
    }
    assert_eq!(gateway.requests().len(), 3);
}

/// S§5.9.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_fails_is_an_error_and_the_attempt_does_not_count() {
    let gateway = Gateway::http(Does::answer(503, "busy")).await;
    let shim = legacy("1.3.1").shim(wanted(&gateway, "")).await;
    let (number, secret) = (number(), unique("secret"));
    let failed = request(&shim.client(), "register", &number, &secret, 1).await;
    assert_eq!(failed.verdict(), (500, "M_SEND_ERROR".into()));
    let sent = gateway.requests().len();
    request(&shim.client(), "register", &number, &secret, 1).await;
    assert!(gateway.requests().len() > sent, "the same attempt is sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn web_clients_may_ask_before_they_submit() {
    let gateway = gateway().await;
    let shim = legacy("1.3.1").shim(wanted(&gateway, "")).await;
    let preflight = shim.client().with("Origin", "https://app.example").send("OPTIONS", SUBMIT, &[]).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("*")));
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
    assert_eq!(shim.client().get(SUBMIT).await.status, 405);
}
