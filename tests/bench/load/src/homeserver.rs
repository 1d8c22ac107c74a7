//! As much of an old homeserver as an intercepted request needs: requestToken asks the identity server that it names.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::Outcome;
use crate::arguments::Arguments;
use crate::hold::answer;
use crate::wire::{content_length, head_end};

pub fn run(arguments: Arguments) -> Outcome {
    let listener = TcpListener::bind(arguments.text("listen")?)?;
    let identity = arguments.text("identity")?;
    println!("ready {}", listener.local_addr()?);
    for line in listener.incoming() {
        let (line, identity) = (line?, identity.to_owned());
        std::thread::spawn(move || serve(line, &identity));
    }
    Ok(())
}

/// One connection of the proxy's, and one kept-alive connection to its identity door.
fn serve(mut line: TcpStream, identity: &str) -> io::Result<()> {
    line.set_nodelay(true)?;
    let mut door = None;
    loop {
        let request = read(&mut line)?;
        let mut body = "{}".to_owned();
        if let Some((head, asked)) = request.split_once("\r\n\r\n").filter(|(head, _)| head.contains("/requestToken "))
        {
            debug_assert!(head.starts_with("POST "));
            let (stream, session) = match &mut door {
                Some(open) => open,
                closed => {
                    let mut stream = TcpStream::connect(identity)?;
                    stream.set_nodelay(true)?;
                    let session = crate::tls::handshake(&mut stream)?;
                    closed.insert((stream, session))
                }
            };
            let mut tls = rustls::Stream::new(session, stream);
            let length = asked.len();
            let request = format!(
                "POST /_matrix/identity/api/v1/validate/email/requestToken HTTP/1.1\r\nHost: {identity}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{asked}"
            );
            tls.write_all(request.as_bytes())?;
            body = answer(&mut tls)?;
        }
        let length = body.len();
        line.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )?;
    }
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
