//! What the operator may decide: requests that name an identity server, routes, and when nothing is done at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::client::{Answer, Client, creds, request_token_path};
use crate::homeserver::{self, Homeserver};
use crate::legacy::{Legacy, VERSIONS, legacy, unique};
use crate::secure::IdentityServer;
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

const FAMILIES: [(&str, &str); 3] =
    [("register", "register"), ("password", "account/password"), ("account_3pid", "account/3pid")];
const FLAG: &str = "m.require_identity_server";

fn bytes(answer: &Answer) -> (u16, String) {
    (answer.status, answer.text())
}

fn naming(id_server: &str) -> Value {
    let email = unique("named") + "@example.org";
    json!({ "client_secret": unique("secret"), "email": email, "send_attempt": 1, "id_server": id_server })
}

async fn versions(client: &Client) -> Value {
    client.get("/_matrix/client/versions").await.ok()
}

async fn flag(shim: &Shim) -> Option<bool> {
    versions(&shim.client()).await["unstable_features"][FLAG].as_bool()
}

/// Readiness asks the homeserver what it has learnt, as the shim does every minute by itself.
async fn looked(shim: &Shim) -> Answer {
    Client::of(&shim.admin).get("/readyz").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_identity_server_is_forwarded_replaced_or_rejected() {
    let synapse = legacy("1.3.1");
    let theirs = IdentityServer::start(synapse.door());
    let others = "untrusted.example";
    let untrusted = (400, "M_SERVER_NOT_TRUSTED".to_owned());
    let path = request_token_path("register");
    let shim = async |routes: &str| synapse.shim(Wanted::config(&format!("{ROOMY}[routes]\n{routes}\n"))).await;

    let forward = shim("").await;
    let sid = forward.client().post(&path, naming(&theirs.name)).await.sid();
    assert!(!sid.starts_with("shim_") && theirs.calls().len() == 1);
    let body = naming(others);
    let (answer, bare) = (forward.client().post(&path, body.clone()).await, synapse.bare().post(&path, body).await);
    assert_eq!((answer.verdict(), bytes(&answer)), (untrusted.clone(), bytes(&bare)), "the homeserver's own refusal");

    let replace = shim("named_id_server = \"replace\"").await;
    for name in [theirs.name.as_str(), others] {
        assert!(replace.client().post(&path, naming(name)).await.sid().starts_with("shim_"));
    }
    assert_eq!(theirs.calls().len(), 1);

    let reject = shim("named_id_server = \"reject\"").await;
    for name in [theirs.name.as_str(), others] {
        assert_eq!(reject.client().post(&path, naming(name)).await.verdict(), untrusted);
    }
    for ours in [reject.identity.as_str(), ""] {
        let sid = reject.client().post(&path, naming(ours)).await.sid();
        assert!(sid.starts_with("shim_"), "our own name, or none, is no named one");
    }

    let trusting = shim(&format!("trusted_id_servers = [\"{}\"]", theirs.name)).await;
    assert!(!trusting.client().post(&path, naming(&theirs.name)).await.sid().starts_with("shim_"));
    let answer = trusting.client().post(&path, naming(others)).await;
    assert_eq!(answer.verdict(), untrusted);
    assert_ne!(bytes(&answer), bytes(&bare), "the shim's own refusal, which says what to do");
    for (_, purpose) in FAMILIES {
        let msisdn = format!("/_matrix/client/r0/{purpose}/msisdn/requestToken");
        assert_eq!(reject.client().post(&msisdn, naming(others)).await.verdict(), untrusted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_access_token_never_reaches_the_homeserver_with_a_requesttoken() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let theirs = IdentityServer::start(synapse.door());
        let shim = synapse.shim(Wanted::config(ROOMY)).await;
        let path = request_token_path("register");
        let mut body = naming(&theirs.name);
        body["id_access_token"] = "very-secret".into();
        let bare = synapse.bare().post(&path, body.clone()).await;
        if version == "1.3.1" {
            assert_eq!(bare.status, 500, "the bare Synapse cannot take it");
        } else {
            assert_eq!(bare.status, 200);
            assert!(theirs.calls().concat().contains("very-secret"), "the bare Synapse hands it on");
        }
        let before = theirs.calls().len();
        shim.client().post(&path, body.clone()).await.sid();
        let calls = theirs.calls();
        assert_eq!(calls.len(), before + 1);
        assert!(calls[before].contains(body["email"].as_str().unwrap()) && !calls[before].contains("very-secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_handled_forwarded_or_refused_on_its_own() {
    let synapse = legacy("1.3.1");
    let mut rows = 0;
    for (own, _) in FAMILIES {
        for mode in ["forward", "refuse"] {
            let shim = synapse.shim(Wanted::config(&format!("[routes]\n{own}.email = \"{mode}\"\n"))).await;
            for (family, purpose) in FAMILIES {
                let email = unique("route") + "@example.org";
                let body = json!({ "client_secret": unique("secret"), "email": email, "send_attempt": 1 });
                let path = request_token_path(purpose);
                let answer = shim.client().post(&path, body.clone()).await;
                let bare = synapse.bare().post(&path, body).await;
                match (family == own, mode) {
                    (true, "forward") => assert_eq!(bytes(&answer), bytes(&bare)),
                    (true, _) => assert_eq!(answer.verdict(), (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED".into())),
                    (false, _) if family == "password" => assert_eq!(answer.errcode(), "M_THREEPID_NOT_FOUND"),
                    (false, _) => assert!(answer.sid().starts_with("shim_"), "{family} is handled still"),
                }
                rows += 1;
            }
            assert_eq!(flag(&shim).await, (mode == "refuse").then_some(false), "{own}.email = {mode}");
        }
    }
    assert_eq!(rows, 18);
    for (family, purpose) in FAMILIES {
        let shim = synapse.shim(Wanted::config(&format!("[routes]\n{family}.msisdn = \"forward\"\n"))).await;
        let body = json!({ "client_secret": "s", "country": "GB", "phone_number": "07700900001", "send_attempt": 1 });
        let path = format!("/_matrix/client/r0/{purpose}/msisdn/requestToken");
        let (answer, bare) = (shim.client().post(&path, body.clone()).await, synapse.bare().post(&path, body).await);
        assert_eq!(bytes(&answer), bytes(&bare));
        assert_eq!(flag(&shim).await, None, "one route on forward, and the flag would be a lie");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flag_is_added_while_it_is_true_and_nothing_else_changes() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let bare = versions(&synapse.bare()).await;
        let shim = synapse.shim(Wanted::default()).await;
        let mut expected = bare.clone();
        expected["unstable_features"][FLAG] = false.into();
        assert_eq!(versions(&shim.client()).await.to_string(), expected.to_string());
        for routes in ["versions = \"forward\"", "password.email = \"forward\"", "account_3pid.msisdn = \"forward\""] {
            let shim = synapse.shim(Wanted::config(&format!("[routes]\n{routes}\n"))).await;
            assert_eq!(versions(&shim.client()).await.to_string(), bare.to_string(), "{routes}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_has_learnt_msc2263_is_left_to_itself() {
    let synapse = Legacy::start("1.4.0", &[]);
    let shim = synapse.shim(Wanted::default()).await;
    assert_eq!(looked(&shim).await.status, 200);
    let metrics = Client::of(&shim.admin).get("/metrics").await.text();
    assert!(metrics.contains("\nthreepid_shim_homeserver_needs_shim 0\n"), "{metrics}");
    let bare = versions(&synapse.bare()).await;
    assert_eq!(bare["unstable_features"][FLAG], false, "its own flag");
    assert_eq!(versions(&shim.client()).await.to_string(), bare.to_string());
    for (_, purpose) in FAMILIES {
        for body in [naming("untrusted.example"), json!({ "client_secret": "s" }), json!([])] {
            for path in [request_token_path(purpose), format!("/_matrix/client/r0/{purpose}/msisdn/requestToken")] {
                let answer = shim.client().post(&path, body.clone()).await;
                assert_eq!(bytes(&answer), bytes(&synapse.bare().post(&path, body.clone()).await), "{path} {body}");
            }
        }
    }
    let (answer, bare) = (
        shim.client().reset_password("new", creds("12345", "secret")).await,
        synapse.bare().reset_password("new", creds("12345", "secret")).await,
    );
    assert_eq!(answer.verdict(), bare.verdict(), "creds are not looked at");
    assert_eq!(shim.outbox().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_may_say_whether_the_homeserver_needs_the_shim() {
    let says = |needs: &str| Wanted { homeserver: format!("needs_shim = \"{needs}\""), ..Wanted::default() };
    let synapse = legacy("1.3.1");
    let no = synapse.shim(says("no")).await;
    let body = json!({ "client_secret": "s", "email": "a@example.org", "send_attempt": 1 });
    for (_, purpose) in FAMILIES {
        let path = request_token_path(purpose);
        let (answer, bare) =
            (no.client().post(&path, body.clone()).await, synapse.bare().post(&path, body.clone()).await);
        assert_eq!((answer.status, bytes(&answer)), (400, bytes(&bare)), "{purpose}");
    }
    let answer = no.client().reset_password("new", creds("12345", "secret")).await;
    assert_eq!(answer.json()["error"], "No id_server in creds");
    looked(&no).await;
    assert_eq!(flag(&no).await, None, "a look at the homeserver changes nothing");

    let learnt = homeserver::json("200 OK", r#"{"versions":["r0.6.0"],"unstable_features":{}}"#);
    let homeserver = Homeserver::answering(learnt).await;
    let yes = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), says("yes")).await;
    looked(&yes).await;
    assert_eq!(flag(&yes).await, Some(false));
    let answer = yes.client().post(&request_token_path("register"), json!({})).await;
    assert_eq!(answer.verdict(), (400, "M_MISSING_PARAM".into()), "the shim's own routes are in force");
}

#[tokio::test]
async fn a_look_at_the_homeserver_that_was_overtaken_by_a_later_one_is_not_believed() {
    let (number, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let held = Arc::clone(&late);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let (number, held) = (Arc::clone(&number), Arc::clone(&held));
        async move {
            while conversation.request().await.is_some() {
                // The first look is the shim's own at its start; the second is slow, and the only one to see r0.6.0.
                let second = number.fetch_add(1, Ordering::SeqCst) == 1;
                if second {
                    held.acquire().await.unwrap().forget();
                }
                let version = if second { "r0.6.0" } else { "r0.5.0" };
                conversation.write(homeserver::json("200 OK", &format!(r#"{{"versions":["{version}"]}}"#))).await;
            }
        }
    })
    .await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    homeserver.received(1).await;
    let admin = Client::of(&shim.admin);
    let slow = tokio::spawn(async move { admin.get("/readyz").await });
    homeserver.received(2).await;
    assert_eq!(looked(&shim).await.status, 200);
    late.add_permits(1);
    assert_eq!(slow.await.unwrap().text(), "ready\n");
    assert_eq!(flag(&shim).await, Some(false));
}

#[tokio::test]
async fn what_the_homeserver_learns_or_forgets_is_noticed() {
    let learnt = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&learnt);
    let homeserver = Homeserver::with(move |_| {
        let versions = if now.load(Ordering::SeqCst) { r#"["r0.6.0"]"# } else { r#"["r0.6.1","v1.11"]"# };
        homeserver::json("200 OK", &format!(r#"{{"versions":{versions}}}"#))
    })
    .await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    for (knows, handled) in [(false, true), (true, false), (false, true)] {
        learnt.store(knows, Ordering::SeqCst);
        let ready = looked(&shim).await;
        assert_eq!((ready.status, ready.text().contains("learnt")), (200, knows));
        let answer = shim.client().post(&request_token_path("register"), json!({})).await;
        assert_eq!(answer.status == 400, handled, "{}", answer.text());
        assert_eq!(flag(&shim).await, handled.then_some(false));
    }
}
