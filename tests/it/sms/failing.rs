//! A gateway that fails: nothing hangs, nothing is sent twice, and nobody else gets the message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use threepid_shim::delivery::{DeliveryError, Stage};

use super::{delivery, looked_up, sms, twilio};
use crate::gateway::{Does, Gateway};
use crate::mailbox::Certificate;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: ";

/// One message within a second and a half, what became of it, and how long that took.
async fn sent(keys: &str) -> (Result<(), DeliveryError>, Duration) {
    let began = Instant::now();
    let result = delivery(&format!("deadline = \"1500ms\"\n{keys}")).sms(&sms()).await;
    (result, began.elapsed())
}

/// S§5.9.
#[tokio::test]
async fn whatever_happens_behind_the_request_it_is_never_sent_again() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(200_000));
    // It would be a success, if it were read to its end.
    let huge = format!("{HEAD}70029\r\n\r\n{}{}", r#"{"messages":[{"status":"0"}]}"#, " ".repeat(70_000));
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        "400\r\n".to_owned() + &"x".repeat(1024) + "\r\n"
    );
    let rows = [
        (Does::Hangs(String::new()), "deadline", true),
        (Does::Hangs("HTTP/1.1 100 Continue\r\n\r\n".to_owned()), "deadline", true),
        (Does::Hangs("HTTP/1.1 200 OK\r\nX-Half".to_owned()), "deadline", true),
        (Does::Hangs(format!("{HEAD}30\r\n\r\n{{\"messages\"")), "deadline", true),
        (Does::Hangs(chunked.clone()), "deadline", true),
        (Does::say(""), "unanswered", false),
        (Does::say("HTTP/1.1 200 OK\r\nX-Half"), "unanswered", false),
        (Does::say(&format!("{HEAD}30\r\n\r\n{{\"messages\"")), "unanswered", false),
        (Does::say(&chunked), "unanswered", false),
        (Does::say("220 mail.example.org ESMTP\r\n"), "unfit", false),
        (Does::say(&endless), "unfit", false),
        (Does::say(&huge), "unfit", false),
        (Does::Breaks, "unanswered", false),
    ];
    let mut ran = 0;
    for (does, expected, is_slow) in rows {
        let gateway = Gateway::http(does.clone()).await;
        let (result, took) = sent(&looked_up(&gateway)).await;
        let error = result.unwrap_err();
        let is_expected = match expected {
            "deadline" => matches!(error, DeliveryError::Deadline { during: Stage::Gateway }),
            "unanswered" => matches!(error, DeliveryError::Unanswered { during: Stage::Gateway, .. }),
            _ => matches!(error, DeliveryError::Unfit { stage: Stage::Gateway, .. }),
        };
        assert!(is_expected, "{does:?}: {error}");
        assert_eq!(gateway.connections(), 1, "{does:?}");
        assert_eq!(took >= Duration::from_millis(1500), is_slow, "{does:?}: {took:?}");
        assert!(took < Duration::from_secs(4), "{does:?}: {took:?}");
        ran += 1;
    }
    assert_eq!(ran, 13);
}

#[tokio::test]
async fn a_message_that_twilio_has_taken_stays_taken_whatever_comes_behind_its_201() {
    let created = "HTTP/1.1 201 Created\r\nContent-Length: 90000\r\n\r\n";
    let huge = format!("{created}{}", "x".repeat(90_000));
    for does in [Does::say(created), Does::say(&huge), Does::Hangs(created.to_owned()), Does::answer(201, "<html>")] {
        let gateway = Gateway::http(does.clone()).await;
        let (result, took) = sent(&twilio(&gateway)).await;
        result.unwrap_or_else(|error| panic!("{does:?}: {error}"));
        assert!(took < Duration::from_secs(3), "{does:?}: {took:?}");
        assert_eq!(gateway.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_certificate_of_nobody_or_of_somebody_else_gets_no_message() {
    for certificate in [Certificate::SelfSigned, Certificate::WrongName, Certificate::Expired] {
        let gateway = Gateway::https(certificate, [], Does::answer(201, "{}")).await;
        let (result, _) = sent(&twilio(&gateway)).await;
        let Err(error @ DeliveryError::Untrusted { .. }) = result else { panic!("{result:?}") };
        let is_late = certificate == Certificate::Expired;
        assert_eq!(error.chain().contains("expired"), is_late, "{}", error.chain());
        assert_eq!((gateway.connections(), gateway.requests().len()), (1, 0), "not tried again");
    }
    let gateway = Gateway::https(Certificate::Good, [], Does::answer(201, "{}")).await;
    let keys = twilio(&gateway);
    let (without_ca, _) = keys.split_once("ca_file").unwrap();
    let (result, _) = sent(without_ca).await;
    assert!(matches!(result, Err(DeliveryError::Untrusted { .. })), "{result:?}");
    assert_eq!(gateway.requests().len(), 0);
}

#[tokio::test]
async fn a_gateway_that_answers_tls_in_clear_gets_no_message() {
    let gateway = Gateway::http(Does::answer(201, "{}")).await;
    let (result, _) = sent(&twilio(&gateway).replace("http://127.0.0.1", "https://localhost")).await;
    assert!(result.is_err());
    assert_eq!(gateway.requests().len(), 0);
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_request_is_tried_once_more() {
    let gateway = Gateway::https(Certificate::Good, [Does::Breaks], Does::answer(201, "{}")).await;
    sent(&twilio(&gateway)).await.0.unwrap();
    assert_eq!((gateway.connections(), gateway.requests().len()), (2, 1));

    let gateway = Gateway::https(Certificate::Good, [Does::Breaks, Does::Breaks], Does::answer(201, "{}")).await;
    let (result, _) = sent(&twilio(&gateway)).await;
    assert!(matches!(result, Err(DeliveryError::Unreachable { stage: Stage::Tls, .. })), "{result:?}");
    assert_eq!((gateway.connections(), gateway.requests().len()), (2, 0), "and then no more");
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_an_error_at_once() {
    let mut gateway = Gateway::http(Does::answer(201, "{}")).await;
    gateway.stop().await;
    let (result, took) = sent(&twilio(&gateway)).await;
    assert!(matches!(result, Err(DeliveryError::Unreachable { stage: Stage::Connect, .. })), "{result:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let (result, _) = sent(&twilio(&gateway).replace("http://127.0.0.1", "https://gateway.invalid")).await;
    let error = result.unwrap_err();
    assert!([Stage::Dns, Stage::Deadline].contains(&error.stage()), "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Gateway::http(Does::answer(201, "{}")).await;
    let location = format!("http://{}/", elsewhere.address());
    for status in [301, 302, 303, 307, 308] {
        let said = format!("HTTP/1.1 {status} x\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let gateway = Gateway::http(Does::Says(said)).await;
        for keys in [twilio(&gateway), looked_up(&gateway)] {
            let (result, _) = sent(&keys).await;
            assert!(matches!(result, Err(DeliveryError::NotTaken { status: got, .. }) if got == status), "{result:?}");
        }
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn no_more_connections_are_open_than_the_operator_allows() {
    let gateway = Gateway::http(Does::Holds).await;
    let patient = Arc::new(delivery(&format!("max_connections = 2\ndeadline = \"20s\"\n{}", twilio(&gateway))));
    let sending: Vec<_> = (0..5)
        .map(|_| {
            let patient = Arc::clone(&patient);
            tokio::spawn(async move { patient.sms(&sms()).await })
        })
        .collect();
    for count in [2, 4, 5] {
        gateway.wait_for_requests(count).await;
        assert_eq!(gateway.requests().len(), count);
        gateway.release(2);
    }
    for sending in sending {
        sending.await.unwrap().unwrap();
    }
    assert_eq!((gateway.most_open(), gateway.connections()), (2, 5));
}

#[tokio::test]
async fn a_message_that_nobody_waits_for_any_more_frees_its_connection() {
    let gateway = Gateway::http(Does::Hangs(String::new())).await;
    let delivery = Arc::new(delivery(&format!("max_connections = 1\ndeadline = \"20s\"\n{}", twilio(&gateway))));
    for count in [1, 2] {
        let again = Arc::clone(&delivery);
        let sending = tokio::spawn(async move { again.sms(&sms()).await });
        gateway.wait_for_requests(count).await;
        sending.abort();
        assert!(sending.await.unwrap_err().is_cancelled());
    }
    assert_eq!(gateway.connections(), 2);
}
