//! Heads that have one reading, with the place of every field in the bytes that came.

use std::mem::MaybeUninit;
use std::ops::Range;

use httparse::Status;
use memchr::memchr;

use super::Framing;
use super::fields::{content_length, is_chunked, is_for_everybody, is_host, is_lookalike};

/// Longest head, in bytes. Four times what Twisted takes.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most fields in a head. hyper's 100 is less than clients behind chatty proxies may need.
pub const MAX_FIELDS: usize = 200;

/// Whether another message may follow on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    KeepAlive,
    Close,
}

/// A field that is not simply passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Concerns this connection only.
    Hop,
    ForwardedFor,
}

/// A request that can go on as bytes. Offsets are into the head it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    pub method: Range<usize>,
    /// The path without its query.
    pub path: Range<usize>,
    /// Behind the request line.
    pub fields: usize,
    pub framing: Framing,
    pub persistence: Persistence,
    /// Lines that are not simply passed on, in their order.
    pub special: Special,
}

/// An answer that can go on as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerHead {
    pub status: u16,
    /// Behind the status line.
    pub fields: usize,
    pub framing: Framing,
    pub persistence: Persistence,
    pub special: Special,
}

/// Whole lines of a head, with their CR LF.
pub(super) type Special = Vec<(Field, Range<usize>)>;

impl RequestHead {
    /// `None`: not ordinary. It may be wrong, or mean something to us.
    pub fn parse(head: &[u8]) -> Option<Self> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(head, &mut fields).ok()?;
        if parsed != Status::Complete(head.len()) || request.version != Some(1) {
            return None;
        }
        let (method, target) = (request.method?, request.path?);
        // An empty line before it, which httparse takes, would be passed on.
        let starts = head.starts_with(method.as_bytes()) && method.bytes().all(|byte| byte.is_ascii_uppercase());
        if !starts || method == "CONNECT" || !is_origin_form(target.as_bytes()) {
            return None;
        }
        let target_at = method.len() + 1;
        let path = target.find('?').unwrap_or(target.len());
        let mut told = Told::new(head);
        for field in request.headers.iter() {
            told.request(field)?;
        }
        if told.hosts != 1 {
            return None;
        }
        Some(Self {
            method: 0..method.len(),
            path: target_at..target_at + path,
            fields: memchr(b'\n', head)? + 1,
            framing: told.framing.unwrap_or(Framing::NONE),
            persistence: told.persistence,
            special: told.special,
        })
    }
}

impl AnswerHead {
    /// `None`: it has no reading, or more than one. `to_head`: it answers a HEAD.
    pub fn parse(head: &[u8], to_head: bool) -> Option<Self> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let parsed = config.parse_response_with_uninit_headers(&mut answer, head, &mut fields).ok()?;
        if parsed != Status::Complete(head.len()) || !head.starts_with(b"HTTP/1.") {
            return None;
        }
        let status = answer.code.filter(|code| *code >= 100)?;
        let mut told = Told::new(head);
        if answer.version == Some(0) {
            told.persistence = Persistence::Close;
        }
        for field in answer.headers.iter() {
            told.answer(field)?;
        }
        if answer.version == Some(0) && matches!(told.framing, Some(Framing::Chunked(_))) {
            return None;
        }
        told.drop_what_connection_names(answer.headers);
        let framing = match (status, told.framing) {
            (100..200 | 204 | 304, _) => Framing::NONE,
            _ if to_head => Framing::NONE,
            (_, Some(framing)) => framing,
            (_, None) => Framing::Close,
        };
        let persistence = if framing == Framing::Close { Persistence::Close } else { told.persistence };
        Some(Self { status, fields: memchr(b'\n', head)? + 1, framing, persistence, special: told.special })
    }
}

/// What the fields of a head have told so far.
struct Told<'a> {
    head: &'a [u8],
    hosts: u32,
    framing: Option<Framing>,
    persistence: Persistence,
    special: Special,
    /// Names in `Connection` lines, of an answer.
    names: bool,
}

impl<'a> Told<'a> {
    fn new(head: &'a [u8]) -> Self {
        let persistence = Persistence::KeepAlive;
        Self { head, hosts: 0, framing: None, persistence, special: Vec::new(), names: false }
    }

    fn request(&mut self, field: &httparse::Header<'_>) -> Option<()> {
        let name = field.name;
        let is = |expected: &str| name.eq_ignore_ascii_case(expected);
        match name.len() {
            4 if is("host") => {
                self.hosts += 1;
                is_host(field.value).then_some(())
            }
            // Trailers pass, and we can say so for ourselves.
            2 if is("te") => (field.value == b"trailers").then_some(()),
            // Each means something on this connection, and neither is ordinary.
            6 if is("expect") => None,
            7 if is("upgrade") => None,
            10 if is("connection") => {
                self.connection(field.value)?;
                self.note(Field::Hop, field)
            }
            10 if is("keep-alive") => self.note(Field::Hop, field),
            15 if is("x-forwarded-for") => self.note(Field::ForwardedFor, field),
            16 if is("proxy-connection") => self.note(Field::Hop, field),
            _ => self.length(field),
        }
    }

    fn answer(&mut self, field: &httparse::Header<'_>) -> Option<()> {
        let name = field.name;
        let is = |expected: &str| name.eq_ignore_ascii_case(expected);
        match name.len() {
            7 if is("upgrade") => self.note(Field::Hop, field),
            10 if is("connection") => {
                if self.connection(field.value).is_none() {
                    self.names = true;
                }
                self.note(Field::Hop, field)
            }
            10 if is("keep-alive") => self.note(Field::Hop, field),
            16 if is("proxy-connection") => self.note(Field::Hop, field),
            _ => self.length(field),
        }
    }

    /// At most one length, with one reading.
    fn length(&mut self, field: &httparse::Header<'_>) -> Option<()> {
        let is = |expected: &str| field.name.eq_ignore_ascii_case(expected);
        let framing = match field.name.len() {
            14 | 17 if is_lookalike(field.name) => return None,
            14 if is("content-length") => Framing::Length(content_length(field.value)?),
            17 if is("transfer-encoding") => is_chunked(field.value).then(Framing::chunked)?,
            _ => return Some(()),
        };
        self.framing.is_none().then(|| self.framing = Some(framing))
    }

    /// `None`: it names fields.
    fn connection(&mut self, value: &[u8]) -> Option<()> {
        let mut names = false;
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.persistence = Persistence::Close;
            } else if !token.eq_ignore_ascii_case(b"keep-alive") {
                names = true;
            }
        }
        (!names).then_some(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "one arm of many that may find a fault")]
    fn note(&mut self, kind: Field, field: &httparse::Header<'_>) -> Option<()> {
        self.special.push((kind, self.line_of(field)));
        Some(())
    }

    fn line_of(&self, field: &httparse::Header<'_>) -> Range<usize> {
        let start = offset(self.head, field.name.as_bytes());
        let end =
            memchr(b'\n', self.head.get(start..).unwrap_or_default()).map_or(self.head.len(), |at| start + at + 1);
        start..end
    }

    /// Fields of an answer that its `Connection` names go no further than we do.
    fn drop_what_connection_names(&mut self, fields: &[httparse::Header<'_>]) {
        if !self.names {
            return;
        }
        let lines = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
        let named: Vec<&[u8]> =
            lines.flat_map(|line| line.value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect();
        for field in fields {
            let name = field.name;
            let line = self.line_of(field);
            let is_named = named.iter().any(|token| token.eq_ignore_ascii_case(name.as_bytes()));
            if is_named && !is_for_everybody(name) && !self.special.iter().any(|(_, noted)| *noted == line) {
                self.special.push((Field::Hop, line));
            }
        }
        self.special.sort_by_key(|(_, line)| line.start);
    }
}

/// Where a part of the head is in it.
fn offset(head: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().saturating_sub(head.as_ptr().addr())
}

/// A path, and no fragment, which would not be the homeserver's to see.
fn is_origin_form(target: &[u8]) -> bool {
    target.starts_with(b"/") && !target.contains(&b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str, fields: &str) -> Option<RequestHead> {
        RequestHead::parse(format!("{line}\r\nHost: example.org\r\n{fields}\r\n").as_bytes())
    }

    #[test]
    fn s4_only_what_every_parser_reads_alike_is_ordinary() {
        assert!(request("GET / HTTP/1.1", "").is_some());
        for line in [
            "GET / HTTP/1.0",
            "GET / HTTP/1.2",
            "get / HTTP/1.1",
            "CONNECT h:1 HTTP/1.1",
            "GET http://h/ HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET /#f HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET / x HTTP/1.1",
            "GET /\u{1} HTTP/1.1",
            "\r\nGET / HTTP/1.1",
        ] {
            assert_eq!(request(line, ""), None, "{line:?}");
        }
        for fields in [
            "Host: h\r\n",
            "X : 1\r\n",
            "X\r\n",
            " X: 1\r\n",
            "X: 1\r\n 2\r\n",
            "X: a\0b\r\n",
            "X: a\rb\r\n",
            "X\u{e9}: 1\r\n",
            "Expect: 100-continue\r\n",
            "Upgrade: websocket\r\n",
            "TE: gzip\r\n",
            "Connection: x-hop\r\n",
            "Connection: keep-alive, upgrade\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 01\r\n",
            "Content-Length:\r\n",
            "Content-Length: 1000000000000000000\r\n",
            "Content_Length: 1\r\n",
            "Transfer_Encoding: chunked\r\n",
            "Transfer-Encoding: Chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(request("POST / HTTP/1.1", fields), None, "{fields:?}");
        }
        assert_eq!(request("GET / HTTP/1.1", &"X: 1\r\n".repeat(MAX_FIELDS)), None);
        for host in ["", "a/b", "a b", "user@h", "h:99999", "h:1x", "h:+1", "[::1", "[h]", "::1"] {
            let known = RequestHead::parse(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
            assert_eq!(known, None, "{host:?}");
        }
        assert_eq!(RequestHead::parse(b"GET / HTTP/1.1\r\n\r\n"), None, "no Host");
    }

    #[test]
    fn what_a_head_says_is_found_where_it_stands() {
        let head = b"PUT /a?b HTTP/1.1\r\nHost: h\r\nconnection: Keep-Alive, close\r\nX-Forwarded-For: a\r\nContent-Length: 12\r\nX: y\r\n\r\n";
        let parsed = RequestHead::parse(head).unwrap();
        assert_eq!((&head[parsed.method], &head[parsed.path]), (&b"PUT"[..], &b"/a"[..]));
        assert_eq!((parsed.framing, parsed.persistence), (Framing::Length(12), Persistence::Close));
        let special: Vec<_> = parsed.special.into_iter().map(|(field, line)| (field, &head[line])).collect();
        let expected = [
            (Field::Hop, &b"connection: Keep-Alive, close\r\n"[..]),
            (Field::ForwardedFor, &b"X-Forwarded-For: a\r\n"[..]),
        ];
        assert_eq!(special, expected);
    }

    #[test]
    fn the_framing_of_an_answer_is_the_status_s_before_the_fields() {
        let framing = |line: &str, fields: &str, to_head| {
            AnswerHead::parse(format!("{line}\r\n{fields}\r\n").as_bytes(), to_head).map(|answer| answer.framing)
        };
        let length = "Content-Length: 5\r\n";
        let rows = [
            ("HTTP/1.1 200 OK", length, false, Some(Framing::Length(5))),
            ("HTTP/1.1 200 OK", length, true, Some(Framing::NONE)),
            ("HTTP/1.1 204 No Content", "", false, Some(Framing::NONE)),
            ("HTTP/1.1 304 Not Modified", length, false, Some(Framing::NONE)),
            ("HTTP/1.1 200 OK", "", false, Some(Framing::Close)),
            ("HTTP/1.0 200 OK", "", false, Some(Framing::Close)),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n", false, Some(Framing::chunked())),
            ("HTTP/1.0 200 OK", "Transfer-Encoding: chunked\r\n", false, None),
            ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", false, None),
            ("HTTP/1.1 99 Low", "", false, None),
            ("HTTP/2 200", "", false, None),
        ];
        for (line, fields, to_head, expected) in rows {
            assert_eq!(framing(line, fields, to_head), expected, "{line} {fields:?}");
        }
    }
}
