//! The noun `Sdk`: a person with one version of matrix-js-sdk, in a process of its own (`tests/clients/drive.cjs`).

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A running driver. It ends with the test.
pub struct Sdk {
    process: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

/// What one flow came to.
#[derive(Debug)]
pub struct Came {
    /// What the SDK's own promise resolved to, or the errcode or text of what it threw.
    pub result: Result<Value, String>,
    /// Every request with its answer: `method`, `path`, `sent`, `status`, `errcode`.
    pub requests: Vec<Value>,
}

impl Came {
    #[track_caller]
    pub fn ok(&self) -> &Value {
        self.result.as_ref().unwrap_or_else(|failed| panic!("{failed}: {:#?}", self.requests))
    }

    #[track_caller]
    pub fn failed(&self) -> &str {
        self.result.as_ref().err().unwrap_or_else(|| panic!("it should have failed: {:#?}", self.requests))
    }

    /// The bodies that were sent to endpoints with this ending.
    pub fn sent_to(&self, ending: &str) -> Vec<&Value> {
        let to = |request: &&Value| request["path"].as_str().is_some_and(|path| path.ends_with(ending));
        self.requests.iter().filter(to).map(|request| &request["sent"]).collect()
    }
}

impl Sdk {
    /// `sdk2` or `sdk27`, as `tests/clients/package.json` calls them.
    pub fn start(which: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let installed = folder.join("node_modules").join(which);
        assert!(installed.exists(), "matrix-js-sdk is needed (./tests/run installs it): {}", installed.display());
        let mut process = Command::new("node")
            .args(["drive.cjs", which])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is needed (./tests/run installs it)");
        let to = process.stdin.take().unwrap();
        let from = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, to, from }
    }

    /// One flow. `person` is told of every mail and message that must have come, by its kind and sid, and does what the
    /// driver is answered.
    pub async fn run(&mut self, job: Value, person: impl AsyncFn(&str, &str) -> Value) -> Came {
        self.tell(&job);
        let mut requests = Vec::new();
        loop {
            let mut said = self.hear();
            if said["http"].is_object() {
                requests.push(said["http"].take());
                continue;
            }
            let came = ["mail", "message"].into_iter().find(|kind| said[kind].is_object());
            if let Some(kind) = came {
                let sid = said[kind]["sid"].as_str().expect("a sid");
                let answer = person(kind, sid).await;
                self.tell(&answer);
                continue;
            }
            let result = said["result"].take();
            let result = match result["failed"].as_str() {
                Some(failed) => Err(failed.to_owned()),
                None => Ok(result["ok"].clone()),
            };
            return Came { result, requests };
        }
    }

    fn tell(&mut self, line: &Value) {
        writeln!(self.to, "{line}").expect("the driver listens");
    }

    fn hear(&mut self) -> Value {
        let line = tokio::task::block_in_place(|| self.from.next()).expect("the driver says how it ended").unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the driver says {line}"))
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
