//! What only its holder may know, and how it is recognised: client_secret, sid, token, and the digests kept of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// The secret a client made up for its session: 1 to 255 of `[0-9a-zA-Z.=_-]` and `:`, which clients of 2019 sent
/// (Synapse #6767).
#[derive(Clone)]
pub struct ClientSecret(String);

impl ClientSecret {
    pub fn parse(written: &str) -> Option<Self> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b".=_-:".contains(&b);
        ((1..=255).contains(&written.len()) && written.bytes().all(ok)).then(|| Self(written.to_owned()))
    }

    /// The secret itself, for the homeserver and the mailed link; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret(..)")
    }
}

/// A session id of ours: `shim_` and 32 hexadecimal digits of operating system randomness, so that "ours" needs no
/// look-up and never meets another identity server's sids.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sid(String);

impl Sid {
    const MARK: &'static str = "shim_";

    pub fn from_random(random: [u8; 16]) -> Self {
        Self(format!("{}{}", Self::MARK, hex(&random)))
    }

    /// Whether a sid on the wire claims to be one of ours; it may still be malformed.
    pub fn is_ours(written: &str) -> bool {
        written.starts_with(Self::MARK)
    }

    pub fn parse(written: &str) -> Option<Self> {
        let digits = written.strip_prefix(Self::MARK)?;
        let ok = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        ok.then(|| Self(written.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is mailed: 256 bits in a link, as 64 hexadecimal digits. Only its digest is kept.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(hex(&random))
    }

    /// Any short printable string: whether it is *the* token is for the digest to say.
    pub fn parse(written: &str) -> Option<Self> {
        let ok = (1..=128).contains(&written.len()) && written.bytes().all(|b| b.is_ascii_alphanumeric());
        ok.then(|| Self(written.to_owned()))
    }

    /// The token itself, for the mailed link; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// SHA-256 of something we only have to recognise. Compared in constant time.
#[derive(Clone, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()))
    }

    pub fn as_hex(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
