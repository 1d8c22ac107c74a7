//! One mailbox under two spellings, and addresses that two parsers read differently.

use serde_json::json;

use super::naive::Naive;
use super::{never_do, registered, roomy};
use crate::client::{PASSWORD, creds, request_token_path};
use crate::legacy::{VERSIONS, legacy, unique};

/// The homeserver looks for `Mallory@...` among addresses that it stores as `mallory@...`.
#[tokio::test(flavor = "multi_thread")]
async fn p0_6_a_mixed_case_address_cannot_register_two_accounts_with_one_sid() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let address = format!("{}@example.org", unique("Mixed"));
        let naive = Naive::of(synapse, &address);
        let (first, second) = (unique("first"), unique("second"));
        synapse.bare().register(&first, naive.creds()).await.ok();
        let moved = synapse.bare().register(&second, naive.creds()).await;
        assert_eq!(moved.status, 200, "{version}: the attack is real");
        let owner = synapse.bare().login(&address.to_lowercase(), PASSWORD).await.ok();
        assert_eq!(owner["user_id"], format!("@{second}:localhost"), "{version}: the address moved");

        let shim = roomy(synapse).await;
        let client = shim.client();
        let (address, secret) = (format!("{}@Example.ORG", unique("Mixed")), unique("secret"));
        let sid = shim.verify("register", &address, &secret).await;
        client.register(&unique("first"), creds(&sid, &secret)).await.ok();
        let again = client.register(&unique("second"), creds(&sid, &secret)).await;
        assert_eq!(again.verdict(), never_do(), "{version}");
        for spelling in [address.clone(), address.to_lowercase(), address.to_uppercase()] {
            let fresh = client.request_token("register", &spelling, &unique("secret"), 1).await;
            assert_eq!(fresh.verdict(), (400, "M_THREEPID_IN_USE".into()), "{version} {spelling}");
        }
        let mails = shim.outbox();
        assert_eq!(mails.len(), 1, "{version}");
        assert!(mails[0].contains(&format!("To: {}\r\n", address.to_lowercase())), "{version}: {}", mails[0]);
    }
}

/// Synapse #7021: U+212A KELVIN SIGN lower-cases to `k`.
#[tokio::test(flavor = "multi_thread")]
async fn p0_6_s4_12_a_kelvin_sign_cannot_become_somebody_elses_k() {
    let synapse = legacy("1.3.1");
    let name = unique("bac");
    let naive = Naive::of(synapse, &format!("{name}\u{212a}@example.com"));
    let thief = unique("thief");
    synapse.bare().register(&thief, naive.creds()).await.ok();
    let stored = synapse.bare().login(&format!("{name}k@example.com"), PASSWORD).await.ok();
    assert_eq!(stored["user_id"], format!("@{thief}:localhost"), "the attack is real");

    let shim = roomy(synapse).await;
    let mut ran = 0;
    for written in [
        "bac\u{212a}@example.com",
        "m\u{131}ke@example.com",
        "M\u{130}KE@example.com",
        "stra\u{df}e@example.com",
        "\u{ff41}lice@example.com",
        "alice\u{ff20}example.com",
        "alice@ex\u{430}mple\u{3002}com\u{ff0e}",
        "alice@\u{ff45}xample.com",
        "alice@example\u{ff0e}com",
        "alice@e\u{301}xample.com",
        "alice@exam\u{ad}ple.com",
        "alice@exam\u{200d}ple.com",
        "alice@xn--\u{e9}.com",
        "alice@\u{2100}.com",
    ] {
        for purpose in ["register", "account/password", "account/3pid"] {
            let refused = shim.client().request_token(purpose, written, &unique("secret"), 1).await;
            assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()), "{purpose} {written}");
        }
        ran += 1;
    }
    assert_eq!(ran, 14);
    assert_eq!(shim.outbox(), [] as [String; 0], "no mail");
}

/// An IDN domain is one address, however it is written.
#[tokio::test(flavor = "multi_thread")]
async fn s4_12_the_unicode_and_the_ascii_form_of_a_domain_are_one_stored_address() {
    let shim = roomy(legacy("1.3.1")).await;
    let (name, domain) = (unique("idn"), unique("b\u{fc}cher"));
    let unicode = format!("{name}@{domain}.example");
    registered(&shim, &unicode).await;
    let stored = shim.outbox()[0].lines().find_map(|line| line.strip_prefix("To: ").map(str::to_owned)).unwrap();
    assert!(stored.is_ascii() && stored.contains("@xn--"), "{stored}");
    for spelling in [unicode.clone(), unicode.to_uppercase(), stored.clone(), stored.to_uppercase()] {
        let again = shim.client().request_token("register", &spelling, &unique("secret"), 1).await;
        assert_eq!(again.verdict(), (400, "M_THREEPID_IN_USE".into()), "{spelling}");
    }
    assert_eq!(shim.outbox().len(), 1);
}

/// CVE-2019-11340 and its kin: 40 odd addresses. What is not refused must be mailed as it is stored; these all are.
#[tokio::test(flavor = "multi_thread")]
async fn p4_5_s4_9_s4_10_an_address_that_two_parsers_read_differently_is_mailed_to_nobody() {
    let synapse = legacy("1.3.1");
    let naive = Naive::of(synapse, "x");
    let body = json!({ "email": "a@bad.example@good.example", "client_secret": "s", "send_attempt": 1, "id_server": naive.name });
    let bare = synapse.bare().post(&request_token_path("register"), body).await;
    assert_eq!(bare.status, 200, "the bare homeserver asks its identity server for such a mail");

    let shim = roomy(synapse).await;
    for written in ODD {
        let refused = shim.client().request_token("register", written, &unique("secret"), 1).await;
        assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()), "{written:?}");
    }
    let long = format!("{}@example.org", "a".repeat(500));
    assert_eq!(shim.client().request_token("register", &long, "secret", 1).await.status, 400);
    assert_eq!(ODD.len(), 40);
    assert_eq!(shim.outbox(), [] as [String; 0]);
}

const ODD: [&str; 40] = [
    "a@bad.example@good.example",
    "a@good.example(x)@evil.example",
    "user@good.example(x)evil",
    "(comment)a@b.example",
    "a(comment)@b.example",
    "\"a b\"@b.example",
    "\"a@evil.example\"@b.example",
    "\"\"@b.example",
    "<a@b.example>",
    "A <a@b.example>",
    "a@b.example>",
    "a@b.example,c@d.example",
    "a@b.example;c@d.example",
    "a@b.example c@d.example",
    "a,c@b.example",
    "@relay.example:a@b.example",
    "a%evil.example@b.example ",
    " a@b.example",
    "a@b.example ",
    "a@b.example\r\nBcc: c@d.example",
    "a@b.example\nBcc: c@d.example",
    "a\r\n@b.example",
    "a@b.example\r",
    "a@b.example\0",
    "a\0@b.example",
    "a@b.example\t",
    "a@b.example%0d%0aBcc: c@d.example",
    "a@[127.0.0.1]",
    "a@127.0.0.1",
    "a@localhost",
    "a@b..example",
    "a@.b.example",
    "a@b.example.",
    "a@-b.example",
    "a@b_c.example",
    ".a@b.example",
    "a..b@c.example",
    "@b.example",
    "a@",
    "",
];

/// CVE-2023-7028 (GitLab): an array of two addresses checks one and mails both.
#[tokio::test(flavor = "multi_thread")]
async fn s4_11_a_list_of_addresses_mails_none_of_them() {
    let synapse = legacy("1.3.1");
    let shim = roomy(synapse).await;
    let email = format!("{}@example.org", unique("victim"));
    registered(&shim, &email).await;
    let list = format!(r#"["{email}","thief@example.org"]"#);
    let object = format!(r#"{{"address":"{email}"}}"#);
    for written in [list.as_str(), object.as_str(), "5", "true", "null", "[]"] {
        for purpose in ["register", "account/password", "account/3pid"] {
            let body = format!(r#"{{"email":{written},"client_secret":"s","send_attempt":1}}"#);
            let refused = shim.client().send("POST", &request_token_path(purpose), body.as_bytes()).await;
            assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()), "{purpose} {body}");
        }
    }
    for twice in [
        format!(r#"{{"email":"{email}","email":"thief@example.org","client_secret":"s","send_attempt":1}}"#),
        format!(r#"{{"email":"{email}","e\u006dail":"thief@example.org","client_secret":"s","send_attempt":1}}"#),
        format!(r#"{{"email":"{email}","Email":"thief@example.org","client_secret":"s","send_attempt":1}}"#),
    ] {
        let refused = shim.client().send("POST", &request_token_path("account/password"), twice.as_bytes()).await;
        assert_eq!(refused.verdict(), (400, "M_BAD_JSON".into()), "{twice}");
    }
    assert_eq!(shim.outbox().len(), 1, "the registration's own");
}
