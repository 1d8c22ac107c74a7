//! https as homeservers speak it: calls to an identity door, a homeserver that makes them as scripted, and the noun
//! `IdentityServer`, one that is not ours.

use std::net::TcpListener;
use std::sync::{Arc, LazyLock, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::client::{Answer, parse};
use crate::homeserver::{Homeserver, Raw};
use crate::shim::authority;

pub const API: &str = "/_matrix/identity/api/v1/";
pub const JSON: &str = "application/json";
pub const FORM: &str = "application/x-www-form-urlencoded";

/// One call to an identity door, as a homeserver makes it. `content_type` and `body` are left out when empty.
pub async fn call(door: &str, method: &str, target: &str, content_type: &str, body: &str) -> Answer {
    exchange(door, "close", method, target, content_type, body).await
}

/// The same from one that would keep the connection, as Synapse does: it is over when the door closes that.
pub async fn call_and_stay(door: &str, method: &str, target: &str, content_type: &str, body: &str) -> Answer {
    exchange(door, "keep-alive", method, target, content_type, body).await
}

/// The same from one that hangs up when `then` has come, as a homeserver does whose patience is over.
pub async fn call_and_hang_up(
    door: &str,
    target: &str,
    content_type: &str,
    body: &str,
    then: impl Future<Output = ()>,
) {
    let _stream = asked(door, "close", "POST", target, content_type, body).await;
    then.await;
}

async fn exchange(door: &str, connection: &str, method: &str, target: &str, content_type: &str, body: &str) -> Answer {
    let mut stream = asked(door, connection, method, target, content_type, body).await;
    let mut bytes = Vec::new();
    // The door closes without TLS's goodbye, which is no matter after a whole answer.
    stream.read_to_end(&mut bytes).await.ok();
    parse(&bytes)
}

/// To a door with the certificate of [`authority`].
pub async fn in_tls(stream: TcpStream) -> TlsStream<TcpStream> {
    static TLS: LazyLock<TlsConnector> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&authority().ca).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    });
    let name = ServerName::try_from("localhost").unwrap();
    TLS.connect(name, stream).await.expect("the door speaks TLS")
}

async fn asked(
    door: &str,
    connection: &str,
    method: &str,
    target: &str,
    content_type: &str,
    body: &str,
) -> TlsStream<TcpStream> {
    let mut stream = in_tls(TcpStream::connect(door).await.expect("the identity door takes connections")).await;
    let kind = if content_type.is_empty() { String::new() } else { format!("Content-Type: {content_type}\r\n") };
    let length = if method == "GET" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: {door}\r\nConnection: {connection}\r\n{kind}{length}\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    stream
}

pub async fn get_validated_3pid(door: &str, sid: &str, client_secret: &str) -> Answer {
    let target = format!("{API}3pid/getValidated3pid?sid={sid}&client_secret={client_secret}");
    call(door, "GET", &target, "", "").await
}

/// What Synapse sends on of a client's requestToken: JSON, without `id_server`.
pub fn as_synapse(client: &Value) -> (&'static str, String) {
    let mut body = client.clone();
    body.as_object_mut().unwrap().remove("id_server");
    (JSON, body.to_string())
}

/// What Dendrite sends on: a form of three fields.
pub fn as_dendrite(client: &Value) -> (&'static str, String) {
    let mut form = form_urlencoded::Serializer::new(String::new());
    for name in ["client_secret", "email", "send_attempt"] {
        form.append_pair(name, client[name].to_string().trim_matches('"'));
    }
    (FORM, form.finish())
}

/// A scripted homeserver that calls the identity door `door` back for every requestToken, with what `write` makes of
/// the client's body, keeps what the door said, and answers the client with what `answer` makes of that. Nothing, or
/// an answer that says `Connection: close`, ends the connection.
pub struct Caller {
    pub homeserver: Homeserver,
    pub door: String,
    told: Arc<Mutex<Vec<Answer>>>,
}

impl Caller {
    pub async fn start(
        door: &TcpListener,
        write: fn(&Value) -> (&'static str, String),
        answer: impl Fn(&Raw, Option<&Answer>) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let door = format!("localhost:{}", door.local_addr().unwrap().port());
        let told = Arc::<Mutex<Vec<Answer>>>::default();
        let (name, keep, answer) = (door.clone(), Arc::clone(&told), Arc::new(answer));
        let homeserver = Homeserver::scripted(move |mut conversation| {
            let (name, keep, answer) = (name.clone(), Arc::clone(&keep), Arc::clone(&answer));
            async move {
                while let Some(request) = conversation.request().await {
                    let mut answered = None;
                    if request.line().contains("/requestToken") {
                        let (kind, body) = write(&request.json());
                        let medium = if request.line().contains("/msisdn/") { "msisdn" } else { "email" };
                        let target = format!("{API}validate/{medium}/requestToken");
                        answered = Some(call(&name, "POST", &target, kind, &body).await);
                        keep.lock().unwrap().extend(answered.clone());
                    }
                    if let Some(creds) = creds_of(&request) {
                        let [sid, secret] =
                            ["sid", "client_secret"].map(|field| creds[field].as_str().unwrap_or_default());
                        answered = Some(get_validated_3pid(&name, sid, secret).await);
                        keep.lock().unwrap().extend(answered.clone());
                    }
                    let answer = answer(&request, answered.as_ref());
                    conversation.write(&answer).await;
                    if answer.is_empty() || String::from_utf8_lossy(&answer).contains("Connection: close") {
                        return;
                    }
                }
            }
        })
        .await;
        Self { homeserver, door, told }
    }

    /// What the identity door told, oldest first.
    pub fn told(&self) -> Vec<Answer> {
        self.told.lock().unwrap().clone()
    }

    pub fn address(&self) -> String {
        self.homeserver.address.to_string()
    }

    /// The bodies of all requests but those for /versions, as they came.
    pub fn bodies(&self) -> Vec<String> {
        let requests = self.homeserver.requests().into_iter().filter(|request| !request.line().contains("/versions"));
        requests.map(|request| String::from_utf8(request.content()).unwrap()).collect()
    }
}

/// Creds where old Synapse reads them, when they name some identity server.
fn creds_of(request: &Raw) -> Option<Value> {
    let body: Value = serde_json::from_slice(&request.content()).ok()?;
    [&body["auth"]["threepid_creds"], &body["three_pid_creds"]]
        .into_iter()
        .find(|creds| creds["id_server"].is_string() && creds["sid"].is_string())
        .cloned()
}

/// An identity server that is not ours: every sid it gives out is validated at once, and any other is answered with 404, as
/// Sydent does.
pub struct IdentityServer {
    /// As homeservers know it.
    pub name: String,
    calls: Arc<Mutex<Vec<String>>>,
}

impl IdentityServer {
    pub fn start(door: TcpListener) -> Self {
        let name = format!("localhost:{}", door.local_addr().unwrap().port());
        door.set_nonblocking(true).unwrap();
        let door = tokio::net::TcpListener::from_std(door).unwrap();
        let acceptor = acceptor();
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let keep = Arc::clone(&calls);
        tokio::spawn(async move {
            while let Ok((stream, _)) = door.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, Arc::clone(&keep)));
            }
        });
        Self { name, calls }
    }

    /// Method, path and query of every call, and its body behind a space.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

/// With the certificate that test homeservers trust.
pub fn acceptor() -> TlsAcceptor {
    let leaf = CertificateDer::from_pem_file(&authority().leaf).unwrap();
    let key = PrivateKeyDer::from_pem_file(&authority().key).unwrap();
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(vec![leaf], key).unwrap()))
}

/// The next whole request, with its body.
pub async fn request_from(stream: &mut (impl AsyncRead + Unpin)) -> Option<Raw> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
        let request = Raw(bytes.clone());
        let length = request.field("content-length").map_or(0, |length| length.parse().unwrap());
        if request.head().ends_with("\r\n\r\n") && request.body().len() >= length {
            return Some(request);
        }
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, calls: Arc<Mutex<Vec<String>>>) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let Some(request) = request_from(&mut stream).await else { return };
    let line = request.line();
    let target = line.split(' ').nth(1).unwrap();
    let body = String::from_utf8_lossy(request.body()).into_owned();
    let sid = {
        let mut calls = calls.lock().unwrap();
        calls.push(format!("{} {body}", line.trim_end_matches(" HTTP/1.1")).trim_end().to_owned());
        calls.len()
    };
    let (status, answer) = if target.contains("requestToken") {
        // A sid carries the address it is for, as a number of its own would need a table.
        let email = serde_json::from_str::<Value>(&body).unwrap()["email"].as_str().unwrap().replace('@', "=");
        ("200 OK", json!({ "sid": format!("{sid}-{email}") }))
    } else {
        let sid = target.split("sid=").nth(1).unwrap_or_default().split('&').next().unwrap();
        match sid.split_once('-').map(|(_, email)| email.replace("%3D", "=").replace('=', "@")) {
            Some(address) => ("200 OK", json!({ "medium": "email", "address": address, "validated_at": 1 })),
            None => ("404 Not Found", json!({ "errcode": "M_NO_VALID_SESSION", "error": "No session could be found" })),
        }
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let answer = answer.to_string();
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len()).as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
