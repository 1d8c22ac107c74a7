//! The specification's words as types: what exists is valid.

mod next_link;
mod phone;
mod refusal;
mod secret;
mod threepid;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use next_link::NextLink;
pub use phone::{Line, Phone};
pub use refusal::{Errcode, Refusal, cors, json, retry_after};
pub(crate) use secret::hidden;
pub use secret::{ClientSecret, Digest, Sid, Token};
pub use threepid::{Address, AddressError, Medium, Threepid};

/// The path of `submit_url`, which takes the code of an SMS.
pub const SUBMIT_TOKEN_PATH: &str = "/_matrix/client/unstable/threepid_shim/msisdn/submit_token";

/// Which of the three requestToken families a session was begun on; it can complete nothing else.
///
/// `Delegated` is none of them: the homeserver began it by itself, did not say what for, and completes with it what it
/// will. No request of a client's is ever for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Register,
    Password,
    #[serde(rename = "account_3pid")]
    Account3pid,
    Delegated,
}

impl Purpose {
    pub const ALL: [Self; 4] = [Self::Register, Self::Password, Self::Account3pid, Self::Delegated];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Password => "password",
            Self::Account3pid => "account_3pid",
            Self::Delegated => "delegated",
        }
    }

    /// Its requestToken, for logs and metrics.
    pub fn route(self, medium: Medium) -> &'static str {
        match (self, medium) {
            (Self::Register, Medium::Email) => "register.email",
            (Self::Register, Medium::Msisdn) => "register.msisdn",
            (Self::Password, Medium::Email) => "password.email",
            (Self::Password, Medium::Msisdn) => "password.msisdn",
            (Self::Account3pid, Medium::Email) => "account_3pid.email",
            (Self::Account3pid, Medium::Msisdn) => "account_3pid.msisdn",
            (Self::Delegated, Medium::Email) => "delegated.email",
            (Self::Delegated, Medium::Msisdn) => "delegated.msisdn",
        }
    }

    /// The path of the link that is mailed, and of the page behind it. Not one that a homeserver owns, as Synapse does `password_reset`.
    pub fn link_path(self) -> &'static str {
        match self {
            Self::Register => "/_matrix/client/unstable/threepid_shim/register/email/submit_token",
            Self::Password => "/_matrix/client/unstable/threepid_shim/password/email/submit_token",
            Self::Account3pid => "/_matrix/client/unstable/threepid_shim/account_3pid/email/submit_token",
            Self::Delegated => "/_matrix/client/unstable/threepid_shim/delegated/email/submit_token",
        }
    }
}

/// The answer to a requestToken. A phone's has `submit_url`, where its code is submitted, and what Riot prints of the
/// number ([requestToken](https://spec.matrix.org/v1.1/client-server-api/#post_matrixclientv3registermsisdnrequesttoken)).
pub fn requested(sid: &Sid, address: &Address, public_base_url: &str) -> serde_json::Value {
    let mut answer = serde_json::json!({ "sid": sid.as_str() });
    if let (Some(phone), Some(answer)) = (address.phone(), answer.as_object_mut()) {
        answer.insert("success".into(), true.into());
        answer.insert("msisdn".into(), phone.msisdn().into());
        answer.insert("intl_fmt".into(), phone.intl_fmt().into());
        answer.insert("submit_url".into(), format!("{public_base_url}{SUBMIT_TOKEN_PATH}").into());
    }
    answer
}

/// Milliseconds since the Unix epoch, the specification's timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long until then; zero when it has passed.
    pub fn until(self, then: Self) -> Duration {
        Duration::from_millis(then.0.saturating_sub(self.0))
    }
}
