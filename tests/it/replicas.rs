//! Stores that outlive a process, from end to end: killed and started again, several shims with one Redis, and Redis gone.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use threepid_shim::config;
use threepid_shim::matrix::{Address, ClientSecret, Medium, Purpose, Threepid, Timestamp};
use threepid_shim::store::{Fresh, Store};
use threepid_shim::telemetry::{Metrics, RequestId};
use tokio::sync::Notify;

use crate::client::{Client, PASSWORD, creds};
use crate::homeserver::{self, Homeserver, soon};
use crate::legacy::{Legacy, legacy, unique};
use crate::process::Process;
use crate::redis::{Redis, Server};
use crate::shim::{ROOMY, Reserved, Shim, Wanted, link_of};

const FILE: &str = "[store]\nkind = \"file\"\n";

/// `kill -9` between mail and click.
/// S§5.12, S§5.13.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_works_after_the_shim_was_killed_at_any_step_of_its_way() {
    let homeserver = legacy("1.3.1");
    let mut shim = Process::start(&homeserver.address, homeserver.door(), FILE).serving().await;
    let (name, secret) = (unique("killed"), unique("secret"));
    let email = format!("{name}@example.org");
    let sid = shim.client().request_token("register", &email, &secret, 1).await.sid();
    shim = shim.killed_and_started_again().await;
    let again = shim.client().request_token("register", &email, &secret, 1).await.sid();
    assert_eq!((&again, shim.outbox().len()), (&sid, 1), "the attempt is remembered: no second mail");
    let link = link_of(&shim.outbox()[0]);
    assert_eq!(shim.client().click(&link).await.status, 200);
    shim = shim.killed_and_started_again().await;
    shim.client().register(&name, creds(&sid, &secret)).await.ok();
    shim.client().login(&email, PASSWORD).await.ok();
    shim = shim.killed_and_started_again().await;
    let repeated = shim.client().register(&unique("thief"), creds(&sid, &secret)).await;
    assert_eq!(repeated.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()), "that it was consumed is remembered");
}

/// Two shims with one Redis; what goes through the first, the homeserver asks the second about.
async fn crossed(homeserver: &Legacy, table: &str) -> [Shim; 2] {
    let config = format!("{table}{ROOMY}");
    let there = homeserver.shim(Wanted::config(&config)).await;
    let wanted = Wanted { identity_name: Some(there.identity.clone()), ..Wanted::config(&config) };
    [homeserver.shim(wanted).await, there]
}

/// S§5.14.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_succeeds_with_each_of_its_steps_at_another_shim() {
    let (homeserver, redis) = (legacy("1.3.1"), Redis::single().await);
    let [here, there] = crossed(homeserver, &redis.servers[0].table()).await;
    let (name, secret) = (unique("crossed"), unique("secret"));
    let email = format!("{name}@example.org");
    let sid = here.client().request_token("register", &email, &secret, 1).await.sid();
    assert_eq!((here.outbox().len(), there.outbox().len()), (0, 1), "the callback came to the other one");
    let waiting = here.client().register(&name, creds(&sid, &secret)).await;
    assert_eq!(waiting.status, 401, "{}", waiting.text());
    assert_eq!(here.client().click(&there.link(&sid)).await.status, 200);
    here.client().register(&name, creds(&sid, &secret)).await.ok();
    here.client().login(&email, PASSWORD).await.ok();
    let thief = there.client().register(&unique("thief"), creds(&sid, &secret)).await;
    assert_eq!(thief.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()));
    // The same with the other purposes.
    for purpose in ["account/password", "account/3pid"] {
        let secret = unique("secret");
        let address = if purpose == "account/password" { email.clone() } else { unique("more") + "@example.org" };
        let sid = here.client().request_token(purpose, &address, &secret, 1).await.sid();
        assert_eq!(there.client().click(&there.link(&sid)).await.status, 200);
    }
    // Limits are one.
    let strict = format!("{}[limits]\nrequest_token_per_ip = \"3/1h\"\n", redis.servers[0].table());
    let [one, other] = [homeserver.shim(Wanted::config(&strict)).await, homeserver.shim(Wanted::config(&strict)).await];
    let ask = async |shim: &Shim| {
        let email = unique("limited") + "@example.org";
        shim.client().with("X-Forwarded-For", "203.0.113.9").request_token("register", &email, "s3cr3t", 1).await
    };
    for shim in [&one, &other, &one] {
        ask(shim).await.sid();
    }
    assert_eq!(ask(&other).await.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
}

/// S§5.14.
#[tokio::test(flavor = "multi_thread")]
async fn two_shims_that_complete_with_one_session_at_once_make_one_account() {
    let (homeserver, redis) = (legacy("1.3.1"), Redis::single().await);
    let [here, there] = crossed(homeserver, &redis.servers[0].table()).await;
    for _ in 0..3 {
        let (name, secret) = (unique("race"), unique("secret"));
        let sid = here.client().request_token("register", &format!("{name}@example.org"), &secret, 1).await.sid();
        assert_eq!(here.client().click(&there.link(&sid)).await.status, 200);
        let (here, there) = (here.client(), there.client());
        let (one, other) = (format!("{name}-one"), format!("{name}-other"));
        let both =
            tokio::join!(here.register(&one, creds(&sid, &secret)), there.register(&other, creds(&sid, &secret)));
        let mut statuses = [both.0.status, both.1.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 400], "{} {}", both.0.text(), both.1.text());
    }
}

/// What every request that needs the store is answered while there is none.
async fn refused(what: &str, client: &Client) {
    let (sid, token) = ("shim_00112233445566778899aabbccddeeff", "00112233445566778899aabbccddeeff".repeat(2));
    let page = format!(
        "/_matrix/client/unstable/threepid_shim/register/email/submit_token?sid={sid}&client_secret=s3cr3t&token={token}"
    );
    for name in ["requestToken", "completion", "page"] {
        let began = Instant::now();
        let answer = match name {
            "requestToken" => client.request_token("register", "a@example.org", "s3cr3t", 1).await,
            "completion" => client.register("name", creds(sid, "s3cr3t")).await,
            _ => client.get(&page).await,
        };
        let took = began.elapsed();
        assert_eq!(answer.status, 503, "{what}: {name}: {}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{what}: {name}");
        assert!(took < Duration::from_secs(2), "{what}: {name} took {took:?}");
        assert!(name == "page" || answer.errcode() == "M_UNKNOWN", "{what}: {name}");
    }
}

/// S§5.10.
#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_gone_ordinary_traffic_goes_on_and_nothing_is_verified_and_it_heals_by_itself() {
    let homeserver = Homeserver::answering(homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#)).await;
    let mut server = Server::start(&[]).await;
    let wanted = Wanted::config(&format!("{}{ROOMY}", server.table()));
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    let (client, admin) = (shim.client(), Client::of(&shim.admin));
    let works = async || client.request_token("register", "a@example.org", "s3cr3t", 1).await.status == 200;
    let ordinary = async |what: &str| {
        let began = Instant::now();
        assert_eq!(client.get("/_matrix/client/r0/sync").await.status, 200, "{what}");
        assert!(began.elapsed() < Duration::from_millis(300), "{what}");
        let ready = admin.get("/readyz").await;
        assert_eq!(ready.status, 200, "{what}");
        ready.text()
    };
    assert!(works().await);
    assert_eq!(ordinary("there").await, "ready\n");
    for what in ["killed", "partitioned", "full"] {
        match what {
            "killed" => server.kill(),
            "partitioned" => server.signal("-STOP"),
            _ => drop(server.say(&["CONFIG", "SET", "maxmemory", "1"])),
        }
        if what == "full" {
            // What is there can still be read.
            let answer = client.request_token("register", "a@example.org", "s3cr3t", 1).await;
            assert_eq!(answer.verdict(), (503, "M_UNKNOWN".into()), "{what}");
        } else {
            refused(what, &client).await;
        }
        let ready = ordinary(what).await;
        if what != "full" {
            assert!(ready.contains("sessions cannot be kept"), "{what}: {ready}");
        }
        match what {
            "killed" => server.start_again().await,
            "partitioned" => server.signal("-CONT"),
            _ => drop(server.say(&["CONFIG", "SET", "maxmemory", "0"])),
        }
        let began = Instant::now();
        soon("it heals", async { while !works().await {} }).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{what}: healed after {:?}", began.elapsed());
        assert_eq!(ordinary(what).await, "ready\n");
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
    refused("not there yet", &shim.client()).await;
    server.start_again().await;
    let ask = async || shim.client().request_token("register", "a@example.org", "s3cr3t", 1).await.status;
    soon("it is found", async { while ask().await != 200 {} }).await;
}

/// An old homeserver completes any endpoint within a UIA session once a stage of it is completed: a password reset on its
/// way at one shim keeps the other from having that stage completed for a registration.
/// S§5.14.
#[tokio::test(flavor = "multi_thread")]
async fn a_uia_session_that_another_shim_has_a_request_on_its_way_with_is_waited_for() {
    let redis = Redis::single().await;
    let (release, held) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (releasing, holding) = (Arc::clone(&release), Arc::clone(&held));
    let homeserver = Homeserver::scripted(move |mut conversation| {
        let (release, held) = (Arc::clone(&releasing), Arc::clone(&holding));
        async move {
            while let Some(request) = conversation.request().await {
                if String::from_utf8_lossy(&request.0).contains("/account/password") {
                    held.notify_one();
                    release.notified().await;
                }
                conversation.write(homeserver::json("401 Unauthorized", r#"{"session":"uia","completed":[]}"#)).await;
            }
        }
    })
    .await;
    let wanted = || Wanted::config(&format!("{}{ROOMY}", redis.servers[0].table()));
    let start = async || Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted()).await;
    let (here, there) = (start().await, start().await);
    let sid = begun(&redis).await;
    let reset = here.client();
    let reset = tokio::spawn(async move {
        reset.call("account/password", json!({ "auth": { "type": "m.login.dummy", "session": "uia" } })).await
    });
    soon("the reset is on its way", held.notified()).await;
    let registering = there.client();
    let mut registering = tokio::spawn(async move {
        let auth =
            json!({ "type": "m.login.email.identity", "session": "uia", "threepid_creds": creds(&sid, "s3cr3t") });
        registering.call("register", json!({ "username": "name", "auth": auth })).await
    });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut registering).await;
    assert!(early.is_err(), "{}", early.unwrap().unwrap().text());
    release.notify_one();
    assert_eq!(soon("the reset ends", reset).await.unwrap().status, 401);
    let registered = soon("the registration goes on", registering).await.unwrap();
    assert_eq!(registered.status, 401, "{}", registered.text());
}

/// A session of this moment, begun behind the shims' backs.
async fn begun(redis: &Redis) -> String {
    let store = Store::open(&config::Store::Redis(redis.config.clone()), &Metrics::new()).unwrap();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let now = Timestamp::from_millis(u64::try_from(wall).unwrap());
    let threepid = Threepid { medium: Medium::Email, address: Address::email("a@example.org").unwrap() };
    let (client_secret, request_id) = (ClientSecret::parse("s3cr3t").unwrap(), RequestId::from_random([1; 8]));
    let client = threepid_shim::store::Client {
        threepid: &threepid,
        purpose: Purpose::Register,
        client_secret: &client_secret,
        request_id: &request_id,
    };
    let fresh = Fresh::draw(now.after(Duration::from_secs(3600))).unwrap();
    store.find_or_begin(&client, fresh, now).await.unwrap().0.as_str().to_owned()
}
