//! The same through the real binary: its signal, its log, and its own patience.

use std::collections::HashSet;
use std::fs;

use serde_json::Value;

use super::{edit, metric, put, reloads};
use crate::client::Client;
use crate::homeserver::{self, Homeserver, soon};
use crate::process::Process;
use crate::shim::Reserved;

fn words(lines: &[Value], level: &str) -> Vec<String> {
    let fields = ["message", "keys", "fault", "why"];
    let of = |line: &Value| fields.iter().filter_map(|field| line[*field].as_str()).collect::<Vec<_>>().join(" | ");
    lines.iter().filter(|line| line["level"] == level).map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_reloads_by_sighup_and_by_itself_and_logs_what_it_could_not_use() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", r#"{"sid":"theirs"}"#)).await;
    let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), "").serving().await;
    let (admin, file) = (Client::of(&process.admin), process.config_file());
    let good = fs::read_to_string(&file).unwrap();
    let ask = async || process.client().request_token("register", "a@example.org", "secret", 1).await.status;
    let applied =
        async |count| soon("a reload", async { while reloads(&process.admin, "applied").await < count {} }).await;
    assert_eq!(ask().await, 200);

    let keys = "[shutdown]\ngrace = \"50s\"\n[routes]\nregister.email = \"refuse\"\n";
    put(&file, &format!("{}{keys}", good.replace("json", "text").replace("[listen]", "[listen]\nadmin_ = []")));
    process.hang_up();
    let fault = process.logged(|line| line["level"] == "ERROR").await;
    assert_eq!(fault["message"], "configuration not reloaded: the one before stays in force");
    let place = format!("{}:5: listen.admin_: ", file.display());
    assert!(fault["fault"].as_str().unwrap().starts_with(&place), "{fault}");
    soon("the fault is counted", async { while metric(&process.admin, "config_reload_failed").await == 0 {} }).await;
    assert_eq!(admin.get("/readyz").await.text(), "ready; configuration not reloaded: 1 fault, see the log\n");
    assert_eq!(ask().await, 200, "nothing has changed");

    // By itself: no signal.
    edit(&file, "[listen]\nadmin_ = []", "[listen]");
    applied(1).await;
    assert_eq!(ask().await, 400);
    assert_eq!(admin.get("/readyz").await.text(), "ready\n");
    let lines = process.lines();
    // On a slow machine the look may come before the signal: then each has told it once.
    let told = words(&lines, "ERROR");
    assert_eq!(told.len(), told.iter().collect::<HashSet<_>>().len(), "told again, though only looked at: {lines:#?}");
    let waiting = "changed, but takes effect at the next start | shutdown.grace log.format".to_owned();
    assert!(words(&lines, "WARN").contains(&waiting), "{lines:#?}");
    assert!(words(&lines, "INFO").contains(&"configuration reloaded | a file has changed".to_owned()), "{lines:#?}");

    put(&file, &format!("{good}level = \"warn\"\n"));
    process.hang_up();
    applied(2).await;
    assert_eq!(ask().await, 200);
    put(&file, &good);
    process.hang_up();
    process.logged(|line| line["message"] == "configuration reloaded" && line["why"] == "SIGHUP").await;
    let intercepted = || process.lines().iter().filter(|line| line["message"] == "intercepted").count();
    assert_eq!(intercepted(), 3, "the fourth request came while only warnings were logged");
    assert_eq!(ask().await, 200);
    soon("the fifth is logged", async {
        while intercepted() < 4 {
            metric(&process.admin, "panics_total").await;
        }
    })
    .await;

    process.terminate();
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
}
