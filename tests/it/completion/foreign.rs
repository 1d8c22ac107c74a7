//! Creds of another identity server's sid, of an unknown one, and of ours: what is added, and that nothing else changes.

use std::time::Duration;

use serde_json::{Value, json};

use super::{EMAIL_STAGE, post, waiting};
use crate::client::{PASSWORD, creds, request_token_path};
use crate::flows::registered;
use crate::homeserver;
use crate::legacy::{legacy, unique};
use crate::secure::{API, Caller, IdentityServer, as_synapse};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

fn named(email: &str, client_secret: &str, id_server: &str) -> Value {
    json!({ "client_secret": client_secret, "email": email, "send_attempt": 1, "id_server": id_server })
}

#[tokio::test(flavor = "multi_thread")]
async fn creds_that_forget_their_identity_server_are_sent_to_the_one_their_sid_came_from() {
    let synapse = legacy("1.3.1");
    let theirs = IdentityServer::start(synapse.door());
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let (client, bare, name, secret) = (shim.client(), synapse.bare(), unique("foreign"), unique("secret"));
    let address = format!("{name}@example.org");
    let token = async |purpose: &str, address: &str| {
        client.post(&request_token_path(purpose), named(address, &secret, &theirs.name)).await.sid()
    };

    let sid = token("register", &address).await;
    assert!(theirs.calls()[0].starts_with(&format!("POST {API}validate/email/requestToken ")));
    let without = bare.register(&name, creds(&sid, &secret)).await;
    assert_eq!(without.json()["error"], "No id_server in creds", "the bare homeserver gives up");
    let user = client.register(&name, creds(&sid, &secret)).await.ok();
    assert_eq!(user["user_id"], format!("@{name}:localhost"));
    let asked = format!("GET {API}3pid/getValidated3pid?");
    assert!(theirs.calls()[1].starts_with(&asked), "{:?}", theirs.calls());

    let sid = token("account/password", &address).await;
    client.reset_password("new password", creds(&sid, &secret)).await.ok();
    let login = client.login(&address, "new password").await.ok();
    let user = client.clone().logged_in(login["access_token"].as_str().unwrap());
    let added = format!("added-{address}");
    let sid = token("account/3pid", &added).await;
    user.add_3pid(creds(&sid, &secret)).await.ok();
    assert!(user.addresses().await.contains(&added));

    // Old homeservers look at creds wherever there is user-interactive auth, before they ask for the password.
    let auth = json!({ "type": EMAIL_STAGE, "threepid_creds": creds(&sid, &secret) });
    for (method, endpoint) in [("POST", "account/deactivate"), ("POST", "delete_devices"), ("DELETE", "devices/OTHER")]
    {
        let before = theirs.calls().len();
        let body = json!({ "auth": auth, "devices": [] }).to_string();
        let answer = user.send(method, &format!("/_matrix/client/r0/{endpoint}"), body.as_bytes()).await;
        assert_eq!((answer.status, &answer.json()["completed"]), (401, &json!([EMAIL_STAGE])), "{endpoint}");
        assert_eq!(theirs.calls().len(), before + 1, "{endpoint}");
    }

    let sid = token("account/3pid", &format!("later-{address}")).await;
    shim.later(Duration::from_secs(48 * 3600 - 1));
    user.add_3pid(creds(&sid, &secret)).await.ok();
    shim.later(Duration::from_secs(1));
    let forgotten = user.add_3pid(creds(&sid, &secret)).await;
    assert_eq!(forgotten.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "unknown after 48 hours");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_sid_without_id_server_is_told_to_wait_instead_of_no_id_server_in_creds() {
    let synapse = legacy("1.3.1");
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let (_, email) = registered(&shim).await;
    let login = shim.client().login(&email, PASSWORD).await.ok();
    let token = login["access_token"].as_str().unwrap();
    let (client, bare) = (shim.client().logged_in(token), synapse.bare().logged_in(token));
    let auth = json!({ "auth": { "type": EMAIL_STAGE, "threepid_creds": creds("12345", "secret") }, "devices": [] });
    for endpoint in ["account/password", "account/deactivate", "delete_devices"] {
        let without = post(&bare, endpoint, auth.clone()).await;
        assert_eq!(without.json()["error"], "No id_server in creds", "{endpoint}");
        assert_eq!(post(&client, endpoint, auth.clone()).await.verdict(), waiting(), "{endpoint}");
    }
    let registering = shim.client().register(&unique("unknown"), creds("12345", "secret")).await;
    assert_eq!(registering.verdict(), waiting());
    let without = bare.add_3pid(creds("12345", "secret")).await;
    assert_eq!(without.json()["error"], "No id_server in creds");
    let adding = client.add_3pid(creds("12345", "secret")).await;
    assert_eq!(adding.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "as a session that is not validated yet");
}

/// What is sent and what arrives, `{sid}` standing for ours and `{us}` for our name.
const OURS: [(&str, &str, &str); 3] = [
    (
        "register",
        r#"{"z":1e400,"auth":{"type":"t","x":[{"a":1,"a":2}],"threepid_creds":{"extra":1.0,"sid":"{sid}","client_secret":"secret"}},"y":{"b":1,"b":2},"bind_email":true,"bind_msisdn":false,"big":123456789012345678901234567890,"username":"\ud83d\ude00\/","n":null}"#,
        r#"{"z":1e400,"auth":{"type":"t","x":[{"a":1,"a":2}],"threepid_creds":{"extra":1.0,"sid":"{sid}","client_secret":"secret","id_server":"{us}"}},"y":{"b":1,"b":2},"big":123456789012345678901234567890,"username":"\ud83d\ude00\/","n":null}"#,
    ),
    (
        "register",
        r#"{"auth":{"threepidCreds":[{"idServer":"vector.im","clientSecret":"secret","sid":"{sid}","id_access_token":"t"}],"session":"u"},"id_access_token":"t","a":-0.0}"#,
        r#"{"auth":{"threepidCreds":[{"sid":"{sid}","id_server":"{us}","client_secret":"secret"}],"session":"u","threepid_creds":{"sid":"{sid}","id_server":"{us}","client_secret":"secret"}},"a":-0.0}"#,
    ),
    (
        "register",
        r#"{"auth":{"threepid_creds":{"sid":"{sid}","client_secret":"secret","id_server":"{us}"},"threepidCreds":{"client_secret":"secret","sid":"{sid}"}}}"#,
        r#"{"auth":{"threepid_creds":{"sid":"{sid}","client_secret":"secret","id_server":"{us}"},"threepidCreds":{"client_secret":"secret","sid":"{sid}","id_server":"{us}"}}}"#,
    ),
];

const FOREIGN: [(&str, &str); 8] = [
    (
        r#"{"sid":"4711","client_secret":"secret"}"#,
        r#"{"sid":"4711","client_secret":"secret","id_server":"vector.im"}"#,
    ),
    (
        r#"{"id_server":null,"sid":"4711","clientSecret":"secret","x":1E2}"#,
        r#"{"id_server":"vector.im","sid":"4711","clientSecret":"secret","x":1E2}"#,
    ),
    (
        r#"[{"sid":"4711","client_secret":"secret"},{"sid":"4711","client_secret":"other"},{"sid":"4711"}]"#,
        r#"[{"sid":"4711","client_secret":"secret","id_server":"vector.im"},{"sid":"4711","client_secret":"other","id_server":"matrix.org"},{"sid":"4711","id_server":"{us}"}]"#,
    ),
    (
        r#"{"sid":"4711","client_secret":"other","idServer":""}"#,
        r#"{"sid":"4711","client_secret":"other","id_server":"matrix.org"}"#,
    ),
    (r#"{"sid":"0815","client_secret":"secret"}"#, r#"{"sid":"0815","client_secret":"secret","id_server":"{us}"}"#),
    (r#"{"sid":"0815","id_server":"matrix.org"}"#, r#"{"sid":"0815","id_server":"matrix.org"}"#),
    (r#"{"sid":"4711","idServer":"matrix.org","n":1e400}"#, r#"{"sid":"4711","idServer":"matrix.org","n":1e400}"#),
    (r#"{"client_secret":"secret"}"#, r#"{"client_secret":"secret"}"#),
];

/// Every endpoint where creds may turn up.
const ENDPOINTS: [(&str, &str); 8] = [
    ("POST", "register"),
    ("POST", "account/password"),
    ("POST", "account/deactivate"),
    ("POST", "delete_devices"),
    ("DELETE", "devices/ABC"),
    ("POST", "keys/device_signing/upload"),
    ("POST", "account/3pid"),
    ("POST", "account/3pid/add"),
];

#[tokio::test]
async fn beside_the_creds_a_completion_keeps_its_order_its_numbers_and_its_duplicates() {
    let doors = Reserved::new(1);
    let door = doors.take();
    let caller = Caller::start(&door, as_synapse, |request, said| {
        if !request.line().contains("/requestToken") {
            return homeserver::json("401 Unauthorized", r#"{"session":"u","flows":[]}"#);
        }
        let foreign = !request.json()["id_server"].as_str().unwrap().starts_with("localhost:");
        homeserver::json("200 OK", &if foreign { r#"{"sid":"4711"}"#.to_owned() } else { said.unwrap().text() })
    })
    .await;
    let shim = Shim::before(&caller.address(), door, Wanted::config(ROOMY)).await;
    let client = shim.client();
    let ours = client.request_token("register", "a@example.org", "secret", 1).await.sid();
    // Two identity servers number their sids, for two clients.
    for (secret, id_server) in [("secret", "vector.im"), ("other", "matrix.org")] {
        let asked = named("a@example.org", secret, id_server);
        assert_eq!(client.post(&request_token_path("register"), asked).await.sid(), "4711");
    }
    let filled = |text: &str| text.replace("{sid}", &ours).replace("{us}", &shim.identity);
    let arrives = async |method: &str, endpoint: &str, sent: String, expected: String| {
        let before = caller.bodies().len();
        let answer = client.send(method, &format!("/_matrix/client/r0/{endpoint}"), sent.as_bytes()).await;
        assert_eq!((answer.status, caller.bodies().len()), (401, before + 1), "{endpoint} {sent}: {}", answer.text());
        assert_eq!(caller.bodies()[before], expected, "{method} {endpoint}");
    };
    let mut rows = 0;
    for (endpoint, sent, expected) in OURS {
        arrives("POST", endpoint, filled(sent), filled(expected)).await;
        rows += 1;
    }
    for (method, endpoint) in ENDPOINTS {
        for (sent, expected) in FOREIGN {
            let top = endpoint.starts_with("account/3pid");
            let body = |creds: &str| {
                let creds = if top {
                    format!(r#""three_pid_creds":{creds}"#)
                } else {
                    format!(r#""auth":{{"threepid_creds":{creds},"u":[1.0]}}"#)
                };
                format!(r#"{{"b":1.50,{creds},"a":{{"x":1,"x":2}},"bind":true}}"#)
            };
            arrives(method, endpoint, body(sent), filled(&body(expected))).await;
            rows += 1;
        }
        for untouched in ["", " \n", r#"{ "b" : 1.0, "auth":{"type" : "m.login.dummy"} , "a":{"x":1,"x":2}}"#] {
            if method == "POST" || !untouched.is_empty() {
                // Without creds not even a space is changed.
                arrives(method, endpoint, untouched.to_owned(), untouched.to_owned()).await;
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 3 + 8 * 8 + 8 * 3 - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_cannot_be_read_is_refused_as_the_homeserver_refuses_it() {
    let synapse = legacy("1.3.1");
    let shim = synapse.shim(Wanted::default()).await;
    for body in ["{", "[]", "\"x\""] {
        let (method, path) = ("POST", "/_matrix/client/r0/register");
        let answer = shim.client().send(method, path, body.as_bytes()).await;
        let bare = synapse.bare().send(method, path, body.as_bytes()).await;
        assert_eq!((answer.status, answer.text()), (bare.status, bare.text()), "{body}");
    }
    let large = format!(r#"{{"password":"{}"}}"#, "x".repeat(1024 * 1024));
    let answer = shim.client().send("POST", "/_matrix/client/r0/register", large.as_bytes()).await;
    assert_eq!(answer.verdict(), (413, "M_TOO_LARGE".into()));
    let answer = shim.client().send("POST", "/_matrix/client/r0/register", "\u{feff}{}".as_bytes()).await;
    assert_eq!(answer.verdict(), (400, "M_NOT_JSON".into()), "a byte order mark is no JSON here");
    for twice in [r#"{"a":1,"a":2}"#, r#"{"auth":{"session":"a","Session":"b"}}"#] {
        let answer = shim.client().send("POST", "/_matrix/client/r0/register", twice.as_bytes()).await;
        assert_eq!(answer.verdict(), (400, "M_BAD_JSON".into()), "{twice}");
    }
}
