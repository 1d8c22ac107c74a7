//! Numbers of the last hour as small pictures (SVG), a minute each; what is written into them is ours alone.

use std::fmt::Write as _;

use serde::Serialize;

use super::page::clock;
use crate::matrix::Timestamp;
use crate::telemetry::{Hour, MINUTES, Percentiles};

/// A minute's place, and the height of all.
const WIDTH: f64 = 10.0;
const HEIGHT: f64 = 120.0;
const MINUTE: u64 = 60_000;

/// Where the scale of times may begin and end.
const DECADES: [(u32, &str); 8] = [
    (10, "0.01 ms"),
    (100, "0.1 ms"),
    (1000, "1 ms"),
    (10_000, "10 ms"),
    (100_000, "100 ms"),
    (1_000_000, "1 s"),
    (10_000_000, "10 s"),
    (100_000_000, "100 s"),
];

#[derive(Debug, Serialize)]
pub(super) struct Plot {
    title: &'static str,
    /// The picture in one sentence.
    says: String,
    /// As of the last whole minute.
    rate: String,
    svg: String,
    /// From top to bottom.
    scale: Vec<String>,
    legend: Vec<Key>,
    is_empty: bool,
}

#[derive(Debug, Serialize)]
struct Key {
    class: &'static str,
    name: &'static str,
    value: String,
}

/// One kind of what is counted.
struct Series<'a> {
    class: &'static str,
    name: &'static str,
    counts: &'a [u32],
}

pub(super) fn all(hour: &Hour, now: Timestamp) -> Vec<Plot> {
    let forwarded = [
        of("c2", "2xx", hour.forwarded.get("2xx")),
        of("c3", "3xx", hour.forwarded.get("3xx")),
        of("c1", "1xx", hour.forwarded.get("1xx")),
        of("c4", "4xx", hour.forwarded.get("4xx")),
        of("c5", "5xx", hour.forwarded.get("5xx")),
        of("cx", "homeserver unreachable", hour.forwarded.get("unreachable")),
    ];
    let intercepted = [
        of("c2", "relayed", hour.intercepted.get("relayed")),
        of("c4", "refused", hour.intercepted.get("refused")),
        of("c3", "observed", hour.intercepted.get("observed")),
    ];
    let deliveries =
        [of("c2", "delivered", hour.deliveries.get("delivered")), of("c5", "failed", hour.deliveries.get("failed"))];
    vec![
        bars("Forwarded to the homeserver", &forwarded, now),
        bars("The shim's own requests", &intercepted, now),
        times("How long answering took", &hour.intercepted_us, now),
        bars("Mails and messages", &deliveries, now),
        times("How long delivering took", &hour.delivery_us, now),
    ]
}

fn of<'a>(class: &'static str, name: &'static str, counts: Option<&'a Vec<u32>>) -> Series<'a> {
    Series { class, name, counts: counts.map_or(&[], Vec::as_slice) }
}

/// Counts a minute, one kind on the other.
fn bars(title: &'static str, series: &[Series<'_>], now: Timestamp) -> Plot {
    let count = |one: &Series<'_>, minute: usize| one.counts.get(minute).copied().unwrap_or_default();
    let total = |minute| series.iter().map(|one| u64::from(count(one, minute))).sum::<u64>();
    let most = top((0..MINUTES).map(total).max().unwrap_or_default());
    let mut svg = open();
    for (minute, left) in minutes() {
        let mut said = minute_of(now, minute);
        let (mut drawn, mut bottom) = (String::new(), HEIGHT);
        for one in series {
            let count = count(one, minute);
            if count > 0 {
                let height = (f64::from(count) / most * HEIGHT).max(1.0);
                bottom -= height;
                push(&mut said, format_args!(" · {count} {}", one.name));
                let (class, left, width) = (one.class, left + 1.0, WIDTH - 2.0);
                push(
                    &mut drawn,
                    format_args!(
                        "<rect class=\"{class}\" x=\"{left}\" y=\"{bottom:.1}\" width=\"{width}\" height=\"{height:.1}\"/>"
                    ),
                );
            }
        }
        column(&mut svg, left, &said, &drawn);
    }
    svg.push_str("</svg>");
    let sums: Vec<_> = series.iter().map(|one| one.counts.iter().copied().map(u64::from).sum::<u64>()).collect();
    let sum: u64 = sums.iter().sum();
    let used = series.iter().zip(&sums).filter(|(_, sum)| **sum > 0);
    let legend: Vec<_> =
        used.map(|(one, sum)| Key { class: one.class, name: one.name, value: grouped(*sum) }).collect();
    let parts: Vec<_> = legend.iter().map(|key| format!("{} {}", key.value, key.name)).collect();
    let says = if sum == 0 {
        "None in the last hour".to_owned()
    } else {
        format!("{} in the last hour: {}; at most {} a minute", grouped(sum), parts.join(", "), {
            grouped((0..MINUTES).map(total).max().unwrap_or_default())
        })
    };
    let rate = format!("{} in the last whole minute", grouped(total(MINUTES - 2)));
    let scale = vec![format!("{most}"), format!("{}", most / 2.0), "0".to_owned()];
    Plot { title, says, rate, svg, scale, legend, is_empty: sum == 0 }
}

/// From the median to 95 %, and on to 99 %, on a scale of decades: minutes without anything stay empty.
fn times(title: &'static str, of: &Percentiles, now: Timestamp) -> Plot {
    let at = |series: &[Option<u32>], minute: usize| series.get(minute).copied().flatten();
    let shortest = of.p50.iter().flatten().min().copied();
    let longest = of.p99.iter().flatten().max().copied();
    let first = DECADES.iter().rposition(|(from, _)| shortest.is_some_and(|shortest| *from <= shortest)).unwrap_or(2);
    let last =
        DECADES.iter().position(|(to, _)| longest.is_some_and(|longest| *to >= longest)).unwrap_or(5).max(first + 1);
    let scale: Vec<_> = DECADES.iter().skip(first).take(last - first + 1).copied().collect();
    let low = scale.first().map_or(1.0, |(from, _)| f64::from(*from));
    let high = scale.last().map_or(10.0, |(to, _)| f64::from(*to));
    let y =
        |micros: u32| (HEIGHT * (1.0 - (f64::from(micros) / low).log10() / (high / low).log10())).clamp(0.0, HEIGHT);
    let mut svg = open();
    for (minute, left) in minutes() {
        let mut said = minute_of(now, minute);
        let mut drawn = String::new();
        if let (Some(p50), Some(p95), Some(p99)) = (at(&of.p50, minute), at(&of.p95, minute), at(&of.p99, minute)) {
            push(&mut said, format_args!(" · 50 % {} · 95 % {} · 99 % {}", time(p50), time(p95), time(p99)));
            let middle = left + WIDTH / 2.0;
            for (class, from, to, width) in [("p99", p99, p50, 2.0), ("p95", p95, p50, 6.0)] {
                let (x, y, height) = (middle - width / 2.0, y(from), y(to) - y(from));
                push(
                    &mut drawn,
                    format_args!(
                        "<rect class=\"{class}\" x=\"{x}\" y=\"{y:.1}\" width=\"{width}\" height=\"{height:.1}\"/>"
                    ),
                );
            }
            let (x, y, width) = (left + 1.0, y(p50) - 1.5, WIDTH - 2.0);
            push(
                &mut drawn,
                format_args!("<rect class=\"p50\" x=\"{x}\" y=\"{y:.1}\" width=\"{width}\" height=\"3\"/>"),
            );
        }
        column(&mut svg, left, &said, &drawn);
    }
    svg.push_str("</svg>");
    let legend: Vec<_> = [("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %")]
        .into_iter()
        .zip(of.hour)
        .filter_map(|((class, name), micros)| Some(Key { class, name, value: time(micros?) }))
        .collect();
    let parts: Vec<_> = legend.iter().map(|key| format!("{} within {}", key.name, key.value)).collect();
    let is_empty = legend.is_empty();
    let says =
        if is_empty { "None in the last hour".to_owned() } else { format!("In the last hour {}", parts.join(", ")) };
    let scale = scale.iter().rev().map(|(_, label)| (*label).to_owned()).collect();
    Plot { title, says, rate: String::new(), svg, scale, legend, is_empty }
}

fn open() -> String {
    let mut svg = String::new();
    push(
        &mut svg,
        format_args!(
            "<svg viewBox=\"0 0 600 {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\" focusable=\"false\">"
        ),
    );
    svg
}

/// Each minute, and where it is.
fn minutes() -> impl Iterator<Item = (usize, f64)> {
    (0..MINUTES).zip(0_u32..).map(|(minute, number)| (minute, f64::from(number) * WIDTH))
}

/// A minute, with what it says to whoever points at it.
fn column(svg: &mut String, left: f64, said: &str, drawn: &str) {
    if !drawn.is_empty() {
        push(
            svg,
            format_args!(
                "<g><title>{said}</title><rect class=\"hit\" x=\"{left}\" y=\"0\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>{drawn}</g>"
            ),
        );
    }
}

fn minute_of(now: Timestamp, minute: usize) -> String {
    let ago = u64::try_from(MINUTES - 1 - minute).unwrap_or_default() * MINUTE;
    let began = now.as_millis() / MINUTE * MINUTE;
    clock(Timestamp::from_millis(began.saturating_sub(ago))).chars().take(5).chain(" UTC".chars()).collect()
}

/// Writing to a string cannot fail.
fn push(to: &mut String, what: std::fmt::Arguments<'_>) {
    if to.write_fmt(what).is_err() {
        to.clear();
    }
}

/// The end of a scale: the next of 2, 4, 6, 10, 20, 40, 60, 100...
fn top(most: u64) -> f64 {
    let mut decade = 1_u32;
    loop {
        for step in [2, 4, 6, 10] {
            let top = step * decade;
            if u64::from(top) >= most || decade > 100_000_000 {
                return f64::from(top);
            }
        }
        decade = decade.saturating_mul(10);
    }
}

/// `1 234 567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

fn time(micros: u32) -> String {
    let tenths = |number: u32, unit| format!("{}.{} {unit}", number / 10, number % 10);
    match micros {
        0..10_000 => tenths(micros / 100, "ms"),
        10_000..1_000_000 => format!("{} ms", micros / 1000),
        1_000_000..10_000_000 => tenths(micros / 100_000, "s"),
        _ => format!("{} s", micros / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_a_round_number_that_halves_well_and_holds_all() {
        let rows =
            [(0, 2.0), (1, 2.0), (2, 2.0), (3, 4.0), (5, 6.0), (7, 10.0), (11, 20.0), (399, 400.0), (601, 1000.0)];
        for (most, end) in rows {
            assert!((top(most) - end).abs() < 0.1, "{most}: {}", top(most));
        }
        assert!(top(u64::MAX) > 1e8);
    }

    #[test]
    fn numbers_and_times_are_short_and_legible() {
        let rows = [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (1_234_567, "1\u{202f}234\u{202f}567")];
        for (number, said) in rows {
            assert_eq!(grouped(number), said);
        }
        let rows = [(68, "0.0 ms"), (4321, "4.3 ms"), (43_210, "43 ms"), (1_250_000, "1.2 s"), (61_000_000, "61 s")];
        for (micros, said) in rows {
            assert_eq!(time(micros), said);
        }
    }

    #[test]
    fn a_minute_is_as_high_as_its_count_and_says_when_and_how_many() {
        let mut counts = [0; MINUTES];
        counts[MINUTES - 1] = 5;
        counts[MINUTES - 2] = 10;
        let series = [Series { class: "c2", name: "2xx", counts: &counts }];
        let plot = bars("x", &series, Timestamp::from_millis(1_795_843_267_000));
        assert!(plot.svg.contains("<title>05:21 UTC · 5 2xx</title>"), "{}", plot.svg);
        assert!(plot.svg.contains("<title>05:20 UTC · 10 2xx</title>"), "{}", plot.svg);
        assert!(plot.svg.contains("x=\"591\" y=\"60.0\" width=\"8\" height=\"60.0\"/>"), "{}", plot.svg);
        assert_eq!((plot.scale.as_slice(), plot.is_empty), (&["10", "5", "0"].map(str::to_owned)[..], false));
        assert_eq!(plot.says, "15 in the last hour: 15 2xx; at most 10 a minute");
        assert!(bars("x", &[], Timestamp::from_millis(0)).is_empty);
    }

    #[test]
    fn times_stand_on_a_scale_of_whole_decades() {
        let mut percentiles = Percentiles::default();
        for (series, micros) in
            [(&mut percentiles.p50, 2000), (&mut percentiles.p95, 20_000), (&mut percentiles.p99, 200_000)]
        {
            series.resize(MINUTES, None);
            series[3] = Some(micros);
        }
        percentiles.hour = [Some(2000), Some(20_000), Some(200_000)];
        let plot = times("x", &percentiles, Timestamp::from_millis(1_795_843_267_000));
        assert_eq!(plot.scale, ["1 s", "100 ms", "10 ms", "1 ms"]);
        assert!(plot.svg.contains("04:25 UTC · 50 % 2.0 ms · 95 % 20 ms · 99 % 200 ms"), "{}", plot.svg);
        assert_eq!(plot.says, "In the last hour 50 % within 2.0 ms, 95 % within 20 ms, 99 % within 200 ms");
        assert!(times("x", &Percentiles::default(), Timestamp::from_millis(0)).is_empty);
    }
}
