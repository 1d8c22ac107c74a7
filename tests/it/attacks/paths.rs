//! S§4 rows 32 to 34: a request written so that the homeserver takes it and the shim does not, or as another's.

use serde_json::json;

use super::naive::Naive;
use super::{logged_in, never_do, roomy};
use crate::client::{Answer, creds, parse, raw, request_token_path};
use crate::legacy::{EVERY_VERSION, Legacy, legacy, unique};
use crate::shim::Wanted;

/// Another spelling of each path, as a lenient parser somewhere might read it.
fn spellings(path: &str) -> Vec<String> {
    let (front, endpoint) = path.split_once("/r0/").unwrap();
    let (first, rest) = endpoint.split_once('/').unwrap();
    let initial = &endpoint[..1];
    let escaped = format!("%{:02x}", initial.as_bytes()[0]);
    let mut all = Vec::new();
    for behind in ["/", "//", "/.", ";x=1", ";", "%00", "%0a", "%20", "%2f", "%3f", ".json", "/x", "%c0%af", "\\"] {
        all.push(format!("{path}{behind}"));
    }
    all.extend([
        format!("/{path}"),
        format!("/.{path}"),
        format!("/x/..{path}"),
        format!("/%2e{path}"),
        format!("/%2e%2e{path}"),
        path.replacen("/_matrix/", "/_matrix//", 1),
        path.replacen("/_matrix/", "/_matrix%2f", 1),
        path.replacen("/_matrix/", "/_matrix;/", 1),
        path.replacen("/_matrix/", "/_MATRIX/", 1),
        path.replacen("/_matrix/", "/%5fmatrix/", 1),
        path.replacen("/r0/", "//r0/", 1),
        path.replacen("/r0/", "/r0//", 1),
        path.replacen("/r0/", "/r0/./", 1),
        path.replacen("/r0/", "/r0/%2e/", 1),
        path.replacen("/r0/", "/r0/x/../", 1),
        path.replacen("/r0/", "/r0/x/%2e%2e/", 1),
        path.replacen("/r0/", "/r0;x=1/", 1),
        path.replacen("/r0/", "/%720/", 1),
        path.replacen("/r0/", "/R0/", 1),
        path.replacen("/r0/", "/r0%2f", 1),
        path.replacen("/r0/", "/r0/x/", 1),
        path.replacen("/r0/", "/", 1),
        format!("{front}/r0/{escaped}{}", &endpoint[1..]),
        format!("{front}/r0/{}{}", initial.to_uppercase(), &endpoint[1..]),
        format!("{front}/r0/{first}%2f{rest}"),
        format!("{front}/r0/{first}//{rest}"),
        format!("{front}/r0/{first};/{rest}"),
        format!("{front}/r0/{first}/./{rest}"),
        format!("{front}/r0/{first}\\{rest}"),
        path.replace("requestToken", "requesttoken"),
        path.replace("requestToken", "request%54oken"),
    ]);
    all
}

/// CVE-2019-9901, CVE-2021-29492 (Envoy): every other spelling goes on as it came, so none of them may be one that the
/// homeserver takes for the path.
#[tokio::test(flavor = "multi_thread")]
async fn s4_32_a_spelling_that_the_shim_does_not_know_is_none_that_the_homeserver_takes() {
    let mut ran = 0;
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let naive = Naive::of(synapse, "x@example.org");
        let shim = roomy(synapse).await;
        let email = format!("{}@example.org", unique("spelling"));
        let body = json!({ "email": email, "client_secret": "s", "send_attempt": 1, "id_server": naive.name });
        for purpose in ["register", "account/3pid", "account/password"] {
            let path = request_token_path(purpose);
            let known = synapse.bare().post(&path, body.clone()).await;
            let taken = known.status == 200 || known.errcode() == "M_THREEPID_NOT_FOUND";
            assert!(taken, "{version} {path}, the spelling that it takes: {}", known.text());
            let heard = naive.heard().len();
            for path in spellings(&path) {
                let bare = synapse.bare().post(&path, body.clone()).await;
                let here = shim.client().post(&path, body.clone()).await;
                let unknown = bare.status == 404 || bare.text().contains("M_UNRECOGNIZED");
                assert!(unknown, "{version} {path} is taken: {}", bare.text());
                let as_it_came = (here.status, here.text()) == (bare.status, bare.text());
                assert!(as_it_came || is_refused(&here), "{version} {path}: {}", here.text());
                assert_eq!(naive.heard().len(), heard, "{version} {path}");
                ran += 1;
            }
        }
        assert_eq!(shim.outbox(), [] as [String; 0]);
    }
    assert_eq!(ran, EVERY_VERSION.len() * 3 * 45);
}

/// By the shim, since it is no target.
fn is_refused(answer: &Answer) -> bool {
    answer.status == 400 && (answer.body.is_empty() || answer.text().contains("Ambiguous request"))
}

/// The whole thing once more for the paths with creds: what reaches the check of creds is known to the shim.
#[tokio::test(flavor = "multi_thread")]
async fn s4_32_nor_does_another_spelling_of_a_completion_get_its_creds_checked() {
    for version in EVERY_VERSION {
        completions(legacy(version)).await;
    }
}

async fn completions(synapse: &Legacy) {
    let version = synapse.version;
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
                assert_eq!(answer.verdict(), never_do(), "{version} {path} is checked by the homeserver");
                checked += 1;
            }
            assert_ne!(answer.status, 200, "{version} {path}");
            ran += 1;
        }
    }
    assert_eq!((ran, checked), (65, 2 + 2 + 2 + 13), "{version}");
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
