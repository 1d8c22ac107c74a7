//! Which of its plural forms a language uses for a whole number, by the rules of Unicode CLDR.

/// The categories a language has, for whole numbers below a million.
pub(super) fn categories(tag: &str) -> &'static [&'static str] {
    match primary(tag) {
        "ja" | "zh" | "ko" | "vi" | "th" | "id" => &["other"],
        "pl" | "uk" | "ru" | "be" => &["one", "few", "many"],
        "cs" | "sk" | "hr" | "sr" | "bs" | "lt" | "ro" => &["one", "few", "other"],
        "ar" => &["zero", "one", "two", "few", "many", "other"],
        _ => &["one", "other"],
    }
}

/// The category of a number in a language; `one` for 1 and `other` else where nothing more is known of it.
pub(super) fn category(tag: &str, number: u64) -> &'static str {
    let (ones, tens) = (number % 10, number % 100);
    let in_teens = (11..=14).contains(&tens);
    let is_few = (2..=4).contains(&ones) && !in_teens;
    match primary(tag) {
        "ja" | "zh" | "ko" | "vi" | "th" | "id" => "other",
        "ar" => match number {
            0 => "zero",
            1 => "one",
            2 => "two",
            _ if (3..=10).contains(&tens) => "few",
            _ if tens >= 11 => "many",
            _ => "other",
        },
        "uk" | "ru" | "be" | "hr" | "sr" | "bs" if ones == 1 && !in_teens => "one",
        "lt" if ones == 1 && !(11..=19).contains(&tens) => "one",
        "lt" if ones >= 2 && !(11..=19).contains(&tens) => "few",
        "fr" | "pt" if number == 0 => "one",
        "uk" | "ru" | "be" | "hr" | "sr" | "bs" if is_few => "few",
        "uk" | "ru" | "be" => "many",
        _ if number == 1 => "one",
        "pl" if is_few => "few",
        "pl" => "many",
        "cs" | "sk" if (2..=4).contains(&number) => "few",
        "ro" if number == 0 || (1..=19).contains(&tens) => "few",
        _ => "other",
    }
}

fn primary(tag: &str) -> &str {
    tag.split('-').next().unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as CLDR's own tables of samples have them.
    #[test]
    fn each_number_has_the_category_that_cldr_gives_it() {
        let rows: [(&str, &str, &[u64]); 25] = [
            ("en", "one", &[1]),
            ("en", "other", &[0, 2, 16, 100, 101]),
            ("fr", "one", &[0, 1]),
            ("fr", "other", &[2, 17, 100]),
            ("pt-br", "one", &[0, 1]),
            ("ja", "other", &[0, 1, 2, 100]),
            ("zh-hans", "other", &[1, 15]),
            ("pl", "one", &[1]),
            ("pl", "few", &[2, 4, 22, 24, 102]),
            ("pl", "many", &[0, 5, 12, 14, 19, 21, 101, 112]),
            ("uk", "one", &[1, 21, 31, 101]),
            ("uk", "few", &[2, 4, 22, 102]),
            ("uk", "many", &[0, 5, 11, 14, 19, 111]),
            ("ar", "zero", &[0]),
            ("ar", "one", &[1]),
            ("ar", "two", &[2]),
            ("ar", "few", &[3, 10, 103, 110]),
            ("ar", "many", &[11, 26, 99, 111]),
            ("ar", "other", &[100, 101, 102, 200]),
            ("cs", "few", &[2, 3, 4]),
            ("cs", "other", &[0, 5, 22]),
            ("lt", "one", &[1, 21, 101]),
            ("lt", "other", &[0, 10, 11, 20]),
            ("ro", "few", &[0, 2, 16, 101]),
            ("sr", "one", &[1, 21, 101]),
        ];
        for (tag, expected, numbers) in rows {
            for number in numbers {
                assert_eq!(category(tag, *number), expected, "{tag} {number}");
            }
        }
    }

    #[test]
    fn no_language_uses_a_category_that_it_does_not_have() {
        for tag in ["en", "ja", "pl", "uk", "ar", "cs", "hr", "lt", "ro", "fr", "sv"] {
            for number in 0..1000 {
                let category = category(tag, number);
                assert!(categories(tag).contains(&category), "{tag} {number}: {category}");
            }
        }
    }
}
