//! First line: `msisdn`, or anything else for an e-mail address. Behind it: the body of a requestToken.
//!
//! The homeserver gets the fields it knows and no other, and what it hands on, as Synapse or as Dendrite does, the identity
//! door reads as the same request.

use threepid_shim::body::Object;
use threepid_shim::front::request_token::asked::Asked;
use threepid_shim::identity::asked::Asked as AtIdentity;
use threepid_shim::matrix::{Medium, NextLink};

use super::first_line;
use super::json::{self, Json};

const US: &str = "us.example:8091";

pub fn run(data: &[u8]) {
    let (medium, body) = first_line(data);
    let medium = if medium == b"msisdn" { Medium::Msisdn } else { Medium::Email };
    let Ok(object) = Object::parse(body) else { return };
    let Ok(asked) = Asked::parse(&object, medium, &[]) else { return };
    let sent = asked.to_body(US);
    let tree = json::read(&sent).expect("JSON is sent");
    let members = tree.object().expect("an object is sent");
    let names: Vec<_> = members.iter().map(|(name, _)| *name).collect();
    let address: &[&str] = if medium == Medium::Email { &["email"] } else { &["country", "phone_number"] };
    let optional: &[&str] = if asked.next_link.is_some() { &["next_link"] } else { &[] };
    assert_eq!(names, [&["id_server", "client_secret"], address, &["send_attempt"], optional].concat());
    let text = |name: &str| tree.exactly(name).and_then(Json::string);
    assert_eq!(text("id_server"), Some(US));
    assert_eq!(text("client_secret"), object.string("client_secret").as_deref());
    assert_eq!(text("next_link"), asked.next_link.as_ref().map(NextLink::as_str));

    let form = |name: &str| text(name).map_or_else(|| asked.send_attempt.to_string(), str::to_owned);
    let fields =
        ["client_secret", "send_attempt"].iter().chain(address).map(|name| format!("{name}={}", escaped(&form(name))));
    let form = fields.collect::<Vec<_>>().join("&");
    let next_link = text("next_link");
    for (handed_on, next_link) in [(&*sent, next_link), (form.as_bytes(), None)] {
        let read = AtIdentity::parse(handed_on, medium).expect("the identity door reads it");
        assert_eq!(read.threepid, asked.threepid);
        assert_eq!(read.client_secret.expose(), asked.client_secret.expose());
        assert_eq!((read.send_attempt, read.next_link.as_deref()), (asked.send_attempt, next_link));
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat()
}
