//! Every number the shim keeps, and how Prometheus is told them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an intercepted request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Intercepted {
    pub route: &'static str,
    pub outcome: &'static str,
}

/// Labels of a message handed to a mail server or gateway, or not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Delivered {
    pub medium: &'static str,
    /// `delivered`, or the stage that failed: `connect`, `tls`, `auth`, `mail_from`, `rcpt`, `data`, `gateway`, ...
    pub outcome: &'static str,
}

/// Label of the time that handing over took.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeliveredBy {
    pub medium: &'static str,
}

/// Label of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reloaded {
    /// `applied` or `failed`.
    pub outcome: &'static str,
}

/// Label of a connection that was closed as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TurnedAway {
    /// Its key in `[limits]`.
    pub limit: &'static str,
}

/// Label of something asked of the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StoreOperation {
    /// `get`, `update` or `limit`.
    pub operation: &'static str,
}

/// Every number the shim keeps. Cheap to clone; the ordinary request touches plain atomics only.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Ordinary requests relayed, by class of status: 1xx to 5xx.
    pub forwarded: Arc<[Counter; 5]>,
    /// Ordinary requests that the homeserver could not be asked (502, 504).
    pub homeserver_unreachable: Counter,
    pub open_connections: Gauge<i64, AtomicI64>,
    /// Connections closed as they came, since there were too many.
    pub turned_away: Family<TurnedAway, Counter>,
    pub panics: Counter,
    pub intercepted: Family<Intercepted, Counter>,
    pub intercepted_seconds: Family<Intercepted, Histogram, fn() -> Histogram>,
    pub delivered: Family<Delivered, Counter>,
    pub delivery_seconds: Family<DeliveredBy, Histogram, fn() -> Histogram>,
    /// 1 while the homeserver behind the shim still demands `id_server`.
    pub homeserver_needs_shim: Gauge<i64, AtomicI64>,
    pub config_reloads: Family<Reloaded, Counter>,
    /// 1 while what is in force is not what is written.
    pub config_reload_failed: Gauge<i64, AtomicI64>,
    pub store_errors: Family<StoreOperation, Counter>,
    pub store_seconds: Family<StoreOperation, Histogram, fn() -> Histogram>,
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

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("threepid_shim");
        let forwarded: Arc<[Counter; 5]> = Arc::default();
        for (class, counter) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(forwarded.iter()) {
            registry.sub_registry_with_label(("status".into(), class.into())).register(
                "forwarded_requests",
                "Requests forwarded to the homeserver",
                counter.clone(),
            );
        }
        let metrics = Self {
            forwarded,
            homeserver_unreachable: Counter::default(),
            open_connections: Gauge::default(),
            turned_away: Family::default(),
            panics: Counter::<u64, AtomicU64>::default(),
            intercepted: Family::default(),
            intercepted_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            delivered: Family::default(),
            delivery_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            homeserver_needs_shim: Gauge::default(),
            config_reloads: Family::default(),
            config_reload_failed: Gauge::default(),
            store_errors: Family::default(),
            store_seconds: Family::new_with_constructor(short_seconds as fn() -> Histogram),
            registry: Arc::default(),
        };
        registry.register(
            "homeserver_unreachable",
            "Requests that could not be forwarded because the homeserver could not be reached",
            metrics.homeserver_unreachable.clone(),
        );
        registry.register("open_connections", "Connections open on the client door", metrics.open_connections.clone());
        metrics.register_turned_away(&mut registry);
        registry.register("panics", "Connections that ended by a panic", metrics.panics.clone());
        registry.register("intercepted_requests", "Requests the shim looked into", metrics.intercepted.clone());
        registry.register_with_unit(
            "intercepted_request_duration",
            "Time from the request's head to its answer",
            Unit::Seconds,
            metrics.intercepted_seconds.clone(),
        );
        registry.register("deliveries", "Messages handed over, or the stage that failed", metrics.delivered.clone());
        registry.register_with_unit(
            "delivery_duration",
            "Time of a whole dialogue with the mail server or gateway",
            Unit::Seconds,
            metrics.delivery_seconds.clone(),
        );
        registry.register(
            "homeserver_needs_shim",
            "1 while the homeserver still demands id_server, 0 once it has learnt MSC2263",
            metrics.homeserver_needs_shim.clone(),
        );
        metrics.register_reloads(&mut registry);
        metrics.register_store(&mut registry);
        Self { registry: Arc::new(registry), ..metrics }
    }

    fn register_turned_away(&self, registry: &mut Registry) {
        for limit in ["connections", "connections_per_peer"] {
            self.turned_away.get_or_create(&TurnedAway { limit }).inc_by(0);
        }
        let help = "Connections closed as they came, by the limit that was reached";
        registry.register("connections_turned_away", help, self.turned_away.clone());
    }

    fn register_reloads(&self, registry: &mut Registry) {
        for outcome in ["applied", "failed"] {
            self.config_reloads.get_or_create(&Reloaded { outcome }).inc_by(0);
        }
        registry.register("config_reloads", "Times the configuration was read again", self.config_reloads.clone());
        registry.register(
            "config_reload_failed",
            "1 while the configuration that is written is faulty and the one before stays in force",
            self.config_reload_failed.clone(),
        );
    }

    fn register_store(&self, registry: &mut Registry) {
        for operation in ["get", "update", "limit"] {
            self.store_errors.get_or_create(&StoreOperation { operation }).inc_by(0);
        }
        registry.register("store_errors", "Times the store could not do what it was asked", self.store_errors.clone());
        registry.register_with_unit(
            "store_duration",
            "Time that the store took, with all its round trips",
            Unit::Seconds,
            self.store_seconds.clone(),
        );
    }

    /// Counts one intercepted request that has been answered.
    pub fn count_intercepted(&self, route: &'static str, outcome: &'static str, took: Duration) {
        let labels = Intercepted { route, outcome };
        self.intercepted.get_or_create(&labels).inc();
        self.intercepted_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The whole registry in the text format of Prometheus.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
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
