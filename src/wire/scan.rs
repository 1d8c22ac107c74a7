//! Where a head ends.

use memchr::{memchr, memmem};

use super::MAX_HEAD;

/// Whether there is a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// It ends before this byte.
    Whole(usize),
    /// So far there is nothing wrong with it.
    Partial,
    /// A line ends by less than CR LF, or it is too long.
    Unusual,
}

/// Looks for the end of a head at the beginning of `bytes`, the first `seen` of which were looked at before.
pub fn scan(bytes: &[u8], seen: usize) -> Scan {
    let from = seen.saturating_sub(3);
    let end = memmem::find(bytes.get(from..).unwrap_or_default(), b"\r\n\r\n").map(|at| from + at + 4);
    let head = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    if head.len() > MAX_HEAD || !is_divided_by_cr_lf(head, from) {
        return Scan::Unusual;
    }
    end.map_or(Scan::Partial, Scan::Whole)
}

/// Some parsers end a line at a bare LF, others do not: httparse does.
fn is_divided_by_cr_lf(head: &[u8], from: usize) -> bool {
    let mut at = from;
    while let Some(found) = memchr(b'\n', head.get(at..).unwrap_or_default()) {
        at += found;
        if at == 0 || head.get(at - 1) != Some(&b'\r') {
            return false;
        }
        at += 1;
    }
    true
}

/// Whether bytes that are no whole head begin as one that [`RequestHead`] could be: of other versions it may be whole.
pub fn begins_a_request(bytes: &[u8]) -> bool {
    // A letter begins a method; anything else is no HTTP/1.
    let line = memchr(b'\n', bytes).map(|end| bytes.get(..end).unwrap_or_default());
    bytes.first().is_some_and(u8::is_ascii_uppercase) && line.is_none_or(|line| line.ends_with(b" HTTP/1.1\r"))
}

/// The head of an answer with CR LF at the end of every line, for a homeserver that leaves out the CR; and how much was
/// read for it. `None`: it is not whole.
pub fn with_cr_lf(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut head = Vec::with_capacity(bytes.len() + 64);
    let mut at = 0;
    loop {
        let line =
            bytes.get(at..)?.split_inclusive(|byte| *byte == b'\n').next().filter(|line| line.ends_with(b"\n"))?;
        at += line.len();
        let line = line.strip_suffix(b"\r\n").or(line.strip_suffix(b"\n"))?;
        head.extend_from_slice(line);
        head.extend_from_slice(b"\r\n");
        if line.is_empty() {
            return Some((head, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_found_however_a_head_comes_in() {
        let head = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        for cut in 0..head.len() {
            assert_eq!(scan(&head[..cut], 0), Scan::Partial, "{cut}");
            assert_eq!(scan(head, cut), Scan::Whole(head.len()), "{cut}");
        }
        assert_eq!(scan(&[head, &head[..]].concat(), 0), Scan::Whole(head.len()));
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        for unusual in ["\n", "GET / HTTP/1.1\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\n\n", &long] {
            assert_eq!(scan(unusual.as_bytes(), 0), Scan::Unusual, "{unusual:.40}");
        }
    }

    #[test]
    fn an_answer_s_lines_are_given_the_cr_that_they_lack() {
        let whole = b"HTTP/1.1 200 OK\nA: 1\r\nB: 2\n\nbody\n";
        let (head, read) = with_cr_lf(whole).unwrap();
        assert_eq!(
            (head.as_slice(), &whole[read..]),
            (&b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\n\r\n"[..], &b"body\n"[..])
        );
        for cut in 0..read {
            assert_eq!(with_cr_lf(&whole[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn what_will_never_be_a_request_of_1_1_is_known_by_its_first_line() {
        for begun in ["G", "GET /", "GET / HTTP/1.1\r", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHos"] {
            assert!(begins_a_request(begun.as_bytes()), "{begun:?}");
        }
        for other in
            ["", "\r\n", "\u{16}\u{3}", "GET / HTTP/1.0\r\n", "GET /\r\n", "PRI * HTTP/2.0\r\n", "get / HTTP/1.1\r\n"]
        {
            assert!(!begins_a_request(other.as_bytes()), "{other:?}");
        }
    }
}
