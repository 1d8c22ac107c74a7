//! A message by a gateway or as a log line.

mod gateway;
mod http;
mod template;
mod twilio;

use std::fmt;

use super::course::Course;
use super::{DeliveryError, Sms};
use crate::config::{self, SmsTransport};

use self::http::Http;
use twilio::Twilio;

/// The way out for messages.
pub(super) enum Messenger {
    None,
    Log,
    Twilio(Box<Twilio>),
    Http(Box<Http>),
}

impl Messenger {
    pub(super) fn new(sms: &config::Sms, server_name: &str) -> Result<Self, DeliveryError> {
        Ok(match &sms.transport {
            SmsTransport::None => Self::None,
            SmsTransport::Log => Self::Log,
            SmsTransport::Twilio(twilio) => Self::Twilio(Box::new(Twilio::new(twilio)?)),
            SmsTransport::Http(http) => Self::Http(Box::new(Http::new(http, server_name)?)),
        })
    }

    pub(super) async fn try_out(&self, course: &mut Course) -> Result<(), DeliveryError> {
        match self {
            Self::None | Self::Log => Ok(()),
            Self::Twilio(twilio) => twilio.gateway.reach(course).await,
            Self::Http(http) => http.gateway.reach(course).await,
        }
    }

    pub(super) async fn send(&self, sms: &Sms, course: &mut Course) -> Result<(), DeliveryError> {
        let (request_id, sid) = (&sms.request_id, sms.sid.as_str());
        let msisdn = msisdn(sms)?;
        match self {
            // Configured this way no route handles phone numbers, no homeserver is served, and nobody comes here.
            Self::None => {
                let why = "is \"none\"".to_owned();
                return Err(DeliveryError::Setup { what: "sms.transport".to_owned(), why });
            }
            Self::Log => tracing::info!(%request_id, sid, "a message would have been sent"),
            Self::Twilio(twilio) => {
                let gateway_id = twilio.send(sms, msisdn, course).await?;
                tracing::info!(%request_id, sid, gateway_id, "message handed over");
            }
            Self::Http(http) => {
                http.send(sms, msisdn, course).await?;
                tracing::info!(%request_id, sid, "message handed over");
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Messenger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Log => f.write_str("Log"),
            Self::Twilio(twilio) => write!(f, "Twilio({:?})", twilio.gateway),
            Self::Http(http) => write!(f, "Http({:?})", http.gateway),
        }
    }
}

/// The digits themselves: what is no number of E.164 reaches no gateway, whatever let it come this far.
fn msisdn(sms: &Sms) -> Result<&str, DeliveryError> {
    let digits = sms.to.expose();
    if (5..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0') {
        return Ok(digits);
    }
    Err(DeliveryError::Compose { why: "the recipient is not a phone number".to_owned() })
}

/// What a gateway calls something, when it is fit for a log: one word, without the number or the code in it.
fn told(word: &str, sms: &Sms) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !(1..=64).contains(&word.len()) || !word.bytes().all(plain) {
        return None;
    }
    let digits: String = word.chars().filter(char::is_ascii_digit).collect();
    let number = sms.to.expose();
    // Gateways quote a number with its country's zero, or without the country.
    let tail = number.get(number.len().saturating_sub(6)..).unwrap_or(number);
    (!digits.contains(tail) && !word.contains(&sms.code)).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Address, Medium, Sid};
    use crate::telemetry::{Metrics, RequestId};

    pub(in crate::delivery::sms) fn course() -> Course {
        Course::new(Medium::Msisdn, &Metrics::new())
    }

    pub(in crate::delivery::sms) fn sms(to: &str) -> Sms {
        let to: Address = serde_json::from_value(to.into()).unwrap();
        Sms {
            to,
            text: "123456 is \"your\" code & more\n{{ 7*7 }} é".to_owned(),
            code: "123456".to_owned(),
            sid: Sid::from_random([7; 16]),
            request_id: RequestId::from_random([3; 8]),
            attempt: 1,
        }
    }

    #[tokio::test]
    async fn what_is_no_number_of_e_164_reaches_no_gateway() {
        let messenger = Messenger::new(&config::Sms { transport: SmsTransport::Log, countries: vec![] }, "x").unwrap();
        messenger.send(&sms("447700900123"), &mut course()).await.unwrap();
        for to in ["", "+447700900123", "0447700900123", "4477", "4477009001234567", "44 7700900123", "a@b.c", "٤٤٧٧٠٠"]
        {
            let error = messenger.send(&sms(to), &mut course()).await.unwrap_err();
            assert!(matches!(error, DeliveryError::Compose { .. }), "{to}");
            assert!(to.is_empty() || !error.to_string().contains(to));
        }
    }

    #[tokio::test]
    async fn without_a_transport_no_message_is_said_to_be_sent() {
        let messenger = Messenger::new(&config::Sms::default(), "x").unwrap();
        let error = messenger.send(&sms("447700900123"), &mut course()).await.unwrap_err();
        assert_eq!(error.to_string(), "sms.transport: is \"none\"");
    }

    #[test]
    fn a_gateways_word_is_logged_without_number_and_code() {
        let sms = sms("447700900123");
        for word in ["21614", "0", "SM0a1b2c3d4e5f60718293a4b5c6d7e8f9", "invalid_number", "-1"] {
            assert_eq!(told(word, &sms).as_deref(), Some(word));
        }
        let long = "x".repeat(65);
        let private = ["447700900123", "07700900123", "tel-900123", "123456", "code.123456", "4477-00-90-01-23"];
        for word in private.into_iter().chain(["", "two words", "a\nb", "\u{1b}[31m", "é", &long]) {
            assert_eq!(told(word, &sms), None, "{word}");
        }
    }
}
