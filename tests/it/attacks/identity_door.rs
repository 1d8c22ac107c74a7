//! S§4 rows 17 and 27: the identity door believes nobody, and is behind no other door.

use serde_json::{Value, json};

use super::naive::Naive;
use super::{email_stage, logged_in, roomy};
use crate::client::{Answer, PASSWORD, creds};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::secure::{self, FORM, JSON};
use crate::shim::Shim;

const GET_VALIDATED: &str = "/_matrix/identity/api/v1/3pid/getValidated3pid";
const REQUEST_TOKEN: &str = "/_matrix/identity/api/v1/validate/email/requestToken";

/// Calls the identity door as the homeserver does.
async fn call(shim: &Shim, method: &str, target: &str, body: &str) -> Answer {
    let kind = if body.starts_with('{') { JSON } else { FORM };
    secure::call(&shim.identity, method, target, kind, body).await
}

/// Whoever reaches the door knows sid and client_secret of his own session; no request of it is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn p3_3_the_door_tells_no_address_and_mails_nothing_without_a_request_in_flight() {
    let shim = roomy(legacy("1.3.1")).await;
    let (email, secret) = (format!("{}@example.org", unique("told")), unique("secret"));
    let sid = shim.verify("register", &email, &secret).await;
    let right = format!("sid={sid}&client_secret={secret}");
    for query in [
        right.clone(),
        format!("sid={sid}&client_secret=wrong"),
        format!("sid=shim_{}&client_secret={secret}", "0".repeat(32)),
        "sid=17&client_secret=s".to_owned(),
        String::new(),
    ] {
        let answer = call(&shim, "GET", &format!("{GET_VALIDATED}?{query}"), "").await;
        let body = answer.clone().ok();
        assert!(
            ["M_SESSION_NOT_VALIDATED", "M_NO_VALID_SESSION"].contains(&body["errcode"].as_str().unwrap()),
            "{body}"
        );
        assert!(body.get("address").is_none() && body.get("medium").is_none(), "{body}");
    }
    let bind = json!({ "sid": sid, "client_secret": secret, "mxid": "@a:localhost" }).to_string();
    assert_eq!(call(&shim, "POST", "/_matrix/identity/api/v1/3pid/bind", &bind).await.status, 400);

    let mails = shim.outbox().len();
    for body in [
        json!({ "email": email, "client_secret": secret, "send_attempt": 1 }).to_string(),
        json!({ "email": "other@example.org", "client_secret": "s", "send_attempt": 2 }).to_string(),
        format!("email=other%40example.org&client_secret={secret}&send_attempt=3"),
    ] {
        assert_eq!(call(&shim, "POST", REQUEST_TOKEN, &body).await.verdict(), (403, "M_FORBIDDEN".into()), "{body}");
    }
    assert_eq!(shim.outbox().len(), mails);
}

/// Dendrite builds its question without escaping: a client can put a second `sid` into it.
#[tokio::test(flavor = "multi_thread")]
async fn p3_3_a_smuggled_second_sid_is_refused() {
    let shim = roomy(legacy("1.3.1")).await;
    let secret = unique("secret");
    let sid = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
    let mut ran = 0;
    for query in [
        format!("sid=17&sid={sid}&client_secret={secret}"),
        format!("sid={sid}&sid=17&client_secret={secret}"),
        format!("sid=17&s%69d={sid}&client_secret={secret}"),
        format!("sid={sid}&client_secret=x&client_secret={secret}"),
        format!("sid={sid}&client_secret={secret}&x&x"),
    ] {
        let answer = call(&shim, "GET", &format!("{GET_VALIDATED}?{query}"), "").await;
        assert_eq!(answer.verdict(), (400, "M_INVALID_PARAM".into()), "{query}");
        ran += 1;
    }
    assert_eq!(ran, 5);
    for (method, path) in [
        ("POST", "/_matrix/identity/api/v1/3pid/unbind"),
        ("GET", "/_matrix/identity/api/v1/lookup?medium=email&address=a%40b.example"),
        ("POST", "/_matrix/identity/api/v1/validate/email/submitToken"),
        ("GET", "/_matrix/identity/api/v1/pubkey/ed25519:0"),
        ("GET", "/_matrix/identity/v2/3pid/getValidated3pid"),
        ("POST", GET_VALIDATED),
        ("GET", "/_matrix/client/versions"),
        ("GET", "/metrics"),
        ("GET", "/status"),
        ("GET", "/"),
    ] {
        assert_eq!(call(&shim, method, path, "{}").await.verdict(), (404, "M_UNRECOGNIZED".into()), "{method} {path}");
    }
}

/// What is only for the homeserver and for the operator is not on the clients' door, in any spelling.
#[tokio::test(flavor = "multi_thread")]
async fn s4_27_no_spelling_of_an_identity_path_reaches_the_identity_door_from_the_client_door() {
    let synapse = legacy("1.3.1");
    let shim = roomy(synapse).await;
    let (email, secret) = (format!("{}@example.org", unique("leak")), unique("secret"));
    let sid = shim.verify("register", &email, &secret).await;
    let query = format!("?sid={sid}&client_secret={secret}");
    let mut ran = 0;
    for path in [
        GET_VALIDATED.to_owned(),
        GET_VALIDATED.replace("identity", "%69dentity"),
        GET_VALIDATED.replace("identity", "IDENTITY"),
        format!("/{GET_VALIDATED}"),
        GET_VALIDATED.replace("/3pid/", "//3pid/"),
        GET_VALIDATED.replace("/api", "/./api"),
        GET_VALIDATED.replace("/identity", "/client/../identity"),
        GET_VALIDATED.replace("/identity", "/client/%2e%2e/identity"),
        GET_VALIDATED.replace("/_matrix", "/_matrix/client/r0/../../../_matrix"),
        GET_VALIDATED.replace('/', "%2f").replacen("%2f", "/", 1),
        format!("{GET_VALIDATED}/"),
        format!("{GET_VALIDATED};x=1"),
        "/_matrix/identity/api/v1".to_owned(),
        "/_matrix/identity/versions".to_owned(),
        "/metrics".to_owned(),
        "/status".to_owned(),
        "/healthz".to_owned(),
        "/readyz".to_owned(),
    ] {
        let target = format!("{path}{query}");
        let (here, bare) = (shim.client().get(&target).await, synapse.bare().get(&target).await);
        assert_eq!((here.status, here.text()), (bare.status, bare.text()), "{target}");
        assert!(!here.text().contains(&email) && here.status >= 400, "{target}");
        ran += 1;
    }
    assert_eq!(ran, 18);
}

/// A bind that is not answered as Synapse wishes makes registration say 500 after the account was made.
#[tokio::test(flavor = "multi_thread")]
async fn p0_7_a_wish_to_publish_the_address_neither_fails_nor_publishes() {
    let synapse = legacy("1.3.1");
    let naive = Naive::of(synapse, &format!("{}@example.org", unique("bind")));
    naive.binds_with(404);
    let body = |creds: &Value| json!({ "username": unique("bind"), "password": PASSWORD, "bind_email": true, "auth": email_stage(creds, None) });
    let broken = synapse.bare().post("/_matrix/client/r0/register", body(&naive.creds())).await;
    assert_eq!(broken.status, 500, "the fault is real");

    for version in VERSIONS {
        let shim = roomy(legacy(version)).await;
        let secret = unique("secret");
        let email = format!("{secret}@example.org");
        let sid = shim.verify("register", &email, &secret).await;
        let account = shim.client().post("/_matrix/client/r0/register", body(&creds(&sid, &secret))).await.ok();
        let user = shim.client().logged_in(account["access_token"].as_str().unwrap());
        assert_eq!(user.addresses().await, [email], "{version}");

        let secret = unique("secret");
        let sid = shim.verify("account/3pid", &format!("{secret}@example.org"), &secret).await;
        let adding = json!({ "three_pid_creds": creds(&sid, &secret), "bind": true });
        user.post("/_matrix/client/r0/account/3pid", adding).await.ok();
        assert_eq!(user.addresses().await.len(), 2, "{version}");
    }
}

/// Old Synapse: an unbind answered 401, 403 or 500 keeps its user from ever removing the address or leaving.
#[tokio::test(flavor = "multi_thread")]
async fn p0_7_a_user_can_remove_an_address_and_leave() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let email = format!("{}@example.org", unique("leave"));
        let naive = Naive::of(synapse, &email);
        let stuck = logged_in(&synapse.bare()).await;
        stuck.add_3pid(naive.creds()).await.ok();
        naive.binds_with(403);
        let delete =
            |address: &str, id_server: &str| json!({ "medium": "email", "address": address, "id_server": id_server });
        let path = "/_matrix/client/unstable/account/3pid/delete";
        let kept = stuck.post(path, delete(&email, &naive.name)).await;
        assert_eq!(kept.status, 500, "{version}: the fault is real: {}", kept.text());

        let shim = roomy(synapse).await;
        let name = unique("leave");
        let user = shim.client().logged_in(&shim.client().register_plainly(&name).await);
        for bound in [true, false] {
            let (email, secret) = (format!("{}@example.org", unique("leave")), unique("secret"));
            let sid = shim.verify("account/3pid", &email, &secret).await;
            user.add_3pid(creds(&sid, &secret)).await.ok();
            if bound {
                user.post(path, delete(&email, &shim.identity)).await.ok();
                assert_eq!(user.addresses().await, [] as [String; 0], "{version}");
            }
        }
        let auth = json!({ "type": "m.login.password", "user": name, "password": PASSWORD });
        let leaving = json!({ "auth": auth, "id_server": shim.identity });
        user.post("/_matrix/client/r0/account/deactivate", leaving).await.ok();
        assert_ne!(shim.client().get("/_matrix/client/r0/account/whoami").await.status, 200);
    }
}
