//! What the operator sees: health, readiness, metrics, one line a request; and how the binary starts and ends.

mod ending;

use serde_json::{Value, json};

use crate::client::{Client, PASSWORD, creds};
use crate::homeserver::{self, Homeserver};
use crate::legacy::{legacy, unique};
use crate::process::Process;
use crate::secure::{API, Caller, as_synapse, call};
use crate::shim::{Reserved, Shim, Wanted, link_of};
use ending::gone;

fn old() -> Vec<u8> {
    homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_shell_asks_the_binary_whether_it_is_alive() {
    let homeserver = Homeserver::answering(old()).await;
    let shim = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let config = shim.config_file();
    let check = |config: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
        let said = command.arg("healthcheck").arg("--config").arg(config).output().unwrap();
        (said.status.code().unwrap(), String::from_utf8(said.stderr).unwrap())
    };
    assert_eq!(check(&config), (0, String::new()));
    // Faulty since the start: the shim serves as it did.
    let text = std::fs::read_to_string(&config).unwrap();
    for fault in ["nonsense = 1", "format = 1", "this is no TOML"] {
        std::fs::write(&config, text.replace("format = \"json\"", fault)).unwrap();
        assert_eq!(check(&config), (0, String::new()), "{fault}");
    }
    std::fs::write(&config, text.replace("admin = [", "admin = 5 # [")).unwrap();
    let (code, said) = check(&config);
    assert_eq!(code, 78);
    assert!(said.contains("listen.admin"), "{said}");
    std::fs::write(&config, text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("shim.toml");
    std::fs::copy(&config, &alone).unwrap();
    let door = shim.admin.clone();
    drop(shim);
    let (code, said) = check(&alone);
    assert_eq!(code, 1);
    assert!(said.contains(&format!("nobody answers at {door}, the first of listen.admin")), "{said}");
    let homeserver = Homeserver::answering(homeserver::json("503 Unavailable", "{}")).await;
    let text = std::fs::read_to_string(&alone).unwrap().replace(&door, &homeserver.address.to_string());
    std::fs::write(&alone, text).unwrap();
    let (code, said) = check(&alone);
    assert_eq!(code, 1);
    assert!(said.contains("not as a shim that is well: HTTP/1.1 503"), "{said}");
}

#[tokio::test]
async fn ready_is_while_the_homeserver_answers_and_alive_is_always() {
    let homeserver = Homeserver::answering(old()).await;
    let address = homeserver.address;
    let shim = Shim::before(&address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    let admin = Client::of(&shim.admin);
    let states = async || (admin.get("/healthz").await.status, admin.get("/readyz").await.status);
    assert_eq!(states().await, (200, 200));
    drop(homeserver);
    gone(address).await;
    assert_eq!(states().await, (200, 503));
    let broken = Homeserver::at(address, |_| homeserver::json("500 Error", "{}")).await;
    assert_eq!(states().await, (200, 503));
    drop(broken);
    gone(address).await;
    let _back = Homeserver::at(address, |_| old()).await;
    assert_eq!(states().await, (200, 200));
    assert_eq!(admin.get("/nowhere").await.status, 404);
    assert_eq!(admin.send("POST", "/readyz", b"").await.status, 404);
    assert_eq!(shim.client().get("/healthz").await.json()["versions"][0], "r0.5.0", "not on the client door");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_flow_is_counted() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    let (client, name, secret) = (shim.client(), unique("metrics"), unique("secret"));
    let sid = shim.verify("register", &format!("{name}@example.org"), &secret).await;
    client.register(&name, creds(&sid, &secret)).await.ok();
    client.register(&unique("other"), creds(&sid, &secret)).await;
    client.request_token("register", "no address", &secret, 1).await;
    client.get("/_matrix/client/r0/nowhere").await;
    let answer = Client::of(&shim.admin).get("/metrics").await;
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let metrics = answer.text();
    let mut rows = 0;
    for line in [
        r#"intercepted_requests_total{route="register.email",outcome="relayed"} 1"#,
        r#"intercepted_requests_total{route="register.email",outcome="refused"} 1"#,
        r#"intercepted_requests_total{route="confirm",outcome="relayed"} 2"#,
        r#"intercepted_requests_total{route="complete.register",outcome="relayed"} 1"#,
        r#"intercepted_requests_total{route="complete.register",outcome="refused"} 1"#,
        r#"intercepted_request_duration_seconds_count{route="register.email",outcome="relayed"} 1"#,
        r#"deliveries_total{medium="email",outcome="delivered"} 1"#,
        "delivery_duration_seconds_count{medium=\"email\"} 1",
        r#"forwarded_requests_total{status="4xx"} 1"#,
        "homeserver_needs_shim 1",
        r#"sessions_begun_total{purpose="register",medium="email"} 1"#,
        r#"sessions_validated_total{purpose="register",medium="email"} 1"#,
        r#"sessions_consumed_total{purpose="register",medium="email"} 1"#,
        r#"intercepted_failures_total{route="register.email",fault="client"} 1"#,
        r#"intercepted_failures_total{route="register.email",fault="homeserver"} 0"#,
        r#"refusals_total{route="register.email",errcode="M_INVALID_PARAM"} 1"#,
        r#"limits_reached_total{limit="request_token_per_ip"} 0"#,
        r#"store_info{kind="memory"} 1"#,
        "homeserver_up 1",
        "homeserver_unreachable_total 0",
        "panics_total 0",
    ] {
        assert!(metrics.contains(&format!("\nthreepid_shim_{line}\n")), "{line} is not in\n{metrics}");
        rows += 1;
    }
    assert_eq!(rows, 21);
}

#[tokio::test]
async fn a_port_in_use_is_named_and_ends_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let process = Process::start("127.0.0.1:9", taken.try_clone().unwrap(), "");
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(1));
    assert!(log.contains(&format!("cannot listen on {address}")) && log.contains("Address already in use"), "{log}");
}

/// The fields that config/README.md names under `[log]`.
#[track_caller]
fn line_of(line: &Value) -> (String, String, String, String, String) {
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    assert!(line["ms"].is_u64() && line["status"].is_u64(), "{line}");
    assert_eq!(text("request_id").len(), 16, "{line}");
    (text("route"), text("outcome"), text("errcode"), text("fault"), text("medium"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_intercepted_request_is_one_line_and_one_id_ties_call_mail_and_click_together() {
    let synapse = legacy("1.3.1");
    let process = Process::start(&synapse.address, synapse.door(), "").serving().await;
    let (client, name, secret) = (process.client(), unique("operations"), unique("very-secret"));
    let email = format!("{name}@example.org");
    let sid = client.request_token("register", &email, &secret, 1).await.sid();
    assert_eq!(client.register(&name, creds(&sid, &secret)).await.status, 401);
    let mail = process.outbox().pop().unwrap();
    let link = link_of(&mail);
    client.click(&link).await;
    let login = client.register(&name, creds(&sid, &secret)).await.ok();
    assert_eq!(client.add_3pid(creds(&sid, &secret)).await.status, 400);
    assert_eq!(client.request_token("register", &email, &unique("secret"), 1).await.errcode(), "M_THREEPID_IN_USE");
    assert_eq!(client.request_token("account/3pid", "no address", &secret, 1).await.status, 400);
    let msisdn = "/_matrix/client/r0/account/password/msisdn/requestToken";
    assert_eq!(client.post(msisdn, json!({ "client_secret": "s" })).await.status, 400);
    client.get("/_matrix/client/versions").await;
    client.login(&email, PASSWORD).await.ok();

    let rows = [
        ("register.email", "relayed", "", "none", "email", true),
        ("complete.register", "relayed", "M_UNAUTHORIZED", "client", "email", true),
        ("confirm", "relayed", "", "none", "email", true),
        ("confirm", "relayed", "", "none", "email", true),
        ("complete.register", "relayed", "", "none", "email", true),
        ("complete.account_3pid", "refused", "M_THREEPID_AUTH_FAILED", "client", "email", true),
        ("register.email", "relayed", "M_THREEPID_IN_USE", "client", "email", false),
        ("account_3pid.email", "refused", "M_INVALID_PARAM", "client", "email", false),
        ("password.msisdn", "refused", "M_THREEPID_MEDIUM_NOT_SUPPORTED", "client", "msisdn", false),
    ];
    process.logged(|line| line["route"] == "password.msisdn").await;
    let lines: Vec<_> = process.lines().into_iter().filter(|line| line["message"] == "intercepted").collect();
    assert_eq!(lines.len(), rows.len(), "one line a request, and none for what is forwarded: {lines:#?}");
    for (line, (route, outcome, errcode, fault, medium, ours)) in lines.iter().zip(rows) {
        let expected = [route, outcome, errcode, fault, medium].map(str::to_owned).into();
        assert_eq!(line_of(line), expected, "{line}");
        assert_eq!(line["sid"].as_str(), ours.then_some(sid.as_str()), "{line}");
    }
    let id = lines[0]["request_id"].as_str().unwrap();
    assert!(mail.contains(&format!("\r\nMessage-ID: <{id}.")), "{id} is not in\n{mail}");
    let clicked = process.logged(|line| line["mailed_by"] == id).await;
    assert_eq!(clicked["request_id"], lines[3]["request_id"], "the click's own line");
    assert_eq!((clicked["sid"].as_str(), clicked["first"].as_bool()), (Some(sid.as_str()), Some(true)));
    process.logged(|line| line["request_id"] == id && line["message"] == "mail written to the outbox").await;
    process.logged(|line| line["request_id"] == id && line["message"] == "the homeserver asked for a message").await;

    let (log, token) = (process.log(), link.split("token=").nth(1).unwrap().split('&').next().unwrap());
    for private in [&email, &secret, token, login["access_token"].as_str().unwrap(), PASSWORD, "example.org/", "?sid="]
    {
        assert!(!log.contains(private), "{private} is in\n{log}");
    }
}

/// [Trace Context](https://www.w3.org/TR/trace-context/): the shim is no hop of a trace, and cuts none.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_byte_for_byte_whatever_is_done_with_its_request_and_is_named_in_the_requests_line() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let door = Reserved::new(1).take();
    let caller = Caller::start(&door, as_synapse, |request, said| match said {
        Some(said) if request.line().contains("/requestToken") => homeserver::json("200 OK", &said.text()),
        _ if request.line().contains("/versions") => old(),
        _ => homeserver::json("200 OK", "{}"),
    })
    .await;
    let by_itself = ["env", "THREEPID_SHIM__IDENTITY__ACCEPT_UNANNOUNCED=true"];
    let shim = Process::under(&by_itself, &caller.address(), door, "").serving().await;
    let parent = format!("00-{TRACE}-0123456789012345-01");
    let states = ["rojo=0123456789012345,  Congo@x=t61rcWkgMzE=;p:8", "second=!~"];
    let client = shim.client().with("TraceParent", &parent).with("tracestate", states[0]).with("tracestate", states[1]);
    let sid = client.request_token("register", "a@example.org", "secret", 1).await.sid();
    client.click(&link_of(&shim.outbox().pop().unwrap())).await;
    client.register("a", creds(&sid, "secret")).await.ok();
    client.call("account/3pid", json!({"three_pid_creds": {"sid": "1", "client_secret": "s", "id_server": "x"}})).await;
    client.call("register/email/requestToken", json!({"id_server": "x", "id_access_token": "y"})).await;
    client.call("delete_devices", json!({})).await;
    client.get("/_matrix/client/versions").await;
    client.get("/_matrix/client/r0/login").await;
    client.clone().with("Expect", "100-continue").call("login", json!({})).await;
    let requests: Vec<_> = caller
        .homeserver
        .requests()
        .into_iter()
        .filter(|request| request.field("host") != Some("localhost".into()))
        .collect();
    let mut seen: Vec<_> = requests.iter().map(|request| request.line().replace("/_matrix/client/", "")).collect();
    for request in &requests {
        assert_eq!(
            (request.all("traceparent"), request.all("tracestate")),
            (vec![parent.clone()], states.map(str::to_owned).to_vec())
        );
    }
    seen.sort();
    let expected = [
        "GET r0/login HTTP/1.1",
        "GET versions HTTP/1.1",
        "POST r0/account/3pid HTTP/1.1",
        "POST r0/delete_devices HTTP/1.1",
        "POST r0/login HTTP/1.1",
        "POST r0/register HTTP/1.1",
        "POST r0/register/email/requestToken HTTP/1.1",
        "POST r0/register/email/requestToken HTTP/1.1",
    ];
    assert_eq!(seen, expected);
    shim.logged(|line| line["route"] == "complete.other").await;
    let lines: Vec<_> = shim.lines().into_iter().filter(|line| line["message"] == "intercepted").collect();
    assert!(lines.len() == 7 && lines.iter().all(|line| line["trace_id"] == TRACE), "{lines:#?}");

    // The homeserver's own, at the identity door.
    let asked = [
        (
            "email/requestToken",
            "application/json",
            r#"{"client_secret":"own","email":"b@example.org","send_attempt":1}"#,
        ),
        ("msisdn/submitToken", "application/x-www-form-urlencoded", "sid=shim_0&client_secret=own&token=1"),
    ];
    for (path, kind, body) in asked {
        let kind = format!("{kind}\r\nTraceparent: {parent}");
        call(&caller.door, "POST", &format!("{API}validate/{path}"), &kind, body).await;
    }
    shim.logged(|line| line["route"] == "delegated.submit_token").await;
    let of_both = shim.lines().into_iter().filter(|line| line["message"] == "the homeserver asked by itself");
    let said: Vec<_> = of_both.map(|line| (line["route"].clone(), line["trace_id"].clone())).collect();
    let expected = ["delegated.email", "delegated.submit_token"].map(|route| (json!(route), json!(TRACE)));
    assert_eq!(said, expected);
}
