//! First line: `auth` or anything else, where the endpoint's homeserver looks for creds. Behind it: a body.
//!
//! The same creds are found as by a walk over the whole tree, and so are those that Python would see. Pointed at us, all of
//! them name us and nothing binds; mended, none lacks an identity server; either way every other byte stays.

use std::collections::BTreeSet;

use threepid_shim::body::Object;
use threepid_shim::front::threepid_creds::creds::{self, CameFrom, Creds, Place};

use super::first_line;
use super::json::{self, Json, Kind, fold};

const US: &str = "us.example:8091";
const SPELLINGS: [&str; 3] = ["threepid_creds", "three_pid_creds", "threepidcreds"];
const MOST: usize = 8;
const BINDING: [&str; 4] = ["bind", "bind_email", "bind_msisdn", "id_access_token"];

pub fn run(data: &[u8]) {
    let (place, body) = first_line(data);
    let place = if place == b"auth" { Place::Auth } else { Place::TopLevel };
    let Ok(object) = Object::parse(body) else { return };
    let tree = json::read(body).expect("an object is JSON");
    let found = creds::read(&object);
    let walked = walk(&tree);
    assert_eq!(found.is_ok(), walked.as_ref().is_some_and(|all| all.len() <= MOST), "{found:?} {walked:?}");
    let (Ok(found), Some(walked)) = (found, walked) else { return };
    assert_eq!(sorted(&found), sorted(&walked));
    for sid in seen_by_python(&tree).iter().filter_map(|creds| creds.exactly("sid")?.string()) {
        assert!(found.iter().any(|creds| creds.sid.as_deref() == Some(sid)), "{sid}");
    }
    let session = || member(member(&tree, "auth")?, "session")?.string().map(str::to_owned);
    assert_eq!(creds::uia_session(&object), session().filter(|_| member(&tree, "auth").is_some_and(fit)));
    pointed(object.clone(), &tree, &walked, place);
    mended(object, &tree, &walked);
}

fn pointed(mut object: Object<'_>, before: &Json<'_>, walked: &[Creds], place: Place) {
    creds::point_at_us(&mut object, place, US);
    let sent = object.to_bytes();
    let after = json::read(&sent).expect("JSON is sent");
    // A name more may be one too many.
    let Some(now) = walk(&after) else { return assert!(sent.len() > 2000) };
    let keys = |creds: &[Creds]| -> BTreeSet<_> {
        creds.iter().map(|creds| (creds.sid.clone(), creds.client_secret.clone())).collect()
    };
    assert_eq!(keys(&now), keys(walked), "the same creds");
    assert!((walked.len()..=walked.len() + 1).contains(&now.len()), "at most one spelling more");
    assert!(now.iter().all(|creds| creds.id_server.as_deref() == Some(US)), "{now:?}");
    for creds in all_creds(&after) {
        assert_eq!(creds.exactly("id_server").and_then(Json::string), Some(US));
        assert!(["idserver", "clientsecret", "id_access_token"].iter().all(|name| member(creds, name).is_none()));
    }
    for creds in seen_by_python(&after) {
        assert_eq!(creds.exactly("id_server").and_then(Json::string), Some(US));
    }
    assert!(BINDING.iter().all(|name| member(&after, name).is_none()), "nothing binds");
    assert_eq!(others(&after, &BINDING), others(before, &BINDING));
    if let Ok(mut again) = Object::parse(&sent) {
        creds::point_at_us(&mut again, place, US);
        assert_eq!(again.to_bytes(), sent, "once is enough");
    }
}

fn mended(mut object: Object<'_>, before: &Json<'_>, walked: &[Creds]) {
    let of = |secret: Option<&str>| ("17".to_owned(), secret.map(str::to_owned));
    let came_from = CameFrom::from([(of(None), "vector.im".to_owned()), (of(Some("s")), "matrix.org".to_owned())]);
    creds::mend(&mut object, &came_from, US);
    let sent = object.to_bytes();
    let after = json::read(&sent).expect("JSON is sent");
    let Some(now) = walk(&after) else { return assert!(sent.len() > 2000) };
    assert_eq!(now.len(), walked.len());
    for (now, was) in now.iter().zip(walked) {
        assert_eq!((&now.sid, &now.client_secret, now.odd_sid), (&was.sid, &was.client_secret, was.odd_sid));
        let known = was.sid.clone().filter(|_| !was.odd_sid);
        let known = known.map(|sid| came_from.get(&(sid, was.client_secret.clone())).map_or(US, String::as_str));
        assert_eq!(now.id_server.as_deref(), was.id_server.as_deref().or(known));
    }
    assert!(all_creds(&after).iter().all(|creds| member(creds, "id_access_token").is_none()));
    assert_eq!(others(&after, &[]), others(before, &[]));
}

/// Every object under a name of creds, at the top and in `auth`. `None`: one of them cannot be looked into.
fn walk(tree: &Json<'_>) -> Option<Vec<Creds>> {
    let fits =
        all_creds(tree).into_iter().all(fit) && member(tree, "auth").is_none_or(|auth| !auth.is_object() || fit(auth));
    fits.then(|| all_creds(tree).into_iter().map(of).collect())
}

fn fit(object: &Json<'_>) -> bool {
    object.object().is_some()
}

fn of(creds: &Json<'_>) -> Creds {
    let text = |name: &str| member(creds, name).and_then(Json::string);
    let raw = member(creds, "sid").map(|sid| sid.raw);
    let number = raw.filter(|raw| raw.chars().all(|c| c.is_ascii_digit()));
    let sid = text("sid").or(number).map(str::to_owned);
    let grammar = |c: char| c.is_ascii_alphanumeric() || ".=_-".contains(c);
    let good = sid.as_ref().is_some_and(|sid| !sid.is_empty() && sid.len() <= 255 && sid.chars().all(grammar));
    let camel = text("idserver").filter(|name| !name.is_empty()).map(str::to_owned);
    Creds {
        packed_sid: raw.is_some_and(|raw| raw.starts_with('[') || raw.starts_with('{')),
        also_id_server: camel.filter(|_| text("id_server").is_some()),
        odd_sid: raw.is_some() && !good,
        sid,
        client_secret: text("client_secret").or(text("clientsecret")).map(str::to_owned),
        id_server: text("id_server").or(text("idserver")).filter(|name| !name.is_empty()).map(str::to_owned),
    }
}

fn all_creds<'t, 'a>(tree: &'t Json<'a>) -> Vec<&'t Json<'a>> {
    let containers = [Some(tree), member(tree, "auth")];
    let mut all = Vec::new();
    for container in containers.into_iter().flatten() {
        for name in SPELLINGS {
            let value = member(container, name);
            match value.map(|value| &value.kind) {
                Some(Kind::Array(elements)) => all.extend(elements.iter().filter(|element| element.is_object())),
                _ => all.extend(value.filter(|value| value.is_object())),
            }
        }
    }
    all
}

/// What old Synapse takes for creds.
fn seen_by_python<'t, 'a>(tree: &'t Json<'a>) -> Vec<&'t Json<'a>> {
    let in_auth = tree.exactly("auth").and_then(|auth| auth.exactly("threepid_creds"));
    let at_top = tree.exactly("three_pid_creds").or(tree.exactly("threePidCreds"));
    in_auth.into_iter().chain(at_top).filter(|creds| creds.is_object()).collect()
}

/// Everything that is not creds nor `dropped` at the top, in order, with its bytes; `auth` as its own members.
fn others(tree: &Json<'_>, dropped: &[&str]) -> Vec<(String, String)> {
    let kept = |container: &Json<'_>, dropped: &[&str]| -> Vec<(String, String)> {
        let Kind::Object(members) = &container.kind else { return Vec::new() };
        let members = members.iter().map(|(name, value)| (name.clone().unwrap_or_default(), value.raw.to_owned()));
        members.filter(|(name, _)| !SPELLINGS.contains(&&*fold(name)) && !dropped.contains(&&*fold(name))).collect()
    };
    let auth = member(tree, "auth").filter(|auth| auth.is_object());
    let mut all = kept(tree, dropped);
    if let Some(auth) = auth {
        all.iter_mut().filter(|(name, _)| fold(name) == "auth").for_each(|(_, raw)| raw.clear());
        all.extend(kept(auth, &[]));
    }
    all
}

fn member<'t, 'a>(object: &'t Json<'a>, name: &str) -> Option<&'t Json<'a>> {
    let Kind::Object(members) = &object.kind else { return None };
    members.iter().find(|(key, _)| key.as_deref().is_some_and(|key| fold(key) == name)).map(|(_, value)| value)
}

fn sorted(all: &[Creds]) -> Vec<impl Ord + std::fmt::Debug> {
    let of = |creds: &Creds| {
        let Creds { sid, client_secret, id_server, also_id_server, packed_sid, odd_sid } = creds.clone();
        (sid, client_secret, id_server, also_id_server, packed_sid, odd_sid)
    };
    let mut all: Vec<_> = all.iter().map(of).collect();
    all.sort();
    all
}
