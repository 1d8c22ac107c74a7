//! What holds for every catalogue compiled in.

use std::collections::BTreeSet;

use super::*;

/// What is in another language as it is in English.
const SAME: [&str; 1] = ["direction"];

fn catalogues() -> BTreeMap<Language, Catalogue> {
    Languages::new("en", []).unwrap().catalogues
}

fn placeholders(text: &str) -> BTreeSet<&str> {
    text.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect()
}

#[test]
fn each_says_everything_itself_with_the_values_that_english_has() {
    let all = catalogues();
    assert_eq!(all.len(), 12);
    let english = all.values().find(|words| words["mail.open"] == "Review and confirm").unwrap();
    let mut compared = 0;
    for (language, words) in all.iter().filter(|(language, _)| language.as_str() != "en") {
        for (key, text) in words {
            assert!(!text.trim().is_empty() && text.trim() == text, "{language:?} {key}");
            let Some(reference) = english.get(key) else {
                assert!(key.starts_with("lifetime."), "{language:?} {key}");
                continue;
            };
            if !key.starts_with("lifetime.") {
                assert_eq!(placeholders(text), placeholders(reference), "{language:?} {key}");
            }
            assert!(
                text != reference || SAME.contains(&key.as_str()) || key.starts_with("lifetime."),
                "{language:?} {key}: as in English"
            );
            compared += 1;
        }
    }
    assert!(compared > 11 * 40, "{compared}");
}

/// A form that is used for one number alone may say it in a word; each other one says the number.
#[test]
fn a_span_says_its_number() {
    for (language, words) in catalogues() {
        for (key, text) in words.iter().filter(|(key, _)| key.starts_with("lifetime.")) {
            let alone = [".zero", ".one", ".two"].iter().any(|form| key.ends_with(form));
            assert!(alone || text.contains("{count}"), "{language:?} {key}: {text}");
        }
        assert_eq!(
            words.keys().filter(|key| key.starts_with("lifetime.")).count(),
            3 * plural::categories(language.as_str()).len()
        );
    }
}

/// As an operator's would be, held against English.
#[test]
fn none_has_a_fault_that_an_operators_would_be_refused_for() {
    let reference = catalogues().remove(&Language("en".into())).unwrap();
    for (tag, source) in BUILT_IN {
        let mut words = Catalogue::new();
        read(tag, source, &mut words).unwrap();
        let checked = Checked { file: tag, source, tag, words: &words, reference: &reference };
        assert_eq!(checked.errors(), [], "{tag}");
    }
}

/// A branded mail names the service where it speaks of it, and the server where a person decides.
#[test]
fn each_names_the_service_and_the_server_where_english_does() {
    for (language, words) in catalogues() {
        for (key, text) in words.iter().filter(|(key, _)| key.starts_with("mail.") || key.starts_with("confirm.")) {
            let last = key.rsplit('.').next();
            let wanted = if last == Some("lead") { (true, false) } else { (false, text.contains("{name}")) };
            assert_eq!((text.contains("{server_name}"), text.contains("{name}")), wanted, "{language:?} {key}");
            assert!(last != Some("subject") || text.contains("{name}"), "{language:?} {key}");
        }
    }
}

#[test]
fn those_that_are_written_from_the_right_say_so() {
    for (language, words) in catalogues() {
        assert_eq!(words["direction"], if language.as_str() == "ar" { "rtl" } else { "ltr" }, "{language:?}");
    }
}
