//! What an attacker tries, through the shim and a real old Synapse: each test is named after the attack, and where it is
//! cheap shows first that the bare homeserver falls for it.

mod addresses;
mod bodies;
mod codes;
mod creds;
mod identity_door;
mod links;
mod logs;
mod naive;
mod owners;
mod page;
mod paths;
mod purposes;
mod secrets;
mod stages;

use serde_json::{Value, json};

use crate::client::{Answer, Client, PASSWORD, creds};
use crate::legacy::{Legacy, unique};
use crate::shim::{Shim, Wanted};

/// Limits that no test meets by accident.
const ROOMY: &str = "[limits]\nrequest_token_per_ip = \"100000/1m\"\nrequest_token_per_address = \"100000/1m\"\n\
                     request_token_per_client_secret = \"100000/1m\"\nemail_total = \"100000/1m\"\nsubmit_token_per_ip = \"100000/1m\"\n";

/// Our answer to creds that will never do.
fn never_do() -> (u16, String) {
    (400, "M_THREEPID_AUTH_FAILED".into())
}

async fn roomy(homeserver: &Legacy) -> Shim {
    homeserver.shim(Wanted::config(ROOMY)).await
}

/// A user with that address, registered through the shim; returns the name.
async fn registered(shim: &Shim, email: &str) -> String {
    let (name, secret) = (unique("user"), unique("secret"));
    let sid = shim.verify("register", email, &secret).await;
    shim.client().register(&name, creds(&sid, &secret)).await.ok();
    name
}

/// A logged-in user without an address.
async fn logged_in(client: &Client) -> Client {
    client.clone().logged_in(&client.register_plainly(&unique("plain")).await)
}

/// Whether that password opens the account of that address.
async fn opens(client: &Client, email: &str, password: &str) -> bool {
    client.login(email, password).await.status == 200
}

/// A UIA session that `/register` has begun.
async fn uia_session(client: &Client) -> String {
    let begun =
        client.post("/_matrix/client/r0/register", json!({ "username": unique("uia"), "password": PASSWORD })).await;
    assert_eq!(begun.status, 401, "{}", begun.text());
    begun.json()["session"].as_str().unwrap().to_owned()
}

/// `auth` with the e-mail stage.
fn email_stage(creds: &Value, uia_session: Option<&str>) -> Value {
    let mut auth = json!({ "type": "m.login.email.identity", "threepid_creds": creds });
    if let Some(id) = uia_session {
        auth["session"] = id.into();
    }
    auth
}

/// A password reset that shows nothing but a UIA session.
async fn reset_by_uia_session(client: &Client, uia_session: &str, new_password: &str) -> Answer {
    let body = json!({ "new_password": new_password, "auth": { "session": uia_session } });
    client.post("/_matrix/client/r0/account/password", body).await
}
