//! The door that the tests of forwarding go through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use ipnet::IpNet;
use threepid_shim::config::{self, Endpoint, Listen, Shutdown};
use threepid_shim::front::fast::Fast;
use threepid_shim::front::forward::{Body, Forward};
use threepid_shim::front::versions::{Features, Versions};
use threepid_shim::matrix::Refusal;
use threepid_shim::serve::{self, Carrying, Clock, Door, Drain, Http2, Listener, Listeners, Serving, Tls, Unusual};
use threepid_shim::telemetry::Metrics;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::homeserver::{Conversation, Homeserver, Raw, soon};

/// A client door in front of a homeserver, on a free port of loopback; cut when dropped.
pub struct Front {
    pub address: SocketAddr,
    pub drain: Drain,
    pub metrics: Metrics,
}

/// What the door does with requests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// `/_matrix/client/versions` through `Versions`.
    Versions {
        flag: bool,
    },
    /// The body is read first, as on intercepted paths.
    Relay,
    /// The answer is read as well.
    Ask {
        limit: usize,
    },
    /// `/panic` ends by one; everything else is forwarded.
    Panic,
}

/// What its sockets speak besides HTTP/1.1 in clear.
#[derive(Default)]
pub struct Speaking {
    pub tls: Option<Tls>,
    pub h2c: bool,
    /// Whoever is trusted has to announce its clients.
    pub proxy_protocol: bool,
}

struct Plain {
    forward: Forward,
    /// `None`: everything is hyper's.
    fast: Option<Fast>,
    mode: Mode,
}

impl Door for Plain {
    const HTTP2: Option<Http2<Self>> = Http2::SERVED;
    type Body = Body;

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let answer = match self.mode {
            Mode::Versions { flag } => {
                let features = Features { no_identity_server_required: flag, separate_add_and_bind: false };
                Versions::new(self.forward.clone()).handle(request, features).await
            }
            Mode::Relay => {
                let (head, body) = read(request).await;
                self.forward.relay(&head, body).await
            }
            Mode::Ask { limit } => {
                let (head, body) = read(request).await;
                self.forward.ask(&head, body, limit).await.map(|answer| answer.map(Body::from))
            }
            Mode::Panic if request.uri().path() == "/panic" => panic!("as asked"),
            Mode::Forward | Mode::Panic => self.forward.handle(request).await,
        };
        answer.unwrap_or_else(|refusal: Refusal| refusal.into_response().map(Body::from))
    }

    async fn carry<S>(&self, io: &mut S, read: &mut Vec<u8>, carrying: &mut Carrying) -> Option<Unusual>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match &self.fast {
            Some(fast) => fast.carry(io, read, carrying).await,
            None => Some(Unusual::ForGood),
        }
    }
}

async fn read(request: Request<Incoming>) -> (http::request::Parts, Bytes) {
    let (head, body) = request.into_parts();
    (head, http_body_util::BodyExt::collect(body).await.unwrap().to_bytes())
}

impl Front {
    pub fn before(homeserver: &Homeserver) -> Self {
        Self::start(&homeserver.config(), Mode::Forward, &["127.0.0.0/8"])
    }

    pub fn start(homeserver: &config::Homeserver, mode: Mode, trusted: &[&str]) -> Self {
        let shutdown = Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(20) };
        Self::with_shutdown(homeserver, mode, trusted, &shutdown)
    }

    pub fn with_shutdown(homeserver: &config::Homeserver, mode: Mode, trusted: &[&str], shutdown: &Shutdown) -> Self {
        let clients = vec![Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))];
        let listen =
            Listen { clients, identity: Vec::new(), admin: Vec::new(), tls: None, h2c: false, proxy_protocol: false };
        let listeners = Listeners::bind(&listen).unwrap();
        Self::serve(listeners.clients, Speaking::default(), homeserver, mode, trusted, shutdown)
    }

    /// On sockets of one's own.
    pub fn on(listeners: Vec<Listener>, tls: Option<Tls>, homeserver: &config::Homeserver, mode: Mode) -> Self {
        let shutdown = Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(20) };
        Self::serve(listeners, Speaking { tls, ..Speaking::default() }, homeserver, mode, &[], &shutdown)
    }

    /// On a free port, with a homeserver whose clients are trusted when they come from these networks.
    pub fn speaking(speaking: Speaking, homeserver: &Homeserver, trusted: &[&str]) -> Self {
        let shutdown = Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(20) };
        let listener = Listener::bind(&Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        Self::serve(vec![listener], speaking, &homeserver.config(), Mode::Forward, trusted, &shutdown)
    }

    /// On a socket's file, where everybody is trusted.
    pub fn at_socket(path: &std::path::Path, speaking: Speaking, homeserver: &config::Homeserver) -> Self {
        let shutdown = Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(20) };
        let listener = Listener::bind(&Endpoint::Unix(path.to_owned())).unwrap();
        Self::serve(vec![listener], speaking, homeserver, Mode::Forward, &[], &shutdown)
    }

    fn serve(
        listeners: Vec<Listener>,
        speaking: Speaking,
        homeserver: &config::Homeserver,
        mode: Mode,
        trusted: &[&str],
        shutdown: &Shutdown,
    ) -> Self {
        // A unix socket has no address.
        let address = listeners[0].local_addr().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let metrics = Metrics::new();
        let drain = Drain::new(shutdown);
        let serving = Serving {
            clock: Clock::system(),
            tls: speaking.tls,
            h2c: speaking.h2c,
            announced_by: speaking.proxy_protocol.then(|| trusted.clone().into()),
            leaving: None,
            drain: drain.clone(),
            crowd: None,
            open: metrics.open_connections.clone(),
            panics: metrics.panics.clone(),
            elsewhere: None,
        };
        let forward = Forward::new(homeserver, &trusted, metrics.clone());
        let fast = (mode == Mode::Forward).then(|| Fast::new(forward.clone()));
        tokio::spawn(serve::serve(listeners, Arc::new(Plain { forward, fast, mode }), serving));
        Self { address, drain, metrics }
    }

    pub async fn connect(&self) -> Conversation {
        Conversation::with(self.address).await
    }

    /// One request on a connection of its own, and its answer.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> Raw {
        let mut client = self.connect().await;
        let bodiless = request.as_ref().starts_with(b"HEAD ");
        client.write(request).await;
        soon("an answer", client.answer(bodiless)).await.expect("closed without an answer")
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.drain.cut();
    }
}
