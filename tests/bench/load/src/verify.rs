//! Whole verifications: requestToken, the mail, its link opened and pressed, a registration with the sid. The homeserver and the mail
//! server that they need are in this process, so that a link is known the moment that its mail is taken.
//!
//! Every step of one person goes to the next of the shims, and so does every call of the homeserver's: with several shims that
//! share a store, hardly anything is answered by the shim that began it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::arguments::Arguments;
use crate::closed::nanos;
use crate::hold::answer;
use crate::homeserver;
use crate::meter::{Now, Window, percentiles};

/// Links that came by mail and were not asked for yet, by sid.
type Links = Arc<Mutex<HashMap<String, String>>>;

/// Nanoseconds that a step took, of all people.
#[derive(Default)]
struct Took {
    request_token: Vec<u64>,
    page: Vec<u64>,
    completion: Vec<u64>,
}

pub fn run(arguments: Arguments) -> Outcome {
    let shims: Vec<String> = arguments.text("to")?.split(',').map(str::to_owned).collect();
    let doors: Vec<String> = arguments.text("identity")?.split(',').map(str::to_owned).collect();
    let people: usize = arguments.or("connections", 32)?;
    let mut window = Window::new(&arguments)?;
    let links = Links::default();
    let (mail, homeserver) = (bind(&arguments, "mail")?, bind(&arguments, "listen")?);
    let sink = Arc::clone(&links);
    std::thread::spawn(move || {
        for line in mail.incoming().flatten() {
            let links = Arc::clone(&sink);
            std::thread::spawn(move || take_mails(line, &links));
        }
    });
    std::thread::spawn(move || homeserver::serve_all(&homeserver, &doors));

    let (over, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let next = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..people)
        .map(|_| {
            let (over, counts, next, links) = (over.clone(), counts.clone(), next.clone(), links.clone());
            let mut person = Person { lines: HashMap::new(), shims: shims.clone(), turn: 0, took: Took::default() };
            std::thread::spawn(move || -> io::Result<(Took, usize)> {
                let mut begun = 0;
                while !over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    person.turn = number;
                    person.verify(number, &links, &counts)?;
                    begun += 1;
                }
                Ok((person.took, begun))
            })
        })
        .collect();
    window.open();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        match window.look() {
            Now::Over => break,
            Now::Begins => counts.store(true, Ordering::Relaxed),
            Now::Warming | Now::Counts => {}
        }
        if threads.iter().any(std::thread::JoinHandle::is_finished) {
            break;
        }
    }
    counts.store(false, Ordering::Relaxed);
    let counted = window.close();
    over.store(true, Ordering::Relaxed);
    let (mut all, mut begun) = (Took::default(), 0);
    for thread in threads {
        let (took, number) = thread.join().map_err(|_| "a person's thread ended by a panic")??;
        all.request_token.extend(took.request_token);
        all.page.extend(took.page);
        all.completion.extend(took.completion);
        begun += number;
    }
    let verified = all.completion.len();
    let rate = verified as f64 / counted.seconds;
    let span = |name: &str, nanos: &mut Vec<u64>| {
        let (p50, p99) = percentiles(nanos);
        format!("\"{name}_p50\":{p50:.1},\"{name}_p99\":{p99:.1}")
    };
    let (asked, page, completed) = (
        span("request_token", &mut all.request_token),
        span("page", &mut all.page),
        span("completion", &mut all.completion),
    );
    counted.print(&format!("\"verified\":{verified},\"begun\":{begun},\"rate\":{rate:.1},{asked},{page},{completed}"));
    Ok(())
}

fn bind(arguments: &Arguments, key: &str) -> Result<TcpListener, Box<dyn std::error::Error>> {
    Ok(TcpListener::bind(arguments.text(key)?)?)
}

struct Person {
    lines: HashMap<String, TcpStream>,
    shims: Vec<String>,
    turn: usize,
    took: Took,
}

impl Person {
    fn verify(&mut self, number: usize, links: &Links, counts: &AtomicBool) -> io::Result<()> {
        let secret = format!("secret-{}-{number}", std::process::id());
        let body = format!(r#"{{"client_secret":"{secret}","email":"person{number}@example.org","send_attempt":1}}"#);
        let began = Instant::now();
        let answer = self.post("/_matrix/client/r0/register/email/requestToken", "application/json", &body)?;
        let request_token = nanos(began);
        let sid = between(&answer, "\"sid\":\"", "\"").ok_or_else(|| other(&answer))?.to_owned();
        let link = links.lock().map_err(|_| other("the mail server's thread has ended"))?.remove(&sid);
        let link = link.ok_or_else(|| other("answered, and no mail was taken"))?;

        let began = Instant::now();
        let page = self.ask(&format!("GET {link} HTTP/1.1\r\nHost: example.org\r\n\r\n"))?;
        let looked = nanos(began);
        let nonce = between(&page, "name=\"nonce\" value=\"", "\"").ok_or_else(|| other(&page))?;
        let (path, query) = link.split_once('?').ok_or_else(|| other(&link))?;
        let form = format!("{query}&nonce={nonce}");
        self.post(path, "application/x-www-form-urlencoded", &form)?;

        let creds = format!(r#"{{"sid":"{sid}","client_secret":"{secret}"}}"#);
        let auth = format!(r#"{{"type":"m.login.email.identity","session":"{number}","threepid_creds":{creds}}}"#);
        let body = format!(r#"{{"username":"person{number}","password":"load","auth":{auth}}}"#);
        let began = Instant::now();
        let answer = self.post("/_matrix/client/r0/register", "application/json", &body)?;
        if !answer.contains("user_id") {
            return Err(other(&answer));
        }
        if counts.load(Ordering::Relaxed) {
            self.took.request_token.push(request_token);
            self.took.page.push(looked);
            self.took.completion.push(nanos(began));
        }
        Ok(())
    }

    fn post(&mut self, target: &str, content_type: &str, body: &str) -> io::Result<String> {
        let length = body.len();
        self.ask(&format!(
            "POST {target} HTTP/1.1\r\nHost: example.org\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// At the next shim; the body of the answer, which has to be a 200.
    fn ask(&mut self, request: &str) -> io::Result<String> {
        let shim = self.shims[self.turn % self.shims.len()].clone();
        self.turn += 1;
        let line = match self.lines.entry(shim.clone()) {
            std::collections::hash_map::Entry::Occupied(line) => line.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let line = TcpStream::connect(shim)?;
                line.set_nodelay(true)?;
                line.set_read_timeout(Some(Duration::from_secs(60)))?;
                place.insert(line)
            }
        };
        line.write_all(request.as_bytes())?;
        answer(line)
    }
}

/// As much of SMTP as the shim speaks; keeps the link of every mail.
fn take_mails(line: TcpStream, links: &Links) -> io::Result<()> {
    line.set_nodelay(true)?;
    let (mut said, mut answer) = (BufReader::new(line.try_clone()?), line);
    answer.write_all(b"220 load ESMTP\r\n")?;
    let mut word = String::new();
    loop {
        word.clear();
        if said.read_line(&mut word)? == 0 {
            return Ok(());
        }
        match word.get(..4).unwrap_or_default() {
            "DATA" => {
                answer.write_all(b"354 go on\r\n")?;
                let mut mail = String::new();
                while !mail.ends_with("\r\n.\r\n") {
                    if said.read_line(&mut mail)? == 0 {
                        return Ok(());
                    }
                }
                keep(&mail, links)?;
                answer.write_all(b"250 taken\r\n")?;
            }
            "QUIT" => return answer.write_all(b"221 bye\r\n"),
            _ => answer.write_all(b"250 good\r\n")?,
        }
    }
}

fn keep(mail: &str, links: &Links) -> io::Result<()> {
    let plain = mail.replace("=\r\n", "").replace("=3D", "=");
    let link =
        between(&plain, "http://", "\r\n").and_then(|link| link.split_once('/')).map(|(_, path)| format!("/{path}"));
    let link = link.map(|link| link.split([' ', '"', '<']).next().unwrap_or_default().to_owned());
    let link = link.ok_or_else(|| other("a mail without a link"))?;
    let sid = link.split("sid=").nth(1).map(|sid| sid.split('&').next().unwrap_or_default().to_owned());
    let sid = sid.ok_or_else(|| other("a link without a sid"))?;
    links.lock().map_err(|_| other("a thread has ended by a panic"))?.insert(sid, link);
    Ok(())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

fn other(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}
