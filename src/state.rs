//! What the doors share, made once; and each door, made of it.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::admin::{Admin, Place};
use crate::config::Config;
use crate::front::confirm::Confirm;
use crate::front::forward::Forward;
use crate::front::request_token::RequestToken;
use crate::front::separate_add::SeparateAdd;
use crate::front::submit_token::SubmitToken;
use crate::front::threepid_creds::ThreepidCreds;
use crate::front::versions::Versions;
use crate::front::{self, Front};
use crate::identity::{self, Allowance, Identity};
use crate::limit::Limit;
use crate::needs_shim::NeedsShim;
use crate::reload::{InForce, LastReload, Reload, Unusable};
use crate::serve::{Clock, Crowd, Detached, Drain, WorkersError};
use crate::state_dir::{self, StateDirError};
use crate::store::{self, Store};
use crate::supervisor::Supervisor;
use crate::telemetry::{Metrics, Recent, RequestIds};

/// Why the shim cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error(transparent)]
    Workers(#[from] WorkersError),
    #[error(transparent)]
    Store(#[from] store::OpenError),
}

/// What the doors share, made once.
pub(super) struct State {
    pub(super) in_force: InForce,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) store: Arc<Store>,
    pub(super) ids: Arc<RequestIds>,
    pub(super) forward: Forward,
    pub(super) needs_shim: NeedsShim,
    pub(super) request_token_per_ip: Arc<Limit>,
    pub(super) allowance: Arc<Allowance>,
    pub(super) submit_token_per_ip: Arc<Limit>,
    pub(super) detached: Detached,
}

impl State {
    pub(super) fn make(config: Config, clock: Clock) -> Result<Self, RunError> {
        let mut metrics = Metrics::new();
        let now = clock.clone();
        metrics.recent = Recent::by(move || now.now());
        metrics.started.set(Duration::from_millis(clock.now().as_millis()).as_secs_f64());
        metrics.expect_routes(&front::ROUTES);
        metrics.expect_routes(&identity::ROUTES);
        state_dir::prepare(&config)?;
        let in_force = InForce::start(config, &metrics, clock.now())?;
        let config = in_force.config.load();
        let forward = Forward::new(&config.homeserver, &config.trusted_proxies, metrics.clone());
        let store = Arc::new(Store::open(&config.store, &metrics)?);
        Ok(Self {
            ids: Arc::new(RequestIds::of(store.process(), clock.now())),
            clock,
            request_token_per_ip: Arc::new(Limit::new("request_token_per_ip", &store)),
            allowance: Arc::new(Allowance::new(&store)),
            submit_token_per_ip: Arc::new(Limit::new("submit_token_per_ip", &store)),
            detached: Detached::default(),
            store,
            needs_shim: NeedsShim::new(config.homeserver.needs_shim, forward.clone(), metrics.clone()),
            forward,
            metrics,
            in_force: in_force.clone(),
        })
    }

    pub(super) fn reload(&self, last: LastReload, supervisor: Supervisor) -> Reload {
        let (in_force, metrics, clock) = (self.in_force.clone(), self.metrics.clone(), self.clock.clone());
        Reload { in_force, metrics, last, supervisor, clock }
    }

    /// Of one door.
    pub(super) fn crowd(&self, exempt: fn(&Config) -> &[IpNet]) -> Crowd {
        Crowd::new(Arc::clone(&self.in_force.config), exempt, self.metrics.clone())
    }

    pub(super) fn front(&self) -> Front {
        let (config, store, forward) = (&self.in_force.config, &self.store, &self.forward);
        let (clock, detached) = (self.clock.clone(), self.detached.clone());
        let threepid_creds =
            ThreepidCreds::new(Arc::clone(config), Arc::clone(store), forward.clone(), clock, detached);
        Front {
            config: Arc::clone(config),
            needs_shim: self.needs_shim.clone(),
            metrics: self.metrics.clone(),
            ids: Arc::clone(&self.ids),
            forward: forward.clone(),
            versions: Versions::new(forward.clone()),
            request_token: RequestToken::new(
                Arc::clone(config),
                Arc::clone(store),
                forward.clone(),
                Arc::clone(&self.request_token_per_ip),
                self.clock.clone(),
                self.metrics.recent.clone(),
                self.detached.clone(),
            ),
            separate_add: SeparateAdd::new(forward.clone(), threepid_creds.clone()),
            threepid_creds,
            confirm: Confirm {
                config: Arc::clone(config),
                store: Arc::clone(store),
                clock: self.clock.clone(),
                wording: Arc::clone(&self.in_force.wording),
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

    pub(super) fn admin(&self, last_reload: LastReload, drain: Drain, places: [Place; 3]) -> Admin {
        Admin {
            config: Arc::clone(&self.in_force.config),
            metrics: self.metrics.clone(),
            needs_shim: self.needs_shim.clone(),
            store: Arc::clone(&self.store),
            last_reload,
            drain,
            clock: self.clock.clone(),
            places,
            looking: Arc::default(),
        }
    }

    pub(super) fn identity(&self) -> Identity {
        let config = &self.in_force.config;
        let request_token = identity::RequestToken {
            config: Arc::clone(config),
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            wording: Arc::clone(&self.in_force.wording),
            delivery: Arc::clone(&self.in_force.delivery),
            allowance: Arc::clone(&self.allowance),
        };
        Identity {
            config: Arc::clone(config),
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            ids: Arc::clone(&self.ids),
            request_token: Arc::new(request_token),
            detached: self.detached.clone(),
            strangers: Arc::default(),
        }
    }
}
