//! One connection to Redis, wherever it is at the moment: made when it is wanted, made again when it fails, never waited for long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisError, RedisFuture, TlsCertificates, TlsMode, Value,
};
use tokio::time::timeout;

use crate::config::{self, RedisServers, RedisUrl};

/// For the answer to one thing asked, with making the connection if there is none: of a request that is to be refused
/// within two seconds.
const DEADLINE: Duration = Duration::from_secs(1);
/// For one answer of one server.
const ANSWER: Duration = Duration::from_millis(900);
/// For making a connection, behind the back of those who wait for it: several sentinels or nodes may be dead.
const CONNECT: Duration = Duration::from_secs(5);
const CONNECT_ONE: Duration = Duration::from_millis(700);
/// After something was waited for in vain, nothing is asked for so long: whoever asks twice must not wait twice.
const REST: Duration = Duration::from_millis(400);

/// Why Redis did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    #[error("Redis refused, or could not be reached")]
    Redis(#[from] RedisError),
    #[error("Redis did not answer in time")]
    Late,
    #[error("Redis did not answer a moment ago and is not asked again yet")]
    Resting,
    #[error("store.ca_file cannot be used")]
    CaFile(#[source] Arc<std::io::Error>),
    #[error("no randomness")]
    NoRandomness,
}

pub(super) struct Link(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Held while a connection is made: by one at a time.
    servers: tokio::sync::Mutex<Servers>,
}

#[derive(Default)]
struct State {
    connected: Option<(u64, Connected)>,
    /// Counts connections, so that a failure ends the one it happened on and not the next.
    made: u64,
    resting_until: Option<Instant>,
}

enum Servers {
    Single(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

#[derive(Clone)]
enum Connected {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

impl Link {
    pub(super) fn to(config: &config::Redis) -> Result<Self, LinkError> {
        let servers = tokio::sync::Mutex::new(Servers::of(config)?);
        Ok(Self(Arc::new(Inner { state: Mutex::default(), servers })))
    }

    /// The answer, or an error within the deadline. A connection that has ended (Redis closes idle ones, and every one
    /// when it restarts) is made again once: a write that is sent a second time finds itself, and a limit is rather counted
    /// twice than not at all.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, LinkError> {
        if self.0.state().resting_until.is_some_and(|until| Instant::now() < until) {
            return Err(LinkError::Resting);
        }
        let asked = async {
            let (made, mut connected) = self.connected().await?;
            match command.query_async(&mut connected).await {
                Err(error) if connected.ends(&error) => {
                    self.0.forget(made);
                    let (made, mut connected) = self.connected().await?;
                    command.query_async(&mut connected).await.inspect_err(|error| {
                        if connected.ends(error) {
                            self.0.forget(made);
                        }
                    })
                }
                answered => answered,
            }
            .map_err(LinkError::from)
        };
        let answered = timeout(DEADLINE, asked).await.unwrap_or(Err(LinkError::Late));
        if let Err(error) = &answered
            && waited(error)
        {
            let mut state = self.0.state();
            // One node that is gone takes only its own keys with it.
            if !state.connected.as_ref().is_some_and(|(_, connected)| connected.is_of_many()) {
                state.connected = None;
                state.resting_until = Some(Instant::now() + REST);
            }
        }
        answered
    }

    /// Whoever gives up waiting leaves the connection to be made for the next.
    async fn connected(&self) -> Result<(u64, Connected), LinkError> {
        if let Some(there) = self.0.state().connected.clone() {
            return Ok(there);
        }
        let inner = Arc::clone(&self.0);
        let making = tokio::spawn(async move {
            let mut servers = inner.servers.lock().await;
            if let Some(there) = inner.state().connected.clone() {
                return Ok(there);
            }
            let connected = timeout(CONNECT, servers.connect()).await.unwrap_or(Err(LinkError::Late))?;
            let mut state = inner.state();
            state.made += 1;
            let made = (state.made, connected);
            state.connected = Some(made.clone());
            Ok(made)
        });
        making.await.unwrap_or(Err(LinkError::Late))
    }
}

impl Inner {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, made: u64) {
        let mut state = self.state();
        if state.connected.as_ref().is_some_and(|(which, _)| *which == made) {
            state.connected = None;
        }
    }
}

impl Connected {
    /// Whether another connection may do better: this one has ended, or leads to a server that is no master any more. One to
    /// a cluster looks for its nodes by itself, and has ended when it finds none.
    fn ends(&self, error: &RedisError) -> bool {
        match self {
            Self::Many(_) => error.kind() == ErrorKind::ClusterConnectionNotFound,
            Self::One(_) => {
                !error.is_timeout()
                    && (error.is_io_error() || error.is_unrecoverable_error() || error.code() == Some("READONLY"))
            }
        }
    }

    fn is_of_many(&self) -> bool {
        match self {
            Self::Many(_) => true,
            Self::One(_) => false,
        }
    }
}

fn waited(error: &LinkError) -> bool {
    match error {
        LinkError::Late => true,
        LinkError::Redis(error) => error.is_timeout(),
        LinkError::Resting | LinkError::CaFile(_) | LinkError::NoRandomness => false,
    }
}

impl Servers {
    fn of(config: &config::Redis) -> Result<Self, LinkError> {
        let login = login(config);
        let certificates = certificates(config)?;
        Ok(match &config.servers {
            RedisServers::Single(url) => {
                let about = about(url, 6379, login)?;
                Self::Single(Box::new(match certificates.filter(|_| url.tls) {
                    Some(certificates) => Client::build_with_tls(about, certificates)?,
                    None => Client::open(about)?,
                }))
            }
            RedisServers::Sentinel { sentinels, master } => {
                let addresses = sentinels.iter().map(|url| address(url, 26379));
                let mut client = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?;
                if let Some(username) = &config.username {
                    client = client.set_client_to_redis_username(username);
                }
                if let Some(password) = &config.password {
                    client = client.set_client_to_redis_password(password.expose());
                }
                if let Some(password) = &config.sentinel_password {
                    client = client.set_client_to_sentinel_password(password.expose());
                }
                if sentinels.iter().any(|url| url.tls) {
                    client = client.set_client_to_redis_tls_mode(TlsMode::Secure);
                    client = client.set_client_to_sentinel_tls_mode(TlsMode::Secure);
                }
                if let Some(certificates) = certificates {
                    client = client.set_client_to_redis_certificates(certificates.clone());
                    client = client.set_client_to_sentinel_certificates(certificates);
                }
                Self::Sentinel(Box::new(client.build()?))
            }
            RedisServers::Cluster(nodes) => {
                let about: Result<Vec<ConnectionInfo>, RedisError> =
                    nodes.iter().map(|url| about(url, 6379, login.clone())).collect();
                let mut client = ClusterClientBuilder::new(about?)
                    .connection_timeout(CONNECT_ONE)
                    .response_timeout(ANSWER)
                    .retries(3)
                    .max_retry_wait(100)
                    .min_retry_wait(10);
                if nodes.iter().any(|url| url.tls) {
                    client = client.tls(TlsMode::Secure);
                    if let Some(certificates) = certificates {
                        client = client.certs(certificates);
                    }
                }
                Self::Cluster(Box::new(client.build()?))
            }
        })
    }

    async fn connect(&mut self) -> Result<Connected, LinkError> {
        let limits =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_ONE)).set_response_timeout(Some(ANSWER));
        Ok(match self {
            Self::Single(client) => Connected::One(client.get_multiplexed_async_connection_with_config(&limits).await?),
            Self::Sentinel(client) => Connected::One(client.get_async_connection_with_config(&limits).await?),
            Self::Cluster(client) => Connected::Many(client.get_async_connection().await?),
        })
    }
}

fn login(config: &config::Redis) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default();
    if let Some(username) = &config.username {
        login = login.set_username(username);
    }
    if let Some(password) = &config.password {
        login = login.set_password(password.expose());
    }
    login
}

fn address(url: &RedisUrl, own_port: u16) -> ConnectionAddr {
    let (host, port) = (url.host.clone(), url.port.unwrap_or(own_port));
    if url.tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn about(url: &RedisUrl, own_port: u16, login: RedisConnectionInfo) -> Result<ConnectionInfo, RedisError> {
    Ok(address(url, own_port).into_connection_info()?.set_redis_settings(login))
}

fn certificates(config: &config::Redis) -> Result<Option<TlsCertificates>, LinkError> {
    let read = |path| std::fs::read(path).map_err(|source| LinkError::CaFile(Arc::new(source)));
    let root_cert = config.ca_file.as_ref().map(read).transpose()?;
    Ok(root_cert.map(|root_cert| TlsCertificates { client_tls: None, root_cert: Some(root_cert) }))
}

impl ConnectionLike for Connected {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(one) => one.req_packed_command(cmd),
            Self::Many(many) => many.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => one.req_packed_commands(cmd, offset, count),
            Self::Many(many) => many.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}
