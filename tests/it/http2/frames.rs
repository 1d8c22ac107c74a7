//! Frames as bytes, for what no client library would send.

use std::net::SocketAddr;

use crate::homeserver::{Conversation, soon};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

const STATUS_OF_THE_STATIC_TABLE: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Answered(u16),
    /// The stream, with this code.
    Reset(u32),
    /// The connection, with this code.
    Closed(Option<u32>),
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field block, every field spelled out.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn integer(mut number: usize, block: &mut Vec<u8>) {
    if number < 127 {
        block.push(u8::try_from(number).unwrap());
        return;
    }
    block.push(127);
    number -= 127;
    while number >= 128 {
        block.push(u8::try_from(number % 128).unwrap() | 128);
        number /= 128;
    }
    block.push(u8::try_from(number).unwrap());
}

pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "example.org"), (":path", "/")];

/// A connection that has begun with HTTP/2.
pub async fn begun(address: SocketAddr) -> Conversation {
    let mut client = Conversation::with(address).await;
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    client.write(frame(SETTINGS, 0, 0, &[])).await;
    client
}

/// The next frame: kind, flags, stream and payload; `None` at the end.
pub async fn next(client: &mut Conversation) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head = client.up_to(9).await;
    if head.len() < 9 {
        return None;
    }
    let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap();
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Some((head[3], head[4], stream, client.up_to(length).await))
}

/// What becomes of this stream.
pub async fn fate(client: &mut Conversation, of: u32) -> Fate {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
    let mut said = None;
    soon("an end", async {
        while let Some((kind, _, stream, payload)) = next(client).await {
            match kind {
                HEADERS if stream == of => return Fate::Answered(status(&payload)),
                RST_STREAM if stream == of => return Fate::Reset(number(&payload)),
                GOAWAY => said = Some(number(&payload[4..8])),
                _ => {}
            }
        }
        Fate::Closed(said)
    })
    .await
}

/// Of a field block by h2, which begins with it: a static entry, or one spelled out by the name of such an entry.
fn status(block: &[u8]) -> u16 {
    // A table that shrinks or grows is told first.
    let at = block.iter().position(|byte| byte & 0b1110_0000 != 0b0010_0000).unwrap();
    match block[at] {
        indexed @ 0x88..=0x8e => STATUS_OF_THE_STATIC_TABLE[usize::from(indexed - 0x88)],
        _ => huffman_digits(&block[at + 1..]),
    }
}

/// Three digits, plain or in Huffman's code, where `0` to `9` are 5 or 6 bits.
fn huffman_digits(text: &[u8]) -> u16 {
    let length = usize::from(text[0] & 127);
    let text_bytes = &text[1..=length];
    if text[0] & 128 == 0 {
        return std::str::from_utf8(text_bytes).unwrap().parse().unwrap();
    }
    let bits: String = text_bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| if byte >> at & 1 == 1 { '1' } else { '0' }))
        .collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        let digit = if five < 3 {
            at += 5;
            five
        } else {
            let six = u16::from_str_radix(&bits[at..at + 6], 2).unwrap();
            at += 6;
            six - 0b01_1001 + 3
        };
        number = number * 10 + digit;
    }
    number
}
