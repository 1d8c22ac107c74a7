//! S§4 rows 2 and 21: one sid, one owner.

use std::time::Duration;

use serde_json::{Value, json};

use super::naive::Naive;
use super::{logged_in, never_do, roomy};
use crate::client::{Client, PASSWORD, creds, fields};
use crate::legacy::{VERSIONS, legacy, unique};

const NEARLY_TEN_MINUTES: Duration = Duration::from_secs(599);

/// Old Synapse: account/3pid has no in-use check, and its table is an upsert: the second user takes the address from the first.
#[tokio::test(flavor = "multi_thread")]
async fn p2_4_a_second_user_cannot_take_the_address_with_the_sid_of_the_first() {
    for version in VERSIONS {
        let synapse = legacy(version);
        let email = format!("{}@example.org", unique("moved"));
        let naive = Naive::of(synapse, &email);
        let (first, second) = (logged_in(&synapse.bare()).await, logged_in(&synapse.bare()).await);
        first.add_3pid(naive.creds()).await.ok();
        second.add_3pid(naive.creds()).await.ok();
        let none: [String; 0] = [];
        assert_eq!(first.addresses().await, none, "{version}: the attack is real");

        let shim = roomy(synapse).await;
        let (first, second) = (logged_in(&shim.client()).await, logged_in(&shim.client()).await);
        let (email, secret) = (format!("{}@example.org", unique("kept")), unique("secret"));
        let sid = shim.verify("account/3pid", &email, &secret).await;
        first.add_3pid(creds(&sid, &secret)).await.ok();
        assert_eq!(second.add_3pid(creds(&sid, &secret)).await.verdict(), never_do(), "{version}");
        assert_eq!(first.addresses().await, [email], "{version}");
        assert_eq!(second.addresses().await, none, "{version}");
    }
}

/// An access token may stand in the query, among whatever else: one that the shim does not find there is still not
/// another's.
#[tokio::test(flavor = "multi_thread")]
async fn p2_4_a_query_of_any_length_with_names_twice_makes_no_two_users_one() {
    let shim = roomy(legacy("1.3.1")).await;
    let many = (0..60).fold(String::new(), |all, n| format!("{all}&n{n}=1"));
    let mut ran = 0;
    for more in ["", "&x=1&x=2", &many] {
        let tokens =
            [shim.client().register_plainly(&unique("q")).await, shim.client().register_plainly(&unique("q")).await];
        let secret = unique("secret");
        let email = format!("{secret}@example.org");
        let sid = shim.verify("account/3pid", &email, &secret).await;
        let add = async |token: &str| {
            let path = format!("/_matrix/client/r0/account/3pid?access_token={token}{more}");
            shim.client().post(&path, json!({ "three_pid_creds": creds(&sid, &secret) })).await
        };
        add(&tokens[0]).await.ok();
        assert_eq!(add(&tokens[1]).await.verdict(), never_do(), "{more}");
        add(&tokens[0]).await.ok();
        assert_eq!(shim.client().logged_in(&tokens[0]).addresses().await, [email], "{more}");
        ran += 1;
    }
    assert_eq!(ran, 3);
}

/// Old homeservers let the last of two simultaneous users have the address.
#[tokio::test(flavor = "multi_thread")]
async fn p2_4_of_a_hundred_simultaneous_users_of_a_sid_one_gets_the_address() {
    let shim = roomy(legacy("1.3.1")).await;
    let mut users = Vec::new();
    for _ in 0..10 {
        users.push(logged_in(&shim.client()).await);
    }
    let secret = unique("secret");
    let sid = shim.verify("account/3pid", &format!("{secret}@example.org"), &secret).await;
    let adding: Vec<_> = (0..100)
        .map(|n: usize| {
            let (user, creds) = (users[n % 10].clone(), creds(&sid, &secret));
            tokio::spawn(async move {
                loop {
                    let verdict = user.add_3pid(creds.clone()).await.verdict();
                    if !too_many(&verdict) {
                        break (n % 10, verdict);
                    }
                }
            })
        })
        .collect();
    let mut winners = Vec::new();
    for one in adding {
        match one.await.unwrap() {
            (user, (200, _)) => winners.push(user),
            (_, refused) => assert_eq!(refused, never_do()),
        }
    }
    assert_eq!(winners.len(), 10, "the winner's own repeats are answered");
    winners.dedup();
    assert_eq!(winners.len(), 1, "one user");
    assert_eq!(users[winners[0]].addresses().await.len(), 1);
}

/// While too many wait for one session, the next asks again.
fn too_many(verdict: &(u16, String)) -> bool {
    verdict.0 == 429
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_4_of_a_hundred_simultaneous_registrations_with_a_sid_one_succeeds() {
    let shim = roomy(legacy("1.3.1")).await;
    let secret = unique("secret");
    let sid = shim.verify("register", &format!("{secret}@example.org"), &secret).await;
    let registering: Vec<_> = (0..100)
        .map(|_| {
            let (client, creds, name) = (shim.client(), creds(&sid, &secret), unique("parallel"));
            tokio::spawn(async move {
                loop {
                    let verdict = client.register(&name, creds.clone()).await.verdict();
                    if !too_many(&verdict) {
                        break verdict;
                    }
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for one in registering {
        all.push(one.await.unwrap());
    }
    all.retain(|verdict| *verdict != never_do());
    assert_eq!(all, [(200, String::new())]);
}

/// The grace for clients that lost an answer is for the owner, and for ten minutes.
#[tokio::test(flavor = "multi_thread")]
async fn p4_6_a_consumed_sid_is_repeated_by_its_owner_and_by_no_thief() {
    let shim = roomy(legacy("1.3.1")).await;
    let (owner, thief) = (logged_in(&shim.client()).await, logged_in(&shim.client()).await);
    let secret = unique("secret");
    let sid = shim.verify("account/3pid", &format!("{secret}@example.org"), &secret).await;
    let uia_secret = unique("secret");
    let uia_sid = shim.verify("register", &format!("{uia_secret}@example.org"), &uia_secret).await;
    let uia = super::uia_session(&shim.client()).await;
    let name = unique("owner");
    let auth = super::email_stage(&creds(&uia_sid, &uia_secret), Some(&uia));
    let registration = json!({ "username": name, "password": PASSWORD, "auth": auth });
    let register = |body: Value| async { shim.client().post("/_matrix/client/r0/register", body).await };

    owner.add_3pid(creds(&sid, &secret)).await.ok();
    let account = register(registration.clone()).await.ok();
    shim.later(NEARLY_TEN_MINUTES);
    owner.add_3pid(creds(&sid, &secret)).await.ok();
    let again = register(registration.clone()).await.ok();
    assert_eq!(again["user_id"], account["user_id"], "the same account, not a second one");
    register(json!({ "auth": { "session": uia } })).await.ok();
    let stolen = json!({ "username": unique("thief"), "password": PASSWORD, "auth": super::email_stage(&creds(&uia_sid, &uia_secret), None) });
    assert_eq!(register(stolen).await.verdict(), never_do());
    assert_eq!(thief.add_3pid(creds(&sid, &secret)).await.verdict(), never_do());
    shim.later(Duration::from_secs(1));
    assert_eq!(owner.add_3pid(creds(&sid, &secret)).await.verdict(), never_do());
    assert_eq!(register(registration).await.verdict(), never_do());
    assert_eq!(register(json!({ "auth": { "session": uia } })).await.verdict(), never_do());
}

/// CVE-2021-3754 and its kin: fifty clicks are one, and a later one extends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn s4_2_fifty_clicks_at_once_and_one_an_hour_later_validate_once() {
    let shim = roomy(legacy("1.3.1")).await;
    let user = logged_in(&shim.client()).await;
    let secret = unique("secret");
    let sid = user.request_token("account/3pid", &format!("{secret}@example.org"), &secret, 1).await.sid();
    let link = shim.link(&sid);
    let page = user.open(&link).await;
    let clicks: Vec<_> = (0..50)
        .map(|_| {
            let (client, link, page) = (shim.client(), link.clone(), page.clone());
            tokio::spawn(async move { client.press(&link, &page).await })
        })
        .collect();
    let mut pages = Vec::new();
    for click in clicks {
        let page = click.await.unwrap();
        assert_eq!(page.status, 200);
        pages.push(page.text());
    }
    pages.sort();
    let first = pages.iter().filter(|page| **page == pages[0]).count();
    assert!([1, 49].contains(&first), "one is confirmed, the others are already: {first}");
    shim.later(Duration::from_secs(3600));
    assert_eq!(user.press(&link, &page).await.status, 200);
    user.add_3pid(creds(&sid, &secret)).await.ok();
    let threepids = user.get("/_matrix/client/r0/account/3pid").await.ok();
    let validated_at = threepids["threepids"][0]["validated_at"].as_u64().unwrap();
    let added_at = threepids["threepids"][0]["added_at"].as_u64().unwrap();
    assert!(validated_at < added_at + 60_000, "the first click, not the one an hour later by the shim's clock");
}

/// CVE-2026-32700 (Devise): two requests race for one session, and the token of one address validates the other.
#[tokio::test(flavor = "multi_thread")]
async fn s4_21_a_hundred_racing_pairs_never_let_one_address_stand_for_the_other() {
    let shim = roomy(legacy("1.3.1")).await;
    let pairs: Vec<_> = (0..100)
        .map(|_| {
            let (client, secret) = (shim.client(), unique("pair"));
            tokio::spawn(async move {
                let (a, b) = (format!("a.{secret}@example.org"), format!("b.{secret}@example.org"));
                let ask = |email| client.request_token("register", email, &secret, 1);
                let (first, second) = tokio::join!(ask(&a), ask(&b));
                (secret.clone(), first.sid(), second.sid())
            })
        })
        .collect();
    let mut sids = Vec::new();
    for pair in pairs {
        let (secret, a, b) = pair.await.unwrap();
        assert_ne!(a, b);
        sids.push((secret, a, b));
    }
    let links: Vec<_> = shim.outbox().iter().map(|mail| (mail.clone(), crate::shim::link_of(mail))).collect();
    let find = |sid: &str| links.iter().find(|(_, link)| link.contains(sid)).unwrap();
    for (secret, a, b) in sids {
        let ((mail_a, link_a), (_, link_b)) = (find(&a), find(&b));
        assert!(mail_a.contains(&format!("To: a.{secret}@example.org")), "the sid is the address's that was asked for");
        let page_b = shim.client().open(link_b).await;
        let crossed = link_a.replace(&a, &b);
        assert_eq!(shim.client().open(&crossed).await.status, 400);
        let token_a = token_of(link_a);
        let forged = fields(&page_b.text()).replace(&token_of(link_b), &token_a);
        assert_eq!(submit(&shim.client(), link_b, &forged).await, 400);
        assert!(shim.client().open(link_b).await.text().contains("<button"), "b still waits for its own click");
    }
}

fn token_of(link: &str) -> String {
    link.split("token=").nth(1).unwrap().split('&').next().unwrap().to_owned()
}

async fn submit(client: &Client, link: &str, form: &str) -> u16 {
    let path = crate::client::target_of(link).split('?').next().unwrap().to_owned();
    client.clone().with("Sec-Fetch-Site", "same-origin").send("POST", &path, form.as_bytes()).await.status
}
