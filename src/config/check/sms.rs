//! `[sms]`: routes that need it, and what each gateway needs.

use http::{HeaderName, header};

use crate::config::check::Check;
use crate::config::fault::Wrong;
use crate::config::raw::{Carrier, RawConfig};
use crate::config::sms::GatewayUrl;
use crate::config::written::Given;
use crate::config::{
    Gateway, GatewayMethod, HttpGateway, RouteMode, Secret, Signature, Sms, SmsTransport, Success, SuccessAnswer,
    Twilio, TwilioSender, address,
};

/// Header fields that say how a message travels, or that are the shim's to set.
const OURS: [HeaderName; 8] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::TE,
    HeaderName::from_static("idempotency-key"),
];

impl Check<'_> {
    pub(crate) fn sms(&mut self, raw: &RawConfig) -> Option<Sms> {
        self.msisdn_routes(raw);
        self.unused_gateway_keys(raw);
        let transport = match raw.sms_transport.value? {
            Carrier::None => Some(SmsTransport::None),
            Carrier::Log => Some(SmsTransport::Log),
            Carrier::Twilio => self.twilio(raw).map(|twilio| SmsTransport::Twilio(Box::new(twilio))),
            Carrier::Http => self.http_gateway(raw).map(|http| SmsTransport::Http(Box::new(http))),
        };
        let countries = raw.sms_countries.value.clone();
        if matches!(transport, Some(SmsTransport::Twilio(_) | SmsTransport::Http(_)))
            && countries.as_ref().is_some_and(Vec::is_empty)
        {
            let wrong = "numbers of every country get messages, also of those that cost the most";
            self.warn(&raw.sms_countries, wrong, "write the countries your users live in");
        }
        Some(Sms { transport: transport?, countries: countries? })
    }

    fn msisdn_routes(&mut self, raw: &RawConfig) {
        if raw.sms_transport.value != Some(Carrier::None) {
            return;
        }
        for route in [&raw.register_msisdn, &raw.password_msisdn, &raw.account_3pid_msisdn] {
            if route.value == Some(RouteMode::Handle) {
                let wrong = "\"handle\" needs a way to send messages, and sms.transport is \"none\"";
                self.fault(route, wrong, "write \"refuse\" or \"forward\", or another sms.transport");
            }
        }
    }

    fn unused_gateway_keys(&mut self, raw: &RawConfig) {
        let Some(carrier) = raw.sms_transport.value else { return };
        if carrier != Carrier::Http {
            let why = "is not used unless sms.transport is \"http\"";
            self.unused(&raw.sms_url, why);
            self.unused(&raw.sms_headers, why);
            self.unused(&raw.sms_body, why);
            self.unused(&raw.sms_signature_header, why);
            self.unused(&raw.sms_signature_secret, why);
            self.unused(&raw.sms_signature_secret_file, why);
            self.unused(&raw.sms_success_pointer, why);
            self.unused(&raw.sms_success_value, why);
        }
        if carrier != Carrier::Twilio {
            let why = "is not used unless sms.transport is \"twilio\"";
            self.unused(&raw.sms_account, why);
            self.unused(&raw.sms_token, why);
            self.unused(&raw.sms_token_file, why);
        }
        if matches!(carrier, Carrier::None | Carrier::Log) {
            let why = "is not used unless sms.transport is \"twilio\" or \"http\"";
            self.unused(&raw.sms_from, why);
            self.unused(&raw.sms_ca_file, why);
        }
    }

    /// The host of `url`, and what is the same for every gateway.
    fn gateway(&mut self, raw: &RawConfig, url: &Given<GatewayUrl>) -> Option<Gateway> {
        let ca_file = self.ca_file(&raw.sms_ca_file);
        let at = url.value.as_ref()?;
        if !at.https && !address::is_loopback(&at.host) {
            let host = &at.host;
            if raw.sms_allow_plaintext.value? {
                let wrong = format!("numbers, codes and the login travel in clear to {host}");
                self.warn(url, wrong, "write an https URL");
            } else {
                let wrong = format!("would send numbers, codes and the login in clear to {host}");
                self.fault(url, wrong, "write an https URL, or sms.allow_plaintext = true");
            }
        }
        Some(Gateway {
            https: at.https,
            host: at.host.clone(),
            port: at.port,
            ca_file,
            max_connections: raw.sms_max_connections.value?,
            deadline: raw.sms_deadline.value?,
        })
    }

    fn twilio(&mut self, raw: &RawConfig) -> Option<Twilio> {
        if !raw.sms_account.is_written() {
            self.missing(&raw.sms_account, "is missing", "write the account's SID".to_owned());
        }
        if !raw.sms_token.is_written() && !raw.sms_token_file.is_written() {
            self.missing(&raw.sms_token_file, "is missing", "write a file that holds the account's token".to_owned());
        }
        if !raw.sms_from.is_written() {
            self.missing(&raw.sms_from, "is missing", "write a number, a name or a messaging service's SID".to_owned());
        }
        let is_word = |account: &String| account.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if raw.sms_account.value.as_ref().is_some_and(|account| !is_word(account)) {
            self.fault(&raw.sms_account, "is not an account's SID", "write it as Twilio shows it, beginning with AC");
        }
        let base_path = raw.sms_base_url.value.as_ref().map(|url| url.path.expose().trim_end_matches('/').to_owned());
        if base_path.as_ref().is_some_and(|path| path.contains(['?', '{', '}'])) {
            let wrong = "has a query or a template";
            self.fault(&raw.sms_base_url, wrong, "write scheme and host, such as \"https://api.twilio.com\"");
        }
        let token = self.secret(&raw.sms_token, &raw.sms_token_file);
        let gateway = self.gateway(raw, &raw.sms_base_url);
        let sender = raw.sms_from.value.clone()?;
        // A name may begin with MG, too, but has at most 11 letters.
        let is_service = sender.starts_with("MG") && sender.len() == 34;
        Some(Twilio {
            gateway: gateway?,
            base_path: base_path?,
            account: raw.sms_account.value.clone()?,
            token: token?,
            sender: if is_service { TwilioSender::MessagingService(sender) } else { TwilioSender::From(sender) },
        })
    }

    fn http_gateway(&mut self, raw: &RawConfig) -> Option<HttpGateway> {
        if !raw.sms_url.is_written() {
            self.missing(&raw.sms_url, "is missing", "write where the gateway takes messages".to_owned());
        }
        let method = raw.sms_method.value;
        if method == Some(GatewayMethod::Get) {
            let wrong = "needs a body, and sms.method is \"GET\"";
            if raw.sms_body.is_written() {
                self.fault(&raw.sms_body, wrong, "remove it, or write sms.method = \"POST\"");
            }
            if raw.sms_signature_header.is_written() {
                self.fault(&raw.sms_signature_header, wrong, "remove it, or write sms.method = \"POST\"");
            }
        }
        let headers = self.headers(raw);
        let signature = self.signature(raw);
        let answer = self.success_answer(raw);
        let gateway = self.gateway(raw, &raw.sms_url);
        Some(HttpGateway {
            gateway: gateway?,
            method: method?,
            path: raw.sms_url.value.as_ref()?.path.clone(),
            headers: headers?,
            body: raw.sms_body.value.clone(),
            from: raw.sms_from.value.clone(),
            signature,
            success: Success { statuses: raw.sms_success_status.value.clone()?, answer },
        })
    }

    fn headers(&mut self, raw: &RawConfig) -> Option<Vec<(HeaderName, Secret)>> {
        let given = &raw.sms_headers;
        self.warn_if_others_may_read(given);
        let mut headers: Vec<(HeaderName, Secret)> = Vec::new();
        for (name, value) in given.value.iter().flatten() {
            let parsed = header_name(name).and_then(|known| {
                let twice = headers.iter().any(|(other, _)| *other == known);
                let wrong = || Wrong::new(format!("{name:?} is written twice"), "keep one of the two");
                if twice { Err(wrong()) } else { Ok(known) }
            });
            if let Some(parsed) = self.noted(given, parsed) {
                headers.push((parsed, value.clone()));
            }
        }
        // An optional key that is not written has no value, nor has one that is wrong.
        (given.value.is_some() || !given.is_written()).then_some(headers)
    }

    fn signature(&mut self, raw: &RawConfig) -> Option<Signature> {
        let header = &raw.sms_signature_header;
        let has_secret = raw.sms_signature_secret.is_written() || raw.sms_signature_secret_file.is_written();
        if header.is_written() && !has_secret {
            self.fault(header, "has no secret", "write sms.signature_secret_file, or remove the header");
        }
        let secret = self.secret(&raw.sms_signature_secret, &raw.sms_signature_secret_file);
        if has_secret && !header.is_written() {
            self.missing(header, "is missing", "write the header that the signature goes into".to_owned());
        }
        let name = header.value.as_deref().map(header_name)?;
        Some(Signature { header: self.noted(header, name)?, secret: secret? })
    }

    fn success_answer(&mut self, raw: &RawConfig) -> Option<SuccessAnswer> {
        let (pointer, value) = (&raw.sms_success_pointer, &raw.sms_success_value);
        for (present, absent) in [(pointer, value), (value, pointer)] {
            if present.is_written() && !absent.is_written() {
                self.missing(absent, "is missing", format!("write it, or remove {}", present.key));
            }
        }
        Some(SuccessAnswer { pointer: pointer.value.clone()?, value: value.value.clone()? })
    }
}

fn header_name(name: &str) -> Result<HeaderName, Wrong> {
    let known: HeaderName = name.parse().map_err(|_no_name| {
        Wrong::new(format!("{name:?} is not the name of a header"), "write one such as \"X-Token\"")
    })?;
    if OURS.contains(&known) {
        return Err(Wrong::new(format!("{name:?} is the shim's to set"), "remove it"));
    }
    Ok(known)
}
