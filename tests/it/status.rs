//! The status page: what the operator sees of a flow, of each neighbour that fails, and in a real browser.

use serde_json::{Value, json};

use crate::browser::chromium::open;
use crate::client::{Answer, Client, PASSWORD, creds, request_token_path};
use crate::gateway::{Does, Gateway};
use crate::homeserver::{self, Conversation, Homeserver, soon};
use crate::legacy::{legacy, unique};
use crate::mailbox::{At, Fault, Mailbox, Script};
use crate::phones;
use crate::redis::Server;
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
const REQUEST_TOKEN: &str = "/_matrix/client/r0/register/email/requestToken";

async fn status(shim: &Shim) -> Value {
    Client::of(&shim.admin).get("/status").await.ok()
}

/// Until what is looked at shows.
async fn until(shim: &Shim, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    soon(what, async {
        loop {
            let status = status(shim).await;
            if is(&status) {
                return status;
            }
        }
    })
    .await
}

/// Of a series of the last hour.
fn sum(series: &Value) -> u64 {
    let series = series.as_array().unwrap();
    assert_eq!(series.len(), 60);
    series.iter().map(|count| count.as_u64().unwrap()).sum()
}

fn refusal(of: &Value) -> (&str, &str, u64, &str, &str) {
    let text = |name: &str| of[name].as_str().unwrap_or_default();
    assert_eq!(text("request_id").len(), 16, "{of}");
    (text("route"), text("by"), of["status"].as_u64().unwrap(), text("errcode"), text("fault"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_flow_shows_and_nothing_of_whose_it_is() {
    let refusing = Fault::reply(At::MailFrom, "550 5.7.1 go away");
    let mailbox = Mailbox::start(Script::clear().first(refusing)).await;
    let shim = legacy("1.3.1").shim(Wanted::default().mailing_to(mailbox.address())).await;
    let client = shim.client().with("X-Forwarded-For", "203.0.113.77");
    let (name, secret) = (unique("status-of"), unique("status-secret"));
    let email = format!("{name}@private.example");

    let at_first = status(&shim).await;
    assert_eq!((&at_first["state"], &at_first["attention"]), (&json!("good"), &json!([])), "{at_first:#}");
    assert!(at_first["homeserver"]["software"].as_str().unwrap().starts_with("Synapse/1.3.1"), "{at_first:#}");
    assert_eq!(at_first["homeserver"]["needs_shim"], true);
    for unused in ["trust", "email", "sms"] {
        assert_eq!(at_first[unused]["state"], "unknown", "{at_first:#}");
    }
    assert_eq!(at_first["routes"]["register.email"], "handle");
    let doors = at_first["doors"].as_array().unwrap();
    let at: Vec<_> = doors.iter().map(|door| (door["name"].as_str().unwrap(), &door["addresses"][0])).collect();
    let identity = shim.identity.replace("localhost", "127.0.0.1");
    assert_eq!(at, [("clients", &json!(shim.clients)), ("identity", &json!(identity)), ("admin", &json!(shim.admin))]);

    assert_eq!(client.request_token("register", &email, &secret, 1).await.errcode(), "M_EMAIL_SEND_ERROR");
    let failing = status(&shim).await;
    assert_eq!((&failing["state"], &failing["email"]["state"]), (&json!("bad"), &json!("bad")), "{failing:#}");
    assert_eq!(failing["attention"], json!(["Mail: fails at stage mail_from, see the log"]));
    assert_eq!((&failing["email"]["failed"]["what"], &failing["email"]["worked"]), (&json!("mail_from"), &Value::Null));
    assert_eq!(failing["trust"]["state"], "good", "it has called back: {failing:#}");
    assert_eq!(refusal(&failing["refusals"][0]), ("register.email", "shim", 500, "M_EMAIL_SEND_ERROR", "smtp"));

    let sid = client.request_token("register", &email, &secret, 1).await.sid();
    let link = mailbox.wait_for_mail().await.link();
    assert_eq!(client.register(&name, creds(&sid, &secret)).await.status, 401, "told to wait, which refuses nothing");
    client.open(&link.replace("token=", "token=0")).await;
    assert_eq!(client.click(&link).await.status, 200);
    let login = client.register(&name, creds(&sid, &secret)).await.ok();
    assert_eq!(client.request_token("register", &email, &unique("secret"), 1).await.errcode(), "M_THREEPID_IN_USE");
    client.get("/_matrix/client/r0/login").await.ok();
    let well = status(&shim).await;
    assert_eq!((&well["state"], &well["email"]["state"]), (&json!("good"), &json!("good")), "{well:#}");
    assert!(well["email"]["worked"].is_u64() && well["email"]["took_ms"].is_u64() && well["store"]["worked"].is_u64());
    let refusals = well["refusals"].as_array().unwrap();
    let expected = [
        ("register.email", "homeserver", 400, "M_THREEPID_IN_USE", "client"),
        ("confirm", "shim", 400, "", "client"),
        ("register.email", "shim", 500, "M_EMAIL_SEND_ERROR", "smtp"),
    ];
    assert_eq!(refusals.iter().map(refusal).collect::<Vec<_>>(), expected);
    let hour = &well["last_hour"];
    let sums = [("delivered", 1), ("failed", 1)].map(|(kind, count)| (sum(&hour["deliveries"][kind]), count));
    assert_eq!(sums.map(|(found, _)| found), sums.map(|(_, expected)| expected));
    assert_eq!((sum(&hour["intercepted"]["refused"]), sum(&hour["intercepted"]["relayed"])), (1, 7), "{hour}");
    assert!(sum(&hour["forwarded"]["2xx"]) >= 1 && sum(&hour["forwarded"]["unreachable"]) == 0, "{hour}");
    assert!(hour["intercepted_us"]["hour"][0].is_u64() && hour["delivery_us"]["hour"][2].is_u64(), "{hour}");

    for _ in 0..25 {
        client.post(REQUEST_TOKEN, json!({ "email": email })).await;
    }
    let full = status(&shim).await;
    let refusals = full["refusals"].as_array().unwrap();
    assert_eq!((refusals.len(), refusal(&refusals[19]).3), (20, "M_MISSING_PARAM"));
    let page = Client::of(&shim.admin).get("/").await;
    assert_eq!(page.status, 200, "{}", page.text());
    let token = link.split("token=").nth(1).unwrap().split('&').next().unwrap();
    let access_token = login["access_token"].as_str().unwrap();
    for (place, text) in [("page", page.text()), ("JSON", full.to_string()), ("JSON before", well.to_string())] {
        for private in
            [&email, &name, "private.example", &secret, &sid, token, access_token, PASSWORD, "203.0.113.77", "go away"]
        {
            assert!(!text.contains(private), "{private} is in the {place}: {text}");
        }
    }

    shim.later(std::time::Duration::from_secs(3600));
    let later = status(&shim).await;
    assert_eq!(sum(&later["last_hour"]["deliveries"]["delivered"]), 0, "an hour is over");
    assert!(Client::of(&shim.admin).get("/").await.text().contains("60 min ago"), "{later:#}");
}

/// DNS rebinding: a page of somebody else's reads what a name of his own shows.
#[tokio::test]
async fn by_a_name_of_somebody_elses_neither_page_nor_session_is_shown() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", "{}")).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    let mut ran = 0;
    for (target, by_ours, by_his) in [
        ("/", 200, 421),
        ("/status", 200, 421),
        ("/sessions/shim_0123456789abcdef0123456789abcdef", 404, 421),
        ("/sessions/", 404, 421),
        ("/metrics", 200, 200),
        ("/healthz", 200, 200),
    ] {
        for (host, expected) in [("localhost:9091", by_ours), ("evil.example.com", by_his)] {
            let mut client = Conversation::with(shim.admin.parse().unwrap()).await;
            client.write(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(client.answer(false).await.unwrap().status(), expected, "{target} by {host}");
            ran += 1;
        }
    }
    assert_eq!(ran, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_does_not_trust_us_is_told_from_one_that_cannot_reach_us_and_from_a_stranger() {
    let ask = async |shim: &Shim| {
        shim.client().request_token("register", &format!("{}@example.org", unique("t")), &unique("secret"), 1).await
    };
    let untrusted = Wanted { identity_name: Some("localhost:1".into()), ..Wanted::default() };
    let shim = legacy("1.3.1").shim(untrusted).await;
    assert_eq!(ask(&shim).await.errcode(), "M_SERVER_NOT_TRUSTED");
    let said = status(&shim).await;
    assert_eq!((&said["state"], &said["trust"]["failed"]["what"]), (&json!("bad"), &json!("not_trusted")), "{said:#}");
    assert!(said["attention"][0].as_str().unwrap().contains("trusted_third_party_id_servers"), "{said:#}");
    assert_eq!(refusal(&said["refusals"][0]).1, "homeserver");

    // Nobody listens where the name leads: Synapse tries for a moment and answers 500.
    let unreached = Wanted { identity_name: Some(shim.identity.clone()), ..Wanted::default() };
    let door = shim.identity.clone();
    shim.signals.now.cancel();
    soon("the door closes", async {
        while tokio::net::TcpStream::connect(door.replace("localhost", "127.0.0.1")).await.is_ok() {}
    })
    .await;
    let shim = legacy("1.3.1").shim(unreached).await;
    assert_eq!(ask(&shim).await.status, 500);
    let said = status(&shim).await;
    assert_eq!((&said["state"], &said["trust"]["failed"]["what"]), (&json!("bad"), &json!("no_callback")), "{said:#}");

    let strange = Wanted { identity: "allowed_peers = [\"192.0.2.0/24\"]".into(), ..Wanted::default() };
    let shim = legacy("1.3.1").shim(strange).await;
    assert_eq!(ask(&shim).await.errcode(), "M_FORBIDDEN");
    let said = status(&shim).await;
    assert_eq!((&said["state"], &said["trust"]["state"]), (&json!("warning"), &json!("warning")), "{said:#}");
    assert!(said["trust"]["stranger"].is_u64() && !said.to_string().contains("192.0.2"), "{said:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_is_gone_shows_at_the_next_look_and_so_does_its_return() {
    let old = || homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#);
    let homeserver = Homeserver::answering(old()).await;
    let address = homeserver.address;
    let mut redis = Server::start(&[]).await;
    let config = redis.table();
    let shim = Shim::before(&address.to_string(), Reserved::new(1).take(), Wanted::config(&config)).await;
    let well = |status: &Value| status["state"] == "good";
    let said = until(&shim, "all is well", well).await;
    assert_eq!(said["store"]["at"], format!("Redis at 127.0.0.1:{}", redis.port));
    assert_eq!(said["homeserver"]["software"], Value::Null, "it does not say");
    drop(homeserver);
    redis.kill();
    let said = until(&shim, "both are missed", |status| status["attention"].as_array().unwrap().len() == 2).await;
    assert_eq!((&said["homeserver"]["state"], &said["store"]["state"]), (&json!("bad"), &json!("bad")), "{said:#}");
    assert!(said["homeserver"]["failing_since"].is_u64() && said["store"]["failing_since"].is_u64(), "{said:#}");
    let link = "/_matrix/client/unstable/threepid_shim/register/email/submit_token?token=t&sid=s&client_secret=c";
    assert_eq!(shim.client().get(link).await.status, 503);
    let said = status(&shim).await;
    assert_eq!(refusal(&said["refusals"][0]), ("confirm", "shim", 503, "", "store"));
    assert_eq!(said["refusals"][0]["reason"], "store unavailable");
    let _back = Homeserver::at(address, move |_| old()).await;
    redis.start_again().await;
    let said = until(&shim, "all is well again", well).await;
    assert!(said["homeserver"]["failed"]["at"].is_u64(), "what was is remembered: {said:#}");

    std::fs::write(shim.config_file(), "server_name = 1\n").unwrap();
    shim.signals.reload.notify_one();
    let said = until(&shim, "a reload has failed", |status| status["config"]["faults"] != 0).await;
    assert_eq!((&said["state"], &said["config"]["state"]), (&json!("warning"), &json!("warning")), "{said:#}");
    shim.signals.drain.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_shown_as_of_its_last_message() {
    let gateway = Gateway::failing_first([Does::answer(500, "{}")], Does::answer(200, "{}")).await;
    let shim = legacy("1.3.1").shim(phones::wanted(&gateway, ROOMY)).await;
    let (client, number) = (shim.client(), phones::number());
    assert_eq!(status(&shim).await["sms"]["state"], "unknown");
    let refused = phones::request(&client, "register", &number, &unique("secret"), 1).await;
    assert_eq!(refused.errcode(), "M_SEND_ERROR");
    let said = status(&shim).await;
    assert_eq!((&said["sms"]["state"], &said["sms"]["failed"]["what"]), (&json!("bad"), &json!("gateway")), "{said:#}");
    assert_eq!(refusal(&said["refusals"][0]), ("register.msisdn", "shim", 500, "M_SEND_ERROR", "sms"));
    phones::request(&client, "register", &number, &unique("secret"), 1).await.sid();
    let said = status(&shim).await;
    assert_eq!((&said["state"], &said["sms"]["state"]), (&json!("good"), &json!("good")), "{said:#}");
    assert!(said["sms"]["at"].as_str().unwrap().starts_with(&gateway.address().to_string()), "{said:#}");
    let text = said.to_string() + &Client::of(&shim.admin).get("/").await.text();
    for written in [number.trim_start_matches('0').to_owned(), number.replace(' ', "").split_off(1)] {
        assert!(!text.contains(&written), "{text}");
    }
}

/// What is remembered of requests is remembered of the shim's own: an ordinary one adds to the counters it had before.
#[test]
fn the_ordinary_requests_way_knows_nothing_of_the_page() {
    let way = ["front/fast", "front/forward", "homeserver", "wire", "serve"];
    let of_way = |file: &std::path::PathBuf| {
        let room = file.strip_prefix(SRC).unwrap().with_extension("");
        way.iter().any(|one| room.starts_with(one))
    };
    let files: Vec<_> = crate::layers::files(std::path::Path::new(SRC)).into_iter().filter(of_way).collect();
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("recent") && !text.contains("Recent"), "{file:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_ends_is_told_in_time() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    let said = until(&shim, "it has been looked at", |status| status["doors"][1]["certificate_ends"].is_u64()).await;
    assert_eq!((&said["state"], &said["doors"][0]["certificate_ends"]), (&json!("good"), &Value::Null), "{said:#}");
    let (now, ends) = (said["now"].as_u64().unwrap(), said["doors"][1]["certificate_ends"].as_u64().unwrap());
    let day = std::time::Duration::from_secs(24 * 60 * 60);
    shim.later(std::time::Duration::from_millis(ends - now) - 29 * day);
    let said = status(&shim).await;
    assert_eq!((&said["state"], said["attention"].as_array().unwrap().len()), (&json!("warning"), 1), "{said:#}");
    shim.later(29 * day);
    let said = status(&shim).await;
    assert_eq!(said["attention"], json!(["Certificate of the identity door: it has expired"]), "{said:#}");
}

/// The page can be read by whoever reaches the door, and by no website that its operator has open beside it.
#[tokio::test]
async fn the_pages_fields_let_no_other_site_read_frame_or_feed_it() {
    let hostile = "HTTP/1.1 200 OK\r\nServer: </style><img src=x onerror=\"alert(1)\">\r\n\
                   Content-Type: application/json\r\nContent-Length: 23\r\n\r\n{\"versions\":[\"r0.5.0\"]}";
    let homeserver = Homeserver::answering(hostile).await;
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), Wanted::default()).await;
    let admin = Client::of(&shim.admin);
    for (path, kind) in [("/", "text/html; charset=utf-8"), ("/status", "application/json")] {
        let answer = admin.clone().with("Origin", "https://evil.example").get(path).await;
        let fields = [
            ("content-type", kind),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("cross-origin-resource-policy", "same-origin"),
            ("x-robots-tag", "noindex"),
        ];
        for (name, value) in fields {
            assert_eq!(answer.header(name), Some(value), "{path} {name}");
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.ends_with("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        let cors: Vec<_> = answer.headers.iter().filter(|(name, _)| name.starts_with("access-control")).collect();
        assert!(cors.is_empty() && answer.header("set-cookie").is_none(), "{cors:?}");
        let rebound = |host: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let told = async |host: &str| -> Answer {
            crate::client::parse(&crate::client::raw(&shim.admin, rebound(host).as_bytes()).await)
        };
        let foreign = told("evil.example:9091").await;
        assert_eq!((foreign.status, foreign.text().contains("example.org")), (421, false), "{}", foreign.text());
        assert_eq!(told("status.example.org").await.status, 200);
        assert_eq!(admin.send("POST", path, b"").await.status, 404);
        assert_eq!(shim.client().get(path).await.json()["versions"][0], "r0.5.0", "not on the client door");
    }
    let page = admin.get("/").await.text();
    assert!(page.contains("&lt;img src=x") && !page.contains("<img"), "what the homeserver says is text: {page}");
    let head = admin.send("HEAD", "/", b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_updates_itself_in_a_browser_and_asks_nobody_else_for_anything() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    shim.verify("register", &format!("{}@example.org", unique("page")), &unique("secret")).await;
    let url = format!("http://{}/", shim.admin);
    let refused = format!("http://{}{}", shim.clients, request_token_path("register"));
    let mut grounds = Vec::new();
    for options in [&["--mobile"][..], &["--dark"], &["--mobile", "--dark", "--no-js"]] {
        let shown = open(&url, options);
        assert_eq!((shown.status(), shown.0["lang"].as_str()), (200, Some("en")));
        for said in ["example.org", "All is well", "Synapse/1.3.1", "the homeserver calls back", "account_3pid_add"] {
            assert!(shown.text().contains(said), "no {said} in {}", shown.text());
        }
        assert!(shown.fits(), "{options:?}: to be scrolled sideways");
        assert_eq!(shown.console(), [""; 0], "{options:?}");
        grounds.push(shown.0["background"].as_str().unwrap().to_owned());
    }
    assert!(grounds[0] != grounds[1] && grounds[1] == grounds[2], "{grounds:?}");

    let shown = open(&url, &["--post", &refused, "--until", "M_MISSING_PARAM"]);
    assert!(!shown.before().text().contains("M_MISSING_PARAM"), "{}", shown.before().text());
    assert_eq!(shown.0["loads"], 1, "without loading the page again");
    assert!(shown.text().contains("M_MISSING_PARAM") && shown.fits(), "{}", shown.text());
    assert_eq!(shown.console(), [""; 0]);
    let requests = shown.requests();
    assert!(requests.len() > 1 && requests.iter().all(|request| *request == format!("GET {url}")), "{requests:?}");

    let lost = open(&url, &["--cut", "--until", "The shim does not answer"]);
    assert!(!lost.before().text().contains("does not answer"), "{}", lost.before().text());
    assert!(lost.text().contains("All is well"), "what was known stays to be read: {}", lost.text());
}
