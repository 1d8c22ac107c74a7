//! stub
use crate::config;
use crate::matrix::*;
use crate::telemetry::*;
use crate::wording::MailText;
#[derive(Debug)]
pub struct Delivery;
pub struct Mail {
    pub to: Address,
    pub text: MailText,
    pub sid: Sid,
    pub request_id: RequestId,
    pub now: Timestamp,
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct DeliveryError;
impl DeliveryError {
    pub fn refused_recipient(&self) -> bool {
        false
    }
}
impl Delivery {
    pub fn new(_: &config::Email, _: &str, _: Metrics) -> Result<Self, DeliveryError> {
        Ok(Self)
    }
    pub async fn mail(&self, _m: &Mail) -> Result<(), DeliveryError> {
        Ok(())
    }
}
