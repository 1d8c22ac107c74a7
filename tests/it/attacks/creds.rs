//! Creds written so that the shim reads one thing and the homeserver another.

use serde_json::{Value, json};

use super::naive::Naive;
use super::{logged_in, never_do, roomy};
use crate::client::Answer;
use crate::legacy::{VERSIONS, legacy, unique};

/// What Synapse makes of a sid that is no string: `urlencode(..., doseq=True)` unpacks it.
#[tokio::test(flavor = "multi_thread")]
async fn p2_1_a_sid_in_a_list_or_an_object_is_a_sid_to_the_homeserver() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let naive = Naive::of(synapse, "x@example.org");
        for sid in [json!(["18"]), json!({ "18": 1 }), json!("18"), json!(18)] {
            let mut creds = naive.creds();
            creds["sid"] = sid.clone();
            logged_in(&synapse.bare()).await.add_3pid(creds).await.ok();
            let heard = naive.heard().pop().unwrap();
            assert!(heard.contains("sid=18&") || heard.contains("sid=18 "), "{version} {sid}: {heard}");
        }
    }
}

/// Where creds stand, with `CREDS` in their place.
const PLACES: [&str; 12] = [
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepid_creds":CREDS}}"#,
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepid_creds":[CREDS]}}"#,
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepidCreds":CREDS}}"#,
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepidCreds":[CREDS]}}"#,
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepid\u005fcreds":CREDS}}"#,
    r#"{"new_password":"stolen","\u0061uth":{"type":"m.login.email.identity","threepid_creds":CREDS}}"#,
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepid_creds":{"sid":"17","client_secret":"s"},"threepid_creds":CREDS}}"#,
    r#"{"new_password":"stolen","auth":{"type":"m.login.email.identity","threepid_creds":CREDS,"threepidCreds":{"sid":"17","client_secret":"s"}}}"#,
    r#"{"new_password":"stolen","auth":{},"auth":{"type":"m.login.email.identity","threepid_creds":CREDS}}"#,
    r#"{"three_pid_creds":CREDS}"#,
    r#"{"threePidCreds":CREDS,"bind":true}"#,
    r#"{"three_pid_creds":{"sid":"17","client_secret":"s"},"threePidCreds":CREDS}"#,
];

/// How creds say `SID`, `SECRET` and our own name.
const SPELLINGS: [&str; 18] = [
    r#"{"sid":"SID","client_secret":"SECRET"}"#,
    r#"{"sid":"SID","client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":"SID","clientSecret":"SECRET","idServer":"US"}"#,
    r#"{"sid":"SID","client_secret":"SECRET","idServer":"US","id_server":"localhost:1"}"#,
    r#"{"s\u0069d":"SID","client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":"\u0073him_TAIL","client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":["SID"],"client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":[["SID"]],"client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":{"SID":1},"client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":"SID","client_secret":["SECRET"],"id_server":"US"}"#,
    r#"{"sid":"SID","client_secret":{"SECRET":1},"id_server":"US"}"#,
    r#"{"sid":"17","sid":"SID","client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":"%73him_TAIL","client_secret":"SECRET","id_server":"US"}"#,
    r#"{"sid":"17&sid=SID","client_secret":"SECRET","id_server":"US"}"#,
    r#"{"Id_Server":"x.example","idServer":"US","sid":["SID"],"client_secret":"SECRET"}"#,
    r#"{"ID_SERVER":"","idServer":"US","sid":{"SID":1},"client_secret":"SECRET"}"#,
    r#"{"sid":["SID"],"client_secret":"SECRET","id_server":"x.example"}"#,
    r#"{"Id_Server":"x.example","idServer":"US","sid":"%73him_TAIL","client_secret":"SECRET"}"#,
];

/// A session validated for registering, in every spelling and shape, on the two paths where it must not be used. Nothing
/// of it may reach the homeserver: it would ask the identity door, and be told yes while the session is reserved.
#[tokio::test(flavor = "multi_thread")]
async fn p2_1_s4_30_no_spelling_of_creds_gets_a_session_past_its_purpose() {
    for version in VERSIONS {
        let shim = roomy(legacy(version)).await;
        let secret = unique("secret");
        let sid = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
        let user = logged_in(&shim.client()).await;
        let mut ran = 0;
        for place in PLACES {
            for spelling in SPELLINGS {
                let creds = spelling
                    .replace("SID", &sid)
                    .replace("TAIL", sid.trim_start_matches("shim_"))
                    .replace("SECRET", &secret)
                    .replace("US", &shim.identity);
                let body = place.replace("CREDS", &creds);
                let (client, path) = if place.contains("auth") {
                    (shim.client(), "account/password")
                } else {
                    (user.clone(), "account/3pid")
                };
                let answer = client.send("POST", &format!("/_matrix/client/r0/{path}"), body.as_bytes()).await;
                assert!(refused(&answer), "{version} {body}: {}", answer.text());
                ran += 1;
            }
        }
        assert_eq!(ran, 216);
        shim.client().register(&unique("name"), crate::client::creds(&sid, &secret)).await.ok();
    }
}

fn refused(answer: &Answer) -> bool {
    answer.verdict() == never_do() || answer.verdict() == (400, "M_BAD_JSON".into())
}

/// Synapse knows two spellings of whom creds name, and reads the second when the first is written in another case.
#[tokio::test(flavor = "multi_thread")]
async fn p2_1_a_name_in_another_case_hides_from_the_homeserver_and_not_from_us() {
    let synapse = legacy("1.3.1");
    let naive = Naive::of(synapse, "x@example.org");
    let hidden = json!({ "Id_Server": "x.example", "idServer": naive.name, "sid": ["18"], "client_secret": "s" });
    logged_in(&synapse.bare()).await.add_3pid(hidden.clone()).await.ok();
    assert!(naive.heard().pop().unwrap().contains("sid=18&"), "it asks whom the second names, and unpacks the sid");
    let shim = roomy(synapse).await;
    let user = logged_in(&shim.client()).await;
    assert_eq!(user.add_3pid(hidden).await.verdict(), never_do());
    let named_twice = json!({ "id_server": "x.example", "idServer": "y.example", "sid": "18", "client_secret": "s" });
    assert_eq!(user.add_3pid(named_twice).await.verdict(), never_do());
    let mut once = naive.creds();
    once["idServer"] = once["id_server"].clone();
    user.add_3pid(once).await.ok();
}

/// Each of them would be looked for in the store.
#[tokio::test(flavor = "multi_thread")]
async fn s4_28_a_body_with_more_than_eight_creds_is_refused() {
    let shim = roomy(legacy("1.3.1")).await;
    let user = logged_in(&shim.client()).await;
    for (count, verdict) in
        [(8, (400, "M_THREEPID_AUTH_FAILED")), (9, (400, "M_BAD_JSON")), (25_000, (400, "M_BAD_JSON"))]
    {
        let mut all: Vec<_> = (0..count).map(|n| json!({ "sid": n, "client_secret": "s" })).collect();
        let first = all.pop().unwrap();
        let body = json!({ "three_pid_creds": first, "threepidCreds": all });
        let answer = user.post("/_matrix/client/r0/account/3pid", body).await;
        assert_eq!(answer.verdict(), (verdict.0, verdict.1.to_owned()), "{count}");
    }
}

/// A client that names our identity door itself, with somebody else's sid and without his secret.
#[tokio::test(flavor = "multi_thread")]
async fn p4_6_anothers_sid_without_his_secret_is_as_good_as_none() {
    let shim = roomy(legacy("1.3.1")).await;
    let secret = unique("secret");
    let sid = shim.verify("account/3pid", &format!("{secret}@example.org"), &secret).await;
    let thief = logged_in(&shim.client()).await;
    let unknown = format!("shim_{}", "0".repeat(32));
    let mut bodies = Vec::new();
    for (sid, secret) in [(sid.as_str(), "guess"), (unknown.as_str(), secret.as_str()), (unknown.as_str(), "guess")] {
        for id_server in [Value::Null, json!(shim.identity)] {
            let answer = thief.add_3pid(json!({ "sid": sid, "client_secret": secret, "id_server": id_server })).await;
            assert_eq!(answer.verdict(), never_do());
            bodies.push(answer.text());
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "s4_36: unknown sid and wrong secret are one answer");
}
