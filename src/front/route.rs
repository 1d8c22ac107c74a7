//! The table of paths we know, and one look-up on the raw path.

use http::Method;

use crate::front::separate_add::Separate;
use crate::front::threepid_creds::Completion;
use crate::matrix::{Medium, Purpose, SUBMIT_TOKEN_PATH};

/// What a path is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// The homeserver's.
    Forward,
    Versions,
    Ours(Ours),
}

/// What we look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    RequestToken(Purpose, Medium),
    ThreepidCreds(Completion),
    Separate(Separate),
    Confirm(Purpose),
    SubmitToken,
}

impl Route {
    /// Looks at the raw path, as old homeservers do: what is percent-encoded, doubled or dotted reaches none of their
    /// handlers, so that it needs none of ours.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/_matrix/client/") else { return Self::Forward };
        if rest == "versions" {
            return if method == Method::GET { Self::Versions } else { Self::Forward };
        }
        if rest.starts_with("unstable/threepid_shim/") {
            if path == SUBMIT_TOKEN_PATH {
                return Self::Ours(Ours::SubmitToken);
            }
            let purpose = Purpose::ALL.into_iter().find(|purpose| purpose.link_path() == path);
            return purpose.map_or(Self::Forward, |purpose| Self::Ours(Ours::Confirm(purpose)));
        }
        let endpoint = rest.strip_prefix("api/v1/").or_else(|| {
            let (version, endpoint) = rest.split_once('/')?;
            (!version.is_empty()).then_some(endpoint)
        });
        match (method, endpoint) {
            (&Method::POST, Some(endpoint)) => Self::of_post(endpoint),
            (&Method::DELETE, Some(endpoint)) => match endpoint.strip_prefix("devices/") {
                Some(id) if !id.contains('/') => Self::Ours(Ours::ThreepidCreds(Completion::OtherUia)),
                Some(_) | None => Self::Forward,
            },
            _ => Self::Forward,
        }
    }

    fn of_post(endpoint: &str) -> Self {
        Self::Ours(match endpoint {
            "register/email/requestToken" => Ours::RequestToken(Purpose::Register, Medium::Email),
            "register/msisdn/requestToken" => Ours::RequestToken(Purpose::Register, Medium::Msisdn),
            "account/password/email/requestToken" => Ours::RequestToken(Purpose::Password, Medium::Email),
            "account/password/msisdn/requestToken" => Ours::RequestToken(Purpose::Password, Medium::Msisdn),
            "account/3pid/email/requestToken" => Ours::RequestToken(Purpose::Account3pid, Medium::Email),
            "account/3pid/msisdn/requestToken" => Ours::RequestToken(Purpose::Account3pid, Medium::Msisdn),
            "register" => Ours::ThreepidCreds(Completion::Uia(Purpose::Register)),
            "account/password" => Ours::ThreepidCreds(Completion::Uia(Purpose::Password)),
            "account/3pid" => Ours::ThreepidCreds(Completion::Account3pid),
            "account/3pid/add" => Ours::Separate(Separate::Add),
            "account/3pid/bind" => Ours::Separate(Separate::Bind),
            "account/3pid/unbind" => Ours::Separate(Separate::Unbind),
            "account/deactivate" | "keys/device_signing/upload" => Ours::ThreepidCreds(Completion::OtherUia),
            // Synapse's pattern for it has no end.
            _ if endpoint.starts_with("delete_devices") => Ours::ThreepidCreds(Completion::OtherUia),
            _ => return Self::Forward,
        })
    }
}

/// Every name that one of ours has.
pub const NAMES: [&str; 15] = [
    "register.email",
    "register.msisdn",
    "password.email",
    "password.msisdn",
    "account_3pid.email",
    "account_3pid.msisdn",
    "complete.register",
    "complete.password",
    "complete.account_3pid",
    "complete.other",
    "add",
    "bind",
    "unbind",
    "confirm",
    "submit_token",
];

impl Ours {
    /// What the path itself says of it; of a completion only its session does.
    pub(super) fn medium(self) -> Option<Medium> {
        match self {
            Self::RequestToken(_, medium) => Some(medium),
            Self::Confirm(_) => Some(Medium::Email),
            Self::SubmitToken => Some(Medium::Msisdn),
            Self::ThreepidCreds(_) | Self::Separate(_) => None,
        }
    }

    /// For logs and metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RequestToken(purpose, medium) => purpose.route(medium),
            Self::ThreepidCreds(Completion::Uia(Purpose::Register)) => "complete.register",
            Self::ThreepidCreds(Completion::Uia(Purpose::Password)) => "complete.password",
            Self::ThreepidCreds(Completion::Uia(Purpose::Account3pid) | Completion::Account3pid) => {
                "complete.account_3pid"
            }
            Self::ThreepidCreds(Completion::Uia(Purpose::Delegated) | Completion::OtherUia) => "complete.other",
            Self::Separate(Separate::Add) => "add",
            Self::Separate(Separate::Bind) => "bind",
            Self::Separate(Separate::Unbind) => "unbind",
            Self::Confirm(_) => "confirm",
            Self::SubmitToken => "submit_token",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_we_know_is_known_under_every_version_segment() {
        let token = |purpose| Route::Ours(Ours::RequestToken(purpose, Medium::Email));
        let uia = |purpose| Route::Ours(Ours::ThreepidCreds(Completion::Uia(purpose)));
        let table = [
            ("register/email/requestToken", token(Purpose::Register)),
            ("account/password/email/requestToken", token(Purpose::Password)),
            ("account/3pid/email/requestToken", token(Purpose::Account3pid)),
            ("register/msisdn/requestToken", Route::Ours(Ours::RequestToken(Purpose::Register, Medium::Msisdn))),
            ("register", uia(Purpose::Register)),
            ("account/password", uia(Purpose::Password)),
            ("account/3pid", Route::Ours(Ours::ThreepidCreds(Completion::Account3pid))),
            ("account/3pid/add", Route::Ours(Ours::Separate(Separate::Add))),
            ("account/deactivate", Route::Ours(Ours::ThreepidCreds(Completion::OtherUia))),
            ("delete_devices", Route::Ours(Ours::ThreepidCreds(Completion::OtherUia))),
            ("delete_devices/x", Route::Ours(Ours::ThreepidCreds(Completion::OtherUia))),
            ("keys/device_signing/upload", Route::Ours(Ours::ThreepidCreds(Completion::OtherUia))),
        ];
        for (endpoint, route) in table {
            let Route::Ours(ours) = route else { panic!("{endpoint}") };
            assert!(NAMES.contains(&ours.name()), "{endpoint}");
        }
        for version in ["r0", "unstable", "v2_alpha", "v3", "r0.5.0", "api/v1", "%72"] {
            for (endpoint, expected) in table {
                let path = format!("/_matrix/client/{version}/{endpoint}");
                assert_eq!(Route::of(&Method::POST, &path), expected, "{path}");
                assert_eq!(Route::of(&Method::GET, &path), Route::Forward, "{path}");
            }
            for device in ["ABC", ""] {
                let device = format!("/_matrix/client/{version}/devices/{device}");
                assert_eq!(Route::of(&Method::DELETE, &device), Route::Ours(Ours::ThreepidCreds(Completion::OtherUia)));
            }
        }
    }

    #[test]
    fn s4_32_every_other_spelling_of_a_path_is_forwarded() {
        for path in [
            "/_matrix/client/r0/register/email/requestToken/",
            "/_matrix/client/r0/register//email/requestToken",
            "//_matrix/client/r0/register/email/requestToken",
            "/_matrix/client//register/email/requestToken",
            "/_matrix/client/r0/./register/email/requestToken",
            "/_matrix/client/r0/x/../register/email/requestToken",
            "/_matrix/client/r0/register/email/requestToken;x=1",
            "/_matrix/client/r0/register/email/request%54oken",
            "/_matrix/client/r0/register%2Femail/requestToken",
            "/_MATRIX/client/r0/register/email/requestToken",
            "/_matrix/client/r0/register/email/requesttoken",
            "/_matrix/client/r0/register/foo/requestToken",
            "/_matrix/client/register/email/requestToken",
            "/_matrix/client/r0/devices/",
            "/_matrix/identity/api/v1/3pid/getValidated3pid",
            "/_matrix/client/unstable/threepid_shim/other/email/submit_token",
            "/",
            "",
        ] {
            assert_eq!(Route::of(&Method::POST, path), Route::Forward, "{path}");
        }
        assert_eq!(Route::of(&Method::GET, "/_matrix/client/versions"), Route::Versions);
        for (method, path) in [(Method::HEAD, "/_matrix/client/versions"), (Method::GET, "/_matrix/client/versions/")] {
            assert_eq!(Route::of(&method, path), Route::Forward);
        }
    }
}
