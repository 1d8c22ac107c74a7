//! A command out, a reply in: with limits, the deadline, and never more in hand than what was asked for.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::super::course::Course;
use super::super::dial::by;
use super::super::{DeliveryError, Stage, scrubbed};

/// RFC 5321 promises 512 bytes a line; real servers exceed it a little.
const LONGEST_LINE: usize = 4096;
const MOST_LINES: usize = 100;

/// One side of a connection, plain or not.
pub(super) struct Talk<'a, S> {
    stream: S,
    unread: Vec<u8>,
    until: Instant,
    /// Scrubbed out of whatever the server says.
    address: &'a str,
    course: &'a mut Course,
}

impl<'a, S> Talk<'a, S> {
    pub(super) fn new(stream: S, until: Instant, address: &'a str, course: &'a mut Course) -> Self {
        Self { stream, unread: Vec::new(), until, address, course }
    }

    /// The bare stream, for TLS; not when the server, or whoever sits between, has said more than it was asked: those
    /// bytes came in clear and would be taken for the server's word behind TLS (NO STARTTLS, 2021).
    pub(super) fn into_silent(self) -> Result<S, DeliveryError> {
        if !self.unread.is_empty() {
            return Err(DeliveryError::Unfit { stage: Stage::Tls, why: "bytes were sent in clear behind its 220" });
        }
        Ok(self.stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<'_, S> {
    /// Sends a command and reads its reply, whose code has to begin with the digit `class`.
    pub(super) async fn command(
        &mut self,
        stage: Stage,
        command: impl std::fmt::Display,
        class: u16,
    ) -> Result<Reply, DeliveryError> {
        if !self.unread.is_empty() {
            return Err(DeliveryError::Unfit { stage, why: "it spoke before it was asked" });
        }
        self.write(stage, command.to_string().as_bytes()).await?;
        self.reply(stage, class).await
    }

    /// The message and its final dot. From the dot on a lost connection leaves the message's fate unknown.
    pub(super) async fn message(&mut self, bytes: &[u8]) -> Result<Reply, DeliveryError> {
        self.write(Stage::Data, &stuffed(bytes)).await?;
        let unanswered = |error| {
            if let DeliveryError::Unreachable { source, .. } = error {
                return DeliveryError::Unanswered { during: Stage::Data, source };
            }
            error
        };
        self.write(Stage::Data, b".\r\n").await.map_err(unanswered)?;
        self.reply(Stage::Data, 2).await.map_err(unanswered)
    }

    async fn write(&mut self, stage: Stage, bytes: &[u8]) -> Result<(), DeliveryError> {
        self.course.enter(stage);
        by(self.until, stage, self.stream.write_all(bytes)).await?;
        by(self.until, stage, self.stream.flush()).await
    }

    pub(super) async fn reply(&mut self, stage: Stage, class: u16) -> Result<Reply, DeliveryError> {
        self.course.enter(stage);
        let unfit = |why| DeliveryError::Unfit { stage, why };
        let mut reply = Reply { code: 0, lines: Vec::new() };
        loop {
            let line = self.line(stage).await?;
            let (code, last, text) = parsed(&line).ok_or_else(|| unfit("it does not speak SMTP"))?;
            if !reply.lines.is_empty() && code != reply.code {
                return Err(unfit("the lines of its reply disagree"));
            }
            reply.code = code;
            reply.lines.push(text.to_owned());
            if last {
                break;
            }
            if reply.lines.len() == MOST_LINES {
                return Err(unfit("its reply never ends"));
            }
        }
        match reply.code {
            code if code / 100 == class => Ok(reply),
            code @ 400..=599 => {
                Err(DeliveryError::Refused { stage, code, text: scrubbed(&reply.text(), self.address) })
            }
            _ => Err(unfit("its reply does not answer the command")),
        }
    }

    async fn line(&mut self, stage: Stage) -> Result<String, DeliveryError> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.unread.len() > LONGEST_LINE {
                return Err(DeliveryError::Unfit { stage, why: "its reply has an endless line" });
            }
            if by(self.until, stage, self.stream.read_buf(&mut self.unread)).await? == 0 {
                let source = io::ErrorKind::UnexpectedEof.into();
                return Err(DeliveryError::Unreachable { stage, source });
            }
        }
    }
}

/// A reply: its code and the text of its lines.
pub(super) struct Reply {
    code: u16,
    lines: Vec<String>,
}

impl Reply {
    pub(super) fn text(&self) -> String {
        self.lines.join(" ")
    }

    pub(super) fn names(&self, extension: &str) -> bool {
        self.lines.iter().any(|line| line.split(' ').next().is_some_and(|word| word.eq_ignore_ascii_case(extension)))
    }

    pub(super) fn names_mechanism(&self, mechanism: &str) -> bool {
        self.lines.iter().any(|line| {
            let mut words = line.split(' ');
            words.next().is_some_and(|word| word.eq_ignore_ascii_case("AUTH"))
                && words.any(|word| word.eq_ignore_ascii_case(mechanism))
        })
    }
}

/// A reply line as its code, whether it is the last, and its text.
fn parsed(line: &str) -> Option<(u16, bool, &str)> {
    let (digits, rest) = line.split_at_checked(3)?;
    let code = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?;
    let last = match rest.bytes().next() {
        None | Some(b' ') => true,
        Some(b'-') => false,
        Some(_) => return None,
    };
    (200..600).contains(&code).then_some((code, last, rest.get(1..).unwrap_or("")))
}

/// A message as DATA wants it: every line ended by CR LF and by nothing else, dots at a line's beginning doubled.
/// A bare CR or LF that two servers read differently would let text pose as the end of the message (SMTP smuggling).
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    let message = message.strip_suffix(b"\n").unwrap_or(message);
    for line in message.split(|byte| *byte == b'\n') {
        let mut bytes = line.iter().copied().filter(|byte| *byte != b'\r').peekable();
        if bytes.peek() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend(bytes);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn course() -> Course {
        Course::new(crate::matrix::Medium::Email, &crate::telemetry::Metrics::new())
    }

    fn soon() -> Instant {
        Instant::now() + std::time::Duration::from_secs(5)
    }

    async fn replied(wire: &[u8], class: u16) -> Result<(u16, String), DeliveryError> {
        let stream = io::Cursor::new(wire.to_vec());
        let mut course = course();
        let mut talk = Talk::new(stream, soon(), "alice@example.org", &mut course);
        talk.reply(Stage::Ehlo, class).await.map(|reply| (reply.code, reply.text()))
    }

    #[tokio::test]
    async fn replies_of_one_and_many_lines_are_read() {
        for (wire, code, text) in [
            ("250 ok\r\n", 250, "ok"),
            ("250\r\n", 250, ""),
            ("250-a\r\n250-b c\r\n250 d\r\n", 250, "a b c d"),
            ("220 \u{e9}\n", 220, "\u{e9}"),
        ] {
            let read = replied(wire.as_bytes(), 2).await.unwrap();
            assert_eq!(read, (code, text.to_owned()));
        }
    }

    #[tokio::test]
    async fn what_is_not_a_reply_is_refused_and_never_outgrows_its_limits() {
        let endless_line = format!("250 {}", "x".repeat(1 << 20));
        let endless_reply = "250-x\r\n".repeat(1 << 16);
        let rows: [(&str, &str); 9] = [
            ("hello\r\n", "it does not speak SMTP"),
            ("25\r\n", "it does not speak SMTP"),
            ("2500 x\r\n", "it does not speak SMTP"),
            ("999 x\r\n", "it does not speak SMTP"),
            ("\u{e9}\u{e9} x\r\n", "it does not speak SMTP"),
            ("250-a\r\n251 b\r\n", "the lines of its reply disagree"),
            ("354 go\r\n", "its reply does not answer the command"),
            (&endless_line, "its reply has an endless line"),
            (&endless_reply, "its reply never ends"),
        ];
        let mut ran = 0;
        for (wire, expected) in rows {
            let DeliveryError::Unfit { why, .. } = replied(wire.as_bytes(), 2).await.unwrap_err() else {
                panic!("{wire}")
            };
            assert_eq!(why, expected);
            ran += 1;
        }
        assert_eq!(ran, 9);
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_code_and_loses_the_address() {
        let error = replied(b"550-5.1.1 <alice@example.org>\r\n550 unknown\r\n", 2).await.unwrap_err();
        let DeliveryError::Refused { stage: Stage::Ehlo, code: 550, text } = error else { panic!("{error}") };
        assert_eq!(text, "5.1.1 (..) unknown");
    }

    #[tokio::test]
    async fn a_command_is_not_sent_while_an_unasked_reply_is_in_hand() {
        let wire = io::Cursor::new(b"220 hi\r\n250 injected\r\n".to_vec());
        let mut course = course();
        let mut talk = Talk::new(wire, soon(), "a@b", &mut course);
        talk.reply(Stage::Connect, 2).await.unwrap();
        assert!(matches!(talk.command(Stage::Ehlo, "EHLO x\r\n", 2).await, Err(DeliveryError::Unfit { .. })));
        assert!(matches!(talk.into_silent(), Err(DeliveryError::Unfit { stage: Stage::Tls, .. })));
    }

    #[test]
    fn dots_are_doubled_and_bare_line_ends_are_none() {
        assert_eq!(stuffed(b".a\r\n..\r\nb."), b"..a\r\n...\r\nb.\r\n");
        assert_eq!(stuffed(b"a\r\n\r.\r\nb\rc\n"), b"a\r\n..\r\nbc\r\n");
        assert_eq!(stuffed(b"a\n.\nMAIL FROM:<x@y>\n"), b"a\r\n..\r\nMAIL FROM:<x@y>\r\n");
    }

    proptest! {
        #[test]
        fn no_message_can_end_itself(message in "[a.\r\n]{0,40}") {
            let wire = [stuffed(message.as_bytes()), b".\r\n".to_vec()].concat();
            let text = String::from_utf8(wire).unwrap();
            let ends: Vec<_> = text.split("\r\n").enumerate().filter(|(_, line)| *line == ".").map(|(at, _)| at).collect();
            prop_assert_eq!(ends, vec![text.split("\r\n").count() - 2]);
            prop_assert!(!text.replace("\r\n", "").contains(['\r', '\n']));
        }
    }
}
