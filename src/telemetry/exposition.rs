//! The registry in Prometheus' text format 0.0.4, which every scraper and promtool reads.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// prometheus-client writes OpenMetrics, in which a counter is described by its name without `_total`, units have lines of
/// their own, and the text has an end: a reader of the older format would find samples that nobody has described.
pub(super) fn written(registry: &Registry) -> Result<String, fmt::Error> {
    let mut open = String::new();
    text::encode(&mut open, registry)?;
    let mut out = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            Some(("HELP", described)) => help = Some(described),
            Some(("TYPE", typed)) => describe(&mut out, help.take(), typed),
            Some(_) => {}
            None if line == "# EOF" => {}
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(out)
}

/// `help` is the name and the words, `typed` the name and the type.
fn describe(out: &mut String, help: Option<&str>, typed: &str) {
    let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
    let suffix = if kind == "counter" { "_total" } else { "" };
    if let Some((_, words)) = help.and_then(|help| help.split_once(' ')) {
        for part in ["# HELP ", name, suffix, " ", words, "\n"] {
            out.push_str(part);
        }
    }
    for part in ["# TYPE ", name, suffix, " ", kind, "\n"] {
        out.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn a_counter_is_described_by_the_name_of_its_samples_and_nothing_of_openmetrics_is_left() {
        let mut registry = Registry::with_prefix("x");
        registry.register("mails", "Mails", Counter::<u64>::default());
        registry.register("open", "Open ones", Gauge::<i64>::default());
        registry.register_with_unit("wait", "How long", Unit::Seconds, Histogram::new([1.0]));
        assert_eq!(
            written(&registry).unwrap(),
            "# HELP x_mails_total Mails.\n# TYPE x_mails_total counter\nx_mails_total 0\n\
             # HELP x_open Open ones.\n# TYPE x_open gauge\nx_open 0\n\
             # HELP x_wait_seconds How long.\n# TYPE x_wait_seconds histogram\nx_wait_seconds_sum 0.0\n\
             x_wait_seconds_count 0\nx_wait_seconds_bucket{le=\"1.0\"} 0\nx_wait_seconds_bucket{le=\"+Inf\"} 0\n"
        );
    }
}
