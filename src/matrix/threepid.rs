//! What is verified: a medium and a canonical address of it.

use serde::{Deserialize, Serialize};

use super::phone::Phone;

/// What kind of address a threepid is ([3PID types](https://spec.matrix.org/v1.1/appendices/#3pid-types)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    Email,
    Msisdn,
}

impl Medium {
    pub const ALL: [Self; 2] = [Self::Email, Self::Msisdn];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Msisdn => "msisdn",
        }
    }
}

/// A canonical address: for e-mail an ASCII local part and an A-label domain, lower case, one `@`; for a phone number the 5 to
/// 15 digits of E.164 without its plus sign. The same string is mailed, stored, sent to the homeserver and returned by it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address(String);

impl Address {
    /// Longest e-mail address accepted, in bytes (Sydent and Synapse cap it there too).
    pub const MAX_EMAIL: usize = 500;

    /// The canonical form of an e-mail address as a client wrote it, or why there is none.
    ///
    /// Strict on purpose: no quoting, no comments, no routes, nothing that two parsers could read differently
    /// (CVE-2019-11340, CVE-2023-27043). Non-ASCII local parts are refused since an old homeserver's `lower()` maps
    /// U+212A to `k`; domains are mapped once, by UTS 46, to A-labels.
    pub fn email(written: &str) -> Result<Self, AddressError> {
        if written.len() > Self::MAX_EMAIL {
            return Err(AddressError::TooLong);
        }
        let (local, domain) = written.split_once('@').ok_or(AddressError::NotOneAt)?;
        if domain.contains('@') {
            return Err(AddressError::NotOneAt);
        }
        let atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
        if local.is_empty() || local.len() > 64 || !local.chars().all(atom) {
            return Err(AddressError::LocalPart);
        }
        if local.starts_with('.') || local.ends_with('.') || local.contains("..") {
            return Err(AddressError::LocalPart);
        }
        let domain = canonical_domain(domain).ok_or(AddressError::Domain)?;
        Ok(Self(format!("{}@{domain}", local.to_ascii_lowercase())))
    }

    /// The canonical form of a phone number as a client wrote it, or why there is none: see [`Phone`].
    pub fn msisdn(country: &str, number: &str) -> Result<Self, AddressError> {
        Phone::read(country, number).map(|phone| Self(phone.msisdn()))
    }

    /// The phone number that this is, unless it is an e-mail address.
    pub fn phone(&self) -> Option<Phone> {
        Phone::of_msisdn(&self.0)
    }

    /// The canonical string itself, for the homeserver, the mail server and the store; never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Enough to recognise one's own address, not enough to learn another's: `a•••@example.org`, `+44 ••• ••56`.
    pub fn masked(&self) -> String {
        let Some((local, domain)) = self.0.split_once('@') else {
            return self.phone().map_or_else(|| "•••".to_owned(), |phone| phone.masked());
        };
        let first: String = local.chars().take(1).collect();
        format!("{first}•••@{domain}")
    }

    /// The mailbox that limits count: `a+x@d` fills the same inbox as `a@d`. A phone has one number.
    pub fn mailbox(&self) -> String {
        match self.0.split_once('@') {
            Some((local, domain)) => {
                let base = local.split('+').next().filter(|base| !base.is_empty()).unwrap_or(local);
                format!("{base}@{domain}")
            }
            None => self.0.clone(),
        }
    }
}

super::secret::hidden!(Address);

/// Why a string is not an address here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("the address is longer than 500 bytes")]
    TooLong,
    #[error("the address must hold exactly one '@'")]
    NotOneAt,
    #[error("the part before the '@' may hold ASCII letters, digits and !#$%&'*+-/=?^_`{{|}}~ with single dots inside")]
    LocalPart,
    #[error("the part after the '@' is not a domain name")]
    Domain,
    #[error("the country must be two capital letters (ISO 3166-1)")]
    Country,
    #[error("the phone number is longer than 32 bytes")]
    PhoneTooLong,
    #[error("a phone number may hold digits, spaces and +-()./, and no extension")]
    PhoneSigns,
    #[error("this is not a phone number, or not in that country")]
    Phone,
    #[error("the phone number has more or fewer digits than its country gives out")]
    PhoneLength,
}

/// UTS 46, strict: lower-cased A-labels of letters, digits and inner hyphens, at least two of them.
fn canonical_domain(written: &str) -> Option<String> {
    // What UTS 46 maps to something else than its lower case (fullwidth, ligatures, decomposed accents) is refused: the
    // mail would go elsewhere than where the eye reads.
    let ascii = idna::domain_to_ascii_strict(written).ok()?;
    let (unicode, result) = idna::domain_to_unicode(&ascii);
    result.ok()?;
    if unicode != written.to_lowercase() && ascii != written.to_ascii_lowercase() {
        return None;
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let labels = ascii.split('.').count();
    let all_digits = ascii.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    (ascii.len() <= 253 && labels >= 2 && !all_digits && ascii.split('.').all(label)).then_some(ascii)
}

/// A medium and an address of it: what is verified.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Threepid {
    pub medium: Medium,
    pub address: Address,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn email(written: &str) -> Option<String> {
        Address::email(written).ok().map(|address| address.expose().to_owned())
    }

    #[test]
    fn s4_12_an_address_has_one_canonical_form() {
        let table = [
            ("A.B+Tag@Example.ORG", "a.b+tag@example.org"),
            ("a@bücher.example", "a@xn--bcher-kva.example"),
            ("a@BÜCHER.example", "a@xn--bcher-kva.example"),
            ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
            ("a@XN--BCHER-KVA.example", "a@xn--bcher-kva.example"),
            ("a@faß.example", "a@xn--fa-hia.example"),
            ("o'neil!#$%&*/=?^_`{|}~-@example.org", "o'neil!#$%&*/=?^_`{|}~-@example.org"),
        ];
        for (written, canonical) in table {
            assert_eq!(email(written).as_deref(), Some(canonical), "{written}");
            assert_eq!(email(canonical).as_deref(), Some(canonical), "canonical twice: {canonical}");
        }
        assert_ne!(email("a@fass.example"), email("a@faß.example"));
    }

    #[test]
    fn s4_9_s4_10_what_two_parsers_could_read_differently_is_refused() {
        let long_local = format!("{}@example.org", "a".repeat(65));
        let long = format!("a@{}.example", "a.".repeat(250));
        let table = [
            "",
            "@",
            "a",
            "a@",
            "@b.c",
            "a@b@c.d",
            "user@evil@good.org",
            "a@x\r\nBcc: b@y.z",
            "a@x.org\n",
            "a@x.org,b@y.org",
            "a@x.org, b@y.org",
            "\"a b\"@x.org",
            "\"a\"@x.org",
            "<a@x.org>",
            "A <a@x.org>",
            "a(c)@x.org",
            "a@x.org(c)",
            "a@good.org(x)evil.org",
            "@route.org:a@x.org",
            "a%0d%0a@x org",
            "a b@x.org",
            "a@x.org ",
            " a@x.org",
            "a\t@x.org",
            "a\0@x.org",
            "a@x.org\0",
            "a;b@x.org",
            "a:b@x.org",
            "a\\@x.org",
            "a..b@x.org",
            ".a@x.org",
            "a.@x.org",
            "a@x..org",
            "a@.x.org",
            "a@x.org.",
            "a@-x.org",
            "a@x-.org",
            "a@localhost",
            "a@[127.0.0.1]",
            "a@127.0.0.1",
            "a@x_y.org",
            "m\u{131}ke@x.org",
            "\u{212a}elvin@x.org",
            "é@x.org",
            "a\u{ff20}x.org",
            "a@x\u{2024}org",
            "a@bu\u{308}cher.example",
            "a@\u{ff45}vil.org",
            "a@xn--a.example",
            "a@\u{200b}x.org",
            "a@x.org\u{200d}",
            "a@ex\u{ad}ample.org",
            "a@\u{fb01}x.org",
            &long_local,
            &long,
        ];
        assert!(table.len() >= 40);
        for written in table {
            assert_eq!(email(written), None, "{written:?}");
        }
    }

    #[test]
    fn s4_13_variants_of_one_mailbox_count_as_one() {
        let mailbox = |written: &str| Address::email(written).unwrap().mailbox();
        assert_eq!(mailbox("a+1@x.org"), mailbox("a+2@x.org"));
        assert_eq!(mailbox("a+1@x.org"), mailbox("A@x.org"));
        assert_ne!(mailbox("+1@x.org"), mailbox("+2@x.org"));
    }

    #[test]
    fn a_phone_number_is_masked_and_counted_by_its_digits() {
        let address = Address::msisdn("GB", "07400 123456").unwrap();
        assert_eq!((address.expose(), address.mailbox().as_str()), ("447400123456", "447400123456"));
        assert_eq!(address.masked(), "+44 ••• ••56");
        assert_eq!(address.phone().unwrap().intl_fmt(), "+44 7400 123456");
        assert!(Address::email("447400123456@example.org").unwrap().phone().is_none());
        // A store may hold what another version wrote.
        assert_eq!(serde_json::from_str::<Address>("\"0123\"").unwrap().masked(), "•••");
    }

    #[test]
    fn a_masked_address_shows_its_domain_and_one_letter() {
        assert_eq!(Address::email("alice@example.org").unwrap().masked(), "a•••@example.org");
        assert_eq!(format!("{:?}", Address::email("alice@example.org").unwrap()), "Address(..)");
    }
}
