//! Texts of the configuration, each with its meaning: secrets, paths, durations, rates, mailboxes, languages.

use std::path::PathBuf;
use std::time::Duration;

use lettre::message::Mailbox;

use crate::config::fault::Wrong;
use crate::config::{Rate, Secret};

/// A text of one line with something in it.
pub(crate) fn text(text: &str) -> Result<String, Wrong> {
    if text.trim().is_empty() {
        return Err(Wrong::new("is empty", "write a text, or remove the key"));
    }
    if text.chars().any(char::is_control) {
        return Err(Wrong::new("holds a control character", "write it on one line without control characters"));
    }
    Ok(text.to_owned())
}

/// A template: it may have several lines, and hold a key of the account.
pub(crate) fn template(text: &str) -> Result<Secret, Wrong> {
    if text.trim().is_empty() {
        Err(Wrong::new("is empty", "write a text, or remove the key"))
    } else {
        Ok(Secret(text.to_owned()))
    }
}

/// RFC 6901, but for the empty pointer: a whole answer is compared with nothing.
pub(crate) fn pointer(written: &str) -> Result<String, Wrong> {
    if written.starts_with('/') {
        return text(written);
    }
    Err(Wrong::new(format!("{written:?} is not a JSON pointer"), "write one such as \"/messages/0/status\""))
}

/// Never repeated in a fault.
pub(crate) fn secret(text: &str) -> Result<Secret, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("is empty", "write the secret, or remove the key"));
    }
    Ok(Secret(text.to_owned()))
}

pub(crate) fn path(path: &str) -> Result<PathBuf, Wrong> {
    text(path).map(PathBuf::from)
}

/// `500ms`, `20s`, `10m`, `24h`, `7d`: a whole number and its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, Wrong> {
    let wrong = || {
        Wrong::new(
            format!("{text:?} is not a duration"),
            "write a whole number and ms, s, m, h or d, such as \"20s\" or \"24h\"",
        )
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (digits, unit) = text.split_at(unit_at);
    let number: u64 = digits.parse().map_err(|_not_a_number| wrong())?;
    let seconds_each = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds_each).map(Duration::from_secs).ok_or_else(wrong)
}

/// The shortest spelling of a duration.
pub(crate) fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_millis() != 0 {
        return format!("{}ms", duration.as_millis());
    }
    let units = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m")];
    let whole = units.into_iter().find(|(each, _)| seconds >= *each && seconds.is_multiple_of(*each));
    whole.map_or_else(|| format!("{seconds}s"), |(each, unit)| format!("{}{unit}", seconds / each))
}

/// `20/10m`: 20 times in ten minutes.
pub(crate) fn rate(text: &str) -> Result<Rate, Wrong> {
    const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
    let write = "write a number of times, a slash and a duration, such as \"20/10m\"";
    let (count, per) = text.split_once('/').ok_or_else(|| Wrong::new(format!("{text:?} is not a rate"), write))?;
    let per = duration(per)?;
    let count: u32 = count.parse().map_err(|_not_a_number| Wrong::new(format!("{text:?} is not a rate"), write))?;
    if !(1..=1_000_000).contains(&count) || !(Duration::from_secs(1)..=LONGEST).contains(&per) {
        return Err(Wrong::new(
            format!("{text:?} is out of bounds"),
            "write 1 to 1000000 times in a duration of \"1s\" to \"1d\"",
        ));
    }
    Ok(Rate { count, per })
}

pub(crate) fn is_mailbox(text: &str) -> bool {
    mailbox(text).is_ok()
}

pub(crate) fn mailbox(text: &str) -> Result<Mailbox, Wrong> {
    let write = "write \"noreply@example.org\" or \"Example <noreply@example.org>\"";
    let wrong = || Wrong::new(format!("{text:?} is not one mailbox"), write);
    if text.chars().any(char::is_control) {
        return Err(wrong());
    }
    let mailbox: Mailbox = text.parse().map_err(|_not_one| wrong())?;
    let address: &str = mailbox.email.as_ref();
    if !address.is_ascii() {
        return Err(Wrong::new(format!("{text:?} has an address beyond ASCII"), "write its domain in the xn-- form"));
    }
    Ok(mailbox)
}

/// The shape of a BCP 47 tag: `en`, `pt-BR`, `zh-Hant-TW`.
pub(crate) fn language(text: &str) -> Result<String, Wrong> {
    let mut parts = text.split('-');
    let primary = parts.next().is_some_and(|part| matches!(part.len(), 2..=3) && is_all(part, u8::is_ascii_lowercase));
    if primary && parts.all(|part| matches!(part.len(), 1..=8) && is_all(part, u8::is_ascii_alphanumeric)) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("{text:?} is not a language tag"), "write one such as \"en\" or \"pt-BR\""))
}

/// ISO 3166-1 alpha-2.
pub(crate) fn country(text: &str) -> Result<String, Wrong> {
    if text.len() == 2 && is_all(text, u8::is_ascii_uppercase) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("{text:?} is not a country code"), "write two capital letters such as \"GB\""))
}

pub(crate) fn is_all(text: &str, byte_is: fn(&u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte_is(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_whole_number_and_a_unit() {
        let rows =
            [("0s", 0), ("500ms", 500), ("20s", 20_000), ("10m", 600_000), ("1h", 3_600_000), ("2d", 172_800_000)];
        for (text, millis) in rows {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "20", "s", "1.5h", "-1s", "20 s", "20S", "1h30m", "18446744073709551615d", "٣s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_is_shown_as_it_would_be_written() {
        for text in ["0s", "500ms", "90s", "1500ms", "10m", "1h", "2d"] {
            assert_eq!(duration(text).map(shown).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_rate_is_at_least_one_in_a_day_and_never_zero() {
        assert_eq!(rate("1/1d"), Ok(Rate { count: 1, per: Duration::from_secs(86_400) }));
        for text in ["0/1h", "1/0s", "1/500ms", "1/2d", "1000001/1h", "20", "/1h", "20/", "-1/1h", "20/10m/1h"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sender_is_one_ascii_mailbox_on_one_line() {
        assert!(mailbox("noreply@example.org").is_ok() && mailbox("Exämple <noreply@example.org>").is_ok());
        for text in
            ["", "noreply", "a@example.org, b@example.org", "a@example.org\r\nBcc: b@example.org", "a@exämple.org"]
        {
            assert!(mailbox(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_language_tag_begins_with_a_lower_case_language() {
        for text in ["en", "deu", "pt-BR", "zh-Hant-TW", "de-1996"] {
            assert!(language(text).is_ok(), "{text}");
        }
        for text in ["", "e", "EN", "english", "en_US", "en-", "../en", "en-toolongsub"] {
            assert!(language(text).is_err(), "{text}");
        }
    }
}
