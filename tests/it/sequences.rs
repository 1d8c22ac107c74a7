//! Any sequence of requests, clicks, completions, thefts and waiting: what must hold after each step of all of them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use threepid_shim::config;
use threepid_shim::matrix::{Address, ClientSecret, Medium, Purpose, Sid, Threepid, Timestamp, Token};
use threepid_shim::session::{Asked, Lifetimes, Owner, Reserved, Settled, Submitted};
use threepid_shim::store::{Client, Fresh, Key, Store};
use threepid_shim::telemetry::{Metrics, RequestId};

const SEQUENCES: u32 = 10_000;
const LIFETIMES: Lifetimes =
    Lifetimes { unvalidated: Duration::from_secs(3600), validated: Duration::from_secs(86_400) };

/// What somebody does. Numbers choose among what there is, modulo how much.
#[derive(Debug, Clone)]
enum Step {
    /// A user's requestToken, which the homeserver let through; the mail server takes the mail or does not.
    RequestToken {
        user: usize,
        address: usize,
        purpose: usize,
        attempt: i64,
        taken: bool,
    },
    /// The holder of a mailbox opens a mail and presses the button.
    Click {
        mail: usize,
    },
    /// Somebody who knows the sid, and perhaps the secret, tries a token of his own.
    Guess {
        session: usize,
        user: usize,
    },
    /// A request with a sid, from somebody's UIA session or account.
    Complete {
        session: usize,
        user: usize,
        purpose: usize,
        owner: usize,
        homeserver: Homeserver,
    },
    Wait {
        seconds: u64,
    },
}

/// What the homeserver does with a completion.
#[derive(Debug, Clone, Copy)]
enum Homeserver {
    /// Never looks at the creds.
    DoesNotAsk,
    AsksAndFails,
    AsksAndLists,
    AsksAndDoes,
    /// The shim dies before the answer.
    NeverAnswers,
}

fn step() -> impl Strategy<Value = Step> {
    let homeserver = prop_oneof![
        1 => Just(Homeserver::DoesNotAsk),
        1 => Just(Homeserver::AsksAndFails),
        1 => Just(Homeserver::AsksAndLists),
        4 => Just(Homeserver::AsksAndDoes),
        1 => Just(Homeserver::NeverAnswers),
    ];
    prop_oneof![
        4 => (0..2usize, 0..3usize, 0..3usize, -1..3i64, prop::bool::weighted(0.8))
            .prop_map(|(user, address, purpose, attempt, taken)| Step::RequestToken { user, address, purpose, attempt, taken }),
        3 => (0..8usize).prop_map(|mail| Step::Click { mail }),
        1 => (0..8usize, 0..2usize).prop_map(|(session, user)| Step::Guess { session, user }),
        5 => (0..8usize, 0..2usize, 0..3usize, 0..3usize, homeserver).prop_map(
            |(session, user, purpose, owner, homeserver)| Step::Complete { session, user, purpose, owner, homeserver }
        ),
        1 => prop_oneof![Just(1), Just(299), Just(601), Just(3600), Just(90_000)].prop_map(|seconds| Step::Wait { seconds }),
    ]
}

struct Mailed {
    sid: Sid,
    user: usize,
    address: usize,
    purpose: usize,
    token: Token,
}

/// The shim's decisions, in the order its rooms make them, and beside them what a bystander saw.
struct World {
    store: Store,
    now: Timestamp,
    drawn: u64,
    mails: Vec<Mailed>,
    sessions: Vec<Sid>,
    clicked: HashSet<(Sid, usize, usize)>,
    counted: HashMap<Sid, i64>,
    owners: HashMap<Sid, usize>,
    /// Until when a request that was never answered holds a session.
    held: HashMap<Sid, Timestamp>,
}

fn secret(user: usize) -> ClientSecret {
    ClientSecret::parse(&format!("secret-{user}")).unwrap()
}

fn threepid(address: usize) -> Threepid {
    Threepid { medium: Medium::Email, address: Address::email(&format!("box{address}@example.org")).unwrap() }
}

impl World {
    fn new() -> Self {
        Self {
            store: Store::open(&config::Store::Memory, &Metrics::new()).unwrap(),
            now: Timestamp::from_millis(1_000_000_000),
            drawn: 0,
            mails: Vec::new(),
            sessions: Vec::new(),
            clicked: HashSet::new(),
            counted: HashMap::new(),
            owners: HashMap::new(),
            held: HashMap::new(),
        }
    }

    fn draw(&mut self) -> RequestId {
        self.drawn += 1;
        RequestId::from_random(self.drawn.to_be_bytes())
    }

    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::RequestToken { user, address, purpose, attempt, taken } => {
                self.request_token(user, address, purpose, attempt, taken).await
            }
            Step::Click { mail } => self.click(mail).await,
            Step::Guess { session, user } => self.guess(session, user).await,
            Step::Complete { session, user, purpose, owner, homeserver } => {
                self.complete(session, user, purpose, owner, homeserver).await
            }
            Step::Wait { seconds } => {
                self.now = self.now.after(Duration::from_secs(seconds));
                self.store.expire(self.now);
                Ok(())
            }
        }
    }

    async fn request_token(
        &mut self,
        user: usize,
        address: usize,
        purpose: usize,
        attempt: i64,
        taken: bool,
    ) -> Result<(), TestCaseError> {
        let (threepid, client_secret, request_id) = (threepid(address), secret(user), self.draw());
        let purpose_of = Purpose::ALL[purpose];
        let expires = self.now.after(LIFETIMES.unvalidated);
        let client =
            Client { threepid: &threepid, purpose: purpose_of, client_secret: &client_secret, request_id: &request_id };
        let (sid, session) = self.store.find_or_begin(&client, Fresh::draw(expires).unwrap(), self.now).await.unwrap();
        prop_assert_eq!(&session.threepid, &threepid);
        prop_assert_eq!(session.purpose, purpose_of);
        if !self.sessions.contains(&sid) {
            self.sessions.push(sid.clone());
        }
        if session.asked(attempt) == Asked::Same {
            prop_assert!(self.counted.get(&sid).is_some_and(|counted| attempt <= *counted), "a mail was owed");
            return Ok(());
        }
        prop_assert!(self.counted.get(&sid).is_none_or(|counted| attempt > *counted), "mailed twice");
        let token = Token::from_random([u8::try_from(self.drawn % 251).unwrap(); 32]);
        let add = |session: &mut threepid_shim::session::Session| {
            session.add_token(&token, None, request_id.clone(), expires);
        };
        self.store.update_session(&sid, self.now, add).await.unwrap();
        if taken {
            self.store.update_session(&sid, self.now, |session| session.mailed(attempt)).await.unwrap();
            let counted = self.counted.entry(sid.clone()).or_insert(attempt);
            *counted = attempt.max(*counted);
            self.mails.push(Mailed { sid, user, address, purpose, token });
        }
        Ok(())
    }

    async fn click(&mut self, mail: usize) -> Result<(), TestCaseError> {
        if self.mails.is_empty() {
            return Ok(());
        }
        let mail = &self.mails[mail % self.mails.len()];
        let (client_secret, token, now) = (secret(mail.user), mail.token.clone(), self.now);
        let submit =
            |session: &mut threepid_shim::session::Session| session.submit(&client_secret, &token, now, LIFETIMES);
        let submitted = self.store.update_session(&mail.sid, now, submit).await.unwrap();
        if submitted == Some(Ok(Submitted::First)) {
            self.clicked.insert((mail.sid.clone(), mail.address, mail.purpose));
        }
        Ok(())
    }

    async fn guess(&mut self, session: usize, user: usize) -> Result<(), TestCaseError> {
        if self.sessions.is_empty() {
            return Ok(());
        }
        let sid = self.sessions[session % self.sessions.len()].clone();
        let (client_secret, token, now) = (secret(user), Token::from_random([255; 32]), self.now);
        let submit =
            |session: &mut threepid_shim::session::Session| session.submit(&client_secret, &token, now, LIFETIMES);
        let guessed = self.store.update_session(&sid, now, submit).await.unwrap();
        prop_assert!(!matches!(guessed, Some(Ok(_))), "a guess validated");
        Ok(())
    }

    async fn complete(
        &mut self,
        session: usize,
        user: usize,
        purpose: usize,
        owner: usize,
        homeserver: Homeserver,
    ) -> Result<(), TestCaseError> {
        if self.sessions.is_empty() {
            return Ok(());
        }
        let sid = self.sessions[session % self.sessions.len()].clone();
        let (client_secret, holder, now) = (secret(user), self.draw(), self.now);
        let whose = Owner::uia_session(&format!("uia-{owner}"));
        let reserve = |session: &mut threepid_shim::session::Session| {
            session.reserve(&holder, Purpose::ALL[purpose], Some(&client_secret), &whose, now)
        };
        let reserved = self.store.update_session(&sid, now, reserve).await.unwrap();
        let asks = !matches!(homeserver, Homeserver::DoesNotAsk);
        let told = if asks {
            let tell = |session: &mut threepid_shim::session::Session| session.tell(&client_secret, now);
            self.store.update_session(&sid, now, tell).await.unwrap().flatten()
        } else {
            None
        };
        if reserved != Some(Reserved::Granted) {
            // Not forwarded; and should the homeserver ask all the same, it is told nothing but on behalf of a holder.
            let held = self.held.get(&sid).is_some_and(|until| now < *until);
            prop_assert!(told.is_none() || held, "told without a reservation");
            return Ok(());
        }
        if told.is_some() {
            let address = self.address_of(&sid).await;
            prop_assert!(
                self.clicked.contains(&(sid.clone(), address, purpose)),
                "told what nobody clicked for this purpose"
            );
            let previous = self.owners.get(&sid);
            prop_assert!(previous.is_none_or(|previous| *previous == owner), "two owners");
        }
        let settled = match homeserver {
            Homeserver::AsksAndDoes if told.is_some() => Settled::Consumed(whose),
            Homeserver::AsksAndLists if told.is_some() => Settled::Bound(whose),
            Homeserver::NeverAnswers => {
                self.held.insert(sid, now.after(Duration::from_secs(300)));
                return Ok(());
            }
            _ => Settled::Released,
        };
        if settled != Settled::Released {
            self.owners.insert(sid.clone(), owner);
        }
        let settle = |session: &mut threepid_shim::session::Session| session.settle(&holder, settled.clone(), now);
        self.store.update_session(&sid, now, settle).await.unwrap();
        Ok(())
    }

    async fn address_of(&self, sid: &Sid) -> usize {
        let session = self.store.get(&Key::session(sid), self.now).await.unwrap().unwrap();
        (0..3).find(|address| threepid(*address) == session.threepid).unwrap()
    }
}

#[test]
fn no_sequence_validates_what_was_not_clicked_or_gives_it_two_owners_or_mails_an_attempt_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut told = 0;
    let mut runner = TestRunner::new(Config { cases: SEQUENCES, failure_persistence: None, ..Config::default() });
    let seen = std::cell::RefCell::new((0, 0));
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            let mut world = World::new();
            for step in &steps {
                runtime.block_on(world.take(step))?;
            }
            let mut seen = seen.borrow_mut();
            seen.0 += 1;
            seen.1 += world.owners.len();
            Ok(())
        })
        .unwrap();
    told += seen.borrow().1;
    assert!(seen.borrow().0 >= SEQUENCES);
    assert!(told > 1000, "the sequences do complete something: {told}");
}
