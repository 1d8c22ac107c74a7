//! Messages on their way out: what reaches the gateway, and what becomes of every way it can fail.

mod failing;
mod mock;

use std::collections::BTreeSet;

use threepid_shim::config::Config;
use threepid_shim::delivery::{Delivery, DeliveryError, Sms};
use threepid_shim::matrix::Sid;
use threepid_shim::telemetry::{Metrics, RequestId};

use crate::gateway::{Does, Gateway};
use crate::logged;
use crate::mailbox::Certificate;

const TEXT: &str = "042137 is your \"code\" & more on example.org.";

fn config(keys: &str) -> Config {
    let head =
        "server_name = \"example.org\"\npublic_base_url = \"https://a\"\nemail.from = \"a@example.org\"\n[sms]\n";
    Config::from_text(&format!("{head}{keys}")).unwrap_or_else(|faults| panic!("{faults}\n{keys}"))
}

fn delivery_counted(keys: &str, metrics: Metrics) -> Delivery {
    let config = config(keys);
    Delivery::new(&config.email, &config.sms, "example.org", metrics).unwrap_or_else(|error| panic!("{error}\n{keys}"))
}

fn delivery(keys: &str) -> Delivery {
    delivery_counted(keys, Metrics::new())
}

fn sms() -> Sms {
    Sms {
        to: serde_json::from_value("447700900123".into()).unwrap(),
        text: TEXT.to_owned(),
        code: "042137".to_owned(),
        sid: Sid::from_random([7; 16]),
        request_id: RequestId::from_random([3; 8]),
        attempt: 1,
    }
}

fn twilio(gateway: &Gateway) -> String {
    let login = "transport = \"twilio\"\naccount = \"AC0\"\ntoken = \"sesame\"\nfrom = \"+441134960000\"\n";
    format!("{login}{}", gateway.keys("base_url", ""))
}

/// A gateway whose success is looked up in its answer, as Vonage's is.
fn looked_up(gateway: &Gateway) -> String {
    let rule = "success_pointer = \"/messages/0/status\"\nsuccess_value = \"0\"\n";
    format!("transport = \"http\"\n{rule}{}", gateway.keys("url", "/send"))
}

#[tokio::test]
async fn twilio_gets_its_form_over_tls_with_login_and_one_idempotency_key() {
    let gateway = Gateway::https(Certificate::Good, [], Does::answer(201, r#"{"sid":"SM0","code":null}"#)).await;
    delivery(&twilio(&gateway)).sms(&sms()).await.unwrap();
    let service = twilio(&gateway).replace("+441134960000", "MG0123456789abcdef0123456789abcdef");
    delivery(&service).sms(&sms()).await.unwrap();
    let got = gateway.requests();
    assert_eq!(got.len(), 2);
    assert_eq!(got[0].line, "POST /2010-04-01/Accounts/AC0/Messages.json HTTP/1.1");
    assert_eq!(got[0].field("host").unwrap(), format!("localhost:{}", gateway.address().port()));
    assert_eq!(got[0].field("authorization"), Some("Basic QUMwOnNlc2FtZQ=="));
    assert_eq!(got[0].field("content-type"), Some("application/x-www-form-urlencoded"));
    let body = "To=%2B447700900123&From=%2B441134960000&Body=042137+is+your+%22code%22+%26+more+on+example.org.";
    assert_eq!(got[0].body, body);
    assert_eq!(got[1].form()[1], ("MessagingServiceSid".to_owned(), "MG0123456789abcdef0123456789abcdef".to_owned()));
}

/// S§5.9.
#[tokio::test]
async fn an_idempotency_key_is_the_same_for_one_attempt_and_tells_no_sid() {
    let gateway = Gateway::http(Does::answer(201, "{}")).await;
    let delivery = delivery(&twilio(&gateway));
    let other = Sms { sid: Sid::from_random([8; 16]), ..sms() };
    for sms in [sms(), sms(), Sms { attempt: 2, ..sms() }, other] {
        delivery.sms(&sms).await.unwrap();
    }
    let keys: Vec<_> = gateway.requests().iter().map(|got| got.field("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys[0], keys[1]);
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(keys.iter().all(|key| key.len() == 64 && !key.contains("0707")), "{keys:?}");
}

#[tokio::test]
async fn nothing_but_201_is_twilios_success_and_some_codes_are_the_recipients() {
    let error = |code: i64| format!(r#"{{"code":{code},"message":"+447700900123 {code}","status":400}}"#);
    let rows = [
        (400, error(21211), Some("21211"), true),
        (400, error(21408), Some("21408"), true),
        (400, error(21610), Some("21610"), true),
        (400, error(21614), Some("21614"), true),
        (400, error(21606), Some("21606"), false),
        (401, error(20003), Some("20003"), false),
        (429, error(20429), Some("20429"), false),
        (500, error(20500), Some("20500"), false),
        (503, error(21614), Some("21614"), false),
        (400, error(447_700_900_123), None, false),
        (400, "<html>".to_owned(), None, false),
        (200, "{}".to_owned(), None, false),
        (202, r#"{"sid":"SM0"}"#.to_owned(), None, false),
        (302, String::new(), None, false),
    ];
    let mut ran = 0;
    for (status, body, code, recipient) in rows {
        let gateway = Gateway::http(Does::answer(status, &body)).await;
        let error = delivery(&twilio(&gateway)).sms(&sms()).await.unwrap_err();
        assert_eq!(error.refused_recipient(), recipient, "{status} {body}");
        let DeliveryError::NotTaken { status: got, code: told, .. } = error else { panic!("{error}") };
        assert_eq!((got, told.as_deref()), (status, code), "{body}");
        assert_eq!(gateway.requests().len(), 1, "an answer is never asked for twice");
        ran += 1;
    }
    assert_eq!(ran, 14);
}

#[tokio::test]
async fn an_http_gateway_gets_what_its_templates_say() {
    let gateway = Gateway::http(Does::answer(204, "")).await;
    let rows = [
        ("", "POST", "/send", r#"{"to": "+447700900123", "text": "042137 is your \"code\" & more on example.org."}"#),
        (
            "from = \"A\\\"B\"\n",
            "POST",
            "/send",
            r#"{"to": "+447700900123", "from": "A\"B", "text": "042137 is your \"code\" & more on example.org."}"#,
        ),
        (
            "method = \"PUT\"\nheaders = { content-type = \"application/x-www-form-urlencoded\" }\n",
            "PUT",
            "/send",
            "to=%2B447700900123&text=042137+is+your+%22code%22+%26+more+on+example.org.",
        ),
        ("headers = { Content-Type = \"text/plain\" }\n", "POST", "/send", TEXT),
        (
            "body = '{\"mobileTerminate\": {\"message\": {\"content\": \"{{ server_name }}: {{ code }}\"}, \"destination\": \"{{ msisdn }}\"}}'\n",
            "POST",
            "/send",
            r#"{"mobileTerminate": {"message": {"content": "example.org: 042137"}, "destination": "447700900123"}}"#,
        ),
        ("method = \"GET\"\n", "GET", "/{{ msisdn }}?t={{ text }}&to={{ to }}", ""),
    ];
    let mut ran = 0;
    for (keys, method, path, body) in rows {
        delivery(&format!("transport = \"http\"\n{keys}{}", gateway.keys("url", path))).sms(&sms()).await.unwrap();
        let got = gateway.requests().pop().unwrap();
        let encoded = "042137%20is%20your%20%22code%22%20%26%20more%20on%20example.org.";
        let target = path.replace("{{ msisdn }}", "447700900123").replace("{{ text }}", encoded);
        let target = target.replace("{{ to }}", "%2B447700900123");
        assert_eq!((got.line, got.body.as_str()), (format!("{method} {target} HTTP/1.1"), body));
        ran += 1;
    }
    assert_eq!((ran, gateway.requests().len()), (6, 6));
}

#[tokio::test]
async fn headers_are_templates_and_a_signature_proves_who_asked() {
    let gateway = Gateway::http(Does::answer(200, "")).await;
    let keys = "transport = \"http\"\nbody = '{\"n\": \"{{ msisdn }}\"}'\nsignature_header = \"X-Signature\"
signature_secret = \"sesame\"\nheaders = { Authorization = \"Bearer sesame\", X-For = \"{{ server_name }} {{ code }}\", User-Agent = \"mine\" }\n";
    delivery(&format!("{keys}{}", gateway.keys("url", "/"))).sms(&sms()).await.unwrap();
    let got = gateway.requests().remove(0);
    assert_eq!(got.body, r#"{"n": "447700900123"}"#);
    let fields = [
        ("authorization", "Bearer sesame"),
        ("x-for", "example.org 042137"),
        ("user-agent", "mine"),
        ("content-type", "application/json"),
        ("accept", "application/json"),
        // As `printf '{"n": "447700900123"}' | openssl dgst -sha256 -hmac sesame` says.
        ("x-signature", "sha256=6f62b67a17719b1bccf22c996161c4498a55cc1eba93c2483eaf7a22295e4b9d"),
    ];
    for (name, value) in fields {
        assert_eq!(got.field(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn the_operator_says_which_answers_are_a_success() {
    let vonage =
        |status: &str| format!(r#"{{"message-count":"1","messages":[{{"status":{status},"to":"447700900123"}}]}}"#);
    let rule = "success_pointer = \"/messages/0/status\"\nsuccess_value = \"0\"\n";
    let rows = [
        ("", 200, String::new(), "ok"),
        ("", 202, "<html>".to_owned(), "ok"),
        ("", 302, String::new(), "302 none"),
        ("", 500, String::new(), "500 none"),
        ("success_status = [202]\n", 202, String::new(), "ok"),
        ("success_status = [202]\n", 200, String::new(), "200 none"),
        (rule, 200, vonage("\"0\""), "ok"),
        (rule, 200, vonage("0"), "ok"),
        (rule, 200, vonage("\"4\""), "200 4"),
        (rule, 200, vonage("\"447700900123\""), "200 none"),
        (rule, 200, vonage("\"Invalid number\""), "200 none"),
        (rule, 401, vonage("\"4\""), "401 4"),
        (rule, 500, vonage("\"0\""), "500 0"),
        (rule, 200, vonage("null"), "unfit"),
        (rule, 200, "{\"messages\":[]}".to_owned(), "unfit"),
        (rule, 200, "0".to_owned(), "unfit"),
        (rule, 200, String::new(), "unfit"),
        (rule, 200, "[".repeat(60_000), "unfit"),
    ];
    let mut ran = 0;
    for (keys, status, body, expected) in rows {
        let gateway = Gateway::http(Does::answer(status, &body)).await;
        let keys = format!("transport = \"http\"\n{keys}{}", gateway.keys("url", "/"));
        let said = match delivery(&keys).sms(&sms()).await {
            Ok(()) => "ok".to_owned(),
            Err(DeliveryError::NotTaken { status, code, recipient: false }) => {
                format!("{status} {}", code.as_deref().unwrap_or("none"))
            }
            Err(DeliveryError::Unfit { .. }) => "unfit".to_owned(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(said, expected, "{keys} {status} {body}");
        assert_eq!(gateway.requests().len(), 1);
        ran += 1;
    }
    assert_eq!(ran, 18);
}

#[tokio::test]
async fn the_operator_reads_stage_status_and_code_and_never_number_code_or_text() {
    logged::listen();
    let metrics = Metrics::new();
    let refusal = r#"{"code":21614,"message":"+447700900123 is not a mobile number: 042137 is your"}"#;
    let first = [Does::Breaks, Does::answer(400, refusal), Does::answer(401, r#"{"code":20003}"#)];
    let gateway = Gateway::https(Certificate::Good, first, Does::answer(201, r#"{"sid":"SM4711"}"#)).await;
    let delivery = delivery_counted(&twilio(&gateway), metrics.clone());
    for is_taken in [false, false, true] {
        assert_eq!(delivery.sms(&sms()).await.is_ok(), is_taken);
    }
    delivery_counted("transport = \"log\"\n", metrics.clone()).sms(&sms()).await.unwrap();
    let log = logged::take();
    for said in [
        "stage=tls",
        "one more try",
        "stage=rcpt",
        "status 400, code 21614",
        "stage=gateway",
        "status 401, code 20003",
        "gateway_id=\"SM4711\"",
        "a message would have been sent",
        "0303030303030303",
        "shim_0707",
    ] {
        assert!(log.contains(said), "{said} is not in {log}");
    }
    for secret in ["447700", "900123", "042137", "is your", "sesame", "QUMw", "AC0"] {
        assert!(!log.contains(secret), "{secret} is in {log}");
        assert!(!format!("{delivery:?} {:?}", sms()).contains(secret), "{secret}");
    }
    let rendered = metrics.render().unwrap();
    for (outcome, count) in [("rcpt", 1), ("gateway", 1), ("delivered", 2)] {
        let line = format!("threepid_shim_deliveries_total{{medium=\"msisdn\",outcome=\"{outcome}\"}} {count}");
        assert!(rendered.contains(&line), "{rendered}");
    }
    assert!(rendered.contains("threepid_shim_delivery_duration_seconds_count{medium=\"msisdn\"} 4"), "{rendered}");
}
