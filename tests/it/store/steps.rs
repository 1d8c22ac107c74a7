//! A whole verification by mail and one by SMS, with every key in Redis looked at after each step.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use threepid_shim::matrix::Digest;

use super::versions::{keep, records};
use crate::client::{Answer, creds};
use crate::homeserver::{self, Raw};
use crate::phones;
use crate::redis::Redis;
use crate::secure::{Caller, as_synapse};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

/// What a later version of the shim has put into every record.
const LATER: &str = ",\"of_a_later_version\":{\"a\":[1]}}";
/// Puts it there, if the record is still the same.
const ADD: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') end return 1";

struct Watch {
    redis: Redis,
    /// The records that have it.
    later: Mutex<BTreeSet<String>>,
    kinds: Mutex<BTreeSet<String>>,
}

impl Watch {
    fn look(&self, step: &str) {
        let server = &self.redis.servers[0];
        let mut later = self.later.lock().unwrap();
        let keys = server.keys();
        assert!(!keys.is_empty());
        later.retain(|key| keys.contains(key));
        for key in keys {
            let ends = server.number(&["PTTL", &key]);
            assert_ne!(ends, -1, "{step}: {key} is kept for ever");
            let kind = key.split(':').nth(1).unwrap();
            self.kinds.lock().unwrap().insert(kind.to_owned());
            let Some(kept) = server.text(&["GET", &key]).filter(|_| kind != "limit") else { continue };
            if kept.starts_with("0 ") {
                later.remove(&key);
            } else if !later.contains(&key) {
                let more = format!("{}{LATER}", kept.strip_suffix('}').unwrap());
                server.say(&["EVAL", ADD, "1", &key, &kept, &more]);
                later.insert(key);
            } else {
                assert!(kept.contains(&LATER[1..LATER.len() - 1]), "{step}: {key} has lost it: {kept}");
            }
        }
    }

    fn record(&self, key: &str) -> Value {
        self.redis.servers[0].record(key).unwrap_or_else(|| panic!("no {key}"))
    }
}

/// A homeserver in whose UIA session `uia` the stage is all there is to do.
fn answer(request: &Raw, told: Option<&Answer>, watch: &Watch) -> Vec<u8> {
    let line = request.line();
    if line.contains("/versions") {
        return homeserver::json("200 OK", r#"{"versions":["r0.5.0"]}"#);
    }
    watch.look(&format!("{line} at the homeserver"));
    if !line.contains("/requestToken") {
        if request.json()["auth"]["type"] == "m.login.dummy" {
            let under_way = watch.record(&under_way());
            assert_eq!(under_way["requests"].as_array().unwrap().len(), 2, "the other shim's and this: {under_way}");
        }
        return match told {
            Some(told) if told.json()["address"].is_string() => homeserver::json("200 OK", "{}"),
            _ => homeserver::json("401 Unauthorized", r#"{"session":"uia","completed":[]}"#),
        };
    }
    if request.json()["id_server"] == "vector.im" {
        return homeserver::json("200 OK", r#"{"sid":"17"}"#);
    }
    let told = told.expect("the identity door was asked");
    homeserver::json(&format!("{} X", told.status), &told.text())
}

fn under_way() -> String {
    format!("under_way:{}", Digest::of(b"uia").as_hex())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_step_of_a_verification_each_key_ends_and_keeps_what_a_later_version_put_there() {
    let redis = Redis::single().await;
    let table = redis.servers[0].table();
    let day = format!("day:{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400);
    // Of another shim: how many messages there were, and a request with the same UIA session that is never answered.
    let mut theirs = records()["under_way"].clone();
    theirs["requests"][0]["later"] = json!(1);
    keep(&redis.servers[0], &day, &records()["day"], 9_999_999_999_999);
    keep(&redis.servers[0], &under_way(), &theirs, 9_999_999_999_999);
    let watch = Arc::new(Watch { redis, later: Mutex::default(), kinds: Mutex::default() });
    let (doors, watching) = (Reserved::new(1), Arc::clone(&watch));
    let door = doors.take();
    let caller =
        Caller::start(&door, as_synapse, move |request: &Raw, told: Option<&Answer>| answer(request, told, &watching))
            .await;
    let gateway = phones::gateway().await;
    let wanted = phones::wanted(&gateway, "");
    let shim = Shim::before(&caller.address(), door, Wanted::config(&format!("{}{table}{ROOMY}", wanted.config))).await;
    let client = shim.client();
    let register = async |auth: Value| {
        client.call("register", json!({ "username": "name", "password": "x", "auth": auth })).await.status
    };
    let complete = async |kind: &str, sid: &str| {
        register(json!({ "type": kind, "session": "uia", "threepid_creds": creds(sid, "s3cr3t") })).await
    };

    assert_eq!(register(json!({ "type": "m.login.dummy", "session": "uia" })).await, 401);
    watch.look("another stage");
    let sid = client.request_token("register", "a@example.org", "s3cr3t", 1).await.sid();
    watch.look("mailed");
    assert_eq!(complete("m.login.email.identity", &sid).await, 401);
    watch.look("asked too early");
    let link = shim.link(&sid);
    let page = client.open(&link).await;
    watch.look("opened");
    assert_eq!(client.press(&link, &page).await.status, 200);
    watch.look("confirmed");
    assert_eq!(complete("m.login.email.identity", &sid).await, 200);
    watch.look("registered");
    assert!(watch.record(&format!("session:{sid}"))["state"]["consumed"].is_object());
    let foreign =
        json!({ "client_secret": "x", "email": "b@example.org", "send_attempt": 1, "id_server": "vector.im" });
    assert_eq!(client.call("register/email/requestToken", foreign).await.sid(), "17");
    watch.look("relayed");

    let sid = phones::request(&client, "register", "07400 100000", "s3cr3t", 1).await.sid();
    watch.look("sent");
    let code = phones::code(&gateway);
    assert_eq!(phones::submit(&client, &sid, "s3cr3t", &phones::wrong(&code)).await.status, 400);
    watch.look("mistyped");
    phones::submit(&client, &sid, "s3cr3t", &code).await.ok();
    watch.look("submitted");
    assert_eq!(complete("m.login.msisdn", &sid).await, 200);
    watch.look("registered by number");

    assert_eq!(watch.record(&day)["count"], 4, "one more than there were");
    let kinds: Vec<_> = watch.kinds.lock().unwrap().iter().cloned().collect();
    assert_eq!(kinds, ["current", "day", "foreign", "limit", "note", "process", "session", "uia", "under_way"]);
    let gone = async {
        loop {
            let requests = watch.record(&under_way())["requests"].clone();
            if requests.as_array().unwrap().len() == 1 {
                return requests;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    assert_eq!(homeserver::soon("ours is gone", gone).await, theirs["requests"], "and theirs as it was");
}
