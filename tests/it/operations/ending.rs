//! The end: what is under way then, with and without a client that waits for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::old;
use crate::client::{Answer, Client};
use crate::homeserver::{self, Homeserver, soon};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::process::Process;
use crate::secure::{API, Caller, as_synapse, call_and_stay};
use crate::shim::{Reserved, Shim, Wanted};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_at_the_end_still_has_its_mail_and_leaves_no_connection_idle() {
    let doors = Reserved::new(1);
    let door = doors.take();
    let name = format!("localhost:{}", door.local_addr().unwrap().port());
    let go = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&go);
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let (name, held) = (name.clone(), Arc::clone(&held));
        async move {
            while let Some(request) = conversation.request().await {
                if !request.line().contains("/requestToken") {
                    conversation.write(old()).await;
                    continue;
                }
                held.acquire().await.unwrap().forget();
                let (kind, body) = as_synapse(&request.json());
                let target = format!("{API}validate/email/requestToken");
                let told = call_and_stay(&name, "POST", &target, kind, &body).await;
                assert_eq!(told.header("connection"), Some("close"));
                conversation.write(homeserver::json(&format!("{} X", told.status), &told.text())).await;
            }
        }
    })
    .await;
    let shim = Shim::before(&homeserver.address.to_string(), door, Wanted::default()).await;
    let client = shim.client();
    let asking = tokio::spawn(async move { client.request_token("register", "a@example.org", "secret", 1).await });
    soon("the request is there", async {
        while !homeserver.requests().iter().any(|request| request.line().contains("/requestToken")) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shim.signals.drain.cancel();
    gone(shim.clients.parse().unwrap()).await;
    assert_eq!(Client::of(&shim.admin).get("/readyz").await.text(), "draining\n");
    go.add_permits(1);
    let sid = asking.await.unwrap().sid();
    shim.link(&sid);
    gone(shim.admin.parse().unwrap()).await;
}

/// `hide_existence` has told the client already that a mail is on its way. S§5.19.
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_was_promised_is_sent_before_the_end_and_its_link_is_known_afterwards() {
    let mailbox = Mailbox::start(Script::clear().first(Fault::hold(At::Dot))).await;
    let door = Reserved::new(1).take();
    let told = |_: &homeserver::Raw, told: Option<&Answer>| {
        told.map_or_else(old, |told| homeserver::json("200 OK", &told.text()))
    };
    let caller = Caller::start(&door, as_synapse, told).await;
    let address = mailbox.address();
    let config = format!(
        "[session]\nhide_existence = true\n[store]\nkind = \"file\"\n[email]\ntransport = \"smtp\"\nhost = \"{}\"\n\
         port = {}\ntls = \"none\"\nfrom = \"noreply@example.org\"\n",
        address.ip(),
        address.port(),
    );
    let mut process = Process::start(&caller.address(), door, &config).serving().await;
    let ask = async |process: &Process| process.client().request_token("register", "a@example.org", "s", 1).await.sid();
    let sid = ask(&process).await;
    let link = mailbox.wait_for_mail().await.link();
    process.terminate();
    gone(process.clients.parse().unwrap()).await;
    let early = tokio::time::timeout(Duration::from_millis(1500), process.exited()).await;
    assert!(early.is_err(), "the mail server has not taken the mail yet: {early:?}\n{}", process.log());
    mailbox.release(1);
    assert_eq!(soon("the end", process.exited()).await, Some(0), "{}", process.log());
    let process = process.started_again().await;
    assert_eq!((ask(&process).await, mailbox.messages().len()), (sid, 1), "that it was sent is known");
    assert_eq!(process.client().click(&link).await.status, 200);
}

pub async fn gone(address: SocketAddr) {
    soon("its door closes", async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

/// A /sync that has reached the homeserver.
async fn open_sync(process: &Process, homeserver: &Homeserver) -> tokio::task::JoinHandle<Vec<u8>> {
    let target = "/_matrix/client/r0/sync?timeout=30000";
    let mut conversation = homeserver::Conversation::with(process.clients.parse().unwrap()).await;
    conversation.write(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    homeserver.met("/sync").await;
    tokio::spawn(async move { conversation.rest().await })
}

async fn until_draining(process: &Process) {
    soon("readiness fails", async { while process.readiness().await != 503 {} }).await;
}

/// S§5.19.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_fails_readiness_first_then_finishes_what_is_open_and_ends_with_0() {
    let (homeserver, let_go) = Homeserver::holding("/sync", old()).await;
    let door = Reserved::new(1).take();
    let process =
        Process::start(&homeserver.address.to_string(), door, "[shutdown]\ndelay = \"700ms\"\n").serving().await;
    assert_eq!(process.readiness().await, 200);
    let sync = open_sync(&process, &homeserver).await;
    process.terminate();
    until_draining(&process).await;
    let client = process.client();
    assert_eq!(client.get("/_matrix/client/r0/login").await.status, 200, "requests are taken during the delay");
    // Then the door closes, while the open request goes on.
    gone(process.clients.parse().unwrap()).await;
    assert!(!sync.is_finished());
    let_go.add_permits(1);
    let answer = soon("the /sync ends", sync).await.unwrap();
    let answer = crate::client::parse(&answer);
    assert_eq!((answer.status, answer.json()["versions"][0].as_str()), (200, Some("r0.5.0")));
    let (code, log) = process.ended().await;
    assert_eq!(code, Some(0), "{log}");
}

/// S§5.19.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_and_so_does_the_end_of_the_grace() {
    for second in [true, false] {
        let (homeserver, _held) = Homeserver::holding("/sync", old()).await;
        let config = if second { "[shutdown]\ngrace = \"1h\"\n" } else { "[shutdown]\ngrace = \"1s\"\n" };
        let process = Process::start(&homeserver.address.to_string(), Reserved::new(1).take(), config).serving().await;
        let sync = open_sync(&process, &homeserver).await;
        process.terminate();
        process.logged(|line| line["message"] == "draining").await;
        if second {
            process.terminate();
        }
        assert_eq!(soon("the /sync is cut", sync).await.unwrap(), b"");
        let (code, log) = process.ended().await;
        assert_eq!(code, Some(0), "{log}");
    }
}
