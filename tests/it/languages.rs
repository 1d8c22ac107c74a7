//! Mail, page and message in the language that the client asks for, and looking as the operator's own.

use serde_json::Value;

use crate::browser::chromium::open;
use crate::client::creds;
use crate::legacy::{legacy, unique};
use crate::postfix::server::parsed;
use crate::shim::{Shim, Wanted};

/// What clients send, what they get, and its words.
const ASKED: [(&str, &str, &str); 12] = [
    ("de-AT, en;q=0.5", "de", include_str!("../../config/languages/de.json")),
    ("en-GB", "en", include_str!("../../config/languages/en.json")),
    ("fr-CA,fr;q=0.8", "fr", include_str!("../../config/languages/fr.json")),
    ("es-419", "es", include_str!("../../config/languages/es.json")),
    ("it", "it", include_str!("../../config/languages/it.json")),
    ("pt-BR, en", "pt", include_str!("../../config/languages/pt.json")),
    ("nl-BE", "nl", include_str!("../../config/languages/nl.json")),
    ("tlh, pl;q=0.1", "pl", include_str!("../../config/languages/pl.json")),
    ("uk-UA", "uk", include_str!("../../config/languages/uk.json")),
    ("zh-CN,zh;q=0.9", "zh-hans", include_str!("../../config/languages/zh-Hans.json")),
    ("ja-JP", "ja", include_str!("../../config/languages/ja.json")),
    ("ar-EG, en;q=0.5", "ar", include_str!("../../config/languages/ar.json")),
];

/// The homeserver passes nothing of the client's language on: the note keeps it for the mail, and the page goes by the
/// browser's own.
#[tokio::test(flavor = "multi_thread")]
async fn mail_and_pages_are_in_each_language_that_is_asked_for() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    let mut ran = 0;
    for (asked, tag, words) in ASKED {
        let words: Value = serde_json::from_str(words).unwrap();
        let is_from_the_right = tag == "ar";
        let server = if is_from_the_right { "\u{2068}example.org\u{2069}" } else { "example.org" };
        let word = |path: &str| {
            let text = path.split('.').fold(&words, |value, name| &value[name]).as_str().unwrap();
            text.replace("{server_name}", server).replace("{name}", server)
        };
        let client = shim.client().with("Accept-Language", asked);
        let (name, secret) = (unique("language"), unique("secret"));
        let sid = client.request_token("register", &format!("{name}@example.org"), &secret, 1).await.sid();
        let mail = parsed(&shim.outbox().pop().unwrap());
        assert_eq!(mail["defects"], serde_json::json!([]), "{tag}");
        assert_eq!(mail["headers"]["subject"][0], word("mail.register.subject"), "{tag}");
        assert_eq!(mail["headers"]["content-language"][0], tag);
        let (text, html) = (mail["parts"][0]["text"].as_str().unwrap(), mail["parts"][1]["text"].as_str().unwrap());
        let joined = |text: &str| text.split_whitespace().collect::<String>();
        for path in ["mail.register.title", "mail.register.lead", "mail.register.unasked", "mail.sender"] {
            assert!(joined(text).contains(&joined(&word(path))), "{tag} {path}: {text}");
            assert!(html.contains(&word(path)), "{tag} {path}: {html}");
        }
        let direction = if is_from_the_right { "rtl" } else { "ltr" };
        let begin = format!("<html lang=\"{tag}\" dir=\"{direction}\">");
        assert!(html.contains(&begin), "{html}");

        let link = mail["parts"][0]["links"][0].as_str().unwrap();
        let page = client.open(link).await;
        assert_eq!(page.header("content-language"), Some(tag));
        for said in [begin.clone(), word("confirm.register.lead"), word("confirm.register.button")] {
            assert!(page.text().contains(&said), "{tag} {said}: {}", page.text());
        }
        let confirmed = client.press(link, &page).await;
        assert_eq!((confirmed.status, confirmed.header("content-language")), (200, Some(tag)));
        assert!(confirmed.text().contains(&word("confirmed.title")), "{tag}: {}", confirmed.text());
        client.register(&name, creds(&sid, &secret)).await.ok();
        ran += 1;
    }
    assert_eq!(ran, 12);
}

/// One pixel.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89\0\0\0\rIDATx\xdac\x64\xf8\xcf\x50\x0f\0\x03\x86\x01\x80\x5a\x34\x7d\x6b\0\0\0\0IEND\xaeB`\x82";

#[tokio::test(flavor = "multi_thread")]
async fn branding_shows_in_mail_and_page_without_a_complaint_and_changes_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let logo = folder.path().join("logo.png");
    std::fs::write(&logo, PNG).unwrap();
    let branding = format!(
        "[branding]\nname = \"Example & Chat\"\nlogo = \"{}\"\ncolour = \"#ffcc00\"\nsupport = \"help@example.org\"\nfooter = \"<Example> Ltd\"\n",
        logo.display()
    );
    let wanted = Wanted { look_every: Some(std::time::Duration::from_secs(3600)), ..Wanted::config(&branding) };
    let shim = legacy("1.3.1").shim(wanted).await;
    let link = asked(&shim).await;
    let mail = parsed_without_images(&shim.outbox().pop().unwrap());
    assert_eq!(mail["headers"]["subject"][0], "Confirm your email address for Example & Chat");
    let shown = open(&link, &[]);
    assert!(shown.text().contains("Example & Chat") && shown.text().contains("<Example> Ltd"), "{}", shown.text());
    assert!(shown.text().contains("An account on example.org is being created"), "{}", shown.text());
    assert_eq!(shown.console(), Vec::<&str>::new(), "the policy lets style and logo in");
    let page = shim.client().open(&link).await;
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.contains("; img-src data:; ") && page.text().contains("src=\"data:image/png;base64,iVBOR"),
        "{policy}"
    );

    shim.reload(|shim| shim.edit("name = \"Example & Chat\"", "name = \"Renamed\"")).await;
    assert!(shim.client().open(&link).await.text().contains(">Renamed</p>"));
    // The file by itself, too.
    shim.reload(|_| std::fs::write(&logo, [b"GIF89a\x01\0\x01\0\0\0\0".as_slice(), &[0; 20]].concat()).unwrap()).await;
    assert!(shim.client().open(&link).await.text().contains("src=\"data:image/gif;base64,R0lGODlh"));
    shim.reload(|shim| shim.edit(&format!("logo = \"{}\"", logo.display()), "")).await;
    let page = shim.client().open(&link).await;
    assert!(!page.header("content-security-policy").unwrap().contains("img-src") && !page.text().contains("<img"));
}

/// The link of a mail for a registration.
async fn asked(shim: &Shim) -> String {
    let (name, secret) = (unique("branded"), unique("secret"));
    let sid = shim.client().request_token("register", &format!("{name}@example.org"), &secret, 1).await.sid();
    shim.link(&sid)
}

/// The image is the third part, beside the HTML.
fn parsed_without_images(mail: &str) -> Value {
    let parsed = parsed(mail);
    assert_eq!((&parsed["defects"], &parsed["type"]), (&serde_json::json!([]), &"multipart/alternative".into()));
    let types: Vec<&str> =
        parsed["parts"].as_array().unwrap().iter().map(|part| part["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["text/plain", "text/html", "image/png"]);
    assert!(parsed["parts"][1]["text"].as_str().unwrap().contains("src=\"cid:logo@threepid-shim\""));
    assert!(mail.contains("Content-ID: <logo@threepid-shim>"));
    parsed
}
