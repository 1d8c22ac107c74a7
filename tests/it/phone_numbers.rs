//! Our reading of a phone number against that of `phonenumbers`, the parser of every Synapse.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use threepid_shim::matrix::{Address, Line};

/// One number as `tests/phone_numbers.py` had it read; `-` where phonenumbers read none.
struct Row {
    country: String,
    number: String,
    by_old: String,
    by_new: String,
    intl_fmt: String,
    region: String,
    kind: String,
}

fn table() -> Vec<Row> {
    let row = |line: &str| {
        let mut columns = line.split('\t').map(str::to_owned);
        let mut next = || columns.next().expect("seven columns");
        Row {
            country: next(),
            number: serde_json::from_str(&next()).expect("a JSON string"),
            by_old: next(),
            by_new: next(),
            intl_fmt: next(),
            region: next(),
            kind: next(),
        }
    };
    include_str!("phone_numbers.tsv").lines().filter(|line| !line.starts_with('#')).map(row).collect()
}

/// What a type of phonenumbers' is to us; numbers of no country are judged by their code alone.
fn line(row: &Row) -> Line {
    match (row.by_new.get(..3), row.kind.as_str()) {
        (Some("870" | "881" | "882" | "883"), _) => Line::Satellite,
        (Some("979"), _) | (_, "PREMIUM_RATE") => Line::Premium,
        (_, "SHARED_COST") => Line::SharedCost,
        (_, "UNKNOWN") => Line::Unassigned,
        (_, "MOBILE" | "FIXED_LINE" | "FIXED_LINE_OR_MOBILE" | "VOIP") if row.region != "001" => Line::Ordinary,
        _ => Line::Other,
    }
}

#[test]
fn a_phone_number_is_read_as_phonenumbers_reads_it_or_refused() {
    let rows = table();
    let countries: BTreeSet<&str> = rows.iter().map(|row| row.country.as_str()).collect();
    assert!(rows.len() >= 2000 && countries.len() >= 40, "{} rows, {} countries", rows.len(), countries.len());

    let (mut read, mut wrong, mut between) = (0, Vec::new(), Vec::new());
    let mut refused: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in &rows {
        let said = format!("{} {:?}: {} {}", row.country, row.number, row.by_new, row.kind);
        let address = match Address::msisdn(&row.country, &row.number) {
            Ok(address) => address,
            Err(_) if row.by_new == "-" => continue,
            Err(why) => {
                refused.entry(format!("{why:?}")).or_default().push(row);
                continue;
            }
        };
        read += 1;
        let phone = address.phone().expect("a msisdn is a phone");
        // How a range that is not given out would be grouped changes with every edition of the metadata.
        let grouped = |text: String| if phone.line() == Line::Unassigned { text.replace([' ', '-'], "") } else { text };
        let ours = (grouped(phone.intl_fmt()), phone.country().unwrap_or_else(|| "-".to_owned()), phone.line());
        let theirs = (grouped(row.intl_fmt.clone()), row.region.replace("001", "-"), line(row));
        if address.expose() != row.by_new || ours != theirs {
            wrong.push(format!("{said}; ours {} {ours:?}", address.expose()));
        }
        if row.by_old != row.by_new && phone.line().takes_codes() {
            between.push(said);
        }
    }
    assert!(wrong.is_empty(), "{} read otherwise:\n{}", wrong.len(), wrong.join("\n"));
    assert!(read >= 1500, "only {read} of {} read", rows.len());

    let counts: BTreeMap<&str, usize> = refused.iter().map(|(why, rows)| (why.as_str(), rows.len())).collect();
    println!("{} rows, {read} read as phonenumbers does; refused though it reads them: {counts:?}", rows.len());
    println!("which the two versions read differently:\n{}", between.join("\n"));
    for (why, rows) in &refused {
        for row in rows {
            println!("{why} {} {:?} {} {}", row.country, row.number, row.by_new, row.kind);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    /// The crate behind it has siblings that panicked on input (RUSTSEC-2023-0082, RUSTSEC-2024-0369).
    #[test]
    fn no_string_makes_the_phone_parser_panic_and_every_msisdn_is_its_own_canonical_form(
        country in "(GB|US|AR|BR|MX|IT|RU|CN|KZ|AU|XK|AQ|[A-Z]{2}|\\PC{0,3})",
        number in "(\\+?[0-9 ()./-]{0,32}|[+0-9\u{660}-\u{669}\u{ff0b}-\u{ff19}\u{a0}\u{2010}-\u{2015}]{0,14}|\\PC{0,32}|(?s:.){0,8})",
    ) {
        let Ok(address) = Address::msisdn(&country, &number) else { return Ok(()) };
        let msisdn = address.expose();
        prop_assert!((5..=15).contains(&msisdn.len()) && msisdn.bytes().all(|b| b.is_ascii_digit()), "{msisdn}");
        let phone = address.phone().expect("a msisdn is a phone");
        prop_assert_eq!(Address::msisdn("GB", &format!("+{msisdn}")), Ok(address.clone()));
        prop_assert_eq!(Address::msisdn("GB", &phone.intl_fmt()), Ok(address.clone()));
        let shown = address.masked().chars().filter(char::is_ascii_digit).count();
        prop_assert!(shown <= 5 && shown <= msisdn.len() - 2, "{}", address.masked());
        prop_assert_eq!(phone.line().takes_codes(), phone.line() == Line::Ordinary);
    }
}
