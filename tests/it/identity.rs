//! The identity door: what a homeserver is told, who may come, and that its verdict is the client's answer.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Answer, creds};
use crate::homeserver::{self, Homeserver, Raw};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::process::Process;
use crate::secure::{API, Caller, FORM, JSON, as_dendrite, as_synapse, call, get_validated_3pid};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

/// The homeserver says what the identity door told.
fn relay(_: &Raw, told: Option<&Answer>) -> Vec<u8> {
    told.map_or_else(
        || homeserver::json("401 Unauthorized", "{}"),
        |told| homeserver::json(&format!("{} X", told.status), &told.text()),
    )
}

async fn shim_and_caller(
    wanted: Wanted,
    write: fn(&Value) -> (&'static str, String),
    answer: impl Fn(&Raw, Option<&Answer>) -> Vec<u8> + Send + Sync + 'static,
) -> (Shim, Caller) {
    let doors = Reserved::new(1);
    let door = doors.take();
    let caller = Caller::start(&door, write, answer).await;
    (Shim::before(&caller.address(), door, wanted).await, caller)
}

/// Ours, but for the number, which old libraries write as a string.
fn as_synapse_with_a_string(client: &Value) -> (&'static str, String) {
    let mut body = client.clone();
    body["send_attempt"] = client["send_attempt"].to_string().into();
    as_synapse(&body)
}

#[tokio::test]
async fn a_callback_is_read_as_synapse_and_as_dendrite_write_it() {
    for write in [as_synapse, as_synapse_with_a_string, as_dendrite] {
        let (shim, caller) = shim_and_caller(Wanted::config(ROOMY), write, relay).await;
        let answer = shim.client().request_token("register", "a+b@example.org", "s.=_-:", 3).await;
        let sid = answer.sid();
        assert_eq!(caller.told()[0].clone().ok(), json!({ "sid": sid }));
        assert!(shim.link(&sid).contains("/threepid_shim/register/"), "the purpose is the note's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_all_refused_and_few_lines_of_the_log() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let door = Reserved::new(1).take();
    let name = format!("localhost:{}", door.local_addr().unwrap().port());
    let nobody = ["env", "THREEPID_SHIM__IDENTITY__ALLOWED_PEERS=192.0.2.0/24"];
    let process = Process::under(&nobody, &homeserver.address.to_string(), door, "").serving().await;
    for _ in 0..50 {
        assert_eq!(get_validated_3pid(&name, "sid", "secret").await.verdict(), (403, "M_FORBIDDEN".into()));
    }
    let strange = |line: &Value| line["message"].as_str().is_some_and(|said| said.contains("identity.allowed_peers"));
    assert_eq!(process.logged(strange).await["times"], 1);
    let lines = process.lines().into_iter().filter(strange).count();
    assert!(lines <= 3, "{lines} lines for 50 requests");
}

#[tokio::test]
async fn no_mail_leaves_for_a_callback_that_no_request_in_flight_asked_for() {
    fn other_attempt(client: &Value) -> (&'static str, String) {
        let mut body = client.clone();
        body["send_attempt"] = 2.into();
        as_synapse(&body)
    }
    fn other_secret(client: &Value) -> (&'static str, String) {
        let mut body = client.clone();
        body["client_secret"] = "other".into();
        as_synapse(&body)
    }
    fn other_address(client: &Value) -> (&'static str, String) {
        let mut body = client.clone();
        body["email"] = "b@example.org".into();
        as_synapse(&body)
    }
    let forbidden = (403, "M_FORBIDDEN".to_owned());
    for write in [other_attempt, other_secret, other_address] {
        let (shim, caller) = shim_and_caller(Wanted::config(ROOMY), write, relay).await;
        let answer = shim.client().request_token("register", "a@example.org", "secret", 1).await;
        assert_eq!((answer.verdict(), caller.told()[0].verdict()), (forbidden.clone(), forbidden.clone()));
        assert_eq!(shim.outbox(), Vec::<String>::new());
    }
    let (shim, caller) = shim_and_caller(Wanted::config(ROOMY), as_synapse, relay).await;
    let body = json!({ "client_secret": "secret", "email": "a@example.org", "send_attempt": 1 }).to_string();
    let target = format!("{API}validate/email/requestToken");
    let post = async || call(&caller.door, "POST", &target, JSON, &body).await.verdict();
    assert_eq!(post().await, forbidden, "before any request");
    shim.client().request_token("register", "a@example.org", "secret", 1).await.sid();
    assert_eq!(post().await, forbidden, "after it");
    assert_eq!(shim.outbox().len(), 1);
}

#[tokio::test]
async fn the_front_answers_with_the_identity_doors_verdict_whatever_the_homeserver_made_of_it() {
    let broken = |_: &Raw, _: Option<&Answer>| homeserver::json("500 Error", r#"{"errcode":"M_UNKNOWN","error":"oh"}"#);
    let refused = Fault::reply(At::Rcpt, "550 5.1.1 no such user");
    let mailbox = Mailbox::start(Script::clear().first(refused)).await;
    let limits = "[limits]\nrequest_token_per_address = \"1/1h\"\n";
    let wanted = Wanted::config(limits).mailing_to(mailbox.address());
    let (shim, caller) = shim_and_caller(wanted, as_dendrite, broken).await;
    let ask = async |secret: &str| shim.client().request_token("account/3pid", "a@example.org", secret, 1).await;

    let unsent = ask("one").await;
    assert_eq!(unsent.verdict(), (400, "M_EMAIL_SEND_ERROR".into()));
    let sent = ask("two").await;
    assert_eq!(sent.header("content-type"), Some("application/json"));
    let sid = sent.sid();
    assert_eq!(caller.told()[1].clone().sid(), sid);
    assert!(mailbox.wait_for_mail().await.link().contains(&sid));
    let limited = ask("three").await;
    assert_eq!(limited.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert_eq!(limited.json()["retry_after_ms"], 3_600_000);
    assert_eq!(limited.header("retry-after"), Some("3600"));
    assert_eq!(limited.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn the_verdict_is_the_answer_also_when_the_homeserver_hangs_up_after_its_callback() {
    let doors = Reserved::new(1);
    let door = doors.take();
    let name = format!("localhost:{}", door.local_addr().unwrap().port());
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let name = name.clone();
        async move {
            let Some(request) = conversation.request().await else { return };
            if request.line().contains("/requestToken") {
                let (kind, body) = as_synapse(&request.json());
                call(&name, "POST", &format!("{API}validate/email/requestToken"), kind, &body).await;
            }
            conversation.reset();
        }
    })
    .await;
    let shim = Shim::before(&homeserver.address.to_string(), door, Wanted::default()).await;
    let sid = shim.client().request_token("register", "a@example.org", "secret", 1).await.sid();
    assert!(shim.link(&sid).contains(&sid));
}

#[tokio::test]
async fn a_homeserver_that_answers_without_a_callback_is_relayed_untouched() {
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nX-Own: 1\r\nContent-Length: 24\r\n\r\n{\"sid\" : \"xyz\", \"a\":1.0}",
        b"HTTP/1.1 403 No\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n<p>No</p>",
        b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 30\r\n\r\n{\"errcode\":\"M_LIMIT_EXCEEDED\"}",
    ];
    for bytes in answers {
        let homeserver = Homeserver::answering(bytes).await;
        let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
        let answer = shim.client().request_token("register", "a@example.org", "secret", 1).await;
        let expected = crate::client::parse(bytes);
        assert_eq!((answer.status, &answer.body), (expected.status, &expected.body));
        for (name, value) in &expected.headers {
            assert_eq!(answer.header(name), Some(value.as_str()), "{name}");
        }
    }
}

#[tokio::test]
async fn a_validated_address_is_told_only_while_its_owners_request_is_on_its_way() {
    let (shim, caller) = shim_and_caller(Wanted::config(ROOMY), as_synapse, relay).await;
    let client = shim.client();
    let sid = client.request_token("register", "A@Example.org", "secret", 1).await.sid();
    let pending = json!("M_SESSION_NOT_VALIDATED");
    let ask = async |sid: &str, secret: &str| get_validated_3pid(&caller.door, sid, secret).await.ok();
    assert_eq!(ask(&sid, "secret").await["errcode"], pending, "not clicked");
    assert_eq!(client.register("a", creds(&sid, "secret")).await.ok()["errcode"], pending);
    assert_eq!(client.click(&shim.link(&sid)).await.status, 200);
    assert_eq!(ask(&sid, "secret").await["errcode"], pending, "nobody completes anything with it now");

    let told = client.register("a", creds(&sid, "secret")).await.ok();
    assert_eq!((&told["medium"], &told["address"]), (&json!("email"), &json!("a@example.org")));
    assert!(told["validated_at"].as_u64().unwrap() > 1_500_000_000_000, "milliseconds: {told}");
    assert_eq!(told.as_object().unwrap().len(), 3);
    let unknown = format!("shim_{}", "0".repeat(sid.len() - 5));
    for (sid, secret) in [(sid.as_str(), "other"), (&unknown, "secret"), ("4711", "secret"), ("", ""), (&sid, "%20")] {
        let told = ask(sid, secret).await;
        assert!(
            ["M_SESSION_NOT_VALIDATED", "M_NO_VALID_SESSION"].contains(&told["errcode"].as_str().unwrap()),
            "{told}"
        );
        assert!(told.get("address").is_none() && told["error"].is_string());
    }
    for query in
        ["sid=x&sid=y&client_secret=s", "sid=x&client_secret=s&client_secret=t", "sid=x&client_secret=s&x=1&x=2"]
    {
        let answer = call(&caller.door, "GET", &format!("{API}3pid/getValidated3pid?{query}"), "", "").await;
        assert_eq!(answer.verdict(), (400, "M_INVALID_PARAM".into()), "{query}");
    }
}

#[tokio::test]
async fn bind_is_answered_only_while_a_completion_with_a_validated_session_is_on_its_way() {
    // As Synapse 1.3.1 writes it, and as 0.99 does.
    for (kind, write) in [
        (
            JSON,
            (|sid| json!({ "sid": sid, "client_secret": "secret", "mxid": "@a:b" }).to_string()) as fn(&str) -> String,
        ),
        (FORM, |sid| format!("sid={sid}&client_secret=secret&mxid=%40a%3Ab")),
    ] {
        let doors = Reserved::new(1);
        let door = doors.take();
        let name = format!("localhost:{}", door.local_addr().unwrap().port());
        let at = name.clone();
        let homeserver = Homeserver::scripted(move |mut conversation| {
            let at = at.clone();
            async move {
                while let Some(request) = conversation.request().await {
                    let told = if request.line().contains("/requestToken") {
                        let (kind, body) = as_synapse(&request.json());
                        call(&at, "POST", &format!("{API}validate/email/requestToken"), kind, &body).await
                    } else if request.line().contains("/register") {
                        let sid = request.json()["auth"]["threepid_creds"]["sid"].as_str().unwrap().to_owned();
                        call(&at, "POST", &format!("{API}3pid/bind"), kind, &write(&sid)).await
                    } else {
                        crate::client::parse(&homeserver::json("404 Not Found", "{}"))
                    };
                    conversation.write(relay(&request, Some(&told))).await;
                }
            }
        })
        .await;
        let shim = Shim::before(&homeserver.address.to_string(), door, Wanted::default()).await;
        let client = shim.client();
        let sid = client.request_token("register", "a@example.org", "secret", 1).await.sid();
        assert_eq!(client.register("a", creds(&sid, "secret")).await.status, 400, "not validated");
        client.click(&shim.link(&sid)).await;
        let bound = client.register("a", creds(&sid, "secret")).await.ok();
        assert_eq!(
            (&bound["medium"], &bound["address"], &bound["mxid"]),
            (&json!("email"), &json!("a@example.org"), &json!("@a:b"))
        );
        let later = call(&name, "POST", &format!("{API}3pid/bind"), kind, &write(&sid)).await;
        assert_eq!(later.verdict(), (400, "M_SESSION_NOT_VALIDATED".into()), "nothing is on its way");
    }
}

#[tokio::test]
async fn everything_else_is_not_there_and_unbind_says_so_with_404() {
    let (_shim, caller) = shim_and_caller(Wanted::default(), as_synapse, relay).await;
    let mut rows = 0;
    for (method, path) in [
        ("POST", "/_matrix/identity/api/v1/3pid/unbind"),
        ("GET", "/_matrix/identity/api/v1/3pid/bind"),
        ("POST", "/_matrix/identity/api/v1/3pid/getValidated3pid"),
        ("GET", "/_matrix/identity/api/v1/validate/email/requestToken"),
        ("POST", "/_matrix/identity/api/v1/validate/email/submitToken"),
        ("GET", "/_matrix/identity/api/v1/lookup?medium=email&address=a%40example.org"),
        ("POST", "/_matrix/identity/api/v1/bulk_lookup"),
        ("POST", "/_matrix/identity/api/v1/store-invite"),
        ("GET", "/_matrix/identity/api/v1/pubkey/isvalid"),
        ("GET", "/_matrix/identity/api/v1/"),
        ("POST", "/_matrix/identity/api/v1/../v1/3pid/bind"),
        ("POST", "/_matrix/identity/api/v1/3pid/bind/"),
        ("POST", "/_matrix/identity/v2/3pid/unbind"),
        ("GET", "/_matrix/client/versions"),
        ("POST", "/_matrix/client/r0/register/email/requestToken"),
        ("GET", "/metrics"),
        ("GET", "/"),
    ] {
        let answer = call(&caller.door, method, path, JSON, "{}").await;
        assert_eq!(answer.verdict(), (404, "M_UNRECOGNIZED".into()), "{method} {path}");
        rows += 1;
    }
    assert_eq!(rows, 17);
}

#[tokio::test]
async fn a_peer_that_is_not_listed_is_refused_on_every_path() {
    let wanted = Wanted { identity: "allowed_peers = [\"192.0.2.0/24\"]".into(), ..Wanted::default() };
    let (shim, caller) = shim_and_caller(wanted, as_synapse, relay).await;
    let answer = shim.client().request_token("register", "a@example.org", "secret", 1).await;
    assert_eq!(caller.told()[0].verdict(), (403, "M_FORBIDDEN".into()));
    assert_eq!((answer.status, shim.outbox().len()), (403, 0));
    for target in [format!("{API}3pid/getValidated3pid?sid=x&client_secret=s"), "/".to_owned()] {
        assert_eq!(call(&caller.door, "GET", &target, "", "").await.verdict(), (403, "M_FORBIDDEN".into()));
    }
}

#[tokio::test]
async fn the_identity_door_speaks_https_only() {
    let (_shim, caller) = shim_and_caller(Wanted::default(), as_synapse, relay).await;
    let mut plain = TcpStream::connect(&caller.door).await.unwrap();
    let request = format!("GET {API}3pid/getValidated3pid?sid=x&client_secret=s HTTP/1.1\r\nHost: x\r\n\r\n");
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    plain.read_to_end(&mut bytes).await.ok();
    assert!(!bytes.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&bytes));
}
