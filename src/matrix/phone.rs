//! A phone number as clients write it → its one canonical msisdn.

use rlibphonenumber::{NumberLengthType, PHONE_NUMBER_UTIL, PhoneNumber, PhoneNumberFormat, PhoneNumberType, Region};

use super::AddressError;

/// A phone number that has a country code and a length that its country gives out.
#[derive(Clone, PartialEq)]
pub struct Phone(PhoneNumber);

impl Phone {
    /// Longest number accepted as written, in bytes (S§4.28).
    pub const MAX: usize = 32;

    /// What `phonenumbers.parse(number, country)` makes of it, which Synapse asks; refused where a person could have meant
    /// another number, since the homeserver looks up its own reading but stores ours.
    ///
    /// `country` is ISO 3166-1 alpha-2 in capitals, as on the wire; it decides what a number without its country code is.
    pub(super) fn read(country: &str, number: &str) -> Result<Self, AddressError> {
        if country.len() != 2 || !country.bytes().all(|b| b.is_ascii_uppercase()) {
            return Err(AddressError::Country);
        }
        if number.len() > Self::MAX {
            return Err(AddressError::PhoneTooLong);
        }
        let plain = plain(number).ok_or(AddressError::PhoneSigns)?;
        let parsed = PHONE_NUMBER_UTIL.parse(plain, Region::from_code(country).ok());
        let phone = parsed.map(Self).ok().ok_or(AddressError::Phone)?;
        // phonenumbers takes any 2 to 17 digits behind a country code: a slip, a number without its area, or two numbers in one.
        if !matches!(phone.0.is_possible_with_reason(), Ok(NumberLengthType::IsPossible)) {
            return Err(AddressError::PhoneLength);
        }
        // A number that is another one when it is read again (+86 118 6.. would lose a carrier's prefix) has two readings.
        let again = Self::of_msisdn(&phone.msisdn()).ok_or(AddressError::PhoneLength)?;
        if again == phone { Ok(phone) } else { Err(AddressError::Phone) }
    }

    /// A canonical msisdn, read back. `None`: it is none.
    pub(super) fn of_msisdn(msisdn: &str) -> Option<Self> {
        let e164 = (5..=15).contains(&msisdn.len()) && msisdn.bytes().all(|b| b.is_ascii_digit());
        e164.then(|| PHONE_NUMBER_UTIL.parse(format!("+{msisdn}"), None).ok()).flatten().map(Self)
    }

    /// E.164 without its plus sign: 5 to 15 digits.
    pub fn msisdn(&self) -> String {
        self.0.format_as(PhoneNumberFormat::E164).trim_start_matches('+').to_owned()
    }

    /// As its country groups it, for people: `+44 7400 123456`.
    pub fn intl_fmt(&self) -> String {
        self.0.format_as(PhoneNumberFormat::International).into_owned()
    }

    /// The country it belongs to, ISO 3166-1 alpha-2 (also AC, TA and XK, which have numbers but no such code of their own).
    /// `None`: of no country (satellites, +800), or nobody's number in a code that countries share (+1, +7, +44, +61 ..).
    pub fn country(&self) -> Option<String> {
        self.0.get_region_code().filter(|region| *region != Region::World).map(|region| region.to_string())
    }

    pub fn line(&self) -> Line {
        match self.0.country_code {
            // Inmarsat; other satellites; networks of no country, whose prices are those of satellites.
            870 | 881..=883 => return Line::Satellite,
            979 => return Line::Premium,
            _ => {}
        }
        match self.0.get_type() {
            PhoneNumberType::Mobile
            | PhoneNumberType::FixedLine
            | PhoneNumberType::FixedLineOrMobile
            | PhoneNumberType::VoIP
                if self.country().is_some() =>
            {
                Line::Ordinary
            }
            PhoneNumberType::PremiumRate => Line::Premium,
            PhoneNumberType::SharedCost => Line::SharedCost,
            PhoneNumberType::Unknown => Line::Unassigned,
            PhoneNumberType::Mobile
            | PhoneNumberType::FixedLine
            | PhoneNumberType::FixedLineOrMobile
            | PhoneNumberType::VoIP
            | PhoneNumberType::TollFree
            | PhoneNumberType::PersonalNumber
            | PhoneNumberType::Pager
            | PhoneNumberType::UAN
            | PhoneNumberType::VoiceMail => Line::Other,
        }
    }

    /// Enough to recognise one's own number, not enough to learn another's: `+44 ••• ••56`.
    pub(super) fn masked(&self) -> String {
        let msisdn = self.msisdn();
        let code = self.0.country_code;
        // Two digits of six and more: in the smallest countries (+247, +290) they would be half of the number.
        let long = msisdn.len() >= code.to_string().len() + 6;
        let last = msisdn.get(msisdn.len().saturating_sub(2)..).filter(|_| long).unwrap_or("••");
        format!("+{code} ••• ••{last}")
    }
}

super::secret::hidden!(Phone);

/// What a message to a number may cost and whom it may reach (S§4.37: toll fraud sends to the expensive ones).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Line {
    /// Mobile, fixed, or over the Internet, in one country.
    Ordinary,
    /// In no range that its country has given out: new, or one that fraud has taken.
    Unassigned,
    Premium,
    SharedCost,
    Satellite,
    /// Toll-free, personal (+44 70, billed like premium), company-wide, pager, voicemail, +800 and its like.
    Other,
}

impl Line {
    /// Whether a code may be sent there: the phone of a person, at an ordinary price.
    pub fn takes_codes(self) -> bool {
        self == Self::Ordinary
    }

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Unassigned => "unassigned",
            Self::Premium => "premium",
            Self::SharedCost => "shared_cost",
            Self::Satellite => "satellite",
            Self::Other => "other",
        }
    }
}

/// The number in the few ASCII signs that the parser gets to see; its ports have panicked on more (RUSTSEC-2023-0082,
/// RUSTSEC-2024-0369). Letters, `#`, `;` and `,` begin an extension, which no message reaches, or are somebody's pun.
fn plain(number: &str) -> Option<String> {
    // Copied contacts come wrapped in marks of direction and with unbreakable spaces and hyphens.
    let wrapping = |c: char| {
        c.is_whitespace() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let sign = |c: char| match c {
        '0'..='9' | '+' | '-' | '(' | ')' | '.' | '/' | ' ' => Some(c),
        '\u{a0}' => Some(' '),
        '\u{2010}'..='\u{2015}' | '\u{2212}' => Some('-'),
        '\u{ff0b}' => Some('+'),
        // Arabic, Persian and fullwidth keyboards.
        '\u{660}'..='\u{669}' | '\u{6f0}'..='\u{6f9}' | '\u{ff10}'..='\u{ff19}' => {
            char::from_digit(u32::from(c) & 0xf, 10)
        }
        _ => None,
    };
    number.trim_matches(wrapping).chars().map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(country: &str, number: &str) -> Result<String, AddressError> {
        Phone::read(country, number).map(|phone| phone.msisdn())
    }

    #[test]
    fn a_number_has_one_canonical_form_however_it_is_written() {
        let written = [
            ("GB", "07400 123456"),
            ("GB", "(07400) 123-456"),
            ("GB", "+44 (0)7400 123456"),
            ("GB", "00447400123456"),
            ("GB", "\u{202a}+44\u{a0}7400\u{a0}123\u{2011}456\u{202c}"),
            ("GB", "\u{660}\u{667}\u{664}\u{660}\u{660}\u{661}\u{662}\u{663}\u{664}\u{665}\u{666}"),
            ("US", "011 44 7400 123456"),
            ("FR", "+447400123456"),
            ("AQ", "+447400123456"),
        ];
        for (country, number) in written {
            assert_eq!(read(country, number).as_deref(), Ok("447400123456"), "{country} {number}");
        }
    }

    #[test]
    fn what_could_be_another_number_is_refused_with_its_reason() {
        use AddressError::{Country, Phone, PhoneLength, PhoneSigns, PhoneTooLong};
        let table = [
            ("gb", "07400 123456", Country),
            ("gb", "+44 7400 123456", Country),
            ("", "+44 7400 123456", Country),
            ("GBR", "+44 7400 123456", Country),
            ("ÅL", "+44 7400 123456", Country),
            ("GB", "+44 7400 1234560000000000000000000", PhoneTooLong),
            ("GB", "07400 123456 x12", PhoneSigns),
            ("GB", "07400 123456;ext=12", PhoneSigns),
            ("GB", "0800 REVERSE", PhoneSigns),
            ("GB", "+447400123456\r\nBcc: x", PhoneSigns),
            ("GB", "07400\x00123456", PhoneSigns),
            ("GB", "07400\n123456", PhoneSigns),
            ("GB", "", Phone),
            ("GB", "+", Phone),
            ("XX", "07400 123456", Phone),
            ("AQ", "07400 123456", Phone),
            ("GB", "+999 1234567", Phone),
            ("GB", "07400123456/07400123457", Phone),
            ("GB", "07400 1234567", PhoneLength),
            ("GB", "112", PhoneLength),
            ("US", "555 0123", PhoneLength),
            ("FR", "+33952932691286460", PhoneLength),
        ];
        for (country, number, why) in table {
            assert_eq!(read(country, number), Err(why), "{country} {number:?}");
        }
    }

    /// S§4.37.
    #[test]
    fn s37_only_ordinary_lines_take_codes() {
        let table = [
            ("+44 7400 123456", Line::Ordinary, Some("GB")),
            ("+44 7781 123456", Line::Ordinary, Some("GG")),
            ("+1 202 555 0123", Line::Ordinary, Some("US")),
            ("+1 876 210 1234", Line::Ordinary, Some("JM")),
            ("+7 771 000 9998", Line::Ordinary, Some("KZ")),
            ("+383 43 201 234", Line::Ordinary, Some("XK")),
            ("+44 7700 900456", Line::Unassigned, None),
            ("+1 555 555 0123", Line::Unassigned, None),
            ("+49 1 23456", Line::Unassigned, Some("DE")),
            ("+1 900 234 5678", Line::Premium, Some("US")),
            ("+44 909 879 0000", Line::Premium, Some("GB")),
            ("+979 1 2345 6789", Line::Premium, None),
            ("+49 180 12345", Line::SharedCost, Some("DE")),
            ("+870 773 111 632", Line::Satellite, None),
            ("+881 6 1234 5678", Line::Satellite, None),
            ("+882 16 34567890", Line::Satellite, None),
            ("+883 510 012345678", Line::Satellite, None),
            ("+44 70 1234 5678", Line::Other, Some("GB")),
            ("+1 800 234 5678", Line::Other, Some("US")),
            ("+800 1234 5678", Line::Other, None),
            ("+878 10 1234 567890", Line::Other, None),
        ];
        for (number, line, country) in table {
            let phone = Phone::read("DE", number).unwrap();
            assert_eq!((phone.line(), phone.country().as_deref()), (line, country), "{number}");
            assert_eq!(line.takes_codes(), line.as_str() == "ordinary", "{number}");
        }
    }

    #[test]
    fn a_masked_number_shows_its_country_code_and_at_most_two_digits() {
        let masked = |number: &str| Phone::read("DE", number).unwrap().masked();
        assert_eq!(masked("+44 7400 123456"), "+44 ••• ••56");
        assert_eq!(masked("+1 202 555 0123"), "+1 ••• ••23");
        assert_eq!(masked("+290 51234"), "+290 ••• ••••");
        assert_eq!(format!("{:?}", Phone::read("DE", "+44 7400 123456").unwrap()), "Phone(..)");
    }

    #[test]
    fn an_international_number_is_grouped_as_its_country_does() {
        let intl_fmt = |msisdn: &str| Phone::of_msisdn(msisdn).map(|phone| phone.intl_fmt());
        assert_eq!(intl_fmt("447700900456").as_deref(), Some("+44 7700 900456"));
        assert_eq!(intl_fmt("12025550123").as_deref(), Some("+1 202-555-0123"));
        assert_eq!(intl_fmt("390612345678").as_deref(), Some("+39 06 1234 5678"));
        assert_eq!(intl_fmt("a@example.org"), None);
        assert_eq!(intl_fmt("+447700900456"), None);
    }
}
