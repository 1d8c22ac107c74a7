//! How long each stage of a delivery takes, whether it goes well, fails, or is given up.

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::dial::{Secured, Tls, reached, resolved};
use super::{DeliveryError, Stage};
use crate::matrix::Medium;
use crate::telemetry::{Metrics, Staged};

/// One delivery on its way: in one stage at a time, or between two. A stage that is gone through twice, as EHLO before and
/// behind STARTTLS, is measured twice.
#[derive(Debug)]
pub(super) struct Course {
    medium: Medium,
    metrics: Metrics,
    current: Option<(Stage, Instant)>,
}

impl Course {
    pub(super) fn new(medium: Medium, metrics: &Metrics) -> Self {
        Self { medium, metrics: metrics.clone(), current: None }
    }

    /// The stage that begins now ends the one before, unless it is the same.
    pub(super) fn enter(&mut self, stage: Stage) {
        if self.current.is_none_or(|(current, _)| current != stage) {
            self.pause();
            self.current = Some((stage, Instant::now()));
        }
    }

    /// Nothing is done for the message for now.
    pub(super) fn pause(&mut self) {
        if let Some((stage, since)) = self.current.take() {
            let labels = Staged { medium: self.medium.as_str(), stage: stage.as_str() };
            self.metrics.stage_seconds.get_or_create(&labels).observe(since.elapsed().as_secs_f64());
        }
    }

    pub(super) async fn connect(&mut self, host: &str, port: u16, until: Instant) -> Result<TcpStream, DeliveryError> {
        self.enter(Stage::Dns);
        let addresses = resolved(host, port, until).await?;
        self.enter(Stage::Connect);
        reached(addresses, until).await
    }

    pub(super) async fn secure(&mut self, tls: &Tls, tcp: TcpStream, until: Instant) -> Result<Secured, DeliveryError> {
        self.enter(Stage::Tls);
        tls.secured(tcp, until).await
    }
}

/// A delivery that is given up has been in its last stage up to then.
impl Drop for Course {
    fn drop(&mut self) {
        self.pause();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How often and how long, in whole seconds.
    fn measured(metrics: &Metrics, stage: &str) -> (String, String) {
        let written = metrics.render().unwrap();
        let of = |what: &str| {
            let name = format!("delivery_stage_duration_seconds_{what}{{medium=\"email\",stage=\"{stage}\"}} ");
            written.split_once(&name).map_or_else(String::new, |(_, rest)| rest.lines().next().unwrap().to_owned())
        };
        (of("count"), of("sum"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_lasts_until_the_next_one_a_pause_or_the_end_and_is_measured_once() {
        let metrics = Metrics::new();
        let mut course = Course::new(Medium::Email, &metrics);
        for stage in [Stage::Dns, Stage::Auth, Stage::Auth, Stage::Data] {
            course.enter(stage);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        course.pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        course.enter(Stage::Dns);
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(course);
        let expected = [("dns", "2", "3.0"), ("auth", "1", "4.0"), ("data", "1", "2.0"), ("tls", "", "")];
        for (stage, count, sum) in expected {
            assert_eq!(measured(&metrics, stage), (count.to_owned(), sum.to_owned()), "{stage}");
        }
    }
}
