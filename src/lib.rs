//! threepid-shim gives MSC2263 to a Matrix homeserver that cannot be upgraded: `requestToken` without `id_server`.
//!
//! # The three trips
//! 1. **Ordinary request**: `serve` → `front/fast` → `homeserver`, as bytes: its head is looked at once, its body only counted.
//!    What hyper has to read (HTTP/2, upgrades, `Expect`, HTTP/1.0, whatever is odd) goes `serve` → `front` → `front/forward` → `homeserver`.
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
//! Beside them, with `identity.accept_unannounced`: a homeserver that needs no shim, but has no gateway of its own, has
//! the identity door verify by itself. Such a session has no note and no trip through the front; it is
//! [`Purpose::Delegated`](matrix::Purpose), which completes nothing there, and the homeserver alone is told of it.
//!
//! # Who may name whom
//! `tests/it/layers.rs` holds every `use crate::…` to this table. `telemetry` and `matrix` may be named by any room.
//!
//! | module | may name |
//! |---|---|
//! | `lib` | every room |
//! | `state` | `admin` `config` `front` and its children `identity` `limit` `needs_shim` `reload` `serve` `state_dir` `store` `supervisor` |
//! | `main` | `lib` `command` `config` `container` `doctor` `healthcheck` `reload` `supervisor` |
//! | `command` | `config` `delivery` `serve` `wording` |
//! | `front` | `config` `limit` `needs_shim` `random` `serve` `store` and its children |
//! | `front/forward` | `config` `homeserver` `serve` `wire` |
//! | `front/fast` | `front/forward` `front/route` `homeserver` `serve` `wire` |
//! | `front/request_token` `front/threepid_creds` | `body` `config` `front/forward` `in_flight` `limit` `random` `serve` `session` `store` |
//! | `front/route` | `front/separate_add` `front/threepid_creds` |
//! | `front/separate_add` | `body` `front/forward` `front/threepid_creds` |
//! | `front/versions` | `body` `front/forward` |
//! | `front/submit_token` | `body` `config` `limit` `serve` `store` `submission` |
//! | `front/confirm` | `body` `config` `limit` `serve` `session` `store` `wording` |
//! | `identity` | `body` `config` `delivery` `in_flight` `limit` `random` `serve` `session` `store` `submission` `wording` |
//! | `submission` | `body` `config` `session` `store` |
//! | `needs_shim` | `config` `front/forward` `front/versions` |
//! | `in_flight` | `store` |
//! | `store` | `config` `random` `session` |
//! | `delivery` | `config` `random` `reach` `wording` |
//! | `admin` | `config` `needs_shim` `reload` `serve` `session` `store` |
//! | `doctor` | `body` `certificates` `config` `delivery` `front/versions` `random` `reload` `serve` `state_dir` `store` `wording` |
//! | `reload` | `certificates` `config` `delivery` `serve` `supervisor` `wording` |
//! | `certificates` | `config` `serve` |
//! | `state_dir` | `certificates` `config` |
//! | `serve` | `config` `wire` |
//! | `signals` | `reload` `supervisor` |
//! | `limit` | `config` `serve` `store` |
//! | `wording` | `config` |
//! | `homeserver` | `config` `reach` |
//! | `healthcheck` `telemetry` | `config` |
//! | `body` `config` `reach` `session` `wire` `random` | |
//! | `matrix` `container` `supervisor` | nothing |
//!
//! # Numbers in comments
//! `S§4.7` and `S§5.12` are rows of the lists of attacks (S§4) and of faults (S§5) in `tests/README.md`, beside the tests that
//! show what becomes of each.

pub mod admin;
pub mod body;
pub mod certificates;
pub mod command;
pub mod config;
pub mod container;
pub mod delivery;
pub mod doctor;
pub mod front;
pub mod healthcheck;
pub mod homeserver;
pub mod identity;
pub mod in_flight;
pub mod limit;
pub mod matrix;
pub mod needs_shim;
pub mod random;
pub mod reach;
pub mod reload;
pub mod serve;
pub mod session;
mod signals;
mod state;
pub mod state_dir;
pub mod store;
pub mod submission;
pub mod supervisor;
pub mod telemetry;
pub mod wire;
pub mod wording;

pub use signals::Signals;
pub use state::RunError;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Handle;
use tokio::time::Instant;

use admin::Place;
use config::{Config, Shutdown};
use front::fast::Fast;
use matrix::Timestamp;
use reload::{EXPIRY_EVERY, LastReload};
use serve::{Clock, Detached, Drain, Listeners, Serving, Workers, serve};
use state::State;
use store::Store;

/// How long the doors behind the clients' stay open for what is under way there, once no client is left.
const BEHIND: Shutdown = Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(1) };
/// Between two rounds of forgetting what is over.
const TIDY_EVERY: Duration = Duration::from_secs(30);
/// Between two looks at how much was forwarded.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// After draining, for what is left to write.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Serves all three doors until it is told to end, and ends when the last request has: after `shutdown.delay` and
/// `shutdown.grace` at the latest.
pub async fn run(config: Config, listeners: Listeners, signals: Signals) -> Result<(), RunError> {
    let in_time = config.shutdown.delay + config.shutdown.grace;
    let (drain, h2c) = (Drain::new(&config.shutdown), config.listen.h2c);
    // To answer its clients to the end the homeserver has to reach us, and the operator to see it.
    let behind = Drain::new(&BEHIND);
    let announced_by = config.listen.proxy_protocol.then(|| config.trusted_proxies.clone().into());
    let state = State::make(config, listeners.clock.clone())?;
    let (in_force, last_reload, detached) = (state.in_force.clone(), LastReload::default(), state.detached.clone());
    let serving = Serving {
        clock: state.clock.clone(),
        tls: None,
        h2c: false,
        announced_by: None,
        drain: behind.clone(),
        leaving: Some(drain.clone()),
        crowd: Some(state.crowd(|_| &[])),
        open: Gauge::default(),
        panics: state.metrics.panics.clone(),
        elsewhere: None,
    };
    let open_of_identity = Gauge::default();
    let places = [
        Place::of("clients", &listeners.clients, in_force.client_tls.is_some(), &state.metrics.open_connections),
        Place::of("identity", &listeners.identity, true, &open_of_identity),
        Place::of("admin", &listeners.admin, false, &serving.open),
    ];
    let admin = state.admin(last_reload.clone(), drain.clone(), places);
    let elsewhere = Some(Handle::current());
    let crowd = Some(state.crowd(|config| &config.trusted_proxies));
    let tls = in_force.client_tls.clone();
    let clients = Serving {
        tls,
        h2c,
        announced_by,
        crowd,
        open: state.metrics.open_connections.clone(),
        elsewhere,
        drain: drain.clone(),
        leaving: None,
        ..serving.clone()
    };
    let crowd = Some(state.crowd(|config| &config.identity.allowed_peers));
    let tls = Some(in_force.identity_tls.clone());
    let homeserver = Serving { tls, crowd, open: open_of_identity, ..serving.clone() };
    let front = Arc::new(state.front());
    let worker = || Arc::new(front::Worker { front: Arc::clone(&front), fast: Fast::new(state.forward.clone()) });
    let workers = Workers::start(listeners.clients, worker, &clients)?;
    let doors = [
        tokio::spawn(serve(listeners.identity, Arc::new(state.identity()), homeserver)),
        tokio::spawn(serve(listeners.admin, Arc::new(admin), serving)),
    ];
    let supervisor = signals.supervisor.clone();
    let reload = tokio::spawn(
        state.reload(last_reload, supervisor.clone()).run(Arc::clone(&signals.reload), signals.look_every),
    );
    let pulse = tokio::spawn(pulse(Arc::clone(&state.store), state.clock.clone()));
    let chores = tokio::spawn(chores(state));
    supervisor.ready();
    tracing::info!("serving");
    drained(&signals, &drain, &behind, &detached, in_time).await;
    pulse.abort();
    chores.abort();
    reload.abort();
    for door in doors {
        if door.await.is_err() {
            tracing::error!("a door ended by a panic");
        }
    }
    drop(workers);
    Ok(())
}

/// Ends when we have been told to end and nothing is left that would be waited for.
async fn drained(signals: &Signals, clients: &Drain, behind: &Drain, detached: &Detached, in_time: Duration) {
    let all = async {
        let until = Instant::now() + in_time;
        clients.begin().await;
        // What goes on behind an answer needs its homeserver to reach us, too.
        detached.ended(until).await;
        behind.begin().await;
        let left = detached.ended(until).await;
        if left > 0 {
            tracing::warn!(left, "grace is over, giving up what goes on behind answers");
        }
    };
    tokio::select! {
        () = signals.drain.cancelled() => {
            tracing::info!("draining");
            signals.supervisor.stopping(in_time + LAST_WORDS);
            tokio::select! {
                () = all => {}
                () = signals.now.cancelled() => {}
            }
        }
        () = signals.now.cancelled() => {}
    }
    if signals.now.is_cancelled() {
        clients.cut();
        behind.cut();
        behind.begin().await;
    }
}

/// Shows other shims that this one lives; beside the chores, since one of those may wait for a slow homeserver.
async fn pulse(store: Arc<Store>, clock: Clock) {
    let mut beat = tokio::time::interval(store::BEAT);
    loop {
        beat.tick().await;
        if let Err(error) = store.beat(clock.now()).await {
            // Whoever needs the store says so louder.
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "other shims could not be shown that this one lives"
            );
        }
    }
}

/// What is done beside the requests: watching what the homeserver has learnt and when certificates end, and forgetting what
/// is over.
async fn chores(state: State) {
    let mut look = tokio::time::interval(needs_shim::EVERY);
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    let mut sample = tokio::time::interval(SAMPLE_EVERY);
    let mut certificates_looked_at: Option<Timestamp> = None;
    loop {
        tokio::select! {
            _ = look.tick() => {
                if let Err(unreachable) = state.needs_shim.look().await {
                    tracing::warn!("{unreachable}");
                }
            }
            _ = sample.tick() => state.metrics.sample(),
            _ = tidy.tick() => {
                let now = state.clock.now();
                state.store.expire(now);
                for limit in [&state.request_token_per_ip, &state.submit_token_per_ip] {
                    limit.expire(now);
                }
                state.allowance.expire(now);
                // By the clock that they end by, which may be set.
                let apart = certificates_looked_at.map(|then| then.until(now).max(now.until(then)));
                if apart.is_none_or(|apart| apart >= EXPIRY_EVERY) {
                    certificates_looked_at = Some(now);
                    state.in_force.renew(now).await;
                    state.in_force.tell_expiry(&state.metrics, now);
                }
            }
        }
    }
}
