//! threepid-shim gives MSC2263 to a Matrix homeserver that cannot be upgraded: `requestToken` without `id_server`.
//!
//! # The three trips
//! 1. **Ordinary request**: `serve` → `front` → `front/forward` → `homeserver`. No body is read, nothing is looked up.
//! 2. **requestToken without `id_server`**: `front/request_token` leaves a note (`in_flight`) and sends the homeserver
//!    the request with our own `id_server`; the homeserver decides, then calls `identity` over https, which finds the
//!    note, begins a `session`, mails the link (`delivery`, `wording`) and answers with a sid; `front/request_token`
//!    relays it.
//! 3. **Completion**: the link shows `front/confirm`, whose button validates the session. The client repeats its request
//!    with the sid, `front/threepid_creds` reserves the session and points the request at us; the homeserver asks
//!    `identity` whether the address is validated; its answer settles the session.
//!
//! Both doors meet only in the `store`.
//!
//! # Who may name whom
//! `tests/it/layers.rs` holds every `use crate::…` to this table. `telemetry` and `matrix` may be named by any room.
//!
//! | module | may name |
//! |---|---|
//! | `lib` | every room |
//! | `main` | `lib` `config` |
//! | `front` | `config` `limit` `needs_shim` `random` `serve` `store` and its children |
//! | `front/forward` | `config` `homeserver` `serve` |
//! | `front/request_token` `front/threepid_creds` | `body` `config` `front/forward` `in_flight` `limit` `random` `serve` `session` `store` |
//! | `front/route` | `front/separate_add` `front/threepid_creds` |
//! | `front/separate_add` | `body` `front/forward` `front/threepid_creds` |
//! | `front/versions` | `body` `front/forward` |
//! | `front/submit_token` | `body` `config` `limit` `serve` `session` `store` |
//! | `front/confirm` | `body` `config` `limit` `serve` `session` `store` `wording` |
//! | `identity` | `body` `config` `delivery` `in_flight` `limit` `random` `serve` `session` `store` `wording` |
//! | `needs_shim` | `config` `front/forward` `front/versions` |
//! | `in_flight` | `store` |
//! | `store` | `config` `random` `session` |
//! | `delivery` | `config` `wording` |
//! | `admin` | `needs_shim` `serve` |
//! | `certificates` | `config` `serve` |
//! | `serve` `homeserver` `limit` `telemetry` | `config` |
//! | `body` `config` `session` `wording` `random` | |
//! | `matrix` | nothing |

pub mod admin;
pub mod body;
pub mod certificates;
pub mod config;
pub mod delivery;
pub mod front;
pub mod homeserver;
pub mod identity;
pub mod in_flight;
pub mod limit;
pub mod matrix;
pub mod needs_shim;
pub mod random;
pub mod serve;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod wording;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use admin::Admin;
use certificates::CertificateError;
use config::{Config, Shared};
use delivery::{Delivery, DeliveryError};
use front::Front;
use front::confirm::Confirm;
use front::forward::Forward;
use front::request_token::RequestToken;
use front::separate_add::SeparateAdd;
use front::submit_token::SubmitToken;
use front::threepid_creds::ThreepidCreds;
use front::versions::Versions;
use identity::Identity;
use limit::Limit;
use needs_shim::NeedsShim;
use serve::{Clock, Drain, Listeners, Serving, Tls, TlsError, serve};
use store::Store;
use telemetry::Metrics;
use wording::{Wording, WordingError};

/// Between two rounds of forgetting what is over.
const TIDY_EVERY: Duration = Duration::from_secs(30);

/// How `run` is told to end: `drain` first, `now` at once.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub drain: CancellationToken,
    pub now: CancellationToken,
}

/// Why the shim cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the certificate of the identity door")]
    Certificate(#[from] CertificateError),
    #[error("listen.tls")]
    Tls(#[from] TlsError),
    #[error("wording.directory")]
    Wording(#[from] WordingError),
    #[error("delivery")]
    Delivery(#[from] DeliveryError),
}

/// Serves all three doors until it is told to end, and ends when the last request has: after `shutdown.delay` and
/// `shutdown.grace` at the latest.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<(), RunError> {
    let state = State::make(config, listeners.clock.clone())?;
    let settings = state.config.load_full();
    let identity_tls = certificates::identity(&settings.identity, &settings.state_dir)?;
    let client_tls = settings.listen.tls.as_ref().map(Tls::read).transpose()?.map(Tls::new);
    let drain = Drain::new(&settings.shutdown);
    let serving = Serving {
        clock: state.clock.clone(),
        tls: None,
        drain: drain.clone(),
        open: prometheus_client::metrics::gauge::Gauge::default(),
        panics: state.metrics.panics.clone(),
    };
    let admin = Admin { metrics: state.metrics.clone(), needs_shim: state.needs_shim.clone(), drain: drain.clone() };
    let clients = Serving { tls: client_tls, open: state.metrics.open_connections.clone(), ..serving.clone() };
    let homeserver = Serving { tls: Some(Tls::new(identity_tls)), ..serving.clone() };
    let doors = [
        tokio::spawn(serve(listeners.clients, Arc::new(state.front()), clients)),
        tokio::spawn(serve(listeners.identity, Arc::new(state.identity()?), homeserver)),
        tokio::spawn(serve(listeners.admin, Arc::new(admin), serving)),
    ];
    let chores = tokio::spawn(chores(state));
    tracing::info!("serving");
    tokio::select! {
        () = shutdown.drain.cancelled() => {
            tracing::info!("draining");
            tokio::select! {
                () = drain.begin() => {}
                () = shutdown.now.cancelled() => drain.cut(),
            }
        }
        () = shutdown.now.cancelled() => drain.cut(),
    }
    chores.abort();
    for door in doors {
        if door.await.is_err() {
            tracing::error!("a door ended by a panic");
        }
    }
    Ok(())
}

/// What the doors share, made once.
struct State {
    config: Shared,
    clock: Clock,
    metrics: Metrics,
    store: Arc<Store>,
    wording: Arc<Wording>,
    forward: Forward,
    needs_shim: NeedsShim,
    request_token_per_ip: Arc<Limit>,
    request_token_per_address: Arc<Limit>,
    submit_token_per_ip: Arc<Limit>,
}

impl State {
    fn make(config: Config, clock: Clock) -> Result<Self, RunError> {
        let metrics = Metrics::new();
        let wording = Wording::new(&config.wording.default_language, config.wording.templates.clone())?;
        let forward = Forward::new(&config.homeserver, &config.trusted_proxies, metrics.clone());
        Ok(Self {
            clock,
            store: Arc::new(Store::open(&config.store)),
            wording: Arc::new(wording),
            needs_shim: NeedsShim::new(config.homeserver.needs_shim, forward.clone(), metrics.clone()),
            forward,
            metrics,
            config: Arc::new(ArcSwap::from_pointee(config)),
            request_token_per_ip: Arc::default(),
            request_token_per_address: Arc::default(),
            submit_token_per_ip: Arc::default(),
        })
    }

    fn front(&self) -> Front {
        let (config, store, forward) = (&self.config, &self.store, &self.forward);
        let threepid_creds =
            ThreepidCreds::new(Arc::clone(config), Arc::clone(store), forward.clone(), self.clock.clone());
        Front {
            config: Arc::clone(config),
            needs_shim: self.needs_shim.clone(),
            metrics: self.metrics.clone(),
            forward: forward.clone(),
            versions: Versions::new(forward.clone()),
            request_token: RequestToken::new(
                Arc::clone(config),
                Arc::clone(store),
                forward.clone(),
                Arc::clone(&self.request_token_per_ip),
                self.clock.clone(),
            ),
            separate_add: SeparateAdd::new(forward.clone(), threepid_creds.clone()),
            threepid_creds,
            confirm: Confirm {
                config: Arc::clone(config),
                store: Arc::clone(store),
                clock: self.clock.clone(),
                wording: Arc::clone(&self.wording),
                per_ip: Arc::clone(&self.submit_token_per_ip),
            },
            submit_token: SubmitToken {
                config: Arc::clone(config),
                store: Arc::clone(store),
                clock: self.clock.clone(),
                per_ip: Arc::clone(&self.submit_token_per_ip),
            },
        }
    }

    fn identity(&self) -> Result<Identity, RunError> {
        let config = self.config.load_full();
        let request_token = identity::RequestToken {
            config: Arc::clone(&self.config),
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            wording: Arc::clone(&self.wording),
            delivery: Delivery::new(&config.email, &config.sms, &config.server_name, self.metrics.clone())?,
            per_address: Arc::clone(&self.request_token_per_address),
        };
        Ok(Identity::new(Arc::clone(&self.config), Arc::clone(&self.store), self.clock.clone(), request_token))
    }
}

/// What is done beside the requests: watching what the homeserver has learnt, and forgetting what is over.
async fn chores(state: State) {
    let mut look = tokio::time::interval(needs_shim::EVERY);
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    loop {
        tokio::select! {
            _ = look.tick() => {
                if let Err(unreachable) = state.needs_shim.look().await {
                    tracing::warn!("{unreachable}");
                }
            }
            _ = tidy.tick() => {
                let now = state.clock.now();
                state.store.expire(now);
                for limit in [&state.request_token_per_ip, &state.request_token_per_address, &state.submit_token_per_ip] {
                    limit.expire(now);
                }
            }
        }
    }
}
