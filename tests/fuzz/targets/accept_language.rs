//! A value of `Accept-Language`.
//!
//! One of the languages that there are is chosen, and the same as by looking at every range and language.

use std::sync::LazyLock;

use http::HeaderValue;
use threepid_shim::wording::Wording;

const DEFAULT: &str = "en";
/// Files more, beside what is compiled in.
const OTHERS: [&str; 3] = ["de-at", "pt-br", "zh-hant-tw"];
const TAGS: [&str; 15] =
    ["ar", "de", "de-at", DEFAULT, "es", "fr", "it", "ja", "nl", "pl", "pt", "pt-br", "uk", "zh-hans", "zh-hant-tw"];

static WORDING: LazyLock<Wording> = LazyLock::new(|| {
    let (english, chinese) =
        (include_str!("../../../config/languages/en.json"), include_str!("../../../config/languages/zh-Hans.json"));
    let words = |tag: &str| if tag.starts_with("zh") { chinese } else { english }.to_owned();
    Wording::new(DEFAULT, OTHERS.map(|tag| (format!("{tag}.json"), words(tag)))).expect("the words are complete")
});

pub fn run(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let Ok(value) = value.to_str() else { return };
    let chosen = WORDING.language(Some(value));
    assert_eq!(chosen.as_str(), expected(value), "{value}");
    assert_eq!(WORDING.language(Some(chosen.as_str())), chosen, "it reads back");
}

fn expected(value: &str) -> &'static str {
    let mut best = (0, DEFAULT);
    for item in value.split(',') {
        let mut parts = item.split(';').map(|part| part.trim_matches([' ', '\t']));
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix(['q', 'Q'])?.strip_prefix('='));
        let weight = quality.map_or(1000, thousandths);
        let tag = longest(&range).or_else(|| longest(&scripted(&range)?));
        // The first of the heaviest.
        if let Some(tag) = tag.or((range == "*").then_some(DEFAULT)).filter(|_| weight > best.0) {
            best = (weight, tag);
        }
    }
    best.1
}

fn longest(range: &str) -> Option<&'static str> {
    TAGS.into_iter().filter(|tag| range == *tag || range.starts_with(&format!("{tag}-"))).max_by_key(|tag| tag.len())
}

/// `zh-tw` as `zh-hant-tw`, `zh` as `zh-hans`.
fn scripted(range: &str) -> Option<String> {
    let mut subtags: Vec<&str> = range.split('-').collect();
    if subtags.remove(0) != "zh" || subtags.contains(&"hans") || subtags.contains(&"hant") {
        return None;
    }
    let traditional = ["tw", "hk", "mo"].iter().any(|region| subtags.contains(region));
    let script = if traditional { "hant" } else { "hans" };
    Some([&["zh", script], &subtags[..]].concat().join("-"))
}

/// RFC 9110's `qvalue`; what is none is worth nothing.
fn thousandths(written: &str) -> u32 {
    let digits: Vec<_> = written.chars().collect();
    match digits.as_slice() {
        ['0' | '1'] | ['0' | '1', '.'] => 1000 * u32::from(digits[0] == '1'),
        ['0' | '1', '.', decimals @ ..] if decimals.len() <= 3 && decimals.iter().all(char::is_ascii_digit) => {
            let weights = [100, 10, 1];
            let sum =
                decimals.iter().zip(weights).map(|(digit, weight)| digit.to_digit(10).unwrap_or(0) * weight).sum();
            match digits[0] {
                '0' => sum,
                _ if sum == 0 => 1000,
                _ => 0,
            }
        }
        _ => 0,
    }
}
