//! S§4 rows 14, 25 and 26: where a link leads, and what a request cannot make of it.

use serde_json::json;
use tokio::net::TcpListener;

use super::{ROOMY, logged_in, roomy};
use crate::client::{Answer, Client, creds, parse, raw, request_token_path};
use crate::legacy::{legacy, unique};
use crate::shim::{Wanted, link_of};

async fn ask_with_next_link(client: &Client, purpose: &str, next_link: &str) -> Answer {
    let secret = unique("secret");
    let body = json!({ "email": format!("{secret}@example.org"), "client_secret": secret, "send_attempt": 1, "next_link": next_link });
    client.post(&request_token_path(purpose), body).await
}

/// Sydent puts it into the mailed URL and redirects to whatever the query says (sydent#254).
#[tokio::test(flavor = "multi_thread")]
async fn p4_4_the_next_link_is_the_requests_own_and_the_sid_goes_to_its_very_end() {
    let shim = roomy(legacy("1.3.1")).await;
    let element = "https://app.example/#/register?client_secret=a&hs_url=b&is_url=null&session_id=c";
    for (next_link, separator) in
        [(element, "&"), ("https://app.example/#/done", "?"), ("http://app.example:8080/?a=b", "&")]
    {
        let sid = ask_with_next_link(&shim.client(), "register", next_link).await.sid();
        let link = shim.link(&sid);
        assert!(!link.contains("next_link") && !link.contains("app.example"), "it is kept here, not mailed: {link}");
        let page = shim.client().open(&format!("{link}&next_link=https%3A%2F%2Fevil.example")).await;
        assert_eq!(page.status, 200);
        assert!(page.text().contains("app.example") && !page.text().contains("evil"), "{}", page.text());
        assert!(page.header("location").is_none(), "looking leads nowhere");
        let origin = next_link.split('/').take(3).collect::<Vec<_>>().join("/");
        assert!(page.header("content-security-policy").unwrap().ends_with(&format!("form-action 'self' {origin}")));
        let clicked = shim.client().press(&link, &page).await;
        assert_eq!(clicked.status, 303);
        assert_eq!(clicked.header("location"), Some(format!("{next_link}{separator}sid={sid}").as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_14_a_next_link_that_is_no_plain_web_address_is_refused_and_nothing_is_sent() {
    let synapse = legacy("1.3.1");
    let shim = roomy(synapse).await;
    let too_long = format!("https://good.example/{}", "a".repeat(2048));
    let table = [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)//https://good.example",
        "data:text/html,<script>alert(1)</script>",
        "file:///etc/passwd",
        "vbscript:x",
        "//evil.example",
        "/relative",
        "https:evil.example",
        "https:/evil.example",
        "https:///evil.example",
        "https://",
        "https://good.example@evil.example",
        "https://user:password@evil.example",
        "https://good.example\\@evil.example",
        "https:\\\\evil.example",
        "https://good.example%0d%0aSet-Cookie:x=y",
        "https://good.example/%0D%0ASet-Cookie:x=y",
        "https://good.example/\r\nSet-Cookie: x=y",
        "https://good.example/\tx",
        "https://good.example/\0",
        " https://good.example",
        "https://good.example ",
        "https://ev\u{131}l.example",
        "https://good.example/\u{2028}",
        "https://good.example:99999/",
        "https://[::1",
        "https://good.example/\"><svg>",
        &too_long,
    ];
    let mut ran = 0;
    for next_link in table {
        for purpose in ["register", "account/3pid"] {
            let refused = ask_with_next_link(&shim.client(), purpose, next_link).await;
            assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()), "{next_link:?}");
        }
        ran += 1;
    }
    assert_eq!(ran, 28);
    assert_eq!(shim.outbox(), [] as [String; 0]);

    let strict = format!("[session]\nnext_link_hosts = [\"good.example\"]\n{ROOMY}");
    let strict = synapse.shim(Wanted::config(&strict)).await;
    for evil in [
        "https://evil.example",
        "https://good.example.evil.example",
        "https://evil.example/good.example",
        "https://xgood.example",
    ] {
        let refused = ask_with_next_link(&strict.client(), "register", evil).await;
        assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()), "{evil}");
    }
    ask_with_next_link(&strict.client(), "register", "https://good.example/x").await.ok();
    assert_eq!(strict.outbox().len(), 1);
}

/// CVE-2017-12161 (Keycloak), CVE-2012-4520 (Django): the link is built from what the request says the host is.
#[tokio::test(flavor = "multi_thread")]
async fn s4_26_no_header_of_the_request_changes_where_the_mailed_link_leads() {
    let shim = roomy(legacy("1.3.1")).await;
    let own = format!("http://{}/", shim.clients);
    let path = request_token_path("register");
    let mut sent = 0;
    for (target, headers) in [
        (path.clone(), "Host: evil.example".to_owned()),
        (path.clone(), "Host: evil.example:1".to_owned()),
        (path.clone(), format!("Host: {}\r\nX-Forwarded-Host: evil.example", shim.clients)),
        (path.clone(), format!("Host: {}\r\nForwarded: host=evil.example;proto=https", shim.clients)),
        (
            path.clone(),
            format!("Host: {}\r\nX-Forwarded-Proto: evil\r\nX-Forwarded-Server: evil.example", shim.clients),
        ),
        (path.clone(), format!("Host: {}\r\nX-Original-URL: /evil\r\nX-Rewrite-URL: /evil", shim.clients)),
        (
            path.clone(),
            format!("Host: {}\r\nOrigin: https://evil.example\r\nReferer: https://evil.example/", shim.clients),
        ),
        (format!("http://evil.example{path}"), "Host: evil.example".to_owned()),
        (format!("http://evil.example{path}"), format!("Host: {}", shim.clients)),
    ] {
        let secret = unique("secret");
        let body =
            json!({ "email": format!("{secret}@example.org"), "client_secret": secret, "send_attempt": 1 }).to_string();
        let request = format!(
            "POST {target} HTTP/1.1\r\n{headers}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = parse(&raw(&shim.clients, request.as_bytes()).await);
        let disagrees = target.starts_with("http") && !headers.contains("evil");
        assert_eq!(answer.status, if disagrees { 400 } else { 200 }, "{target} {headers}: {}", answer.text());
        sent += usize::from(!disagrees);
        if let Some(mail) = shim.outbox().pop() {
            assert!(link_of(&mail).starts_with(&own) && !mail.contains("evil"), "{mail}");
        }
    }
    assert_eq!(sent, 8);
    assert_eq!(shim.outbox().len(), sent);
}

/// CVE-2021-29431 (Sydent), CVE-2021-21392 (Synapse): the server is sent to a host of the client's choice.
#[tokio::test(flavor = "multi_thread")]
async fn s4_25_the_shim_opens_no_connection_to_a_host_that_a_client_names() {
    let shim = roomy(legacy("1.3.1")).await;
    let bait = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let named = bait.local_addr().unwrap().to_string();
    let user = logged_in(&shim.client()).await;
    for id_server in ["169.254.169.254", named.as_str(), "[::ffff:169.254.169.254]:80"] {
        for (purpose, own_word) in [
            ("register", "M_SERVER_NOT_TRUSTED"),
            ("account/3pid", "M_SERVER_NOT_TRUSTED"),
            ("account/password", "M_THREEPID_NOT_FOUND"),
        ] {
            let body = json!({ "email": "a@example.org", "client_secret": "s", "send_attempt": 1, "id_server": id_server, "next_link": format!("http://{id_server}/") });
            let refused = user.post(&request_token_path(purpose), body).await;
            assert_eq!(refused.verdict(), (400, own_word.into()), "{purpose}: the homeserver's own word");
        }
        let mut creds = creds("17", "s");
        creds["id_server"] = id_server.into();
        assert_eq!(user.add_3pid(creds.clone()).await.verdict(), (400, "M_THREEPID_AUTH_FAILED".into()));
        assert_eq!(shim.client().register(&unique("name"), creds).await.status, 401);
    }
    let sid = ask_with_next_link(&shim.client(), "register", &format!("http://{named}/")).await.sid();
    assert_eq!(shim.client().click(&shim.link(&sid)).await.status, 303);
    assert!(!connects_to(&named), "nor does a next_link make it look there");
    let waiting = tokio::time::timeout(std::time::Duration::ZERO, bait.accept()).await;
    assert!(waiting.is_err(), "somebody came: {waiting:?}");
}

/// Whether a socket of this process, in which the shim runs, has that other end: open, or still knocking.
fn connects_to(named: &str) -> bool {
    let port: u16 = named.rsplit(':').next().unwrap().parse().unwrap();
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap()
        + &std::fs::read_to_string("/proc/self/net/tcp6").unwrap();
    let far = |line: &str| line.split_whitespace().nth(2).map(str::to_owned).unwrap_or_default();
    sockets.lines().map(far).any(|far| far.ends_with(&format!(":{port:04X}")) || far.starts_with("FEA9FEA9"))
}
