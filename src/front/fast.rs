//! The fast path: an ordinary request goes from socket to socket as the bytes that came, and is told from all others
//! by one look at its head.
//!
//! What is not ordinary, be it wrong, rare or ours, is left for hyper and the other rooms, with every byte of it.

mod answer;
mod exchange;
mod stalled;

use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep};

use crate::front::forward::Forward;
use crate::front::route::Route;
use crate::homeserver::Sockets;
use crate::matrix::Refusal;
use crate::serve::{Ambiguous, Carrying, HEAD, IDLE, Peer, STALLED, Unusual};
use crate::wire::{Field, Framing, Persistence, RequestHead, Scan, begins_a_request, scan};

use exchange::{End, Exchange, Request, Scratch, poll_read};

/// A request of ours with a body up to this length is handed to hyper by itself, a longer one with its connection.
const BY_ITSELF: u64 = 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// The ordinary requests of one worker.
#[derive(Debug)]
pub struct Fast {
    forward: Forward,
    sockets: Arc<Sockets>,
}

/// What came from a client.
enum Came {
    Ordinary(Request),
    Unusual(Unusual),
    /// A body without a reading, of a HEAD or of anything else.
    Malformed {
        is_head: bool,
    },
    /// Nothing more will.
    Nothing,
}

/// A client's connection between two requests.
struct Connection<'a, S> {
    io: &'a mut S,
    /// Bytes that are not dealt with, and how many of them were searched for the end of a head.
    read: &'a mut Vec<u8>,
    seen: usize,
    /// When waiting ends.
    until: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    peer: Peer,
    fast: &'a Fast,
}

impl Fast {
    pub fn new(forward: Forward) -> Self {
        let sockets = Arc::new(forward.sockets());
        Self { forward, sockets }
    }

    /// Carries requests for as long as they are ordinary. `read`: bytes that came already, and that are left.
    pub async fn carry<S>(&self, io: &mut S, read: &mut Vec<u8>, carrying: &mut Carrying) -> Option<Unusual>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let peer = carrying.peer;
        let until = Instant::now() + if carrying.is_new() { HEAD } else { IDLE };
        let mut connection = Connection { io, read, seen: 0, until, timer: None, peer, fast: self };
        loop {
            let came = poll_fn(|cx| match connection.poll_request(cx) {
                // A request that has begun to come is served yet.
                Poll::Pending if connection.read.is_empty() => carrying.poll_closing(cx).map(|()| Came::Nothing),
                came @ (Poll::Ready(_) | Poll::Pending) => came,
            });
            match came.await {
                Came::Ordinary(request) => {
                    if self.exchange(&mut connection, request, carrying).await == Persistence::Close {
                        return None;
                    }
                    connection.until = Instant::now() + IDLE;
                }
                Came::Unusual(unusual) => return Some(unusual),
                Came::Malformed { is_head } => {
                    self.refuse(&mut connection, Ambiguous::Chunk.into(), is_head).await;
                    return None;
                }
                Came::Nothing => return None,
            }
        }
    }

    /// One request and its answer; whether another may follow.
    async fn exchange<S>(
        &self,
        connection: &mut Connection<'_, S>,
        mut request: Request,
        carrying: &Carrying,
    ) -> Persistence
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut idle = self.sockets.take();
        let is_head = request.is_head;
        loop {
            let reused = idle.is_some();
            let socket = match idle.take() {
                Some(socket) => socket,
                None => match self.sockets.connect().await {
                    Ok(socket) => socket,
                    Err(unanswered) => {
                        return self.refuse(connection, self.forward.unanswered(&unanswered), is_head).await;
                    }
                },
            };
            let mut exchange =
                Exchange::new(&mut *connection.io, socket, reused, &mut request, &mut *connection.read, carrying);
            let end = poll_fn(|cx| SCRATCH.with_borrow_mut(|scratch| exchange.poll(cx, scratch))).await;
            if let Some(status) = exchange.status() {
                self.forward.count_status(status);
            }
            match end {
                End::Done(persistence) => {
                    if let Some(socket) = exchange.into_socket() {
                        self.sockets.put(socket);
                    }
                    return persistence;
                }
                End::Stale => {}
                End::Cut => return Persistence::Close,
                End::Unanswered => return self.refuse(connection, self.forward.broken(), is_head).await,
                End::Malformed => return self.refuse(connection, Ambiguous::Chunk.into(), is_head).await,
            }
        }
    }

    /// Our own answer, to HEAD without its body. What of the request is still to come is unknown, so that nothing may follow.
    async fn refuse<S>(&self, connection: &mut Connection<'_, S>, refusal: Refusal, is_head: bool) -> Persistence
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let answer = refusal.into_response();
        let mut bytes = format!("HTTP/1.1 {}\r\n", answer.status()).into_bytes();
        for (name, value) in answer.headers() {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let length = format!("content-length: {}\r\nconnection: close\r\n\r\n", answer.body().len());
        bytes.extend_from_slice(length.as_bytes());
        if !is_head {
            bytes.extend_from_slice(answer.body());
        }
        // Who does not take it does not want it.
        let written = async {
            connection.io.write_all(&bytes).await?;
            connection.io.flush().await
        };
        tokio::time::timeout(STALLED, written).await.ok();
        Persistence::Close
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        SCRATCH.with_borrow_mut(|scratch| {
            if !self.read.is_empty() && self.seen == 0 {
                if let Some(came) = self.look_again() {
                    return Poll::Ready(came);
                }
                self.until = Instant::now() + HEAD;
            }
            loop {
                let came = match poll_read(self.io, cx, &mut scratch.read) {
                    Poll::Ready(Ok(came)) if came > 0 => came,
                    Poll::Ready(_) => return Poll::Ready(Came::Nothing),
                    Poll::Pending => return self.poll_timer(cx).map(|()| Came::Nothing),
                };
                let bytes = scratch.read.get(..came).unwrap_or_default();
                if self.read.is_empty() {
                    // The usual case: a whole head at once, which is edited from where it lies.
                    if let Some(came) = self.look(bytes, 0) {
                        return Poll::Ready(came);
                    }
                    self.read.extend_from_slice(bytes);
                    self.until = Instant::now() + HEAD;
                } else {
                    self.read.extend_from_slice(bytes);
                    if let Some(came) = self.look_again() {
                        return Poll::Ready(came);
                    }
                }
                self.seen = self.read.len();
            }
        })
    }

    fn look_again(&mut self) -> Option<Came> {
        let read = std::mem::take(self.read);
        let came = self.look(&read, self.seen);
        match &came {
            Some(Came::Ordinary(_)) => {}
            Some(Came::Unusual(_) | Came::Malformed { .. } | Came::Nothing) | None => *self.read = read,
        }
        if came.is_none() {
            self.seen = self.read.len();
        }
        came
    }

    /// What these bytes begin with; what is behind an ordinary request is left to be read.
    fn look(&mut self, bytes: &[u8], seen: usize) -> Option<Came> {
        let unusual = |connection: &mut Self, unusual| {
            if connection.read.is_empty() {
                connection.read.extend_from_slice(bytes);
            }
            Some(Came::Unusual(unusual))
        };
        let end = match scan(bytes, seen) {
            Scan::Partial if begins_a_request(bytes) => return None,
            Scan::Partial | Scan::Unusual => return unusual(self, Unusual::ForGood),
            Scan::Whole(end) => end,
        };
        let (head, behind) = bytes.split_at(end);
        let Some(parsed) = RequestHead::parse(head) else { return unusual(self, Unusual::ForGood) };
        let text = |range: &std::ops::Range<usize>| std::str::from_utf8(head.get(range.clone())?).ok();
        let (Some(method), Some(path)) = (text(&parsed.method), text(&parsed.path)) else {
            return unusual(self, Unusual::ForGood);
        };
        let Ok(method) = Method::from_bytes(method.as_bytes()) else { return unusual(self, Unusual::ForGood) };
        if Route::of(&method, path) != Route::Forward {
            let how = match parsed.framing {
                Framing::Length(length) if length <= BY_ITSELF => Unusual::Once(end as u64 + length),
                Framing::Length(_) | Framing::Chunked(_) | Framing::Close => Unusual::ForGood,
            };
            return unusual(self, how);
        }
        let mut upload = parsed.framing.clone();
        let Ok(mine) = upload.advance(behind) else { return Some(Came::Malformed { is_head: method == Method::HEAD }) };
        let (body, next) = behind.split_at(mine);
        let safe = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
        let mut first = Vec::with_capacity(head.len() + body.len() + 64);
        self.lead_up(head, &parsed, &mut first);
        first.extend_from_slice(body);
        let request = Request {
            first,
            upload,
            is_head: method == Method::HEAD,
            persistence: parsed.persistence,
            repeatable: safe && parsed.framing == Framing::NONE,
        };
        *self.read = next.to_vec();
        self.seen = 0;
        Some(Came::Ordinary(request))
    }

    /// The head as the homeserver is to see it: a trusted peer's word about its client is passed on byte for byte,
    /// anybody else's is replaced.
    fn lead_up(&self, head: &[u8], parsed: &RequestHead, first: &mut Vec<u8>) {
        let trusted = self.fast.forward.trusts(self.peer);
        let mut told = false;
        let mut from = 0;
        for (field, line) in &parsed.special {
            if *field == Field::ForwardedFor && trusted {
                told = true;
                continue;
            }
            first.extend_from_slice(head.get(from..line.start).unwrap_or_default());
            from = line.end;
        }
        first.extend_from_slice(head.get(from..head.len() - 2).unwrap_or_default());
        if !told {
            let ip = match self.peer {
                Peer::Ip(ip) => ip,
                Peer::Local => Ipv4Addr::LOCALHOST.into(),
            };
            // A vector takes whatever is written.
            write!(first, "X-Forwarded-For: {ip}\r\n").ok();
        }
        first.extend_from_slice(b"\r\n");
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        loop {
            // It is not moved with every request: most of its wake-ups find that time has been given.
            if timer.deadline() > until {
                timer.as_mut().reset(until);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::config::{self, HomeserverAddress, NeedsShim, Shutdown};
    use crate::serve::Drain;
    use crate::telemetry::Metrics;

    fn drain() -> Drain {
        Drain::new(&Shutdown { delay: Duration::ZERO, grace: Duration::from_secs(3600) })
    }

    /// How a connection ends on which nothing comes but `ahead`, and after how long.
    async fn end(mut carrying: Carrying, ahead: &[u8], mut io: DuplexStream) -> (Option<Unusual>, Duration) {
        let nowhere = HomeserverAddress::Unix("/nowhere".into());
        let homeserver = config::Homeserver {
            address: nowhere,
            connect_timeout: Duration::from_secs(1),
            needs_shim: NeedsShim::Auto,
        };
        let fast = Fast::new(Forward::new(&homeserver, &[], Metrics::new()));
        let (mut read, began) = (ahead.to_vec(), Instant::now());
        let unusual = fast.carry(&mut io, &mut read, &mut carrying).await;
        (unusual, began.elapsed())
    }

    fn about(span: Duration, expected: Duration) -> bool {
        span >= expected && span < expected + Duration::from_millis(10)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_has_the_time_of_a_head_and_one_that_hyper_gave_back_is_idle() {
        let (_client, io) = duplex(64);
        let mut carrying = Carrying::new(Peer::Local, &drain());
        assert!(about(end(carrying, b"", io).await.1, HEAD));
        let (_client, io) = duplex(64);
        carrying = Carrying::new(Peer::Local, &drain());
        carrying.goes_on();
        assert!(about(end(carrying, b"", io).await.1, IDLE));
    }

    /// S§5.24.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_trickles_in_is_given_its_time_once() {
        let (mut client, io) = duplex(64);
        let trickle = tokio::spawn(async move {
            client.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let (unusual, after) = end(Carrying::new(Peer::Local, &drain()), b"", io).await;
        assert_eq!(unusual, None);
        assert!(about(after, HEAD), "{after:?}");
        trickle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_whose_beginning_came_behind_another_request_has_its_time_too() {
        let (_client, io) = duplex(64);
        let mut carrying = Carrying::new(Peer::Local, &drain());
        carrying.goes_on();
        assert!(about(end(carrying, b"GET / HTTP/1.1\r\n", io).await.1, HEAD));
    }

    #[tokio::test(start_paused = true)]
    async fn when_it_is_to_close_an_idle_connection_ends_and_a_head_that_has_begun_is_read_on() {
        let drain = drain();
        let (_client, io) = duplex(64);
        let idle = tokio::spawn(end(Carrying::new(Peer::Local, &drain), b"", io));
        let (mut client, io) = duplex(64);
        let begun =
            tokio::spawn(end(Carrying::new(Peer::Local, &drain), b"GET /_matrix/client/versions HTTP/1.1\r\n", io));
        tokio::task::yield_now().await;
        drain.cut();
        assert_eq!(idle.await.unwrap(), (None, Duration::ZERO));
        client.write_all(b"Host: h\r\n\r\n").await.unwrap();
        let (unusual, after) = begun.await.unwrap();
        assert!(matches!(unusual, Some(Unusual::Once(_))), "{unusual:?} after {after:?}");
    }
}
