//! Whatever fails around it: no mail that was taken is unknown to the shim, no validated session is lost, nobody is
//! validated who did not click.

mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::creds;
use crate::gateway::{Does, Gateway};
use crate::homeserver::soon;
use crate::legacy::{legacy, unique};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::phones;
use crate::redis::Redis;
use crate::shim::{ROOMY, Shim, Wanted};

/// A shim before Synapse that mails there, with time for a second try.
async fn mailing(mailbox: &Mailbox) -> Shim {
    let mut wanted = Wanted::config(ROOMY).mailing_to(mailbox.address());
    wanted.email = wanted.email.map(|email| email + "\ndeadline = \"4s\"");
    legacy("1.3.1").shim(wanted).await
}

/// S§5.6, S§5.7, S§5.8. Whatever the mail server does: the client is told, what was taken opens its page, and only a
/// click validates.
#[tokio::test(flavor = "multi_thread")]
async fn no_failure_of_the_mail_server_loses_a_mail_or_validates_anybody() {
    let mut trying = tokio::task::JoinSet::new();
    for (fault, once, always) in [
        (Fault::close(At::Greeting), 200, 500),
        (Fault::hang(At::Greeting), 500, 500),
        (Fault::reply(At::Greeting, "421 too busy"), 200, 500),
        (Fault::close(At::MailFrom), 200, 500),
        (Fault::reply(At::Rcpt, "450 4.2.0 greylisted"), 200, 500),
        (Fault::reply(At::Rcpt, "550 5.1.1 no such user"), 400, 400),
        (Fault::hang(At::Data), 500, 500),
        (Fault::reply(At::Dot, "451 try again"), 200, 500),
        (Fault::hang(At::Dot), 500, 500),
        (Fault::close(At::Dot), 500, 500),
        (Fault::hang(At::Quit), 200, 200),
        (Fault::close(At::Quit), 200, 200),
    ] {
        trying.spawn(failing_to_mail(Script::clear().first(fault.clone()), once));
        trying.spawn(failing_to_mail(Script::clear().always(fault), always));
    }
    // Cut in the middle, and what of it was lost in the sockets nobody knows.
    trying.spawn(failing_to_mail(Script::clear().always(Fault::close(At::Message)), 500));
    let mut ran = 0;
    while let Some(tried) = trying.join_next().await {
        tried.unwrap();
        ran += 1;
    }
    assert_eq!(ran, 25);
}

async fn failing_to_mail(script: Script, expected: u16) {
    let mailbox = Mailbox::start(script.clone()).await;
    let shim = mailing(&mailbox).await;
    let (client, secret) = (shim.client(), unique("secret"));
    let email = format!("{secret}@example.org");
    let answer = client.request_token("register", &email, &secret, 1).await;
    assert_eq!(answer.status, expected, "{script:?}: {}", answer.text());
    if answer.status == 200 {
        assert_eq!(mailbox.mails().len(), 1, "{script:?}");
        let waiting = client.register(&unique("unclicked"), creds(&answer.sid(), &secret)).await;
        assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()), "{script:?}");
    }
    // Every message whose last dot came, whether the server then said so or not.
    for mail in mailbox.messages().iter().take(1) {
        let link = mail.link();
        let sid = link.split("sid=").nth(1).unwrap().split('&').next().unwrap().to_owned();
        assert_eq!(client.click(&link).await.status, 200, "{script:?}: a mail that is out leads nowhere");
        client.register(&unique("clicked"), creds(&sid, &secret)).await.ok();
    }
}

/// S§5.9. The same for codes, which are given out once at most.
#[tokio::test(flavor = "multi_thread")]
async fn no_failure_of_the_gateway_loses_a_code_or_validates_anybody() {
    let mut ran = 0;
    for (does, expected) in [
        (Does::Breaks, 500),
        (Does::answer(500, "{}"), 500),
        (Does::answer(429, "{}"), 500),
        (Does::answer(400, "{}"), 500),
        (Does::Hangs(String::new()), 500),
        (Does::Hangs("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{".into()), 200),
        (Does::say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"), 200),
        (Does::say("nonsense\r\n\r\n"), 500),
        (Does::say(""), 500),
    ] {
        let gateway = Gateway::failing_first([does.clone()], Does::answer(200, "{}")).await;
        let wanted = phones::wanted(&gateway, "deadline = \"1s\"\n[limits]\nsms_per_number = \"100/1m\"\n");
        let shim = legacy("1.3.1").shim(wanted).await;
        let user = shim.client().logged_in(&shim.client().register_plainly(&unique("gateway")).await);
        let (number, secret) = (phones::number(), unique("secret"));
        let first = phones::request(&user, "account/3pid", &number, &secret, 1).await;
        assert_eq!(first.status, expected, "{does:?}: {}", first.text());
        let asked = match first.status {
            200 => first,
            // The attempt did not count: the same one once more is another message, with a code of its own.
            _ => phones::request(&user, "account/3pid", &number, &secret, 1).await,
        };
        let sid = asked.ok()["sid"].as_str().unwrap().to_owned();
        assert_eq!(user.add_3pid(creds(&sid, &secret)).await.status, 400, "{does:?}: nobody has clicked");
        phones::submit(&user, &sid, &secret, &phones::code(&gateway)).await.ok();
        user.add_3pid(creds(&sid, &secret)).await.ok();
        ran += 1;
    }
    assert_eq!(ran, 9);
}

/// What lies between the shim and Synapse.
struct Wire {
    address: String,
    /// 0: passes everything; 1: closes at once; 2: takes a request and hangs up; 3: cuts the answer in its head;
    /// 4: cuts it in its body.
    does: Arc<AtomicUsize>,
}

impl Wire {
    async fn to(homeserver: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, does) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicUsize::new(0)));
        let now = Arc::clone(&does);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, homeserver, now.load(Ordering::SeqCst)));
            }
        });
        Self { address, does }
    }
}

/// One connection, which the wire keeps for one exchange only.
async fn carry(mut client: TcpStream, homeserver: &str, does: usize) {
    let mut bytes = vec![0; 65_536];
    if does == 1 {
        return;
    }
    let Ok(came) = client.read(&mut bytes).await else { return };
    if does == 2 || came == 0 {
        return;
    }
    let mut server = TcpStream::connect(homeserver).await.unwrap();
    let head = String::from_utf8_lossy(&bytes[..came]).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    server.write_all(head.as_bytes()).await.unwrap();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut answer = Vec::new();
        from_server.read_to_end(&mut answer).await.ok();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0);
        let shown = match does {
            3 => end / 2,
            4 => end + 6,
            _ => answer.len(),
        };
        to_client.write_all(&answer[..shown]).await.ok();
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
    }
}

/// S§5.1, S§5.4, S§5.5. Whatever becomes of the request that completes, its session is still the user's.
#[tokio::test(flavor = "multi_thread")]
async fn no_failure_of_the_homeserver_loses_a_validated_session_or_a_mail() {
    let synapse = legacy("1.3.1");
    let wire = Wire::to(&synapse.address).await;
    let shim = Shim::before(&wire.address, synapse.door(), Wanted::config(ROOMY)).await;
    let client = shim.client();
    for does in 1..=4 {
        // While a token is asked for.
        let secret = unique("wire");
        let email = format!("{secret}@example.org");
        wire.does.store(does, Ordering::SeqCst);
        let asked = soon("an answer", client.request_token("register", &email, &secret, 1)).await;
        wire.does.store(0, Ordering::SeqCst);
        let mailed = shim.outbox().iter().filter(|mail| mail.contains(&secret)).count();
        // The identity door's verdict is the answer, however the homeserver's gets lost.
        assert_eq!((asked.status, mailed), if does < 3 { (502, 0) } else { (200, 1) }, "{does}: {}", asked.text());
        let sid = client.request_token("register", &email, &secret, 1).await.sid();
        assert_eq!(client.click(&shim.link(&sid)).await.status, 200, "{does}");
        // While the password is reset: done or not, it can be asked for again.
        let name = unique("wire");
        client.register(&name, creds(&sid, &secret)).await.ok();
        let reset_secret = unique("reset");
        let sid = shim.verify("account/password", &email, &reset_secret).await;
        wire.does.store(does, Ordering::SeqCst);
        let lost = soon("an answer", client.reset_password("changed", creds(&sid, &reset_secret))).await;
        wire.does.store(0, Ordering::SeqCst);
        assert!(lost.status == 502 || does == 4, "{does}: {}", lost.text());
        let again = client.reset_password("changed", creds(&sid, &reset_secret)).await;
        assert_eq!(again.status, 200, "{does}: the session is lost: {}", again.text());
        client.login(&email, "changed").await.ok();
    }
}

/// S§5.15. A clock that is a day ahead, and then set right, or back.
/// S§4.3.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_forth_and_back_by_a_day_loses_no_session_and_validates_none() {
    let redis = Redis::single().await;
    for store in ["", "[store]\nkind = \"file\"\n", &redis.servers[0].table()] {
        let shim = legacy("1.3.1").shim(Wanted::config(&format!("{store}{ROOMY}"))).await;
        set_forth_and_back(&shim, store).await;
    }
}

async fn set_forth_and_back(shim: &Shim, store: &str) {
    let day = Duration::from_secs(86_400);
    let from = |ip: &str| shim.client().with("X-Forwarded-For", ip);
    let client = from("192.0.2.1");
    let (secret, other) = (unique("clock"), unique("clock"));
    let validated = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
    let asked = client.request_token("register", &format!("{other}@example.org"), &other, 1).await.sid();
    let link = shim.link(&asked);
    shim.set_forth(day);
    assert_eq!(client.open(&link).await.status, 400, "{store}: expired by the clock");
    let late = client.register(&unique("late"), creds(&validated, &secret)).await;
    assert_eq!(late.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "{store}");
    let ahead = unique("ahead");
    let begun_ahead = client.request_token("register", &format!("{ahead}@example.org"), &ahead, 1).await.sid();
    shim.set_back(day);
    let client = from("192.0.2.2");
    client.register(&unique("right"), creds(&validated, &secret)).await.ok();
    let waiting = client.register(&unique("waiting"), creds(&asked, &other)).await;
    assert_eq!(waiting.verdict(), (401, "M_UNAUTHORIZED".into()), "{store}: nobody has clicked");
    for (sid, secret) in [(asked, other), (begun_ahead, ahead)] {
        assert_eq!(client.click(&shim.link(&sid)).await.status, 200, "{store}");
        client.register(&unique("clicked"), creds(&sid, &secret)).await.ok();
    }
    let (client, secret, expired) = (from("192.0.2.3"), unique("before"), unique("expired"));
    let ask = async |secret: &str| client.request_token("register", &format!("{secret}@example.org"), secret, 1).await;
    // What all share was taken from by a clock that ran ahead: it is full, and has room again at its own rate. Redis has
    // forgotten that by its own clock.
    if !store.contains("redis") {
        let full = ask(&secret).await;
        assert!(full.status == 429 && full.json()["retry_after_ms"] == 6, "{store}: {}", full.text());
    }
    shim.later(Duration::from_millis(6));
    let sid = ask(&secret).await.sid();
    shim.later(Duration::from_millis(6));
    let expired_sid = ask(&expired).await.sid();
    // A day and more before the start of the process: no span is negative, and what has elapsed has elapsed.
    shim.set_back(2 * day);
    assert_eq!(client.click(&shim.link(&sid)).await.status, 200, "{store}");
    client.register(&unique("before"), creds(&sid, &secret)).await.ok();
    shim.later(day / 2);
    shim.set_back(day);
    assert_eq!(
        client.open(&shim.link(&expired_sid)).await.status,
        400,
        "{store}: expired, whatever the wall clock says"
    );
    let revived = client.register(&unique("revived"), creds(&expired_sid, &expired)).await;
    assert_eq!(revived.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "{store}");
}
