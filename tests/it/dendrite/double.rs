//! The noun `Dendrite`: what its client API does with addresses (clientapi/threepid and routing/threepid.go of v0.13.8
//! and v0.15.2, which are the same), on a scripted socket. What it gets wrong is part of it.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use crate::client::{Client, PASSWORD};
use crate::homeserver::{self, Homeserver, Raw};
use crate::secure::{API, FORM, call};
use crate::shim::{Shim, Wanted};

/// As v0.13 lists them: neither r0.6.0 nor any flag, for all that it lists v1.x.
pub const VERSIONS: &str = r#"{"versions":["r0.5.0","r0.6.1","v1.0","v1.1","v1.2"],"unstable_features":{"org.matrix.simplified_msc3575":false}}"#;

pub struct Dendrite {
    pub homeserver: Homeserver,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The only identity server it trusts.
    trusted: String,
    /// Address → user.
    threepids: Mutex<HashMap<String, String>>,
    /// Method and target of every call to an identity server, and its body behind a space.
    calls: Mutex<Vec<String>>,
}

type Answer = (u16, Value);

impl Dendrite {
    /// Trusts the identity server at this socket.
    pub async fn start(door: &TcpListener) -> Self {
        let trusted = format!("localhost:{}", door.local_addr().unwrap().port());
        let state = Arc::new(State { trusted, ..State::default() });
        let shared = Arc::clone(&state);
        let homeserver = Homeserver::scripted(move |mut conversation| {
            let state = Arc::clone(&shared);
            async move {
                while let Some(request) = conversation.request().await {
                    let (status, body) = state.answer(&request).await;
                    conversation.write(homeserver::json(&format!("{status} -"), &body.to_string())).await;
                    if request.field("connection").as_deref() == Some("close") {
                        break;
                    }
                }
            }
        })
        .await;
        Self { homeserver, state }
    }

    /// One with a shim in front of it.
    pub async fn behind_a_shim(wanted: Wanted) -> (Self, Shim) {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let dendrite = Self::start(&door).await;
        let shim = Shim::before(&dendrite.homeserver.address.to_string(), door, wanted).await;
        (dendrite, shim)
    }

    pub fn bare(&self) -> Client {
        Client::of(self.homeserver.address.to_string()).speaking("v3")
    }

    pub fn calls(&self) -> Vec<String> {
        self.state.calls.lock().unwrap().clone()
    }

    /// Whose address it is.
    pub fn owner(&self, address: &str) -> Option<String> {
        self.state.threepids.lock().unwrap().get(address).cloned()
    }

    /// Bodies of requests to endpoints with this ending.
    pub fn received(&self, ending: &str) -> Vec<Value> {
        let requests = self.homeserver.requests().into_iter();
        requests.filter(|request| request.line().contains(&format!("{ending} HTTP"))).map(|one| one.json()).collect()
    }
}

impl State {
    async fn answer(&self, request: &Raw) -> Answer {
        let line = request.line();
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap().split('?').next().unwrap());
        if path == "/_matrix/client/versions" {
            return (200, serde_json::from_str(VERSIONS).unwrap());
        }
        let endpoint = ["r0", "v3"].iter().find_map(|api| path.strip_prefix(&format!("/_matrix/client/{api}/")));
        let body = || serde_json::from_slice::<Value>(&request.content()).ok();
        match (method, endpoint) {
            ("POST", Some("account/3pid/email/requestToken")) => match body() {
                Some(body) => self.request_email_token(&body).await,
                None => error(400, "M_BAD_JSON", "The request body could not be read"),
            },
            ("POST", Some("account/3pid")) => match (user(request), body()) {
                (None, _) => error(401, "M_MISSING_TOKEN", "missing access token"),
                (Some(_), None) => error(400, "M_BAD_JSON", "The request body could not be read"),
                (Some(user), Some(body)) => self.check_and_save(&user, &body).await,
            },
            ("GET", Some("account/3pid")) => match user(request) {
                None => error(401, "M_MISSING_TOKEN", "missing access token"),
                Some(user) => (200, json!({ "threepids": self.threepids_of(&user) })),
            },
            ("POST", Some("delete_devices")) => match user(request) {
                None => error(401, "M_MISSING_TOKEN", "missing access token"),
                Some(_) => password_first(&body().unwrap_or_default()),
            },
            _ => error(404, "M_UNRECOGNIZED", "Unrecognized request"),
        }
    }

    async fn request_email_token(&self, body: &Value) -> Answer {
        let email = text(body, "email");
        if self.threepids.lock().unwrap().contains_key(&email) {
            return error(400, "M_THREEPID_IN_USE", "Third-party ID already in use.");
        }
        let id_server = text(body, "id_server");
        if id_server != self.trusted {
            return untrusted(&id_server);
        }
        // It knows no next_link, and writes the number as a string.
        let send_attempt = go(body, "send_attempt").and_then(|value| value.as_i64()).unwrap_or_default();
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("client_secret", &text(body, "client_secret"))
            .append_pair("email", &email)
            .append_pair("send_attempt", &send_attempt.to_string())
            .finish();
        let (status, said) = self.ask(&id_server, "POST", &format!("{API}validate/email/requestToken"), &form).await;
        if status != 200 {
            return error(500, "M_UNKNOWN", "Internal Server Error");
        }
        (200, json!({ "sid": text(&said, "sid") }))
    }

    async fn check_and_save(&self, user: &str, body: &Value) -> Answer {
        let creds = go(body, "three_pid_creds").unwrap_or_default();
        let [sid, client_secret, id_server] = ["sid", "client_secret", "id_server"].map(|name| text(&creds, name));
        if id_server != self.trusted {
            return untrusted(&id_server);
        }
        // fmt.Sprintf: nothing is escaped. What follows a # never leaves, and a blank or a control character is an error.
        let target = format!("{API}3pid/getValidated3pid?sid={sid}&client_secret={client_secret}");
        let target = target.split('#').next().unwrap();
        if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return error(500, "M_UNKNOWN", "Internal Server Error");
        }
        let (_, said) = self.ask(&id_server, "GET", target, "").await;
        match text(&said, "errcode").as_str() {
            "M_SESSION_NOT_VALIDATED" => error(400, "M_THREEPID_AUTH_FAILED", "Failed to auth 3pid"),
            "" => {
                let mut threepids = self.threepids.lock().unwrap();
                threepids.insert(text(&said, "address"), user.to_owned());
                (200, json!({}))
            }
            _ => error(500, "M_UNKNOWN", "Internal Server Error"),
        }
    }

    async fn ask(&self, id_server: &str, method: &str, target: &str, form: &str) -> (u16, Value) {
        let kind = if form.is_empty() { "" } else { FORM };
        self.calls.lock().unwrap().push(format!("{method} {target} {form}").trim_end().to_owned());
        let answer = call(id_server, method, target, kind, form).await;
        (answer.status, answer.json())
    }

    fn threepids_of(&self, user: &str) -> Vec<Value> {
        let threepids = self.threepids.lock().unwrap();
        let own = threepids.iter().filter(|(_, owner)| *owner == user);
        own.map(|(address, _)| json!({ "medium": "email", "address": address })).collect()
    }
}

/// A field of a Go struct: names are compared without regard to case, the last counts, and objects that come again are
/// merged into the first.
fn go(object: &Value, name: &str) -> Option<Value> {
    let mut found: Option<Value> = None;
    // encoding/json folds these two to ASCII as well.
    let fold = |key: &str| key.replace('\u{17f}', "s").replace('\u{212a}', "k").to_ascii_lowercase();
    let same = object.as_object()?.iter().filter(|(key, _)| fold(key) == name);
    for (_, value) in same {
        found = Some(match (found, value) {
            (Some(Value::Object(mut first)), Value::Object(again)) => {
                first.extend(again.clone());
                Value::Object(first)
            }
            _ => value.clone(),
        });
    }
    found
}

fn text(object: &Value, name: &str) -> String {
    go(object, name).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn error(status: u16, errcode: &str, error: &str) -> Answer {
    (status, json!({ "errcode": errcode, "error": error }))
}

fn untrusted(id_server: &str) -> Answer {
    error(400, "M_SERVER_NOT_TRUSTED", &format!("Untrusted server '{id_server}'"))
}

/// The access token is the user's name here.
fn user(request: &Raw) -> Option<String> {
    request.field("authorization")?.strip_prefix("Bearer ").map(str::to_owned)
}

/// Its user-interactive auth: by password, and nothing else.
fn password_first(body: &Value) -> Answer {
    let auth = body["auth"].as_object().cloned().unwrap_or_else(Map::new);
    if auth.is_empty() {
        let flows = json!([{ "stages": ["m.login.password"] }]);
        return (401, json!({ "session": "uia", "flows": flows, "completed": [], "params": {} }));
    }
    match (auth.get("type").and_then(Value::as_str), auth.get("password").and_then(Value::as_str)) {
        (Some("m.login.password"), Some(PASSWORD)) => (200, json!({})),
        (Some("m.login.password"), _) => error(403, "M_FORBIDDEN", "The username or password was incorrect"),
        _ => error(400, "M_UNKNOWN", "auth.type not recognised"),
    }
}
