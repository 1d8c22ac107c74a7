//! Whether the homeserver trusts our name and reaches the identity door: asked with a request that mails nobody, at the
//! door of the shim that runs, or at one opened for that moment.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError as No, RootCertStore};
use serde_json::json;
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::web::{self, Answer};
use super::{Report, Verdict, expiry};
use crate::body;
use crate::certificates;
use crate::config::{Config, Endpoint, IdentityTls};
use crate::serve::{Clock, Peer, is_trusted};

/// Synapse gives up after 60 s.
const PATIENCE: Duration = Duration::from_secs(70);
const HANDSHAKE: Duration = Duration::from_secs(15);
/// No address, so that no identity server on earth mails it; ours answers it with 400.
const NOBODY: &str = "threepid-shim-doctor";
/// What a running shim says to it.
const WANTS_AN_ADDRESS: &str = "email, or country and phone_number";
const OURS: &str = "threepid-shim doctor was here";

/// A requestToken in our name.
pub(super) fn probe(name: &str) -> serde_json::Value {
    json!({ "client_secret": NOBODY, "email": NOBODY, "send_attempt": 1, "id_server": name })
}

/// What came to a door that was opened for the moment.
#[derive(Debug, Default)]
struct Seen {
    peers: BTreeSet<IpAddr>,
    no_tls: Option<String>,
    requests: usize,
}

enum Door {
    Ours {
        seen: Arc<Mutex<Seen>>,
        _open: Vec<AbortOnDropHandle<()>>,
    },
    /// Somebody else has it: a shim, it is to be hoped.
    Taken,
}

pub(super) async fn look(report: &mut Report, config: &Config) {
    let identity = &config.identity;
    if !certificate(report, config) {
        report.skipped("callback", "the identity door has no certificate");
        return;
    }
    let Some(door) = open(report, config).await else { return };
    let path = "/_matrix/client/r0/register/email/requestToken";
    let answer = match web::ask(&config.homeserver.address, path, Some(&probe(&identity.name)), PATIENCE).await {
        Ok(answer) => answer,
        Err(error) => {
            report.bad_elsewhere(
                "callback",
                format!("the homeserver: {error}"),
                "homeserver.log: read what stands there",
            );
            return;
        }
    };
    match answer.field("errcode").as_str() {
        "M_SERVER_NOT_TRUSTED" => {
            let says = format!("the homeserver does not trust the name {:?}", identity.name);
            let change = format!(
                "homeserver.yaml: trusted_third_party_id_servers: add the line \"  - {}\", and restart the homeserver",
                identity.name
            );
            report.bad_elsewhere("callback", says, change);
        }
        "M_THREEPID_DENIED" => {
            let says = "the homeserver allows some addresses only, and ours is none of them: not tried";
            let change = "homeserver.yaml: allowed_local_3pids: look whether it is meant; it concerns clients, too";
            report.add("callback", Verdict::Warning, says, Some(change.to_owned()));
        }
        _ => match door {
            Door::Ours { seen, .. } => {
                let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
                at_our_door(report, config, &answer, &seen);
            }
            Door::Taken => at_a_running_shim(report, config, &answer).await,
        },
    }
}

fn at_our_door(report: &mut Report, config: &Config, answer: &Answer, seen: &Seen) {
    let allowed = &config.identity.allowed_peers;
    let stranger = seen.peers.iter().find(|peer| !is_trusted(Peer::Ip(**peer), allowed));
    if let Some(stranger) = stranger {
        let says = format!("the homeserver comes from {stranger}, and would be refused");
        report.bad("callback", says, "identity.allowed_peers", format!("add \"{}\"", stranger.to_canonical()));
    } else if seen.requests > 0 {
        report.good("callback", "the homeserver trusts our name, reaches the identity door and trusts its certificate");
    } else if let Some(why) = &seen.no_tls {
        untrusted(report, config, why);
    } else if answer.status.is_server_error() {
        unreached(report, config, "no connection came to the identity door");
    } else {
        another(report, config, answer);
    }
}

/// It answers a request for no address with 400, and the homeserver hands that on.
async fn at_a_running_shim(report: &mut Report, config: &Config, answer: &Answer) {
    let (errcode, error) = (answer.field("errcode"), answer.field("error"));
    if error.contains(WANTS_AN_ADDRESS) {
        report.good("callback", "the homeserver trusts our name and reaches the shim that runs");
    } else if errcode == "M_FORBIDDEN" && error.contains("Only the homeserver may come here") {
        let says = "the shim that runs takes the homeserver for a stranger";
        let write = "add the address that the homeserver comes from; the shim's log names it";
        report.bad("callback", says, "identity.allowed_peers", write);
    } else if !answer.status.is_server_error() {
        another(report, config, answer);
    } else if is_open(config).await {
        untrusted(report, config, "the name leads here, but the homeserver breaks off");
    } else {
        unreached(report, config, "nobody listens where the name leads");
    }
}

fn untrusted(report: &mut Report, config: &Config, why: &str) {
    let says = format!("the homeserver does not trust the identity door's certificate: {why}");
    let file = match &config.identity.tls {
        IdentityTls::Generated { ca_directory } => certificates::bundle_in(ca_directory).display().to_string(),
        IdentityTls::Files(files) => {
            format!("a file with the system's roots and the CA of {}", files.certificate.display())
        }
    };
    let change =
        format!("the homeserver's environment (systemctl edit): SSL_CERT_FILE={file}, and restart the homeserver");
    report.bad_elsewhere("callback", says, change);
}

fn unreached(report: &mut Report, config: &Config, why: &str) {
    let doors = config.listen.identity.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let says = format!("the homeserver cannot reach {:?}: {why}", config.identity.name);
    report.bad(
        "callback",
        says,
        "identity.name",
        format!("write a name and port that lead from the homeserver to listen.identity ({doors})"),
    );
}

fn another(report: &mut Report, config: &Config, answer: &Answer) {
    let says = format!(
        "{:?} leads to another server, which answered {} {} {}",
        config.identity.name,
        answer.status,
        answer.field("errcode"),
        answer.field("error")
    );
    report.bad("callback", says, "identity.name", "write a name and port that lead to listen.identity, and list it in homeserver.yaml: trusted_third_party_id_servers");
}

/// Whether somebody takes connections where the name leads, as seen from here.
async fn is_open(config: &Config) -> bool {
    let name = &config.identity.name;
    let authority = name.split('/').next().unwrap_or(name);
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(443);
    let host = certificates::host_of(authority).to_owned();
    matches!(timeout(HANDSHAKE, tokio::net::TcpStream::connect((host, port))).await, Ok(Ok(_)))
}

/// Whether the door's certificate can be used and is for our name; it makes the generated one, as the shim would.
fn certificate(report: &mut Report, config: &Config) -> bool {
    let now = Clock::system().now();
    let certified = match certificates::identity(&config.identity, &config.state_dir, now) {
        Ok(certified) => certified,
        Err(error) => {
            report.bad("certificate", error.to_string(), "identity.tls", "mend or remove that file, as it says");
            return false;
        }
    };
    let days = expiry::soon(certified.ends, now);
    let IdentityTls::Files(files) = &config.identity.tls else {
        match days {
            None => report.good("certificate", "the identity door has one of our own CA"),
            Some(days) => report.bad_elsewhere(
                "certificate",
                format!("our own CA ends in {days} days"),
                format!(
                    "remove the folder {}, start again, and let the homeserver trust the new CA",
                    config.state_dir.join("tls").display()
                ),
            ),
        }
        return true;
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&files.certificate).into_iter().flatten().flatten().collect();
    let host = certificates::host_of(&config.identity.name);
    let path = files.certificate.display();
    match refused(&chain, host) {
        None => match days {
            None => report.good("certificate", format!("{path} is for {host}")),
            Some(days) => expiry::warn(report, &files.certificate, days, "identity.tls.certificate"),
        },
        Some(why) => report.bad(
            "certificate",
            format!("{path}: {why}"),
            "identity.tls.certificate",
            format!("write a valid certificate for the name {host}"),
        ),
    }
    true
}

/// Why a homeserver would refuse the first of them for its time or its name, whomever it trusts.
fn refused(chain: &[CertificateDer<'static>], host: &str) -> Option<String> {
    let (leaf, others) = chain.split_first()?;
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain.iter().cloned());
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
    if let Err(rustls::Error::InvalidCertificate(
        why @ (No::Expired | No::ExpiredContext { .. } | No::NotValidYet | No::NotValidYetContext { .. }),
    )) = verifier.verify_server_cert(leaf, others, &name, &[], UnixTime::now())
    {
        return Some(why.to_string());
    }
    let leaf = rustls::server::ParsedCertificate::try_from(leaf).ok()?;
    rustls::client::verify_server_name(&leaf, &name).err().map(|error| error.to_string())
}

/// `None`: it can be opened by nobody, and that is said.
async fn open(report: &mut Report, config: &Config) -> Option<Door> {
    let tls = certificates::identity(&config.identity, &config.state_dir, Clock::system().now()).ok()?;
    let (acceptor, seen) = (TlsAcceptor::from(tls.config), Arc::<Mutex<Seen>>::default());
    let mut open = Vec::new();
    for endpoint in &config.listen.identity {
        let bound = match endpoint {
            Endpoint::Tcp(address) => TcpListener::bind(address).await,
            Endpoint::Unix(path) if UnixStream::connect(path).await.is_ok() => return Some(Door::Taken),
            Endpoint::Unix(path) => {
                report.skipped("callback", format!("start the shim first: nobody listens at {}", path.display()));
                return None;
            }
        };
        match bound {
            Ok(listener) => {
                let door = attend(listener, acceptor.clone(), Arc::clone(&seen));
                open.push(AbortOnDropHandle::new(tokio::spawn(door)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Some(Door::Taken),
            Err(error) => {
                let says = format!("{endpoint} cannot be listened on: {error}");
                report.bad(
                    "callback",
                    says,
                    "listen.identity",
                    "write an address of this machine, and a port from 1024 on",
                );
                return None;
            }
        }
    }
    Some(Door::Ours { seen, _open: open })
}

async fn attend(listener: TcpListener, acceptor: TlsAcceptor, seen: Arc<Mutex<Seen>>) {
    while let Ok((tcp, peer)) = listener.accept().await {
        let note = |what: &dyn Fn(&mut Seen)| what(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
        note(&|seen| seen.peers.extend([peer.ip()]));
        let tls = match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                note(&|seen| seen.no_tls = Some(error.to_string()));
                continue;
            }
            Err(_) => {
                note(&|seen| seen.no_tls = Some("it says nothing".to_owned()));
                continue;
            }
        };
        let answer = service_fn(|request: Request<Incoming>| {
            let seen = Arc::clone(&seen);
            async move {
                // What is left unread would make the close a reset, and the answer be lost.
                drop(body::read(request.into_body(), 64 * 1024).await);
                seen.lock().unwrap_or_else(PoisonError::into_inner).requests += 1;
                let refused = json!({ "errcode": "M_FORBIDDEN", "error": OURS }).to_string();
                let response = Response::builder().status(400).header("Content-Type", "application/json");
                response.body(http_body_util::Full::new(bytes::Bytes::from(refused)))
            }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(tls), answer)
            .await;
        if let Err(error) = served {
            note(&|seen| seen.no_tls = seen.no_tls.take().or_else(|| Some(error.to_string())));
        }
    }
}
