//! S§4 row 20: what a person confirmed for one purpose is used for another.

use serde_json::{Value, json};

use super::naive::Naive;
use super::{ROOMY, email_stage, logged_in, never_do, opens, registered, reset_by_uia_session, roomy, uia_session};
use crate::client::{Answer, Client, PASSWORD, creds};
use crate::legacy::{Legacy, VERSIONS, legacy, unique};
use crate::shim::{Shim, Wanted};

const PURPOSES: [&str; 3] = ["register", "account/password", "account/3pid"];

/// The request that creds are used on, for each purpose.
async fn complete(purpose: &str, user: &Client, creds: Value) -> Answer {
    match purpose {
        "register" => Client::register(user, &unique("name"), creds).await,
        "account/password" => user.reset_password("stolen", creds).await,
        _ => user.add_3pid(creds).await,
    }
}

/// A benign-looking mail would authorise a takeover.
#[tokio::test(flavor = "multi_thread")]
async fn p4_6_s4_20_a_session_validated_for_one_purpose_serves_no_other() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = roomy(synapse).await;
        let known = format!("{}@example.org", unique("known"));
        registered(&shim, &known).await;
        let naive = Naive::of(synapse, &known);
        assert_eq!(synapse.bare().reset_password("taken", naive.creds()).await.status, 200, "the attack is real");

        let mut ran = 0;
        for begun in PURPOSES {
            let email =
                if begun == "account/password" { known.clone() } else { format!("{}@example.org", unique("new")) };
            let secret = unique("secret");
            let sid = shim.verify(begun, &email, &secret).await;
            let user = logged_in(&shim.client()).await;
            let client = shim.client();
            for used in PURPOSES.into_iter().filter(|used| *used != begun) {
                let by = if used == "account/3pid" { &user } else { &client };
                let refused = complete(used, by, creds(&sid, &secret)).await;
                assert_eq!(refused.verdict(), never_do(), "{version}: {begun} used on {used}");
                ran += 1;
            }
            let by = if begun == "account/3pid" { &user } else { &client };
            assert_eq!(complete(begun, by, creds(&sid, &secret)).await.status, 200, "{version}: {begun} is still good");
        }
        assert_eq!(ran, 6);
        assert!(opens(&shim.client(), &known, "stolen").await, "only by the session for that");
    }
}

/// Old Synapse runs its e-mail check for any endpoint with user-interactive auth, and matches some of their
/// paths by their beginning.
#[tokio::test(flavor = "multi_thread")]
async fn s4_20_a_session_is_good_on_no_other_endpoint_with_user_interactive_auth() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let naive = Naive::of(synapse, "x@example.org");
        let shim = roomy(synapse).await;
        let secret = unique("secret");
        let sid = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
        let mut ours = creds(&sid, &secret);
        ours["id_server"] = shim.identity.clone().into();
        let user = logged_in(&shim.client()).await;
        let bare = logged_in(&synapse.bare()).await;
        let mut reached = 0;
        for (method, path) in [
            ("POST", "account/deactivate"),
            ("POST", "delete_devices"),
            ("POST", "delete_devices/"),
            ("POST", "delete_devicesX"),
            ("POST", "delete_devices/x/y"),
            ("DELETE", "devices/ABC"),
            ("DELETE", "devices/"),
            ("DELETE", "devices/%2e%2e"),
            ("POST", "keys/device_signing/upload"),
        ] {
            let path = format!("/_matrix/client/r0/{path}");
            let body = |creds: &Value| json!({ "devices": [], "auth": email_stage(creds, None) }).to_string();
            let heard = naive.heard().len();
            bare.send(method, &path, body(&naive.creds()).as_bytes()).await;
            let reaches_the_check = naive.heard().len() > heard;
            reached += usize::from(reaches_the_check);
            let answer = user.send(method, &path, body(&ours).as_bytes()).await;
            assert_eq!(answer.verdict(), never_do(), "{version}: {method} {path}, {reaches_the_check}");
        }
        assert_eq!(reached, 8, "{version}: the attack is real on all of them but the one it does not have yet");
        shim.client().register(&unique("name"), creds(&sid, &secret)).await.ok();
    }
}

/// `account_3pid_add = "translate"` asks for the password elsewhere, with `auth` as the client wrote it.
#[tokio::test(flavor = "multi_thread")]
async fn s4_20_nor_is_it_by_way_of_the_password_that_an_addition_asks_for() {
    let translate = format!("{ROOMY}[routes]\naccount_3pid_add = \"translate\"\n");
    let shim = legacy("1.3.1").shim(Wanted::config(&translate)).await;
    let user = logged_in(&shim.client()).await;
    let (secret, other) = (unique("secret"), unique("secret"));
    let adding = shim.verify("account/3pid", &format!("{secret}@example.org"), &secret).await;
    let sid = shim.verify("register", &format!("{other}@example.org"), &other).await;
    for sid in [json!(sid), json!([sid])] {
        let stage = json!({ "sid": sid, "client_secret": other, "id_server": shim.identity });
        let body = json!({ "sid": adding, "client_secret": secret, "auth": email_stage(&stage, None) });
        let answer = user.post("/_matrix/client/r0/account/3pid/add", body).await;
        assert_eq!(answer.verdict(), never_do(), "{}", answer.text());
    }
}

/// A victim with an account, and somebody who holds a session for `register` that the victim confirmed before that.
struct Confirmed {
    email: String,
    sid: String,
    secret: String,
}

impl Confirmed {
    async fn by_the_victim(shim: &Shim) -> Self {
        let (email, secret) = (format!("{}@example.org", unique("victim")), unique("secret"));
        let sid = shim.verify("register", &email, &secret).await;
        registered(shim, &email).await;
        Self { email, sid, secret }
    }

    fn creds(&self) -> Value {
        creds(&self.sid, &self.secret)
    }
}

async fn complete_on_register(client: &Client, creds: &Value, uia_session: &str) -> Answer {
    let auth = email_stage(creds, Some(uia_session));
    let body = json!({ "username": unique("name"), "password": PASSWORD, "auth": auth });
    client.post("/_matrix/client/r0/register", body).await
}

/// Old Synapse lets any UIA session complete any endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn p2_4_s4_20_a_uia_session_completed_on_register_resets_no_password() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = roomy(synapse).await;
        let thief = Confirmed::by_the_victim(&shim).await;
        attack_the_bare(synapse, &thief.email).await;

        let uia = uia_session(&shim.client()).await;
        let done = complete_on_register(&shim.client(), &thief.creds(), &uia).await;
        assert_eq!(done.verdict(), (400, "M_THREEPID_IN_USE".into()), "{version}: the stage is done, the rest is not");
        let reset = reset_by_uia_session(&shim.client(), &uia, "stolen").await;
        assert_eq!(reset.verdict(), never_do(), "{version}");
        let with_both = json!({ "new_password": "stolen", "auth": email_stage(&thief.creds(), Some(&uia)) });
        let reset = shim.client().post("/_matrix/client/r0/account/password", with_both).await;
        assert_eq!(reset.verdict(), never_do(), "{version}");
        assert!(!opens(&shim.client(), &thief.email, "stolen").await, "{version}");
    }
}

async fn attack_the_bare(synapse: &Legacy, email: &str) {
    let naive = Naive::of(synapse, email);
    let uia = uia_session(&synapse.bare()).await;
    let done = complete_on_register(&synapse.bare(), &naive.creds(), &uia).await;
    assert_eq!(done.verdict(), (400, "M_THREEPID_IN_USE".into()));
    reset_by_uia_session(&synapse.bare(), &uia, "taken").await.ok();
    assert!(opens(&synapse.bare(), email, "taken").await, "{}: the attack is real", synapse.version);
}

/// The same, while the registration is still on its way: the homeserver has been told, its answer has not come yet.
#[tokio::test(flavor = "multi_thread")]
async fn s4_20_nor_does_one_that_is_being_completed() {
    let shim = roomy(legacy("1.3.1")).await;
    let thief = Confirmed::by_the_victim(&shim).await;
    for _ in 0..12 {
        let uia = uia_session(&shim.client()).await;
        let client = shim.client();
        let (creds, id) = (thief.creds(), uia.clone());
        let completing = tokio::spawn(async move { complete_on_register(&client, &creds, &id).await });
        while !completing.is_finished() {
            let reset = reset_by_uia_session(&shim.client(), &uia, "stolen").await;
            assert_ne!(reset.status, 200);
        }
        let completed = completing.await.unwrap().verdict();
        assert!([never_do(), (400, "M_THREEPID_IN_USE".into())].contains(&completed), "{completed:?}");
    }
    assert!(!opens(&shim.client(), &thief.email, "stolen").await);
}
