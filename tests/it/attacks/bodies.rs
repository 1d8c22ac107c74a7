//! S§4 rows 8, 28 to 31 and 35: bodies that are too large, or that two parsers read differently.

use serde_json::json;

use super::naive::Naive;
use super::{ROOMY, logged_in, roomy};
use crate::client::{Answer, Client, request_token_path};
use crate::legacy::{VERSIONS, legacy, unique};
use crate::shim::{Shim, Wanted};

async fn ask(client: &Client, body: &[u8]) -> Answer {
    client.send("POST", &request_token_path("register"), body).await
}

/// Everything about `email` that a body can hide behind; `ID` stands where the bare homeserver needs its `id_server`.
fn bodies() -> Vec<Vec<u8>> {
    let good = r#"{ID"email":"a@example.org","client_secret":"s","send_attempt":1}"#;
    let mut all: Vec<Vec<u8>> = [
        good.to_owned(),
        format!(" \t\r\n{good}\n"),
        format!("\u{feff}{good}"),
        format!("\x0c{good}"),
        format!("\u{a0}{good}"),
        format!("{good}\0"),
        format!("{good}{good}"),
        format!("[{good}]"),
        format!("{good}//"),
        format!("/**/{good}"),
        good.replace('"', "'"),
        good.replace('}', ",}"),
        good.replace("1}", "01}"),
        good.replace("1}", "+1}"),
        good.replace("1}", "1.}"),
        good.replace("1}", "0x1}"),
        good.replace("1}", "1,\"x\":NaN}"),
        good.replace("1}", "1,\"x\":-Infinity}"),
        good.replace("1}", "1,\"x\":1e999999}"),
        good.replace("1}", "1,\"x\":123456789012345678901234567890}"),
        good.replace("1}", "1,\"x\":\"\\ud800\"}"),
        good.replace("1}", "1,\"\\udfff\":0}"),
        good.replace("1}", "1,\"x\":\"\t\"}"),
        good.replace("1}", "1,\"x\":\"\\x41\"}"),
        good.replace("1}", "1,\"x\":{\"email\":\"b@example.org\"}}"),
        good.replace("1}", "1,\"x\":[{\"a\":1,\"a\":2}]}"),
        good.replace("a@example", "\\u0061\\u0040example"),
        good.replace("a@example", "\\ud83d\\ude00@example"),
        good.replace("a@example", "\\ud800@example"),
        good.replace("a@example", "a\\u0000@example"),
        good.replace("\"email\"", "\"e\\u006dail\""),
        good.replace("\"email\"", "\"email\\u0000\""),
        good.replace("\"email\"", "\"EMAIL\""),
        good.replace("\"email\"", "\"email\":\"b@example.org\",\"email\""),
        good.replace("\"email\"", "\"email\":\"b@example.org\",\"e\\u006dail\""),
        good.replace("1}", "1,\"email\":\"b@example.org\"}"),
        good.replace("1}", "1,\"\":0}"),
        format!("{}\"x\":{}{}", good.replace("1}", "1,"), "[".repeat(20_000), "]".repeat(20_000) + "}"),
        "null".to_owned(),
        String::new(),
    ]
    .map(String::into_bytes)
    .to_vec();
    all.push(good.replace("1}", "1,\"x\":\"\u{80}\"}").replace('\u{80}', "RAW").into_bytes());
    let raw = all.pop().unwrap();
    let at = raw.windows(3).position(|three| three == b"RAW").unwrap();
    for bytes in [&b"\xff"[..], b"\xc0\xa2", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"] {
        all.push([&raw[..at], bytes, &raw[at + 3..]].concat());
    }
    for wide in [u16::to_le_bytes, u16::to_be_bytes] {
        all.push(good.encode_utf16().flat_map(wide).collect());
        all.push(format!("\u{feff}{good}").encode_utf16().flat_map(wide).collect());
    }
    all.push(good.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect());
    all
}

/// `body` with `id` for `ID`, in whichever encoding it is written.
fn with_id(body: &[u8], id: &str) -> Vec<u8> {
    let forms: [fn(&str) -> Vec<u8>; 4] = [
        |text| text.as_bytes().to_vec(),
        |text| text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        |text| text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        |text| text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect(),
    ];
    for form in forms {
        let mark = form("ID");
        if let Some(at) = body.windows(mark.len()).position(|window| window == mark) {
            return [&body[..at], &form(id), &body[at + mark.len()..]].concat();
        }
    }
    body.to_vec()
}

/// CVE-2017-12635 (CouchDB): each body is also shown to the homeserver itself.
#[tokio::test(flavor = "multi_thread")]
async fn s4_29_a_body_is_read_as_the_homeserver_reads_it_or_refused() {
    let synapse = legacy("1.3.1");
    let naive = Naive::of(synapse, "x");
    let shim = roomy(synapse).await;
    let (mut same, mut ran) = (0, 0);
    for body in bodies() {
        let text = String::from_utf8_lossy(&body).chars().take(120).collect::<String>();
        let heard = naive.heard().len();
        let bare = ask(&synapse.bare(), &with_id(&body, &format!("\"id_server\":\"{}\",", naive.name))).await;
        let read = naive.heard().get(heard).cloned();
        // Another session each time, or it would be a retry.
        let mailed = shim.outbox().len();
        let fresh = String::from_utf8(body.clone())
            .map(|text| text.replace("\"s\"", &format!("\"{}\"", unique("s"))).into_bytes());
        let here = ask(&shim.client(), &with_id(&fresh.unwrap_or(body), "")).await;
        if here.status == 200 {
            // It reads a key that it does not know, and then fails on it.
            let unknown_key = text.contains("\"x\":") || text.contains("\"\":");
            // Dendrite reads it, Synapse would not; what goes on is rewritten, so that one reading is left.
            let go_spelling = text.contains("EMAIL");
            let expected = if unknown_key {
                500
            } else if go_spelling {
                400
            } else {
                200
            };
            assert_eq!(bare.status, expected, "{text}: the homeserver does not read it");
            let read = read.unwrap_or_else(|| "\"email\":\"a@example.org\"".to_owned());
            assert!(read.contains("\"email\":\"a@example.org\""), "{text}: it reads another address");
            assert!(shim.outbox().last().unwrap().contains("To: a@example.org\r\n"), "{text}");
            same += 1;
        } else {
            assert_eq!((here.status, shim.outbox().len()), (400, mailed), "{text}: {}", here.text());
        }
        ran += 1;
    }
    assert_eq!((ran, same), (50, 11));
}

/// One documented rule, and never "absent" here and "present" there.
#[tokio::test(flavor = "multi_thread")]
async fn s4_30_an_id_server_is_absent_or_present_to_both_or_refused() {
    let synapse = legacy("1.3.1");
    let shim = roomy(synapse).await;
    let ours = (200, "");
    let foreign = (400, "M_SERVER_NOT_TRUSTED");
    let own = format!(r#""id_server":"{}""#, shim.identity);
    let table = [
        (r#""x":0"#, ours),
        (r#""id_server":null"#, ours),
        (r#""id_server":"""#, ours),
        (r#""id_server":5"#, ours),
        (r#""id_server":false"#, ours),
        (r#""id_server":[]"#, ours),
        (r#""id_server":["evil.example"]"#, ours),
        (r#""id_server":{"id_server":"evil.example"}"#, ours),
        (own.as_str(), ours),
        (r#""idServer":"evil.example""#, ours),
        (r#""id_server":"evil.example""#, foreign),
        (r#""id_server":" ""#, foreign),
        (r#""id\u005fserver":"evil.example""#, foreign),
        (r#""\u0069\u0064_server":"evil.example""#, foreign),
        (r#""id_server":"evil\u002eexample""#, foreign),
        (r#""id_server":"evil.example","id_access_token":"t""#, foreign),
        // To Dendrite it is there, to Synapse it is not; the homeserver says so itself.
        (r#""ID_SERVER":"evil.example""#, (400, "M_MISSING_PARAM")),
        (r#""id_server":"a","id_server":"b""#, (400, "M_BAD_JSON")),
        (r#""id_server":null,"id_server":"b""#, (400, "M_BAD_JSON")),
        (r#""id_server":null,"id\u005fserver":"b""#, (400, "M_BAD_JSON")),
        (r#""id_server":null,"Id_Server":"b""#, (400, "M_BAD_JSON")),
    ];
    let mut ran = 0;
    for (id_server, (status, errcode)) in table {
        let secret = unique("secret");
        let body =
            format!(r#"{{"email":"{secret}@example.org","client_secret":"{secret}","send_attempt":1,{id_server}}}"#);
        let mailed = shim.outbox().len();
        let answer = ask(&shim.client(), body.as_bytes()).await;
        assert_eq!(answer.verdict(), (status, errcode.to_owned()), "{id_server}: {}", answer.text());
        assert_eq!(shim.outbox().len() - mailed, usize::from(status == 200), "{id_server}");
        ran += 1;
    }
    assert_eq!(ran, 21);
}

/// Synapse does not decode bodies: what a decoding shim sees, it would not.
#[tokio::test(flavor = "multi_thread")]
async fn s4_31_a_labelled_body_is_refused_whether_the_label_is_true_or_not() {
    let shim = roomy(legacy("1.3.1")).await;
    let body = br#"{"email":"a@example.org","client_secret":"s","send_attempt":1}"#;
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut zipped, body).unwrap();
    let zipped = zipped.finish().unwrap();
    for path in [
        "register/email/requestToken",
        "account/password/email/requestToken",
        "register",
        "account/password",
        "account/3pid",
        "delete_devices",
    ] {
        for encoding in ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity, gzip", "nonsense"] {
            for bytes in [&body[..], &zipped] {
                let client = shim.client().with("Content-Encoding", encoding);
                let answer = client.send("POST", &format!("/_matrix/client/r0/{path}"), bytes).await;
                assert_eq!(answer.status, 415, "{path} {encoding}");
            }
        }
        let unlabelled = shim.client().send("POST", &format!("/_matrix/client/r0/{path}"), &zipped).await;
        assert_eq!(unlabelled.verdict(), (400, "M_NOT_JSON".into()), "{path}");
    }
    assert_eq!(shim.outbox(), [] as [String; 0]);
}

/// CVE-2021-21393, CVE-2021-29430: bodies and fields of any size filled disks.
#[tokio::test(flavor = "multi_thread")]
async fn p4_5_s4_28_a_body_or_a_field_of_any_size_is_refused() {
    let shim = roomy(legacy("1.3.1")).await;
    let good = r#"{"email":"a@example.org","client_secret":"s","send_attempt":1"#;
    let keys = |count| (0..count).fold(String::new(), |all: String, n| all + &format!(",\"k{n}\":0"));
    let table = [
        (format!("{good},\"x\":\"{}\"}}", "x".repeat(1 << 20)), 413, "M_TOO_LARGE"),
        (format!("{}{good}}}", " ".repeat(3 << 20)), 413, "M_TOO_LARGE"),
        (format!("{good}{}}}", keys(100_000)), 413, "M_TOO_LARGE"),
        (format!("{good}{}}}", keys(4000)), 400, "M_BAD_JSON"),
        (good.replace("\"s\"", &format!("\"{}\"", "s".repeat(256))) + "}", 400, "M_INVALID_PARAM"),
        (good.replace("a@example", &format!("{}@example", "a".repeat(490))) + "}", 400, "M_INVALID_PARAM"),
        (format!("{good},\"next_link\":\"https://a.example/{}\"}}", "x".repeat(2048)), 400, "M_INVALID_PARAM"),
    ];
    for (body, status, errcode) in &table {
        assert_eq!(
            ask(&shim.client(), body.as_bytes()).await.verdict(),
            (*status, (*errcode).to_owned()),
            "{}",
            body.chars().take(99).collect::<String>()
        );
    }
    let user = logged_in(&shim.client()).await;
    let large = format!("{{\"three_pid_creds\":{{}},\"x\":\"{}\"}}", "x".repeat(1 << 20));
    for path in ["register", "account/password", "account/3pid", "account/deactivate", "delete_devices"] {
        let answer = user.send("POST", &format!("/_matrix/client/r0/{path}"), large.as_bytes()).await;
        assert_eq!(answer.verdict(), (413, "M_TOO_LARGE".into()), "{path}");
    }
    let body = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let request = format!(
        "POST /_matrix/client/r0/register HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{body}",
        shim.clients
    );
    assert_eq!(crate::client::parse(&crate::client::raw(&shim.clients, request.as_bytes()).await).status, 413);
    assert_eq!(shim.outbox(), [] as [String; 0]);
}

/// Synapse's `$` lets a trailing line feed pass; it ended in a header of somebody's.
#[tokio::test(flavor = "multi_thread")]
async fn s4_35_a_client_secret_with_a_line_feed_behind_it_is_refused() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let naive = Naive::of(synapse, "x");
        let body =
            json!({ "email": "a@example.org", "client_secret": "abc\n", "send_attempt": 1, "id_server": naive.name });
        assert_eq!(
            synapse.bare().post(&request_token_path("register"), body).await.status,
            200,
            "{version}: the bare one takes it"
        );
        let shim = roomy(synapse).await;
        for secret in ["abc\n", "abc\r\n", "\nabc", "a b", "", "a/b", "a%62", "\u{e4}", "\u{0661}", "a\0"] {
            let refused = shim.client().request_token("register", "a@example.org", secret, 1).await;
            assert_eq!(refused.verdict(), (400, "M_INVALID_PARAM".into()), "{version} {secret:?}");
        }
        assert_eq!(shim.outbox(), [] as [String; 0]);
    }
}

/// Mail bombing by repetition; legacy Synapse passes any send_attempt on.
#[tokio::test(flavor = "multi_thread")]
async fn s4_8_a_hundred_repetitions_are_one_mail_and_odd_attempts_none() {
    let shim = legacy("1.3.1").shim(Wanted::config(ROOMY)).await;
    let secret = unique("secret");
    let email = format!("{secret}@example.org");
    let send = |attempt: &str| {
        let body = format!(r#"{{"email":"{email}","client_secret":"{secret}","send_attempt":{attempt}}}"#);
        let client = shim.client();
        async move { ask(&client, body.as_bytes()).await }
    };
    let sid = send("7").await.sid();
    for attempt in ["7", "6", "0", "-1", "-9223372036854775808"].into_iter().cycle().take(100) {
        assert_eq!(send(attempt).await.sid(), sid, "{attempt}");
    }
    assert_eq!(shim.outbox().len(), 1);
    for attempt in ["\"8\"", "8.0", "8e0", "1e30", "9223372036854775808", "true", "null", "[8]", "{}"] {
        assert_eq!(send(attempt).await.verdict(), (400, "M_INVALID_PARAM".into()), "{attempt}");
    }
    assert_eq!(mails(&shim), 1);
    assert_eq!(send("9223372036854775807").await.sid(), sid);
    assert_eq!(mails(&shim), 2);
}

fn mails(shim: &Shim) -> usize {
    shim.outbox().len()
}
