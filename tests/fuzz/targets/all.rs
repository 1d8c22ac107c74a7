//! What is fuzzed, and what has to hold: one function a target, for libFuzzer and for `tests/it/fuzz.rs` alike.

mod accept_language;
mod body_edit;
mod creds_walk;
mod identity_query;
mod json;
mod next_link;
mod phone;
mod request_token;

pub type Target = fn(&[u8]);

pub const ALL: [(&str, Target); 7] = [
    ("accept_language", accept_language::run),
    ("body_edit", body_edit::run),
    ("creds_walk", creds_walk::run),
    ("identity_query", identity_query::run),
    ("next_link", next_link::run),
    ("phone", phone::run),
    ("request_token", request_token::run),
];

/// The first line, and everything behind it; without a line's end all of it is the rest.
fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (&[], data),
    }
}
