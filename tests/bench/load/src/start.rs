//! From a command's start to its first answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::arguments::Arguments;

pub fn run(arguments: Arguments) -> Outcome {
    let to: std::net::SocketAddr = arguments.text("to")?.parse()?;
    let core: usize = arguments.or("core", 0)?;
    let (program, words) = arguments.rest.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only two system calls are made.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let began = Instant::now();
    let mut child = command.spawn()?;
    let mut answered = None;
    while answered.is_none() && began.elapsed() < Duration::from_secs(20) && child.try_wait()?.is_none() {
        if first_answer(to).is_some() {
            answered = Some(began.elapsed());
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    // SAFETY: the child is ours and has not been waited for.
    unsafe { libc::kill(i32::try_from(child.id())?, libc::SIGTERM) };
    std::thread::sleep(Duration::from_millis(100));
    child.kill()?;
    child.wait()?;
    let answered = answered.ok_or("no answer")?;
    println!("{{\"ms\":{:.2}}}", answered.as_secs_f64() * 1e3);
    Ok(())
}

fn first_answer(to: std::net::SocketAddr) -> Option<()> {
    let mut line = TcpStream::connect(to).ok()?;
    line.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    line.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n").ok()?;
    let mut buf = [0; 512];
    let got = line.read(&mut buf).ok()?;
    buf[..got].starts_with(b"HTTP/1.1 200").then_some(())
}
