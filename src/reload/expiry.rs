//! Certificates that end: ours is made anew in time, and of an operator's own he is told in time.

use std::time::Duration;

use tokio::task::spawn_blocking;

use super::InForce;
use crate::certificates;
use crate::config::IdentityTls;
use crate::matrix::Timestamp;
use crate::serve::Tls;
use crate::telemetry::{Door, Metrics};

/// Between two looks.
pub const EVERY: Duration = Duration::from_secs(DAY);
/// What is left when it is said: whoever renews by hand needs days, and whoever has it done has missed it twice by then.
pub const SOON: Duration = Duration::from_secs(30 * DAY);

const DAY: u64 = 24 * 60 * 60;

impl InForce {
    /// Makes the identity door's certificate anew, by the CA that the homeserver trusts, if it is one of ours and near its
    /// end. Open connections keep theirs.
    pub async fn renew(&self, now: Timestamp) {
        let config = self.config.load_full();
        let is_ours = matches!(config.identity.tls, IdentityTls::Generated { .. });
        if !is_ours || !certificates::is_to_be_renewed(self.identity_tls.ends(), now) {
            return;
        }
        let made = spawn_blocking(move || certificates::identity(&config.identity, &config.state_dir, now)).await;
        match made {
            Ok(Ok(certified)) => {
                self.identity_tls.replace(certified);
                tracing::info!("the identity door's certificate was made anew");
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the identity door's certificate ends soon, and cannot be made anew");
            }
            Err(error) => tracing::error!(%error, "the identity door's certificate ends soon, and cannot be made anew"),
        }
    }

    /// Says of both doors' certificates when they end, and aloud when that is soon.
    pub fn tell_expiry(&self, metrics: &Metrics, now: Timestamp) {
        let config = self.config.load();
        let of_identity = match config.identity.tls {
            IdentityTls::Files(_) => "write a new one into identity.tls.certificate; it is read without a restart",
            IdentityTls::Generated { .. } => {
                "the CA ends with it: remove the folder tls in state_dir, restart, and let the homeserver trust the new one"
            }
        };
        let of_clients = "write a new one into listen.tls.certificate; it is read without a restart";
        let doors = [
            ("clients", self.client_tls.as_ref().and_then(Tls::ends), of_clients),
            ("identity", self.identity_tls.ends(), of_identity),
        ];
        for (door, ends, change) in doors {
            let Some(ends) = ends else { continue };
            let seconds = i64::try_from(ends.as_millis() / 1000).unwrap_or(i64::MAX);
            metrics.certificate_expiry.get_or_create(&Door { door }).set(seconds);
            let left = now.until(ends);
            if left.is_zero() {
                tracing::error!(door, change, "the door's certificate has expired");
            } else if left <= SOON {
                tracing::warn!(door, days = left.as_secs() / DAY, change, "the door's certificate expires soon");
            }
        }
    }
}
