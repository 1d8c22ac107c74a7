//! Stores that outlive a process, from end to end: killed and started again, several shims with one Redis.

mod gone;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use threepid_shim::config;
use threepid_shim::matrix::{Address, ClientSecret, Digest, Medium, Purpose, Threepid, Timestamp};
use threepid_shim::store::{BEAT, Fresh, Store};
use threepid_shim::telemetry::{Metrics, RequestId};

use crate::client::{PASSWORD, creds};
use crate::homeserver::{self, Homeserver, soon};
use crate::legacy::{Legacy, legacy, unique};
use crate::process::Process;
use crate::redis::Redis;
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

/// An old homeserver completes any endpoint within a UIA session once a stage of it is completed: a password reset on its
/// way at one shim keeps the other from having that stage completed for a registration.
/// S§5.14.
#[tokio::test(flavor = "multi_thread")]
async fn a_uia_session_that_another_shim_has_a_request_on_its_way_with_is_waited_for() {
    let redis = Redis::single().await;
    let waiting = homeserver::json("401 Unauthorized", r#"{"session":"uia","completed":[]}"#);
    let (homeserver, let_go) = Homeserver::holding("/account/password", waiting).await;
    let wanted = || Wanted::config(&format!("{}{ROOMY}", redis.servers[0].table()));
    let start = async || Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted()).await;
    let (here, there) = (start().await, start().await);
    let sid = begun(&redis).await;
    let reset = here.client();
    let reset = tokio::spawn(async move {
        reset.call("account/password", json!({ "auth": { "type": "m.login.dummy", "session": "uia" } })).await
    });
    homeserver.met("/account/password").await;
    let registering = there.client();
    let mut registering = tokio::spawn(async move {
        let auth =
            json!({ "type": "m.login.email.identity", "session": "uia", "threepid_creds": creds(&sid, "s3cr3t") });
        registering.call("register", json!({ "username": "name", "auth": auth })).await
    });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut registering).await;
    assert!(early.is_err(), "{}", early.unwrap().unwrap().text());
    let_go.add_permits(1);
    assert_eq!(soon("the reset ends", reset).await.unwrap().status, 401);
    let registered = soon("the registration goes on", registering).await.unwrap();
    assert_eq!(registered.status, 401, "{}", registered.text());
}

/// However long the homeserver takes, and whatever else the other shim waits for.
/// S§5.14.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_living_shim_holds_is_waited_for() {
    let redis = Redis::single().await;
    // Nor does it say what it knows.
    let (homeserver, let_go) =
        Homeserver::holding("", homeserver::json("401 Unauthorized", r#"{"completed":[]}"#)).await;
    let wanted = || Wanted::config(&format!("{}{ROOMY}", redis.servers[0].table()));
    let start = async || Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted()).await;
    let (here, there) = (start().await, start().await);
    let sid = begun(&redis).await;
    let register = |shim: &Shim| {
        let (client, creds) = (shim.client(), creds(&sid, "s3cr3t"));
        tokio::spawn(async move { client.register("name", creds).await })
    };
    let holder = register(&here);
    homeserver.met("/register").await;
    let mut waiting = register(&there);
    let early = tokio::time::timeout(BEAT * 6, &mut waiting).await;
    assert!(early.is_err(), "{}", early.unwrap().unwrap().text());
    let met = homeserver.requests().iter().filter(|request| request.line().contains("/register")).count();
    assert_eq!(met, 1, "it was taken from who holds it");
    let_go.add_permits(100);
    let both = soon("both are answered", async { (holder.await.unwrap(), waiting.await.unwrap()) }).await;
    assert_eq!((both.0.status, both.1.status), (401, 401));
}

/// Without a limit whoever has one session of his own could have any number of requests ask the store, and go.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_session_is_waited_for_by_a_few_and_by_none_whose_client_has_gone() {
    let redis = Redis::single().await;
    let waiting = homeserver::json("401 Unauthorized", r#"{"completed":[]}"#);
    let (homeserver, let_go) = Homeserver::holding("/register", waiting).await;
    let wanted = Wanted::config(&format!("{}{ROOMY}", redis.servers[0].table()));
    let shim = Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted).await;
    let sid = begun(&redis).await;
    let register = || {
        let (client, creds) = (shim.client(), creds(&sid, "s3cr3t"));
        tokio::spawn(async move { client.register("name", creds).await })
    };
    let holder = register();
    homeserver.met("/register").await;
    // Which of them is the one too many is theirs to settle.
    let mut all: Vec<_> = (0..16).map(|_| register()).collect();
    let refused = async {
        loop {
            if let Some(at) = all.iter().position(tokio::task::JoinHandle::is_finished) {
                return all.swap_remove(at).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(soon("one is refused", refused).await.verdict(), (429, "M_LIMIT_EXCEEDED".into()));
    assert!(all.iter().all(|waiting| !waiting.is_finished()));
    all.drain(..).for_each(|waiting| waiting.abort());
    let as_many_again = async {
        while all.len() < 15 {
            let mut waiting = register();
            match tokio::time::timeout(Duration::from_millis(100), &mut waiting).await {
                Err(_still_waiting) => all.push(waiting),
                Ok(refused) => assert_eq!(refused.unwrap().status, 429),
            }
        }
    };
    soon("their places are free once they have gone", as_many_again).await;
    let_go.add_permits(1);
    assert_eq!(soon("the first is answered", holder).await.unwrap().status, 401);
}

/// S§5.10: the session is reserved only once the request has been told that it cannot be.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_held_that_the_store_failed_is_let_go_once_the_store_is_back() {
    let redis = Redis::cluster().await;
    let waiting = homeserver::json("401 Unauthorized", r#"{"session":"uia","completed":[]}"#);
    let homeserver = Homeserver::answering(waiting).await;
    let wanted = || Wanted::config(&format!("{}{ROOMY}", redis.table_of_cluster()));
    let start = async || Shim::before(&homeserver.address.to_string(), Reserved::new(1).take(), wanted()).await;
    let (here, there) = (start().await, start().await);
    let sid = loop {
        let sid = begun(&redis).await;
        if redis.node_of(&format!("session:{sid}")) == 2 {
            break sid;
        }
    };
    let id = |n: &u32| {
        let digest = Digest::of(n.to_string().as_bytes());
        let node = |kind: &str| redis.node_of(&format!("{kind}:{}", digest.as_hex()));
        node("uia") != 2 && node("under_way") != 2
    };
    let id = (0..10_000).find(id).unwrap().to_string();
    let register = async |shim: &Shim| {
        let auth = json!({ "type": "m.login.email.identity", "session": id, "threepid_creds": creds(&sid, "s3cr3t") });
        shim.client().call("register", json!({ "username": "name", "auth": auth })).await
    };
    assert_eq!(register(&here).await.status, 401);
    redis.servers[2].signal("-STOP");
    assert_eq!(register(&here).await.verdict(), (503, "M_UNKNOWN".into()));
    redis.servers[2].signal("-CONT");
    for shim in [&there, &here] {
        let again = async { while register(shim).await.status != 401 {} };
        soon("the session can be used again", again).await;
    }
}

/// A session of this moment, begun behind the shims' backs.
async fn begun(redis: &Redis) -> String {
    let store = Store::open(&config::Store::Redis(redis.config.clone()), &Metrics::new()).unwrap();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let now = Timestamp::from_millis(u64::try_from(wall).unwrap());
    let threepid =
        Threepid { medium: Medium::Email, address: Address::email(&(unique("begun") + "@example.org")).unwrap() };
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
