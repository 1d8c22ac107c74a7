//! The configuration read again: on SIGHUP, or when a file it was read from has changed. All of it is put in force, or
//! nothing.

mod expiry;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::certificates;
use crate::config::{self, Config, IdentityTls, Source, Wrong};
use crate::delivery::{self, Delivery};
use crate::matrix::Timestamp;
use crate::serve::{Certified, Clock, Tls};
use crate::supervisor::Supervisor;
use crate::telemetry::{self, Metrics, Neighbour, Reloaded};
use crate::wording::{self, Wording};
pub use expiry::{EVERY as EXPIRY_EVERY, SOON as EXPIRES_SOON};

/// Between two looks at the files.
pub const EVERY: Duration = Duration::from_secs(5);
/// A changed file is looked at a second time after this part of it, since editors write in more than one step.
const SETTLED_AFTER: u32 = 5;

/// All that a reload replaces, as the doors share it. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct InForce {
    pub config: config::Shared,
    pub wording: wording::Shared,
    pub delivery: delivery::Shared,
    pub client_tls: Option<Tls>,
    pub identity_tls: Tls,
}

/// What cannot be used of a configuration that is good by itself, one fault an entry.
#[derive(Debug, thiserror::Error)]
#[error("{}", faults.join("\n"))]
pub struct Unusable {
    pub faults: Vec<String>,
    /// Whether another configuration would help: its templates, its words, its files. The machine may be at fault, too.
    pub is_misconfigured: bool,
}

/// Whether all parts can be made of this configuration. Writes nothing, asks nobody.
pub fn check(config: &Config) -> Result<(), Unusable> {
    let mut faults = Faults::default();
    match Parts::make(config, &Metrics::new(), &mut faults) {
        Some(_) => Ok(()),
        None => Err(Unusable { faults: faults.0, is_misconfigured: true }),
    }
}

/// How many faults the last reload had. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct LastReload(Arc<AtomicUsize>);

/// Reads the configuration again for as long as it runs.
pub struct Reload {
    pub in_force: InForce,
    pub metrics: Metrics,
    pub last: LastReload,
    pub supervisor: Supervisor,
    pub clock: Clock,
}

impl InForce {
    /// Makes all parts at the start.
    pub fn start(config: Config, metrics: &Metrics, now: Timestamp) -> Result<Self, Unusable> {
        let mut faults = Faults::default();
        let parts = Parts::make(&config, metrics, &mut faults);
        let is_misconfigured = parts.is_none() || !matches!(config.identity.tls, IdentityTls::Generated { .. });
        let identity_tls = certificates::identity(&config.identity, &config.state_dir, now);
        let identity_tls = faults.note("identity.tls", identity_tls);
        match (parts, identity_tls) {
            (Some(parts), Some(identity_tls)) => Ok(Self {
                config: Arc::new(ArcSwap::from_pointee(config)),
                wording: Arc::new(ArcSwap::from_pointee(parts.wording)),
                delivery: Arc::new(ArcSwap::from_pointee(parts.delivery)),
                client_tls: parts.client_tls.map(Tls::new),
                identity_tls: Tls::new(identity_tls),
            }),
            (None, _) | (_, None) => Err(Unusable { faults: faults.0, is_misconfigured }),
        }
    }

    /// A request that has begun keeps what it has taken.
    fn replace(&self, next: Next) {
        self.wording.store(Arc::new(next.parts.wording));
        self.delivery.store(Arc::new(next.parts.delivery));
        if let (Some(tls), Some(new)) = (&self.client_tls, next.parts.client_tls) {
            tls.replace(new);
        }
        if let Some(new) = next.identity_tls {
            self.identity_tls.replace(new);
        }
        telemetry::set_level(next.config.log.level);
        self.config.store(Arc::new(next.config));
    }
}

impl LastReload {
    /// None: what is in force is what was written.
    pub fn faults(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Reload {
    /// Whenever it is `asked`; and when a look finds a file changed, and the next look finds it the same as the last.
    pub async fn run(self, asked: Arc<Notify>, every: Duration) {
        let mut tried = self.in_force.config.load().source.clone();
        let mut changing: Option<Source> = None;
        loop {
            let wait = if changing.is_some() { every / SETTLED_AFTER } else { every };
            let why = tokio::select! {
                () = asked.notified() => "SIGHUP",
                () = tokio::time::sleep(wait) => {
                    let known = tried.clone();
                    let Ok(found) = spawn_blocking(move || known.look()).await else { continue };
                    let before = changing.take();
                    if found == tried {
                        continue;
                    }
                    if before.as_ref() != Some(&found) {
                        changing = Some(found);
                        continue;
                    }
                    tried = found;
                    "a file has changed"
                }
            };
            changing = None;
            self.supervisor.reloading();
            tried = self.reload(why, tried).await;
            self.supervisor.reloaded(self.last.faults());
        }
    }

    /// Gives back what was seen, whether it could be used or not: a fault is told once. `tried`: as far as is known.
    async fn reload(&self, why: &'static str, tried: Source) -> Source {
        let (running, metrics, now) = (self.in_force.config.load_full(), self.metrics.clone(), self.clock.now());
        let read = spawn_blocking(move || read_again(&running, &metrics, now)).await;
        let (source, next) = read.unwrap_or_else(|panic| (tried, Err(vec![panic.to_string()])));
        let faults = match next {
            Ok(next) => {
                for warning in &next.config.warnings {
                    tracing::warn!("{warning}");
                }
                if !next.waiting.is_empty() {
                    tracing::warn!(keys = next.waiting.join(" "), "changed, but takes effect at the next start");
                }
                self.in_force.replace(next);
                self.in_force.tell_expiry(&self.metrics, now);
                tracing::info!(why, "configuration reloaded");
                Vec::new()
            }
            Err(faults) => faults,
        };
        for fault in &faults {
            tracing::error!(why, fault, "configuration not reloaded: the one before stays in force");
        }
        self.last.0.store(faults.len(), Ordering::Relaxed);
        if faults.is_empty() {
            self.metrics.recent.worked(Neighbour::Config, None);
        } else {
            self.metrics.recent.failed(Neighbour::Config, "faults");
        }
        self.metrics.config_reload_failed.set((!faults.is_empty()).into());
        let outcome = if faults.is_empty() { "applied" } else { "failed" };
        self.metrics.config_reloads.get_or_create(&Reloaded { outcome }).inc();
        source
    }
}

/// What a reload puts in force, all made before any of it is.
struct Next {
    config: Config,
    parts: Parts,
    /// `None`: the one that the shim made for itself serves on.
    identity_tls: Option<Certified>,
    /// Keys that wait for the next start.
    waiting: Vec<&'static str>,
}

struct Parts {
    wording: Wording,
    delivery: Delivery,
    client_tls: Option<Certified>,
}

impl Parts {
    fn make(config: &Config, metrics: &Metrics, faults: &mut Faults) -> Option<Self> {
        let wording = Wording::of(config).map_err(|found| faults.0.extend(found.iter().map(ToString::to_string))).ok();
        let delivery = Delivery::new(&config.email, &config.sms, &config.server_name, metrics.clone());
        let delivery = delivery.map_err(|error| {
            let fault = |(key, why): (String, String)| config.fault(&key, Wrong::new(why, "write what can be used"));
            faults.0.extend(error.setups().into_iter().map(|setup| fault(setup).to_string()));
        });
        let delivery = delivery.ok();
        let client_tls = faults.note("listen.tls", config.listen.tls.as_ref().map(Tls::read).transpose());
        let client_tls = client_tls.map(|tls| tls.map(Tls::with_http2));
        Some(Self { wording: wording?, delivery: delivery?, client_tls: client_tls? })
    }
}

/// Files are read and templates tried here: never on a thread that serves.
fn read_again(running: &Config, metrics: &Metrics, now: Timestamp) -> (Source, Result<Next, Vec<String>>) {
    let reading = running.source.read();
    let next = match reading.config {
        Ok(config) => next(config, running, metrics, now),
        Err(faults) => Err(faults.iter().map(ToString::to_string).collect()),
    };
    (reading.source, next)
}

fn next(written: Config, running: &Config, metrics: &Metrics, now: Timestamp) -> Result<Next, Vec<String>> {
    let (config, waiting) = written.keeping(running);
    let mut faults = Faults::default();
    let parts = Parts::make(&config, metrics, &mut faults);
    let is_ours = matches!(config.identity.tls, IdentityTls::Generated { .. });
    let identity_tls = if is_ours && config.identity.tls == running.identity.tls {
        Some(None)
    } else {
        let made = certificates::identity(&config.identity, &config.state_dir, now);
        faults.note("identity.tls", made).map(Some)
    };
    match (parts, identity_tls) {
        (Some(parts), Some(identity_tls)) => Ok(Next { config, parts, identity_tls, waiting }),
        (None, _) | (_, None) => Err(faults.0),
    }
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    /// Notes what is wrong under a key, with its causes.
    fn note<T, E: Error>(&mut self, key: &str, made: Result<T, E>) -> Option<T> {
        made.map_err(|error| {
            self.0.push(format!("{key}: {}", telemetry::chain(&error)));
        })
        .ok()
    }
}
