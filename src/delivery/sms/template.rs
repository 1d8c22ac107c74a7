//! The operator's templates of a request: every value escaped for where it stands, and never endless.

use std::borrow::Cow;

use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value, context};

/// Far above what a request of one message needs; an endless loop ends there.
const FUEL: u64 = 100_000;

/// What templates may name.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    /// With its `+`.
    pub(super) to: &'a str,
    pub(super) msisdn: &'a str,
    pub(super) code: &'a str,
    pub(super) text: &'a str,
    /// Empty when there is none.
    pub(super) from: &'a str,
    pub(super) server_name: &'a str,
}

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    /// Inside a JSON string, whose quotes are the template's.
    Json,
    /// A value of a form.
    Form,
    /// A segment of a path or a value of a query.
    Url,
    /// A header's value: one line.
    Header,
    Plain,
}

impl Context {
    const ALL: [(&'static str, Self); 5] = [
        ("json", Self::Json),
        ("form", Self::Form),
        ("url", Self::Url),
        ("header", Self::Header),
        ("plain", Self::Plain),
    ];

    fn as_str(self) -> &'static str {
        Self::ALL.into_iter().find_map(|(name, context)| (context == self).then_some(name)).unwrap_or("plain")
    }

    /// Of a body with this content type; without one it is JSON.
    pub(super) fn of_body(content_type: Option<&str>) -> Self {
        let essence = content_type.map(|it| it.split(';').next().unwrap_or(it).trim().to_ascii_lowercase());
        match essence.as_deref() {
            None | Some("application/json") => Self::Json,
            Some(structured) if structured.ends_with("+json") => Self::Json,
            Some("application/x-www-form-urlencoded") => Self::Form,
            Some(_) => Self::Plain,
        }
    }

    fn escaped(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Json => {
                let quoted = serde_json::Value::from(text).to_string();
                quoted.strip_prefix('"').and_then(|it| it.strip_suffix('"')).unwrap_or("").to_owned().into()
            }
            Self::Form => form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().into(),
            Self::Url => percent_encoded(text).into(),
            Self::Header => text.replace(char::is_control, " ").into(),
            Self::Plain => text.into(),
        }
    }
}

/// The compiled templates; each is known by its key, and its context stands behind the last dot of its name.
pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|name| {
            let ending = name.rsplit('.').next().unwrap_or_default();
            let known = Context::ALL.into_iter().find(|(context, _)| *context == ending);
            AutoEscape::Custom(known.map_or("plain", |(context, _)| context).into())
        });
        environment.set_formatter(escaped);
        Self(environment)
    }

    pub(super) fn add(&mut self, key: &str, context: Context, source: &str) -> Result<(), String> {
        let added = self.0.add_template_owned(name(key, context), source.to_owned());
        added.map_err(|error| why(&error, context))
    }

    /// The error never holds a value, nor a header's template.
    pub(super) fn render(&self, key: &str, context: Context, facts: &Facts<'_>) -> Result<String, String> {
        let Facts { to, msisdn, code, text, from, server_name } = *facts;
        let rendered = self.0.get_template(&name(key, context));
        let rendered = rendered.and_then(|it| it.render(context! { to, msisdn, code, text, from, server_name }));
        rendered.map_err(|error| why(&error, context))
    }
}

fn name(key: &str, context: Context) -> String {
    format!("{key}.{}", context.as_str())
}

fn why(error: &minijinja::Error, context: Context) -> String {
    let line = error.line().unwrap_or(1);
    match error.detail().filter(|_| context != Context::Header) {
        Some(detail) => format!("{}: {detail} (line {line} of the template)", error.kind()),
        None => format!("{} (line {line} of the template)", error.kind()),
    }
}

fn escaped(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    let text = value.as_str().map_or_else(|| Cow::from(value.to_string()), Cow::from);
    let context = if let AutoEscape::Custom(name) = state.auto_escape() {
        Context::ALL.into_iter().find_map(|(known, context)| (known == name).then_some(context))
    } else {
        None
    };
    // What an operator's `safe` or a `set` block has made is written as it is.
    let written = match context.filter(|_| !value.is_safe()) {
        Some(context) => out.write_str(&context.escaped(&text)),
        None => out.write_str(&text),
    };
    written.map_err(minijinja::Error::from)
}

/// Everything but RFC 3986's unreserved characters.
fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            let digits = [byte >> 4, byte & 15].into_iter().filter_map(|digit| char::from_digit(digit.into(), 16));
            out.extend(digits.map(|digit| digit.to_ascii_uppercase()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'_> = Facts {
        to: "+447700900123",
        msisdn: "447700900123",
        code: "123456",
        text: "\"a\" & b=c\\\r\n{{ 7*7 }} é+%",
        from: "",
        server_name: "example.org",
    };

    fn rendered(context: Context, source: &str) -> Result<String, String> {
        let mut templates = Templates::new();
        templates.add("sms.body", context, source)?;
        templates.render("sms.body", context, &FACTS)
    }

    #[test]
    fn a_value_is_escaped_for_where_it_stands() {
        let rows = [
            (Context::Json, r#""\"a\" & b=c\\\r\n{{ 7*7 }} é+%""#),
            (Context::Form, "\"%22a%22+%26+b%3Dc%5C%0D%0A%7B%7B+7*7+%7D%7D+%C3%A9%2B%25\""),
            (Context::Url, "\"%22a%22%20%26%20b%3Dc%5C%0D%0A%7B%7B%207%2A7%20%7D%7D%20%C3%A9%2B%25\""),
            (Context::Header, "\"\"a\" & b=c\\  {{ 7*7 }} é+%\""),
            (Context::Plain, "\"\"a\" & b=c\\\r\n{{ 7*7 }} é+%\""),
        ];
        let mut ran = 0;
        for (context, expected) in rows {
            assert_eq!(rendered(context, "\"{{ text }}\"").as_deref(), Ok(expected));
            assert_eq!(rendered(context, "{{ msisdn }} {{ code }}").as_deref(), Ok("447700900123 123456"));
            ran += 1;
        }
        assert_eq!(ran, 5);
        assert_eq!(rendered(Context::Url, "/{{ to }}").as_deref(), Ok("/%2B447700900123"));
    }

    #[test]
    fn a_filter_or_a_number_does_not_get_round_the_escaping() {
        let json = rendered(Context::Json, "\"{{ text|upper }}\", {{ text|length }}").unwrap();
        assert_eq!(json, r#""\"A\" & B=C\\\r\n{{ 7*7 }} É+%", 25"#);
    }

    #[test]
    fn the_content_type_says_what_the_body_is() {
        let rows = [
            (None, Context::Json),
            (Some("application/json"), Context::Json),
            (Some("Application/JSON; charset=utf-8"), Context::Json),
            (Some("application/vnd.example+json"), Context::Json),
            (Some("application/x-www-form-urlencoded;charset=UTF-8"), Context::Form),
            (Some("text/plain"), Context::Plain),
            (Some(""), Context::Plain),
        ];
        for (content_type, context) in rows {
            assert_eq!(Context::of_body(content_type), context, "{content_type:?}");
        }
    }

    #[test]
    fn a_template_that_is_broken_undefined_or_endless_says_so_without_values() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let rows =
            [("{{ client_secret }}", "undefined value"), ("\n{% if %}", "syntax error"), (endless, "ran out of fuel")];
        for (source, kind) in rows {
            let why = rendered(Context::Json, source).unwrap_err();
            assert!(why.contains(kind), "{why}");
        }
        assert!(rendered(Context::Json, "\n{% if %}").unwrap_err().ends_with("(line 2 of the template)"));
        assert_eq!(rendered(Context::Header, "{{ hunter2 }}").unwrap_err(), "undefined value (line 1 of the template)");
    }
}
