//! Whose CPU time it was: the processes' own to the nanosecond, and the whole core's by the kernel's ticks.

use std::fs;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;

/// What is counted: it begins when the load has warmed up, and ends before the load does.
pub struct Window {
    warm: Duration,
    seconds: Duration,
    meter: Meter,
    start: Instant,
    begun: Option<(Instant, Sample)>,
}

/// Processes, and the core they are on.
pub struct Meter {
    pids: Vec<u32>,
    core: Option<u32>,
}

#[derive(Default, Clone, Copy)]
struct Sample {
    /// Run time of all threads in nanoseconds; without IRQ accounting it holds the interrupts that came in between.
    cpu_ns: u64,
    /// User time of the processes, in ticks.
    user: u64,
    /// The core's user, system and interrupt time, in ticks.
    core_user: u64,
    core_system: u64,
    core_interrupts: u64,
}

/// What came of a window.
pub struct Counted {
    pub seconds: f64,
    fields: String,
}

pub enum Now {
    Warming,
    /// The first moment that counts.
    Begins,
    Counts,
    Over,
}

impl Window {
    pub fn new(arguments: &Arguments) -> Result<Self, Box<dyn std::error::Error>> {
        Ok(Self {
            warm: Duration::from_secs_f64(arguments.or("warm", 0.5)?),
            seconds: Duration::from_secs_f64(arguments.or("seconds", 3.0)?),
            meter: Meter::new(arguments)?,
            start: Instant::now(),
            begun: None,
        })
    }

    /// Starts the warming anew: connections are up now.
    pub fn open(&mut self) {
        self.start = Instant::now();
    }

    pub fn look(&mut self) -> Now {
        match self.begun {
            None if self.start.elapsed() >= self.warm => {
                self.begun = Some((Instant::now(), self.meter.sample()));
                Now::Begins
            }
            None => Now::Warming,
            Some((begun, _)) if begun.elapsed() >= self.seconds => Now::Over,
            Some(_) => Now::Counts,
        }
    }

    pub fn close(self) -> Counted {
        let Some((begun, before)) = self.begun else {
            return Counted { seconds: 0.0, fields: String::new() };
        };
        let after = self.meter.sample();
        let seconds = begun.elapsed().as_secs_f64();
        let ticks = |before: u64, after: u64| after.saturating_sub(before) as f64 / 100.0;
        let fields = format!(
            "\"seconds\":{seconds:.4},\"cpu\":{:.6},\"cpu_user\":{:.2},\"core_user\":{:.2},\"core_system\":{:.2},\"core_interrupts\":{:.2}",
            after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e9,
            ticks(before.user, after.user),
            ticks(before.core_user, after.core_user),
            ticks(before.core_system, after.core_system),
            ticks(before.core_interrupts, after.core_interrupts),
        );
        Counted { seconds, fields }
    }
}

impl Counted {
    /// One line of JSON: the times, and these.
    pub fn print(&self, more: &str) {
        println!("{{{},{more}}}", self.fields);
    }
}

impl Meter {
    pub fn new(arguments: &Arguments) -> Result<Self, Box<dyn std::error::Error>> {
        let pids: String = arguments.or("pids", String::new())?;
        let pids = pids.split(',').filter(|pid| !pid.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        let core = if arguments.has("core") { Some(arguments.or("core", 0)?) } else { None };
        Ok(Self { pids, core })
    }

    /// Resident memory of the processes in kB, and what of it is theirs alone.
    pub fn memory(&self) -> (u64, u64) {
        let (mut resident, mut private) = (0, 0);
        for pid in &self.pids {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            for line in text.lines() {
                let mut words = line.split_ascii_whitespace();
                let (Some(name), Some(size)) = (words.next(), words.next()) else { continue };
                let size: u64 = size.parse().unwrap_or(0);
                match name {
                    "Rss:" => resident += size,
                    "Private_Clean:" | "Private_Dirty:" => private += size,
                    _ => {}
                }
            }
        }
        (resident, private)
    }

    fn sample(&self) -> Sample {
        let mut sample = Sample::default();
        for pid in &self.pids {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                sample.cpu_ns += number(text.split_ascii_whitespace().next());
            }
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Behind the name, which may hold spaces: state is the first, utime the twelfth.
            let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
            sample.user += number(behind.split_ascii_whitespace().nth(11));
        }
        let Some(core) = self.core else { return sample };
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let name = format!("cpu{core} ");
        if let Some(line) = text.lines().find_map(|line| line.strip_prefix(&name)) {
            // user nice system idle iowait irq softirq
            let ticks: Vec<u64> = line.split_ascii_whitespace().map(|tick| number(Some(tick))).collect();
            if let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] {
                sample.core_user = user + nice;
                sample.core_system = system;
                sample.core_interrupts = irq + softirq;
            }
        }
        sample
    }
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The middle and the 99th of a hundred, in microseconds.
pub fn percentiles(nanos: &mut [u64]) -> (f64, f64) {
    nanos.sort_unstable();
    let at = |share: f64| nanos.get((nanos.len() as f64 * share) as usize).map_or(0.0, |it| *it as f64 / 1e3);
    (at(0.50), at(0.99))
}
