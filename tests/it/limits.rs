//! How often one may ask, and how little an answer tells when existence is hidden.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Answer, Client, creds, request_token_path};
use crate::flows::registered;
use crate::homeserver::{self, Homeserver, soon};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::redis::Redis;
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

#[track_caller]
fn limited(answer: &Answer, seconds: u64) {
    assert_eq!(answer.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert_eq!(answer.json()["retry_after_ms"], seconds * 1000);
    assert_eq!(answer.header("retry-after"), Some(seconds.to_string().as_str()));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

/// The same, by clocks that are some milliseconds apart.
#[track_caller]
fn limited_on_each(answer: &Answer, seconds: u64) {
    assert_eq!(answer.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert_eq!(answer.header("retry-after"), Some(seconds.to_string().as_str()));
    assert!(answer.json()["retry_after_ms"].as_u64().unwrap() > (seconds - 1) * 1000);
}

/// S§4.6.
#[tokio::test]
async fn requests_are_limited_by_the_clients_ip_and_an_ipv6_client_is_its_64_bit_network() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", r#"{"sid":"theirs"}"#)).await;
    let wanted = Wanted::config("[limits]\nrequest_token_per_ip = \"3/30s\"\n");
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    let ask = async |client_ip: &str| {
        let client = shim.client().with("X-Forwarded-For", client_ip);
        client.request_token("register", &(unique("ip") + "@example.org"), "secret", 1).await
    };
    for (one, same, other) in [
        ("203.0.113.1", "203.0.113.1", "203.0.113.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:2::1"),
        ("::ffff:198.51.100.1", "198.51.100.1", "198.51.100.2"),
        ("9.9.9.9, 198.51.100.7", "8.8.8.8, 198.51.100.7", "198.51.100.7, 9.9.9.9"),
    ] {
        for client_ip in [one, same, one] {
            ask(client_ip).await.sid();
        }
        for client_ip in [one, same] {
            limited(&ask(client_ip).await, 10);
        }
        assert_eq!(ask(other).await.status, 200, "{other}");
    }
    shim.later(Duration::from_secs(9));
    limited(&ask("203.0.113.1").await, 1);
    shim.later(Duration::from_secs(1));
    assert_eq!(ask("203.0.113.1").await.status, 200);
    limited(&ask("203.0.113.1").await, 10);
    // Others' requests are the homeserver's to limit, and all else is not limited at all.
    let client = shim.client().with("X-Forwarded-For", "203.0.113.1");
    for _ in 0..5 {
        let body = json!({ "client_secret": "s", "email": "a@b.c", "send_attempt": 1, "id_server": "vector.im" });
        assert_eq!(client.post(&request_token_path("register"), body).await.status, 200);
        assert_eq!(client.register("name", creds("4711", "s")).await.status, 200);
    }
}

/// S§4.6, S§4.13.
#[tokio::test(flavor = "multi_thread")]
async fn mails_to_one_address_are_limited_with_all_its_plus_variants_on_every_homeserver() {
    for version in VERSIONS {
        let shim = legacy(version).shim(Wanted::config("[limits]\nrequest_token_per_address = \"3/30s\"\n")).await;
        let (client, name) = (shim.client(), unique("box"));
        let ask = async |local: &str, secret: &str, attempt| {
            client.request_token("register", &format!("{local}@example.org"), secret, attempt).await
        };
        let sid = ask(&name, "one", 1).await.sid();
        for _ in 0..5 {
            assert_eq!(ask(&name, "one", 1).await.sid(), sid, "a retry mails nothing and counts for nothing");
        }
        ask(&format!("{name}+a"), "two", 1).await.sid();
        ask(&format!("{}+B+c", name.to_uppercase()), "three", 1).await.sid();
        limited(&ask(&name, "four", 1).await, 10);
        limited(&ask(&format!("{name}+d"), "five", 1).await, 10);
        limited(&ask(&name, "one", 2).await, 10);
        assert_eq!(ask(&name, "one", 1).await.sid(), sid, "what was mailed stays answered");
        ask(&format!("{name}.x"), "six", 1).await.sid();
        shim.later(Duration::from_secs(10));
        assert_eq!(ask(&name, "one", 2).await.sid(), sid);
    }
}

/// S§4.6, as it is without a word in the configuration: the 6th mail within the hour, from addresses of many networks.
#[tokio::test(flavor = "multi_thread")]
async fn a_sixth_mail_to_one_address_within_the_hour_is_refused_from_whatever_ip() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    let email = unique("sixth") + "@example.org";
    let ask = async |network: usize| {
        let client = shim.client().with("X-Forwarded-For", &format!("2001:db8:{network:x}::1"));
        client.request_token("register", &email, &unique("secret"), 1).await
    };
    for network in 1..=5 {
        ask(network).await.sid();
        shim.later(Duration::from_secs(60));
    }
    limited(&ask(6).await, 720 - 5 * 60);
    assert_eq!(shim.outbox().len(), 5);
}

/// Where limits are counted, each with the shims that count there.
async fn everywhere(limits: &str) -> Vec<(&'static str, Vec<Shim>, Option<Redis>)> {
    let homeserver = legacy("1.3.1");
    let shim = async |table: &str| homeserver.shim(Wanted::config(&format!("{table}[limits]\n{limits}"))).await;
    let redis = Redis::single().await;
    let table = redis.servers[0].table();
    vec![
        ("memory", vec![shim("").await], None),
        ("file", vec![shim("[store]\nkind = \"file\"\n").await], None),
        ("redis", vec![shim(&table).await, shim(&table).await], Some(redis)),
    ]
}

/// S§4.6.
#[tokio::test(flavor = "multi_thread")]
async fn mails_for_one_client_secret_are_limited_whatever_the_addresses() {
    for (store, shims, _redis) in everywhere("request_token_per_client_secret = \"4/40s\"\n").await {
        let secret = unique("secret");
        let ask = async |turn: usize, secret: &str, email: &str, attempt| {
            let client = shims[turn % shims.len()].client();
            client.request_token("register", email, secret, attempt).await
        };
        let first = unique("first") + "@example.org";
        let sid = ask(0, &secret, &first, 1).await.sid();
        for turn in 0..5 {
            assert_eq!(
                ask(turn, &secret, &first, 1).await.sid(),
                sid,
                "{store}: a retry mails nothing and counts for nothing"
            );
        }
        for turn in 1..4 {
            ask(turn, &secret, &(unique("other") + "@example.org"), 1).await.sid();
        }
        for turn in 0..2 {
            limited_on_each(&ask(turn, &secret, &(unique("fifth") + "@example.org"), 1).await, 10);
        }
        limited_on_each(&ask(0, &secret, &first, 2).await, 10);
        ask(1, &unique("another"), &first, 1).await.sid();
        let mailed: usize = shims.iter().map(|shim| shim.outbox().len()).sum();
        assert_eq!(mailed, 5, "{store}");
        for shim in &shims {
            shim.later(Duration::from_secs(11));
        }
        assert_eq!(ask(0, &secret, &first, 2).await.sid(), sid, "{store}");
    }
}

/// S§4.6.
#[tokio::test(flavor = "multi_thread")]
async fn mails_in_all_are_limited_whoever_asks_for_whom() {
    for (store, shims, _redis) in everywhere("email_total = \"4/40s\"\n").await {
        let ask = async |turn: usize| {
            let client = shims[turn % shims.len()].client().with("X-Forwarded-For", &format!("203.0.113.{turn}"));
            client.request_token("register", &(unique("any") + "@example.org"), &unique("secret"), 1).await
        };
        for turn in 0..4 {
            ask(turn).await.sid();
        }
        for turn in 4..8 {
            limited_on_each(&ask(turn).await, 10);
        }
        let mailed: usize = shims.iter().map(|shim| shim.outbox().len()).sum();
        assert_eq!(mailed, 4, "{store}");
        for shim in &shims {
            shim.later(Duration::from_secs(11));
        }
        ask(8).await.sid();
        assert_eq!(ask(9).await.status, 429, "{store}");
    }
}

/// S§4.6: or a mail server that is out of order for an hour would lock everybody out for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_could_not_be_sent_and_one_that_another_limit_refused_are_given_back() {
    let redis = Redis::single().await;
    for (store, table) in [("memory", String::new()), ("redis", redis.servers[0].table())] {
        let limits = "[limits]\nemail_total = \"2/40s\"\nrequest_token_per_client_secret = \"2/40s\"\nrequest_token_per_address = \"1/40s\"\n";
        let refused = Fault::reply(At::Rcpt, "550 5.1.1 no such user");
        let mailbox = Mailbox::start(Script::clear().first(refused)).await;
        let wanted = Wanted::config(&format!("{table}{limits}")).mailing_to(mailbox.address());
        let shim = legacy("1.3.1").shim(wanted).await;
        let secret = unique("secret");
        let [unsent, email, other] = ["unsent", "sent", "other"].map(|name| unique(name) + "@example.org");
        let ask = async |email: &str, attempt| shim.client().request_token("register", email, &secret, attempt).await;
        assert_eq!(ask(&unsent, 1).await.verdict(), (400, "M_EMAIL_SEND_ERROR".into()), "{store}");
        ask(&email, 1).await.sid();
        limited(&ask(&email, 2).await, 40);
        limited(&ask(&email, 3).await, 40);
        ask(&other, 1).await.sid();
        limited(&ask(&(unique("third") + "@example.org"), 1).await, 20);
        assert_eq!(mailbox.mails().len(), 2, "{store}");
    }
}

#[tokio::test]
async fn links_tried_are_limited_by_the_clients_ip() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let wanted = Wanted::config("[limits]\nsubmit_token_per_ip = \"3/30s\"\n");
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    let page = "/_matrix/client/unstable/threepid_shim/register/email/submit_token?sid=x&client_secret=s&token=t";
    let client = |ip: &str| shim.client().with("X-Forwarded-For", ip);
    for method in ["GET", "POST", "GET"] {
        assert_eq!(client("203.0.113.1").send(method, page, b"").await.status, 400);
    }
    for method in ["GET", "POST"] {
        let answer = client("203.0.113.1").send(method, page, b"").await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some("10")));
        assert!(answer.header("content-type").unwrap().starts_with("text/html"), "a person reads it");
    }
    assert_eq!(client("203.0.113.2").get(page).await.status, 400);
    shim.later(Duration::from_secs(10));
    assert_eq!(client("203.0.113.1").get(page).await.status, 400);
}

async fn hiding(script: Script) -> (Shim, Mailbox) {
    let mailbox = Mailbox::start(script).await;
    let wanted = Wanted::config(&format!("{ROOMY}[session]\nhide_existence = true\n")).mailing_to(mailbox.address());
    (legacy("1.3.1").shim(wanted).await, mailbox)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    f64::midpoint(times[times.len() / 2 - 1], times[times.len() / 2])
}

/// S§4.7.
#[tokio::test(flavor = "multi_thread")]
async fn with_hide_existence_no_answer_tells_whether_an_address_has_an_account() {
    let (shim, mailbox) = hiding(Script::clear().always(Fault::hold(At::Rcpt))).await;
    let outbox = legacy("1.3.1").shim(Wanted::default()).await;
    let (_, known) = registered(&outbox).await;
    let ask = |purpose: &'static str, email: String| {
        let client = shim.client();
        async move {
            let began = Instant::now();
            let answer = client.request_token(purpose, &email, &unique("secret"), 1).await;
            (answer, began.elapsed())
        }
    };
    let shape = |answer: &Answer| {
        let names: Vec<_> = answer.headers.iter().map(|(name, _)| name.clone()).collect();
        let sid = answer.clone().sid();
        assert!(sid.starts_with("shim_"));
        (answer.status, names, answer.body.len(), sid.len(), answer.json().as_object().unwrap().len())
    };
    let (mut of_known, mut of_unknown, mut apart) = (Vec::new(), Vec::new(), Vec::new());
    let mut shapes = std::collections::HashSet::new();
    // A pair runs side by side, and either kind begins as often, so that whatever else this machine does befalls both.
    for purpose in ["register", "account/password", "account/3pid"] {
        for _ in 0..2 {
            let pairs = (0..10).map(|turn| {
                let (known, unknown) = (ask(purpose, known.clone()), ask(purpose, unique("unknown") + "@example.org"));
                tokio::spawn(async move {
                    if turn % 2 == 0 {
                        return tokio::join!(known, unknown);
                    }
                    let (unknown, known) = tokio::join!(unknown, known);
                    (known, unknown)
                })
            });
            for pair in pairs.collect::<Vec<_>>() {
                let ((one, of_one), (other, of_other)) = pair.await.unwrap();
                shapes.extend([shape(&one), shape(&other)]);
                apart.push(of_one.as_secs_f64() - of_other.as_secs_f64());
                of_known.push(of_one.as_secs_f64());
                of_unknown.push(of_other.as_secs_f64());
            }
        }
    }
    assert_eq!((of_known.len(), of_unknown.len(), shapes.len()), (60, 60, 1), "{shapes:?}");
    let medians = [median(of_known), median(of_unknown)];
    // Of the pairs' differences, and not of the two medians: a busy machine makes those differ by itself.
    let apart = median(apart).abs();
    assert!(apart < 0.005, "{apart} s apart; medians {medians:?}");
    assert!(mailbox.mails().is_empty() && mailbox.connections() > 0, "every mail is still on its way");
}

/// S§4.7.
#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_address_gets_no_mail_and_its_session_never_validates() {
    let (shim, mailbox) = hiding(Script::clear()).await;
    let client = shim.client();
    let outbox = legacy("1.3.1").shim(Wanted::default()).await;
    let (_, known) = registered(&outbox).await;
    let (secret, unknown) = (unique("secret"), unique("unknown") + "@example.org");
    let hidden = client.request_token("account/password", &unknown, &secret, 1).await.sid();
    let taken = client.request_token("register", &known, &secret, 1).await.sid();
    let sid = client.request_token("account/password", &known, &secret, 1).await.sid();
    assert_eq!(client.request_token("account/password", &unknown, &secret, 1).await.sid(), hidden, "as a retry is");

    let mail = mailbox.wait_for_mail().await;
    assert_eq!((mail.to.as_slice(), mailbox.mails().len()), ([known.clone()].as_slice(), 1));
    for (sid, completed) in [
        (&hidden, client.reset_password("new", creds(&hidden, &secret)).await),
        (&taken, client.register(&unique("taken"), creds(&taken, &secret)).await),
        (&sid, client.reset_password("new", creds(&sid, &secret)).await),
    ] {
        assert_eq!(completed.verdict(), (401, "M_UNAUTHORIZED".into()), "{sid}: keep waiting");
    }
    let link = mail.link();
    let forged = client.open(&link.replace(&sid, &hidden)).await;
    let wrong = client.open(&link.replace("token=", "token=0")).await;
    assert_eq!((forged.status, forged.text()), (400, wrong.text()), "no token of it was ever mailed");
    assert_eq!(client.click(&link).await.status, 200);
    client.reset_password("new", creds(&sid, &secret)).await.ok();
    client.login(&known, "new").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hide_existence_a_failed_mail_is_the_operators_to_see_and_faults_are_still_told() {
    let (shim, mailbox) = hiding(Script::clear().always(Fault::reply(At::Rcpt, "550 5.1.1 no such user"))).await;
    let client = shim.client();
    let email = unique("refused") + "@example.org";
    let sid = client.request_token("register", &email, "secret", 1).await.sid();
    assert!(sid.starts_with("shim_"));
    let admin = Client::of(&shim.admin);
    let line = "threepid_shim_deliveries_total{medium=\"email\",outcome=\"rcpt\"} 1";
    soon("the failure is counted", async { while !admin.get("/metrics").await.text().contains(line) {} }).await;
    assert_eq!((mailbox.connections(), mailbox.mails().len()), (1, 0));
    let faulty = client.request_token("register", "no address", "secret", 1).await;
    assert_eq!(faulty.verdict(), (400, "M_INVALID_PARAM".into()));
}
