//! The table of symptoms in `deploy/README.md`: each is brought about before a real Synapse, and all that its row quotes
//! has to be said, word for word.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Setup, doctor};
use crate::client::{Answer, Client, request_token_path};
use crate::gateway::{Does, Gateway};
use crate::homeserver::{Homeserver, soon};
use crate::legacy::{Legacy, port, unique};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::phones;
use crate::shim::{link_of, outbox_in};

/// One row, its cells as they stand there.
struct Row {
    wrong: String,
    told: String,
    homeserver: String,
    log: String,
    doctor: String,
}

/// What was said, by whom.
#[derive(Default)]
struct Said {
    told: String,
    homeserver: String,
    log: String,
    doctor: String,
}

fn table() -> Vec<Row> {
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/README.md")).unwrap();
    let table = manual.split("| what is wrong |").nth(1).unwrap();
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            let [wrong, told, homeserver, log, doctor, change] = cells.try_into().unwrap();
            assert!(!change.is_empty(), "{wrong}: what is to be done?");
            Row { wrong, told, homeserver, log, doctor }
        })
        .collect()
}

/// What stands between quotation marks or as code, and a status.
fn quoted(cell: &str) -> Vec<String> {
    let mut quoted: Vec<String> = Vec::new();
    for (n, part) in cell.split(['"', '`']).enumerate() {
        if n % 2 == 1 {
            quoted.push(part.to_owned());
        } else {
            let statuses = part.split_whitespace().filter(|word| word.parse::<u16>().is_ok());
            quoted.extend(statuses.map(|status| format!("status {status}\n")));
        }
    }
    quoted
}

/// The homeservers: one as it should be, and two as they should not.
struct World {
    good: Legacy,
    odd: Legacy,
    unresolved: Legacy,
    _settings: tempfile::NamedTempFile,
}

impl World {
    fn start() -> Self {
        let settings = tempfile::NamedTempFile::new().unwrap();
        let allowed = "allowed_local_3pids: [{medium: email, pattern: '.*@example\\.org'}]\n";
        std::fs::write(settings.path(), allowed).unwrap();
        let extra = settings.path().to_str().unwrap();
        let unresolved = ("ID_SERVER", "shim.invalid:8091");
        let [good, odd, unresolved] = [&[][..], &[("PASSWORD_RESET", "off"), ("EXTRA_CONFIG", extra)], &[unresolved]]
            .map(|it| Legacy::start("1.3.1", it));
        Self { good, odd, unresolved, _settings: settings }
    }
}

/// `threepid-shim serve`, as an operator has it: with lines of text. Killed when dropped.
struct Running {
    child: Child,
    log: std::path::PathBuf,
}

impl Running {
    fn start(file: &Path) -> Self {
        let log = file.with_extension("log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
        command.args(["serve", "--config"]).arg(file).env_clear();
        let child = command.stderr(std::fs::File::create(&log).unwrap()).stdin(Stdio::null()).spawn().unwrap();
        Self { child, log }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn says(&mut self, what: &str) {
        soon(what, async {
            while !self.said().contains(what) {
                let ended = self.child.try_wait().unwrap().is_some();
                assert!(!ended || self.said().contains(what), "{what} is not in\n{}", self.said());
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn serving(file: &Path) -> Self {
        let mut running = Self::start(file);
        running.says("serving").await;
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What the client is told, as a person would write it down.
fn answered(answer: &Answer) -> String {
    format!("status {}\n{}", answer.status, answer.text())
}

/// What a client is to ask for, once everything is up.
enum Asks {
    Mail(&'static str, &'static str),
    Message,
    With(&'static str, Value),
    Nothing,
}

async fn broken(wrong: &str, world: &World) -> Said {
    let mut homeserver = &world.good;
    let mut setup = Setup::before(homeserver);
    let mut asks = Asks::Mail("register", "example.org");
    // Kept until the end.
    let (mut mailbox, mut gateway, mut other): (Option<Mailbox>, Option<Gateway>, Option<Homeserver>) =
        (None, None, None);
    match wrong {
        "the homeserver does not trust the name" => setup.name.clone_from(&setup.identity),
        "the homeserver does not trust the certificate" => setup.tls = String::new(),
        "the homeserver cannot connect" => setup.identity = format!("127.0.0.1:{}", port()),
        "the homeserver cannot resolve the name" => {
            homeserver = &world.unresolved;
            setup = Setup::before(homeserver);
            (setup.name, setup.tls) = ("shim.invalid:8091".to_owned(), String::new());
        }
        "the homeserver is taken for a stranger" => setup.peers = "192.0.2.0/24",
        "a request came past the shim, or by another replica" => return past_the_shim(homeserver, setup).await,
        "the shim is not in the way, or stands aside" => setup.more_homeserver = "needs_shim = \"no\"",
        "password resets are off" => {
            homeserver = &world.odd;
            setup = Setup::before(homeserver);
            asks = Asks::Mail("account/password", "example.org");
        }
        "the homeserver allows some addresses only" => {
            homeserver = &world.odd;
            setup = Setup::before(homeserver);
            asks = Asks::Mail("register", "elsewhere.example");
        }
        "the homeserver is down" => setup.homeserver = format!("127.0.0.1:{}", port()),
        "the mail server's name is unknown" => {
            "transport = \"smtp\"\nhost = \"mail.invalid\"\nfrom = \"a@example.org\"".clone_into(&mut setup.email);
        }
        "the mail server is not there" => {
            setup.mailing_to(std::net::SocketAddr::from(([127, 0, 0, 1], port())), "tls = \"none\"");
        }
        "the mail server offers no TLS, or an unknown certificate" => {
            let started = mailbox.insert(Mailbox::start(Script::clear()).await);
            setup.mailing_to(started.address(), "tls = \"required\"");
        }
        "the mail server refuses the login" => {
            let started = mailbox.insert(Mailbox::start(Script::clear().login("shim", "right", "PLAIN")).await);
            setup.mailing_to(started.address(), "tls = \"none\"\nusername = \"shim\"\npassword = \"wrong\"");
        }
        "the mail server refuses the sender" | "the mail server refuses the recipient" => {
            let sender = wrong.ends_with("sender");
            let fault = if sender {
                Fault::reply(At::MailFrom, "530 5.7.0 Log in")
            } else {
                Fault::reply(At::Rcpt, "550 5.1.1 No")
            };
            let started = mailbox.insert(Mailbox::start(Script::clear().always(fault)).await);
            setup.mailing_to(started.address(), "tls = \"none\"");
        }
        "the SMS gateway is not there" => {
            setup.rest = format!("{}[sms]\ntransport = \"http\"\nurl = \"http://127.0.0.1:{}/\"\n", HANDLED, port());
            asks = Asks::Message;
        }
        "the SMS gateway refuses" => {
            let started = gateway.insert(Gateway::http(Does::answer(401, "{}")).await);
            setup.rest = format!("{HANDLED}[sms]\ntransport = \"http\"\n{}", started.keys("url", "/send"));
            asks = Asks::Message;
        }
        "phone numbers are not served" => asks = Asks::Message,
        "all clients are one to the limits" => {
            "[limits]\nrequest_token_per_ip = \"1/1h\"\n".clone_into(&mut setup.rest);
            asks = Asks::With("twice", json!({}));
        }
        "sessions cannot be kept" => {
            setup.rest = format!("[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n", port());
        }
        "the mailed link leads elsewhere" => setup.base_url = format!("http://{}", homeserver.address),
        "a restart voids every link" => {}
        "a next_link is refused" => {
            "[session]\nnext_link_hosts = [\"example.org\"]\n".clone_into(&mut setup.rest);
            asks = Asks::With("next_link", json!("https://elsewhere.example/"));
        }
        "another identity server is refused" => {
            "[routes]\nnamed_id_server = \"reject\"\n".clone_into(&mut setup.rest);
            asks = Asks::With("id_server", json!("vector.im"));
        }
        "a change of the file does nothing" | "the shim does not start" => asks = Asks::Nothing,
        "links and codes end too early or too late" => {
            let late = Homeserver::with(|_| {
                let body = r#"{"versions":["r0.5.0"]}"#;
                let head = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
                format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
            });
            setup.homeserver = other.insert(late.await).address.to_string();
            asks = Asks::Nothing;
        }
        _ => panic!("deploy/README.md has a symptom that nobody brings about: {wrong:?}"),
    }
    let file = setup.write();
    let mut said = Said { doctor: doctor(&file, &[]).await.all, ..Said::default() };
    let before = homeserver.log().len();
    if wrong == "the shim does not start" {
        let _taken = std::net::TcpListener::bind(&setup.clients).unwrap();
        let mut running = Running::start(&file);
        running.says("Address already in use").await;
        said.log = running.said();
        return said;
    }
    let mut running = Running::serving(&file).await;
    let client = Client::of(&setup.clients);
    said.told = match asks {
        Asks::Mail(purpose, domain) => {
            let email = format!("{}@{domain}", unique("symptom"));
            answered(&client.request_token(purpose, &email, &unique("secret"), 1).await)
        }
        Asks::Message => answered(&phones::request(&client, "register", &phones::number(), &unique("secret"), 1).await),
        Asks::With("twice", _) => {
            client
                .request_token("register", &format!("{}@example.org", unique("symptom")), &unique("secret"), 1)
                .await
                .sid();
            answered(&client.request_token("register", "b@example.org", &unique("secret"), 1).await)
        }
        Asks::With(field, value) => {
            let mut body = json!({ "email": "a@example.org", "client_secret": "s", "send_attempt": 1 });
            body[field] = value;
            answered(&client.post(&request_token_path("register"), body).await)
        }
        Asks::Nothing => String::new(),
    };
    match wrong {
        "the mailed link leads elsewhere" | "a restart voids every link" => {
            let link = link_of(&outbox_in(&setup.folder.path().join("state")).pop().unwrap());
            if wrong == "a restart voids every link" {
                drop(running);
                running = Running::serving(&file).await;
                said.told = answered(&client.open(&link).await);
            } else {
                said.told = answered(&Client::of(&homeserver.address).open(&link).await);
            }
        }
        "a change of the file does nothing" => {
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, format!("{text}\n[log]\nlevel = \"loud\"\n")).unwrap();
            let hang_up = Command::new("kill").args(["-HUP", &running.child.id().to_string()]).status().unwrap();
            assert!(hang_up.success());
            running.says("configuration not reloaded").await;
        }
        _ => {}
    }
    said.homeserver = homeserver.log().split_off(before);
    said.log = running.said();
    said
}

/// A homeserver that asks for a mail of which the shim knows nothing.
async fn past_the_shim(homeserver: &Legacy, setup: Setup) -> Said {
    let running = Running::serving(&setup.write()).await;
    let body = json!({ "email": "a@example.org", "client_secret": "s", "send_attempt": 1, "id_server": setup.name });
    let told = answered(&homeserver.bare().post(&request_token_path("register"), body).await);
    Said { told, log: running.said(), ..Said::default() }
}

const HANDLED: &str = "[routes]\nregister.msisdn = \"handle\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn every_symptom_in_the_manual_is_said_word_for_word_when_it_is_brought_about() {
    let (world, rows) = (World::start(), table());
    let (mut ran, mut faults) = (0, Vec::new());
    for row in &rows {
        let said = broken(&row.wrong, &world).await;
        let mut quotes = 0;
        let cells = [(&row.told, &said.told), (&row.homeserver, &said.homeserver), (&row.log, &said.log)];
        for (cell, said) in cells {
            for quote in quoted(cell) {
                if !said.contains(&quote) {
                    faults.push(format!("{}: {quote:?} is not in\n{said}", row.wrong));
                }
                quotes += 1;
            }
        }
        if !row.doctor.is_empty() {
            quotes += 1;
            if !said.doctor.contains(&row.doctor) {
                faults.push(format!("{}: the doctor does not say {:?}:\n{}", row.wrong, row.doctor, said.doctor));
            }
        }
        assert!(quotes > 0, "{} quotes nothing", row.wrong);
        ran += 1;
    }
    assert_eq!((ran, faults.join("\n\n")), (28, String::new()));
}
