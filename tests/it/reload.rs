//! A changed file or SIGHUP: what it changes, and that a faulty configuration changes nothing.

mod process;
mod under_load;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Answer, Client};
use crate::homeserver::{self, Raw, soon};
use crate::mailbox::{Mailbox, Script};
use crate::secure::{Caller, as_synapse};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

const HOUR: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(10);

/// The two ways to have the configuration read again, as the time between two looks: with the longer one only a signal
/// can.
const WAYS: [Duration; 2] = [HOUR, OFTEN];

impl Shim {
    /// Writes a file in one step, as a careful operator does.
    pub fn put(&self, name: &str, text: &str) {
        put(&self.config_file().with_file_name(name), text);
    }

    pub fn edit(&self, from: &str, to: &str) {
        edit(&self.config_file(), from, to);
    }

    /// Changes something and waits until it is in force.
    pub async fn reload(&self, change: impl FnOnce(&Self)) {
        self.reread("applied", change).await;
    }

    /// Changes something and waits until it was found to be faulty.
    async fn refuse(&self, change: impl FnOnce(&Self)) {
        self.reread("failed", change).await;
    }

    async fn reread(&self, outcome: &str, change: impl FnOnce(&Self)) {
        let before = reloads(&self.admin, outcome).await;
        change(self);
        if self.looks_seldom {
            self.signals.reload.notify_one();
        }
        soon(outcome, async { while reloads(&self.admin, outcome).await == before {} }).await;
    }
}

/// How many reloads ended so.
async fn reloads(admin: &str, outcome: &str) -> u64 {
    metric(admin, &format!("config_reloads_total{{outcome=\"{outcome}\"}}")).await
}

async fn metric(admin: &str, name: &str) -> u64 {
    let metrics = Client::of(admin).get("/metrics").await.text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("threepid_shim_{name} ")));
    line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().unwrap()
}

fn put(path: &Path, text: &str) {
    let new = path.with_file_name(".new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from} in\n{text}");
    put(path, &text.replace(from, to));
}

/// A homeserver that knows the shim, and says what the identity door said; asked without it, that a session is theirs.
async fn shim_before_caller(wanted: Wanted) -> (Shim, Caller) {
    let door = Reserved::new(1).take();
    let say = |_: &Raw, said: Option<&Answer>| {
        let said = said.filter(|said| said.status != 403);
        said.map_or_else(
            || homeserver::json("200 OK", r#"{"sid":"theirs"}"#),
            |said| homeserver::json(&format!("{} X", said.status), &said.text()),
        )
    };
    let caller = Caller::start(&door, as_synapse, say).await;
    (Shim::before(&caller.address(), door, wanted).await, caller)
}

fn looking(every: Duration, config: &str) -> Wanted {
    Wanted { look_every: Some(every), ..Wanted::config(config) }
}

#[tokio::test]
async fn routes_and_limits_are_those_that_were_written_last() {
    for every in WAYS {
        let limits = "[limits]\nrequest_token_per_ip = \"1/1h\"\n[routes]\nregister.email = \"handle\"\n";
        let (shim, _caller) = shim_before_caller(looking(every, limits)).await;
        let ask = async |secret: &str| shim.client().request_token("register", "a@example.org", secret, 1).await;
        let flag = async || {
            let versions = shim.client().get("/_matrix/client/versions").await.ok();
            versions["unstable_features"]["m.require_identity_server"].clone()
        };
        assert_eq!([ask("a").await.status, ask("b").await.status], [200, 429]);

        shim.reload(|shim| shim.edit("\"1/1h\"", "\"2/1h\"")).await;
        let statuses = [ask("c").await.status, ask("d").await.status, ask("e").await.status];
        assert_eq!(statuses, [200, 200, 429], "who was locked out is let in at once, and no further than written");

        shim.reload(|shim| shim.edit("register.email = \"handle\"", "register.email = \"refuse\"")).await;
        assert_eq!(ask("f").await.verdict(), (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED".into()));
        assert_eq!(flag().await, Value::Bool(false));

        shim.reload(|shim| shim.edit("register.email = \"refuse\"", "register.email = \"forward\"")).await;
        assert_eq!(ask("g").await.sid(), "theirs");
        assert_eq!(flag().await, Value::Null, "no longer true, and no longer said");
    }
}

#[tokio::test]
async fn templates_and_languages_are_those_that_lie_in_the_folder() {
    for every in WAYS {
        let (shim, _caller) = shim_before_caller(looking(every, ROOMY)).await;
        let client = shim.client().with("Accept-Language", "sv");
        let mailed = async |secret: &str| {
            client.request_token("register", "a@example.org", secret, 1).await.sid();
            shim.outbox().pop().unwrap()
        };
        assert!(mailed("a").await.contains("\r\nSubject: Confirm your email address"));

        // Until now there was no folder at all.
        let swedish = include_str!("../../config/languages/en.json").replace("Confirm your email address for", "Hej,");
        let (folder, hidden) = ["templates", ".hidden"].map(|name| shim.config_file().with_file_name(name)).into();
        fs::create_dir(&hidden).unwrap();
        fs::write(hidden.join("sv.json"), swedish).unwrap();
        shim.reload(|_| fs::rename(&hidden, &folder).unwrap()).await;
        assert!(mailed("b").await.contains("\r\nSubject: Hej, example.org"));

        shim.reload(|shim| shim.put("templates/subject.txt", "Hark, {{ server_name }}")).await;
        assert!(mailed("c").await.contains("\r\nSubject: Hark, example.org"));
        let page = "{% extends \"page.html\" %}\n{% block content %}<h1>Hark</h1>{% endblock %}";
        shim.reload(|shim| shim.put("templates/notice.html", page)).await;
        let link = "/_matrix/client/unstable/threepid_shim/register/email/submit_token?sid=no";
        assert!(client.get(link).await.text().contains("Hark"));

        shim.reload(|_| fs::rename(&folder, &hidden).unwrap()).await;
        assert!(mailed("d").await.contains("\r\nSubject: Confirm your email address"));
    }
}

#[tokio::test]
async fn the_mail_servers_password_is_the_one_in_its_file() {
    for every in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        put(&file, "stale\n");
        let mailbox = Mailbox::start(Script::clear().login("shim", "fresh", "PLAIN")).await;
        let mut wanted = looking(every, ROOMY).mailing_to(mailbox.address());
        let login = format!("\nusername = \"shim\"\npassword_file = \"{}\"", file.display());
        wanted.email = wanted.email.map(|email| email + &login);
        let (shim, _caller) = shim_before_caller(wanted).await;
        let ask = async || shim.client().request_token("register", "a@example.org", "secret", 1).await;
        assert_eq!(ask().await.verdict(), (500, "M_EMAIL_SEND_ERROR".into()));
        shim.reload(|_| put(&file, "fresh\n")).await;
        let sid = ask().await.sid();
        assert!(mailbox.wait_for_mail().await.link().contains(&sid));
    }
}

/// Certificates for localhost, all by one CA, and a client that trusts it.
struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    connector: TlsConnector,
}

impl Certificates {
    fn new() -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.self_signed(&key).unwrap().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
        Self { issuer: Issuer::new(ca, key), connector }
    }

    /// `tls.crt` and `tls.key` in a new folder.
    fn issue(&self, folder: &Path) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("tls.crt"), leaf.pem()).unwrap();
        fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
        leaf.der().clone()
    }

    async fn connect(&self, door: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(door).await.unwrap();
        self.connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }
}

fn shown(connection: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    connection.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Whether a kept-alive connection still answers.
async fn answers(connection: &mut TlsStream<TcpStream>) {
    connection.write_all(b"GET /_matrix/client/r0/login HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon("an answer", async {
        while !answer.ends_with(b"}") {
            assert_ne!(connection.read_buf(&mut answer).await.unwrap(), 0, "the connection was closed");
        }
    })
    .await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

/// As Kubernetes mounts a Secret: `tls.crt` → `..data/tls.crt`, `..data` → a folder that each change replaces.
fn mount() -> TempDir {
    let volume = tempfile::tempdir().unwrap();
    symlink("..first", volume.path().join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), volume.path().join(file)).unwrap();
    }
    volume
}

/// S§5.21.
#[tokio::test]
async fn new_handshakes_show_the_new_certificate_and_open_connections_live_on() {
    for every in WAYS {
        let (certificates, volume) = (Certificates::new(), mount());
        let first = certificates.issue(&volume.path().join("..first"));
        let tls = format!(
            "tls = {{ certificate = \"{0}/tls.crt\", private_key = \"{0}/tls.key\" }}",
            volume.path().display()
        );
        let (shim, _caller) = shim_before_caller(looking(every, &format!("[listen]\n{tls}\n"))).await;
        let mut old = certificates.connect(&shim.clients).await;
        assert_eq!(shown(&old), first);
        answers(&mut old).await;

        let second = certificates.issue(&volume.path().join("..second"));
        let swap = |_: &Shim| {
            symlink("..second", volume.path().join("..data_tmp")).unwrap();
            fs::rename(volume.path().join("..data_tmp"), volume.path().join("..data")).unwrap();
            fs::remove_dir_all(volume.path().join("..first")).unwrap();
        };
        shim.reload(swap).await;
        let mut new = certificates.connect(&shim.clients).await;
        assert_eq!(shown(&new), second);
        answers(&mut new).await;
        answers(&mut old).await;

        // The identity door as well, and here the paths are other ones.
        let ours = fs::read_to_string(shim.config_file()).unwrap();
        let before = ours.lines().find(|line| line.starts_with("tls = ") && *line != tls).unwrap().to_owned();
        shim.reload(|shim| put(&shim.config_file(), &ours.replace(&before, &tls))).await;
        assert_eq!(shown(&certificates.connect(&shim.identity).await), second);
    }
}

/// S§5.20.
#[tokio::test]
async fn a_faulty_configuration_changes_nothing_and_says_so_until_it_is_corrected() {
    for every in WAYS {
        let (certificates, volume) = (Certificates::new(), mount());
        let first = certificates.issue(&volume.path().join("..first"));
        let path = |file: &str| volume.path().join("..first").join(file);
        put(&volume.path().join("password"), "fresh");
        let config = format!(
            "[listen]\ntls = {{ certificate = \"{0}/tls.crt\", private_key = \"{0}/tls.key\" }}\n{ROOMY}",
            volume.path().display()
        );
        let mut wanted = looking(every, &config);
        wanted.email = Some(format!(
            "transport = \"smtp\"\nhost = \"localhost\"\nfrom = \"a@example.org\"\nusername = \"a\"\n\
             password_file = \"{0}/password\"\nca_file = \"{0}/tls.crt\"",
            volume.path().display()
        ));
        let (shim, _caller) = shim_before_caller(wanted).await;
        let good = fs::read_to_string(shim.config_file()).unwrap();
        shim.reload(|shim| fs::create_dir(shim.config_file().with_file_name("templates")).unwrap()).await;
        let (leaf, key) = (fs::read_to_string(path("tls.crt")).unwrap(), fs::read_to_string(path("tls.key")).unwrap());
        let other_key = KeyPair::generate().unwrap().serialize_pem();
        let replaced = |from: &str, to: &str| good.replace(from, to);

        let file = shim.config_file();
        let templates = file.with_file_name("templates");
        let rows = [
            ("not TOML", file.clone(), "nonsense".to_owned(), good.clone(), 1),
            ("nothing left", file.clone(), String::new(), good.clone(), 3),
            ("no such key", file.clone(), replaced("[limits]", "[limits]\nper_day = 1\nper_year = 2"), good.clone(), 2),
            ("a key of another certificate", path("tls.key"), other_key, key, 1),
            ("a CA that is none and a certificate that is none", path("tls.crt"), "none".to_owned(), leaf, 2),
            ("an empty secret", volume.path().join("password"), String::new(), "fresh".to_owned(), 1),
            ("a template with a slip", templates.join("mail.txt"), "{{ sever_name }}".into(), "{{ link }}".into(), 1),
            ("a language half done", templates.join("sv.json"), "{}".into(), "{ \"x\"".into(), 1),
        ];
        let mut ran = 0;
        for (what, file, faulty, corrected, faults) in rows {
            shim.refuse(|_| put(&file, &faulty)).await;
            let said = if faults == 1 { "1 fault".to_owned() } else { format!("{faults} faults") };
            let ready = Client::of(&shim.admin).get("/readyz").await;
            let text = format!("ready; configuration not reloaded: {said}, see the log\n");
            assert_eq!((ready.status, ready.text()), (200, text), "{what}");
            assert_eq!(metric(&shim.admin, "config_reload_failed").await, 1, "{what}");
            let mut connection = certificates.connect(&shim.clients).await;
            assert_eq!(shown(&connection), first, "{what}");
            answers(&mut connection).await;
            if what == "a language half done" {
                fs::remove_file(&file).unwrap();
                shim.reload(|_| ()).await;
            } else {
                shim.reload(|_| put(&file, &corrected)).await;
            }
            assert_eq!(Client::of(&shim.admin).get("/readyz").await.text(), "ready\n", "{what}");
            assert_eq!(metric(&shim.admin, "config_reload_failed").await, 0, "{what}");
            ran += 1;
        }
        assert_eq!(ran, 8);
        let counts = (reloads(&shim.admin, "failed").await, reloads(&shim.admin, "applied").await);
        assert_eq!(counts, (ran, ran + 1), "each change was tried once, however often it was looked at");
    }
}
