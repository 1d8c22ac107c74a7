//! `/versions`: one flag added, the rest as it came.

use serde_json::Value;
use threepid_shim::front::versions::learnt_msc2263;

use crate::forward::{Front, Mode, gzip};
use crate::homeserver::{Homeserver, Raw, json};

const GET: &str = "GET /_matrix/client/versions HTTP/1.1\r\nHost: h\r\n\r\n";
const FLAG: Mode = Mode::Versions { flag: true };

async fn through(mode: Mode, request: &str, answer: impl Into<Vec<u8>>) -> (Raw, Raw) {
    let homeserver = Homeserver::answering(answer).await;
    let front = Front::start(&homeserver.config(), mode, &[]);
    let answer = front.ask(request).await;
    (answer, homeserver.request())
}

#[tokio::test]
async fn the_flag_is_merged_into_what_homeservers_say() {
    const NEW: &str = r#""m.require_identity_server":false"#;
    let rows = [
        (r#"{"versions":["r0.0.1"]}"#, format!(r#"{{"versions":["r0.0.1"],"unstable_features":{{{NEW}}}}}"#)),
        (
            r#"{"versions":["r0.5.0"],"unstable_features":{"m.lazy_load_members":true}}"#,
            format!(r#"{{"versions":["r0.5.0"],"unstable_features":{{"m.lazy_load_members":true,{NEW}}}}}"#),
        ),
        (
            r#"{"unstable_features":{"z":1,"m.require_identity_server":true,"a":{}},"versions":[],"x":1.50}"#,
            format!(r#"{{"unstable_features":{{"z":1,{NEW},"a":{{}}}},"versions":[],"x":1.50}}"#),
        ),
        (
            r#"{"unstable_features":{"m.require_identity_server":false},"n":100000000000000000000000001}"#,
            format!(r#"{{"unstable_features":{{{NEW}}},"n":100000000000000000000000001}}"#),
        ),
        ("{}", format!(r#"{{"unstable_features":{{{NEW}}}}}"#)),
        ("{ \"versions\" :\n [ ] }\n", format!(r#"{{"versions":[],"unstable_features":{{{NEW}}}}}"#)),
    ];
    for (body, expected) in rows {
        let (answer, _) = through(FLAG, GET, json("200 OK", body)).await;
        assert_eq!(String::from_utf8_lossy(answer.body()), expected, "{body}");
        assert_eq!(answer.all("content-length"), [expected.len().to_string()]);
        assert_eq!(answer.field("content-type").as_deref(), Some("application/json"));
    }
}

#[tokio::test]
async fn what_is_no_200_with_an_object_goes_on_byte_for_byte() {
    let large = format!(r#"{{"versions":[],"x":"{}"}}"#, "x".repeat(2 * 1024 * 1024));
    let just_too_large = format!(r#"{{"x":"{}"}}"#, "x".repeat(1024 * 1024 - 7));
    let rows = [
        json("401 Unauthorized", r#"{"errcode":"M_UNKNOWN_TOKEN"}"#),
        json("429 Too Many Requests", r#"{"versions":[]}"#),
        json("500 Internal Server Error", "{}"),
        json("200 OK", "<html>"),
        json("200 OK", "[]"),
        json("200 OK", ""),
        json("200 OK", "null"),
        json("200 OK", "{\"versions\":[]} {}"),
        json("200 OK", "\u{feff}{}"),
        json("200 OK", r#"{"unstable_features":null}"#),
        json("200 OK", r#"{"unstable_features":["x"]}"#),
        json("200 OK", r#"{"unstable_features":true,"versions":[]}"#),
        json("201 Created", "{}"),
        json("200 OK", &large),
        json("200 OK", &just_too_large),
        "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n".into(),
        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".into(),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nETag: \"x\"\r\nContent-Length: 2\r\n\r\n\0\0".into(),
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\nno gzip".into(),
    ];
    assert_eq!(rows.len(), 20);
    for row in rows {
        let (answer, _) = through(FLAG, GET, row.clone()).await;
        let shown: String = String::from_utf8_lossy(&row).chars().take(200).collect();
        assert!(answer.0 == row, "{shown:?} became {:?}", answer.head());
    }
}

#[tokio::test]
async fn other_methods_and_a_flag_that_is_not_true_go_through_untouched() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    let range = "GET /_matrix/client/versions HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\nIf-None-Match: x\r\n\r\n";
    let rows = [
        (FLAG, GET.replace("GET", "OPTIONS"), format!("{head}{{}}")),
        (FLAG, GET.replace("GET", "POST"), format!("{head}{{}}")),
        (FLAG, GET.replace("GET", "HEAD"), head.to_owned()),
        (Mode::Versions { flag: false }, range.to_owned(), format!("{head}{{}}")),
    ];
    for (mode, request, expected) in rows {
        let (answer, received) = through(mode, &request, expected.clone()).await;
        assert_eq!(String::from_utf8_lossy(&answer.0), expected, "{request}");
        let sent = request.replace("\r\n\r\n", "\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&received.0), sent);
    }
}

#[tokio::test]
async fn a_coded_answer_is_decoded_and_fields_about_its_bytes_go() {
    let body = br#"{"versions":["r0.5.0"]}"#;
    let zlib = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, body).unwrap();
        encoder.finish().unwrap()
    };
    let raw = {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, body).unwrap();
        encoder.finish().unwrap()
    };
    for (coding, packed) in [("gzip", gzip(body)), ("X-GZIP", gzip(body)), ("deflate", zlib), ("deflate", raw)] {
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nETag: \"x\"\r\nLast-Modified: x\r\nContent-MD5: x\r\n\
             Digest: x\r\nAccept-Ranges: bytes\r\nVary: Authorization\r\nCache-Control: public, max-age=600\r\n\
             Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            packed.len()
        )
        .into_bytes();
        answer.extend(packed);
        answer.extend(b"\r\n0\r\n\r\n");
        let (answer, _) = through(FLAG, GET, answer).await;
        assert_eq!(answer.json()["unstable_features"]["m.require_identity_server"], Value::Bool(false), "{coding}");
        let mut names: Vec<_> = answer.fields().iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
        names.sort();
        // No length came, so that one is ours.
        assert_eq!(names, ["Cache-Control", "Vary", "content-length"]);
    }
}

#[tokio::test]
async fn a_bomb_is_not_unpacked() {
    let packed = gzip(format!(r#"{{"x":"{}"}}"#, "x".repeat(50 * 1024 * 1024)).as_bytes());
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", packed.len()).into_bytes();
    answer.extend(&packed);
    let (received, _) = through(FLAG, GET, answer.clone()).await;
    assert!(received.0 == answer, "{:?}", received.head());
}

#[tokio::test]
async fn it_is_asked_for_whole_and_plain_with_any_query() {
    let request = "GET /_matrix/client/versions?a=b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\nAccept-Encoding: gzip, br\r\n\
                   Range: bytes=0-3\r\nIf-None-Match: \"x\"\r\nIf-Modified-Since: x\r\nIf-Range: x\r\nX-CaSe: 1\r\n\r\n";
    let (_, received) = through(FLAG, request, json("200 OK", "{}")).await;
    assert_eq!(
        String::from_utf8_lossy(&received.0),
        "GET /_matrix/client/versions?a=b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\nAccept-Encoding: identity\r\n\
         X-Forwarded-For: 127.0.0.1\r\nX-CaSe: 1\r\n\r\n"
    );
}

#[test]
fn only_the_flag_or_exactly_r0_6_0_prove_that_a_homeserver_has_learnt() {
    let rows = [
        (r#"{"versions":["r0.6.0"]}"#, Some(true)),
        (r#"{"versions":["r0.5.0"],"unstable_features":{"m.require_identity_server":false}}"#, Some(true)),
        (r#"{"versions":["r0.5.0"],"unstable_features":{"m.require_identity_server":true}}"#, Some(false)),
        (r#"{"versions":["r0.5.0"],"unstable_features":{"m.require_identity_server":"false"}}"#, Some(false)),
        (r#"{"versions":["r0.5.0","r0.6.0"]}"#, Some(true)),
        (r#"{"versions":["r0.6.1"]}"#, Some(false)),
        (r#"{"versions":["v1.1","v1.2"]}"#, Some(false)),
        (r#"{"versions":[]}"#, Some(false)),
        (r#"{"versions":["r0.5.0"],"unstable_features":null}"#, Some(false)),
        (r#"{"versions":"r0.6.0"}"#, None),
        (r#"{"unstable_features":{"m.require_identity_server":false}}"#, None),
        ("[]", None),
        ("<html>", None),
        ("", None),
    ];
    for (body, expected) in rows {
        assert_eq!(learnt_msc2263(body.as_bytes()), expected, "{body}");
    }
    assert_eq!(rows.len(), 14);
}
