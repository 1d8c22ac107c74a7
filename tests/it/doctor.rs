//! `threepid-shim doctor`: everything around the shim is broken in turn, before a real Synapse, and it names the cause.

mod symptoms;

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::homeserver::{Homeserver, json};
use crate::legacy::{Legacy, legacy, port};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::process::Process;
use crate::shim::authority;

/// A good set-up, piece by piece, each of which a row replaces.
struct Setup {
    folder: TempDir,
    homeserver: String,
    more_homeserver: &'static str,
    base_url: String,
    clients: String,
    identity: String,
    name: String,
    peers: &'static str,
    tls: String,
    email: String,
    rest: String,
}

impl Setup {
    fn before(legacy: &Legacy) -> Self {
        let door = legacy.door().local_addr().unwrap().port();
        let clients = format!("127.0.0.1:{}", port());
        let (leaf, key) = (authority().leaf.display(), authority().key.display());
        Self {
            folder: tempfile::tempdir().unwrap(),
            homeserver: legacy.address.clone(),
            more_homeserver: "",
            base_url: format!("http://{clients}"),
            clients,
            identity: format!("127.0.0.1:{door}"),
            name: format!("localhost:{door}"),
            peers: "127.0.0.0/8",
            tls: format!("tls = {{ certificate = \"{leaf}\", private_key = \"{key}\" }}"),
            email: "transport = \"file\"\nfrom = \"noreply@example.org\"".to_owned(),
            rest: String::new(),
        }
    }

    fn write(&self) -> std::path::PathBuf {
        let file = self.folder.path().join("shim.toml");
        let Self { homeserver, more_homeserver, base_url, clients, identity, name, peers, tls, email, rest, .. } = self;
        let state = self.folder.path().join("state");
        let text = format!(
            "server_name = \"example.org\"\npublic_base_url = \"{base_url}\"\nstate_dir = \"{state}\"\n\
             [listen]\nclients = [\"{clients}\"]\nidentity = [\"{identity}\"]\nadmin = []\n\
             [homeserver]\nurl = \"http://{homeserver}\"\n{more_homeserver}\n\
             [identity]\nname = \"{name}\"\nallowed_peers = [\"{peers}\"]\n{tls}\n[email]\n{email}\n{rest}\n",
            state = state.display(),
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn mailing_to(&mut self, mail_server: SocketAddr, more: &str) {
        let port = mail_server.port();
        self.email =
            format!("transport = \"smtp\"\nhost = \"localhost\"\nport = {port}\nfrom = \"a@example.org\"\n{more}");
    }
}

struct Said {
    code: i32,
    report: Value,
    all: String,
}

impl Said {
    fn of(&self, look: &str) -> Vec<(String, String)> {
        let findings = self.report["findings"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        findings.filter(|it| it["look"] == look).map(|it| (text(&it["verdict"]), text(&it["change"]))).collect()
    }

    fn bad(&self) -> Vec<String> {
        let findings = self.report["findings"].as_array().unwrap().iter();
        findings.filter(|it| it["verdict"] == "bad").map(|it| it["change"].as_str().unwrap().to_owned()).collect()
    }
}

async fn doctor(file: &std::path::Path, more: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
    command.args(["doctor", "--json", "--config"]).arg(file).args(more).env_clear();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let all = String::from_utf8(output.stdout).unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&all).unwrap_or_else(|_| panic!("no JSON: {all}{why}"));
    Said { code: output.status.code().unwrap(), report, all }
}

type Break = Box<dyn FnOnce(&mut Setup)>;

fn row(
    what: &'static str,
    change: &'static [&'static str],
    brk: impl FnOnce(&mut Setup) + 'static,
) -> (&'static str, &'static [&'static str], Break) {
    (what, change, Box::new(brk))
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_cause_of_every_broken_set_up_before_a_real_synapse() {
    let synapse = legacy("1.3.1");
    let refuses_login = Mailbox::start(Script::clear().login("shim", "right", "PLAIN")).await;
    let no_starttls = Mailbox::start(Script::clear()).await;
    let unknown_ca = Mailbox::start(Script::starttls()).await;
    let wants_login = Mailbox::start(Script::clear().always(Fault::reply(At::MailFrom, "530 5.7.0 Log in"))).await;
    let late = Homeserver::with(|_| {
        let body = r#"{"versions":["r0.5.0"]}"#;
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    })
    .await;
    let no_homeserver = Homeserver::with(|_| json("404 Not Found", "{}")).await;
    let (late, nothing) = (late.address.to_string(), no_homeserver.address.to_string());
    let elsewhere = no_homeserver.address;
    let (login, plain, ca, sender) =
        (refuses_login.address(), no_starttls.address(), unknown_ca.address(), wants_login.address());
    // Of those that nobody is given who asks for any.
    let (gone, gone_mail, gone_sms, gone_redis, gone_link) = (port(), port(), port(), port(), port());
    let rows: Vec<(&str, &[&str], Break)> = vec![
        row("homeserver gone", &["shim.toml: homeserver.url:"], move |it| it.homeserver = format!("127.0.0.1:{gone}")),
        row("no homeserver", &["shim.toml: homeserver.url:"], move |it| it.homeserver = nothing),
        row("told not to", &["shim.toml: homeserver.needs_shim: write \"auto\""], |it| {
            it.more_homeserver = "needs_shim = \"no\"";
        }),
        row("wrong clock", &["timedatectl set-ntp true"], move |it| it.homeserver = late),
        row(
            "untrusted name",
            &["homeserver.yaml: trusted_third_party_id_servers: add the line \"  - 127.0.0.1:"],
            |it| {
                it.name = it.identity.clone();
            },
        ),
        row("unknown CA", &["SSL_CERT_FILE=", "/state/tls/ca-bundle.pem"], |it| it.tls = String::new()),
        row("door elsewhere", &["shim.toml: identity.name:", "listen.identity"], |it| {
            it.identity = format!("127.0.0.1:{}", port());
        }),
        row("stranger", &["shim.toml: identity.allowed_peers: add \"127.0.0.1\""], |it| it.peers = "192.0.2.0/24"),
        row("no mail server", &["shim.toml: email.port:"], move |it| {
            it.email = format!(
                "transport = \"smtp\"\nhost = \"127.0.0.1\"\nport = {gone_mail}\ntls = \"none\"\nfrom = \"a@example.org\""
            );
        }),
        row("no such host", &["shim.toml: email.host:"], |it| {
            it.email = "transport = \"smtp\"\nhost = \"mail.invalid\"\nfrom = \"a@example.org\"".to_owned();
        }),
        row("no STARTTLS", &["shim.toml: email.tls:"], move |it| it.mailing_to(plain, "tls = \"required\"")),
        row("mail CA", &["shim.toml: email.ca_file:"], move |it| it.mailing_to(ca, "tls = \"required\"")),
        row("password", &["shim.toml: email.password:"], move |it| {
            it.mailing_to(login, "tls = \"none\"\nusername = \"shim\"\npassword = \"wrong\"");
        }),
        row("outbox", &["shim.toml: email.directory:"], |it| {
            std::fs::write(it.folder.path().join("file"), "").unwrap();
            let directory = it.folder.path().join("file/outbox");
            it.email = format!("{}\ndirectory = \"{}\"", it.email, directory.display());
        }),
        row("gateway gone", &["shim.toml: sms.url:"], move |it| {
            it.rest = format!("[sms]\ntransport = \"http\"\nurl = \"http://127.0.0.1:{gone_sms}/\"\n");
        }),
        row("Redis gone", &["shim.toml: store.url:"], move |it| {
            it.rest = format!("[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:{gone_redis}\"\n");
        }),
        row("spoilt store", &["shim.toml: state_dir:"], |it| {
            std::fs::create_dir_all(it.folder.path().join("state/sessions/sessions.redb")).unwrap();
            it.rest = "[store]\nkind = \"file\"\n".to_owned();
        }),
        row("spoilt CA", &["shim.toml: identity.tls:"], |it| {
            it.tls = String::new();
            std::fs::create_dir_all(it.folder.path().join("state/tls")).unwrap();
            std::fs::write(it.folder.path().join("state/tls/ca.key"), "nonsense").unwrap();
        }),
        row("certificate's name", &["shim.toml: identity.tls.certificate:", "::1"], |it| {
            it.name = it.name.replace("localhost", "[::1]");
        }),
        row("template", &["templates/mail.txt:1: wording.directory:"], |it| {
            std::fs::create_dir(it.folder.path().join("templates")).unwrap();
            std::fs::write(it.folder.path().join("templates/mail.txt"), "{{ nothing_like_it }}").unwrap();
        }),
        row("link gone", &["shim.toml: public_base_url:"], move |it| {
            it.base_url = format!("http://127.0.0.1:{gone_link}");
        }),
        row("link elsewhere", &["shim.toml: public_base_url:", "listen.clients"], move |it| {
            it.base_url = format!("http://{elsewhere}");
        }),
    ];
    let (mut ran, mut faults) = (0, Vec::new());
    for (what, change, brk) in rows {
        let mut setup = Setup::before(synapse);
        brk(&mut setup);
        let said = doctor(&setup.write(), &[]).await;
        let named = said.bad().iter().any(|bad| change.iter().all(|part| bad.contains(part)));
        if said.code != 69 || !named {
            faults.push(format!("{what}: {}: {}", said.code, said.all));
        }
        ran += 1;
    }
    assert_eq!((ran, faults.join("\n")), (22, String::new()));

    let mut setup = Setup::before(synapse);
    setup.mailing_to(sender, "tls = \"none\"");
    let said = doctor(&setup.write(), &["--send-test-mail", "me@example.org"]).await;
    assert!(said.code == 69 && said.bad().iter().any(|bad| bad.contains("shim.toml: email.username:")), "{}", said.all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_set_up_is_well_with_the_shim_running_or_not_and_nobody_is_mailed() {
    let synapse = legacy("1.3.1");
    let mailbox = Mailbox::start(Script::clear()).await;
    let mut setup = Setup::before(synapse);
    setup.mailing_to(mailbox.address(), "tls = \"none\"");
    let said = doctor(&setup.write(), &[]).await;
    assert_eq!((said.code, said.bad()), (0, vec![]), "{}", said.all);
    for look in [
        "configuration",
        "store",
        "mail",
        "wording",
        "homeserver",
        "needs shim",
        "clock",
        "password resets",
        "callback",
        "link",
    ] {
        assert!(said.of(look).iter().any(|(verdict, _)| verdict == "good"), "{look}: {}", said.all);
    }
    assert_eq!(mailbox.mails().len(), 0);
    let said = doctor(&setup.write(), &["--send-test-mail", "me@example.org"]).await;
    assert_eq!((said.code, mailbox.mails().len()), (0, 1), "{}", said.all);

    let shim = Process::start(&synapse.address, synapse.door(), "").serving().await;
    let said = doctor(&shim.config_file(), &[]).await;
    assert_eq!((said.code, said.bad()), (0, vec![]), "{}", said.all);
    assert!(
        said.all.contains("reaches the shim that runs") && said.all.contains("leads to the shim that runs"),
        "{}",
        said.all
    );
    assert_eq!(shim.outbox().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn password_resets_that_the_homeserver_has_off_are_named_with_its_setting() {
    let synapse = Legacy::start("1.3.1", &[("PASSWORD_RESET", "off")]);
    let said = doctor(&Setup::before(&synapse).write(), &[]).await;
    let wanted = "homeserver.yaml: email.trust_identity_server_for_password_resets: true";
    assert_eq!((said.code, said.bad()), (69, vec![wanted.to_owned()]), "{}", said.all);
}

#[tokio::test]
async fn a_bad_configuration_is_78_with_its_line_and_the_terminal_gets_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shim.toml");
    std::fs::write(&file, "server_name = \"example.org\"\npublic_base_url = \"matrix.example.org\"\n").unwrap();
    let said = doctor(&file, &[]).await;
    assert_eq!(said.code, 78);
    assert!(said.bad().iter().any(|bad| bad.contains("shim.toml:2: public_base_url: ")), "{}", said.all);
    let output =
        Command::new(env!("CARGO_BIN_EXE_threepid-shim")).args(["doctor", "--config"]).arg(&file).env_clear().output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.code() == Some(78) && text.starts_with("BAD      configuration: ") && !text.contains('\x1b'),
        "{text}"
    );
}
