//! Homeservers that need no shim but have the identity door verify: Synapse with `account_threepid_delegates`.

mod door;

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Client, PASSWORD, creds};
use crate::gateway::{Does, Gateway};
use crate::legacy::{Legacy, unique};
use crate::phones::{code, gateway, number, request, wrong};
use crate::shim::{Reserved, Shim, Wanted};

const MODERN: &str = "1.163.2";
/// Where Synapse has its clients submit codes.
const SUBMIT: &str = "/_matrix/client/unstable/add_threepid/msisdn/submit_token";

/// The key under test, and a gateway for messages.
fn wanted(gateway: &Gateway, more: &str) -> Wanted {
    let sms = format!("[sms]\ntransport = \"http\"\nfrom = \"Example\"\n{}", gateway.keys("url", "/send"));
    Wanted { identity: "accept_unannounced = true".into(), ..Wanted::config(&format!("{sms}{more}")) }
}

/// A Synapse that delegates to a shim, which is in front of it as well, and knows that it is not needed there.
async fn delegating(version: &'static str, delegates: &[&str], wanted: Wanted) -> (Legacy, Shim) {
    let door = Reserved::new(1).take();
    let url = format!("https://localhost:{}", door.local_addr().unwrap().port());
    let settings: Vec<_> = delegates.iter().map(|name| (*name, url.as_str())).collect();
    let synapse = Legacy::start(version, &settings);
    let shim = Shim::before(&synapse.address, door, wanted).await;
    let ready = Client::of(&shim.admin).get("/readyz").await;
    assert!(ready.text().contains("learnt MSC2263"), "{}", ready.text());
    (synapse, shim)
}

async fn submit(client: &Client, sid: &str, secret: &str, token: &str) -> Answer {
    client.post(SUBMIT, json!({ "sid": sid, "client_secret": secret, "token": token })).await
}

/// A wrong code is told as Synapse lets it through: 200, and why not.
#[track_caller]
fn unsuccessful(answer: &Answer) -> String {
    assert_eq!((answer.status, &answer.json()["success"]), (200, &json!(false)), "{}", answer.text());
    answer.errcode()
}

/// MSC2290's endpoint: a UIA session, then the password.
async fn add(user: &Client, name: &str, sid: &str, secret: &str) -> Answer {
    let path = "/_matrix/client/v3/account/3pid/add";
    let mut body = creds(sid, secret);
    let asked = user.post(path, body.clone()).await;
    assert_eq!(asked.status, 401, "{}", asked.text());
    let identifier = json!({ "type": "m.id.user", "user": name });
    let session = asked.json()["session"].clone();
    body["auth"] =
        json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD, "session": session });
    user.post(path, body).await
}

async fn log_in(client: &Client, identifier: Value) -> Answer {
    let body = json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD });
    client.post("/_matrix/client/v3/login", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_todays_synapse_adds_a_phone_number_and_logs_in_with_it() {
    let gateway = gateway().await;
    let (synapse, shim) = delegating(MODERN, &["DELEGATE_MSISDN"], wanted(&gateway, "")).await;
    for client in [synapse.bare(), shim.client()] {
        let (name, number, secret) = (unique("phone"), number(), unique("secret"));
        let user = client.clone().logged_in(&client.register_plainly(&name).await);
        let asked = request(&user, "account/3pid", &number, &secret, 1).await.ok();
        let msisdn = format!("44{}", number.replace(' ', "").trim_start_matches('0'));
        assert_eq!((&asked["msisdn"], &asked["success"]), (&json!(msisdn), &json!(true)));
        assert!(asked["submit_url"].as_str().unwrap().ends_with(SUBMIT), "Synapse's own: {asked}");
        let sid = asked["sid"].as_str().unwrap();
        let early = add(&user, &name, sid, &secret).await;
        assert_eq!(early.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()));

        let sent = gateway.requests().len();
        let again = request(&user, "account/3pid", &number, &secret, 1).await.sid();
        assert_eq!((again.as_str(), gateway.requests().len()), (sid, sent), "a retry sends nothing");
        let code = code(&gateway);
        assert_eq!(unsuccessful(&submit(&user, sid, &secret, &wrong(&code)).await), "M_TOKEN_INCORRECT");
        assert_eq!(submit(&user, sid, &secret, &code).await.ok(), json!({ "success": true }));
        add(&user, &name, sid, &secret).await.ok();
        assert_eq!(user.addresses().await, [msisdn.clone()]);

        // Both spellings, as clients send them: Synapse takes `phone` only beside its own old `number`.
        let phone = json!({ "type": "m.id.phone", "country": "GB", "phone": number, "number": number });
        assert_eq!(log_in(&client, phone).await.ok()["user_id"], format!("@{name}:localhost"));
        let taken = request(&user, "account/3pid", &number, &unique("secret"), 1).await;
        assert_eq!(taken.verdict(), (400, "M_THREEPID_IN_USE".into()), "and the homeserver judges");
    }
    let metrics = Client::of(&shim.admin).get("/metrics").await.text();
    for counted in [
        "{route=\"delegated.msisdn\",outcome=\"relayed\"} 4",
        "{route=\"delegated.submit_token\",outcome=\"relayed\"} 2",
        "{route=\"delegated.submit_token\",outcome=\"refused\"} 2",
    ] {
        assert!(metrics.contains(&format!("threepid_shim_intercepted_requests_total{counted}\n")), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_a_code_reaches_the_client_of_todays_synapse() {
    let gateway = gateway().await;
    let limits = "countries = [\"GB\"]\n[limits]\nsms_per_number = \"3/1h\"\nsms_per_day = 4\n";
    let (synapse, shim) = delegating(MODERN, &["DELEGATE_MSISDN"], wanted(&gateway, limits)).await;
    let (client, number, secret) = (synapse.bare(), number(), unique("secret"));
    let ask = async |number: &str, attempt| request(&client, "account/3pid", number, &secret, attempt).await;

    let sid = ask(&number, 1).await.sid();
    shim.later(Duration::from_secs(600));
    assert_eq!(unsuccessful(&submit(&client, &sid, &secret, &code(&gateway)).await), "M_SESSION_EXPIRED");
    assert_eq!(ask(&number, 2).await.sid(), sid);
    let right = code(&gateway);
    for _ in 0..5 {
        assert_eq!(unsuccessful(&submit(&client, &sid, &secret, &wrong(&right)).await), "M_TOKEN_INCORRECT");
    }
    assert_eq!(unsuccessful(&submit(&client, &sid, &secret, &right).await), "M_SESSION_EXPIRED", "five were enough");
    assert_eq!(unsuccessful(&submit(&client, &sid, "other", &right).await), "M_NO_VALID_SESSION");

    ask(&number, 3).await.sid();
    let limited = ask(&number, 4).await;
    assert_eq!(limited.verdict(), (429, "M_LIMIT_EXCEEDED".into()), "by number");
    assert!(limited.json()["retry_after_ms"].as_u64().unwrap() > 0);
    let costly = ask("0906 7012345", 1).await;
    assert_eq!(costly.verdict(), (400, "M_DESTINATION_REJECTED".into()));
    ask(&crate::phones::number(), 1).await.sid();
    assert_eq!(ask(&crate::phones::number(), 1).await.verdict(), (429, "M_LIMIT_EXCEEDED".into()), "by day");
    assert_eq!(gateway.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_fails_is_an_error_to_the_client_of_todays_synapse() {
    let gateway = Gateway::http(Does::answer(503, "busy")).await;
    let (synapse, _shim) = delegating(MODERN, &["DELEGATE_MSISDN"], wanted(&gateway, "")).await;
    let failed = request(&synapse.bare(), "register", &number(), &unique("secret"), 1).await;
    assert_eq!(failed.verdict(), (500, "M_SEND_ERROR".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_a_homeserver_that_asks_by_itself_is_refused() {
    let gateway = gateway().await;
    let wanted = Wanted { identity: String::new(), ..wanted(&gateway, "") };
    let (synapse, shim) = delegating("1.4.0", &["DELEGATE_MSISDN", "DELEGATE_EMAIL"], wanted).await;
    for client in [synapse.bare(), shim.client()] {
        let secret = unique("secret");
        let by_phone = request(&client, "account/3pid", &number(), &secret, 1).await;
        assert_eq!(by_phone.verdict(), (403, "M_FORBIDDEN".into()));
        let by_mail = client.request_token("register", "a@example.org", &secret, 1).await;
        assert_eq!(by_mail.verdict(), (403, "M_FORBIDDEN".into()));
        let submitted = submit(&client, &format!("shim_{}", "0".repeat(32)), &secret, "123456").await;
        assert_eq!(submitted.status, 400, "{}", submitted.text());
    }
    assert_eq!((gateway.requests().len(), shim.outbox().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synapse_that_delegates_mail_registers_resets_and_adds_with_ours() {
    let wanted = Wanted { identity: "accept_unannounced = true".into(), ..Wanted::default() };
    let (synapse, shim) = delegating("1.4.0", &["DELEGATE_EMAIL"], wanted).await;
    for client in [synapse.bare(), shim.client()] {
        let (name, secret) = (unique("mail"), unique("secret"));
        let email = format!("{name}@example.org");
        let body = json!({ "client_secret": secret, "email": email, "send_attempt": 1,
            "next_link": "https://app.example.org/#/register?session=1" });
        let sid = client.post("/_matrix/client/r0/register/email/requestToken", body).await.sid();
        assert_eq!(client.register(&name, creds(&sid, &secret)).await.status, 401, "keep waiting");
        let link = shim.link(&sid);
        assert!(link.contains("/threepid_shim/delegated/email/submit_token?"), "{link}");
        let page = shim.client().open(&link).await;
        assert!(page.text().contains("app.example.org") && page.text().contains("Confirm that this is your address?"));
        assert_eq!(client.register(&name, creds(&sid, &secret)).await.status, 401, "a look changes nothing");
        let sent_on = shim.client().press(&link, &page).await;
        let next = format!("https://app.example.org/#/register?session=1&sid={sid}");
        assert_eq!((sent_on.status, sent_on.header("location")), (303, Some(next.as_str())));
        client.register(&name, creds(&sid, &secret)).await.ok();
        client.login(&email, PASSWORD).await.ok();

        let verified = async |purpose: &str, email: &str, secret: &str| {
            let sid = client.request_token(purpose, email, secret, 1).await.sid();
            assert_eq!(shim.client().click(&shim.link(&sid)).await.status, 200);
            sid
        };
        let secret = unique("secret");
        let sid = verified("account/password", &email, &secret).await;
        client.reset_password("another password", creds(&sid, &secret)).await.ok();
        let session = client.login(&email, "another password").await.ok();

        let user = client.clone().logged_in(session["access_token"].as_str().unwrap());
        let (other, secret) = (format!("{}@example.org", unique("other")), unique("secret"));
        let sid = verified("account/3pid", &other, &secret).await;
        user.add_3pid(creds(&sid, &secret)).await.ok();
        let mut addresses = user.addresses().await;
        addresses.sort();
        let mut expected = [email, other];
        expected.sort();
        assert_eq!(addresses, expected);
    }
}
