//! MSC2290 on old homeservers: `/account/3pid/add` behind the password, `/bind` and `/unbind` answered, and the flag.

use serde_json::{Value, json};

use crate::client::{Answer, Client, PASSWORD, creds};
use crate::homeserver::{self, Homeserver};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::secure::IdentityServer;
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

const ADD: &str = "/_matrix/client/r0/account/3pid/add";
const FLAG: &str = "m.separate_add_and_bind";
const NO_FLAG: Option<bool> = None;

fn translating(more: &str) -> Wanted {
    Wanted::config(&format!("{ROOMY}[routes]\naccount_3pid_add = \"translate\"\n{more}"))
}

fn unrecognized() -> (u16, String) {
    (400, "M_UNRECOGNIZED".into())
}

/// A logged-in user without an address, and its name.
async fn user(shim: &Shim) -> (Client, String) {
    let name = unique("separate");
    (shim.client().logged_in(&shim.client().register_plainly(&name).await), name)
}

/// A session for `account/3pid` of an address of its own, validated.
async fn verified(shim: &Shim) -> (Value, String) {
    let (email, secret) = (unique("separate") + "@example.org", unique("secret"));
    let sid = shim.verify("account/3pid", &email, &secret).await;
    (creds(&sid, &secret), email)
}

/// As clients do it: asked for the password, they repeat the request with it.
async fn add_with_password(user: &Client, path: &str, name: &str, creds: &Value) -> Answer {
    let asked = user.post(path, creds.clone()).await;
    assert_eq!(asked.status, 401, "{path}: {}", asked.text());
    assert_eq!(asked.json()["flows"], json!([{ "stages": ["m.login.password"] }]), "{path}");
    user.post(path, with_password(creds, name, PASSWORD, &asked.json()["session"])).await
}

fn with_password(creds: &Value, name: &str, password: &str, uia_session: &Value) -> Value {
    let mut body = creds.clone();
    body["auth"] = json!({ "type": "m.login.password", "user": name, "password": password, "session": uia_session });
    body
}

async fn flag(client: &Client) -> Option<bool> {
    client.get("/_matrix/client/versions").await.ok()["unstable_features"][FLAG].as_bool()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_added_with_the_password_under_every_version_segment() {
    let mut rows = 0;
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(translating("")).await;
        let (user, name) = user(&shim).await;
        let mut added = Vec::new();
        for segment in ["r0", "unstable", "v2_alpha", "v3", "r0.5.0", "api/v1", "%72"] {
            let path = format!("/_matrix/client/{segment}/account/3pid/add");
            let (creds, email) = verified(&shim).await;
            let bare = user.clone().at(&synapse.address).post(&path, creds.clone()).await;
            assert!([400, 404].contains(&bare.status), "the bare homeserver cannot do it: {}", bare.text());
            assert_eq!(add_with_password(&user, &path, &name, &creds).await.ok(), json!({}), "{version} {segment}");
            added.push(email);
            assert_eq!(user.addresses().await, added, "{version} {segment}");
            rows += 1;
        }
    }
    assert_eq!(rows, 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_token_alone_or_a_wrong_password_adds_nothing() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(translating("")).await;
        let (user, name) = user(&shim).await;
        let (other, other_name) = self::user(&shim).await;
        let (creds, email) = verified(&shim).await;
        for segment in ["r0", "unstable", "v2_alpha", "v3"] {
            let path = format!("/_matrix/client/{segment}/account/3pid/add");
            let asked = user.post(&path, creds.clone()).await;
            assert_eq!(asked.status, 401, "{version} {segment}: {}", asked.text());
            let uia_session = &asked.json()["session"];
            let wrong = user.post(&path, with_password(&creds, &name, "wrong", uia_session)).await;
            assert!([401, 403].contains(&wrong.status), "{version}: {}", wrong.text());
            let dummy = json!({ "type": "m.login.dummy", "session": uia_session });
            let mut body = creds.clone();
            body["auth"] = dummy;
            assert_eq!(user.post(&path, body).await.status, 401, "{version}: another stage will not do");
            let anothers = user.post(&path, with_password(&creds, &other_name, PASSWORD, uia_session)).await;
            assert_eq!(anothers.status, 403, "{version}: {}", anothers.text());
        }
        let nobody = shim.client().post(ADD, creds.clone()).await;
        assert!([401, 403].contains(&nobody.status) && nobody.errcode() != "", "{version}: {}", nobody.text());
        assert_eq!((user.addresses().await, other.addresses().await), (vec![], vec![]), "{version}");
        add_with_password(&user, ADD, &name, &creds).await.ok();
        assert_eq!(user.addresses().await, [email], "{version}: the session was not used up");
    }
}

/// Old Synapse answers user-interactive auth with the status and errcode of an identity server that it trusts. Such a 404
/// does not say that the homeserver has nothing to ask the password by.
#[tokio::test(flavor = "multi_thread")]
async fn a_404_of_an_identity_server_is_no_way_around_the_password() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let theirs = IdentityServer::start(synapse.door());
        let shim = synapse.shim(translating("")).await;
        let (user, name) = user(&shim).await;
        let (creds, email) = verified(&shim).await;
        let stage = json!({ "sid": "unknown", "client_secret": "x", "id_server": theirs.name });
        let mut body = creds.clone();
        body["auth"] = json!({ "type": "m.login.email.identity", "threepid_creds": stage });
        let answer = user.post(ADD, body).await;
        assert!(theirs.calls().concat().contains("sid=unknown"), "{version}: it was asked");
        assert_eq!(answer.status, 401, "{version}: {}", answer.text());
        assert_eq!(user.addresses().await, Vec::<String>::new(), "{version}");
        add_with_password(&user, ADD, &name, &creds).await.ok();
        assert_eq!(user.addresses().await, [email]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_validated_session_of_ours_for_that_purpose_adds_an_address() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(translating("")).await;
        let (user, name) = user(&shim).await;
        let path = "/_matrix/client/unstable/account/3pid/add";
        for foreign in [creds("17", "x"), json!({}), json!({ "sid": 17 }), json!({ "client_secret": "x" })] {
            let bare = user.clone().at(&synapse.address).post(path, foreign.clone()).await;
            let answer = user.post(path, foreign).await;
            assert_eq!((answer.status, answer.text()), (bare.status, bare.text()), "{version}: the homeserver's own");
            assert_eq!(answer.errcode(), "M_UNRECOGNIZED");
        }
        let (email, secret) = (unique("separate") + "@example.org", unique("secret"));
        let never = (400, "M_THREEPID_AUTH_FAILED".to_owned());
        let requested = user.request_token("account/3pid", &email, &secret, 1).await.sid();
        let registering = shim.verify("register", &email, &secret).await;
        let unknown = format!("shim_{}", "0".repeat(32));
        for sid in [&requested, &registering, &unknown] {
            let answer = add_with_password(&user, path, &name, &creds(sid, &secret)).await;
            assert_eq!(answer.verdict(), never, "{version} {sid}");
        }
        let answer = add_with_password(&user, path, &name, &creds(&requested, "another")).await;
        assert_eq!(answer.verdict(), never, "{version}: the secret of somebody else");
        assert_eq!(user.addresses().await, Vec::<String>::new());

        shim.client().click(&shim.link(&requested)).await;
        let validated = creds(&requested, &secret);
        add_with_password(&user, path, &name, &validated).await.ok();
        add_with_password(&user, path, &name, &validated).await.ok();
        let (thief, thief_name) = self::user(&shim).await;
        assert_eq!(add_with_password(&thief, path, &thief_name, &validated).await.verdict(), never, "{version}");
        assert_eq!((user.addresses().await, thief.addresses().await), (vec![email], vec![]), "{version}");
    }
}

/// What the homeserver gets is on paths it has, names us, and binds nothing, whatever the client wrote.
#[tokio::test]
async fn nothing_that_the_client_writes_beside_its_session_reaches_the_homeserver() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), translating("")).await;
    let sent = homeserver.received(1).await.len();
    let sid = format!("shim_{}", "1".repeat(32));
    let body = json!({ "sid": sid, "client_secret": "s", "bind": true, "id_server": "evil.example", "id_access_token": "x",
                       "devices": ["MINE"], "auth": { "type": "m.login.password", "password": "p" } });
    let client = shim.client().logged_in("token");
    for segment in ["r0", "v2_alpha", "v3", "api/v1"] {
        let answer = client.post(&format!("/_matrix/client/{segment}/account/3pid/add?a=b"), body.clone()).await;
        assert_eq!(answer.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "there is no such session");
    }
    let requests = homeserver.requests().split_off(sent);
    assert_eq!(requests.len(), 4, "a session that is none is asked for nowhere: {requests:?}");
    for request in requests {
        assert_eq!(request.line(), "POST /_matrix/client/r0/delete_devices?a=b HTTP/1.1");
        assert_eq!(request.field("authorization").as_deref(), Some("Bearer token"));
        assert_eq!(request.json(), json!({ "devices": [], "auth": { "type": "m.login.password", "password": "p" } }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bind_and_unbind_are_answered_while_it_is_on() {
    let shim = legacy("1.3.1").shim(translating("")).await;
    let (user, _) = user(&shim).await;
    for segment in ["r0", "unstable", "v2_alpha", "v3", "r0.5.0", "api/v1"] {
        for body in [json!({}), json!({ "sid": "17", "client_secret": "x", "id_server": "vector.im" })] {
            let path = |endpoint: &str| format!("/_matrix/client/{segment}/account/3pid/{endpoint}");
            let bind = user.post(&path("bind"), body.clone()).await;
            assert_eq!(bind.verdict(), unrecognized(), "{segment}");
            assert_eq!(bind.header("Access-Control-Allow-Origin"), Some("*"));
            let unbind = user.post(&path("unbind"), body).await;
            assert_eq!(unbind.header("Access-Control-Allow-Origin"), Some("*"));
            assert_eq!(unbind.ok(), json!({ "id_server_unbind_result": "no-support" }), "{segment}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flag_is_there_exactly_while_it_is_on() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let says = |needs: &str| Wanted { homeserver: format!("needs_shim = \"{needs}\""), ..translating("") };
        let table = [
            (translating(""), Some(true)),
            (translating("register.email = \"forward\"\n"), Some(true)),
            (translating("versions = \"forward\"\n"), NO_FLAG),
            (says("yes"), Some(true)),
            (says("no"), NO_FLAG),
            (Wanted::default(), NO_FLAG),
            (Wanted::config("[routes]\naccount_3pid_add = \"forward\"\n"), NO_FLAG),
        ];
        for (row, (wanted, expected)) in table.into_iter().enumerate() {
            let shim = synapse.shim(wanted).await;
            assert_eq!(flag(&shim.client()).await, expected, "{version} row {row}");
            let bind = shim.client().post("/_matrix/client/r0/account/3pid/bind", json!({})).await;
            let unbind = shim.client().post("/_matrix/client/r0/account/3pid/unbind", json!({})).await;
            let on = expected == Some(true);
            assert_eq!(bind.verdict(), unrecognized(), "{version} row {row}: the homeserver's own answer is the same");
            assert_eq!(bind.text().contains("verified here"), on, "{version} row {row}");
            assert_eq!(unbind.status == 200, on, "{version} row {row}: {}", unbind.text());
        }
    }
}

#[tokio::test]
async fn while_it_is_off_all_three_reach_the_homeserver_unchanged() {
    let homeserver =
        Homeserver::answering(homeserver::json("400 Bad Request", r#"{"errcode":"M_UNRECOGNIZED"}"#)).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    let sent = homeserver.received(1).await.len();
    let body =
        r#"{ "sid":"17","client_secret" : "x", "id_server":"vector.im","id_access_token":"t", "auth":{"session":"u"}}"#;
    let mut rows = 0;
    for segment in ["r0", "unstable", "v2_alpha", "v3"] {
        for endpoint in ["add", "bind", "unbind"] {
            let path = format!("/_matrix/client/{segment}/account/3pid/{endpoint}?x=y");
            let answer = shim.client().logged_in("t").send("POST", &path, body.as_bytes()).await;
            assert_eq!(answer.text(), r#"{"errcode":"M_UNRECOGNIZED"}"#, "{path}");
            let request = homeserver.requests().pop().unwrap();
            assert_eq!(request.line(), format!("POST {path} HTTP/1.1"));
            assert_eq!(String::from_utf8(request.content()).unwrap(), body, "{path}");
            rows += 1;
        }
    }
    assert_eq!((rows, homeserver.requests().len() - sent), (12, 12));
}
