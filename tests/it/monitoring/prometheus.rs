//! The noun `Prometheus`: Debian's, on a free port, looking at one shim.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::homeserver::soon;
use crate::legacy::port;

/// Killed when dropped.
pub(super) struct Prometheus {
    address: String,
    child: Child,
    _folder: TempDir,
}

impl Prometheus {
    /// Looks at an admin door five times a second, with these rules.
    pub(super) async fn looking_at(admin: &str, rules: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 1s}}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: threepid-shim, static_configs: [{{targets: [\"{admin}\"]}}]}}]\n",
            rules.display()
        );
        std::fs::write(&config, text).unwrap();
        let address = format!("127.0.0.1:{}", port());
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("prometheus is missing, tests/run installs it: {error}"));
        let up = Self { address, child, _folder: folder };
        up.until("up == 1").await;
        up
    }

    /// Waits until an expression gives something.
    pub(super) async fn until(&self, expression: &str) {
        soon(expression, async {
            while tokio::net::TcpStream::connect(&self.address).await.is_err()
                || self.query(expression).await["result"].as_array().is_none_or(Vec::is_empty)
            {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await;
    }

    /// What an expression gives now.
    pub(super) async fn query(&self, expression: &str) -> Value {
        self.get("query", &[("query", expression)]).await
    }

    /// The labels of every series that a selector finds.
    pub(super) async fn series(&self, selector: &str) -> Vec<Value> {
        self.get("series", &[("match[]", selector)]).await.as_array().cloned().unwrap_or_default()
    }

    /// Every rule as Prometheus has read it.
    pub(super) async fn rules(&self) -> Vec<Value> {
        let groups = self.get("rules", &[]).await;
        let groups = groups["groups"].as_array().unwrap().iter();
        groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }

    async fn get(&self, what: &str, parameters: &[(&str, &str)]) -> Value {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let answer = Client::of(&self.address).get(&format!("/api/v1/{what}?{query}")).await;
        // Not ready yet.
        if answer.status == 503 {
            return Value::Null;
        }
        let answer = answer.json();
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
