//! Records and limits in Redis 7 or Valkey, shared by all replicas: one server, Sentinel, or Cluster.
//!
//! A record is one string, `<until> <write> <json>`: the time it ends by the shim's clock (milliseconds), a name for this very
//! write, the record. Its key ends with it, by Redis' own clock. A change is one script that writes if the string is still
//! what the decision saw. Since no two writes have the same name, one whose answer was lost can be sent again and finds
//! itself, or decides once more if somebody else has written since. One that removes a record leaves `0 <write> <what was there>`
//! for some seconds, to find itself by; it is no record to anybody. Limits have no names: a lost answer may count one of them twice.
//!
//! Whoever reads a record takes the fields it knows and has a value for those that are missing, and whoever changes one leaves
//! the others in it, so that two versions of the shim can share one Redis.
//!
//! No operation touches two keys, so that Cluster needs no hash tags.
//!
//! Round trips: `get`, `mark` and `take` (a limit) 1. `update` 1 when the record is not there yet, or is what this process saw last, and
//! when it stays as it is; else 2, and 1 more for each time somebody else was faster. What that makes for each request is in `config/README.md`, and counted in
//! `tests/it/store/redis.rs` and, with those that wait together, in `tests/it/store/rounds.rs`.

mod link;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use redis::{Cmd, cmd};

use super::{Change, Edit, Effect, StoreError, Swapped};
use crate::config::{self, Rate};
use crate::matrix::Timestamp;
use crate::random;
use link::Link;
pub(super) use link::LinkError;

const PREFIX: &str = "threepid-shim:";

/// ARGV: what was seen ("" for nothing), what is to be there, for how many milliseconds.
const SWAP: &str = "
local current = redis.call('GET', KEYS[1]) or ''
if current == ARGV[2] then return {1, ''} end
if string.sub(current, 1, 2) == '0 ' then current = '' end
if current ~= ARGV[1] then return {0, current} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {1, ''}";

/// ARGV: now, the name of this write, for how many milliseconds it is remembered if it removes the record, then for each edit:
/// how many texts must be there, those, the text that is replaced, and by what ("" removes the record). Returns whether an edit
/// was made, and what is there then, or was until it was removed.
const MARK: &str = "
local current = redis.call('GET', KEYS[1])
if not current then return {0, ''} end
local till, write, json = string.match(current, '^(%d+) (%S+) (.*)$')
if write == ARGV[2] then return {1, till == '0' and json or current} end
if not till or tonumber(till) <= tonumber(ARGV[1]) then return {0, ''} end
local at = 4
while at <= #ARGV do
  local texts, fits = tonumber(ARGV[at]), true
  for n = at + 1, at + texts do fits = fits and string.find(json, ARGV[n], 1, true) end
  local from, to = ARGV[at + texts + 1], ARGV[at + texts + 2]
  local first, last = string.find(json, from, 1, true)
  if fits and first then
    if to == '' then
      redis.call('SET', KEYS[1], '0 ' .. ARGV[2] .. ' ' .. current, 'PX', ARGV[3])
      return {1, current}
    end
    current = till .. ' ' .. ARGV[2] .. ' ' .. string.sub(json, 1, first - 1) .. to .. string.sub(json, last + 1)
    redis.call('SET', KEYS[1], current, 'KEEPTTL')
    return {1, current}
  end
  at = at + texts + 3
end
return {0, current}";

/// KEYS: the bucket, which is the time it will be empty. ARGV: now, the interval, and the whole span, in milliseconds and
/// fractions of them, as that time is. Returns for how long there is none, or 0. Fuller than full it was filled by a clock ahead of this one.
const TAKE: &str = "
local now, per = tonumber(ARGV[1]), tonumber(ARGV[3])
local empty_at = math.max(tonumber(redis.call('GET', KEYS[1])) or 0, now)
if empty_at > now + per then
  empty_at = now + per
  redis.call('SET', KEYS[1], string.format('%.6f', empty_at), 'PX', ARGV[3])
end
local filled = empty_at + tonumber(ARGV[2])
local over = filled - now - per
if over > 0 then return math.ceil(over) end
redis.call('SET', KEYS[1], string.format('%.6f', filled), 'PX', string.format('%.0f', math.ceil(filled - now)))
return 0";

/// ARGV: now, the interval.
const GIVE_BACK: &str = "
local filled = tonumber(redis.call('GET', KEYS[1]))
if not filled then return 0 end
filled = filled - tonumber(ARGV[2])
local left = filled - tonumber(ARGV[1])
if left <= 0 then redis.call('DEL', KEYS[1])
else redis.call('SET', KEYS[1], string.format('%.6f', filled), 'PX', string.format('%.0f', math.ceil(left))) end
return 0";

pub(super) struct Redis {
    link: Link,
    /// Names of writes begin with it.
    writer: String,
    writes: AtomicU64,
    /// What this process saw last under some keys. Redis says when it is something else by now.
    seen: DashMap<String, Vec<u8>>,
}

/// How long a removal is remembered: longer than it is tried.
const REMOVED: Duration = Duration::from_secs(5);

/// Records of which it is remembered what they were: those of the requests on their way.
const MOST_SEEN: usize = 10_000;

impl Redis {
    /// Connects when it is first asked for something, so that the shim starts without it.
    pub(super) fn open(config: &config::Redis) -> Result<Self, LinkError> {
        let writer = random::bytes::<8>().map_err(|_logged| LinkError::NoRandomness)?;
        let writer = format!("{:x}.", u64::from_be_bytes(writer));
        Ok(Self { link: Link::to(config)?, writer, writes: AtomicU64::new(0), seen: DashMap::new() })
    }

    /// What is there, whether its time is over or not: what a change has to find there still.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let found: Option<Vec<u8>> = self.link.ask(&Cmd::get(format!("{PREFIX}{key}"))).await?;
        Ok(self.remember(key, found.filter(|kept| !was_removed(kept))))
    }

    /// What is there as far as this process knows.
    pub(super) fn supposed(&self, key: &str) -> Option<Vec<u8>> {
        self.seen.get(key).map(|seen| seen.clone())
    }

    fn remember(&self, key: &str, kept: Option<Vec<u8>>) -> Option<Vec<u8>> {
        match &kept {
            Some(kept) => {
                if self.seen.len() >= MOST_SEEN {
                    self.seen.clear();
                }
                self.seen.insert(key.to_owned(), kept.clone());
            }
            None => drop(self.seen.remove(key)),
        }
        kept
    }

    pub(super) async fn swap(
        &self,
        key: &str,
        now: Timestamp,
        seen: Option<&[u8]>,
        change: &Change<Vec<u8>>,
    ) -> Result<Swapped, StoreError> {
        let (kept, span) = match change {
            Change::Put { record, until } => {
                let head = format!("{} {} ", until.as_millis(), self.write());
                ([head.as_bytes(), record.as_slice()].concat(), now.until(*until))
            }
            Change::Keep | Change::Remove => (format!("0 {} ", self.write()).into_bytes(), REMOVED),
        };
        let mut call = script(SWAP, key);
        call.arg(seen.unwrap_or_default()).arg(&kept).arg(millis(span).max(1));
        let (done, current): (u8, Vec<u8>) = self.link.ask(&call).await?;
        let done = done == 1;
        let current = self.remember(key, some(if done { kept } else { current }).filter(|kept| !was_removed(kept)));
        Ok(if done { Swapped::Done } else { Swapped::Other(current) })
    }

    /// The first of the edits that fits, and what is there then; see [`Edit`].
    pub(super) async fn mark(
        &self,
        key: &str,
        now: Timestamp,
        edits: &[Edit],
    ) -> Result<(bool, Option<Vec<u8>>), StoreError> {
        let mut call = script(MARK, key);
        let write = self.write();
        call.arg(now.as_millis()).arg(&write).arg(millis(REMOVED));
        for Edit { when, from, effect } in edits {
            let to = match effect {
                Effect::Replace(to) => to.as_str(),
                Effect::Remove => "",
            };
            call.arg(when.len()).arg(when.as_slice()).arg(from).arg(to);
        }
        let (done, current): (u8, Vec<u8>) = self.link.ask(&call).await?;
        let (done, current) = (done == 1, some(current));
        // What was removed is given back, and forgotten.
        self.remember(key, current.clone().filter(|kept| !done || name_of(kept) == Some(write.as_bytes())));
        Ok((done, current))
    }

    /// Takes one of a limit that all replicas share, or says after how long there will be one.
    pub(super) async fn take(&self, bucket: &str, rate: Rate, now: Timestamp) -> Result<Option<Duration>, StoreError> {
        let mut call = script(TAKE, bucket);
        call.arg(now.as_millis()).arg(interval(rate)).arg(millis(rate.per));
        let over: u64 = self.link.ask(&call).await?;
        Ok((over > 0).then(|| Duration::from_millis(over)))
    }

    pub(super) async fn give_back(&self, bucket: &str, rate: Rate, now: Timestamp) -> Result<(), StoreError> {
        let mut call = script(GIVE_BACK, bucket);
        call.arg(now.as_millis()).arg(interval(rate));
        let _: u8 = self.link.ask(&call).await?;
        Ok(())
    }

    fn write(&self) -> String {
        format!("{}{:x}", self.writer, self.writes.fetch_add(1, Ordering::Relaxed))
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis(..)")
    }
}

/// The text each time: a server that has just taken over knows no scripts, and asking for one by its name would be another
/// round trip then.
fn script(text: &str, key: &str) -> Cmd {
    let mut call = cmd("EVAL");
    call.arg(text).arg(1).arg(format!("{PREFIX}{key}"));
    call
}

/// The record in what is kept, unless its time is over. What is no record of ours is none.
pub(super) fn live(kept: &[u8], now: Timestamp) -> Option<&[u8]> {
    let mut parts = kept.splitn(3, |byte| *byte == b' ');
    let until: u64 = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    parts.next()?;
    parts.next().filter(|_| now.as_millis() < until)
}

/// The name of the write that put it there.
fn name_of(kept: &[u8]) -> Option<&[u8]> {
    kept.splitn(3, |byte| *byte == b' ').nth(1)
}

/// Whether it is what is left of a record that was removed.
fn was_removed(kept: &[u8]) -> bool {
    kept.starts_with(b"0 ")
}

fn some(bytes: Vec<u8>) -> Option<Vec<u8>> {
    (!bytes.is_empty()).then_some(bytes)
}

/// In milliseconds, down to nanoseconds; today's times have a quarter of a microsecond in Lua.
fn interval(rate: Rate) -> String {
    let nanos = rate.interval().as_nanos();
    format!("{}.{:06}", nanos / 1_000_000, nanos % 1_000_000)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
