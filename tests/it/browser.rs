//! The page behind the mailed link in a real browser, before a real Synapse 1.3.1.

pub mod chromium;

use serde_json::json;

use crate::client::{Answer, Client, PASSWORD, creds, fields, request_token_path, target_of};
use crate::legacy::{legacy, unique};
use crate::shim::{Shim, Wanted};
use chromium::{Elsewhere, open};

#[tokio::test(flavor = "multi_thread")]
async fn a_person_clicks_through_the_page_of_every_purpose_and_the_client_goes_on() {
    let app = Elsewhere::serving("<!DOCTYPE html><title>app</title><p>Welcome back").await;
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    // Each purpose with and without a next_link; what the browser is like has nothing to do with either.
    let rows: [(&str, bool, &[&str]); 6] = [
        ("register", false, &["--no-js"]),
        ("register", true, &["--mobile"]),
        ("account/password", false, &["--mobile", "--dark"]),
        ("account/password", true, &["--no-js"]),
        ("account/3pid", false, &["--dark"]),
        ("account/3pid", true, &[]),
    ];
    let mut ran = 0;
    for (purpose, with_next_link, options) in rows {
        let mut errand = Errand::begin(&shim, purpose).await;
        let next_link = with_next_link.then(|| errand.next_link(app.port));
        let link = errand.ask(&shim, next_link.as_deref()).await;
        assert!(errand.is_waiting().await, "{purpose}: nothing is confirmed yet");

        let shown = open(&link, &[options, &["--button"]].concat());
        let page = shown.before();
        for said in ["b•••@example.org", "example.org", "If you did not ask for this"] {
            assert!(page.text().contains(said), "{purpose}: no {said} in {}", page.text());
        }
        assert_eq!((page.status(), page.buttons(), page.0["lang"].as_str()), (200, 1, Some("en")));
        assert_eq!(page.text().contains("localhost"), with_next_link, "the page says where the way leads");
        assert!(shown.fits(), "{purpose}: to be scrolled sideways");
        assert_eq!(shown.console(), [""; 0], "{purpose}");
        let sid_at_the_end = |next_link| format!("{next_link}&sid={}", errand.sid);
        if let Some(next_link) = next_link {
            assert_eq!((shown.status(), shown.url()), (200, sid_at_the_end(next_link).as_str()));
        } else {
            assert_eq!(shown.status(), 200);
            assert!(shown.text().contains("Your address is confirmed"), "{}", shown.text());
            assert!(!shown.url().contains(&errand.secret), "the token has left the address bar");
        }
        let requests = shown.requests();
        let posts = requests.iter().filter(|request| request.starts_with("POST ")).count();
        let (ours, apps) = (format!("http://{}/", shim.clients), format!("http://localhost:{}/", app.port));
        let known = |request: &str| {
            let (_, url) = request.split_once(' ').unwrap();
            url.starts_with(&ours) || url.starts_with(&apps)
        };
        let strange: Vec<_> = requests.into_iter().filter(|request| !known(request)).collect();
        assert_eq!((posts, strange), (1, vec![]), "{purpose}");
        errand.finish().await;
        ran += 1;
    }
    assert_eq!(ran, 6);
    let arrivals: Vec<_> = app.heads().into_iter().filter(|head| head.starts_with("GET /app")).collect();
    assert_eq!(arrivals.len(), 3, "with a next_link each went on to the app");
    assert!(arrivals.iter().all(|head| !head.to_lowercase().contains("\nreferer:")), "{arrivals:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_clicked_again_says_already_confirmed_and_has_no_button() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    let mut errand = Errand::begin(&shim, "register").await;
    let link = errand.ask(&shim, None).await;
    assert!(open(&link, &["--button"]).text().contains("Your address is confirmed"));
    for used_up in [false, true] {
        let again = open(&link, &["--mobile"]);
        assert_eq!((again.status(), again.buttons()), (200, 0), "{}", again.text());
        assert!(again.text().contains("Already confirmed") && again.fits(), "{}", again.text());
        if !used_up {
            errand.finish().await;
        }
    }
}

/// Whoever has read the mail, or the page itself, may hope to make the owner's browser press the button.
#[tokio::test(flavor = "multi_thread")]
async fn s4_18_a_stolen_link_posted_from_another_origin_is_refused() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    let mut errand = Errand::begin(&shim, "register").await;
    let link = errand.ask(&shim, None).await;
    let stolen = inputs(&shim.client().open(&link).await);
    let action = link.split('?').next().unwrap();
    let form = format!("<form method=post action=\"{action}\">{stolen}<button>Win a prize</button></form>");
    let by_itself = "<script>onload = () => setTimeout(() => document.forms[0].submit())</script>";
    // Another port is the same site to a browser, another name is not; without a script somebody has to be fooled.
    let rows = [("127.0.0.1", "--follow"), ("localhost", "--follow"), ("localhost", "--button")];
    let mut ran = 0;
    for (host, how) in rows {
        let script = if how == "--follow" { by_itself } else { "" };
        let evil = Elsewhere::serving(format!("<!DOCTYPE html><html>{form}{script}")).await;
        let shown = open(&format!("http://{host}:{}/", evil.port), &[how]);
        assert!(shown.requests().contains(&format!("POST {action}").as_str()), "{:?}", shown.requests());
        assert_eq!(shown.status(), 403, "{host} {how}: {}", shown.text());
        assert!(errand.is_waiting().await, "{host} {how}");
        ran += 1;
    }
    assert_eq!(ran, 3);
    assert!(open(&link, &["--button"]).text().contains("Your address is confirmed"), "the page's own POST");
    errand.finish().await;
}

/// S§4.17.
#[tokio::test(flavor = "multi_thread")]
async fn a_webmail_that_looks_at_every_link_confirms_nothing() {
    let shim = legacy("1.3.1").shim(Wanted::default()).await;
    let mut errand = Errand::begin(&shim, "register").await;
    let link = errand.ask(&shim, None).await;
    let url = link.replace('&', "&amp;");
    let webmail = Elsewhere::serving(format!(
        "<!DOCTYPE html><html><link rel=prefetch href=\"{url}\"><img src=\"{url}\"><script src=\"{url}\"></script>\
         <iframe src=\"{url}\"></iframe><object data=\"{url}\"></object>"
    ))
    .await;
    let shown = open(&format!("http://localhost:{}/", webmail.port), &[]);
    let looks = shown.requests().iter().filter(|request| **request == format!("GET {link}")).count();
    assert!(looks >= 4, "{:?}", shown.requests());
    let client = shim.client();
    for purpose in [("Sec-Purpose", "prefetch"), ("Purpose", "prefetch"), ("X-Moz", "prefetch")] {
        assert_eq!(client.clone().with(purpose.0, purpose.1).open(&link).await.status, 200);
    }
    let head = client.send("HEAD", &target_of(&link), &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(errand.is_waiting().await, "nobody has pressed the button");
    assert!(open(&link, &["--button"]).text().contains("Your address is confirmed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_refuses_is_as_good_a_page() {
    let shim = legacy("1.3.1").shim(Wanted::config("[limits]\nsubmit_token_per_ip = \"2/1h\"\n")).await;
    let link = Errand::begin(&shim, "register").await.ask(&shim, None).await;
    let wrong = link.replace("client_secret=", "client_secret=x");
    let rows: [(u64, &str, &[&str]); 3] = [
        (400, "This link does not work", &["--mobile"]),
        (400, "This link does not work", &["--dark"]),
        (429, "Too many attempts", &["--mobile", "--dark", "--no-js"]),
    ];
    let mut ran = 0;
    for (status, said, options) in rows {
        let shown = open(&wrong, options);
        assert_eq!((shown.status(), shown.buttons()), (status, 0), "{}", shown.text());
        assert!(shown.text().contains(said) && shown.fits(), "{}", shown.text());
        // That it is an error is what Chromium says of every such page; of our style it must say nothing.
        assert!(shown.console().iter().all(|line| !line.contains("Content Security Policy")), "{:?}", shown.console());
        ran += 1;
    }
    assert_eq!(ran, 3);
}

/// What a client is about to do with an address, and who it is.
struct Errand {
    purpose: &'static str,
    client: Client,
    name: String,
    email: String,
    secret: String,
    sid: String,
}

impl Errand {
    /// Everything that comes before the requestToken: a password needs an account with that address, a new address one.
    async fn begin(shim: &Shim, purpose: &'static str) -> Self {
        let (name, secret) = (unique("browser"), unique("secret"));
        let email = format!("{name}@example.org");
        let mut client = shim.client();
        if purpose == "account/password" {
            let earlier = unique("secret");
            let sid = shim.verify("register", &email, &earlier).await;
            client.register(&name, creds(&sid, &earlier)).await.ok();
        }
        if purpose == "account/3pid" {
            client = client.clone().logged_in(&client.register_plainly(&name).await);
        }
        Self { purpose, client, name, email, secret, sid: String::new() }
    }

    /// As Element of 2019 writes it: what it needs stands in the fragment.
    fn next_link(&self, port: u16) -> String {
        let secret = &self.secret;
        format!(
            "http://localhost:{port}/app?a=b#/register?client_secret={secret}&hs_url=http%3A%2F%2Fhs&is_url=null&session_id=x"
        )
    }

    /// The requestToken; returns the mailed link.
    async fn ask(&mut self, shim: &Shim, next_link: Option<&str>) -> String {
        let mut body = json!({ "client_secret": self.secret, "email": self.email, "send_attempt": 1 });
        if let Some(next_link) = next_link {
            body["next_link"] = next_link.into();
        }
        self.sid = self.client.post(&request_token_path(self.purpose), body).await.sid();
        shim.link(&self.sid)
    }

    /// What the client came for, tried now.
    async fn try_now(&self) -> Answer {
        let creds = creds(&self.sid, &self.secret);
        match self.purpose {
            "register" => self.client.register(&self.name, creds).await,
            "account/password" => self.client.reset_password("from the browser", creds).await,
            _ => self.client.add_3pid(creds).await,
        }
    }

    async fn is_waiting(&self) -> bool {
        let verdict = self.try_now().await.verdict();
        verdict == (401, "M_UNAUTHORIZED".into()) || verdict == (400, "M_THREEPID_AUTH_FAILED".into())
    }

    async fn finish(&self) {
        self.try_now().await.ok();
        match self.purpose {
            "register" => drop(self.client.login(&self.email, PASSWORD).await.ok()),
            "account/password" => drop(self.client.login(&self.email, "from the browser").await.ok()),
            _ => assert_eq!(self.client.addresses().await, [self.email.as_str()]),
        }
    }
}

/// The hidden inputs of a page, to be put on another.
fn inputs(page: &Answer) -> String {
    let fields = fields(&page.text());
    let pairs = form_urlencoded::parse(fields.as_bytes());
    let input = |(name, value)| format!("<input type=hidden name=\"{name}\" value=\"{value}\">");
    pairs.map(input).collect::<Vec<_>>().concat()
}
