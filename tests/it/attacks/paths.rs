//! S§4 rows 32 to 34: a request written so that the homeserver takes it and the shim does not, or as another's.

use serde_json::json;

use super::naive::Naive;
use super::{logged_in, never_do, roomy};
use crate::client::{creds, parse, raw, request_token_path};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::shim::Wanted;

/// CVE-2019-9901, CVE-2021-29492 (Envoy): every other spelling goes on as it came, so none of them may be one that the
/// homeserver takes for the path.
#[tokio::test(flavor = "multi_thread")]
async fn s4_32_a_spelling_that_the_shim_does_not_know_is_none_that_the_homeserver_takes() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let naive = Naive::of(synapse, "x@example.org");
        let shim = roomy(synapse).await;
        let body =
            json!({ "email": "x@example.org", "client_secret": "s", "send_attempt": 1, "id_server": naive.name });
        let known = synapse.bare().post(&request_token_path("register"), body.clone()).await;
        assert_eq!(known.status, 200, "the spelling that it takes");
        let taken = naive.heard().len();
        let mut ran = 0;
        for path in [
            "/_matrix/client/r0/register/email/requestToken/",
            "/_matrix/client/r0/register//email/requestToken",
            "//_matrix/client/r0/register/email/requestToken",
            "/_matrix//client/r0/register/email/requestToken",
            "/_matrix/client//r0/register/email/requestToken",
            "/_matrix/client//register/email/requestToken",
            "/_matrix/client/r0/./register/email/requestToken",
            "/_matrix/client/r0/x/../register/email/requestToken",
            "/_matrix/client/r0/register/email/requestToken;x=1",
            "/_matrix/client/r0;x=1/register/email/requestToken",
            "/_matrix/client/r0/register/email/request%54oken",
            "/_matrix/client/r0/r%65gister/email/requestToken",
            "/_matrix/client/%720/register/email/requestToken",
            "/_matrix/client/r0/register%2femail/requestToken",
            "/_matrix/client/r0/register/email/requestToken%00",
            "/_matrix/client/r0/register/email/requestToken%0a",
            "/_matrix/client/r0/register/email/requestToken%20",
            "/_MATRIX/client/r0/register/email/requestToken",
            "/_matrix/client/R0/register/email/requestToken",
            "/_matrix/client/r0/register/email/requesttoken",
            "/_matrix/client/r0/register/email/requestToken.json",
            "/x/../_matrix/client/r0/register/email/requestToken",
            "/%2e/_matrix/client/r0/register/email/requestToken",
            "/_matrix%2fclient/r0/register/email/requestToken",
            "/_matrix/client/r0/x/register/email/requestToken",
            "/_matrix/client/register/email/requestToken",
        ] {
            let bare = synapse.bare().post(path, body.clone()).await;
            let here = shim.client().post(path, body.clone()).await;
            assert_eq!((here.status, here.text()), (bare.status, bare.text()), "{version} {path}: as it came");
            assert!(bare.status >= 400 && naive.heard().len() == taken, "{version} {path}: {}", bare.text());
            ran += 1;
        }
        assert_eq!(ran, 26);
        assert_eq!(shim.outbox(), [] as [String; 0]);
    }
}

/// The whole thing once more for the paths with creds: what reaches the check of creds is known to the shim.
#[tokio::test(flavor = "multi_thread")]
async fn s4_32_nor_does_another_spelling_of_a_completion_get_its_creds_checked() {
    let synapse = legacy("1.3.1");
    let naive = Naive::of(synapse, "x@example.org");
    let shim = roomy(synapse).await;
    let secret = unique("secret");
    let sid = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
    let (user, bare) = (logged_in(&shim.client()).await, logged_in(&synapse.bare()).await);
    let mut ours = creds(&sid, &secret);
    ours["id_server"] = shim.identity.clone().into();
    let (mut checked, mut ran) = (0, 0);
    for endpoint in ["account/password", "account/3pid", "account/deactivate", "delete_devices", "account/3pid/add"] {
        for tail in ["", "/", "//", "X", ";x", "%20", "%2f", "/.", "?x", "%3f", "/x", ".json", "%0a"] {
            let path = format!("/_matrix/client/r0/{endpoint}{tail}");
            let body = |creds: &serde_json::Value| json!({ "auth": super::email_stage(creds, None), "three_pid_creds": creds, "devices": [] });
            let heard = naive.heard().len();
            bare.post(&path, body(&naive.creds())).await;
            let answer = user.post(&path, body(&ours)).await;
            if naive.heard().len() > heard {
                assert_eq!(answer.verdict(), never_do(), "{path} is checked by the homeserver");
                checked += 1;
            }
            assert_ne!(answer.status, 200, "{path}");
            ran += 1;
        }
    }
    assert_eq!((ran, checked), (65, 2 + 2 + 2 + 13));
}

/// Every way to hand over a second request, or another method, in one.
#[tokio::test(flavor = "multi_thread")]
async fn s4_33_no_framing_gets_a_request_past_the_shim() {
    let shim = roomy(legacy("1.3.1")).await;
    let secret = unique("secret");
    let sid = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
    let theft =
        json!({ "new_password": "stolen", "auth": super::email_stage(&creds(&sid, &secret), None) }).to_string();
    let path = "/_matrix/client/r0/account/password";
    let host = &shim.clients;
    let length = theft.len();
    let one = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n");
    let refused = |answer: &[u8]| {
        let text = String::from_utf8_lossy(answer).into_owned();
        assert!(text.contains("M_THREEPID_AUTH_FAILED"), "{text}");
    };
    for request in [
        format!("{one}Connection: close\r\n\r\n{theft}"),
        format!(
            "{one}Connection: close\r\nX-HTTP-Method-Override: GET\r\nX-HTTP-Method: PUT\r\nX-Method-Override: GET\r\n\r\n{theft}"
        ),
        format!(
            "POST {path}?_method=GET HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{theft}"
        ),
        format!("POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{theft}"),
        format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{theft}"),
        format!(
            "POST http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{theft}"
        ),
        format!("GET /_matrix/client/versions HTTP/1.1\r\nHost: {host}\r\n\r\n{one}Connection: close\r\n\r\n{theft}"),
        format!("{one}\r\n{theft}{one}Connection: close\r\n\r\n{theft}"),
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{length:x};x=y\r\n{theft}\r\n0\r\n\r\n"
        ),
        format!("{one}Connection: Content-Length, close\r\n\r\n{theft}"),
    ] {
        refused(&raw(host, request.as_bytes()).await);
    }
    let get = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nX-HTTP-Method-Override: POST\r\nContent-Length: {length}\r\n\r\n{theft}"
    );
    assert_eq!(parse(&raw(host, get.as_bytes()).await).verdict(), (400, "M_UNRECOGNIZED".into()), "the homeserver's");
    for smuggled in [
        format!("{one}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{one}\r\n{theft}"),
        format!("{one}Content-Length: 0\r\nConnection: close\r\n\r\n{theft}"),
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: xchunked\r\n\r\n{length:x}\r\n{theft}\r\n0\r\n\r\n"
        ),
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST http://evil.example{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{theft}"
        ),
    ] {
        let answer = raw(host, smuggled.as_bytes()).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.starts_with("HTTP/1.1 400") && text.matches("HTTP/1.").count() == 1, "{smuggled:?}: {text}");
    }
    shim.client().register(&unique("name"), creds(&sid, &secret)).await.ok();
}

/// CVE-2022-31813 (httpd): who may ask how often is decided by an address of the client's own choice.
#[tokio::test(flavor = "multi_thread")]
async fn s4_34_a_spoofed_forwarded_for_resets_no_limit() {
    let synapse = legacy("1.3.1");
    let limits = "[limits]\nrequest_token_per_ip = \"3/10m\"\nsubmit_token_per_ip = \"3/10m\"\n";
    let untrusting = synapse.shim(Wanted::config(&format!("[clients]\ntrusted_proxies = []\n{limits}"))).await;
    let trusting = synapse.shim(Wanted::config(limits)).await;
    let (mut mailed, mut shown) = (0, 0);
    for n in 0..12 {
        // Behind a trusted proxy only the rightmost hop is its word.
        let client = if n % 2 == 0 {
            let spoofed = format!("198.51.100.{n}");
            untrusting
                .client()
                .with("X-Forwarded-For", &spoofed)
                .with("Forwarded", &format!("for={spoofed}"))
                .with("X-Real-IP", &spoofed)
        } else {
            trusting
                .client()
                .with("X-Forwarded-For", &format!("198.51.100.{n}, 203.0.113.7, 127.0.0.1"))
                .with("X-Real-IP", "192.0.2.1")
        };
        let secret = unique("secret");
        let answer = client.request_token("register", &format!("{secret}@example.org"), &secret, 1).await;
        match answer.status {
            200 => mailed += 1,
            _ => assert_eq!(answer.verdict(), (429, "M_LIMIT_EXCEEDED".into())),
        }
        let page = client.get("/_matrix/client/unstable/threepid_shim/register/email/submit_token").await;
        assert!([400, 429].contains(&page.status));
        shown += usize::from(page.status == 400);
    }
    assert_eq!((mailed, shown), (6, 6), "three of each through each shim");
    assert_eq!(untrusting.outbox().len() + trusting.outbox().len(), 6);
    let other = trusting.client().with("X-Forwarded-For", "203.0.113.8");
    other.request_token("register", "other@example.org", "s", 1).await.ok();
}
