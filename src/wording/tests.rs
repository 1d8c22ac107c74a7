//! What mails and pages say, and what they never do.

use super::*;

const HOSTILE: &str = "\"'><svg onload=alert(1)>{{ 7*7 }}</style><a href=\"https://evil.example\">\r\nBcc: x@y";
const LINK: &str = "https://matrix.example.org/submit_token?token=0123&sid=shim_0&client_secret=a.b=c";

fn english() -> (Wording, Language) {
    let wording = Wording::new("en", []).unwrap();
    let language = wording.language(Some("en"));
    (wording, language)
}

fn mail(purpose: Purpose, server_name: &str, link: &str) -> MailText {
    let (wording, language) = english();
    let lifetime = Duration::from_secs(3600);
    wording.mail(&MailFacts { language: &language, purpose, server_name, link, lifetime }).unwrap()
}

fn page(kind: PageKind<'_>, server_name: &str) -> String {
    let (wording, language) = english();
    wording.page(&Page { language: &language, server_name, kind }).unwrap()
}

/// S§4.19.
#[test]
fn every_mail_says_what_for_where_how_long_and_what_to_do_if_it_was_not_you() {
    let mut subjects = std::collections::BTreeSet::new();
    for purpose in Purpose::ALL {
        let mail = mail(purpose, "example.org", LINK);
        let text = mail.text.split_whitespace().collect::<Vec<_>>().join(" ");
        for sentence in ["If this was not you", "The link works for 1 hour.", "on example.org"] {
            assert!(text.contains(sentence), "{purpose:?} text lacks {sentence}");
            assert!(mail.html.contains(sentence), "{purpose:?} html lacks {sentence}");
        }
        assert!(mail.subject.contains("example.org") && !mail.subject.contains("http"));
        subjects.insert(mail.subject);
    }
    assert_eq!(subjects.len(), Purpose::ALL.len());
}

#[test]
fn a_mail_holds_exactly_one_link_in_each_part() {
    for purpose in Purpose::ALL {
        let mail = mail(purpose, "example.org", LINK);
        assert_eq!(mail.text.matches("://").count(), 1);
        assert!(mail.text.lines().any(|line| line == LINK), "the link is a line of its own");
        assert_eq!(mail.html.matches("://").count(), 1);
        assert_eq!(mail.html.matches("href=").count(), 1);
        assert!(mail.html.contains(&format!("<a href=\"{}\"", LINK.replace('&', "&amp;"))));
    }
}

/// S§4.15.
#[test]
fn hostile_values_make_no_element_and_no_header_in_any_mail() {
    for purpose in Purpose::ALL {
        let (plain, hostile) = (mail(purpose, "x", "y"), mail(purpose, HOSTILE, HOSTILE));
        assert_eq!(plain.html.matches('<').count(), hostile.html.matches('<').count());
        assert!(!hostile.subject.contains(['\r', '\n']));
    }
}

#[test]
fn hostile_values_make_no_element_on_any_page() {
    let mut ran = 0;
    for kind in samples() {
        let hostile = match kind {
            PageKind::Confirm { purpose, next_link_host, .. } => PageKind::Confirm {
                purpose,
                masked_address: HOSTILE,
                next_link_host: next_link_host.map(|_| HOSTILE),
                fields: &[(HOSTILE, HOSTILE)],
            },
            PageKind::Confirmed
            | PageKind::AlreadyConfirmed
            | PageKind::Invalid
            | PageKind::TryLater
            | PageKind::Limited => kind,
        };
        let (plain, hostile) = (page(kind, "example.org"), page(hostile, HOSTILE));
        for mark in ["<", ">", "\""] {
            assert_eq!(plain.matches(mark).count(), hostile.matches(mark).count(), "{mark} in {hostile}");
        }
        assert!(!hostile.contains("49"), "a value is never a template");
        ran += 1;
    }
    assert_eq!(ran, 13);
}

#[test]
fn the_confirm_page_says_what_where_whose_and_what_to_do_if_it_was_not_you() {
    for purpose in Purpose::ALL {
        let fields = &[("token", "0123"), ("sid", "shim_0")];
        let next_link_host = Some("app.example.net");
        let masked_address = "a•••@example.com";
        let page = page(PageKind::Confirm { purpose, masked_address, next_link_host, fields }, "example.org");
        assert!(page.contains("If you did not ask for this, close this page."), "{purpose:?}");
        for fact in [masked_address, "<dd>example.org</dd>", "<dd>app.example.net</dd>"] {
            assert!(page.contains(fact), "{purpose:?} lacks {fact}");
        }
        assert_eq!(page.matches("<button type=\"submit\"").count(), 1);
        assert!(page.contains("<form method=\"post\" action=\"?\""));
        assert!(page.contains("<input type=\"hidden\" name=\"token\" value=\"0123\">"));
    }
}

#[test]
fn every_page_stands_alone_and_speaks_to_a_screen_reader() {
    for kind in samples() {
        let page = page(kind, "example.org");
        assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\" dir=\"ltr\">"));
        for once in ["<main>", "<h1>", "<title>", "<style>", "name=\"viewport\"", "content=\"noindex\""] {
            assert_eq!(page.matches(once).count(), 1, "{once}");
        }
        for never in ["://", "src=", "href=", "style=", "<script", "<link", "url(", "@import"] {
            assert!(!page.contains(never), "{never}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains(":focus-visible"));
    }
}

#[test]
fn everything_that_is_built_in_can_be_filled_in_every_language() {
    let (wording, _) = english();
    assert_eq!(wording.try_everything(wording.languages.all()).unwrap(), wording.style_hash());
}

/// By the isolates of Unicode's UAX #9, in texts without markup, too.
#[test]
fn in_arabic_everything_begins_at_the_right_and_a_servers_name_stands_apart() {
    let wording = Wording::new("en", []).unwrap();
    let language = wording.language(Some("ar-EG"));
    let lifetime = Duration::from_secs(3600);
    let facts =
        MailFacts { language: &language, purpose: Purpose::Register, server_name: "example.org", link: LINK, lifetime };
    let mail = wording.mail(&facts).unwrap();
    assert!(
        mail.html.contains("<html lang=\"ar\" dir=\"rtl\">") && mail.html.contains("<main lang=\"ar\" dir=\"rtl\"")
    );
    assert!(mail.subject.contains("\u{2068}example.org\u{2069}"), "{}", mail.subject);
    assert!(mail.text.lines().any(|line| line == LINK), "the link stays as it is");
    let page =
        wording.page(&Page { language: &language, server_name: "example.org", kind: PageKind::Confirmed }).unwrap();
    assert!(page.contains("<html lang=\"ar\" dir=\"rtl\">"));
}

#[test]
fn the_style_hash_is_that_of_the_style_on_the_page() {
    let over = [("style.css".to_owned(), "p {\r\n color: red }".to_owned())];
    let wording = Wording::new("en", over).unwrap();
    // As `openssl dgst -sha256 -binary | base64` says of "p {\n color: red }".
    assert_eq!(wording.style_hash(), "sha256-++wI16RAoC2SQAZ77WKyRauqH1O4ZVHUj5Kwxl7Iejg=");
    let language = wording.language(None);
    let page = Page { language: &language, server_name: "x", kind: PageKind::Invalid };
    assert!(wording.page(&page).unwrap().contains("<style>p {\n color: red }</style>"));
    assert_ne!(english().0.style_hash(), wording.style_hash());
}

#[test]
fn every_fault_of_every_template_is_named_at_the_start_with_its_file_and_line() {
    let faults = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(file, source)| ((*file).to_owned(), (*source).to_owned()));
        Wording::new("en", files).err().map(|it| it.to_string()).unwrap_or_default()
    };
    let said =
        faults(&[("mail.txt", "x\n{{ client_secret }}"), ("sms.txt", "{{ cod }}"), ("confirm.html", "no style")]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("mail.txt:2: undefined value"), "{said}");
    assert!(
        lines[1].starts_with("sms.txt:1: undefined value") && lines[2].starts_with("confirm.html: a page"),
        "{said}"
    );
    assert!(faults(&[("confirm.html", "{% block %}")]).starts_with("confirm.html:1: syntax error"));
    assert!(faults(&[("nonsense.txt", "")]).contains("there is no such template"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert_eq!(faults(&[("mail.html", endless)]).lines().count(), 1);
    assert_eq!(
        faults(&[("en.json", r#"{"confirm":{"next":"{host}"}}"#)]),
        "en.json:1: confirm.next {host} is not known here"
    );
}

fn branded(branding: Branding) -> (MailText, String, Wording) {
    let wording = Wording::branded("en", [], branding).unwrap();
    let language = wording.language(None);
    let (server_name, lifetime) = ("example.org", Duration::from_secs(3600));
    let mail = MailFacts { language: &language, purpose: Purpose::Password, server_name, link: LINK, lifetime };
    let mail = wording.mail(&mail).unwrap();
    let page = wording.page(&Page { language: &language, server_name, kind: samples().last().unwrap() }).unwrap();
    (mail, page, wording)
}

fn all_of_it(name: &str, footer: &str) -> Branding {
    Branding {
        name: Some(name.to_owned()),
        logo: Some(Arc::new(Logo { media_type: "image/png", bytes: vec![1, 2, 3], width: 480, height: 128 })),
        colour: Some(crate::config::Colour([0xff, 0xee, 0])),
        support: Some(crate::config::Support::Address("help@example.org".to_owned())),
        footer: Some(footer.to_owned()),
    }
}

#[test]
fn without_branding_nothing_of_it_shows() {
    let (mail, page, wording) = branded(Branding::default());
    for never in ["<img", "<style", "class=", "mailto", "Help", "<footer"] {
        assert!(!mail.html.contains(never), "{never}");
    }
    for never in ["<img", "mailto", "Help", "<footer", "footer {", ".logo"] {
        assert!(!page.contains(never), "{never}");
    }
    assert!(mail.logo.is_none() && !wording.has_logo());
    let (_, signature) = mail.text.split_once("\n-- \n").unwrap();
    assert_eq!(signature, "This email was sent only because of that request. Replies to it are not\nread.\n");
}

#[test]
fn name_logo_colour_support_and_footer_show_in_mail_and_page() {
    let (mail, page, wording) = branded(all_of_it("Example Chat", "Example Ltd, 1 High Street"));
    assert_eq!(mail.subject, "Reset your password on Example Chat");
    let (_, signature) = mail.text.split_once("\n-- \nExample Chat\n").unwrap();
    assert!(signature.ends_with("\nHelp: help@example.org\nExample Ltd, 1 High Street\n"), "{signature}");
    for said in [&mail.html, &page] {
        assert!(said.contains(">Example Chat</p>") && said.contains("Example Ltd, 1 High Street"), "{said}");
        assert!(said.contains("<a href=\"mailto:help@example.org\""), "{said}");
        assert!(said.contains("width=\"240\" height=\"64\" alt=\"\""), "{said}");
        assert!(said.contains(" on example.org"), "the server is named where a person decides: {said}");
    }
    assert!(mail.html.contains("src=\"cid:logo@threepid-shim\"") && mail.logo.is_some());
    assert!(page.contains("src=\"data:image/png;base64,AQID\"") && wording.has_logo());
    assert!(page.contains("<dd>example.org</dd>") && page.contains(" · Example Chat</title>"));
    assert!(page.contains("--accent: #ffee00") && page.contains("--on-accent: #000000"));
    // Yellow alone would not be seen on white.
    let edges: Vec<&str> = page.split("--edge: ").skip(1).filter_map(|rest| rest.split(';').next()).collect();
    assert!(matches!(edges[..], [in_light, "#ffee00"] if in_light != "#ffee00"), "{edges:?}");
    assert!(mail.html.contains("border:1px solid #"));
    assert_ne!(wording.style_hash(), english().0.style_hash());
}

#[test]
fn branding_makes_no_element_and_no_header() {
    let (plain, hostile) = (branded(all_of_it("x", "y")), branded(all_of_it(HOSTILE, HOSTILE)));
    for mark in ["<", ">", "\""] {
        assert_eq!(plain.0.html.matches(mark).count(), hostile.0.html.matches(mark).count(), "{mark}");
        assert_eq!(plain.1.matches(mark).count(), hostile.1.matches(mark).count(), "{mark}");
    }
    assert!(!hostile.0.subject.contains(['\r', '\n']) && !hostile.0.html.contains("49"));
}

#[test]
fn a_template_without_the_logo_sends_none() {
    let over = [("mail.html".to_owned(), "<p>{{ t.lead }} {{ link }}".to_owned())];
    let wording = Wording::branded("en", over, all_of_it("x", "y")).unwrap();
    let facts = MailFacts {
        language: &wording.language(None),
        purpose: Purpose::Register,
        server_name: "example.org",
        link: LINK,
        lifetime: Duration::from_secs(60),
    };
    assert!(wording.mail(&facts).unwrap().logo.is_none());
}

#[test]
fn a_name_that_is_read_from_the_right_stands_apart_among_words_from_the_left() {
    let (mail, ..) = branded(Branding { name: Some("مثال".to_owned()), ..Branding::default() });
    assert_eq!(mail.subject, "Reset your password on \u{2068}مثال\u{2069}");
}
