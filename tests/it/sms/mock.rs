//! A message to somebody else's idea of Twilio: npm's twillio-sms-mock.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use threepid_shim::delivery::DeliveryError;

use super::{TEXT, delivery, sms};
use crate::client::Client;

/// The running mock; it is stopped when dropped.
struct Mock {
    process: Child,
    address: String,
}

impl Mock {
    fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts/sms");
        let is_there = folder.join("node_modules/twillio-sms-mock").is_dir();
        assert!(is_there, "tests/parts/sms/node_modules is missing: run `tests/run install`");
        let mut process = Command::new("node")
            .arg(folder.join("mock.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is missing: run `tests/run install`");
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().expect("the mock prints its port");
        Self { process, address: format!("127.0.0.1:{port}") }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_twilio_emulator_takes_the_message_as_it_was_worded() {
    let mock = Mock::start();
    let login = "transport = \"twilio\"\naccount = \"AC0123\"\ntoken = \"sesame\"\n";
    let keys = |from: &str| format!("{login}from = \"{from}\"\nbase_url = \"http://{}\"\n", mock.address);
    delivery(&keys("+441134960000")).sms(&sms()).await.unwrap();
    let messages = Client::of(&mock.address).get("/api/messages").await.json();
    let message = &messages[0];
    assert_eq!(messages.as_array().map(Vec::len), Some(1));
    for (key, value) in [("to", "+447700900123"), ("from", "+441134960000"), ("body", TEXT), ("account_sid", "AC0123")]
    {
        assert_eq!(message[key], value, "{key}");
    }
    // It knows no messaging services: a message without From is its only refusal, by the code of a bad number.
    let error = delivery(&keys("MG0123456789abcdef0123456789abcdef")).sms(&sms()).await.unwrap_err();
    let DeliveryError::NotTaken { status: 400, code, recipient: true } = error else { panic!("{error}") };
    assert_eq!(code.as_deref(), Some("21211"));
}
