//! One HTTP request on a connection of its own, and why it got no answer.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::body;
use crate::config::HomeserverAddress;
use crate::delivery::DeliveryError;
use crate::delivery::dial::{Tls, connected};

const LONGEST_ANSWER: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("{}", .0.chain())]
    Connect(#[from] DeliveryError),
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("what answers does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("the answer is too long, or was cut short")]
    Cut,
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

impl Answer {
    /// A field of the JSON object that it is.
    pub(super) fn field(&self, name: &str) -> String {
        let object: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        object.and_then(|object| object.get(name)?.as_str().map(str::to_owned)).unwrap_or_default()
    }

    pub(super) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Asks the homeserver; a body is JSON and makes it a POST.
pub(super) async fn ask(
    at: &HomeserverAddress,
    path: &str,
    body: Option<&serde_json::Value>,
    patience: Duration,
) -> Result<Answer, NoAnswer> {
    let host = "localhost";
    within(patience, async {
        match at {
            HomeserverAddress::Tcp { host: name, port } => {
                let tcp = connected(name, *port, Instant::now() + patience).await?;
                exchange(tcp, host, path, body).await
            }
            HomeserverAddress::Unix(socket) => exchange(UnixStream::connect(socket).await?, host, path, body).await,
        }
    })
    .await
}

/// Asks a web server by name, as a browser would; `tls` is whom it trusts.
pub(super) async fn get(
    host: &str,
    port: u16,
    tls: Option<&Tls>,
    path: &str,
    patience: Duration,
) -> Result<Answer, NoAnswer> {
    let until = Instant::now() + patience;
    within(patience, async {
        let tcp = connected(host, port, until).await?;
        match tls {
            Some(tls) => exchange(tls.secured(tcp, until).await?, host, path, None).await,
            None => exchange(tcp, host, path, None).await,
        }
    })
    .await
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, NoAnswer>>) -> Result<T, NoAnswer> {
    timeout(patience, work).await.unwrap_or(Err(NoAnswer::Late(patience)))
}

async fn exchange<S>(stream: S, host: &str, path: &str, body: Option<&serde_json::Value>) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let request = Request::builder().uri(path).header(header::HOST, host).header(header::USER_AGENT, "threepid-shim");
    let request = match body {
        Some(body) => request
            .method("POST")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?,
        None => request.body(Full::default())?,
    };
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body::read(body, LONGEST_ANSWER).await.map_err(|_refusal| NoAnswer::Cut)?;
    Ok(Answer { status: head.status, headers: head.headers, body })
}
