//! S§4 row 5: a code of six digits, tried where tries are not counted.

use serde_json::json;

use super::{ROOMY, logged_in};
use crate::client::{Answer, Client, creds};
use crate::legacy::{legacy, unique};
use crate::phones::{self, code, gateway, number, request, wrong};
use crate::secure::{self, API, JSON};
use crate::shim::{Shim, Wanted};

/// What the page says of a code, looked at and posted.
async fn guess(shim: &Shim, purpose: &str, sid: &str, secret: &str, token: &str) -> Vec<(u16, String)> {
    let path = format!("/_matrix/client/unstable/threepid_shim/{purpose}/email/submit_token");
    let link = format!("sid={sid}&client_secret={secret}&token={token}");
    let form = format!("{link}&nonce={}", "0".repeat(64));
    let client = shim.client().with("Sec-Fetch-Site", "same-origin");
    let pages = [
        client.get(&format!("{path}?{link}")).await,
        client.send("POST", &path, form.as_bytes()).await,
        client.send("POST", &format!("{path}?{link}"), b"").await,
    ];
    pages.map(|page: Answer| (page.status, page.text())).into()
}

/// Who cannot read the phone tries all codes on the page behind mailed links: it knew a right one from a wrong one, and
/// counted neither.
#[tokio::test(flavor = "multi_thread")]
async fn s4_5_the_page_behind_a_link_says_the_same_of_every_code_and_uses_none_up() {
    let gateway = gateway().await;
    let wanted = Wanted { identity: "accept_unannounced = true".into(), ..phones::wanted(&gateway, ROOMY) };
    let shim = legacy("1.3.1").shim(wanted).await;
    let user = logged_in(&shim.client()).await;
    let known = number();
    let mut ran = 0;
    for (purpose, endpoint) in [
        ("account_3pid", "account/3pid"),
        ("password", "account/password"),
        ("register", "register"),
        ("delegated", ""),
    ] {
        // The number of the first round is the user's from then on: only such a one has a password to reset.
        let number = if endpoint.starts_with("account") { known.clone() } else { number() };
        let secret = unique("secret");
        let sid = if purpose == "delegated" {
            let body = json!({ "client_secret": secret, "country": "GB", "phone_number": number, "send_attempt": 1 });
            let target = format!("{API}validate/msisdn/requestToken");
            secure::call(&shim.identity, "POST", &target, JSON, &body.to_string()).await.sid()
        } else {
            request(&user, endpoint, &number, &secret, 1).await.sid()
        };
        let code = code(&gateway);
        let mut pages = guess(&shim, purpose, &format!("shim_{}", "0".repeat(32)), &secret, &code).await;
        for token in [&wrong(&code), &code] {
            for _ in 0..3 {
                pages.extend(guess(&shim, purpose, &sid, &secret, token).await);
            }
        }
        assert_eq!((pages.len(), pages[0].0), (21, 400));
        pages.dedup();
        assert_eq!(pages.len(), 1, "{purpose}: unknown, wrong and right are one page");
        submits(&shim, &user, purpose == "delegated", &sid, &secret, &code).await;
        if purpose == "account_3pid" {
            user.add_3pid(creds(&sid, &secret)).await.ok();
        }
        ran += 1;
    }
    assert_eq!(ran, 4);
}

/// Where codes are submitted, four wrong tries more are counted, and the right one is still good.
async fn submits(shim: &Shim, user: &Client, delegated: bool, sid: &str, secret: &str, code: &str) {
    let wrong = wrong(code);
    for (token, success) in [(wrong.as_str(), false); 4].into_iter().chain([(code, true)]) {
        let answer = if delegated {
            let body = json!({ "sid": sid, "client_secret": secret, "token": token }).to_string();
            secure::call(&shim.identity, "POST", &format!("{API}validate/msisdn/submitToken"), JSON, &body).await
        } else {
            phones::submit(user, sid, secret, token).await
        };
        assert_eq!(answer.json()["success"], success, "{}", answer.text());
    }
}
