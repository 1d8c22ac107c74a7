//! The noun `Naive`: an identity server that the bare homeserver trusts and that says yes to whatever it is asked.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use threepid_shim::config::TlsFiles;
use threepid_shim::serve::Tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::legacy::Legacy;
use crate::shim::authority;

/// It ends with the test's runtime.
pub struct Naive {
    pub name: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What every session is validated for.
    address: String,
    /// Status of bind and unbind, and of nothing else.
    bind_status: u16,
    heard: Vec<String>,
}

impl Naive {
    pub fn of(homeserver: &Legacy, address: &str) -> Self {
        let listener = homeserver.door();
        listener.set_nonblocking(true).unwrap();
        let name = format!("localhost:{}", listener.local_addr().unwrap().port());
        let listener = TcpListener::from_std(listener).unwrap();
        let state = State { address: address.to_owned(), bind_status: 200, heard: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let files = TlsFiles { certificate: authority().leaf.clone(), private_key: authority().key.clone() };
        let acceptor = TlsAcceptor::from(Tls::read(&files).unwrap().config);
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, Arc::clone(&shared)));
            }
        });
        Self { name, state }
    }

    /// From now on it answers bind and unbind so.
    pub fn binds_with(&self, status: u16) {
        self.state.lock().unwrap().bind_status = status;
    }

    /// Creds that it will vouch for.
    pub fn creds(&self) -> Value {
        json!({ "sid": "17", "client_secret": "naive", "id_server": self.name })
    }

    /// Every request so far: its line, and its body.
    pub fn heard(&self) -> Vec<String> {
        self.state.lock().unwrap().heard.clone()
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut bytes = Vec::new();
    let request = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break format!("{} {body}", head.lines().next().unwrap());
        }
    };
    let (status, body) = {
        let mut state = state.lock().unwrap();
        state.heard.push(request.clone());
        let validated = json!({ "medium": "email", "address": state.address, "validated_at": 1_000 });
        if request.contains("/requestToken") {
            (200, json!({ "sid": "17" }))
        } else if request.contains("bind") {
            (state.bind_status, validated)
        } else {
            (200, validated)
        }
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} So\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}
