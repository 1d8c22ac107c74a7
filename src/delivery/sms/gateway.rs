//! One request to a gateway: a connection of its own, one deadline over all of it, and never a second request once the
//! first may have arrived.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::super::course::Course;
use super::super::dial::Tls;
use super::super::{DeliveryError, Sms, Stage};
use crate::config;
use crate::matrix::Digest;

/// The largest answer that is read; a gateway needs less than 4 KiB.
const LONGEST_ANSWER: usize = 64 * 1024;
/// Of an answer's head.
const LONGEST_HEAD: usize = 64 * 1024;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(crate) struct Gateway {
    at: config::Gateway,
    tls: Option<Tls>,
    host: HeaderValue,
    permits: Semaphore,
}

/// A gateway's answer; its body is still to be read, by `until`. The connection goes when this goes.
pub(super) struct Answer<'a> {
    pub(super) status: StatusCode,
    body: Incoming,
    until: Instant,
    _connection: AbortOnDropHandle<()>,
    _permit: SemaphorePermit<'a>,
}

impl Gateway {
    pub(super) fn new(at: &config::Gateway) -> Result<Self, DeliveryError> {
        let tls = at.https.then(|| Tls::new(&at.host, at.ca_file.as_deref(), "sms", &[b"http/1.1"])).transpose()?;
        let host = if at.host.contains(':') { format!("[{}]", at.host) } else { at.host.clone() };
        let own_port = if at.https { 443 } else { 80 };
        let host = if at.port == own_port { host } else { format!("{host}:{}", at.port) };
        let fault = |error: http::header::InvalidHeaderValue| DeliveryError::Setup {
            what: "sms".to_owned(),
            why: format!("its host: {error}"),
        };
        let host = HeaderValue::try_from(host).map_err(fault)?;
        Ok(Self { at: at.clone(), tls, host, permits: Semaphore::new(at.max_connections) })
    }

    /// Sends one request, whose target is a path. A connection that does not come up is tried once more; nothing else is.
    pub(super) async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
        sms: &Sms,
        course: &mut Course,
    ) -> Result<Answer<'_>, DeliveryError> {
        let until = Instant::now() + self.at.deadline;
        course.enter(Stage::Wait);
        let permit = timeout_at(until, self.permits.acquire()).await;
        let Ok(Ok(permit)) = permit else { return Err(DeliveryError::Deadline { during: Stage::Wait }) };
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(IDEMPOTENCY_KEY, idempotency_key(sms)?);
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static("threepid-shim"));
        let (mut sender, connection) = self.opened(sms, until, course).await?;
        course.enter(Stage::Gateway);
        match timeout_at(until, sender.send_request(request)).await {
            Ok(Ok(response)) => {
                let (status, body) = (response.status(), response.into_body());
                Ok(Answer { status, body, until, _connection: connection, _permit: permit })
            }
            Ok(Err(error)) => Err(unanswered(error)),
            Err(_) => Err(DeliveryError::Deadline { during: Stage::Gateway }),
        }
    }

    /// A connection, and nothing asked on it.
    pub(super) async fn reach(&self, course: &mut Course) -> Result<(), DeliveryError> {
        self.open(Instant::now() + self.at.deadline, course).await.map(drop)
    }

    /// A connection, with one more try when the first failed in passing: nothing has been sent by then.
    async fn opened(&self, sms: &Sms, until: Instant, course: &mut Course) -> Result<Opened, DeliveryError> {
        let error = match self.open(until, course).await {
            Err(error) if error.is_passing() => error,
            settled => return settled,
        };
        let (request_id, sid, stage) = (&sms.request_id, sms.sid.as_str(), error.stage());
        tracing::warn!(%request_id, sid, %stage, error = error.chain(), "no connection to the gateway; one more try");
        let again = Instant::now() + (self.at.deadline / 20).min(Duration::from_secs(1));
        if again >= until {
            return Err(error);
        }
        course.pause();
        sleep_until(again).await;
        self.open(until, course).await
    }

    async fn open(&self, until: Instant, course: &mut Course) -> Result<Opened, DeliveryError> {
        let tcp = course.connect(&self.at.host, self.at.port, until).await?;
        match &self.tls {
            Some(tls) => handshake(course.secure(tls, tcp, until).await?).await,
            None => handshake(tcp).await,
        }
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.at.host, self.at.port)
    }
}

impl Answer<'_> {
    /// The body, up to 64 KiB of it.
    pub(super) async fn body(&mut self) -> Result<Vec<u8>, DeliveryError> {
        let mut read = Vec::new();
        loop {
            let frame = timeout_at(self.until, self.body.frame()).await;
            let frame = frame.map_err(|_elapsed| DeliveryError::Deadline { during: Stage::Gateway })?;
            let Some(frame) = frame.transpose().map_err(unanswered)? else { return Ok(read) };
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > LONGEST_ANSWER {
                let why = "its answer is longer than 64 KiB";
                return Err(DeliveryError::Unfit { stage: Stage::Gateway, why });
            }
            read.extend_from_slice(&data);
        }
    }

    /// The body of an answer whose status has said everything already, so that nobody waits long for it.
    pub(super) async fn body_at_leisure(&mut self) -> Option<Vec<u8>> {
        self.until = self.until.min(Instant::now() + Duration::from_secs(1));
        self.body().await.ok()
    }
}

type Opened = (SendRequest<Full<Bytes>>, AbortOnDropHandle<()>);

async fn handshake<S>(stream: S) -> Result<Opened, DeliveryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(100)
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(unanswered)?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "connection to the gateway ended");
        }
    });
    Ok((sender, AbortOnDropHandle::new(connection)))
}

/// Whatever went wrong once the request was on its way leaves its fate unknown.
fn unanswered(error: hyper::Error) -> DeliveryError {
    if error.is_parse() {
        return DeliveryError::Unfit { stage: Stage::Gateway, why: "it does not speak HTTP/1.1" };
    }
    DeliveryError::Unanswered { during: Stage::Gateway, source: io::Error::other(error) }
}

/// The same for every try of one message, and nothing that tells the sid. An attempt that failed is asked for again with
/// another code, which a gateway that knew only the attempt would never send.
fn idempotency_key(sms: &Sms) -> Result<HeaderValue, DeliveryError> {
    let digest = Digest::of(format!("{} {} {}", sms.sid.as_str(), sms.attempt, sms.code).as_bytes());
    HeaderValue::try_from(digest.as_hex()).map_err(|error| DeliveryError::Compose { why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{course, sms};
    use super::*;

    fn gateway(https: bool, host: &str, port: u16) -> Gateway {
        let (max_connections, deadline) = (1, Duration::from_millis(100));
        Gateway::new(&config::Gateway { https, host: host.to_owned(), port, ca_file: None, max_connections, deadline })
            .unwrap()
    }

    #[tokio::test]
    async fn waiting_for_a_connection_counts_against_the_deadline() {
        let gateway = gateway(false, "127.0.0.1", 9);
        let _the_only_one = gateway.permits.acquire().await.unwrap();
        let error = gateway.ask(Request::default(), &sms("447700900123"), &mut course()).await.err();
        assert!(matches!(error, Some(DeliveryError::Deadline { during: Stage::Wait })), "{error:?}");
    }

    #[test]
    fn the_host_field_is_spelled_as_urls_spell_it() {
        let rows = [
            (true, "api.example.org", 443, "api.example.org"),
            (true, "api.example.org", 8443, "api.example.org:8443"),
            (false, "127.0.0.1", 80, "127.0.0.1"),
            (false, "::1", 8080, "[::1]:8080"),
        ];
        for (https, host, port, field) in rows {
            assert_eq!(gateway(https, host, port).host, field);
        }
    }
}
