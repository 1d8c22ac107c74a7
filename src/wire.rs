//! HTTP/1.1 as bytes: where a head ends, what its fields say, and where a body ends.
//!
//! It takes only what every parser reads alike, so that bytes can go on as they came. Whatever else comes is for hyper
//! to read, or to refuse.

mod fields;
mod framing;
mod head;
mod scan;

pub use fields::{content_length, is_chunked, is_for_everybody, is_host, is_lookalike};
pub use framing::{Framing, Malformed};
pub use head::{AnswerHead, Field, MAX_FIELDS, MAX_HEAD, Persistence, RequestHead};
pub use scan::{Scan, begins_a_request, scan, with_cr_lf};
