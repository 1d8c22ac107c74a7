//! The whole way against every old Synapse: registration, password reset, adding an address; under each version segment
//! that it serves, and without the shim, where none of it works.

use serde_json::Value;

use crate::client::{Client, PASSWORD, creds};
use crate::legacy::{EVERY_VERSION, Legacy, legacy, unique};
use crate::shim::{Shim, Wanted};
use crate::table::{MSC2263, WORKS, cell};

/// Each old Synapse with a shim in front of it, and the version segments that it serves.
async fn every() -> Vec<(&'static Legacy, Shim, Vec<&'static str>)> {
    let mut all = Vec::new();
    for version in EVERY_VERSION {
        let served = if version == "0.34.1.1" { vec!["r0", "unstable", "v2_alpha"] } else { vec!["r0", "unstable"] };
        let synapse = legacy(version);
        all.push((synapse, synapse.shim(Wanted::default()).await, served));
    }
    assert_eq!(all.len(), 5);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flag_is_false_through_the_shim_and_missing_without_it() {
    for (synapse, shim, _) in every().await {
        let flag = async |client: Client| {
            client.get("/_matrix/client/versions").await.ok()["unstable_features"]["m.require_identity_server"].clone()
        };
        assert_eq!(flag(shim.client()).await, false);
        assert_eq!(flag(synapse.bare()).await, Value::Null);
        cell(synapse.version, "flag", MSC2263, WORKS, "missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_registers_by_email_and_logs_in_with_it() {
    for (synapse, shim, served) in every().await {
        for api in served {
            let client = shim.client().speaking(api);
            let (name, secret) = (unique("register"), unique("secret"));
            let email = format!("{name}@example.org");
            let bare = synapse.bare().speaking(api).request_token("register", &email, &secret, 1).await;
            assert_eq!(bare.verdict(), (400, "M_MISSING_PARAM".into()), "the bare homeserver cannot do it");

            let sid = client.request_token("register", &email, &secret, 1).await.sid();
            let waiting = client.register(&name, creds(&sid, &secret)).await;
            assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()), "not validated yet: keep waiting");
            assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
            let registered = client.register(&name, creds(&sid, &secret)).await.ok();
            assert_eq!(registered["user_id"], format!("@{name}:localhost"));
            let logged_in = shim.client().login(&email, PASSWORD).await.ok();
            assert_eq!(logged_in["user_id"], registered["user_id"]);
            let again = client.request_token("register", &email, &unique("secret"), 1).await;
            assert_eq!(again.verdict(), (400, "M_THREEPID_IN_USE".into()), "the homeserver's policy");
            cell(synapse.version, "register", MSC2263, WORKS, &bare.errcode());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_resets_a_password_by_email() {
    for (synapse, shim, served) in every().await {
        for api in served {
            let client = shim.client().speaking(api);
            let (name, email) = registered(&shim).await;
            let secret = unique("secret");
            let bare = synapse.bare().speaking(api).request_token("account/password", &email, &secret, 1).await;
            // Another error on 1.x, where a homeserver may mail resets itself.
            let demanded = if synapse.version.starts_with('0') { "M_MISSING_PARAM" } else { "M_UNKNOWN" };
            assert_eq!(bare.verdict(), (400, demanded.into()));

            let sid = client.request_token("account/password", &email, &secret, 1).await.sid();
            let waiting = client.reset_password("new password", creds(&sid, &secret)).await;
            assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()));
            assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
            client.reset_password("new password", creds(&sid, &secret)).await.ok();
            assert_eq!(shim.client().login(&email, PASSWORD).await.status, 403);
            assert_eq!(shim.client().login(&email, "new password").await.ok()["user_id"], format!("@{name}:localhost"));
            let unknown = client.request_token("account/password", "nobody@example.org", &secret, 1).await;
            assert_eq!(unknown.verdict(), (400, "M_THREEPID_NOT_FOUND".into()), "the homeserver's policy");
            cell(synapse.version, "reset password", MSC2263, WORKS, demanded);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_adds_an_address_to_an_account() {
    for (synapse, shim, served) in every().await {
        for api in served {
            let name = unique("add");
            let user = shim.client().speaking(api).logged_in(&shim.client().register_plainly(&name).await);
            let (email, secret) = (format!("{name}@example.org"), unique("secret"));
            let bare = synapse.bare().speaking(api).request_token("account/3pid", &email, &secret, 1).await;
            assert_eq!(bare.verdict(), (400, "M_MISSING_PARAM".into()));

            let sid = user.request_token("account/3pid", &email, &secret, 1).await.sid();
            let waiting = user.add_3pid(creds(&sid, &secret)).await;
            assert_eq!(waiting.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()));
            assert_eq!(user.click(&shim.link(&sid)).await.status, 200);
            user.add_3pid(creds(&sid, &secret)).await.ok();
            assert_eq!(user.addresses().await, [email]);
            cell(synapse.version, "add e-mail", MSC2263, WORKS, &bare.errcode());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_segment_that_the_homeserver_does_not_serve_is_answered_by_its_own_404() {
    for (synapse, shim, _) in every().await {
        for api in ["v3", "r1"] {
            let (email, secret) = (unique("v3") + "@example.org", unique("secret"));
            let answer = shim.client().speaking(api).request_token("register", &email, &secret, 1).await;
            let bare = synapse.bare().speaking(api).request_token("register", &email, &secret, 1).await;
            assert_eq!((answer.status, answer.text()), (404, bare.text()), "{} {api}", synapse.version);
        }
        assert_eq!(shim.outbox().len(), 0);
    }
}

/// A user with an address.
pub async fn registered(shim: &Shim) -> (String, String) {
    let (name, secret) = (unique("user"), unique("secret"));
    let email = format!("{name}@example.org");
    let sid = shim.verify("register", &email, &secret).await;
    shim.client().register(&name, creds(&sid, &secret)).await.ok();
    (name, email)
}
