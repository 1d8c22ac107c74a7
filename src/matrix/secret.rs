//! What only its holder may know, and how it is recognised: client_secret, sid, token, and the digests kept of them.

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// Gives types a `Debug` that shows nothing of what they hold.
macro_rules! hidden {
    ($($name:ident $(<$of:lifetime>)?),+) => {$(
        impl std::fmt::Debug for $name $(<$of>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+};
}
pub(crate) use hidden;

hidden!(ClientSecret, Token, Digest);

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

/// What is sent: 256 bits in a mailed link, as 64 hexadecimal digits, or the six digits of an SMS. Only its digest is
/// kept.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(hex(&random))
    }

    /// Six decimal digits, for an SMS. What the modulus favours is less than one in 10¹³.
    pub fn code_from_random(random: [u8; 8]) -> Self {
        Self(format!("{:06}", u64::from_be_bytes(random) % 1_000_000))
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

/// SHA-256 of something we only have to recognise. Compared in constant time.
#[derive(Clone, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref()))
    }

    /// What somebody claims to be a digest, to be compared with one.
    pub fn claimed(hex: &str) -> Self {
        Self(hex.to_owned())
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

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each bit of 10,000 values is set as often as not, within 8 standard deviations (400 of 5,000).
    fn looks_random<const N: usize>(values: &[[u8; N]]) {
        assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len(), "no repeats");
        for bit in 0..N * 8 {
            let set = values.iter().filter(|value| value[bit / 8] >> (bit % 8) & 1 == 1).count();
            assert!((4600..=5400).contains(&set), "bit {bit} is set {set} times of 10000");
        }
    }

    #[test]
    fn s4_1_sids_and_tokens_are_random_and_long_enough() {
        let sids: Vec<[u8; 16]> = (0..10_000).map(|_| crate::random::bytes().unwrap()).collect();
        let tokens: Vec<[u8; 32]> = (0..10_000).map(|_| crate::random::bytes().unwrap()).collect();
        looks_random(&sids);
        looks_random(&tokens);
        let sid = Sid::from_random(sids[0]);
        assert_eq!(sid.as_str().len(), "shim_".len() + 32, "128 bits");
        assert_eq!(Token::from_random(tokens[0]).expose().len(), 64, "256 bits");
        assert_eq!(Sid::parse(sid.as_str()), Some(sid));
    }

    #[test]
    fn a_sid_is_ours_by_its_mark_and_valid_by_its_form() {
        for malformed in
            ["shim_", "shim_abc", "shim_0000000000000000000000000000000G", "shim_00000000000000000000000000000000\n"]
        {
            assert!(Sid::is_ours(malformed));
            assert_eq!(Sid::parse(malformed), None, "{malformed:?}");
        }
        for foreign in ["17", "abcShim_", "", "SHIM_00000000000000000000000000000000"] {
            assert!(!Sid::is_ours(foreign));
        }
    }

    #[test]
    fn s4_35_a_client_secret_ends_where_its_grammar_ends() {
        let longest = "a".repeat(255);
        for good in ["a", "0.=_-:Z", &longest] {
            assert!(ClientSecret::parse(good).is_some(), "{good}");
        }
        let too_long = "a".repeat(256);
        for bad in ["", "abc\n", "a b", "a/b", "é", "a\0", "a&b", "\u{660}", &too_long] {
            assert!(ClientSecret::parse(bad).is_none(), "{bad:?}");
        }
    }

    /// S§4.4.
    #[test]
    fn secrets_show_nothing_of_themselves() {
        let secret = ClientSecret::parse("hunter2").unwrap();
        let shown = format!("{secret:?} {:?} {:?}", Token::from_random([1; 32]), secret.digest());
        assert_eq!(shown, "ClientSecret(..) Token(..) Digest(..)");
    }
}
