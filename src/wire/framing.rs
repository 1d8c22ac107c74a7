//! Where a body ends: counted while its bytes pass, never changed.

use std::mem;

/// What is still to come of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`; none is a length of 0.
    Length(u64),
    Chunked(Chunked),
    /// Until the connection ends: answers only.
    Close,
}

/// Chunks that no two parsers divide differently
/// ([RFC 9112 §7.1](https://www.rfc-editor.org/rfc/rfc9112#section-7.1)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunked {
    at: At,
    /// Bytes of the current size line or of all trailers, which have a bound.
    spent: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Size {
        size: u64,
        digits: u8,
    },
    Extension(u64),
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// The trailer line so far, or the empty line behind them.
    Trailer(Vec<u8>),
    Done,
}

/// The body ends in no way, or in more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chunk that has more than one reading")]
pub struct Malformed;

/// Enough for 2^60 bytes.
const MOST_DIGITS: u8 = 15;
/// hyper's own limit of what extensions and trailers may take is as large.
const MOST_SPENT: usize = 16 * 1024;

impl Framing {
    pub const NONE: Self = Self::Length(0);

    pub fn chunked() -> Self {
        Self::Chunked(Chunked { at: At::Size { size: 0, digits: 0 }, spent: 0 })
    }

    /// Whether nothing more belongs to it.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.at == At::Done,
            Self::Close => false,
        }
    }

    /// How many of these bytes belong to the body; what is behind them does not.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let mine = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= mine as u64;
                Ok(mine)
            }
            Self::Chunked(chunked) => chunked.advance(bytes),
            Self::Close => Ok(bytes.len()),
        }
    }
}

impl Chunked {
    fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut rest = bytes;
        while self.at != At::Done {
            if let At::Data(left) = &mut self.at {
                let mine = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= mine as u64;
                rest = rest.get(mine..).unwrap_or_default();
                if *left == 0 {
                    self.at = At::DataCr;
                }
            }
            let Some((byte, behind)) = rest.split_first() else { break };
            self.take(*byte)?;
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    fn take(&mut self, byte: u8) -> Result<(), Malformed> {
        let at = mem::replace(&mut self.at, At::Done);
        self.at = match (at, byte) {
            (At::Size { size, digits }, _) if byte.is_ascii_hexdigit() && digits < MOST_DIGITS => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                At::Size { size: size * 16 + u64::from(digit), digits: digits + 1 }
            }
            (At::Size { size, digits: 1.. } | At::Extension(size), b'\r') => At::SizeEnd(size),
            (At::Size { size, digits: 1.. }, b';') => At::Extension(size),
            (At::Extension(size), _) if is_text(byte) => At::Extension(size),
            (At::SizeEnd(0), b'\n') => {
                self.spent = 0;
                At::Trailer(Vec::new())
            }
            (At::SizeEnd(size), b'\n') => {
                self.spent = 0;
                At::Data(size)
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { size: 0, digits: 0 },
            (At::Trailer(line), b'\n') => trailer(&line)?,
            (At::Trailer(mut line), _) => {
                line.push(byte);
                At::Trailer(line)
            }
            _ => return Err(Malformed),
        };
        if matches!(self.at, At::Extension(_) | At::Trailer(_)) {
            self.spent += 1;
        }
        if self.spent > MOST_SPENT { Err(Malformed) } else { Ok(()) }
    }
}

/// What follows a line of the trailers. A field that says whose message it is, or how long, belongs into a head.
fn trailer(line: &[u8]) -> Result<At, Malformed> {
    let line = line.strip_suffix(b"\r").ok_or(Malformed)?;
    if line.is_empty() {
        return Ok(At::Done);
    }
    let mut halves = line.splitn(2, |byte| *byte == b':');
    let (name, value) = (halves.next().unwrap_or_default(), halves.next().ok_or(Malformed)?);
    let names = [&b"content-length"[..], b"transfer-encoding", b"host", b"authorization", b"connection", b"trailer"];
    let forbidden = names.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden));
    let fits = !name.is_empty()
        && name.iter().all(|byte| super::fields::is_token(*byte))
        && value.iter().all(|it| is_text(*it));
    if fits && !forbidden { Ok(At::Trailer(Vec::new())) } else { Err(Malformed) }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of the bytes is the body, and whether it is whole; given at once, and byte by byte.
    fn read(mut framing: Framing, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut slow = framing.clone();
        let at_once = framing.advance(bytes).map(|used| (used, framing.is_done()));
        let mut used = 0;
        let by_and_by = bytes.iter().try_for_each(|byte| slow.advance(&[*byte]).map(|one| used += one));
        assert_eq!(at_once, by_and_by.map(|()| (used, slow.is_done())), "{:?}", String::from_utf8_lossy(bytes));
        at_once
    }

    #[test]
    fn a_length_is_counted() {
        assert_eq!(read(Framing::NONE, b"next"), Ok((0, true)));
        assert_eq!(read(Framing::Length(3), b"abcnext"), Ok((3, true)));
        assert_eq!(read(Framing::Length(30), b"abc"), Ok((3, false)));
        assert_eq!(read(Framing::Close, b"abc"), Ok((3, false)));
    }

    #[test]
    fn chunks_are_followed_to_their_end() {
        for whole in [
            "0\r\n\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            "003\r\nabc\r\nA\r\n0123456789\r\n00\r\n\r\n",
            "3;name=value;other=\"x y\"\r\nabc\r\n0;last\r\n\r\n",
            "3\r\n\r\n\r\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n",
        ] {
            let bytes = format!("{whole}GET / HTTP/1.1\r\n");
            assert_eq!(read(Framing::chunked(), bytes.as_bytes()), Ok((whole.len(), true)), "{whole:?}");
            for cut in 0..whole.len() {
                assert_eq!(read(Framing::chunked(), &bytes.as_bytes()[..cut]), Ok((cut, false)), "{whole:?} {cut}");
            }
        }
    }

    #[test]
    fn s4_chunks_with_two_readings_are_refused() {
        let long = format!("3;{}\r\nabc\r\n", "x".repeat(MOST_SPENT + 1));
        let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(MOST_SPENT / 6 + 1));
        for wrong in [
            "\r\n",
            " 3\r\nabc\r\n",
            "3 \r\nabc\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\r\nabc",
            "0x3\r\nabc\r\n",
            "+3\r\nabc\r\n",
            "-1\r\n",
            "g\r\n",
            "1000000000000000\r\n",
            "3;a\nabc\r\n",
            "3;a\rb\r\nabc\r\n",
            "3;\0\r\nabc",
            "0\r\nX: a\n\r\n",
            "0\r\nContent-Length: 3\r\n\r\n",
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\nX : a\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nX: a\0\r\n\r\n",
            &long,
            &trailers,
        ] {
            assert_eq!(read(Framing::chunked(), wrong.as_bytes()), Err(Malformed), "{wrong:.40?}");
        }
    }
}
