//! Templates, the built-in ones and the operator's: strict, escaped by file name, and never endless.

use std::collections::BTreeMap;
use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value, escape_formatter};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::WordingError;

/// The templates compiled in, by file name; `.html` is escaped as HTML.
pub const TEMPLATES: [(&str, &str); 8] = [
    ("subject.txt", include_str!("../../config/templates/subject.txt")),
    ("mail.txt", include_str!("../../config/templates/mail.txt")),
    ("mail.html", include_str!("../../config/templates/mail.html")),
    ("sms.txt", include_str!("../../config/templates/sms.txt")),
    ("page.html", include_str!("../../config/templates/page.html")),
    ("style.css", include_str!("../../config/templates/style.css")),
    ("confirm.html", include_str!("../../config/templates/confirm.html")),
    ("notice.html", include_str!("../../config/templates/notice.html")),
];

/// Far above what any of our templates needs; an operator's endless loop ends there.
const FUEL: u64 = 100_000;

/// Columns of a plain-text mail (RFC 5322 wants at most 78).
const COLUMNS: usize = 72;

pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new(overrides: Vec<(String, String)>) -> Result<Self, Vec<WordingError>> {
        let mut errors = Vec::new();
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(escaped);
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        let built_in = TEMPLATES.map(|(file, source)| (file.to_owned(), source.to_owned()));
        for (file, source) in built_in.into_iter().chain(overrides) {
            if !TEMPLATES.iter().any(|(known, _)| *known == file) {
                errors.push(WordingError::UnknownTemplate { file });
                continue;
            }
            // Browsers hash a style after turning CRLF into LF.
            let source = source.replace("\r\n", "\n");
            if let Err(error) = environment.add_template_owned(file.clone(), source) {
                errors.push(fault(&file, &error));
            }
        }
        if errors.is_empty() { Ok(Self(environment)) } else { Err(errors) }
    }

    pub(super) fn render(&self, template: &str, context: &BTreeMap<&str, Value>) -> Result<String, WordingError> {
        let rendered = self.0.get_template(template).and_then(|it| it.render(Value::from(context)));
        rendered.map_err(|error| fault(template, &error))
    }
}

/// Plain text in lines of at most 72 columns where it can be broken; a link stays whole.
pub(super) fn wrapped(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut column = 0;
        for piece in pieces(line) {
            if column > 0 && column + piece.trim_end().width() > COLUMNS {
                out.truncate(out.trim_end_matches(' ').len());
                out.push('\n');
                column = 0;
            }
            out.push_str(piece);
            column += piece.width();
        }
        out.push('\n');
    }
    out
}

/// A line between the places where it may be broken: after a space, and between two Chinese or Japanese characters
/// unless one of them belongs to the other.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    const BEGINS_NO_LINE: &str = "、。，．：；！？）」』】〉》…ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ";
    const ENDS_NO_LINE: &str = "（「『【〈《";
    let is_wide = |c: char| c.width() == Some(2);
    let mut rest = line;
    std::iter::from_fn(move || {
        let pairs = rest.char_indices().zip(rest.char_indices().skip(1));
        let may_break = |a: char, b: char| {
            a == ' ' && b != ' ' || is_wide(a) && is_wide(b) && !ENDS_NO_LINE.contains(a) && !BEGINS_NO_LINE.contains(b)
        };
        let at = pairs.into_iter().find(|((_, a), (_, b))| may_break(*a, *b)).map_or(rest.len(), |(_, (at, _))| at);
        let (piece, after) = rest.split_at(at);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// As `minijinja` escapes, but for `/`: a link in a mail has to be found by programs that do not know HTML.
fn escaped(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    let (AutoEscape::Html, Some(text), false) = (state.auto_escape(), value.as_str(), value.is_safe()) else {
        return escape_formatter(out, state, value);
    };
    for character in text.chars() {
        let written = match character {
            '<' => out.write_str("&lt;"),
            '>' => out.write_str("&gt;"),
            '&' => out.write_str("&amp;"),
            '"' => out.write_str("&quot;"),
            '\'' => out.write_str("&#x27;"),
            other => out.write_char(other),
        };
        written.map_err(minijinja::Error::from)?;
    }
    Ok(())
}

fn fault(template: &str, error: &minijinja::Error) -> WordingError {
    // What an included or extended file got wrong is wrapped; the innermost error knows the file and the line.
    let mut innermost = error;
    while let Some(source) = std::error::Error::source(innermost).and_then(|it| it.downcast_ref::<minijinja::Error>()) {
        innermost = source;
    }
    let why = match innermost.detail() {
        Some(detail) => format!("{}: {detail}", innermost.kind()),
        None => innermost.kind().to_string(),
    };
    let file = innermost.name().unwrap_or(template).to_owned();
    WordingError::Template { file, line: innermost.line().unwrap_or(1), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates(file: &str, source: &str) -> Result<Templates, WordingError> {
        Templates::new(vec![(file.to_owned(), source.to_owned())]).map_err(|mut errors| errors.remove(0))
    }

    fn rendered(file: &str, source: &str, name: &'static str, value: &str) -> String {
        templates(file, source).unwrap().render(file, &BTreeMap::from([(name, value.into())])).unwrap()
    }

    #[test]
    fn html_is_escaped_by_file_name_and_links_stay_legible() {
        let hostile = "<b a=\"1\" b='2'>&</b>";
        let html = rendered("notice.html", "{{ it }}", "it", hostile);
        assert_eq!(html, "&lt;b a=&quot;1&quot; b=&#x27;2&#x27;&gt;&amp;&lt;/b&gt;");
        assert_eq!(rendered("mail.txt", "{{ it }}", "it", hostile), hostile);
    }

    #[test]
    fn an_undefined_name_is_a_fault_with_file_and_line() {
        let templates = templates("style.css", "a\n{{ colour }}").unwrap();
        let brand = Value::from(BTreeMap::from([("name", "x"), ("logo", "")]));
        let page = BTreeMap::from([("lang", Value::from("en")), ("dir", "ltr".into()), ("brand", brand)]);
        let page = page.into_iter().chain([("t", Value::from(BTreeMap::from([("title", "x")])))]).collect();
        let error = templates.render("notice.html", &page).unwrap_err().to_string();
        assert!(error.starts_with("style.css:2: undefined value"), "{error}");
    }

    #[test]
    fn a_broken_template_is_a_fault_with_file_and_line() {
        let error = templates("mail.txt", "one\n\n{% if %}").err().map(|error| error.to_string());
        assert!(error.as_deref().is_some_and(|it| it.starts_with("mail.txt:3: syntax error")), "{error:?}");
        let both = ["mail.txt", "sms.txt"].map(|file| (file.to_owned(), "{% if %}".to_owned()));
        assert_eq!(Templates::new(both.into()).err().unwrap().len(), 2, "each of them");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let templates =
            templates("mail.txt", "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}");
        let error = templates.unwrap().render("mail.txt", &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("ran out of fuel"), "{error}");
    }

    #[test]
    fn a_template_we_do_not_have_is_a_fault() {
        let error = templates("mial.txt", "").err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(error, "mial.txt: there is no such template");
    }

    #[test]
    fn text_is_wrapped_between_words_and_a_link_stays_whole() {
        let link = format!("https://example.org/{}", "x".repeat(200));
        let text = format!("{}\n\n{link}\n-- \nä", "word ".repeat(40).trim_end());
        let wrapped = wrapped(&text);
        assert!(wrapped.lines().all(|line| line == link || line.chars().count() <= COLUMNS), "{wrapped}");
        assert!(wrapped.contains(&format!("\n\n{link}\n-- \nä\n")));
        assert_eq!(wrapped.matches("word").count(), 40);
        assert!(!wrapped.contains("word \n"));
    }

    #[test]
    fn chinese_is_wrapped_by_its_columns_and_no_line_begins_with_a_full_stop() {
        let text = format!("{}。（次）1分", "確認".repeat(18));
        assert_eq!(wrapped(&text), format!("{}確\n認。（次）1分\n", "確認".repeat(17)));
        assert_eq!(wrapped(&"確".repeat(200)).lines().map(UnicodeWidthStr::width).max(), Some(COLUMNS));
        let arabic = "أكِّد ذلك ".repeat(20);
        assert!(wrapped(&arabic).lines().all(|line| line.width() <= COLUMNS), "a vowel's mark takes no column");
    }
}
