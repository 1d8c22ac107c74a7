//! A mail as the mailbox got it, and the little MIME it takes to read it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One mail as it came: the envelope and the bytes between DATA and the final dot, dots undoubled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    pub(crate) raw: String,
}

impl Mail {
    /// A mail out of the outbox, where the header is all there is to say whom it is for.
    pub(crate) fn read(eml: &Path) -> Self {
        let mut mail = Self { from: String::new(), to: Vec::new(), raw: std::fs::read_to_string(eml).unwrap() };
        mail.from = mail.header("From").unwrap();
        mail.to = vec![mail.header("To").unwrap()];
        mail
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        header(self.raw.split("\r\n\r\n").next().unwrap(), name)
    }

    pub(crate) fn text(&self) -> String {
        self.part("text/plain")
    }

    pub(crate) fn html(&self) -> String {
        self.part("text/html")
    }

    /// The one link of the text part.
    pub(crate) fn link(&self) -> String {
        let text = self.text();
        let links: Vec<&str> = text.split_whitespace().filter(|word| word.contains("://")).collect();
        assert_eq!(links.len(), 1, "a mail holds one link: {text}");
        links[0].to_owned()
    }

    fn part(&self, kind: &str) -> String {
        let content_type = self.header("content-type").unwrap();
        let boundary = content_type.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
        let delimiter = format!("--{boundary}");
        let mut parts = self.raw.split(&delimiter).filter_map(|part| part.split_once("\r\n\r\n"));
        let (head, body) =
            parts.find(|(head, _)| head.contains(&format!("Content-Type: {kind}"))).expect("no such part");
        let body = body.strip_suffix("\r\n").unwrap_or(body);
        let bytes = match header(head, "content-transfer-encoding").unwrap().as_str() {
            "7bit" => body.as_bytes().to_vec(),
            "quoted-printable" => unquoted(body),
            "base64" => STANDARD.decode(body.replace("\r\n", "")).unwrap(),
            other => panic!("unknown encoding {other}"),
        };
        String::from_utf8(bytes).unwrap().replace("\r\n", "\n")
    }
}

/// A field's value, unfolded.
fn header(head: &str, name: &str) -> Option<String> {
    let head = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn unquoted(body: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = body.replace("=\r\n", "").into_bytes().into_iter();
    while let Some(byte) = rest.next() {
        if byte == b'=' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            out.push(byte);
        }
    }
    out
}
