//! The homeserver's bytes as the client is to see them: heads without what was for our connection only, bodies counted.

use std::io::Write as _;
use std::mem;

use crate::wire::{self, AnswerHead, Field, Framing, MAX_HEAD, Malformed, Persistence, Scan};

/// One answer, with the informational ones before it.
#[derive(Debug)]
pub(super) struct Answer {
    state: State,
    to_head: bool,
    status: u16,
    persistence: Persistence,
}

#[derive(Debug)]
enum State {
    /// What came of a head that is not whole.
    Head(Vec<u8>),
    Body(Framing),
    /// Until the homeserver closes: the client is shown the end by a last chunk, or it could not tell it from a cut.
    Rest,
    Over,
}

/// The homeserver's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Nothing of the final answer has been shown.
    Unanswered,
    Cut,
}

impl Answer {
    pub(super) fn new(to_head: bool) -> Self {
        Self { state: State::Head(Vec::new()), to_head, status: 0, persistence: Persistence::Close }
    }

    /// Of the final answer; `None` before it has begun.
    pub(super) fn status(&self) -> Option<u16> {
        (self.status != 0).then_some(self.status)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Whether not a byte of it has come.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(&self.state, State::Head(begun) if begun.is_empty()) && self.status == 0
    }

    /// Whether the homeserver lets another request follow.
    pub(super) fn persistence(&self) -> Persistence {
        if self.is_over() { self.persistence } else { Persistence::Close }
    }

    /// What the client is to see of these bytes: part of them, or what is now in `out`. `client`: whether another
    /// request may follow on its side.
    pub(super) fn take<'b>(
        &mut self,
        bytes: &'b [u8],
        out: &'b mut Vec<u8>,
        client: Persistence,
    ) -> Result<&'b [u8], Broken> {
        out.clear();
        match &mut self.state {
            State::Head(begun) if begun.is_empty() => self.heads(bytes, out, client)?,
            State::Head(begun) => {
                let mut head = mem::take(begun);
                head.extend_from_slice(bytes);
                self.heads(&head, out, client)?;
            }
            State::Body(_) => {
                let mine = self.body(bytes).map_err(|Malformed| Broken::Cut)?;
                return Ok(bytes.get(..mine).unwrap_or_default());
            }
            State::Rest => chunk(bytes, out),
            State::Over => {}
        }
        Ok(out.as_slice())
    }

    /// What the client is to see of the end of the connection, `properly` closed or broken.
    pub(super) fn end(&mut self, properly: bool) -> Result<&'static [u8], Broken> {
        match &self.state {
            State::Head(_) => Err(Broken::Unanswered),
            State::Rest if properly => {
                self.state = State::Over;
                Ok(b"0\r\n\r\n")
            }
            State::Body(_) | State::Rest => Err(Broken::Cut),
            State::Over => Ok(b""),
        }
    }

    fn heads(&mut self, mut bytes: &[u8], out: &mut Vec<u8>, client: Persistence) -> Result<(), Broken> {
        loop {
            let repaired;
            let (head, behind) = match wire::scan(bytes, 0) {
                Scan::Whole(end) => bytes.split_at(end),
                Scan::Unusual if bytes.len() <= MAX_HEAD => match wire::with_cr_lf(bytes) {
                    Some((head, read)) => {
                        repaired = head;
                        (repaired.as_slice(), bytes.get(read..).unwrap_or_default())
                    }
                    None => return self.wait_for_head(bytes),
                },
                Scan::Unusual => return Err(Broken::Unanswered),
                Scan::Partial => return self.wait_for_head(bytes),
            };
            let Some(answer) = AnswerHead::parse(head, self.to_head) else { return Err(Broken::Unanswered) };
            edit(head, &answer, out);
            match answer.status {
                // Nobody asked for another protocol.
                101 => return Err(Broken::Unanswered),
                100..200 => {
                    out.extend_from_slice(b"\r\n");
                    bytes = behind;
                    if bytes.is_empty() {
                        return Ok(());
                    }
                }
                _ => return self.last_head(answer, behind, out, client),
            }
        }
    }

    fn wait_for_head(&mut self, begun: &[u8]) -> Result<(), Broken> {
        // What is no head will not become one.
        if begun.iter().zip(b"HTTP/1.").any(|(came, expected)| came != expected) {
            return Err(Broken::Unanswered);
        }
        self.state = State::Head(begun.to_vec());
        Ok(())
    }

    /// The end of the final head, and what of the body is there.
    fn last_head(
        &mut self,
        answer: AnswerHead,
        body: &[u8],
        out: &mut Vec<u8>,
        client: Persistence,
    ) -> Result<(), Broken> {
        self.persistence = answer.persistence;
        if client == Persistence::Close {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        if answer.framing == Framing::Close {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            self.state = State::Rest;
            chunk(body, out);
        } else {
            out.extend_from_slice(b"\r\n");
            self.state = State::Body(answer.framing);
            let mine = self.body(body).map_err(|Malformed| Broken::Unanswered)?;
            out.extend_from_slice(body.get(..mine).unwrap_or_default());
        }
        self.status = answer.status;
        Ok(())
    }

    /// How much of these bytes is the body.
    fn body(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let State::Body(framing) = &mut self.state else { return Ok(0) };
        let mine = framing.advance(bytes)?;
        if framing.is_done() {
            self.state = State::Over;
            if mine < bytes.len() {
                // Bytes of an answer to nothing.
                self.persistence = Persistence::Close;
            }
        }
        Ok(mine)
    }
}

/// Nothing is no chunk: it would be the last.
fn chunk(bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.is_empty() {
        // A vector takes whatever is written.
        write!(out, "{:x}\r\n", bytes.len()).ok();
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }
}

/// The head without its last line and without what concerned the homeserver's connection only.
fn edit(head: &[u8], answer: &AnswerHead, out: &mut Vec<u8>) {
    // Ours, whatever the homeserver speaks.
    out.extend_from_slice(b"HTTP/1.1");
    let mut from = b"HTTP/1.1".len();
    let code = from..from + b" 200".len();
    if head.get(code.end) == Some(&b'\r') {
        // The space before a reason stays where there is none (RFC 9112 §4).
        out.extend_from_slice(head.get(code.clone()).unwrap_or_default());
        out.push(b' ');
        from = code.end;
    }
    for (Field::Hop | Field::ForwardedFor, line) in &answer.special {
        out.extend_from_slice(head.get(from..line.start).unwrap_or_default());
        from = line.end;
    }
    out.extend_from_slice(head.get(from..head.len() - 2).unwrap_or_default());
}
