//! S§4 rows 22 and 23 once more, for everything that leaves the real binary: its log, its metrics, what the system shows
//! of it, and what it answers.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::never_do;
use crate::client::{Answer, Client, PASSWORD, creds, target_of};
use crate::gateway::{Does, Gateway};
use crate::legacy::{legacy, unique};
use crate::mailbox::{At, Certificate, Fault, Mailbox, Script};
use crate::phones;
use crate::process::Process;

const SMTP_PASSWORD: &str = "smtp-hunter2-smtp";
const GATEWAY_KEY: &str = "gateway-hunter2-gateway";
const SIGNATURE_SECRET: &str = "signature-hunter2-signature";

/// What was refused, as it was told.
#[derive(Default)]
struct Refusals(Mutex<String>);

impl Refusals {
    /// Notes it, and gives it back.
    fn note(&self, answer: Answer) -> Answer {
        assert!(answer.status >= 400, "{answer:?}");
        *self.0.lock().unwrap() += &format!("{} {:?} {}\n", answer.status, answer.headers, answer.text());
        answer
    }
}

/// The tables for a mail server and a gateway whose secrets are in files, as the manual has it.
fn config(mailbox: &Mailbox, gateway: &Gateway, folder: &std::path::Path) -> String {
    let smtp = mailbox.smtp();
    let password_file = folder.join("smtp-password");
    std::fs::write(&password_file, SMTP_PASSWORD).unwrap();
    let signature = folder.join("signature");
    std::fs::write(&signature, SIGNATURE_SECRET).unwrap();
    format!(
        "level = \"trace\"\n[email]\ntransport = \"smtp\"\nfrom = \"noreply@example.org\"\nhost = \"localhost\"\n\
         port = {}\ntls = \"required\"\nca_file = \"{}\"\nusername = \"smtp-user\"\npassword_file = \"{}\"\n\
         [routes]\naccount_3pid.msisdn = \"handle\"\n\
         [sms]\ntransport = \"http\"\nfrom = \"Example\"\nheaders = {{ X-Key = \"{GATEWAY_KEY}\" }}\n\
         signature_header = \"X-Signature\"\nsignature_secret_file = \"{}\"\n{}",
        smtp.port,
        mailbox.ca_file().display(),
        password_file.display(),
        signature.display(),
        gateway.keys("url", "/send"),
    )
}

/// A whole verification by mail and by phone, with everything that may go wrong on the way.
#[tokio::test(flavor = "multi_thread")]
async fn s4_22_s4_23_no_secret_leaves_the_real_binary_by_log_metrics_proc_or_refusal() {
    let quoting = "550 5.1.1 <hidden.box@secret-domain.example> no such user hidden.box";
    let script = Script::starttls().login("smtp-user", SMTP_PASSWORD, "PLAIN").first(Fault::reply(At::Rcpt, quoting));
    let mailbox = Mailbox::start(script).await;
    let quoting = Does::answer(400, "{\"error\":\"447400999999 gateway-hunter2-gateway is no number\"}");
    let gateway = Gateway::https(Certificate::Good, [quoting], Does::answer(200, "{}")).await;
    let folder = tempfile::tempdir().unwrap();
    let synapse = legacy("1.3.1");
    let text = config(&mailbox, &gateway, folder.path());
    let process = Process::start(&synapse.address, synapse.door(), &text).serving().await;
    let (client, refusals) = (process.client(), Refusals::default());
    let (secret, phone_secret) = (unique("clientsecretofmail"), unique("clientsecretofphone"));
    let (email, number) = ("hidden.box@secret-domain.example".to_owned(), "07400 999999");

    // A mail: refused, then taken; its link spoilt, then confirmed; the session stolen, then used.
    refusals.note(client.request_token("register", &email, &secret, 1).await);
    let sid = client.request_token("register", &email, &secret, 1).await.sid();
    let link = mailbox.wait_for_mail().await.link();
    let token = link.split("token=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    refusals.note(client.open(&link.replace("token=", "token=0")).await);
    refusals.note(client.open(&link.replace(&secret, "other")).await);
    refusals.note(client.send("POST", &target_of(&link), b"nonce=0").await);
    assert_eq!(client.click(&link).await.status, 200);
    assert_eq!(refusals.note(client.add_3pid(creds(&sid, &secret)).await).verdict(), never_do());
    let login = client.register(&unique("hidden"), creds(&sid, &secret)).await.ok();
    let access_token = login["access_token"].as_str().unwrap().to_owned();
    refusals.note(client.register(&unique("thief"), creds(&sid, &secret)).await);
    refusals.note(client.request_token("register", &email, &secret, 2).await);

    // A phone number: refused, then taken; a wrong code, then the right one.
    let user = client.clone().logged_in(&access_token);
    refusals.note(phones::request(&user, "account/3pid", number, &phone_secret, 1).await);
    let asked = phones::request(&user, "account/3pid", number, &phone_secret, 1).await.ok();
    let phone_sid = asked["sid"].as_str().unwrap();
    let code = phones::code(&gateway);
    let submit = "/_matrix/client/unstable/threepid_shim/msisdn/submit_token";
    let body = |token: &str| json!({ "sid": phone_sid, "client_secret": phone_secret, "token": token });
    refusals.note(client.post(submit, body(&phones::wrong(&code))).await);
    client.post(submit, body(&code)).await.ok();
    user.add_3pid(creds(phone_sid, &phone_secret)).await.ok();
    // And what cannot be read at all.
    for body in [json!({ "email": email, "client_secret": [secret], "send_attempt": token }), json!([email, secret])] {
        refusals.note(client.post("/_matrix/client/r0/register/email/requestToken", body).await);
    }
    let refusals = refusals.0.into_inner().unwrap();
    assert!(refusals.lines().count() >= 11, "{refusals}");

    let log = process.log();
    assert!(log.contains(&sid) && log.contains(phone_sid), "{log}");
    let places = [
        ("the log", without_times(&process.lines())),
        ("metrics", without_sums(&Client::of(&process.admin).get("/metrics").await.text())),
        ("status", without_numbers(&Client::of(&process.admin).get("/status").await.json())),
        ("the status page", without_pictures(&Client::of(&process.admin).get("/").await.text())),
        ("arguments", process.proc("cmdline")),
        ("environment", process.proc("environ")),
        ("refusals", refusals),
    ];
    let secrets: Vec<&str> = vec![
        &secret,
        &phone_secret,
        &token,
        &code,
        &access_token,
        PASSWORD,
        SMTP_PASSWORD,
        GATEWAY_KEY,
        SIGNATURE_SECRET,
        "hidden.box",
        "secret-domain",
        "7400999999",
        "07400 999999",
        "7400 999999",
    ];
    for (place, text) in places {
        assert!(!text.is_empty(), "{place}");
        let found: Vec<_> = secrets.iter().filter(|secret| text.contains(**secret)).collect();
        assert_eq!(found, Vec::<&&str>::new(), "{place}: {text}");
    }
    assert_eq!(secrets.len(), 14);
}

/// Nor are those of a sum of seconds.
fn without_sums(metrics: &str) -> String {
    metrics.lines().filter(|line| !line.contains("_seconds_sum")).collect::<Vec<_>>().join("\n")
}

/// The words alone: a time in milliseconds holds six digits of any kind.
fn without_numbers(status: &Value) -> String {
    match status {
        Value::Object(object) => {
            let words = object.iter().filter(|(name, _)| *name != "request_id");
            words.map(|(name, value)| format!("{name} {}", without_numbers(value))).collect::<Vec<_>>().join("\n")
        }
        Value::Array(array) => array.iter().map(without_numbers).collect::<Vec<_>>().join("\n"),
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) => String::new(),
    }
}

/// Nor are those of a picture, a time or a `request_id`.
fn without_pictures(page: &str) -> String {
    let mut page = page.to_owned();
    for element in ["svg", "time", "code"] {
        let opens = format!("<{element}");
        let without = page.split(&opens).enumerate().map(|(number, part)| {
            let end = part.find(&format!("</{element}>"));
            part[end.filter(|_| number > 0).unwrap_or(0)..].to_owned()
        });
        page = without.collect::<String>();
    }
    page
}

/// The lines without what is a number by chance: six digits of a time are no code.
fn without_times(lines: &[Value]) -> String {
    let fields = lines.iter().map(|line| {
        let mut line = line.as_object().unwrap().clone();
        for number in ["timestamp", "request_id", "mailed_by"] {
            line.remove(number);
        }
        Value::from(line).to_string()
    });
    fields.collect::<Vec<_>>().join("\n")
}
