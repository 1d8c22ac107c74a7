//! Every number the shim keeps, and how Prometheus is told them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{
    Build, Delivered, DeliveredBy, Door, Failed, Forwarded, Intercepted, LimitReached, Refused, Reloaded, Staged,
    StoreKind, StoreOperation, TurnedAway, Verified,
};
use super::{Fault, Recent, commit, exposition};
use crate::matrix::{Medium, Purpose};

/// Begins the name of every number but those that any program has.
const PREFIX: &str = "threepid_shim";
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Every number the shim keeps. Cheap to clone; the ordinary request touches plain atomics only.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// What the operator's page shows besides.
    pub recent: Recent,
    /// Ordinary requests relayed, by class of status: 1xx to 5xx.
    pub forwarded: Arc<[Counter; 5]>,
    /// Ordinary requests that the homeserver could not be asked (502, 504).
    pub homeserver_unreachable: Counter,
    pub open_connections: Gauge<i64, AtomicI64>,
    /// Connections closed as they came, since there were too many.
    pub turned_away: Family<TurnedAway, Counter>,
    pub panics: Counter,
    intercepted: Family<Intercepted, Counter>,
    intercepted_seconds: Histograms<Intercepted>,
    failed: Family<Failed, Counter>,
    refused: Family<Refused, Counter>,
    pub limits_reached: Family<LimitReached, Counter>,
    pub sessions_begun: Family<Verified, Counter>,
    pub sessions_validated: Family<Verified, Counter>,
    pub sessions_consumed: Family<Verified, Counter>,
    pub delivered: Family<Delivered, Counter>,
    pub delivery_seconds: Histograms<DeliveredBy>,
    pub stage_seconds: Histograms<Staged>,
    /// 1 while the homeserver behind the shim still demands `id_server`.
    pub homeserver_needs_shim: Gauge<i64, AtomicI64>,
    /// 1 when it answered the last time it was looked at.
    pub homeserver_up: Gauge<i64, AtomicI64>,
    pub config_reloads: Family<Reloaded, Counter>,
    /// 1 while what is in force is not what is written.
    pub config_reload_failed: Gauge<i64, AtomicI64>,
    /// When the certificate that a door shows ends, in seconds since 1970.
    pub certificate_expiry: Family<Door, Gauge<i64, AtomicI64>>,
    pub store_errors: Family<StoreOperation, Counter>,
    pub store_seconds: Histograms<StoreOperation>,
    pub store_kind: Family<StoreKind, Gauge>,
    /// In seconds since 1970.
    pub started: Gauge<f64, AtomicU64>,
}

/// How an intercepted request ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub route: &'static str,
    pub outcome: &'static str,
    pub fault: Fault,
    /// Of the shim's own refusal.
    pub errcode: Option<&'static str>,
    pub took: Duration,
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

/// A store in memory answers within microseconds.
fn short_seconds() -> Histogram {
    Histogram::new([
        0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    ])
}

/// The counters of forwarded requests, taken out of their family once: to look one up takes a lock.
fn by_status(family: &Family<Forwarded, Counter>) -> Arc<[Counter; 5]> {
    Arc::new(["1xx", "2xx", "3xx", "4xx", "5xx"].map(|status| family.get_or_create(&Forwarded { status }).clone()))
}

impl Metrics {
    pub fn new() -> Self {
        let forwarded = Family::default();
        let metrics = Self {
            registry: Arc::default(),
            forwarded: by_status(&forwarded),
            homeserver_unreachable: Counter::default(),
            open_connections: Gauge::default(),
            turned_away: Family::default(),
            panics: Counter::default(),
            intercepted: Family::default(),
            intercepted_seconds: Family::new_with_constructor(seconds),
            failed: Family::default(),
            refused: Family::default(),
            limits_reached: Family::default(),
            sessions_begun: Family::default(),
            sessions_validated: Family::default(),
            sessions_consumed: Family::default(),
            delivered: Family::default(),
            delivery_seconds: Family::new_with_constructor(seconds),
            stage_seconds: Family::new_with_constructor(seconds),
            homeserver_needs_shim: Gauge::default(),
            homeserver_up: Gauge::default(),
            config_reloads: Family::default(),
            config_reload_failed: Gauge::default(),
            certificate_expiry: Family::default(),
            store_errors: Family::default(),
            store_seconds: Family::new_with_constructor(short_seconds),
            store_kind: Family::default(),
            started: Gauge::default(),
            recent: Recent::default(),
        };
        metrics.begin_at_nought();
        let mut registry = Registry::default();
        registry.register_with_unit(
            "process_start_time",
            "When the process began, since the Unix epoch",
            Unit::Seconds,
            metrics.started.clone(),
        );
        let own = registry.sub_registry_with_prefix(PREFIX);
        own.register("forwarded_requests", "Requests forwarded to the homeserver, by their answer's status", forwarded);
        metrics.register_doors(own);
        metrics.register_verification(own);
        metrics.register_delivery(own);
        metrics.register_neighbours(own);
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// A series that first appears with a 1 is an increase that no `increase()` sees.
    fn begin_at_nought(&self) {
        for limit in ["connections", "connections_per_peer"] {
            self.turned_away.get_or_create(&TurnedAway { limit }).inc_by(0);
        }
        for outcome in ["applied", "failed"] {
            self.config_reloads.get_or_create(&Reloaded { outcome }).inc_by(0);
        }
        for operation in ["get", "update", "limit"] {
            self.store_errors.get_or_create(&StoreOperation { operation }).inc_by(0);
        }
        for (purpose, medium) in
            Purpose::ALL.into_iter().flat_map(|purpose| Medium::ALL.map(|medium| (purpose, medium)))
        {
            let labels = Verified { purpose: purpose.as_str(), medium: medium.as_str() };
            for sessions in [&self.sessions_begun, &self.sessions_validated, &self.sessions_consumed] {
                sessions.get_or_create(&labels).inc_by(0);
            }
        }
    }

    /// The same for the routes of a door.
    pub fn expect_routes(&self, routes: &[&'static str]) {
        for (route, fault) in routes.iter().flat_map(|route| Fault::ALL.map(|fault| (*route, fault.as_str()))) {
            self.failed.get_or_create(&Failed { route, fault }).inc_by(0);
        }
    }

    fn register_doors(&self, own: &mut Registry) {
        own.register("open_connections", "Connections open on the client door", self.open_connections.clone());
        let help = "Connections closed as they came, by the limit that was reached";
        own.register("connections_turned_away", help, self.turned_away.clone());
        own.register("panics", "Connections that ended by a panic", self.panics.clone());
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION"), commit: commit() }).set(1);
        own.register("build_info", "Always 1; version and commit of the program", build);
    }

    fn register_verification(&self, own: &mut Registry) {
        own.register("intercepted_requests", "Requests the shim looked into", self.intercepted.clone());
        own.register_with_unit(
            "intercepted_request_duration",
            "Time from the request's head to its answer",
            Unit::Seconds,
            self.intercepted_seconds.clone(),
        );
        let help = "Requests the shim looked into that did not end well, by whose fault it was";
        own.register("intercepted_failures", help, self.failed.clone());
        own.register("refusals", "Requests that the shim itself refused", self.refused.clone());
        let help = "Requests and messages refused since a limit of their number was reached";
        own.register("limits_reached", help, self.limits_reached.clone());
        own.register("sessions_begun", "Validation sessions begun", self.sessions_begun.clone());
        let help = "Validation sessions whose link or code came back";
        own.register("sessions_validated", help, self.sessions_validated.clone());
        let help = "Validation sessions that completed a request at the homeserver";
        own.register("sessions_consumed", help, self.sessions_consumed.clone());
    }

    fn register_delivery(&self, own: &mut Registry) {
        own.register("deliveries", "Messages handed over, or the stage that failed", self.delivered.clone());
        own.register_with_unit(
            "delivery_duration",
            "Time of a whole dialogue with the mail server or gateway",
            Unit::Seconds,
            self.delivery_seconds.clone(),
        );
        own.register_with_unit(
            "delivery_stage_duration",
            "Time of one stage of such a dialogue, whether it went well or failed",
            Unit::Seconds,
            self.stage_seconds.clone(),
        );
    }

    fn register_neighbours(&self, own: &mut Registry) {
        own.register(
            "homeserver_unreachable",
            "Requests that could not be forwarded because the homeserver could not be reached",
            self.homeserver_unreachable.clone(),
        );
        let help = "1 when the homeserver answered the last look at it, which is every minute";
        own.register("homeserver_up", help, self.homeserver_up.clone());
        own.register(
            "homeserver_needs_shim",
            "1 while the homeserver still demands id_server, 0 once it has learnt MSC2263",
            self.homeserver_needs_shim.clone(),
        );
        own.register("config_reloads", "Times the configuration was read again", self.config_reloads.clone());
        own.register(
            "config_reload_failed",
            "1 while the configuration that is written is faulty and the one before stays in force",
            self.config_reload_failed.clone(),
        );
        own.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate that a door shows ends, in seconds since 1970",
            Unit::Seconds,
            self.certificate_expiry.clone(),
        );
        own.register("store_errors", "Times the store could not do what it was asked", self.store_errors.clone());
        own.register_with_unit(
            "store_duration",
            "Time that the store took, with all its round trips",
            Unit::Seconds,
            self.store_seconds.clone(),
        );
        own.register("store_info", "Always 1; where sessions are kept", self.store_kind.clone());
    }

    /// Counts one intercepted request that has been answered.
    pub fn count_intercepted(&self, ended: &Ended) {
        let Ended { route, outcome, fault, errcode, took } = *ended;
        let labels = Intercepted { route, outcome };
        self.intercepted.get_or_create(&labels).inc();
        self.intercepted_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        if fault != Fault::None {
            self.failed.get_or_create(&Failed { route, fault: fault.as_str() }).inc();
        }
        if let Some(errcode) = errcode {
            self.refused.get_or_create(&Refused { route, errcode }).inc();
        }
        self.recent.intercepted(outcome, took);
    }

    /// The whole registry in the text format of Prometheus.
    pub fn render(&self) -> Result<String, fmt::Error> {
        exposition::written(&self.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}
