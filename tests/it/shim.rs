//! The noun `Shim`: the whole of it in this process, on free ports, before any homeserver.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use threepid_shim::config::{Config, Endpoint};
use threepid_shim::serve::{Clock, Listener, Listeners};
use threepid_shim::{Signals, run};

use crate::client::Client;

/// A running shim. It ends with the test.
pub struct Shim {
    pub clients: String,
    pub identity: String,
    pub admin: String,
    pub signals: Signals,
    /// Only a signal has it read its configuration again.
    pub looks_seldom: bool,
    /// What its clock reads: the wall clock, and what has elapsed.
    wall: Arc<AtomicU64>,
    elapsed: Arc<AtomicU64>,
    folder: TempDir,
}

/// What a test wants to be otherwise than by default.
#[derive(Debug, Default, Clone)]
pub struct Wanted {
    /// Tables of the configuration file, put behind the ones every test has.
    pub config: String,
    /// The `[email]` table; without it mails go to the outbox.
    pub email: Option<String>,
    /// More of the `[homeserver]` table.
    pub homeserver: String,
    /// More of the `[identity]` table.
    pub identity: String,
    /// The identity door's certificate is one that the shim makes.
    pub own_ca: bool,
    /// Another shim's name for the identity door, whom the homeserver then asks.
    pub identity_name: Option<String>,
    /// Between two looks whether the configuration has changed, when a test waits for them.
    pub look_every: Option<Duration>,
}

/// Limits that no test reaches by accident.
pub const ROOMY: &str = "[limits]\nrequest_token_per_ip = \"10000/1m\"\nrequest_token_per_address = \"10000/1m\"\n\
                         request_token_per_client_secret = \"10000/1m\"\nemail_total = \"10000/1m\"\nsubmit_token_per_ip = \"10000/1m\"\n";

const CONFIG_FILE: &str = "shim.toml";

impl Wanted {
    pub fn config(config: &str) -> Self {
        Self { config: config.to_owned(), ..Self::default() }
    }

    /// Mails go to this mail server of the test's own, in clear.
    pub fn mailing_to(mut self, mail_server: SocketAddr) -> Self {
        let (host, port) = (mail_server.ip(), mail_server.port());
        self.email = Some(format!(
            "transport = \"smtp\"\nhost = \"{host}\"\nport = {port}\ntls = \"none\"\nfrom = \"noreply@example.org\""
        ));
        self
    }
}

impl Shim {
    /// In front of the homeserver at `host:port`, known to it by one of the names that [`reserve`] gave.
    pub async fn before(homeserver: &str, identity: TcpListener, wanted: Wanted) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = identity.local_addr().unwrap().port();
        let clients = Listener::bind(&free()).unwrap();
        let address = clients.local_addr().unwrap().to_string();
        let email =
            wanted.email.unwrap_or_else(|| "transport = \"file\"\nfrom = \"Example <noreply@example.org>\"".into());
        let ca = authority();
        let identity_name = wanted.identity_name.unwrap_or_else(|| format!("localhost:{port}"));
        let tls =
            format!("tls = {{ certificate = \"{}\", private_key = \"{}\" }}", ca.leaf.display(), ca.key.display());
        let tls = if wanted.own_ca { String::new() } else { tls };
        let text = format!(
            "server_name = \"example.org\"\npublic_base_url = \"http://{address}\"\nstate_dir = \"{state}\"\n\
             [homeserver]\nurl = \"http://{homeserver}\"\n{more_homeserver}\n\
             [identity]\nname = \"{identity_name}\"\n{tls}\n\
             {more_identity}\n\
             [email]\n{email}\n{config}",
            state = folder.path().display(),
            config = wanted.config,
            more_homeserver = wanted.homeserver,
            more_identity = wanted.identity,
        );
        let file = folder.path().join(CONFIG_FILE);
        std::fs::write(&file, &text).unwrap();
        let config = Config::load(Some(&file), std::iter::empty()).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
        let (wall, elapsed) = (Arc::new(AtomicU64::new(wall_millis())), Arc::<AtomicU64>::default());
        let identity = Listener::from_std(identity).unwrap();
        let admin = Listener::bind(&free()).unwrap();
        let admin_address = admin.local_addr().unwrap().to_string();
        let listeners = Listeners {
            clients: vec![clients],
            identity: vec![identity],
            admin: vec![admin],
            clock: Clock::manual(Arc::clone(&wall), Arc::clone(&elapsed)),
        };
        let mut signals = Signals::default();
        signals.look_every = wanted.look_every.unwrap_or(signals.look_every);
        let looks_seldom = signals.look_every > Duration::from_secs(60);
        tokio::spawn(run(config, listeners, signals.clone()));
        let identity = format!("localhost:{port}");
        Self { clients: address, identity, admin: admin_address, signals, looks_seldom, wall, elapsed, folder }
    }

    pub fn client(&self) -> Client {
        Client::of(&self.clients)
    }

    /// The noun `Clock`: time goes on.
    pub fn later(&self, by: Duration) {
        self.elapsed.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
        self.set_forth(by);
    }

    /// Somebody sets the wall clock, while no time goes by.
    pub fn set_forth(&self, by: Duration) {
        self.wall.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub fn set_back(&self, by: Duration) {
        self.wall.fetch_sub(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// Its folder is the state folder, too.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join(CONFIG_FILE)
    }

    /// The mails in the outbox, oldest first.
    pub fn outbox(&self) -> Vec<String> {
        outbox_in(self.folder.path())
    }

    /// The link of the only mail with this sid.
    pub fn link(&self, sid: &str) -> String {
        let links: Vec<_> = self.outbox().iter().map(|mail| link_of(mail)).filter(|link| link.contains(sid)).collect();
        assert_eq!(links.len(), 1, "one mail for {sid}: {links:?}");
        links[0].clone()
    }

    /// The three trips' first half: requestToken, mail, click. The sid is validated then.
    pub async fn verify(&self, purpose: &str, email: &str, client_secret: &str) -> String {
        let sid = self.client().request_token(purpose, email, client_secret, 1).await.sid();
        let confirmed = self.client().click(&self.link(&sid)).await;
        assert_eq!(confirmed.status, 200, "{}", confirmed.text());
        sid
    }
}

/// The mails in the outbox of a state folder, oldest first.
pub fn outbox_in(state_dir: &Path) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(state_dir.join("outbox")) else { return Vec::new() };
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "eml"));
    files.sort_by_key(|file| std::fs::metadata(file).unwrap().modified().unwrap());
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// The link in a mail as it was sent, quoted-printable undone.
pub fn link_of(mail: &str) -> String {
    let plain = mail.replace("=\r\n", "").replace("=\n", "").replace("=3D", "=").replace("&amp;", "&");
    let start = plain.find("http://").or_else(|| plain.find("https://")).expect("a link in the mail");
    plain[start..].split([' ', '\r', '\n', '"', '<', '>']).next().unwrap().to_owned()
}

/// The CA that test homeservers trust, and the certificate of every identity door in this process.
pub struct Authority {
    pub ca: PathBuf,
    pub leaf: PathBuf,
    pub key: PathBuf,
    _folder: TempDir,
}

pub fn authority() -> &'static Authority {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Two certificates of one name would be one to OpenSSL.
        ca.distinguished_name.push(DnType::CommonName, "threepid-shim test CA");
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        leaf.distinguished_name.push(DnType::CommonName, "localhost");
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let put = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (ca, leaf) = (put("ca.pem", ca_pem), put("leaf.pem", leaf.pem()));
        Authority { ca, leaf, key: put("leaf.key", key.serialize_pem()), _folder: folder }
    });
    &AUTHORITY
}

/// Sockets for identity doors, bound before a homeserver is started that has to list their names.
pub struct Reserved(Mutex<Vec<TcpListener>>);

impl Reserved {
    pub fn new(how_many: usize) -> Self {
        Self(Mutex::new((0..how_many).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect()))
    }

    pub fn names(&self) -> String {
        let all = self.0.lock().unwrap();
        all.iter().map(|one| format!("localhost:{}", one.local_addr().unwrap().port())).collect::<Vec<_>>().join(" ")
    }

    pub fn take(&self) -> TcpListener {
        self.0.lock().unwrap().pop().expect("more identity doors than were reserved: raise the number")
    }
}

pub fn free() -> Endpoint {
    Endpoint::Tcp("127.0.0.1:0".parse().unwrap())
}

fn wall_millis() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}
