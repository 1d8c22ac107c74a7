//! The noun `Chromium`: Debian's browser, opened for one link at a time; and other people's pages for it to go to.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What the browser showed at the end; the names are those of `tests/parts/browser/click.mjs`.
#[derive(Debug)]
pub struct Shown(pub Value);

/// Opens `url` in a fresh browser with these options of `click.mjs`.
pub fn open(url: &str, options: &[&str]) -> Shown {
    // Two browsers at once are slower than one after the other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let output = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts/browser/click.mjs"))
        .arg(url)
        .args(options)
        .output()
        .expect("node is needed (./tests/run installs it)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "chromium and playwright-core are needed (./tests/run installs them): {said}");
    Shown(serde_json::from_slice(&output.stdout).unwrap())
}

impl Shown {
    pub fn status(&self) -> u64 {
        self.0["status"].as_u64().unwrap()
    }

    pub fn url(&self) -> &str {
        self.0["url"].as_str().unwrap()
    }

    pub fn text(&self) -> &str {
        self.0["text"].as_str().unwrap()
    }

    pub fn buttons(&self) -> usize {
        self.0["buttons"].as_array().unwrap().len()
    }

    /// The page whose button was pressed.
    pub fn before(&self) -> Self {
        Self(self.0["before"].clone())
    }

    /// Every `METHOD URL` on the way.
    pub fn requests(&self) -> Vec<&str> {
        strings(&self.0["requests"])
    }

    pub fn console(&self) -> Vec<&str> {
        strings(&self.0["console"])
    }

    pub fn fits(&self) -> bool {
        self.0["overflows"] == false && (self.0["before"].is_null() || self.before().fits())
    }
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

/// A page of somebody else, the same at every path, and the heads of the requests for it.
pub struct Elsewhere {
    pub port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Elsewhere {
    pub async fn serving(html: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heads, html) = (Arc::<Mutex<Vec<String>>>::default(), html.into());
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{html}",
            html.len()
        );
        let seen = Arc::clone(&heads);
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        // A browser also opens connections that it then does not need.
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    seen.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                    drop(stream.write_all(answer.as_bytes()).await);
                });
            }
        });
        Self { port, heads, serving }
    }

    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
