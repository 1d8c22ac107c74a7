//! Redis gone: refused in time whatever needs it, nothing that was on its way lost, and well again by itself.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Client, creds};
use crate::homeserver::{self, Homeserver, soon};
use crate::legacy::{legacy, unique};
use crate::phones;
use crate::redis::Server;
use crate::secure::{API, FORM, JSON, call, get_validated_3pid};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

/// What every request that needs the store is answered while there is none, and ordinary ones meanwhile.
async fn refused(what: &str, shim: &Shim) {
    let (client, sid) = (shim.client(), "shim_00112233445566778899aabbccddeeff");
    let link = format!("sid={sid}&client_secret=s3cr3t&token={}", "00112233445566778899aabbccddeeff".repeat(2));
    let page = "/_matrix/client/unstable/threepid_shim/register/email/submit_token";
    let form = client.clone().with("Content-Type", FORM).with("Sec-Fetch-Site", "same-origin");
    let mail = json!({ "client_secret": "s3cr3t", "email": "a@example.org", "send_attempt": 1 }).to_string();
    for name in [
        "requestToken",
        "completion",
        "page",
        "button",
        "code",
        "the homeserver's requestToken",
        "the homeserver's getValidated3pid",
    ] {
        let began = Instant::now();
        let answer = match name {
            "requestToken" => client.request_token("register", "a@example.org", "s3cr3t", 1).await,
            "completion" => client.register("name", creds(sid, "s3cr3t")).await,
            "page" => client.get(&format!("{page}?{link}")).await,
            "button" => form.send("POST", page, link.as_bytes()).await,
            "code" => phones::submit(&client, sid, "s3cr3t", "123456").await,
            "the homeserver's requestToken" => {
                call(&shim.identity, "POST", &format!("{API}validate/email/requestToken"), JSON, &mail).await
            }
            _ => get_validated_3pid(&shim.identity, sid, "s3cr3t").await,
        };
        let took = began.elapsed();
        assert_eq!(answer.status, 503, "{what}: {name}: {}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{what}: {name}");
        assert!(took < Duration::from_secs(2), "{what}: {name} took {took:?}");
        if matches!(name, "page" | "button") {
            assert!(answer.text().contains("<html"), "{what}: {name}: {}", answer.text());
        } else {
            assert_eq!(answer.errcode(), "M_UNKNOWN", "{what}: {name}");
        }
        assert!(ordinary(&client, what).await < Duration::from_secs(1), "{what}: {name}");
    }
}

/// How long it takes.
async fn ordinary(client: &Client, what: &str) -> Duration {
    let began = Instant::now();
    assert_eq!(client.get("/_matrix/client/r0/login").await.status, 200, "{what}");
    began.elapsed()
}

/// Verifications on their way: one that is mailed, one that is confirmed, and one whose link nobody opens.
struct OnTheirWay {
    secret: String,
    mailed: String,
    confirmed: String,
    unopened: String,
}

impl OnTheirWay {
    async fn begin(shim: &Shim) -> Self {
        let secret = unique("secret");
        let ask = async |what| {
            let email = format!("{}@example.org", unique(what));
            shim.client().request_token("register", &email, &secret, 1).await.sid()
        };
        let (mailed, unopened) = (ask("mailed").await, ask("unopened").await);
        let confirmed = shim.verify("register", &format!("{}@example.org", unique("confirmed")), &secret).await;
        Self { secret, mailed, confirmed, unopened }
    }

    /// What holds whatever has happened to the store.
    async fn end(&self, shim: &Shim, what: &str) {
        let client = shim.client();
        let register = async |sid: &str| client.register(&unique("survivor"), creds(sid, &self.secret)).await;
        let early = register(&self.unopened).await;
        assert_eq!(early.status, 401, "{what}: {}", early.text());
        let confirmed = register(&self.confirmed).await;
        assert_eq!(confirmed.status, 200, "{what}: {}", confirmed.text());
        let early = register(&self.mailed).await;
        assert_eq!(early.status, 401, "{what}: {}", early.text());
        assert_eq!(client.click(&shim.link(&self.mailed)).await.status, 200, "{what}");
        let confirmed = register(&self.mailed).await;
        assert_eq!(confirmed.status, 200, "{what}: {}", confirmed.text());
    }
}

/// S§5.10.
#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_gone_ordinary_traffic_goes_on_and_nothing_is_verified_and_it_heals_by_itself() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let shim = legacy("1.3.1").shim(Wanted::config(&format!("{}{ROOMY}", server.table()))).await;
    let (client, admin) = (shim.client(), Client::of(&shim.admin));
    let email = format!("{}@example.org", unique("works"));
    let works = async || client.request_token("register", &email, "s3cr3t", 1).await;
    let ready = async || {
        let ready = admin.get("/readyz").await;
        (ready.status, ready.text())
    };
    works().await.sid();
    assert_eq!(ready().await, (200, "ready\n".into()));
    for what in ["killed", "partitioned", "full"] {
        let on_their_way = OnTheirWay::begin(&shim).await;
        match what {
            "killed" => server.kill(),
            "partitioned" => server.signal("-STOP"),
            _ => drop(server.say(&["CONFIG", "SET", "maxmemory", "1"])),
        }
        if what == "full" {
            // What is there can still be read.
            let OnTheirWay { secret, mailed, confirmed, .. } = &on_their_way;
            let registering = client.register("name", creds(confirmed, secret)).await;
            for refused in [works().await, registering] {
                assert_eq!(refused.verdict(), (503, "M_UNKNOWN".into()), "{what}");
            }
            assert_eq!(
                client.open(&shim.link(mailed)).await.status,
                503,
                "{what}: nobody knows how often it was tried"
            );
            assert!(ordinary(&client, what).await < Duration::from_secs(1), "{what}");
        } else {
            refused(what, &shim).await;
        }
        let (status, said) = ready().await;
        assert_eq!(status, 200, "{what}");
        if what != "full" {
            assert!(said.contains("sessions cannot be kept"), "{what}: {said}");
        }
        match what {
            "killed" => server.start_again().await,
            "partitioned" => server.signal("-CONT"),
            _ => drop(server.say(&["CONFIG", "SET", "maxmemory", "0"])),
        }
        let began = Instant::now();
        soon("it heals", async { while works().await.status != 200 {} }).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{what}: healed after {:?}", began.elapsed());
        assert_eq!(ready().await, (200, "ready\n".into()));
        on_their_way.end(&shim, what).await;
    }
    let metrics = admin.get("/metrics").await.text();
    assert!(!metrics.contains("store_errors_total{operation=\"limit\"} 0"), "{metrics}");
}

/// S§5.10.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_starts_without_redis_and_finds_it_later() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)).await;
    let mut server = Server::start(&[]).await;
    server.kill();
    let wanted = Wanted::config(&format!("{}{ROOMY}", server.table()));
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    refused("not there yet", &shim).await;
    server.start_again().await;
    let ask = async || shim.client().request_token("register", "a@example.org", "s3cr3t", 1).await.status;
    soon("it is found", async { while ask().await != 200 {} }).await;
}
