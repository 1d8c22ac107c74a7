//! Twilio's Messages resource: a form, Basic authentication, and 201 as the only success.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;

use super::super::course::Course;
use super::super::{DeliveryError, Sms};
use super::gateway::Gateway;
use super::told;
use crate::config::{self, TwilioSender};

/// [Codes](https://www.twilio.com/docs/api/errors) by which Twilio refuses the number and not the request: it is no
/// number (21211, 21217), cannot get messages (21214, 21612, 21614, 21635 a landline, 21265 a short code), lies in a
/// country that the account does not send to (21408), or has asked for no more messages (21610).
const RECIPIENT: [i64; 9] = [21211, 21214, 21217, 21265, 21408, 21610, 21612, 21614, 21635];

pub(crate) struct Twilio {
    pub(super) gateway: Gateway,
    target: Uri,
    authorization: HeaderValue,
    sender: TwilioSender,
}

/// What Twilio answers: a code when it refuses, the message's SID when it does not.
#[derive(Default, Deserialize)]
struct Said {
    code: Option<i64>,
    sid: Option<String>,
}

impl Twilio {
    pub(super) fn new(twilio: &config::Twilio) -> Result<Self, DeliveryError> {
        let fault = |what: &str, why: String| DeliveryError::Setup { what: what.to_owned(), why };
        let target = format!("{}/2010-04-01/Accounts/{}/Messages.json", twilio.base_path, twilio.account);
        let target = target.parse().map_err(|error: http::uri::InvalidUri| fault("sms.base_url", error.to_string()))?;
        let login = STANDARD.encode(format!("{}:{}", twilio.account, twilio.token.expose()));
        let mut authorization =
            HeaderValue::try_from(format!("Basic {login}")).map_err(|error| fault("sms.token", error.to_string()))?;
        authorization.set_sensitive(true);
        Ok(Self { gateway: Gateway::new(&twilio.gateway)?, target, authorization, sender: twilio.sender.clone() })
    }

    /// Gives back what Twilio calls the message.
    pub(super) async fn send(
        &self,
        sms: &Sms,
        msisdn: &str,
        course: &mut Course,
    ) -> Result<Option<String>, DeliveryError> {
        let mut answer = self.gateway.ask(self.request(sms, msisdn), sms, course).await?;
        let said = answer.body_at_leisure().await.and_then(|body| serde_json::from_slice::<Said>(&body).ok());
        let said = said.unwrap_or_default();
        if answer.status == StatusCode::CREATED {
            return Ok(said.sid.and_then(|sid| told(&sid, sms)));
        }
        let recipient = answer.status.is_client_error() && said.code.is_some_and(|code| RECIPIENT.contains(&code));
        let code = said.code.and_then(|code| told(&code.to_string(), sms));
        Err(DeliveryError::NotTaken { status: answer.status.as_u16(), code, recipient })
    }

    fn request(&self, sms: &Sms, msisdn: &str) -> Request<Full<Bytes>> {
        let (sender_key, sender) = match &self.sender {
            TwilioSender::From(from) => ("From", from),
            TwilioSender::MessagingService(sid) => ("MessagingServiceSid", sid),
        };
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("To", &format!("+{msisdn}"))
            .append_pair(sender_key, sender)
            .append_pair("Body", &sms.text)
            .finish();
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        request
    }
}
