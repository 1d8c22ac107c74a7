//! Answers of the homeserver that were lost: it may have done what it was asked, so that the session is its owner's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::{in_auth, post, refused};
use crate::client::{Answer, Client, creds};
use crate::homeserver::{self, Raw};
use crate::legacy::unique;
use crate::secure::{Caller, as_synapse};
use crate::shim::{ROOMY, Reserved, Shim, Wanted};

/// What the homeserver says of completions until it is well: nothing, nothing that can be read, or that it failed.
const LOST: [&str; 4] = [
    "",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{",
    "HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/1.1 502 X\r\nContent-Length: 2\r\n\r\n{}",
];

async fn reset(client: &Client, new_password: &str, creds: Value) -> Answer {
    let auth = in_auth(&json!({ "threepid_creds": creds }));
    post(client, "account/password", json!({ "new_password": new_password, "auth": auth })).await
}

#[tokio::test]
async fn a_session_whose_answer_was_lost_is_its_owners_who_may_repeat_the_request() {
    let mut ran = 0;
    for lost in LOST {
        let door = Reserved::new(1).take();
        let failing = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&failing);
        let answer = move |request: &Raw, said: Option<&Answer>| {
            if request.line().contains("/requestToken") {
                return homeserver::json("200 OK", &said.unwrap().text());
            }
            let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            if fails && said.is_some() { lost.as_bytes().to_vec() } else { homeserver::json("200 OK", "{}") }
        };
        let caller = Caller::start(&door, as_synapse, answer).await;
        let shim = Shim::before(&caller.address(), door, Wanted::config(ROOMY)).await;
        let (client, secret) = (shim.client(), unique("secret"));
        let sid = shim.verify("account/password", "a@example.org", &secret).await;
        failing.store(1, Ordering::SeqCst);
        let answer = reset(&client, "new", creds(&sid, &secret)).await;
        assert!(answer.status >= 500, "{lost}: {}", answer.text());
        assert_eq!(caller.told().last().unwrap().json()["medium"], "email", "the homeserver was told");
        assert_eq!(reset(&client, "stolen", creds(&sid, &secret)).await.verdict(), refused(), "{lost}");
        reset(&client, "new", creds(&sid, &secret)).await.ok();
        ran += 1;
    }
    assert_eq!(ran, 4);
}
