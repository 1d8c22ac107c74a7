//! threepid_creds in every spelling and shape that clients have sent: read, pointed at us, or mended.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::body::{NotAnObject, Object, elements};

/// `threepidCreds` and `threePidCreds` are one to us: names are compared without regard to case.
const SPELLINGS: [&str; 3] = ["threepid_creds", "three_pid_creds", "threepidcreds"];
/// What would have the homeserver publish an address that the shim verified; no identity server publishes for us.
const BINDING: [&str; 4] = ["bind", "bind_email", "bind_msisdn", "id_access_token"];

/// Creds in one body at most; clients send two, the same in two spellings. Each may be a look into the store.
const MOST: usize = 8;

/// The identity server of a sid and the client_secret it was asked for with.
pub type CameFrom = BTreeMap<(String, Option<String>), String>;

/// Where an endpoint's homeserver looks for creds, and under which name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `auth.threepid_creds`
    Auth,
    /// `three_pid_creds`
    TopLevel,
}

/// What one creds object says. `None` where a homeserver would see nothing it can use.
#[derive(Clone, PartialEq, Eq)]
pub struct Creds {
    pub sid: Option<String>,
    pub client_secret: Option<String>,
    pub id_server: Option<String>,
    /// What stands under its other name besides.
    pub also_id_server: Option<String>,
    /// The sid is a list or an object: texts, one of them ours perhaps, to whoever unpacks it.
    pub packed_sid: bool,
    /// The sid is there and neither an integer nor in the grammar of sids.
    pub odd_sid: bool,
}

crate::matrix::hidden!(Creds);

impl Creds {
    fn of(object: &Object<'_>) -> Self {
        let snake = object.string("id_server");
        let camel = object.string("idserver").filter(|name| !name.is_empty());
        // Sydent's sids are numbers, and some clients send them as such.
        let number = |raw: &RawValue| raw.get().bytes().all(|b| b.is_ascii_digit()).then(|| raw.get().to_owned());
        let sid = object.string("sid").or_else(|| object.get("sid").and_then(number));
        let fits = |sid: &String| {
            (1..=255).contains(&sid.len()) && sid.bytes().all(|b| b.is_ascii_alphanumeric() || b".=_-".contains(&b))
        };
        Self {
            packed_sid: object.get("sid").is_some_and(|sid| sid.get().starts_with(['[', '{'])),
            odd_sid: object.get("sid").is_some() && !sid.as_ref().is_some_and(fits),
            sid,
            client_secret: object.string("client_secret").or_else(|| object.string("clientsecret")),
            also_id_server: camel.clone().filter(|_| snake.is_some()),
            id_server: snake.map_or(camel, |name| Some(name).filter(|name| !name.is_empty())),
        }
    }

    /// Whom a homeserver may take them to name.
    pub fn id_servers(&self) -> impl Iterator<Item = &String> {
        self.id_server.iter().chain(&self.also_id_server)
    }

    pub fn names_two_servers(&self) -> bool {
        self.id_server.is_some()
            && self.also_id_server.as_ref().is_some_and(|also| self.id_server.as_ref() != Some(also))
    }
}

/// The id of the UIA session that a body continues.
pub fn uia_session(body: &Object<'_>) -> Option<String> {
    Object::of(body.get("auth")?).ok()?.string("session")
}

/// All creds of a body, in `auth` and at the top level. A key that stands twice in any of them is refused.
pub fn read(body: &Object<'_>) -> Result<Vec<Creds>, NotAnObject> {
    let mut all = Vec::new();
    collect(body, &mut all)?;
    if let Some(auth) = body.get("auth").filter(|auth| auth.get().starts_with('{')) {
        collect(&Object::of(auth)?, &mut all)?;
    }
    Ok(all)
}

/// Makes every creds object name `id_server`, and adds the one spelling that old homeservers read.
pub fn point_at_us(body: &mut Object<'_>, place: Place, id_server: &str) {
    for name in BINDING {
        body.remove(name);
    }
    edit(body, &mut |creds| {
        let client_secret = Creds::of(creds).client_secret;
        for (name, value) in [("id_server", Some(id_server)), ("client_secret", client_secret.as_deref())] {
            creds.remove(&name.replace('_', ""));
            if let Some(value) = value {
                creds.set_string(name, value);
            }
        }
        creds.remove("id_access_token");
    });
    match place {
        Place::TopLevel => add_spelling(body, "three_pid_creds"),
        Place::Auth => edit_auth(body, |auth| add_spelling(auth, "threepid_creds")),
    }
}

/// Gives creds without `id_server` the one their sid came from, or ours when nothing is known of the sid: the
/// homeserver's 401 then tells the client to wait, where "No id_server in creds" would end its polling.
pub fn mend(body: &mut Object<'_>, came_from: &CameFrom, ours: &str) {
    edit(body, &mut |creds| {
        creds.remove("id_access_token");
        let Creds { sid: Some(sid), client_secret, id_server: None, odd_sid: false, .. } = Creds::of(creds) else {
            return;
        };
        creds.remove("idserver");
        creds.set_string("id_server", came_from.get(&(sid, client_secret)).map_or(ours, String::as_str));
    });
}

fn collect(container: &Object<'_>, all: &mut Vec<Creds>) -> Result<(), NotAnObject> {
    for raw in SPELLINGS.iter().filter_map(|name| container.get(name)) {
        for one in elements(raw).unwrap_or_else(|| vec![raw]) {
            match Object::of(one) {
                Ok(_) if all.len() >= MOST => return Err(NotAnObject::TooManyElements),
                Ok(creds) => all.push(Creds::of(&creds)),
                Err(NotAnObject::NotObject) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn edit(body: &mut Object<'_>, change: &mut dyn FnMut(&mut Object<'_>)) {
    edit_in(body, change);
    edit_auth(body, |auth| edit_in(auth, change));
}

fn edit_auth(body: &mut Object<'_>, change: impl FnOnce(&mut Object<'_>)) {
    let Some((written, raw)) = body.entry("auth").map(|(written, raw)| (written.to_owned(), raw.to_owned())) else {
        return;
    };
    if let Ok(mut auth) = Object::of(&raw) {
        change(&mut auth);
        body.set(&written, auth.to_raw());
    }
}

fn edit_in(container: &mut Object<'_>, change: &mut dyn FnMut(&mut Object<'_>)) {
    for name in SPELLINGS {
        let Some((written, raw)) = container.entry(name).map(|(written, raw)| (written.to_owned(), raw.to_owned()))
        else {
            continue;
        };
        let mut changed = |one: &RawValue| match Object::of(one) {
            Ok(mut creds) => {
                change(&mut creds);
                creds.to_raw()
            }
            Err(_) => one.to_owned(),
        };
        let edited = match elements(&raw) {
            Some(all) => list(&all.into_iter().map(&mut changed).collect::<Vec<_>>()),
            None => changed(&raw),
        };
        container.set(&written, edited);
    }
}

/// Old homeservers read one spelling, and only as an object; the specification printed others, and a list, until 2021.
fn add_spelling(container: &mut Object<'_>, name: &str) {
    let first = SPELLINGS.iter().filter_map(|name| container.get(name)).find_map(|raw| {
        let one = elements(raw).map_or(Some(raw), |all| all.first().copied())?;
        one.get().starts_with('{').then(|| one.to_owned())
    });
    let is_object = container.get(name).is_some_and(|raw| raw.get().starts_with('{'));
    if let (Some(first), false) = (first, is_object) {
        container.set(name, first);
    }
}

fn list(all: &[Box<RawValue>]) -> Box<RawValue> {
    serde_json::value::to_raw_value(all).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointed(body: &str, place: Place) -> String {
        let mut object = Object::parse(body.as_bytes()).unwrap();
        point_at_us(&mut object, place, "us:1");
        String::from_utf8(object.to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn every_spelling_and_shape_is_pointed_at_us_and_the_one_the_homeserver_reads_is_there() {
        let table = [
            (
                Place::Auth,
                r#"{"a":1.0,"auth":{"type":"t","threepid_creds":{"sid":"s","client_secret":"c"}},"z":[]}"#,
                r#"{"a":1.0,"auth":{"type":"t","threepid_creds":{"sid":"s","client_secret":"c","id_server":"us:1"}},"z":[]}"#,
            ),
            (
                Place::Auth,
                r#"{"auth":{"threepidCreds":{"sid":"s","clientSecret":"c","idServer":"them"}}}"#,
                r#"{"auth":{"threepidCreds":{"sid":"s","id_server":"us:1","client_secret":"c"},"threepid_creds":{"sid":"s","id_server":"us:1","client_secret":"c"}}}"#,
            ),
            (
                Place::Auth,
                r#"{"auth":{"threepid_creds":[{"sid":"s","client_secret":"c","id_access_token":"t"}]},"bind_email":true,"bind_msisdn":true}"#,
                r#"{"auth":{"threepid_creds":{"sid":"s","client_secret":"c","id_server":"us:1"}}}"#,
            ),
            (
                Place::TopLevel,
                r#"{"threePidCreds":{"sid":"s","client_secret":"c","id_server":null},"bind":true,"id_access_token":"t"}"#,
                r#"{"threePidCreds":{"sid":"s","client_secret":"c","id_server":"us:1"},"three_pid_creds":{"sid":"s","client_secret":"c","id_server":"us:1"}}"#,
            ),
            (
                Place::TopLevel,
                r#"{"three_pid_creds":{"client_secret":"c","sid":"s"}}"#,
                r#"{"three_pid_creds":{"client_secret":"c","sid":"s","id_server":"us:1"}}"#,
            ),
        ];
        for (place, body, expected) in table {
            assert_eq!(pointed(body, place), expected);
        }
    }

    #[test]
    fn all_creds_of_a_body_are_found_wherever_they_stand() {
        let body = r#"{"three_pid_creds":{"sid":"1"},"auth":{"session":"u","threepid_creds":[{"sid":2},"x"],"threepidCreds":{"SID":"3","idServer":""}}}"#;
        let object = Object::parse(body.as_bytes()).unwrap();
        let sids: Vec<_> = read(&object).unwrap().into_iter().map(|creds| creds.sid.unwrap()).collect();
        assert_eq!(sids, ["1", "2", "3"]);
        assert_eq!(uia_session(&object).as_deref(), Some("u"));
    }

    #[test]
    fn a_key_twice_in_auth_or_creds_is_refused_and_elsewhere_stays() {
        for body in [
            r#"{"auth":{"session":"a","session":"b"}}"#,
            r#"{"auth":{"threepid_creds":{"sid":"a","sid":"b"}}}"#,
            r#"{"auth":{"threepidCreds":[{"sid":"a","SID":"b"}]}}"#,
            r#"{"three_pid_creds":{"sid":"a","\u0073id":"b"}}"#,
        ] {
            let object = Object::parse(body.as_bytes()).unwrap();
            assert_eq!(read(&object).unwrap_err(), NotAnObject::Duplicate, "{body}");
        }
        let object = Object::parse(br#"{"initial":{"x":1,"x":2},"auth":{"params":{"y":1,"y":2}}}"#).unwrap();
        assert_eq!(read(&object).unwrap(), []);
    }

    #[test]
    fn the_eighth_creds_of_a_body_are_the_last() {
        let all = |count: usize| format!(r#"{{"auth":{{"threepid_creds":[{}{{}}]}}}}"#, "{},".repeat(count - 1));
        assert_eq!(read(&Object::parse(all(8).as_bytes()).unwrap()).unwrap().len(), 8);
        assert_eq!(read(&Object::parse(all(9).as_bytes()).unwrap()).unwrap_err(), NotAnObject::TooManyElements);
    }

    #[test]
    fn whom_creds_name_is_read_in_every_spelling_there_is() {
        let names = |creds: &str| {
            let creds = Creds::of(&Object::parse(creds.as_bytes()).unwrap());
            (creds.id_servers().cloned().collect::<Vec<_>>().join(" "), creds.names_two_servers())
        };
        for (creds, named, two) in [
            (r#"{"Id_Server":"x","idServer":"us"}"#, "x us", true),
            (r#"{"id_server":"us","idServer":"us"}"#, "us us", false),
            (r#"{"ID_SERVER":"","idServer":"us"}"#, "us", false),
            (r#"{"id_server":null,"idserver":"us"}"#, "us", false),
            (r#"{"id_server":"us","idServer":""}"#, "us", false),
            (r#"{"id_server":["us"]}"#, "", false),
        ] {
            assert_eq!(names(creds), (named.to_owned(), two), "{creds}");
        }
    }

    #[test]
    fn auth_keeps_the_spelling_that_its_homeserver_does_not_read() {
        let body = r#"{"Auth":{"threepid_creds":{"sid":"17"}}}"#;
        let mut object = Object::parse(body.as_bytes()).unwrap();
        mend(&mut object, &BTreeMap::new(), "us:1");
        assert_eq!(object.to_bytes(), r#"{"Auth":{"threepid_creds":{"sid":"17","id_server":"us:1"}}}"#);
        assert_eq!(pointed(body, Place::Auth), r#"{"Auth":{"threepid_creds":{"sid":"17","id_server":"us:1"}}}"#);
    }

    #[test]
    fn creds_without_id_server_get_the_one_their_sid_came_from_or_ours() {
        let of = |secret: &str| ("17".to_owned(), Some(secret.to_owned()));
        let came_from = CameFrom::from([(of("c"), "vector.im".to_owned()), (of("d"), "other.example".to_owned())]);
        let table = [
            (r#"{"sid":"17","client_secret":"c"}"#, r#"{"sid":"17","client_secret":"c","id_server":"vector.im"}"#),
            (
                r#"{"sid":17,"id_server":"","clientSecret":"d"}"#,
                r#"{"sid":17,"id_server":"other.example","clientSecret":"d"}"#,
            ),
            (r#"{"sid":"17"}"#, r#"{"sid":"17","id_server":"us:1"}"#),
            (r#"{"sid":"18","idServer":null}"#, r#"{"sid":"18","id_server":"us:1"}"#),
            (
                r#"{"sid":"17","idServer":"matrix.org","id_access_token":"t"}"#,
                r#"{"sid":"17","idServer":"matrix.org"}"#,
            ),
            (r#"{"client_secret":"c"}"#, r#"{"client_secret":"c"}"#),
        ];
        for (creds, expected) in table {
            let body = format!(r#"{{"auth":{{"threepid_creds":{creds}}}}}"#);
            let mut object = Object::parse(body.as_bytes()).unwrap();
            mend(&mut object, &came_from, "us:1");
            assert_eq!(object.to_bytes(), format!(r#"{{"auth":{{"threepid_creds":{expected}}}}}"#));
        }
    }
}
