//! Whether a mailed link leads to the shim: opened from here, at the shim that runs or at a door opened for that moment.

use std::convert::Infallible;
use std::time::Duration;

use http::{Response, header};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::Report;
use super::web::{self, NoAnswer};
use crate::certificates::host_of;
use crate::config::{Config, Endpoint};
use crate::delivery::DeliveryError;
use crate::delivery::dial::Tls;
use crate::matrix::Purpose;
use crate::serve;

const PATIENCE: Duration = Duration::from_secs(10);
/// What the door says that is opened for the moment.
const OURS: &str = "threepid-shim doctor was here";

pub(super) async fn look(report: &mut Report, config: &Config) {
    let url = config.public_base_url.as_str();
    let origin = config.public_base_url.origin();
    let https = origin.starts_with("https://");
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    let host = host_of(authority);
    let own_port = if https { 443 } else { 80 };
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(own_port);
    let tls = match https.then(|| Tls::new(host, None, "public_base_url", &[b"http/1.1"])).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            report.bad("link", error.chain(), "public_base_url", "write a name with a certificate");
            return;
        }
    };
    let doors = open(config).await;
    let prefix = url.strip_prefix(origin).unwrap_or_default();
    let path = format!("{prefix}{}?token=doctor", Purpose::Register.link_path());
    match web::get(host, port, tls.as_ref(), &path, PATIENCE).await {
        Ok(answer) if answer.body.as_ref() == OURS.as_bytes() => {
            report.good("link", format!("{url} leads to the client door"));
        }
        // Nobody else has a page there, and the homeserver says everything in JSON.
        Ok(answer)
            if doors.is_empty()
                && answer.header(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"))
                && answer
                    .header(header::CONTENT_SECURITY_POLICY)
                    .is_some_and(|policy| policy.contains("form-action")) =>
        {
            report.good("link", format!("{url} leads to the shim that runs"));
        }
        Ok(answer) => {
            let says = format!("{url} leads to another server, which answered {}", answer.status);
            let clients = config.listen.clients.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            report.bad(
                "link",
                says,
                "public_base_url",
                format!(
                    "write the address of the proxy that sends to listen.clients ({clients}), or have it send there"
                ),
            );
        }
        Err(NoAnswer::Connect(error @ DeliveryError::Untrusted { .. })) => {
            report.bad(
                "link",
                format!("{url}: {}", error.chain()),
                "public_base_url",
                "write the name that the certificate there is for, or give it a certificate that browsers trust",
            );
        }
        Err(error) => {
            report.bad(
                "link",
                format!("{url} cannot be reached: {error}"),
                "public_base_url",
                "write where clients reach the shim, as this machine can look it up, too",
            );
        }
    }
}

/// The client door, unless somebody has it already.
async fn open(config: &Config) -> Vec<AbortOnDropHandle<()>> {
    let tls = config.listen.tls.as_ref().and_then(|files| serve::Tls::read(files).ok());
    let acceptor = tls.map(|tls| TlsAcceptor::from(tls.config));
    let mut doors = Vec::new();
    for endpoint in &config.listen.clients {
        let Endpoint::Tcp(address) = endpoint else { continue };
        let Ok(listener) = TcpListener::bind(address).await else { continue };
        doors.push(AbortOnDropHandle::new(tokio::spawn(attend(listener, acceptor.clone()))));
    }
    doors
}

async fn attend(listener: TcpListener, acceptor: Option<TlsAcceptor>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let answer = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(http_body_util::Full::new(bytes::Bytes::from(OURS))))
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        let http = http.keep_alive(false);
        // One that breaks off is the proxy's matter, and shows in what it answers.
        match &acceptor {
            None => drop(timeout(PATIENCE, http.serve_connection(TokioIo::new(tcp), answer)).await),
            Some(acceptor) => {
                if let Ok(Ok(tls)) = timeout(PATIENCE, acceptor.accept(tcp)).await {
                    drop(timeout(PATIENCE, http.serve_connection(TokioIo::new(tls), answer)).await);
                }
            }
        }
    }
}
