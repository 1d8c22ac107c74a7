//! requestToken without `id_server`: who is asked, what is refused, what the homeserver's own verdict becomes.

mod again;

use serde_json::{Value, json};

use crate::client::{Answer, PASSWORD, creds, request_token_path, target_of};
use crate::flows::registered;
use crate::homeserver;
use crate::legacy::{Legacy, VERSIONS, legacy, unique};
use crate::mailbox::{Mailbox, Script};
use crate::secure::{Caller, as_synapse};
use crate::shim::{ROOMY, Reserved, Shim, Wanted, link_of};

const PURPOSES: [&str; 3] = ["register", "account/password", "account/3pid"];

fn asked(email: &str, client_secret: &str) -> Value {
    json!({ "client_secret": client_secret, "email": email, "send_attempt": 1 })
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

fn bytes(answer: &Answer) -> (u16, String) {
    (answer.status, answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_works_under_every_version_segment_that_the_homeserver_serves() {
    let (mut rows, mut served) = (0, 0);
    for version in VERSIONS {
        let synapse = legacy(version);
        let shim = synapse.shim(Wanted::config(ROOMY)).await;
        let (_, known) = registered(&shim).await;
        for purpose in PURPOSES {
            for segment in ["r0", "unstable", "v2_alpha", "api/v1", "v3", "%720"] {
                let email = if purpose == "account/password" { known.clone() } else { unique("new") + "@example.org" };
                let path = format!("/_matrix/client/{segment}/{purpose}/email/requestToken");
                let body = asked(&email, &unique("secret"));
                let bare =
                    synapse.bare().post(&path, with(body.clone(), "id_server", "untrusted.example".into())).await;
                let answer = shim.client().post(&path, body).await;
                if bare.text().contains("M_SERVER_NOT_TRUSTED") {
                    let link = target_of(&shim.link(&answer.sid()));
                    let family = purpose.trim_start_matches("account/").replace("3pid", "account_3pid");
                    let page = format!("/_matrix/client/unstable/threepid_shim/{family}/email/submit_token?");
                    assert!(link.starts_with(&page), "{path}: {link}");
                    served += 1;
                } else {
                    assert_eq!(bytes(&answer), bytes(&bare), "{version} {path}");
                }
                rows += 1;
            }
        }
    }
    assert_eq!((rows, served), (36, 12), "r0 and unstable of each family on each version");
}

#[tokio::test]
async fn v2_alpha_is_served_where_the_homeserver_serves_it() {
    let doors = Reserved::new(1);
    let door = doors.take();
    let caller = Caller::start(&door, as_synapse, |_, said| homeserver::json("200 OK", &said.unwrap().text())).await;
    let shim = Shim::before(&caller.address(), door, Wanted::default()).await;
    let path = "/_matrix/client/v2_alpha/register/email/requestToken";
    let sid = shim.client().post(path, asked("a@example.org", "secret")).await.sid();
    assert!(shim.link(&sid).contains("/threepid_shim/register/"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_server_that_names_nobody_or_us_counts_as_absent() {
    let synapse = legacy("1.3.1");
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let (_, known) = registered(&shim).await;
    let none = [json!(null), json!(""), json!(7), json!(true), json!([]), json!({}), json!(shim.identity)];
    let mut rows = 0;
    for purpose in PURPOSES {
        for id_server in &none {
            let email = if purpose == "account/password" { known.clone() } else { unique("none") + "@example.org" };
            let body = with(asked(&email, &unique("secret")), "id_server", id_server.clone());
            for body in [body.clone(), with(body, "id_access_token", "token".into())] {
                let sid = shim.client().post(&request_token_path(purpose), body).await.sid();
                assert!(sid.starts_with("shim_"), "{purpose} {id_server}: {sid}");
                rows += 1;
            }
        }
    }
    assert_eq!(rows, 42);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_homeservers_verdict_is_relayed_as_the_bare_homeserver_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let extra = folder.path().join("extra.yaml");
    std::fs::write(&extra, "allowed_local_3pids: [{medium: email, pattern: '.*@example\\.org'}]\n").unwrap();
    let mut rows = 0;
    for version in VERSIONS {
        let synapse = Legacy::start(version, &[("EXTRA_CONFIG", extra.to_str().unwrap())]);
        let shim = synapse.shim(Wanted::config(ROOMY)).await;
        let (_, used) = registered(&shim).await;
        let mails = shim.outbox().len();
        for (purpose, email, status, errcode) in [
            ("register", used.as_str(), 400, "M_THREEPID_IN_USE"),
            ("account/3pid", &used, 400, "M_THREEPID_IN_USE"),
            ("account/password", "nobody@example.org", 400, "M_THREEPID_NOT_FOUND"),
            ("register", "a@denied.example", 403, "M_THREEPID_DENIED"),
            ("account/3pid", "a@denied.example", 403, "M_THREEPID_DENIED"),
            ("account/password", "a@denied.example", 403, "M_THREEPID_DENIED"),
        ] {
            let (path, body) = (request_token_path(purpose), asked(email, &unique("secret")));
            let bare = synapse.bare().post(&path, with(body.clone(), "id_server", shim.identity.as_str().into())).await;
            let answer = shim.client().post(&path, body).await;
            assert_eq!(answer.verdict(), (status, errcode.to_owned()), "{version} {purpose} {email}");
            assert_eq!(bytes(&answer), bytes(&bare), "{version} {purpose} {email}");
            rows += 1;
        }
        assert_eq!(shim.outbox().len(), mails, "no mail before the homeserver has said yes");
    }
    assert_eq!(rows, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_registration_stays_closed() {
    let folder = tempfile::tempdir().unwrap();
    let extra = folder.path().join("extra.yaml");
    std::fs::write(&extra, "enable_registration: false\n").unwrap();
    let synapse = Legacy::start("1.3.1", &[("EXTRA_CONFIG", extra.to_str().unwrap())]);
    let shim = synapse.shim(Wanted::default()).await;
    let sid = shim.verify("register", "closed@example.org", "secret").await;
    let answer = shim.client().register("closed", creds(&sid, "secret")).await;
    let bare = synapse.bare().register("closed", creds(&sid, "secret")).await;
    assert_eq!(bytes(&answer), bytes(&bare));
    assert_eq!(answer.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_request_is_refused_in_the_homeservers_words_and_never_reaches_it() {
    let homeserver = homeserver::Homeserver::answering(homeserver::json("200 OK", r#"{"sid":"reached"}"#)).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::config(ROOMY)).await;
    let fields = [r#""client_secret":"s""#, r#""email":"a@b.c""#, r#""send_attempt":1"#];
    let but = |left_out: &[usize]| {
        let kept = fields.iter().enumerate().filter(|(at, _)| !left_out.contains(at)).map(|(_, field)| *field);
        format!("{{{}}}", kept.collect::<Vec<_>>().join(","))
    };
    let mut rows = 0;
    for body in ["", "{", "[]", "null", "\"x\"", "{\"client_secret\":\"s\"} x"].map(str::to_owned).into_iter().chain([
        but(&[0]),
        but(&[1]),
        but(&[2]),
        but(&[0, 1]),
        but(&[1, 2]),
        but(&[0, 1, 2]),
    ]) {
        // The bare homeserver demands the fourth field; only then does it speak of the others alone.
        let named = body.replacen("{}", r#"{"id_server":"x"}"#, 1).replacen("{\"", "{\"id_server\":\"x\",\"", 1);
        for purpose in PURPOSES {
            let path = request_token_path(purpose);
            let answer = shim.client().send("POST", &path, body.as_bytes()).await;
            let bare = legacy("1.3.1").bare().send("POST", &path, named.as_bytes()).await;
            assert_eq!(bytes(&answer), bytes(&bare), "{purpose} {body}");
            rows += 1;
        }
    }
    assert_eq!(rows, 36);
    let answer = shim.client().send("POST", &request_token_path("register"), "\u{feff}{}".as_bytes()).await;
    assert_eq!(answer.verdict(), (400, "M_NOT_JSON".into()), "a byte order mark is no JSON here");
    assert!(homeserver.requests().iter().all(|request| request.line().starts_with("GET /_matrix/client/versions")));
}

#[tokio::test]
async fn a_field_out_of_its_grammar_is_named_and_the_request_is_not_forwarded() {
    let homeserver = homeserver::Homeserver::answering(homeserver::json("200 OK", r#"{"sid":"reached"}"#)).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::config(ROOMY)).await;
    let long = |count| json!("x".repeat(count));
    let rows = [
        (
            "client_secret",
            vec![json!(""), long(256), json!("a b"), json!("\u{fc}"), json!(7), json!(null), json!(["s"])],
        ),
        ("email", vec![json!(7), json!(null), json!(""), json!("a"), json!("@b.c"), json!("a@"), json!("a@b@c.d")]),
        ("email", vec![json!("bac\u{212a}@example.com"), json!("a b@c.d"), json!("a@c.d\n"), json!("<a@c.d>")]),
        ("email", vec![json!(format!("{}@example.org", "x".repeat(489))), json!("a@c..d"), json!("a@localhost\u{0}")]),
        ("send_attempt", vec![json!("1"), json!(1.5), json!(true), json!(null), json!([1]), json!(u64::MAX)]),
        ("next_link", vec![json!(7), json!("javascript:alert(1)"), json!("file:///etc/passwd"), json!("//host/path")]),
        ("next_link", vec![json!("https://user:word@host/"), json!("https://host/\r\nx: y"), json!({})]),
    ];
    let mut ran = 0;
    for (name, values) in rows {
        for value in values {
            let body = with(asked("a@example.org", "secret"), name, value);
            let answer = shim.client().post(&request_token_path("register"), body.clone()).await;
            assert_eq!(answer.verdict(), (400, "M_INVALID_PARAM".into()), "{body}");
            assert!(answer.json()["error"].as_str().unwrap().contains(name), "{body}: {}", answer.text());
            ran += 1;
        }
    }
    assert_eq!(ran, 34);
    for twice in [r#""email":"b@b.c""#, r#""Email":"b@b.c""#, r#""\u0065mail":"b@b.c""#, r#""x":1,"x":1"#] {
        let body = format!(r#"{{"client_secret":"s","email":"a@b.c","send_attempt":1,{twice}}}"#);
        let answer = shim.client().send("POST", &request_token_path("register"), body.as_bytes()).await;
        assert_eq!(answer.verdict(), (400, "M_BAD_JSON".into()), "{twice}");
    }
    let padded = |length: usize| {
        let body = with(asked("a@example.org", "secret"), "pad", "".into()).to_string();
        body.replace(r#""pad":"""#, &format!(r#""pad":"{}""#, "x".repeat(length - body.len())))
    };
    let path = request_token_path("register");
    let answer = shim.client().send("POST", &path, padded(64 * 1024 + 1).as_bytes()).await;
    assert_eq!(answer.verdict(), (413, "M_TOO_LARGE".into()));
    assert!(homeserver.requests().iter().all(|request| request.line().starts_with("GET /_matrix/client/versions")));
    assert_eq!(shim.client().send("POST", &path, padded(64 * 1024).as_bytes()).await.sid(), "reached");
}

#[tokio::test]
async fn the_homeserver_gets_the_fields_it_knows_and_the_address_in_its_one_form() {
    let doors = Reserved::new(1);
    let door = doors.take();
    let caller = Caller::start(&door, as_synapse, |_, said| homeserver::json("200 OK", &said.unwrap().text())).await;
    let shim = Shim::before(&caller.address(), door, Wanted::config(ROOMY)).await;
    let name = &shim.identity;
    let long = "x".repeat(255);
    let rows = [
        (
            r#""client_secret":"s","email":"Some.One+TAG@Example.ORG""#,
            r#""client_secret":"s","email":"some.one+tag@example.org""#,
            "1",
        ),
        (
            r#""client_secret":"s:.=_-","email":"a@b\u00fccher.example""#,
            r#""client_secret":"s:.=_-","email":"a@xn--bcher-kva.example""#,
            "9223372036854775807",
        ),
        (
            &format!(r#""client_secret":"{long}","email":"a@b.c""#),
            &format!(r#""client_secret":"{long}","email":"a@b.c""#),
            "-9223372036854775808",
        ),
        (
            r#""unknown":[1e400],"email":"a@b.c","next_link":null,"client_secret":"t""#,
            r#""client_secret":"t","email":"a@b.c""#,
            "0",
        ),
        (
            r#""client_secret":"u","bind":true,"next_link":"","email":"a@b.c""#,
            r#""client_secret":"u","email":"a@b.c""#,
            "-7",
        ),
    ];
    for (count, (sent, received, attempt)) in rows.iter().enumerate() {
        let body = format!(r#"{{{sent},"send_attempt":{attempt}}}"#);
        let sid = shim.client().send("POST", &request_token_path("register"), body.as_bytes()).await.sid();
        let bodies = caller.bodies();
        assert_eq!(bodies.len(), count + 1);
        assert_eq!(bodies[count], format!(r#"{{"id_server":"{name}",{received},"send_attempt":{attempt}}}"#));
        let mails = shim.outbox();
        let mail = mails.iter().find(|mail| link_of(mail).contains(&sid)).unwrap();
        let address = received.split(r#""email":""#).nth(1).unwrap().trim_end_matches('"');
        assert!(mail.contains(&format!("\r\nTo: {address}\r\n")), "{mail}");
    }
    let body = with(asked("a@example.org", "v"), "next_link", "https://app.example/#/register?session_id=1".into());
    shim.client().post(&request_token_path("register"), body).await.sid();
    assert!(
        caller.bodies()[5].ends_with(r#","send_attempt":1,"next_link":"https://app.example/#/register?session_id=1"}"#)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_number_is_refused_unless_it_names_an_identity_server() {
    let synapse = legacy("1.3.1");
    let shim = synapse.shim(Wanted::default()).await;
    for purpose in PURPOSES {
        let path = format!("/_matrix/client/r0/{purpose}/msisdn/requestToken");
        let body = json!({ "client_secret": "s", "country": "GB", "phone_number": "07700900001", "send_attempt": 1 });
        let answer = shim.client().post(&path, body.clone()).await;
        assert_eq!(answer.verdict(), (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED".into()), "{path}");
        let body = with(body, "id_server", "untrusted.example".into());
        let (answer, bare) = (shim.client().post(&path, body.clone()).await, synapse.bare().post(&path, body).await);
        assert_eq!(bytes(&answer), bytes(&bare), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_mails_password_resets_itself_is_left_to_it() {
    let mailbox = Mailbox::start(Script::clear()).await;
    let port = mailbox.address().port().to_string();
    let synapse = Legacy::start("1.3.1", &[("PASSWORD_RESET", "local"), ("SMTP_PORT", &port)]);
    let shim = synapse.shim(Wanted::default()).await;
    let (_, email) = registered(&shim).await;
    let (client, secret, ours) = (shim.client(), unique("secret"), shim.outbox().len());

    let answer = client.request_token("account/password", &email, &secret, 1).await;
    let sid = answer.clone().sid();
    assert!(!sid.starts_with("shim_"), "{sid}");
    let again = synapse.bare().request_token("account/password", &email, &secret, 1).await;
    assert_eq!(bytes(&answer), bytes(&again), "the homeserver's own answer");
    assert_eq!(shim.outbox().len(), ours, "no mail of ours");

    let waiting = client.reset_password("new password", creds(&sid, &secret)).await;
    assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()));
    let link = mailbox.wait_for_mail().await.link();
    assert!(link.contains("/unstable/password_reset/email/submit_token"), "{link}");
    assert_eq!(client.open(&link).await.status, 200, "the homeserver's own page");
    client.reset_password("new password", creds(&sid, &secret)).await.ok();
    assert_eq!(client.login(&email, PASSWORD).await.status, 403);
    client.login(&email, "new password").await.ok();
}
