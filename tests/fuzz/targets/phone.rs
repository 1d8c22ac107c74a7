//! First line: a country. Behind it: a phone number.
//!
//! What is taken has one canonical form, of digits, which reads as itself; what is shown of it is little.

use threepid_shim::matrix::{Address, Line};

use super::first_line;

pub fn run(data: &[u8]) {
    let (country, number) = first_line(data);
    let (country, number) = (String::from_utf8_lossy(country), String::from_utf8_lossy(number));
    let Ok(address) = Address::msisdn(&country, &number) else { return };
    let msisdn = address.expose();
    assert!((5..=15).contains(&msisdn.len()) && msisdn.bytes().all(|byte| byte.is_ascii_digit()), "{msisdn}");
    assert!(!msisdn.starts_with('0'), "{msisdn}");
    let phone = address.phone().expect("a msisdn is a phone");
    assert_eq!(phone.msisdn(), msisdn);
    assert_eq!(Address::msisdn(&country, &number).as_ref(), Ok(&address));
    for (country, written) in [("GB", format!("+{msisdn}")), ("US", phone.intl_fmt()), (&country, phone.intl_fmt())] {
        assert_eq!(Address::msisdn(country, &written).as_ref(), Ok(&address), "{written}");
    }
    let masked = address.masked();
    let shown = masked.chars().filter(char::is_ascii_digit).count();
    assert!(shown <= 5 && shown <= msisdn.len() - 2, "{masked}");
    assert_eq!(phone.line().takes_codes(), phone.line() == Line::Ordinary);
    assert!(phone.country().is_none_or(|country| country.len() == 2), "{msisdn}");
}
