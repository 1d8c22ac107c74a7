//! What `deploy/monitoring` ships, held by Debian's Prometheus and promtool to a live `/metrics` of the real binary.

mod prometheus;
mod promql;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::client::{Client, creds};
use crate::gateway::Gateway;
use crate::legacy::{legacy, unique};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::phones;
use crate::process::Process;
use prometheus::Prometheus;
use promql::named;

fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(shipped(file)).unwrap()
}

/// What promtool says, and whether it is content.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(shipped("")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let spawned = command.stderr(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("promtool is missing, tests/run installs it: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// A shim before a real homeserver, whose traffic had every outcome that the dashboard shows.
struct Busy {
    shim: Process,
    prometheus: Prometheus,
    mailbox: Mailbox,
    gateway: Gateway,
}

impl Busy {
    async fn start() -> Self {
        let script = Script::starttls().login("shim", "right", "PLAIN");
        let mailbox = Mailbox::start(script.first(Fault::reply(At::Auth, "535 5.7.8 No"))).await;
        let gateway = phones::gateway().await;
        let synapse = legacy("1.3.1");
        let email = format!(
            "[email]\ntransport = \"smtp\"\nhost = \"localhost\"\nport = {}\ntls = \"required\"\nca_file = \"{}\"\n\
             username = \"shim\"\npassword = \"right\"\nfrom = \"noreply@example.org\"\n",
            mailbox.address().port(),
            mailbox.ca_file().display()
        );
        let limits = "[limits]\nrequest_token_per_address = \"2/1h\"\n";
        let phones = phones::wanted(&gateway, limits).config;
        let shim = Process::start(&synapse.address, synapse.door(), &format!("{email}{phones}")).serving().await;
        let prometheus = Prometheus::looking_at(&shim.admin, &shipped("alerts.yaml")).await;
        Self { shim, prometheus, mailbox, gateway }
    }

    /// Mail and message, failure and success, refusal and limit, forwarded and not.
    async fn traffic(&self) {
        let (client, name, secret) = (self.shim.client(), unique("monitored"), unique("secret"));
        let email = format!("{name}@example.org");
        assert_eq!(client.request_token("register", &email, &secret, 1).await.errcode(), "M_EMAIL_SEND_ERROR");
        let sid = client.request_token("register", &email, &secret, 2).await.sid();
        client.click(&self.mailbox.mails().last().unwrap().link()).await;
        client.register(&name, creds(&sid, &secret)).await.ok();
        for attempt in 3..6 {
            client.request_token("register", &format!("more{email}"), &secret, attempt).await;
        }
        client.request_token("register", "no address", &secret, 1).await;
        let number = phones::number();
        let sid = phones::request(&client, "register", &number, &secret, 1).await.sid();
        phones::submit(&client, &sid, &secret, &phones::code(&self.gateway)).await.ok();
        client.get("/_matrix/client/r0/login").await;
        client.get("/_matrix/client/r0/nowhere").await;
        self.prometheus.until("rate(threepid_shim_intercepted_requests_total{route=\"submit_token\"}[1m]) >= 0").await;
    }

    async fn metrics(&self) -> String {
        Client::of(&self.shim.admin).get("/metrics").await.text()
    }

    /// How often each stage was gone through.
    async fn stages(&self, medium: &str) -> Vec<(String, String)> {
        let count = format!("threepid_shim_delivery_stage_duration_seconds_count{{medium=\"{medium}\"}}");
        let result = self.prometheus.query(&count).await["result"].clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let stages = result.as_array().unwrap().iter().map(|it| (text(&it["metric"]["stage"]), text(&it["value"][1])));
        let mut stages: Vec<_> = stages.collect();
        stages.sort();
        stages
    }

    /// Whatever an expression names is there: metrics, labels, and each value that a label is compared with.
    async fn has_all_of(&self, expression: &str) {
        let named = named(expression);
        assert!(!named.selectors.is_empty(), "{expression}");
        let mut labels = BTreeSet::from(["le".to_owned()]);
        for selector in &named.selectors {
            let series = self.prometheus.series(&selector.name).await;
            assert!(!series.is_empty(), "{} of {expression} is not in /metrics", selector.name);
            labels.extend(series.iter().flat_map(|series| series.as_object().unwrap().keys().cloned()));
            for (label, operator, value) in &selector.matchers {
                // `.*` is one pattern, as for the job; everything else is a list of values.
                let values: Vec<_> =
                    if value.contains(".*") { vec![value.as_str()] } else { value.split('|').collect() };
                let like = if value.contains(".*") { operator.replace('!', "=") } else { "=".to_owned() };
                for value in values {
                    let wanted = format!("{}{{{label}{like}\"{value}\"}}", selector.name);
                    assert!(!self.prometheus.series(&wanted).await.is_empty(), "{wanted} of {expression}");
                }
            }
        }
        for label in named.labels {
            assert!(labels.contains(&label), "the label {label} of {expression}");
        }
    }
}

/// Everything under this key, however deep.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if name == key {
                    found.push(member);
                }
                all(member, key, found);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| all(element, key, found)),
        _ => {}
    }
}

/// As Grafana fills it in.
fn filled(expression: &str) -> String {
    expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_shim_has_all_that_dashboard_alerts_and_manual_name() {
    let busy = Busy::start().await;
    busy.traffic().await;

    let metrics = busy.metrics().await;
    is_listed(&metrics);
    let (content, said) = promtool(&["check", "metrics"], &metrics);
    assert!(content && said.is_empty(), "promtool check metrics: {said}");

    // Four mails, the first of which got no further than the login; one message.
    let expected = [
        ("auth", "4"),
        ("connect", "4"),
        ("data", "3"),
        ("dns", "4"),
        ("ehlo", "8"),
        ("mail_from", "3"),
        ("quit", "4"),
        ("rcpt", "3"),
        ("tls", "4"),
        ("wait", "4"),
    ];
    assert_eq!(busy.stages("email").await, expected.map(|(stage, count)| (stage.to_owned(), count.to_owned())));
    let expected = ["connect", "dns", "gateway", "wait"].map(|stage| (stage.to_owned(), "1".to_owned()));
    assert_eq!(busy.stages("msisdn").await, expected);

    for (counter, times) in [
        ("limits_reached_total{limit=\"request_token_per_address\"}", "1"),
        ("sessions_begun_total{purpose=\"register\", medium=\"msisdn\"}", "1"),
        ("sessions_validated_total{purpose=\"register\", medium=\"msisdn\"}", "1"),
        ("intercepted_failures_total{route=\"register.email\", fault=\"smtp\"}", "1"),
    ] {
        let counted = busy.prometheus.query(&format!("threepid_shim_{counter}")).await;
        assert_eq!(counted["result"][0]["value"][1], times, "{counter}");
    }

    let rules = busy.prometheus.rules().await;
    assert!(rules.len() >= 19, "{} rules", rules.len());
    for rule in &rules {
        busy.has_all_of(rule["query"].as_str().unwrap()).await;
    }

    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let (mut shown, mut panels) = (0, Vec::new());
    all(&dashboard, "targets", &mut panels);
    for target in panels.iter().flat_map(|targets| targets.as_array().unwrap()) {
        let expression = filled(target["expr"].as_str().unwrap());
        busy.has_all_of(&expression).await;
        let result = busy.prometheus.query(&expression).await["result"].as_array().unwrap().clone();
        assert!(!result.is_empty(), "nothing is shown for {expression}");
        let legend = target["legendFormat"].as_str().unwrap();
        for label in legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
            assert!(result.iter().all(|series| series["metric"][label].is_string()), "{label} of {expression}");
        }
        shown += 1;
    }
    assert!(shown >= 35, "{shown} expressions");
    let mut annotations = Vec::new();
    all(&dashboard["annotations"], "expr", &mut annotations);
    for expression in annotations {
        busy.has_all_of(&filled(expression.as_str().unwrap())).await;
    }
}

/// The README's table has every metric and no other.
fn is_listed(metrics: &str) {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let told: BTreeSet<_> =
        types.map(|line| line.split(' ').next().unwrap().trim_start_matches("threepid_shim_").to_owned()).collect();
    let readme = read("README.md");
    let table = readme.split("## Numbers").nth(1).unwrap().split("\n## ").next().unwrap();
    let cells = table.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").next().unwrap());
    let listed: BTreeSet<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect();
    assert_eq!(listed, told);
}

#[test]
fn promtool_takes_the_alerts_and_sees_each_fire_and_stay_silent() {
    let (content, said) = promtool(&["check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml"], "");
    assert!(content, "{said}");
    let (content, said) = promtool(&["test", "rules", "alerts_test.yaml"], "");
    assert!(content, "{said}");
    let (rules, tests, readme) = (read("alerts.yaml"), read("alerts_test.yaml"), read("README.md"));
    let cases: Vec<_> = tests.split("\n  - interval:").skip(1).collect();
    let mut count = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let mentions = |case: &&&str| {
            case.lines().any(|line| line.trim_end_matches('}').trim_end().ends_with(&format!("alertname: {name}")))
        };
        let (fires, silent): (Vec<&&str>, Vec<&&str>) =
            cases.iter().filter(mentions).partition(|case| case.contains("exp_alerts:"));
        assert!(!fires.is_empty() && !silent.is_empty(), "{name}: {} and {}", fires.len(), silent.len());
        for key in ["summary: ", "description: ", "labels: {severity: "] {
            assert_eq!(rule.matches(key).count(), 1, "{name}: {key}");
        }
        let anchor = format!("runbook_url: deploy/monitoring/README.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&anchor), "{name}: {anchor}");
        let runbook = readme.split(&format!("\n### {name}\n")).nth(1);
        let runbook = runbook.unwrap_or_else(|| panic!("{name} has no runbook")).split("\n### ").next().unwrap();
        for part in ["**Means:**", "**People notice:**", "**Do:**"] {
            assert!(runbook.contains(part), "{name}: {part}");
        }
        count += 1;
    }
    assert_eq!(count, readme.matches("\n### ThreepidShim").count(), "runbooks of alerts that are not");
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36 && dashboard["uid"] == "threepid-shim");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id is given twice");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let side = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{panel}");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(taken.insert((x, y)), "{} lies on another", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    assert_eq!(variables[0]["type"], "datasource");
}
