//! Open loop: requests leave at fixed times, whoever has been answered; latency counts from when one should have left.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::Outcome;
use crate::answers::Turn;
use crate::arguments::Arguments;
use crate::closed::asker;
use crate::meter::{Now, Window, percentiles};

const TIMER: Token = Token(usize::MAX);

pub fn run(arguments: Arguments) -> Outcome {
    let to = arguments.text("to")?;
    let connections: usize = arguments.or("connections", 64)?;
    let rate: u64 = arguments.or("rate", 2000)?;
    let every = Duration::from_nanos(1_000_000_000 / rate.max(1));
    let mut window = Window::new(&arguments)?;
    let mut poll = Poll::new()?;
    let mut askers = Vec::new();
    for n in 0..connections {
        let mut asker = asker(&arguments, to, n)?;
        poll.registry().register(&mut asker.wire, Token(n), Interest::READABLE | Interest::WRITABLE)?;
        askers.push(asker);
    }
    let timer = Timer::every(every)?;
    let start = Instant::now();
    poll.registry().register(&mut SourceFd(&timer.0.as_raw_fd()), TIMER, Interest::READABLE)?;
    let mut events = Events::with_capacity(connections + 1);
    let mut free: VecDeque<usize> = (0..connections).collect();
    let mut due: VecDeque<Instant> = VecDeque::new();
    let mut left_at = vec![start; connections];
    let (mut sent, mut took) = (0u32, Vec::with_capacity(1 << 16));
    window.open();
    loop {
        poll.poll(&mut events, Some(Duration::from_millis(250)))?;
        match window.look() {
            Now::Over => break,
            Now::Begins => took.clear(),
            Now::Warming | Now::Counts => {}
        }
        for event in &events {
            if event.token() == TIMER {
                for _ in 0..timer.expirations() {
                    sent += 1;
                    due.push_back(start + every * sent);
                }
                continue;
            }
            let n = event.token().0;
            let mut turn = Turn::default();
            if event.is_readable() {
                askers[n].read(&mut turn)?;
            }
            if turn.answered {
                took.push(crate::closed::nanos(left_at[n]));
                free.push_back(n);
            }
        }
        // Connections take turns, so that all of them are in use as a homeserver's clients are.
        while !due.is_empty() {
            let Some(n) = free.pop_front() else { break };
            left_at[n] = due.pop_front().unwrap_or(start);
            askers[n].ask(&mut Turn::default())?;
        }
    }
    let late = due.len();
    let counted = window.close();
    let requests = took.len();
    let (p50, p99) = percentiles(&mut took);
    let rate = requests as f64 / counted.seconds;
    counted.print(&format!(
        "\"requests\":{requests},\"late\":{late},\"rate\":{rate:.0},\"p50\":{p50:.1},\"p99\":{p99:.1}"
    ));
    Ok(())
}

/// epoll's own time limit is in whole milliseconds; this one is exact.
struct Timer(OwnedFd);

impl Timer {
    fn every(period: Duration) -> io::Result<Self> {
        let spec = libc::timespec { tv_sec: 0, tv_nsec: i64::from(period.subsec_nanos()) };
        let spec = libc::itimerspec { it_interval: spec, it_value: spec };
        // SAFETY: plain system calls; `spec` outlives them, and the descriptor is ours alone.
        unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = OwnedFd::from_raw_fd(fd);
            if libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(fd))
        }
    }

    fn expirations(&self) -> u64 {
        let mut count = 0u64;
        // SAFETY: eight bytes are what a timerfd gives, and what `count` holds.
        let got = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
        if got == 8 { count } else { 0 }
    }
}
