//! A new TLS connection for every request, over and over.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use std::io::Write;

use crate::Outcome;
use crate::arguments::Arguments;
use crate::hold::answer;
use crate::meter::{Now, Window};

static OVER: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU64 = AtomicU64::new(0);

pub fn run(arguments: Arguments) -> Outcome {
    let to = arguments.text("to")?.to_owned();
    let mut window = Window::new(&arguments)?;
    let threads: usize = arguments.or("threads", 4)?;
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let to = to.clone();
            std::thread::spawn(move || work(&to).map_err(|error| error.to_string()))
        })
        .collect();
    window.open();
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_millis(2));
        match window.look() {
            Now::Begins => before = DONE.load(Ordering::Relaxed),
            Now::Over => break,
            Now::Warming | Now::Counts => {}
        }
        if workers.iter().any(std::thread::JoinHandle::is_finished) {
            break;
        }
    }
    let requests = DONE.load(Ordering::Relaxed) - before;
    let counted = window.close();
    OVER.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a thread panicked")??;
    }
    counted.print(&format!("\"requests\":{requests},\"rate\":{:.0}", requests as f64 / counted.seconds));
    Ok(())
}

fn work(to: &str) -> Result<(), Box<dyn std::error::Error>> {
    while !OVER.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let mut session = crate::tls::handshake(&mut stream)?;
        let mut line = rustls::Stream::new(&mut session, &mut stream);
        line.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")?;
        answer(&mut line)?;
        DONE.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
