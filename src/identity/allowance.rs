//! How many messages may go out: per address, and for phone numbers per number, country and day as well.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::config::{Config, Rate};
use crate::limit::Limit;
use crate::matrix::{Digest, Errcode, Medium, Phone, Refusal, Threepid, Timestamp};

const DAY_MILLIS: u64 = 86_400_000;

/// What is left of every limit on messages.
#[derive(Debug, Default)]
pub struct Allowance {
    addresses: Limit,
    numbers: Limit,
    countries: Limit,
    today: Daily,
}

/// What one message took, to be given back when it comes to nothing.
#[derive(Debug, Default)]
pub(super) struct Taken {
    limits: Vec<(Kind, String)>,
    /// The day that it counts on.
    day: Option<u64>,
}

/// Messages of the present day (UTC): what they cost is capped by the day, and not by any 24 hours.
#[derive(Debug, Default)]
struct Daily(Mutex<(u64, u32)>);

impl Daily {
    /// The day it was counted on, or how long until the next.
    fn take(&self, most: u32, now: Timestamp) -> Result<u64, Duration> {
        let today = now.as_millis() / DAY_MILLIS;
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.0 != today {
            *counted = (today, 0);
        }
        if counted.1 >= most {
            return Err(Duration::from_millis(DAY_MILLIS - now.as_millis() % DAY_MILLIS));
        }
        counted.1 += 1;
        Ok(today)
    }

    fn give_back(&self, day: u64) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.0 == day {
            counted.1 = counted.1.saturating_sub(1);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Address,
    Number,
    Country,
}

impl Allowance {
    /// Takes one message for an address from all limits it counts in, or says which refuses it. Numbers that cost their
    /// caller more than others, or no person answers, get none: toll fraud lives on them.
    pub(super) fn take(&self, config: &Config, threepid: &Threepid, now: Timestamp) -> Result<Taken, Refusal> {
        let mailbox = Digest::of(threepid.address.mailbox().as_bytes()).as_hex().to_owned();
        let mut wanted = vec![(Kind::Address, mailbox.clone())];
        if threepid.medium == Medium::Msisdn {
            let phone = threepid.address.phone().ok_or_else(destination)?;
            let country = destination_country(&phone, &config.sms.countries)?;
            wanted.extend([(Kind::Number, mailbox), (Kind::Country, country)]);
        }
        let mut taken = Taken::default();
        if let Err(after) = self.take_each(config, wanted, threepid.medium, &mut taken, now) {
            self.give_back(config, &taken, now);
            return Err(Refusal::limited(after));
        }
        Ok(taken)
    }

    fn take_each(
        &self,
        config: &Config,
        wanted: Vec<(Kind, String)>,
        medium: Medium,
        taken: &mut Taken,
        now: Timestamp,
    ) -> Result<(), Duration> {
        for (kind, key) in wanted {
            self.limit(kind).take(&key, rate(kind, config), now)?;
            taken.limits.push((kind, key));
        }
        if medium == Medium::Msisdn {
            taken.day = Some(self.today.take(config.limits.sms_per_day, now)?);
        }
        Ok(())
    }

    pub(super) fn give_back(&self, config: &Config, taken: &Taken, now: Timestamp) {
        for (kind, key) in &taken.limits {
            self.limit(*kind).give_back(key, rate(*kind, config), now);
        }
        if let Some(day) = taken.day {
            self.today.give_back(day);
        }
    }

    pub fn expire(&self, now: Timestamp) {
        for kind in [Kind::Address, Kind::Number, Kind::Country] {
            self.limit(kind).expire(now);
        }
    }

    fn limit(&self, kind: Kind) -> &Limit {
        match kind {
            Kind::Address => &self.addresses,
            Kind::Number => &self.numbers,
            Kind::Country => &self.countries,
        }
    }
}

fn rate(kind: Kind, config: &Config) -> Rate {
    let limits = &config.limits;
    match kind {
        Kind::Address => limits.request_token_per_address,
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

    #[test]
    fn a_day_has_so_many_messages_and_the_next_as_many_again() {
        let daily = Daily::default();
        let at = |day: u64, millis: u64| Timestamp::from_millis(day * DAY_MILLIS + millis);
        assert_eq!(daily.take(2, at(7, 0)), Ok(7));
        assert_eq!(daily.take(2, at(7, 1)), Ok(7));
        assert_eq!(daily.take(2, at(7, DAY_MILLIS - 5000)), Err(Duration::from_secs(5)));
        daily.give_back(7);
        assert_eq!(daily.take(2, at(7, 2)), Ok(7));
        assert_eq!(daily.take(2, at(8, 0)), Ok(8));
        daily.give_back(7);
        assert_eq!(daily.take(2, at(8, 1)), Ok(8));
        assert!(daily.take(2, at(8, 2)).is_err(), "what another day took is not given back to this one");
    }
}
