//! The whole way against real old Synapses: registration, password reset, adding an address.

use crate::client::{PASSWORD, creds};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::shim::Wanted;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_registers_by_email_and_logs_in_with_it() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(Wanted::default()).await;
        let client = shim.client();
        let (name, secret) = (unique("register"), unique("secret"));
        let email = format!("{name}@example.org");
        let bare = synapse.bare().request_token("register", &email, &secret, 1).await;
        assert_eq!(bare.verdict(), (400, "M_MISSING_PARAM".into()), "the bare homeserver cannot do it");

        let sid = client.request_token("register", &email, &secret, 1).await.sid();
        let waiting = client.register(&name, creds(&sid, &secret)).await;
        assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()), "not validated yet: keep waiting");
        assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
        let registered = client.register(&name, creds(&sid, &secret)).await.ok();
        assert_eq!(registered["user_id"], format!("@{name}:localhost"));
        let logged_in = client.login(&email, PASSWORD).await.ok();
        assert_eq!(logged_in["user_id"], registered["user_id"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_resets_a_password_by_email() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(Wanted::default()).await;
        let client = shim.client();
        let (name, email) = registered(&shim).await;
        let secret = unique("secret");
        let sid = client.request_token("account/password", &email, &secret, 1).await.sid();
        let waiting = client.reset_password("new password", creds(&sid, &secret)).await;
        assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()));
        assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
        client.reset_password("new password", creds(&sid, &secret)).await.ok();
        assert_eq!(client.login(&email, PASSWORD).await.status, 403);
        assert_eq!(client.login(&email, "new password").await.ok()["user_id"], format!("@{name}:localhost"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_adds_an_address_to_an_account() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(Wanted::default()).await;
        let name = unique("add");
        let user = shim.client().logged_in(&shim.client().register_plainly(&name).await);
        let (email, secret) = (format!("{name}@example.org"), unique("secret"));
        let sid = user.request_token("account/3pid", &email, &secret, 1).await.sid();
        let waiting = user.add_3pid(creds(&sid, &secret)).await;
        assert_eq!(waiting.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()));
        assert_eq!(user.click(&shim.link(&sid)).await.status, 200);
        user.add_3pid(creds(&sid, &secret)).await.ok();
        assert_eq!(user.addresses().await, [email]);
    }
}

/// A user with an address.
pub async fn registered(shim: &crate::shim::Shim) -> (String, String) {
    let (name, secret) = (unique("user"), unique("secret"));
    let email = format!("{name}@example.org");
    let sid = shim.verify("register", &email, &secret).await;
    shim.client().register(&name, creds(&sid, &secret)).await.ok();
    (name, email)
}
