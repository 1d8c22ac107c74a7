//! Door 1, for clients: the table of paths we know, and one match.

pub mod confirm;
pub mod forward;
pub mod request_token;
pub mod submit_token;
pub mod threepid_creds;
pub mod versions;

use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use crate::config::{RouteMode, Shared};
use crate::matrix::{Errcode, Medium, Purpose, SUBMIT_TOKEN_PATH};
use crate::needs_shim::NeedsShim;
use crate::random;
use crate::serve::Door;
use crate::telemetry::{self, Metrics, RequestId, Subject};
use confirm::Confirm;
use forward::{Body, Forward};
use request_token::RequestToken;
use submit_token::SubmitToken;
use threepid_creds::{Completion, ThreepidCreds};
use versions::Versions;

/// What a path is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Forward,
    Versions,
    RequestToken(Purpose, Medium),
    ThreepidCreds(Completion),
    Confirm(Purpose),
    SubmitToken,
}

impl Route {
    /// Looks at the raw path, as old homeservers do: what is percent-encoded, doubled or dotted reaches none of their
    /// handlers, so that it needs none of ours (P§1.1).
    fn of(method: &Method, path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/_matrix/client/") else { return Self::Forward };
        if rest == "versions" {
            return if method == Method::GET { Self::Versions } else { Self::Forward };
        }
        if rest.starts_with("unstable/threepid_shim/") {
            if path == SUBMIT_TOKEN_PATH {
                return Self::SubmitToken;
            }
            let purpose = Purpose::ALL.into_iter().find(|purpose| purpose.link_path() == path);
            return purpose.map_or(Self::Forward, Self::Confirm);
        }
        let endpoint = rest.strip_prefix("api/v1/").or_else(|| {
            let (version, endpoint) = rest.split_once('/')?;
            (!version.is_empty()).then_some(endpoint)
        });
        match (method, endpoint) {
            (&Method::POST, Some(endpoint)) => Self::of_post(endpoint),
            (&Method::DELETE, Some(endpoint)) => match endpoint.strip_prefix("devices/") {
                Some(id) if !id.is_empty() && !id.contains('/') => Self::ThreepidCreds(Completion::OtherUia),
                Some(_) | None => Self::Forward,
            },
            _ => Self::Forward,
        }
    }

    fn of_post(endpoint: &str) -> Self {
        match endpoint {
            "register/email/requestToken" => Self::RequestToken(Purpose::Register, Medium::Email),
            "register/msisdn/requestToken" => Self::RequestToken(Purpose::Register, Medium::Msisdn),
            "account/password/email/requestToken" => Self::RequestToken(Purpose::Password, Medium::Email),
            "account/password/msisdn/requestToken" => Self::RequestToken(Purpose::Password, Medium::Msisdn),
            "account/3pid/email/requestToken" => Self::RequestToken(Purpose::Account3pid, Medium::Email),
            "account/3pid/msisdn/requestToken" => Self::RequestToken(Purpose::Account3pid, Medium::Msisdn),
            "register" => Self::ThreepidCreds(Completion::Uia(Purpose::Register)),
            "account/password" => Self::ThreepidCreds(Completion::Uia(Purpose::Password)),
            "account/3pid" | "account/3pid/add" => Self::ThreepidCreds(Completion::Account3pid),
            "account/deactivate" | "delete_devices" | "keys/device_signing/upload" => {
                Self::ThreepidCreds(Completion::OtherUia)
            }
            _ => Self::Forward,
        }
    }

    /// For logs and metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Versions => "versions",
            Self::RequestToken(Purpose::Register, Medium::Email) => "register.email",
            Self::RequestToken(Purpose::Register, Medium::Msisdn) => "register.msisdn",
            Self::RequestToken(Purpose::Password, Medium::Email) => "password.email",
            Self::RequestToken(Purpose::Password, Medium::Msisdn) => "password.msisdn",
            Self::RequestToken(Purpose::Account3pid, Medium::Email) => "account_3pid.email",
            Self::RequestToken(Purpose::Account3pid, Medium::Msisdn) => "account_3pid.msisdn",
            Self::ThreepidCreds(Completion::Uia(Purpose::Register)) => "complete.register",
            Self::ThreepidCreds(Completion::Uia(Purpose::Password)) => "complete.password",
            Self::ThreepidCreds(Completion::Uia(Purpose::Account3pid) | Completion::Account3pid) => {
                "complete.account_3pid"
            }
            Self::ThreepidCreds(Completion::OtherUia) => "complete.other",
            Self::Confirm(_) => "confirm",
            Self::SubmitToken => "submit_token",
        }
    }

    /// What the path itself says of it; of a completion only its session does.
    fn medium(self) -> Option<Medium> {
        match self {
            Self::RequestToken(_, medium) => Some(medium),
            Self::Confirm(_) => Some(Medium::Email),
            Self::SubmitToken => Some(Medium::Msisdn),
            Self::Forward | Self::Versions | Self::ThreepidCreds(_) => None,
        }
    }
}

/// The client door.
#[derive(Debug)]
pub struct Front {
    pub config: Shared,
    pub needs_shim: NeedsShim,
    pub metrics: Metrics,
    pub forward: Forward,
    pub versions: Versions,
    pub request_token: RequestToken,
    pub threepid_creds: ThreepidCreds,
    pub confirm: Confirm,
    pub submit_token: SubmitToken,
}

impl Door for Front {
    type Body = Body;

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let route = Route::of(request.method(), request.uri().path());
        let answered = match route {
            Route::Versions => self.versions.handle(request, self.flag_is_true()).await,
            Route::RequestToken(..) | Route::ThreepidCreds(_) | Route::Confirm(_) | Route::SubmitToken
                if self.is_ours(route) =>
            {
                return self.intercept(route, request).await;
            }
            Route::Forward
            | Route::RequestToken(..)
            | Route::ThreepidCreds(_)
            | Route::Confirm(_)
            | Route::SubmitToken => self.forward.handle(request).await,
        };
        answered.unwrap_or_else(|refusal| refusal.into_response().map(Body::from))
    }
}

impl Front {
    /// Nothing is done for a homeserver that has learnt MSC2263, nor on a requestToken route that is to be forwarded.
    fn is_ours(&self, route: Route) -> bool {
        match route {
            Route::RequestToken(purpose, medium) => {
                let mode = self.config.load().routes.request_token(purpose, medium);
                self.needs_shim.get() && mode != RouteMode::Forward
            }
            Route::ThreepidCreds(_) => self.needs_shim.get(),
            Route::Forward | Route::Versions | Route::Confirm(_) | Route::SubmitToken => true,
        }
    }

    fn flag_is_true(&self) -> bool {
        self.needs_shim.get() && self.config.load().routes.flag_is_true()
    }

    /// Runs one of our own routes, and writes its one line.
    async fn intercept(&self, route: Route, mut request: Request<Incoming>) -> Response<Body> {
        let began = Instant::now();
        let request_id = match random::bytes() {
            Ok(random) => RequestId::from_random(random),
            Err(refusal) => return refusal.into_response().map(Body::from),
        };
        request.extensions_mut().insert(request_id.clone());
        let subject = Subject::default();
        request.extensions_mut().insert(subject.clone());
        if let Some(medium) = route.medium() {
            subject.note_medium(medium);
        }
        let answered = match route {
            Route::RequestToken(purpose, medium) => self.request_token.handle(request, purpose, medium).await,
            Route::ThreepidCreds(completion) => self.threepid_creds.handle(request, completion).await,
            Route::Confirm(purpose) => {
                self.confirm.handle(request, purpose).await.map(|page: Response<Bytes>| page.map(Body::from))
            }
            Route::SubmitToken => self.submit_token.handle(request).await.map(|answer| answer.map(Body::from)),
            Route::Forward | Route::Versions => self.forward.handle(request).await,
        };
        let (outcome, errcode) = match &answered {
            Ok(_) => ("relayed", None),
            Err(refusal) => ("refused", Some(refusal.errcode)),
        };
        let response = answered.unwrap_or_else(|refusal| refusal.into_response().map(Body::from));
        let took = began.elapsed();
        self.metrics.count_intercepted(route.name(), outcome, took);
        let fault = telemetry::fault(response.status(), errcode.map(Errcode::as_str));
        tracing::info!(
            route = route.name(),
            outcome,
            status = response.status().as_u16(),
            errcode = errcode.map(Errcode::as_str).or(subject.errcode().filter(|_| !response.status().is_success())),
            sid = subject.sid(),
            medium = subject.medium(),
            fault = fault.as_str(),
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            %request_id,
            "intercepted"
        );
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_we_know_is_known_under_every_version_segment() {
        let token = |purpose| Route::RequestToken(purpose, Medium::Email);
        let uia = |purpose| Route::ThreepidCreds(Completion::Uia(purpose));
        let table = [
            ("register/email/requestToken", token(Purpose::Register)),
            ("account/password/email/requestToken", token(Purpose::Password)),
            ("account/3pid/email/requestToken", token(Purpose::Account3pid)),
            ("register/msisdn/requestToken", Route::RequestToken(Purpose::Register, Medium::Msisdn)),
            ("register", uia(Purpose::Register)),
            ("account/password", uia(Purpose::Password)),
            ("account/3pid", Route::ThreepidCreds(Completion::Account3pid)),
            ("account/3pid/add", Route::ThreepidCreds(Completion::Account3pid)),
            ("account/deactivate", Route::ThreepidCreds(Completion::OtherUia)),
            ("delete_devices", Route::ThreepidCreds(Completion::OtherUia)),
            ("keys/device_signing/upload", Route::ThreepidCreds(Completion::OtherUia)),
        ];
        for version in ["r0", "unstable", "v2_alpha", "v3", "r0.5.0", "api/v1", "%72"] {
            for (endpoint, expected) in table {
                let path = format!("/_matrix/client/{version}/{endpoint}");
                assert_eq!(Route::of(&Method::POST, &path), expected, "{path}");
                assert_eq!(Route::of(&Method::GET, &path), Route::Forward, "{path}");
            }
            let device = format!("/_matrix/client/{version}/devices/ABC");
            assert_eq!(Route::of(&Method::DELETE, &device), Route::ThreepidCreds(Completion::OtherUia));
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
