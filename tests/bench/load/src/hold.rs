//! Long-polls held open, all at once: what each costs in memory, what an upload beside them adds, and whether each is
//! answered in the end.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::meter::Meter;
use crate::wire::{content_length, head_end};

/// What an upload is written in, and how much of it passes between two looks at the memory.
const PIECE: usize = 64 * 1024;
const LOOK_EVERY: u64 = 64 * 1024 * 1024;

/// So many are opened before the responder is asked whether they have come: no listener's queue is longer.
const BATCH: usize = 100;

pub fn run(arguments: Arguments) -> Outcome {
    let (to, responder) = (arguments.text("to")?, arguments.text("responder")?);
    let connections: usize = arguments.or("connections", 10_000)?;
    let meter = Meter::new(&arguments)?;
    let (resident_before, private_before) = meter.memory();
    let mut control = connect(responder)?;
    let mut lines = Vec::new();
    let request = "GET /hold HTTP/1.1\r\nHost: example.org\r\nUser-Agent: load/1\r\nAccept: application/json\r\nAuthorization: Bearer syt_bG9hZA_abcdefghijklmnopqrst_0a1b2c\r\n\r\n";
    for n in 1..=connections {
        let mut line = connect(to)?;
        line.write_all(request.as_bytes())?;
        lines.push(line);
        if n % BATCH == 0 || n == connections {
            wait_until_held(&mut control, n)?;
        }
    }
    let (resident, private) = meter.memory();
    let up = arguments.or("up", 0)?;
    let most = if up > 0 { upload(to, up, &meter)? } else { resident };
    ask(&mut control, "/release")?;
    let answered = lines.iter_mut().filter_map(|line| answer(line).ok()).count();
    let each = |before: u64, after: u64| (after as f64 - before as f64) / connections as f64;
    println!(
        "{{\"held\":{connections},\"answered\":{answered},\"resident_before\":{resident_before},\"resident\":{resident},\"resident_most\":{most},\"kb_each\":{:.2},\"private_kb_each\":{:.2}}}",
        each(resident_before, resident),
        each(private_before, private),
    );
    Ok(())
}

/// One long body past all who wait; the most memory that was resident meanwhile.
fn upload(to: &str, bytes: u64, meter: &Meter) -> io::Result<u64> {
    let mut line = connect(to)?;
    let head = format!("PUT /upload HTTP/1.1\r\nHost: example.org\r\nContent-Length: {bytes}\r\n\r\n");
    line.write_all(head.as_bytes())?;
    let piece = vec![b'x'; PIECE];
    let (mut written, mut look_at, mut most) = (0, 0, 0);
    while written < bytes {
        let size = PIECE.min(usize::try_from(bytes - written).unwrap_or(PIECE));
        line.write_all(&piece[..size])?;
        written += size as u64;
        if written >= look_at {
            most = most.max(meter.memory().0);
            look_at += LOOK_EVERY;
        }
    }
    answer(&mut line)?;
    Ok(most.max(meter.memory().0))
}

fn connect(to: &str) -> io::Result<TcpStream> {
    let line = TcpStream::connect(to)?;
    line.set_nodelay(true)?;
    line.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(line)
}

fn wait_until_held(control: &mut TcpStream, wanted: usize) -> Outcome {
    for _ in 0..5000 {
        let held: usize = ask(control, "/held")?.parse()?;
        if held == wanted {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err(format!("{wanted} were sent, and the responder does not hold as many after 10 s").into())
}

fn ask(line: &mut TcpStream, target: &str) -> io::Result<String> {
    line.write_all(format!("GET {target} HTTP/1.1\r\nHost: example.org\r\n\r\n").as_bytes())?;
    answer(line)
}

/// The body of the next answer, which has to be a 200.
pub fn answer(line: &mut impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let got = line.read(&mut buf)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buf[..got]);
        let Some(end) = head_end(&bytes) else { continue };
        if !bytes.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&bytes).into_owned()));
        }
        let length = usize::try_from(content_length(&bytes[..end]).unwrap_or(0)).unwrap_or(usize::MAX);
        if bytes.len() - end >= length {
            return Ok(String::from_utf8_lossy(&bytes[end..]).into_owned());
        }
    }
}
