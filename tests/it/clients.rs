//! Real clients of the time: matrix-js-sdk 2.4 (Riot of autumn 2019) and 27 (the last that speaks r0), each with and
//! without an identity server, through the shim and without it; and where what they send does not fit together.

mod sdk;

use serde_json::{Value, json};

use crate::client::{Client, PASSWORD, request_token_path};
use crate::flows::registered;
use crate::gateway::Gateway;
use crate::homeserver::{Homeserver, Raw};
use crate::legacy::{EVERY_VERSION, Legacy, legacy, unique};
use crate::phones;
use crate::secure::IdentityServer;
use crate::shim::{ROOMY, Shim, Wanted};
use crate::table::{WORKS, cell};
use sdk::{Came, Sdk};

/// As `package.json` calls them, and as the table does.
const SDKS: [(&str, &str); 2] = [("sdk2", "js-sdk 2.4.6"), ("sdk27", "js-sdk 27.2.0")];
/// What stands in the configuration of most old clients, and verifies addresses for nobody any more.
const DEAD: &str = "https://identity.example";

/// Whom a flow goes to, and which identity server the client is told of.
struct Before<'a> {
    address: &'a str,
    id_server: Option<&'a str>,
    shim: &'a Shim,
    /// Where the shim's messages go.
    gateway: Option<&'a Gateway>,
}

impl Before<'_> {
    /// Clicks the link, if the mail is the shim's; reads the code.
    async fn person(&self, kind: &str, sid: &str) -> Value {
        if kind == "message" {
            return json!({ "code": phones::code(self.gateway.expect("no message without a gateway")) });
        }
        if sid.starts_with("shim_") {
            assert_eq!(self.shim.client().click(&self.shim.link(sid)).await.status, 200);
        }
        json!({ "clicked": true })
    }

    async fn run(&self, sdk: &mut Sdk, flow: &str, mut more: Value) -> Came {
        more["flow"] = flow.into();
        more["base_url"] = format!("http://{}", self.address).into();
        more["id_server"] = self.id_server.into();
        sdk.run(more, async |kind, sid| self.person(kind, sid).await).await
    }

    async fn flag(&self, sdk: &mut Sdk) -> Came {
        self.run(sdk, "flag", json!({})).await
    }

    /// Registers, and logs in by the address.
    async fn register(&self, sdk: &mut Sdk) -> Came {
        let name = unique("sdk");
        let email = format!("{name}@example.org");
        let job = json!({ "username": name, "password": PASSWORD, "email": email });
        let came = self.run(sdk, "register", job).await;
        if let Ok(registered) = &came.result {
            assert_eq!(registered["user_id"], format!("@{name}:localhost"));
            assert_eq!(self.shim.client().login(&email, PASSWORD).await.ok()["user_id"], registered["user_id"]);
        }
        came
    }

    async fn reset_password(&self, sdk: &mut Sdk, email: &str) -> Came {
        let new = unique("new password ");
        let came = self.run(sdk, "password", json!({ "email": email, "password": new })).await;
        assert_eq!(self.shim.client().login(email, &new).await.status == 200, came.result.is_ok());
        came
    }

    /// Adds an address to a user who has none.
    async fn add(&self, sdk: &mut Sdk) -> Came {
        let email = unique("added") + "@example.org";
        self.adding(sdk, "add", json!({ "email": email }), &email).await
    }

    async fn phone(&self, sdk: &mut Sdk) -> Came {
        let number = phones::number();
        let msisdn = format!("44{}", number.replace(' ', "").trim_start_matches('0'));
        self.adding(sdk, "phone", json!({ "country": "GB", "phone_number": number }), &msisdn).await
    }

    async fn adding(&self, sdk: &mut Sdk, flow: &str, mut job: Value, address: &str) -> Came {
        let name = unique("sdk");
        let access_token = self.shim.client().register_plainly(&name).await;
        job["user_id"] = format!("@{name}:localhost").into();
        job["password"] = PASSWORD.into();
        job["access_token"] = access_token.clone().into();
        let came = self.run(sdk, flow, job).await;
        let addresses = self.shim.client().logged_in(&access_token).addresses().await;
        assert_eq!(addresses, if came.result.is_ok() { vec![address.to_owned()] } else { vec![] });
        came
    }

    /// In the order of the table.
    async fn all(&self, sdk: &mut Sdk, known: &str) -> [Came; 5] {
        let (flag, registered) = (self.flag(sdk).await, self.register(sdk).await);
        [flag, registered, self.reset_password(sdk, known).await, self.add(sdk).await, self.phone(sdk).await]
    }
}

const FLOWS: [&str; 5] = ["flag", "register", "reset password", "add e-mail", "add phone"];

/// One row of the table for each homeserver and flow, two columns: without and with an identity server.
async fn every_flow_on_every_homeserver((which, name): (&str, &str)) {
    let mut sdk = Sdk::start(which);
    let mut cells = 0;
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let gateway = phones::gateway().await;
        // Without "replace" whoever names an identity server has to live with it.
        let mut wanted = phones::wanted(&gateway, ROOMY);
        wanted.config = wanted.config.replace("[routes]\n", "[routes]\nnamed_id_server = \"replace\"\n");
        let shim = synapse.shim(wanted).await;
        let (_, known) = registered(&shim).await;
        for id_server in [None, Some(DEAD)] {
            let at = |address| Before { address, id_server, shim: &shim, gateway: Some(&gateway) };
            let through = at(&shim.clients).all(&mut sdk, &known).await;
            let without = at(&synapse.address).all(&mut sdk, &known).await;
            assert_eq!(through[0].ok()["requires_id_server"], false);
            assert_eq!(without[0].ok()["requires_id_server"], true);
            for (flow, (through, without)) in FLOWS.into_iter().zip(through.iter().zip(&without)) {
                through.ok();
                let without = if flow == "flag" { "missing" } else { without.failed() };
                let expected = match (flow, id_server) {
                    ("flag", _) => "missing",
                    (_, Some(_)) => "M_SERVER_NOT_TRUSTED",
                    ("reset password", None) if version.starts_with('1') => "M_UNKNOWN",
                    (_, None) => "M_MISSING_PARAM",
                };
                assert_eq!(without, expected, "{version} {flow}");
                let with = if id_server.is_some() { " with identity server" } else { "" };
                cell(version, flow, &format!("{name}{with}"), WORKS, without);
                cells += 1;
            }
        }
    }
    assert_eq!(cells, EVERY_VERSION.len() * FLOWS.len() * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn js_sdk_2_4_does_every_flow_through_the_shim_and_none_without_it() {
    every_flow_on_every_homeserver(SDKS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn js_sdk_27_does_every_flow_through_the_shim_and_none_without_it() {
    every_flow_on_every_homeserver(SDKS[1]).await;
}

/// The homeserver with nothing but the flag put into its `/versions`: what must not be done.
async fn with_the_flag_alone(synapse: &Legacy) -> Homeserver {
    let address = synapse.address.clone();
    Homeserver::scripted(move |mut conversation| {
        let address = address.clone();
        async move {
            while let Some(Raw(request)) = conversation.request().await {
                let text = String::from_utf8_lossy(&request);
                let (method, rest) = text.split_once(' ').unwrap();
                let target = rest.split(' ').next().unwrap();
                let field = |name| Raw(request.clone()).field(name);
                let mut client = Client::of(&address);
                if let Some(authorization) = field("authorization") {
                    client = client.with("Authorization", &authorization);
                }
                let answer = client.send(method, target, Raw(request.clone()).body()).await;
                let mut body: Value = serde_json::from_slice(&answer.body).unwrap();
                if target.ends_with("/versions") {
                    body["unstable_features"]["m.require_identity_server"] = false.into();
                }
                let status = format!("{} -", answer.status);
                conversation.write(crate::homeserver::json(&status, &body.to_string())).await;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_2_an_identity_server_named_in_requesttoken_but_not_in_creds_is_named_in_them() {
    let synapse = legacy("1.3.1");
    let theirs = IdentityServer::start(synapse.door());
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    let flag_alone = with_the_flag_alone(synapse).await;
    let flag_alone_address = flag_alone.address.to_string();
    let id_server = format!("https://{}", theirs.name);
    let at = |address| Before { address, id_server: Some(&id_server), shim: &shim, gateway: None };
    for (which, _) in SDKS {
        let mut sdk = Sdk::start(which);
        let (_, known) = registered(&shim).await;
        let registered = at(&shim.clients).register(&mut sdk).await;
        let reset = at(&shim.clients).reset_password(&mut sdk, &known).await;
        for (came, endpoint) in [(&registered, "/register"), (&reset, "/account/password")] {
            came.ok();
            assert_eq!(came.sent_to("/email/requestToken")[0]["id_server"], theirs.name);
            let auth = &came.sent_to(endpoint).last().unwrap()["auth"];
            let creds = auth["threepid_creds"].as_object().unwrap();
            assert!(!creds.contains_key("id_server") && !creds["sid"].as_str().unwrap().starts_with("shim_"));
        }
        // The mismatch is real: with the flag and nothing else a client that worked works no more.
        let broken = at(&flag_alone_address).register(&mut sdk).await;
        assert_eq!(broken.failed(), "still waiting after the click");
        let broken = at(&flag_alone_address).reset_password(&mut sdk, &known).await;
        assert_eq!(broken.failed(), "M_UNKNOWN", "No id_server in creds");
        // Adding an address needs no mending: these SDKs name it on both ways.
        let added = at(&shim.clients).add(&mut sdk).await;
        assert_eq!(added.sent_to("/account/3pid")[0]["threePidCreds"]["id_server"], theirs.name);
        added.ok();
    }
    assert_eq!(shim.outbox().len(), 2, "the identity server's mails are its own");
}

/// matrix-js-sdk from 28 on: never in requestToken, and in creds whenever one is configured (it speaks v3 only, so that
/// an old Synapse never meets it; others do the same).
#[tokio::test(flavor = "multi_thread")]
async fn p5_2_an_identity_server_named_in_creds_but_not_in_requesttoken_is_replaced_by_ours() {
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let shim = synapse.shim(Wanted::config(ROOMY)).await;
        let (client, name, secret) = (shim.client(), unique("newer"), unique("secret"));
        let email = format!("{name}@example.org");
        let sid = client.request_token("register", &email, &secret, 1).await.sid();
        let creds =
            json!({ "sid": sid, "client_secret": secret, "id_server": "server.invalid", "id_access_token": "t" });
        let auth = json!({ "type": "m.login.email.identity", "threepid_creds": creds.clone(), "threepidCreds": creds.clone() });
        let body = json!({ "username": name, "password": PASSWORD, "auth": auth });
        assert_eq!(client.call("register", body.clone()).await.status, 401, "keep waiting");
        client.click(&shim.link(&sid)).await;
        let bare = synapse.bare().call("register", body.clone()).await;
        assert_eq!(bare.verdict(), (401, "M_UNAUTHORIZED".into()), "the bare homeserver waits for server.invalid");
        client.call("register", body).await.ok();

        let sid = shim.verify("account/password", &email, &secret).await;
        let mut creds = creds;
        creds["sid"] = sid.into();
        client.reset_password("new password", creds).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_2_an_identity_server_that_is_dead_stays_so_unless_it_is_replaced() {
    let synapse = legacy("1.3.1");
    let shim = synapse.shim(Wanted::config(ROOMY)).await;
    for (which, _) in SDKS {
        let before = Before { address: &shim.clients, id_server: Some(DEAD), shim: &shim, gateway: None };
        let came = before.register(&mut Sdk::start(which)).await;
        assert_eq!(came.failed(), "M_SERVER_NOT_TRUSTED", "as MSC2263 has it; \"replace\" is in the table");
    }
    let path = request_token_path("register");
    let named = json!({ "client_secret": "s", "email": "a@example.org", "send_attempt": 1, "id_server": "x" });
    assert_eq!(shim.client().post(&path, named).await.errcode(), "M_SERVER_NOT_TRUSTED");
}

/// Riot shows "add e-mail" only with an identity server or with MSC2290's flag.
#[tokio::test(flavor = "multi_thread")]
async fn p5_4_adding_an_address_asks_for_the_password_where_separate_add_is_served() {
    for version in EVERY_VERSION {
        let synapse = legacy(version);
        let routes = format!("{ROOMY}[routes]\naccount_3pid_add = \"translate\"\n");
        let shim = synapse.shim(Wanted::config(&routes)).await;
        for ((which, _), id_server) in SDKS.into_iter().zip([None, Some(DEAD)]) {
            let mut sdk = Sdk::start(which);
            let through = Before { address: &shim.clients, id_server, shim: &shim, gateway: None };
            assert_eq!(through.flag(&mut sdk).await.ok()["separate_add_and_bind"], true);
            let came = through.add(&mut sdk).await;
            came.ok();
            assert_eq!(came.sent_to("/account/3pid").len(), 0, "the old endpoint is the shim's to use");
            assert_eq!(came.sent_to("/unstable/account/3pid/add").len(), 2, "first without the password");
            assert!(came.sent_to("/requestToken")[0].get("id_server").is_none());
        }
    }
}
