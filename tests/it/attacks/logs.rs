//! S§4 rows 22 and 23: what the real binary writes down, at its most talkative.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use threepid_shim::body::{Form, Object};
use threepid_shim::delivery::Mail;
use threepid_shim::front::request_token::asked::Asked;
use threepid_shim::front::threepid_creds::creds as read_creds;
use threepid_shim::matrix::{Address, Medium, Purpose, Sid, Timestamp};
use threepid_shim::telemetry::RequestId;
use threepid_shim::wording::{MailFacts, Page, PageKind, SmsFacts, Wording};

use super::never_do;
use crate::client::{PASSWORD, creds, target_of};
use crate::legacy::{legacy, unique};
use crate::process::Process;
use crate::shim::link_of;

/// The link of the mail with this sid.
fn link(process: &Process, sid: &str) -> String {
    process.outbox().iter().map(|mail| link_of(mail)).find(|link| link.contains(sid)).unwrap()
}

/// The three flows, their failures and a few attacks; then every secret in them is looked for.
#[tokio::test(flavor = "multi_thread")]
async fn s4_22_the_log_of_the_real_binary_at_trace_level_holds_no_secret() {
    let homeserver = legacy("1.3.1");
    let process = Process::start(&homeserver.address, homeserver.door(), "level = \"trace\"\n").serving().await;
    let client = &process.client();
    let mut secrets = vec![PASSWORD.to_owned(), "forgotten-password".to_owned()];
    let email = format!("{}.mailbox@secret-domain.example", unique("hushed"));
    let name = unique("hushed");
    let (mut begun, mut access_token) = (Vec::new(), String::new());
    for purpose in ["register", "account/3pid", "account/password"] {
        let secret = unique("topsecretclientsecret");
        let address = if purpose == "account/3pid" { format!("second.{email}") } else { email.clone() };
        let sid = client.request_token(purpose, &address, &secret, 1).await.sid();
        let link = link(&process, &sid);
        let creds = creds(&sid, &secret);
        let user = client.clone().logged_in(&access_token);
        assert_eq!(client.open(&link.replace("token=", "token=0")).await.status, 400);
        if purpose != "account/3pid" {
            assert_eq!(
                client.reset_password("forgotten-password", creds.clone()).await.status,
                if purpose == "register" { 400 } else { 401 }
            );
        }
        assert_eq!(client.click(&link).await.status, 200);
        match purpose {
            "register" => {
                let account = client.register(&name, creds).await.ok();
                account["access_token"].as_str().unwrap().clone_into(&mut access_token);
            }
            "account/password" => drop(client.reset_password(PASSWORD, creds).await.ok()),
            _ => drop(user.add_3pid(creds).await.ok()),
        }
        secrets.push(link.split("token=").nth(1).unwrap().split('&').next().unwrap().to_owned());
        secrets.extend([secret, target_of(&link)]);
        begun.push(sid);
    }
    let in_use = client.request_token("register", &email, "topsecretclientsecret", 1).await;
    assert_eq!(in_use.verdict(), (400, "M_THREEPID_IN_USE".into()));
    let body =
        json!({ "email": "broken.hushed@@mailbox", "client_secret": "topsecretclientsecret", "send_attempt": 1 });
    client.post("/_matrix/client/r0/register/email/requestToken", body).await;
    let theft = client.add_3pid(creds(&begun[0], "topsecretclientsecret")).await;
    assert_eq!(theft.verdict(), never_do());
    client.get(&format!("/_matrix/client/r0/sync?access_token={access_token}&timeout=0")).await;
    secrets.extend([access_token, email.clone(), "hushed".into(), "mailbox".into(), "secret-domain".into()]);
    secrets.extend([
        "topsecretclientsecret".into(),
        "access_token=".into(),
        "new_password".into(),
        "client_secret=".into(),
    ]);

    let log = process.log();
    for sid in &begun {
        assert!(log.contains(sid), "the log is there, and names sids: {log}");
    }
    assert!(log.contains("\"route\":\"register.email\""), "{log}");
    let found: Vec<_> = secrets.iter().filter(|secret| log.contains(secret.as_str())).collect();
    assert_eq!(found, [] as [&String; 0], "{log}");
    assert_eq!(secrets.len(), 20);
}

/// No secret is ever an argument, which every user of the machine can read.
#[test]
fn s4_23_no_secret_can_be_given_as_an_argument() {
    let help = Command::new(env!("CARGO_BIN_EXE_threepid-shim")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for word in ["password", "secret", "token"] {
        assert!(!help.to_lowercase().contains(&format!("--{word}")), "{help}");
    }
    let refused =
        Command::new(env!("CARGO_BIN_EXE_threepid-shim")).args(["check", "--password", "hunter2"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
}

/// A faulty configuration is shown to whoever starts the shim, its secrets are not.
#[test]
fn s4_23_a_fault_names_the_key_and_not_the_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("threepid-shim.toml");
    let text = "server_name = \"example.org\"\npublic_base_url = \"https://example.org\"\n[email]\nfrom = \"a@example.org\"\n\
                transport = \"smtp\"\npassword = [\"hunter2\"]\npasword = \"hunter2\"\nusername = \"u\"\n";
    std::fs::write(&file, text).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_threepid-shim")).args(["check", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("email.password") && !said.contains("hunter2"), "{said}");
}

/// Whatever writes down a whole value writes down none of these.
#[test]
fn s4_22_what_holds_a_secret_or_an_address_shows_nothing_of_it() {
    const SECRET: &str = "hunter2";
    let wording = Wording::new("en", []).unwrap();
    let language = wording.language(None);
    let (purpose, server_name, lifetime) = (Purpose::Register, "example.org", Duration::from_secs(600));
    let facts = MailFacts { language: &language, purpose, server_name, link: "https://a/?token=hunter2", lifetime };
    let text = wording.mail(&facts).unwrap();
    assert!(text.text.contains(SECRET) && text.html.contains(SECRET), "it is there to be shown");
    let mail = Mail {
        to: Address::email("hunter2@example.org").unwrap(),
        text: text.clone(),
        sid: Sid::from_random([1; 16]),
        request_id: RequestId::from_random([1; 8]),
        now: Timestamp::from_millis(1),
    };
    let body = br#"{"threepid_creds":{"sid":"17","client_secret":"hunter2"},"email":"hunter2@example.org",
        "client_secret":"hunter2","send_attempt":1,"next_link":"https://a.example/#/?client_secret=hunter2"}"#;
    let object = Object::parse(body).unwrap();
    let asked = Asked::parse(&object, Medium::Email, &[]).unwrap();
    let fields = [("token", SECRET)];
    let kind = PageKind::Confirm { purpose, masked_address: SECRET, next_link_host: Some(SECRET), fields: &fields };
    let shown = [
        format!("{:?}", Form::parse(b"client_secret=hunter2&token=hunter2&access_token=hunter2").unwrap()),
        format!("{object:?}"),
        format!("{:?}", read_creds::read(&object).unwrap()),
        format!("{asked:?} {:?}", asked.next_link),
        format!("{facts:?}"),
        format!("{text:?}"),
        format!("{mail:?}"),
        format!("{:?}", SmsFacts { language: &language, purpose, server_name, code: SECRET, lifetime }),
        format!("{:?}", Page { language: &language, server_name, kind }),
    ];
    for shown in &shown {
        assert!(shown.contains("(..)") && !shown.contains(SECRET) && !shown.contains("104, 117, 110"), "{shown}");
    }
    assert_eq!(shown.len(), 9);
}
