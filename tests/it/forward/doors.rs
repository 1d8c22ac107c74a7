//! The sockets of a door: where they are bound, TLS, and what they do when the machine has no more to give.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use threepid_shim::certificates;
use threepid_shim::config::{Endpoint, Identity, IdentityTls};
use threepid_shim::serve::{Certified, Clock, Listener, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::forward::{Front, Mode};
use crate::homeserver::{Homeserver, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_endpoint_in_use_is_named() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let error = Listener::bind(&Endpoint::Tcp(address)).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address}"));
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("in use"));
}

#[tokio::test]
async fn a_unix_socket_is_served_replaced_when_stale_and_removed_when_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shim.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind");
    let listener = Listener::bind(&Endpoint::Unix(path.clone())).unwrap();
    let error = Listener::bind(&Endpoint::Unix(path.clone())).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on unix:{}", path.display()));

    let homeserver = Homeserver::answering(OK).await;
    let front = Front::on(vec![listener], None, &homeserver.config(), Mode::Forward);
    let mut client = UnixStream::connect(&path).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    soon("the answer", client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    assert_eq!(homeserver.request().all("x-forwarded-for"), ["203.0.113.9"], "who may open the file is trusted");
    soon("the end", front.drain.begin()).await;
    soon("removal", async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "x").unwrap();
    Listener::bind(&Endpoint::Unix(path.clone())).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
}

fn made_in(state: &Path) -> Certified {
    let identity = Identity {
        name: "localhost:1".into(),
        allowed_peers: Vec::new(),
        accept_unannounced: false,
        tls: IdentityTls::Generated { ca_directory: state.join("tls") },
    };
    certificates::identity(&identity, state, Clock::system().now()).unwrap()
}

/// A request over TLS by a client that trusts this state's CA only.
async fn ask_over_tls(address: SocketAddr, state: &Path) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(state.join("tls/ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    stream.write_all(GET.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_door_with_tls_speaks_it_and_takes_another_certificate_while_it_serves() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tls = Tls::new(made_in(first.path()));
    let homeserver = Homeserver::answering(OK).await;
    let listener = Listener::bind(&Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    let front = Front::on(vec![listener], Some(tls.clone()), &homeserver.config(), Mode::Forward);
    assert!(soon("tls", ask_over_tls(front.address, first.path())).await.unwrap().ends_with("ok"));
    let replacement = made_in(second.path());
    soon("tls", ask_over_tls(front.address, second.path())).await.unwrap_err();
    tls.replace(replacement);
    assert!(soon("tls", ask_over_tls(front.address, second.path())).await.unwrap().ends_with("ok"));
    // In clear text nobody is served.
    let mut plain = front.connect().await;
    plain.write(GET).await;
    assert!(!String::from_utf8_lossy(&soon("the end", plain.rest()).await).contains("HTTP/1.1 200"));
}

/// Not a test of its own: what `no_descriptors_left_..` runs in a process with few descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_few_descriptors() {
    if std::env::var_os("FEW_DESCRIPTORS").is_none() {
        return;
    }
    let homeserver = Homeserver::answering(OK).await;
    let front = Front::before(&homeserver);
    println!("\nlistening on {}", front.address);
    tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await.unwrap().unwrap();
}

/// S§5.17.
#[test]
fn no_descriptors_left_costs_waiting_clients_time_but_no_cpu() {
    let binary = std::env::current_exe().unwrap();
    let mut shim = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$0\" --exact forward::doors::with_few_descriptors --nocapture"])
        .arg(binary)
        .env("FEW_DESCRIPTORS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(shim.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| line.unwrap().strip_prefix("listening on ").map(str::to_owned)).unwrap();
    let connect = || {
        let stream = std::net::TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    };
    let answered = |stream: &mut std::net::TcpStream| {
        stream.write_all(GET.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.ends_with("ok")
    };
    let mut oldest = connect();
    let crowd: Vec<_> = (0..100).map(|_| connect()).collect();
    let before = cpu_ticks(shim.id());
    let mut waiting = connect();
    waiting.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    waiting.write_all(GET.as_bytes()).unwrap();
    assert!(waiting.read(&mut [0]).is_err(), "there should be no descriptor for this client");
    let spent = cpu_ticks(shim.id()) - before;
    assert!(spent < 30, "{spent} hundredths of a second of work in one second: accepting spins");
    drop(crowd);
    waiting.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    assert!(answered(&mut oldest), "a connection that was open was lost");
    drop(shim.stdin.take());
    assert!(shim.wait().unwrap().success());
}

/// User and system time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
