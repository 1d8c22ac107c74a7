//! Nobody notices a reload: no request fails, none waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{OFTEN, looking, shim_before_caller};
use crate::client::Client;
use crate::homeserver::soon;
use crate::legacy::unique;
use crate::shim::{ROOMY, Shim};

const TASKS: usize = 4;
const RELOADS: usize = 10;

/// What the tasks share.
#[derive(Default)]
struct Load {
    done: AtomicUsize,
    over: AtomicBool,
}

/// Rounds of an ordinary request, one that is always ours, one whose route is ours or not by turns, and a page.
async fn work(client: Client, load: Arc<Load>) -> Vec<String> {
    let mut failed = Vec::new();
    while !load.over.load(Ordering::SeqCst) {
        let secret = unique("secret");
        let email = format!("{secret}@example.org");
        let forwarded = client.get("/_matrix/client/r0/login").await;
        let ours = client.request_token("register", &email, &secret, 1).await;
        let either = client.request_token("account/3pid", &email, &secret, 1).await;
        let page = client.get("/_matrix/client/unstable/threepid_shim/register/email/submit_token").await;
        let good = [
            forwarded.status == 200,
            ours.status == 200 && ours.text().contains("shim_"),
            either.status == 200,
            page.status == 400 && page.text().contains("</html>"),
        ];
        if good != [true; 4] {
            failed.push(format!("{forwarded:?} {ours:?} {either:?} {page:?}"));
        }
        load.done.fetch_add(1, Ordering::SeqCst);
    }
    failed
}

/// S§5.20.
#[tokio::test(flavor = "multi_thread")]
async fn ten_reloads_under_load_fail_no_request() {
    let limits = format!("{ROOMY}[routes]\naccount_3pid.email = \"handle\"\n");
    let (shim, _caller) = shim_before_caller(looking(OFTEN, &limits)).await;
    let load = Arc::<Load>::default();
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(work(shim.client(), Arc::clone(&load)))).collect();
    let (mut now, mut next) = ("account_3pid.email = \"handle\"", "account_3pid.email = \"forward\"");
    for _ in 0..RELOADS {
        shim.reload(|shim: &Shim| shim.edit(now, next)).await;
        std::mem::swap(&mut now, &mut next);
        let enough = load.done.load(Ordering::SeqCst) + 2 * TASKS;
        soon("the load goes on", async {
            while load.done.load(Ordering::SeqCst) < enough {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    load.over.store(true, Ordering::SeqCst);
    for task in tasks {
        assert_eq!(soon("a task ends", task).await.unwrap(), Vec::<String>::new());
    }
    assert!(load.done.load(Ordering::SeqCst) >= RELOADS * 2 * TASKS);
}
