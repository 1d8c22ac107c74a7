//! How many messages may go out: per address and client_secret; mails in all; for phone numbers per number, country and day.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Rate};
use crate::limit::{Limit, Limited};
use crate::matrix::{ClientSecret, Digest, Errcode, Medium, Phone, Refusal, Threepid, Timestamp};
use crate::store::{Change, Key, Record, Store};

const DAY_MILLIS: u64 = 86_400_000;
const SMS_PER_DAY: &str = "sms_per_day";
/// The key of a limit that counts everybody's.
const ALL: &str = "all";
/// Between two lines of the log that nobody gets a mail any more.
const SAY_EVERY_MILLIS: u64 = 60_000;

/// What is left of every limit on messages.
#[derive(Debug)]
pub struct Allowance {
    addresses: Limit,
    client_secrets: Limit,
    emails: Limit,
    numbers: Limit,
    countries: Limit,
    today: Daily,
    /// When it was last said that there are no mails left, in milliseconds.
    said: AtomicU64,
}

/// Limits that one message counts in at most, besides that of the day.
const LIMITS: usize = 4;
/// One of them, and the bucket there.
type Wanted = Option<(Kind, String)>;

/// What one message took, to be given back when it comes to nothing.
#[must_use = "what comes to nothing is given back"]
#[derive(Debug, Default)]
pub(super) struct Taken {
    limits: [Wanted; LIMITS],
    /// The day that it counts on.
    day: Option<u64>,
}

/// Messages of the present day (UTC): what they cost is capped by the day, and not by any 24 hours.
#[derive(Debug)]
struct Daily(Arc<Store>);

/// How many went out on a day. Kept as sessions are: a restart is no new day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counted {
    count: u32,
}

impl Record for Counted {
    const KIND: &'static str = "day";
}

impl Daily {
    /// The day it was counted on.
    async fn take(&self, most: u32, now: Timestamp) -> Result<u64, Limited> {
        let today = now.as_millis() / DAY_MILLIS;
        let count = |current: Option<Counted>| {
            let count = current.map_or(0, |counted| counted.count);
            if count >= most { (Change::Keep, false) } else { (put(today, count + 1), true) }
        };
        if self.0.update(&Key::new(today), now, count).await? {
            return Ok(today);
        }
        self.0.note_limited(SMS_PER_DAY);
        Err(Limited::For(Duration::from_millis(DAY_MILLIS - now.as_millis() % DAY_MILLIS)))
    }

    async fn give_back(&self, day: u64, now: Timestamp) {
        let count = |current: Option<Counted>| {
            (current.map_or(Change::Keep, |counted| put(day, counted.count.saturating_sub(1))), ())
        };
        if let Err(error) = self.0.update(&Key::new(day), now, count).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a message of the day could not be given back");
        }
    }
}

fn put(day: u64, count: u32) -> Change<Counted> {
    Change::Put { record: Counted { count }, until: Timestamp::from_millis((day + 1) * DAY_MILLIS) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    ClientSecret,
    Email,
    Number,
    Country,
}

impl Allowance {
    pub fn new(store: &Arc<Store>) -> Self {
        store.expect_limit(SMS_PER_DAY);
        Self {
            addresses: Limit::new("request_token_per_address", store),
            client_secrets: Limit::new("request_token_per_client_secret", store),
            emails: Limit::new("email_total", store),
            numbers: Limit::new("sms_per_number", store),
            countries: Limit::new("sms_per_country", store),
            today: Daily(Arc::clone(store)),
            said: AtomicU64::default(),
        }
    }

    /// Takes one message for an address from all limits it counts in at once, or says that one refuses it. Numbers that cost their
    /// caller more than others, or no person answers, get none: toll fraud lives on them.
    pub(super) async fn take(
        &self,
        config: &Config,
        threepid: &Threepid,
        client_secret: &ClientSecret,
        now: Timestamp,
    ) -> Result<Taken, Refusal> {
        let mailbox = Digest::of(threepid.address.mailbox().as_bytes()).as_hex().to_owned();
        let address = Some((Kind::Address, mailbox.clone()));
        let secret = Some((Kind::ClientSecret, Digest::of(client_secret.expose().as_bytes()).as_hex().to_owned()));
        let wanted = match threepid.medium {
            Medium::Email => [address, secret, Some((Kind::Email, ALL.to_owned())), None],
            Medium::Msisdn => {
                let phone = threepid.address.phone().ok_or_else(destination)?;
                let country = destination_country(&phone, &config.sms.countries)?;
                [address, secret, Some((Kind::Number, mailbox)), Some((Kind::Country, country))]
            }
        };
        let [first, second, third, fourth] = wanted;
        let (first, second, third, fourth, day) = tokio::join!(
            self.take_one(config, first, now),
            self.take_one(config, second, now),
            self.take_one(config, third, now),
            self.take_one(config, fourth, now),
            self.take_day(config, threepid.medium, now),
        );
        let mut refused = None;
        let limits = [first, second, third, fourth].map(|took| {
            took.unwrap_or_else(|limited| {
                refused.get_or_insert(limited);
                None
            })
        });
        let day = day.unwrap_or_else(|limited| {
            refused.get_or_insert(limited);
            None
        });
        let taken = Taken { limits, day };
        match refused {
            None => Ok(taken),
            Some(limited) => {
                self.give_back(config, &taken, now).await;
                Err(limited.into())
            }
        }
    }

    async fn take_one(&self, config: &Config, wanted: Wanted, now: Timestamp) -> Result<Wanted, Limited> {
        if let Some((kind, key)) = &wanted {
            let took = self.limit(*kind).take(key, rate(*kind, config), now).await;
            if *kind == Kind::Email && matches!(took, Err(Limited::For(_))) {
                self.say_that_no_mails_are_left(now);
            }
            took?;
        }
        Ok(wanted)
    }

    /// Everybody is refused now, and only the operator can tell an attack from a good day.
    fn say_that_no_mails_are_left(&self, now: Timestamp) {
        let (now, said) = (now.as_millis(), self.said.load(Ordering::Relaxed));
        let due = now.abs_diff(said) >= SAY_EVERY_MILLIS;
        if due && self.said.compare_exchange(said, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::error!("limits.email_total is reached: nobody gets a mail for a while");
        }
    }

    async fn take_day(&self, config: &Config, medium: Medium, now: Timestamp) -> Result<Option<u64>, Limited> {
        match medium {
            Medium::Email => Ok(None),
            Medium::Msisdn => self.today.take(config.limits.sms_per_day, now).await.map(Some),
        }
    }

    /// All at once, as they were taken.
    pub(super) async fn give_back(&self, config: &Config, taken: &Taken, now: Timestamp) {
        let [first, second, third, fourth] = &taken.limits;
        tokio::join!(
            self.give_one_back(config, first, now),
            self.give_one_back(config, second, now),
            self.give_one_back(config, third, now),
            self.give_one_back(config, fourth, now),
            async {
                if let Some(day) = taken.day {
                    self.today.give_back(day, now).await;
                }
            },
        );
    }

    async fn give_one_back(&self, config: &Config, taken: &Wanted, now: Timestamp) {
        if let Some((kind, key)) = taken {
            self.limit(*kind).give_back(key, rate(*kind, config), now).await;
        }
    }

    pub fn expire(&self, now: Timestamp) {
        for kind in [Kind::Address, Kind::ClientSecret, Kind::Email, Kind::Number, Kind::Country] {
            self.limit(kind).expire(now);
        }
    }

    fn limit(&self, kind: Kind) -> &Limit {
        match kind {
            Kind::Address => &self.addresses,
            Kind::ClientSecret => &self.client_secrets,
            Kind::Email => &self.emails,
            Kind::Number => &self.numbers,
            Kind::Country => &self.countries,
        }
    }
}

fn rate(kind: Kind, config: &Config) -> Rate {
    let limits = &config.limits;
    match kind {
        Kind::Address => limits.request_token_per_address,
        Kind::ClientSecret => limits.request_token_per_client_secret,
        Kind::Email => limits.email_total,
        Kind::Number => limits.sms_per_number,
        Kind::Country => limits.sms_per_country,
    }
}

/// The country of a number that may get a code.
fn destination_country(phone: &Phone, allowed: &[String]) -> Result<String, Refusal> {
    let country = phone.country().filter(|_| phone.line().takes_codes()).ok_or_else(destination)?;
    if allowed.is_empty() || allowed.contains(&country) { Ok(country) } else { Err(destination()) }
}

fn destination() -> Refusal {
    Refusal::bad_request(
        Errcode::MDestinationRejected,
        "This server sends no messages to numbers of this kind or country",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn a_day_has_so_many_messages_and_the_next_as_many_again() {
        let store = Store::open(&config::Store::Memory, &Metrics::new()).unwrap();
        let daily = Daily(Arc::new(store));
        let at = |day: u64, millis: u64| Timestamp::from_millis(day * DAY_MILLIS + millis);
        assert_eq!(daily.take(2, at(7, 0)).await.unwrap(), 7);
        assert_eq!(daily.take(2, at(7, 1)).await.unwrap(), 7);
        let over = daily.take(2, at(7, DAY_MILLIS - 5000)).await;
        assert!(matches!(over, Err(Limited::For(span)) if span == Duration::from_secs(5)));
        daily.give_back(7, at(7, 2)).await;
        assert_eq!(daily.take(2, at(7, 2)).await.unwrap(), 7);
        assert_eq!(daily.take(2, at(8, 0)).await.unwrap(), 8);
        daily.give_back(7, at(8, 1)).await;
        assert_eq!(daily.take(2, at(8, 1)).await.unwrap(), 8);
        assert!(daily.take(2, at(8, 2)).await.is_err(), "what another day took is not given back to this one");
    }
}
