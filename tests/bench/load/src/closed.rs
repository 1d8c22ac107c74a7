//! Closed loop: every connection asks again as soon as it is answered.

use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::Outcome;
use crate::answers::{Asker, Turn};
use crate::arguments::Arguments;
use crate::meter::{Now, Window, percentiles};
use crate::wire::Wire;

pub fn run(arguments: Arguments) -> Outcome {
    let to = arguments.text("to")?;
    let connections: usize = arguments.or("connections", 64)?;
    let mut window = Window::new(&arguments)?;
    let mut poll = Poll::new()?;
    let mut askers = Vec::new();
    for n in 0..connections {
        let mut asker = asker(&arguments, to, n)?;
        poll.registry().register(&mut asker.wire, Token(n), Interest::READABLE | Interest::WRITABLE)?;
        askers.push(asker);
    }
    let mut events = Events::with_capacity(connections);
    let mut asked = vec![Instant::now(); connections];
    let mut took: Vec<u64> = Vec::with_capacity(1 << 20);
    let mut bytes = 0;
    for asker in &mut askers {
        asker.ask(&mut Turn::default())?;
    }
    window.open();
    loop {
        // Four times a second even when nothing moves.
        poll.poll(&mut events, Some(Duration::from_millis(250)))?;
        match window.look() {
            Now::Over => break,
            Now::Begins => {
                took.clear();
                bytes = 0;
            }
            Now::Warming | Now::Counts => {}
        }
        for event in &events {
            let n = event.token().0;
            let asker = &mut askers[n];
            let mut turn = Turn::default();
            if event.is_writable() {
                asker.write(&mut turn)?;
            }
            if event.is_readable() {
                asker.read(&mut turn)?;
            }
            if turn.answered {
                took.push(nanos(asked[n]));
                asked[n] = Instant::now();
                asker.ask(&mut turn)?;
            }
            bytes += turn.bytes;
        }
    }
    let counted = window.close();
    let requests = took.len();
    let (p50, p99) = percentiles(&mut took);
    let rate = requests as f64 / counted.seconds;
    counted.print(&format!(
        "\"requests\":{requests},\"bytes\":{bytes},\"rate\":{rate:.0},\"p50\":{p50:.1},\"p99\":{p99:.1}"
    ));
    Ok(())
}

pub fn asker(arguments: &Arguments, to: &str, n: usize) -> Result<Asker, Box<dyn std::error::Error>> {
    let target: String = arguments.or("target", "/_matrix/client/r0/sync".to_owned())?;
    let up: u64 = arguments.or("up", 0)?;
    let common = "Host: example.org\r\nUser-Agent: load/1\r\nAccept: application/json\r\nAuthorization: Bearer syt_bG9hZA_abcdefghijklmnopqrst_0a1b2c\r\n";
    let request = if arguments.has("request-token") {
        let body = format!(r#"{{"client_secret":"secret{n}","email":"person{n}@example.org","send_attempt":1}}"#);
        let length = body.len();
        format!(
            "POST /_matrix/client/r0/register/email/requestToken HTTP/1.1\r\n{common}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    } else if up > 0 {
        format!("PUT {target} HTTP/1.1\r\n{common}Content-Type: application/json\r\nContent-Length: {up}\r\n\r\n")
    } else {
        format!("GET {target} HTTP/1.1\r\n{common}\r\n")
    };
    let mut request = request.into_bytes();
    // A small body leaves in one piece with its head, as from any client.
    let small = if up <= 16 * 1024 { usize::try_from(up)? } else { 0 };
    request.resize(request.len() + small, b'x');
    Ok(Asker::new(Wire::connect(to, arguments.has("tls"))?, request, up - small as u64))
}

pub fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
