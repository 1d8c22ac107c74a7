//! JSON read by recursion after RFC 8259, each value with its bytes: the second opinion, which shares no code with the shim.

use std::collections::BTreeSet;

/// A value: its bytes without the space around them, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json<'a> {
    pub raw: &'a str,
    pub kind: Kind<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Keys as they read; `None` when half of a surrogate pair stands in one.
    Object(Vec<(Option<String>, Json<'a>)>),
    Array(Vec<Json<'a>>),
    String(Option<String>),
    /// A number, `true`, `false` or `null`.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Not {
    Json,
    /// More than 500 brackets deep; whether it is JSON was not looked at.
    Shallow,
}

pub fn read(bytes: &[u8]) -> Result<Json<'_>, Not> {
    let text = std::str::from_utf8(bytes).map_err(|_broken| Not::Json)?;
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.space();
    if reader.at == text.len() { Ok(value) } else { Err(Not::Json) }
}

impl<'a> Json<'a> {
    /// The members of an object that is fit to be looked into: at most 500 readable keys, none twice.
    pub fn object(&self) -> Option<Vec<(&str, &Json<'a>)>> {
        let Kind::Object(members) = &self.kind else { return None };
        let readable: Option<Vec<_>> =
            members.iter().map(|(key, value)| key.as_deref().map(|key| (key, value))).collect();
        let readable = readable?;
        let distinct: BTreeSet<_> = readable.iter().map(|(key, _)| fold(key)).collect();
        (readable.len() <= 500 && distinct.len() == readable.len()).then_some(readable)
    }

    pub fn is_object(&self) -> bool {
        matches!(self.kind, Kind::Object(_))
    }

    pub fn string(&self) -> Option<&str> {
        match &self.kind {
            Kind::String(text) => text.as_deref(),
            _ => None,
        }
    }

    /// The member of exactly this name, the last if there are more, as Python finds it.
    pub fn exactly(&self, name: &str) -> Option<&Json<'a>> {
        let Kind::Object(members) = &self.kind else { return None };
        members.iter().rev().find(|(key, _)| key.as_deref() == Some(name)).map(|(_, value)| value)
    }
}

/// Names that are one to Go: ASCII without regard to case, and the two letters beyond it that fold into ASCII.
pub fn fold(name: &str) -> String {
    name.to_ascii_lowercase().replace('\u{17f}', "s").replace('\u{212a}', "k")
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Result<(), Not> {
        if self.peek() != Some(byte) {
            return Err(Not::Json);
        }
        self.at += 1;
        Ok(())
    }

    fn takes(&mut self, byte: u8) -> bool {
        self.take(byte).is_ok()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json<'a>, Not> {
        self.space();
        let start = self.at;
        let kind = match self.peek().ok_or(Not::Json)? {
            b'{' | b'[' if depth == 500 => return Err(Not::Shallow),
            b'{' => self.object(depth + 1)?,
            b'[' => self.array(depth + 1)?,
            b'"' => Kind::String(self.string()?),
            b't' => self.word("true")?,
            b'f' => self.word("false")?,
            b'n' => self.word("null")?,
            _ => self.number()?,
        };
        Ok(Json { raw: &self.text[start..self.at], kind })
    }

    fn word(&mut self, word: &str) -> Result<Kind<'a>, Not> {
        word.bytes().try_for_each(|byte| self.take(byte))?;
        Ok(Kind::Other)
    }

    fn number(&mut self) -> Result<Kind<'a>, Not> {
        self.takes(b'-');
        if !self.takes(b'0') {
            self.digits()?;
        }
        if self.takes(b'.') {
            self.digits()?;
        }
        if self.takes(b'e') || self.takes(b'E') {
            let _sign = self.takes(b'+') || self.takes(b'-');
            self.digits()?;
        }
        Ok(Kind::Other)
    }

    fn digits(&mut self) -> Result<(), Not> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Not::Json) }
    }

    fn array(&mut self, depth: usize) -> Result<Kind<'a>, Not> {
        self.take(b'[')?;
        self.space();
        let mut elements = Vec::new();
        if self.takes(b']') {
            return Ok(Kind::Array(elements));
        }
        loop {
            elements.push(self.value(depth)?);
            self.space();
            if self.takes(b']') {
                return Ok(Kind::Array(elements));
            }
            self.take(b',')?;
        }
    }

    fn object(&mut self, depth: usize) -> Result<Kind<'a>, Not> {
        self.take(b'{')?;
        self.space();
        let mut members = Vec::new();
        if self.takes(b'}') {
            return Ok(Kind::Object(members));
        }
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            self.take(b':')?;
            members.push((key, self.value(depth)?));
            self.space();
            if self.takes(b'}') {
                return Ok(Kind::Object(members));
            }
            self.take(b',')?;
        }
    }

    /// As UTF-16, in which JSON escapes.
    fn string(&mut self) -> Result<Option<String>, Not> {
        self.take(b'"')?;
        let mut units: Vec<u16> = Vec::new();
        loop {
            let next = self.text[self.at..].chars().next().ok_or(Not::Json)?;
            self.at += next.len_utf8();
            match next {
                '"' => return Ok(String::from_utf16(&units).ok()),
                '\\' => units.push(self.escape()?),
                '\0'..='\x1f' => return Err(Not::Json),
                _ => units.extend(next.encode_utf16(&mut [0; 2]).iter()),
            }
        }
    }

    fn escape(&mut self) -> Result<u16, Not> {
        let letter = self.peek().ok_or(Not::Json)?;
        self.at += 1;
        Ok(match letter {
            b'"' | b'\\' | b'/' => letter.into(),
            b'b' => 8,
            b'f' => 12,
            b'n' => 10,
            b'r' => 13,
            b't' => 9,
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4).ok_or(Not::Json)?;
                self.at += 4;
                let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                u16::from_str_radix(digits, 16).ok().filter(|_| hexadecimal).ok_or(Not::Json)?
            }
            _ => return Err(Not::Json),
        })
    }
}
