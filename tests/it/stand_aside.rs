//! A homeserver that is upgraded behind a running shim: every route is handed over to it, and what had begun completes
//! where it still asks the identity door.

use std::time::{Duration, Instant};

use serde_json::json;
use threepid_shim::config::NeedsShim as Said;
use threepid_shim::front::forward::Forward;
use threepid_shim::needs_shim::NeedsShim;
use threepid_shim::telemetry::Metrics;

use crate::client::{Client, PASSWORD, creds};
use crate::homeserver::Homeserver;
use crate::legacy::{Legacy, unique};
use crate::logged;
use crate::mailbox::{Mailbox, Script};
use crate::shim::{ROOMY, Shim, Wanted};

/// Sessions begun with Synapse 1.3.1: one for each purpose, the first half of them clicked already.
struct Begun {
    name: String,
    secret: String,
    user: Client,
    /// sid by purpose: register, account/password, account/3pid.
    sids: [String; 3],
    /// A UIA session of the old homeserver's, which it forgets.
    uia_session: String,
}

const PURPOSES: [&str; 3] = ["register", "account/password", "account/3pid"];

fn address(purpose: &str, name: &str) -> String {
    format!("{name}-{}@example.org", purpose.replace('/', "-"))
}

async fn begin(shim: &Shim) -> Begun {
    let (name, secret) = (unique("upgrade"), unique("secret"));
    let client = shim.client();
    let known = shim.verify("register", &address("account/password", &name), &secret).await;
    client.register(&name, creds(&known, &secret)).await.ok();
    let login = client.login(&address("account/password", &name), PASSWORD).await.ok();
    let user = client.clone().logged_in(login["access_token"].as_str().unwrap());
    let begun = client.call("register", json!({ "username": format!("{name}-2"), "password": PASSWORD })).await;
    let uia_session = begun.json()["session"].as_str().unwrap().to_owned();
    let mut sids = Vec::new();
    for purpose in PURPOSES {
        sids.push(client.request_token(purpose, &address(purpose, &name), &secret, 1).await.sid());
    }
    shim.client().click(&shim.link(&sids[0])).await;
    Begun { name, secret, user, sids: sids.try_into().unwrap(), uia_session }
}

impl Begun {
    /// The three completions, as a client repeats them.
    async fn complete(&self, shim: &Shim) -> [(u16, String); 3] {
        let client = shim.client();
        let [register, password, account] = &self.sids;
        let auth = |sid: &str| json!({ "type": "m.login.email.identity", "threepid_creds": creds(sid, &self.secret) });
        let body = json!({ "username": format!("{}-2", self.name), "password": PASSWORD, "auth": auth(register) });
        [
            client.call("register", body).await.verdict(),
            client.reset_password("new password", creds(password, &self.secret)).await.verdict(),
            self.user.add_3pid(creds(account, &self.secret)).await.verdict(),
        ]
    }
}

/// Readiness would look at the homeserver at once: the metrics wait for the shim's own look.
async fn handed_over_by_itself(shim: &Shim) {
    let began = Instant::now();
    let admin = Client::of(&shim.admin);
    while !admin.get("/metrics").await.text().contains("\nthreepid_shim_homeserver_needs_shim 0\n") {
        assert!(began.elapsed() < Duration::from_secs(90), "not handed over within 90 s");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    handed_over(shim).await;
}

/// Readiness looks at the homeserver.
async fn handed_over(shim: &Shim) {
    let ready = Client::of(&shim.admin).get("/readyz").await;
    assert_eq!((ready.status, ready.text().contains("learnt MSC2263")), (200, true), "{}", ready.text());
    let metrics = Client::of(&shim.admin).get("/metrics").await.text();
    assert!(metrics.contains("\nthreepid_shim_homeserver_needs_shim 0\n"), "{metrics}");
}

async fn in_front_of(synapse: &Legacy) -> Shim {
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let ready = Client::of(&shim.admin).get("/readyz").await;
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    let metrics = Client::of(&shim.admin).get("/metrics").await.text();
    assert!(metrics.contains("\nthreepid_shim_homeserver_needs_shim 1\n"), "{metrics}");
    shim
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_learns_to_delegate_completes_what_had_begun() {
    let mut synapse = Legacy::start("1.3.1", &[]);
    let shim = in_front_of(&synapse).await;
    let begun = begin(&shim).await;

    let delegate = format!("https://{}", shim.identity);
    synapse.replace("1.4.0", &[("DELEGATE_EMAIL", &delegate)]);
    handed_over_by_itself(&shim).await;
    let [register, password, account] = begun.complete(&shim).await;
    assert_eq!(register.0, 200, "clicked before the upgrade: {register:?}");
    assert_eq!(password, (401, "M_UNAUTHORIZED".into()), "not clicked yet: keep waiting");
    assert_eq!(account, (400, "M_THREEPID_AUTH_FAILED".into()));
    for sid in &begun.sids[1..] {
        assert_eq!(shim.client().click(&shim.link(sid)).await.status, 200, "the link lives on");
    }
    begun.user.add_3pid(creds(&begun.sids[2], &begun.secret)).await.ok();
    assert!(begun.user.addresses().await.contains(&address("account/3pid", &begun.name)));
    let [register, password, account] = begun.complete(&shim).await;
    assert_eq!(register, (400, "M_USER_IN_USE".into()), "done once");
    assert_eq!(password.0, 200);
    assert_eq!(
        account,
        (401, "M_UNKNOWN_TOKEN".into()),
        "the reset has logged everybody out, and the shim says so too"
    );
    let login = shim.client().login(&address("register", &begun.name), PASSWORD).await.ok();
    assert_eq!(login["user_id"], format!("@{}-2:localhost", begun.name));
    shim.client().login(&address("account/password", &begun.name), "new password").await.ok();

    let mails = shim.outbox().len();
    let fresh = shim.client().request_token("register", &address("fresh", &begun.name), &begun.secret, 1).await;
    assert_ne!(fresh.status, 200, "delegating needs identity.accept_unannounced: {}", fresh.text());
    assert_eq!(shim.outbox().len(), mails, "no mail without a request of a client's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_learns_to_mail_by_itself_has_clients_begin_again() {
    let mailbox = Mailbox::start(Script::clear()).await;
    let port = mailbox.address().port().to_string();
    let mut synapse = Legacy::start("1.3.1", &[]);
    let shim = in_front_of(&synapse).await;
    let begun = begin(&shim).await;
    for sid in &begun.sids[1..] {
        shim.client().click(&shim.link(sid)).await;
    }

    synapse.replace("1.4.0", &[("SMTP_PORT", &port)]);
    handed_over(&shim).await;
    for (verdict, purpose) in begun.complete(&shim).await.into_iter().zip(PURPOSES) {
        assert_eq!(verdict, (400, "M_THREEPID_AUTH_FAILED".into()), "{purpose}: ends a client's polling");
    }
    let auth = json!({ "session": begun.uia_session, "type": "m.login.email.identity",
                       "threepid_creds": creds(&begun.sids[0], &begun.secret) });
    let again = shim.client().call("register", json!({ "auth": auth })).await;
    assert_eq!(again.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()));

    // So that they do: the homeserver mails, its sids are its own, and the shim has no hand in it.
    let ours = shim.outbox().len();
    let sid = shim.client().request_token("account/3pid", &address("again", &begun.name), &begun.secret, 1).await.sid();
    assert!(!sid.starts_with("shim_"));
    assert!(mailbox.wait_for_mail().await.text().contains(&sid), "its own link");
    assert_eq!(shim.outbox().len(), ours);
    let waiting = begun.user.add_3pid(creds(&sid, &begun.secret)).await;
    let bare = synapse.bare().add_3pid(creds(&sid, &begun.secret)).await;
    assert_ne!(waiting.status, 200);
    assert_eq!(bare.status, 401, "only to show that the address is the homeserver's to ask for");
}

#[tokio::test(flavor = "current_thread")]
async fn handing_over_is_logged_once() {
    logged::listen();
    let body = r#"{"versions":["r0.6.0"],"unstable_features":{"m.require_identity_server":false}}"#;
    let homeserver =
        Homeserver::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let metrics = Metrics::new();
    let needs_shim = NeedsShim::new(Said::Auto, Forward::new(&homeserver.config(), &[], metrics.clone()), metrics);
    logged::take();
    for _ in 0..3 {
        needs_shim.look().await.unwrap();
    }
    assert!(!needs_shim.get());
    assert_eq!(logged::take().matches("has learnt MSC2263").count(), 1);
}
