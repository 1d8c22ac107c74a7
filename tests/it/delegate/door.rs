//! The identity door with `identity.accept_unannounced`, asked as homeservers ask it: what it began by itself and what a
//! client's request announced are never taken for each other.

use std::time::Duration;

use serde_json::{Value, json};

use super::{unsuccessful, wanted};
use crate::client::{Answer, creds};
use crate::gateway::Gateway;
use crate::homeserver::{self, Homeserver, Raw};
use crate::legacy::{legacy, unique};
use crate::phones::{code, gateway, number, request, wrong};
use crate::secure::{API, Caller, FORM, JSON, as_synapse, call, get_validated_3pid};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

/// A shim before an old homeserver that calls back, with both doors open for everything.
async fn both_doors(gateway: &Gateway, more: &str) -> (Shim, Caller) {
    let door = Reserved::new(1).take();
    let relay = |_: &Raw, told: Option<&Answer>| {
        told.map_or_else(
            || homeserver::json("200 OK", "{}"),
            |told| homeserver::json(&format!("{} X", told.status), &told.text()),
        )
    };
    let caller = Caller::start(&door, as_synapse, relay).await;
    (Shim::before(&caller.address(), door, wanted(gateway, more)).await, caller)
}

/// What a homeserver asks by itself.
async fn ask(shim: &Shim, medium: &str, body: &Value) -> Answer {
    let target = format!("{API}validate/{medium}/requestToken");
    call(&shim.identity, "POST", &target, JSON, &body.to_string()).await
}

fn phone(secret: &str, attempt: i64) -> Value {
    json!({ "client_secret": secret, "country": "GB", "phone_number": "07400 000001", "send_attempt": attempt })
}

fn mail(secret: &str) -> Value {
    json!({ "client_secret": secret, "email": "a@example.org", "send_attempt": 1 })
}

async fn submit(shim: &Shim, sid: &str, secret: &str, token: &str) -> Answer {
    let form = format!("sid={sid}&client_secret={secret}&token={token}");
    call(&shim.identity, "POST", &format!("{API}validate/msisdn/submitToken"), FORM, &form).await
}

async fn told(shim: &Shim, sid: &str, secret: &str) -> Value {
    get_validated_3pid(&shim.identity, sid, secret).await.ok()
}

#[tokio::test]
async fn a_homeserver_is_told_of_its_own_session_for_ten_minutes_and_never_of_another() {
    let gateway = gateway().await;
    let (shim, _caller) = both_doors(&gateway, ROOMY).await;
    let sid = ask(&shim, "msisdn", &phone("secret", 1)).await.sid();
    assert!(gateway.requests()[0].body.contains("is your code to confirm this number on example.org."));
    assert_eq!(told(&shim, &sid, "secret").await["errcode"], "M_SESSION_NOT_VALIDATED");
    for (secret, token, errcode) in [
        ("secret", wrong(&code(&gateway)), "M_TOKEN_INCORRECT"),
        ("secret", "12 34 56".into(), "M_TOKEN_INCORRECT"),
        ("other", code(&gateway), "M_NO_VALID_SESSION"),
    ] {
        assert_eq!(unsuccessful(&submit(&shim, &sid, secret, &token).await), errcode);
    }
    let not_json = call(&shim.identity, "POST", &format!("{API}validate/msisdn/submitToken"), JSON, "{").await;
    assert_eq!(unsuccessful(&not_json), "M_INVALID_PARAM");
    submit(&shim, &sid, "secret", &code(&gateway)).await.ok();

    let bind = json!({ "sid": sid, "client_secret": "secret", "mxid": "@a:b" }).to_string();
    let bound = call(&shim.identity, "POST", &format!("{API}3pid/bind"), JSON, &bind).await;
    assert_eq!(bound.verdict(), (400, "M_SESSION_NOT_VALIDATED".into()), "nothing is published for it");
    shim.later(Duration::from_secs(3600));
    for wait in [0, 599] {
        shim.later(Duration::from_secs(wait));
        let now = told(&shim, &sid, "secret").await;
        assert_eq!((&now["medium"], &now["address"]), (&json!("msisdn"), &json!("447400000001")));
    }
    assert_eq!(told(&shim, &sid, "other").await["errcode"], "M_SESSION_NOT_VALIDATED");
    shim.later(Duration::from_secs(1));
    assert_eq!(told(&shim, &sid, "secret").await["errcode"], "M_SESSION_NOT_VALIDATED", "one sid, one success");
}

#[tokio::test]
async fn a_session_that_the_homeserver_began_completes_nothing_at_the_client_door() {
    let gateway = gateway().await;
    let (shim, caller) = both_doors(&gateway, ROOMY).await;
    let client = shim.client();
    for medium in ["email", "msisdn"] {
        let body = if medium == "email" { mail("secret") } else { phone("secret", 1) };
        let sid = ask(&shim, medium, &body).await.sid();
        if medium == "email" {
            assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
        } else {
            submit(&shim, &sid, "secret", &code(&gateway)).await.ok();
        }
        let seen = caller.bodies().len();
        for refused in [
            client.register("a", creds(&sid, "secret")).await,
            client.reset_password("new", creds(&sid, "secret")).await,
            client.clone().logged_in("token").add_3pid(creds(&sid, "secret")).await,
        ] {
            assert_eq!(refused.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "{medium}");
        }
        assert_eq!(caller.bodies().len(), seen, "the homeserver was not asked");
        assert!(told(&shim, &sid, "secret").await["address"].is_string(), "{medium}: and it is good still");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_client_announced_is_no_delegated_one() {
    let gateway = gateway().await;
    let routes = format!("[routes]\nregister.msisdn = \"handle\"\n{ROOMY}");
    let shim = legacy("1.3.1").shim(wanted(&gateway, &routes)).await;
    let (client, secret) = (shim.client(), unique("secret"));
    let email = format!("{secret}@example.org");
    let announced = client.request_token("register", &email, &secret, 1).await.sid();
    let own = ask(&shim, "email", &json!({ "client_secret": secret, "email": email, "send_attempt": 1 })).await.sid();
    assert_ne!(announced, own, "the same address and secret, and yet two sessions");
    assert_eq!(client.click(&shim.link(&announced)).await.status, 200);
    for sid in [&announced, &own] {
        assert_eq!(told(&shim, sid, &secret).await["errcode"], "M_SESSION_NOT_VALIDATED");
    }
    for (from, to, link) in [("delegated", "register", &own), ("register", "delegated", &announced)] {
        let crossed = shim.link(link).replace(&format!("/{from}/"), &format!("/{to}/"));
        assert_eq!(client.open(&crossed).await.status, 400, "{from} is not {to}");
    }

    let sid = request(&client, "register", &number(), &secret, 1).await.sid();
    let tried = submit(&shim, &sid, &secret, &code(&gateway)).await;
    assert_eq!(unsuccessful(&tried), "M_NO_VALID_SESSION", "its code is not the homeserver's to try");
    let path = "/_matrix/client/unstable/threepid_shim/msisdn/submit_token";
    let body = json!({ "sid": sid, "client_secret": secret, "token": code(&gateway) });
    assert_eq!(client.post(path, body).await.ok(), json!({ "success": true }));
    assert_eq!(told(&shim, &sid, &secret).await["errcode"], "M_SESSION_NOT_VALIDATED");
}

#[tokio::test]
async fn what_a_homeserver_asks_by_itself_is_refused_where_a_clients_would_be() {
    let gateway = gateway().await;
    let more = "[session]\nnext_link_hosts = [\"app.example.org\"]\n[limits]\nrequest_token_per_address = \"1/1h\"\n";
    let (shim, _caller) = both_doors(&gateway, more).await;
    for next_link in ["https://evil.example/", "javascript:alert(1)"] {
        let mut body = mail("secret");
        body["next_link"] = next_link.into();
        assert_eq!(ask(&shim, "email", &body).await.verdict(), (400, "M_INVALID_PARAM".into()), "{next_link}");
    }
    let mut body = phone("secret", 1);
    body["next_link"] = "vector://vector".into();
    ask(&shim, "msisdn", &body).await.sid();
    assert_eq!(ask(&shim, "msisdn", &phone("secret", 2)).await.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    ask(&shim, "email", &mail("secret")).await.sid();
    assert_eq!(ask(&shim, "email", &mail("other")).await.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert_eq!((gateway.requests().len(), shim.outbox().len()), (1, 1));

    let no_gateway = Wanted { identity: "accept_unannounced = true".into(), ..Wanted::default() };
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), no_gateway).await;
    let refused = ask(&shim, "msisdn", &phone("secret", 1)).await;
    assert_eq!(refused.verdict(), (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED".into()));
}
