//! As much of an old homeserver as an intercepted request needs: requestToken asks the identity server, and a registration asks it
//! whether the address is validated.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ClientConnection;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::hold::answer;
use crate::wire::{content_length, head_end};

pub fn run(arguments: Arguments) -> Outcome {
    let listener = TcpListener::bind(arguments.text("listen")?)?;
    let doors: Vec<String> = arguments.text("identity")?.split(',').map(str::to_owned).collect();
    println!("ready {}", listener.local_addr()?);
    serve_all(&listener, &doors);
    Ok(())
}

/// Asks the identity doors in turn.
pub fn serve_all(listener: &TcpListener, doors: &[String]) {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    for line in listener.incoming().flatten() {
        let doors = doors.iter().map(|address| Door { address: address.clone(), open: None }).collect();
        std::thread::spawn(move || serve(line, doors, &CALLS));
    }
}

/// One kept-alive connection to an identity door.
struct Door {
    address: String,
    open: Option<(TcpStream, ClientConnection)>,
}

/// One connection of the proxy's.
fn serve(mut line: TcpStream, mut doors: Vec<Door>, calls: &AtomicUsize) -> io::Result<()> {
    line.set_nodelay(true)?;
    loop {
        let request = read(&mut line)?;
        let (head, asked) = request.split_once("\r\n\r\n").unwrap_or((&request, ""));
        let at = calls.fetch_add(1, Ordering::Relaxed) % doors.len();
        let body = if head.contains("/requestToken ") {
            let length = asked.len();
            doors[at].ask(&format!(
                "POST /_matrix/identity/api/v1/validate/email/requestToken HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{asked}"
            ))?
        } else if let (Some(sid), Some(secret)) = (member(asked, "sid"), member(asked, "client_secret")) {
            let told = doors[at].ask(&format!(
                "GET /_matrix/identity/api/v1/3pid/getValidated3pid?sid={sid}&client_secret={secret} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            ))?;
            if told.contains("\"address\"") { r#"{"user_id":"@person:example.org"}"#.to_owned() } else { told }
        } else {
            "{}".to_owned()
        };
        let length = body.len();
        line.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )?;
    }
}

impl Door {
    fn ask(&mut self, request: &str) -> io::Result<String> {
        let (stream, session) = match &mut self.open {
            Some(open) => open,
            closed => {
                let mut stream = TcpStream::connect(&self.address)?;
                stream.set_nodelay(true)?;
                let session = crate::tls::handshake(&mut stream)?;
                closed.insert((stream, session))
            }
        };
        let mut tls = rustls::Stream::new(session, stream);
        tls.write_all(request.as_bytes())?;
        answer(&mut tls)
    }
}

/// The value of a member of the creds, which has no escapes.
fn member<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("\"{name}\":\""))?;
    Some(rest.split_once('"')?.0)
}

/// One request, head and body.
fn read(line: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buf = [0; 4096];
    loop {
        let got = line.read(&mut buf)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buf[..got]);
        let Some(end) = head_end(&bytes) else { continue };
        let length = usize::try_from(content_length(&bytes[..end]).unwrap_or(0)).unwrap_or(usize::MAX);
        if bytes.len() - end >= length {
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
    }
}
