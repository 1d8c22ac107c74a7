//! A dry run: what `observe` forwards, and what it counts.

use serde_json::{Value, json};

use crate::client::{Client, creds};
use crate::homeserver::{self, Homeserver};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::secure::{as_synapse, call};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

const FAMILIES: [(&str, &str); 3] =
    [("register", "register"), ("password", "account/password"), ("account_3pid", "account/3pid")];

/// Every route in a dry run.
fn observing() -> Wanted {
    let routes = FAMILIES.map(|(own, _)| format!("{own}.email = \"observe\"\n{own}.msisdn = \"observe\"\n")).concat();
    Wanted::config(&format!("{ROOMY}[routes]\n{routes}"))
}

fn path(purpose: &str, medium: &str) -> String {
    format!("/_matrix/client/r0/{purpose}/{medium}/requestToken")
}

fn ours(medium: &str) -> Value {
    let mut body = json!({ "client_secret": unique("secret"), "send_attempt": 1 });
    if medium == "email" {
        body["email"] = (unique("observed") + "@example.org").into();
    } else {
        body["country"] = "GB".into();
        body["phone_number"] = "07400 123456".into();
    }
    body
}

/// How often a route ended so, in the operator's metrics.
async fn counted(shim: &Shim, route: &str, outcome: &str) -> u64 {
    let metrics = Client::of(&shim.admin).get("/metrics").await.text();
    let labels = [format!("route=\"{route}\""), format!("outcome=\"{outcome}\"")];
    let mut lines = metrics.lines().filter(|line| line.starts_with("threepid_shim_intercepted_requests_total{"));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn what_is_observed_reaches_the_homeserver_unchanged_and_is_counted_by_what_would_be_done() {
    let told = r#"{"errcode":"M_MISSING_PARAM","error":"so says the homeserver"}"#;
    let homeserver = Homeserver::answering(homeserver::json("400 Bad Request", told)).await;
    let wanted = || Wanted { identity: "allowed_peers = [\"127.0.0.0/8\"]".into(), ..observing() };
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted()).await;
    homeserver.received(1).await;
    let named = |name: &str, medium: &str| {
        let mut body = ours(medium);
        body["id_server"] = name.into();
        body["id_access_token"] = "t".into();
        body.to_string()
    };
    let mut rows = 0;
    for (own, purpose) in FAMILIES {
        for medium in ["email", "msisdn"] {
            let table = [
                ("would_handle", ours(medium).to_string()),
                ("would_handle", named("", medium)),
                ("would_handle", named(&shim.identity, medium)),
                ("would_handle", format!(" {} \n", ours(medium))),
                ("would_forward", named("vector.im", medium)),
                ("would_refuse", json!({ "client_secret": "s", "send_attempt": 1 }).to_string()),
                ("would_refuse", json!({ "email": "x", "client_secret": "s", "send_attempt": 1 }).to_string()),
                ("would_refuse", ours(medium).to_string().replacen("send_attempt", "client_secret", 1)),
                ("would_refuse", "no JSON".into()),
                ("would_refuse", "[]".into()),
                ("would_refuse", format!("{}{}", ours(medium), " ".repeat(64 * 1024))),
            ];
            for (outcome, body) in table {
                let route = format!("{own}.{medium}");
                let before = counted(&shim, &route, outcome).await;
                let target = format!("{}?a=b", path(purpose, medium));
                let answer = shim.client().with("X-CaSe", "1").send("POST", &target, body.as_bytes()).await;
                assert_eq!((answer.status, answer.text().as_str()), (400, told), "{target} {body:.200}");
                let request = homeserver.requests().pop().unwrap();
                assert_eq!(request.line(), format!("POST {target} HTTP/1.1"));
                assert!(
                    request.body() == body.as_bytes() && request.head().contains("\r\nX-CaSe: 1\r\n"),
                    "{request:?}"
                );
                assert_eq!(counted(&shim, &route, outcome).await, before + 1, "{route} {outcome} {body:.200}");
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 66);
    assert_eq!(homeserver.requests().len(), rows + 1, "nothing but those, and the look at /versions");
}

#[tokio::test]
async fn a_body_that_cannot_be_looked_into_streams_through_and_an_encoded_one_would_be_refused() {
    let homeserver = Homeserver::answering(homeserver::json("400 Bad Request", "{}")).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), observing()).await;
    homeserver.received(1).await;
    let target = path("register", "email");
    let body = ours("email").to_string();
    shim.client().with("Content-Encoding", "gzip").send("POST", &target, body.as_bytes()).await;
    assert_eq!(counted(&shim, "register.email", "would_refuse").await, 1);
    let head = format!("POST {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunked = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    crate::client::raw(&shim.clients, chunked.as_bytes()).await;
    assert_eq!(counted(&shim, "register.email", "relayed").await, 1, "of unknown length, so of unknown end");
    for request in &homeserver.requests()[1..] {
        assert_eq!(String::from_utf8(request.content()).unwrap(), body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_no_mail_begins_no_session_and_claims_nothing() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(observing()).await;
        let bare = synapse.bare().get("/_matrix/client/versions").await;
        assert_eq!(shim.client().get("/_matrix/client/versions").await.json(), bare.json(), "{version}: no flag");
        for (own, purpose) in FAMILIES {
            let body = ours("email");
            let answer = shim.client().post(&path(purpose, "email"), body.clone()).await;
            let bare = synapse.bare().post(&path(purpose, "email"), body.clone()).await;
            assert_eq!((answer.status, answer.text()), (bare.status, bare.text()), "{version} {purpose}");
            assert_eq!(answer.status, 400, "{version}: it wants an id_server, or knows nobody of that address");
            assert_eq!(counted(&shim, &format!("{own}.email"), "would_handle").await, 1, "{version}");

            let mut named = body.clone();
            named["id_server"] = shim.identity.clone().into();
            let answer = shim.client().post(&path(purpose, "email"), named).await;
            assert_ne!(answer.status, 200, "{version}: by our name, the homeserver asks us in vain: {}", answer.text());
            let (kind, asked) = as_synapse(&body);
            let target = "/_matrix/identity/api/v1/validate/email/requestToken";
            let refused = call(&shim.identity, "POST", target, kind, &asked).await;
            assert_eq!(refused.verdict(), (403, "M_FORBIDDEN".into()), "{version}: nothing is in flight");
        }
        assert_eq!(shim.outbox(), Vec::<String>::new(), "{version}");
        let foreign = json!({ "sid": "17", "client_secret": "x" });
        let (answer, bare) = (
            shim.client().reset_password("new", foreign.clone()).await,
            synapse.bare().reset_password("new", foreign).await,
        );
        assert_eq!(answer.json()["error"], bare.json()["error"], "{version}: creds are not mended either");
        let ours = shim.client().reset_password("new", creds(&format!("shim_{}", "0".repeat(32)), "x")).await;
        assert_eq!(ours.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "{version}: there is no session of ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_route_in_a_dry_run_takes_the_flag_away_and_leaves_the_other_routes() {
    let synapse = legacy("1.3.1");
    for (own, purpose) in FAMILIES {
        for medium in ["email", "msisdn"] {
            let shim = synapse.shim(Wanted::config(&format!("{ROOMY}[routes]\n{own}.{medium} = \"observe\"\n"))).await;
            let features = shim.client().get("/_matrix/client/versions").await.ok()["unstable_features"].clone();
            assert!(features.get("m.require_identity_server").is_none(), "{own}.{medium}: {features}");
            let body = ours(medium);
            let answer = shim.client().post(&path(purpose, medium), body.clone()).await;
            assert_eq!(answer.text(), synapse.bare().post(&path(purpose, medium), body).await.text());
            if (own, medium) != ("register", "email") {
                let sid = shim.client().post(&path("register", "email"), ours("email")).await.sid();
                assert!(sid.starts_with("shim_") && shim.outbox().len() == 1, "{own}.{medium}");
            }
        }
    }
}
