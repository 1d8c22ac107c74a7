//! What an expression names, as far as these tests look into one.

use std::iter::Peekable;
use std::str::Chars;

/// One metric of an expression, and what its labels have to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) name: String,
    /// Label, operator, value.
    pub(super) matchers: Vec<(String, String, String)>,
}

/// All that an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) selectors: Vec<Selector>,
    /// Labels that it groups by, or matches by.
    pub(super) labels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Word(String),
    Text(String),
    Sign(String),
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const BETWEEN: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

pub(super) fn named(expression: &str) -> Named {
    let parts = parts(expression);
    let mut parts = parts.iter().peekable();
    let mut named = Named::default();
    while let Some(part) = parts.next() {
        let Part::Word(word) = part else { continue };
        if GROUPING.contains(&word.as_str()) {
            let inside = parts.by_ref().take_while(|part| !is_sign(part, ")"));
            named.labels.extend(inside.filter_map(word_of));
            continue;
        }
        // A function, or an aggregation: `sum by (route) (…)`.
        let is_call = parts.peek().is_some_and(|next| {
            is_sign(next, "(") || word_of(next).is_some_and(|next| GROUPING[..2].contains(&next.as_str()))
        });
        if is_call || BETWEEN.contains(&word.as_str()) {
            continue;
        }
        let mut selector = Selector { name: word.clone(), matchers: Vec::new() };
        if parts.next_if(|next| is_sign(next, "{")).is_some() {
            let inside: Vec<_> = parts.by_ref().take_while(|part| !is_sign(part, "}")).cloned().collect();
            for matcher in inside.split(|part| is_sign(part, ",")).filter(|matcher| !matcher.is_empty()) {
                let [Part::Word(label), Part::Sign(operator), Part::Text(value)] = matcher else {
                    panic!("{matcher:?} in {expression}");
                };
                selector.matchers.push((label.clone(), operator.clone(), value.clone()));
            }
        }
        named.selectors.push(selector);
    }
    named
}

fn is_sign(part: &Part, sign: &str) -> bool {
    matches!(part, Part::Sign(it) if it == sign)
}

fn word_of(part: &Part) -> Option<String> {
    let Part::Word(word) = part else { return None };
    Some(word.clone())
}

fn parts(expression: &str) -> Vec<Part> {
    let mut signs = expression.chars().peekable();
    let mut parts = Vec::new();
    while let Some(sign) = signs.next() {
        let part = match sign {
            _ if sign.is_whitespace() => continue,
            '"' => Part::Text(signs.by_ref().take_while(|sign| *sign != '"').collect()),
            _ if sign.is_ascii_alphabetic() || sign == '_' => {
                Part::Word(run(sign, &mut signs, |sign| sign.is_ascii_alphanumeric() || sign == '_'))
            }
            // A number, or a duration.
            _ if sign.is_ascii_digit() => {
                Part::Sign(run(sign, &mut signs, |sign| sign.is_ascii_alphanumeric() || sign == '.'))
            }
            '=' | '!' | '>' | '<' => Part::Sign(run(sign, &mut signs, |sign| "=~".contains(sign))),
            _ => Part::Sign(sign.to_string()),
        };
        parts.push(part);
    }
    parts
}

fn run(first: char, signs: &mut Peekable<Chars<'_>>, belongs: impl Fn(char) -> bool) -> String {
    let mut run = String::from(first);
    while let Some(sign) = signs.next_if(|sign| belongs(*sign)) {
        run.push(sign);
    }
    run
}

#[test]
fn all_that_an_expression_names_is_seen() {
    let named = named(
        "sum by (job, le) (rate(a_bucket{x=\"1\", y!~\"2|3\"}[5m])) / on (z) group_left () sum(b) > 0.5 and up == 0 or c",
    );
    let names: Vec<_> = named.selectors.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!((names, named.labels.join(" ")), (vec!["a_bucket", "b", "up", "c"], "job le z".to_owned()));
    let matcher = |label: &str, operator: &str, value: &str| (label.to_owned(), operator.to_owned(), value.to_owned());
    assert_eq!(named.selectors[0].matchers, [matcher("x", "=", "1"), matcher("y", "!~", "2|3")]);
}
