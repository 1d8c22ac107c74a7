//! How many messages may go out: per address, and for phone numbers per number, country and day as well.

use std::time::Duration;

use crate::config::{Config, Rate};
use crate::limit::Limit;
use crate::matrix::{Digest, Errcode, Medium, Phone, Refusal, Threepid, Timestamp};

const DAY: Duration = Duration::from_secs(86_400);

/// What is left of every limit on messages.
#[derive(Debug, Default)]
pub struct Allowance {
    addresses: Limit,
    numbers: Limit,
    countries: Limit,
    days: Limit,
}

/// What one message took, to be given back when it comes to nothing.
#[derive(Debug)]
pub(super) struct Taken(Vec<(Kind, String)>);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Address,
    Number,
    Country,
    Day,
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
            wanted.extend([(Kind::Number, mailbox), (Kind::Country, country), (Kind::Day, String::from("day"))]);
        }
        let mut taken = Taken(Vec::new());
        for (kind, key) in wanted {
            if let Err(after) = self.limit(kind).take(&key, rate(kind, config), now) {
                self.give_back(config, &taken, now);
                return Err(Refusal::limited(after));
            }
            taken.0.push((kind, key));
        }
        Ok(taken)
    }

    pub(super) fn give_back(&self, config: &Config, taken: &Taken, now: Timestamp) {
        for (kind, key) in &taken.0 {
            self.limit(*kind).give_back(key, rate(*kind, config), now);
        }
    }

    pub fn expire(&self, now: Timestamp) {
        for kind in [Kind::Address, Kind::Number, Kind::Country, Kind::Day] {
            self.limit(kind).expire(now);
        }
    }

    fn limit(&self, kind: Kind) -> &Limit {
        match kind {
            Kind::Address => &self.addresses,
            Kind::Number => &self.numbers,
            Kind::Country => &self.countries,
            Kind::Day => &self.days,
        }
    }
}

fn rate(kind: Kind, config: &Config) -> Rate {
    let limits = &config.limits;
    match kind {
        Kind::Address => limits.request_token_per_address,
        Kind::Number => limits.sms_per_number,
        Kind::Country => limits.sms_per_country,
        Kind::Day => Rate { count: limits.sms_per_day, per: DAY },
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
