//! Certificates that end, and who can read which of the files around them.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use threepid_shim::config::{self, RedisServers, RedisUrl, Secret};
use threepid_shim::matrix::Timestamp;
use threepid_shim::serve;
use threepid_shim::store::{ForeignSid, Key, Store};
use threepid_shim::telemetry::Metrics;

use crate::client::Client;
use crate::homeserver::{self, Homeserver, soon};
use crate::process::{OWN_CA, Process};
use crate::redis::Server;
use crate::shim::{Reserved, Shim, Wanted};

const DAY: u64 = 24 * 60 * 60;
const NOBODY: u32 = 65534;

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A certificate for localhost, by a CA of its own that lasts.
struct Issued {
    folder: TempDir,
}

impl Issued {
    fn for_days(days: i64) -> Self {
        let issued = Self { folder: tempfile::tempdir().unwrap() };
        issued.again(days);
        issued
    }

    /// Another in its place, with as many days left. What is negative has ended.
    fn again(&self, days: i64) {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "a CA that lasts");
        let ca_key = KeyPair::generate().unwrap();
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
        let ends = i64::try_from(seconds()).unwrap() + days * i64::try_from(DAY).unwrap();
        leaf.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(ends).unwrap());
        let key = KeyPair::generate().unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        for (path, text) in [(self.ca(), ca_pem), (self.key(), key.serialize_pem()), (self.leaf(), leaf.pem())] {
            std::fs::write(path, text).unwrap();
        }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn leaf(&self) -> PathBuf {
        self.folder.path().join("leaf.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("leaf.key")
    }
}

/// When the first certificate of a PEM file ends, in seconds since 1970, by OpenSSL's word.
fn ends(pem: &Path) -> u64 {
    let said = Command::new("openssl").args(["x509", "-noout", "-enddate", "-in"]).arg(pem).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let date = said.trim().strip_prefix("notAfter=").expect("a date");
    let said = Command::new("date").args(["+%s", "-d", date]).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().parse().unwrap()
}

/// Whether OpenSSL, which old Synapse has its TLS from, would speak with this door at that time, if it trusts this CA alone.
async fn is_trusted(door: &str, ca: &Path, at: u64) -> bool {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-verify_return_error", "-verify_hostname", "localhost", "-connect", door, "-CAfile"]);
    openssl.arg(ca).args(["-attime", &at.to_string()]).stdin(std::process::Stdio::null());
    let said = tokio::task::spawn_blocking(move || openssl.output().unwrap()).await.unwrap();
    let (out, error) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(out.contains("CONNECTED"), "{error}");
    said.status.success()
}

async fn expiry(admin: &str, door: &str) -> Option<u64> {
    let metrics = Client::of(admin).get("/metrics").await.text();
    let name = format!("threepid_shim_certificate_expiry_timestamp_seconds{{door=\"{door}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map(|value| value.parse().unwrap())
}

fn old() -> Vec<u8> {
    homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)
}

/// The homeserver trusts the CA, and nobody restarts the shim for five years.
#[tokio::test]
async fn the_shims_own_certificate_is_made_anew_by_the_same_ca_while_it_serves() {
    let homeserver = Homeserver::answering(old()).await;
    let wanted = Wanted { own_ca: true, ..Wanted::default() };
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    let ca = shim.config_file().with_file_name("tls").join("ca.pem");
    soon("the door is open", async { while expiry(&shim.admin, "identity").await.is_none() {} }).await;
    let (first, kept) = (expiry(&shim.admin, "identity").await.unwrap(), std::fs::read(&ca).unwrap());
    let now = seconds();
    assert!((now + 1824 * DAY..now + 1826 * DAY).contains(&first), "{first}");
    assert!(is_trusted(&shim.identity, &ca, now).await);
    assert!(!is_trusted(&shim.identity, &ca, first + DAY).await, "it has ended then");
    // Time for the chores, by the runtime's clock; days by the shim's.
    let days_later = async |days: u64| {
        shim.later(Duration::from_secs(days * DAY));
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
    };
    days_later(1825 - 91).await;
    soon("the chores", shim.client().get("/_matrix/client/versions")).await;
    assert_eq!(expiry(&shim.admin, "identity").await, Some(first), "there is time");
    days_later(2).await;
    soon("a new one", async { while expiry(&shim.admin, "identity").await == Some(first) {} }).await;
    assert!(is_trusted(&shim.identity, &ca, first + DAY).await, "by the CA that the homeserver has");
    assert_eq!(std::fs::read(&ca).unwrap(), kept);
    // It does not outlive its CA, so that what is told is the end of both.
    days_later(20 * 365 - 1825 - 10).await;
    soon("the CA's end", async { while expiry(&shim.admin, "identity").await != Some(ends(&ca)) {} }).await;
}

/// S§5.21: at the start, at a reload, and for the operator who asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_door_that_ends_soon_or_has_ended_is_told_everywhere() {
    let homeserver = Homeserver::answering(old()).await;
    let (clients, identity) = (Issued::for_days(10), Issued::for_days(-1));
    let settings = [("LISTEN", &clients), ("IDENTITY", &identity)].map(|(table, issued)| {
        let (leaf, key) = (issued.leaf(), issued.key());
        [("CERTIFICATE", leaf), ("PRIVATE_KEY", key)]
            .map(|(key, path)| format!("THREEPID_SHIM__{table}__TLS__{key}={}", path.display()))
    });
    let settings: Vec<String> = settings.into_iter().flatten().collect();
    let wrapper: Vec<&str> = ["env"].into_iter().chain(settings.iter().map(String::as_str)).collect();
    let door = Reserved::new(1).take();
    let process = Process::under(&wrapper, &homeserver.address.to_string(), door, "").serving().await;
    let told = async |door: &str, level: &str| {
        process.logged(|line| line["door"] == door && line["level"] == level).await["message"].clone()
    };
    assert_eq!(told("clients", "WARN").await, "the door's certificate expires soon");
    assert_eq!(told("identity", "ERROR").await, "the door's certificate has expired");
    for (door, issued) in [("clients", &clients), ("identity", &identity)] {
        assert_eq!(expiry(&process.admin, door).await, Some(ends(&issued.leaf())), "{door}");
    }
    let doctor = |settings: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_threepid-shim"));
        command.args(["doctor", "--json", "--config"]).arg(process.config_file()).env_clear();
        command.envs(settings.iter().map(|setting| setting.split_once('=').unwrap()));
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        let findings = report["findings"].as_array().unwrap().iter().filter(|finding| finding["look"] == "certificate");
        findings.map(|finding| format!("{} {}", finding["verdict"], finding["change"])).collect::<Vec<_>>().join("\n")
    };
    let said = tokio::task::block_in_place(|| doctor(&settings));
    assert!(said.contains("listen.tls.certificate: write a new one"), "{said}");
    assert!(said.contains("\"bad\"") && said.contains("identity.tls.certificate: write a valid"), "{said}");

    clients.again(90);
    identity.again(90);
    let lines = process.lines().len();
    process.hang_up();
    for (door, issued) in [("clients", &clients), ("identity", &identity)] {
        let ends = ends(&issued.leaf());
        soon("the new one", async { while expiry(&process.admin, door).await != Some(ends) {} }).await;
    }
    assert!(!process.lines()[lines..].iter().any(|line| line["door"].is_string()), "{}", process.log());
    let said = tokio::task::block_in_place(|| doctor(&settings));
    assert!(!said.contains("bad") && !said.contains("warning"), "{said}");
}

/// S§4.24. Of a mail server's and a gateway's, `email.rs` and `sms/failing.rs` say the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_whose_certificate_has_expired_is_told_nothing_and_named_as_such() {
    for (days, is_good) in [(1, true), (-1, false)] {
        let issued = Issued::for_days(days);
        let server = Server::showing(&issued.leaf(), &issued.key(), &issued.ca(), "hunter2").await;
        let url = RedisUrl { tls: true, host: "localhost".to_owned(), port: Some(server.port) };
        let config = config::Redis {
            servers: RedisServers::Single(url),
            username: None,
            password: Some(Secret::new("hunter2".to_owned())),
            sentinel_password: None,
            ca_file: Some(issued.ca()),
        };
        let store = Store::open(&config::Store::Redis(config), &Metrics::new()).unwrap();
        let asked = store.get::<ForeignSid>(&Key::foreign_sid("17"), Timestamp::from_millis(1000)).await;
        match asked {
            Ok(found) => assert!(is_good && found.is_none(), "{days}"),
            Err(error) => {
                let mut chain = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    chain = format!("{chain}: {error}");
                    cause = error.source();
                }
                assert!(!is_good && chain.to_lowercase().contains("expired"), "{chain}");
            }
        }
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

/// Whether a user who is nobody to the shim can read it.
fn others_read(path: &Path) -> bool {
    Command::new("cat").arg(path).uid(NOBODY).gid(NOBODY).output().unwrap().status.success()
}

/// The real binary, its folders as a whole: S§4.23.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_folder_is_closed_and_the_homeserver_reads_the_ca_beside_it() {
    let homeserver = Homeserver::answering(old()).await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::set_permissions(outside.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (state, ca) = (outside.path().join("lib/shim"), outside.path().join("cache/shim"));
    let settings = [
        format!("THREEPID_SHIM__STATE_DIR={}", state.display()),
        format!("THREEPID_SHIM__IDENTITY__CA_DIRECTORY={}", ca.display()),
    ];
    let config = format!("{OWN_CA}[store]\nkind = \"file\"\n");
    let start = |umask: &'static str| {
        // As under a service manager that is stricter, or laxer, than ours.
        let script = format!("umask {umask}; exec \"$@\"");
        let wrapper = ["env", &settings[0], &settings[1], "sh", "-c", &script, "sh"];
        Process::under(&wrapper, &homeserver.address.to_string(), Reserved::new(1).take(), &config)
    };
    for umask in ["0077", "0000", "0022"] {
        std::fs::remove_dir_all(outside.path().join("lib")).ok();
        std::fs::remove_dir_all(outside.path().join("cache")).ok();
        let process = start(umask).serving().await;
        process.client().request_token("register", "a@example.org", "secret", 1).await;
        let modes = [
            (state.clone(), 0o700),
            (state.join("tls"), 0o700),
            (state.join("tls/ca.key"), 0o600),
            (state.join("sessions"), 0o700),
            (state.join("sessions/sessions.redb"), 0o600),
            (ca.clone(), 0o755),
            (ca.join("ca.pem"), 0o644),
            (ca.join("ca-bundle.pem"), 0o644),
        ];
        for (path, wanted) in &modes {
            assert_eq!(format!("{:04o}", mode(path)), format!("{wanted:04o}"), "{umask}: {}", path.display());
        }
        if umask != "0077" {
            assert!(others_read(&ca.join("ca-bundle.pem")), "{umask}");
        }
        assert!(!others_read(&state.join("tls/ca.pem")), "{umask}");
        assert_eq!(std::fs::read(ca.join("ca.pem")).unwrap(), std::fs::read(state.join("tls/ca.pem")).unwrap());
    }

    // One of an older shim, that the homeserver reads: it is kept readable, and closed once the CA is elsewhere.
    let folder = outside.path().join("old");
    let of = |more: &str| {
        let settings = format!("THREEPID_SHIM__STATE_DIR={}", folder.display());
        let wrapper: Vec<&str> = ["env", &settings].into_iter().chain(Some(more).filter(|it| !it.is_empty())).collect();
        Process::under(&wrapper, &homeserver.address.to_string(), Reserved::new(1).take(), &config)
    };
    let fresh = of("").serving().await;
    assert_eq!(mode(&folder), 0o700, "a fresh one");
    drop(fresh);
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let upgraded = of("").serving().await;
    let bundle = folder.join("tls/ca-bundle.pem");
    assert!(mode(&folder) == 0o711 && others_read(&bundle), "{:o}", mode(&folder));
    assert!(upgraded.log().contains("others can go through state_dir"), "{}", upgraded.log());
    drop(upgraded);
    let moved = of(&settings[1]).serving().await;
    assert!(mode(&folder) == 0o700 && !others_read(&bundle), "{:o}", mode(&folder));
    assert!(moved.log().contains("state_dir was open to others"), "{}", moved.log());
    assert!(others_read(&ca.join("ca-bundle.pem")));
    assert!(serve::ends(pem::parse(std::fs::read(ca.join("ca.pem")).unwrap()).unwrap().contents()).is_some());
}
