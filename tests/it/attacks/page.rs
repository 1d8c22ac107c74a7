//! S§4 rows 15 to 19 and 36: what validates, what the page gives away, and what can be put into it.

use serde_json::json;

use super::{logged_in, roomy};
use crate::client::{Answer, Client, creds, fields, target_of};
use crate::legacy::{legacy, unique};
use crate::shim::Shim;

type Headers<'a> = &'a [(&'a str, &'a str)];

/// A session whose link was mailed and not clicked.
struct Mailed {
    sid: String,
    secret: String,
    link: String,
}

async fn mailed(shim: &Shim) -> Mailed {
    let secret = unique("secret");
    let sid = shim.client().request_token("account/3pid", &format!("{secret}@example.org"), &secret, 1).await.sid();
    let link = shim.link(&sid);
    Mailed { sid, secret, link }
}

async fn validated(user: &Client, mailed: &Mailed) -> bool {
    user.add_3pid(creds(&mailed.sid, &mailed.secret)).await.status == 200
}

/// Synapse #8004: whoever fetches the link, a mail scanner or a preview, completes the attacker's reset for him.
#[tokio::test(flavor = "multi_thread")]
async fn p4_3_s4_17_whatever_only_fetches_the_link_validates_nothing() {
    let shim = roomy(legacy("1.3.1")).await;
    let user = logged_in(&shim.client()).await;
    let mailed = mailed(&shim).await;
    let target = target_of(&mailed.link);
    for _ in 0..5 {
        assert_eq!(user.get(&target).await.status, 200);
    }
    for (method, status) in
        [("HEAD", 200), ("OPTIONS", 200), ("PUT", 405), ("DELETE", 405), ("PATCH", 405), ("POST", 400)]
    {
        assert_eq!(user.send(method, &target, b"").await.status, status, "{method}");
    }
    for (name, value) in [
        ("Sec-Purpose", "prefetch"),
        ("Purpose", "prefetch"),
        ("X-Moz", "prefetch"),
        ("X-HTTP-Method-Override", "POST"),
        ("X-HTTP-Method", "POST"),
        ("User-Agent", "Mozilla/5.0 (compatible; SafeLinks)"),
    ] {
        assert_eq!(user.clone().with(name, value).get(&target).await.status, 200, "{name}");
    }
    assert_eq!(user.get(&format!("{target}&_method=POST")).await.status, 200);
    assert!(!validated(&user, &mailed).await);
    assert_eq!(user.click(&mailed.link).await.status, 200);
    assert!(validated(&user, &mailed).await, "the button does");
}

/// A stolen link, posted by a page of somebody else's or by whoever never saw ours.
#[tokio::test(flavor = "multi_thread")]
async fn s4_17_s4_18_only_the_pages_own_button_validates() {
    let shim = roomy(legacy("1.3.1")).await;
    let user = logged_in(&shim.client()).await;
    let mailed = mailed(&shim).await;
    let page = user.open(&mailed.link).await;
    let form = fields(&page.text());
    let path = target_of(&mailed.link).split('?').next().unwrap().to_owned();
    let own = format!("http://{}", shim.clients);
    let without_nonce = form.split('&').filter(|pair| !pair.starts_with("nonce=")).collect::<Vec<_>>().join("&");
    let wrong_nonce = format!("{without_nonce}&nonce={}", "0".repeat(64));
    let table: [(Headers<'_>, &str, u16); 15] = [
        (&[("Sec-Fetch-Site", "cross-site")], &form, 403),
        (&[("Sec-Fetch-Site", "same-site")], &form, 403),
        (&[("Sec-Fetch-Site", "none")], &form, 403),
        (&[("Sec-Fetch-Site", "SAME-ORIGIN")], &form, 403),
        (&[("Sec-Fetch-Site", "cross-site"), ("Origin", &own)], &form, 403),
        (&[("Origin", "https://evil.example")], &form, 403),
        (&[("Origin", "http://127.0.0.1")], &form, 403),
        (&[("Origin", &format!("{own}.evil.example"))], &form, 403),
        (&[("Origin", "null"), ("Sec-Fetch-Site", "cross-site")], &form, 403),
        (&[("Sec-Fetch-Site", "same-origin")], &without_nonce, 400),
        (&[("Sec-Fetch-Site", "same-origin")], &wrong_nonce, 400),
        (&[("Sec-Fetch-Site", "same-origin")], &format!("{form}&nonce=x"), 400),
        (&[("Sec-Fetch-Site", "same-origin")], &format!("{wrong_nonce}&{form}"), 400),
        (&[], "", 400),
        (&[], &"x".repeat(9000), 413),
    ];
    let mut ran = 0;
    for (headers, body, status) in table {
        let client = headers.iter().fold(user.clone(), |client, (name, value)| client.with(name, value));
        let answer = client.send("POST", &path, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{headers:?} {body}");
        assert!(user.open(&mailed.link).await.text().contains("<button"), "{headers:?}: still to be confirmed");
        ran += 1;
    }
    assert_eq!(ran, 15);
    assert!(!validated(&user, &mailed).await);
    let other = self::mailed(&shim).await;
    let crossed = fields(&user.open(&other.link).await.text()).replace(&other.sid, &mailed.sid);
    assert_eq!(user.clone().send("POST", &path, crossed.as_bytes()).await.status, 400, "another page's nonce");
    let accepted = user.clone().with("Origin", "null").send("POST", &path, form.as_bytes()).await;
    assert_eq!(accepted.status, 200, "an old browser's, which sends no Sec-Fetch-Site");
    assert!(validated(&user, &mailed).await);
}

/// S§4.38.
#[tokio::test(flavor = "multi_thread")]
async fn s4_16_s4_18_the_pages_fields_are_exactly_these_and_nothing_leads_elsewhere() {
    let shim = roomy(legacy("1.3.1")).await;
    let mailed = mailed(&shim).await;
    let page = shim.client().open(&mailed.link).await;
    let done = shim.client().press(&mailed.link, &page).await;
    let again = shim.client().open(&mailed.link).await;
    let invalid = shim.client().get(target_of(&mailed.link).split('?').next().unwrap()).await;
    for (answer, status) in [(&page, 200), (&done, 200), (&again, 200), (&invalid, 400)] {
        assert_eq!(answer.status, status);
        let mut headers = answer.headers.clone();
        headers.retain(|(name, _)| {
            !["content-length", "date", "connection"].contains(&name.to_ascii_lowercase().as_str())
        });
        headers.sort();
        let policy = answer.header("content-security-policy").unwrap();
        let (before, after) = policy.split_once("'sha256-").unwrap();
        assert_eq!(before, "default-src 'none'; style-src ");
        let (_, after) = after.split_once('\'').unwrap();
        assert_eq!(after, "; base-uri 'none'; frame-ancestors 'none'; form-action 'self'");
        headers.retain(|(name, _)| name != "content-security-policy");
        let expected = [
            ("cache-control", "no-store"),
            ("content-language", "en"),
            ("content-type", "text/html; charset=utf-8"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("x-robots-tag", "noindex"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let html = answer.text();
        assert!(!html.contains("://") && !html.contains("src="), "no address of another host, nothing loaded");
    }
    assert!(page.text().contains("<form method=\"post\" action=\"?\""), "the token is not left in the address bar");
    for text in [done.text(), again.text(), invalid.text()] {
        assert!(!text.contains(&mailed.secret) && !text.contains(&mailed.sid) && !text.contains("token"), "{text}");
    }
}

/// The victim is told what the click would do, before it does.
#[tokio::test(flavor = "multi_thread")]
async fn s4_19_the_page_of_every_purpose_says_what_where_for_whom_and_what_to_do_if_it_was_not_you() {
    let shim = roomy(legacy("1.3.1")).await;
    let known = format!("{}@example.org", unique("known"));
    super::registered(&shim, &known).await;
    let mut pages = std::collections::BTreeSet::new();
    for purpose in ["register", "account/password", "account/3pid"] {
        let secret = unique("secret");
        let email = if purpose == "account/password" { known.clone() } else { format!("{secret}@example.org") };
        let sid = shim.client().request_token(purpose, &email, &secret, 1).await.sid();
        let page = shim.client().open(&shim.link(&sid)).await.text();
        let masked = format!("{}\u{2022}\u{2022}\u{2022}@example.org", email.chars().next().unwrap());
        for fact in ["If you did not ask for this, close this page.", "example.org", &masked] {
            assert!(page.contains(fact), "{purpose} lacks {fact}");
        }
        assert!(!page.contains(&email), "{purpose}: the whole address is not for a stranger who has the link");
        let heading = page.split("<h1>").nth(1).unwrap().split("</h1>").next().unwrap().to_owned();
        pages.insert(heading);
    }
    assert_eq!(pages.len(), 3, "each purpose says what it is: {pages:?}");
}

/// CVE-2021-21332: values of the link end up on the page.
#[tokio::test(flavor = "multi_thread")]
async fn p4_5_s4_15_hostile_values_make_no_element_on_the_page() {
    let shim = roomy(legacy("1.3.1")).await;
    let mailed = mailed(&shim).await;
    let link = target_of(&mailed.link);
    let (path, query) = link.split_once('?').unwrap();
    let hostile = form_urlencoded::byte_serialize(b"\"><svg onload=alert(1)>{{7777*7777}}</style>").collect::<String>();
    let plain = shim.client().get(path).await.text();
    for name in ["token", "client_secret", "sid", "next_link", "brand", "nonce"] {
        let mut pairs: Vec<_> = query.split('&').filter(|pair| !pair.starts_with(name)).map(str::to_owned).collect();
        pairs.push(format!("{name}={hostile}"));
        let page = shim.client().get(&format!("{path}?{}", pairs.join("&"))).await.text();
        assert!(!page.contains("svg") && !page.contains("60481729"), "{name}: {page}");
        let posted = shim.client().send("POST", path, pairs.join("&").as_bytes()).await.text();
        assert_eq!(posted, plain, "{name}");
    }
    let spoken = shim.client().with("Accept-Language", "\"><svg onload=alert(1)>").get(&link).await.text();
    assert!(!spoken.contains("svg"));
    let body = json!({ "email": "a@example.org", "client_secret": "\"><svg>", "send_attempt": 1 });
    let refused = shim.client().post("/_matrix/client/r0/register/email/requestToken", body).await;
    assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()));
    assert!(!shim.outbox()[0].contains("svg"));
}

/// Synapse #7991: an answer that differs tells which sids there are.
/// S§4.3.
#[tokio::test(flavor = "multi_thread")]
async fn s4_36_unknown_wrong_and_expired_links_are_one_page_to_the_byte() {
    let shim = roomy(legacy("1.3.1")).await;
    let mailed = mailed(&shim).await;
    let link = target_of(&mailed.link);
    let page = shim.client().get(&link).await.text();
    let form = fields(&page);
    let (path, query) = link.split_once('?').unwrap();
    let token = link.split("token=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let unknown = format!("shim_{}", "0".repeat(32));
    let guess = |text: &str| {
        [
            text.replace(&mailed.sid, &unknown),
            text.replace(&mailed.secret, "guess"),
            text.replace(&token, &"0".repeat(64)),
            text.replace(&mailed.sid, "17"),
            text.replace("token=", "taken="),
        ]
    };
    let mut answers = Vec::new();
    let plainly = |answer: Answer| {
        (answer.status, answer.body, answer.headers.into_iter().filter(|(name, _)| name != "date").collect::<Vec<_>>())
    };
    for guessed in guess(query) {
        answers.push(plainly(shim.client().get(&format!("{path}?{guessed}")).await));
    }
    for guessed in guess(&form) {
        answers.push(plainly(shim.client().send("POST", path, guessed.as_bytes()).await));
    }
    let other = path.replace("account_3pid", "password");
    answers.push(plainly(shim.client().get(&format!("{other}?{query}")).await));
    shim.later(std::time::Duration::from_secs(3600));
    answers.push(plainly(shim.client().get(&link).await));
    answers.push(plainly(shim.client().send("POST", path, form.as_bytes()).await));
    assert_eq!(answers.len(), 13);
    assert_eq!(answers[0].0, 400);
    answers.dedup();
    assert_eq!(answers.len(), 1);
}
