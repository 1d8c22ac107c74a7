//! The way to a mail server or gateway: its addresses in turn, TLS that is verified, and a deadline over it all.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::{DeliveryError, Stage};
use crate::reach::{is_late, reach};

/// Anything that waits for the other side, up to the deadline.
pub async fn by<T>(
    until: Instant,
    stage: Stage,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, DeliveryError> {
    match timeout_at(until, work).await {
        Ok(done) => done.map_err(|source| DeliveryError::Unreachable { stage, source }),
        Err(_) => Err(DeliveryError::Deadline { during: stage }),
    }
}

/// The first of the server's addresses that answers; one that is silent leaves time for the others.
pub async fn connected(host: &str, port: u16, until: Instant) -> Result<TcpStream, DeliveryError> {
    reached(resolved(host, port, until).await?, until).await
}

pub(super) async fn resolved(host: &str, port: u16, until: Instant) -> Result<Vec<SocketAddr>, DeliveryError> {
    Ok(by(until, Stage::Dns, lookup_host((host, port))).await?.collect())
}

pub(super) async fn reached(addresses: Vec<SocketAddr>, until: Instant) -> Result<TcpStream, DeliveryError> {
    let stage = Stage::Connect;
    reach(addresses, until).await.map_err(|source| {
        if is_late(&source, until) {
            DeliveryError::Deadline { during: stage }
        } else {
            DeliveryError::Unreachable { stage, source }
        }
    })
}

pub type Secured = tokio_rustls::client::TlsStream<TcpStream>;

/// TLS 1.2 or 1.3 to one server, its name and chain verified (CVE-2023-38686: Sydent did neither).
pub struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts the system's roots and `ca_file`. `section` is whose keys a fault names; `protocols` is what ALPN offers.
    pub fn new(host: &str, ca_file: Option<&Path>, section: &str, protocols: &[&[u8]]) -> Result<Self, DeliveryError> {
        let fault = |what: &str, why: String| DeliveryError::Setup { what: what.to_owned(), why };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| fault("TLS", error.to_string()))?
            .with_root_certificates(roots(ca_file, &format!("{section}.ca_file"))?)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(host.to_owned()).map_err(|error| fault(section, error.to_string()))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub async fn secured(&self, tcp: TcpStream, until: Instant) -> Result<Secured, DeliveryError> {
        let secured = by(until, Stage::Tls, self.connector.connect(self.name.clone(), tcp)).await;
        match secured {
            Err(DeliveryError::Unreachable { source, .. }) if is_broken_promise(&source) => {
                Err(DeliveryError::Untrusted { source })
            }
            settled => settled,
        }
    }
}

/// Whether TLS itself failed, a certificate say, and not the connection below it.
fn is_broken_promise(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>)
}

fn roots(ca_file: Option<&Path>, key: &str) -> Result<RootCertStore, DeliveryError> {
    let fault = |why: String| DeliveryError::Setup { what: key.to_owned(), why };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let why = |error: &dyn std::error::Error| fault(format!("{}: {error}", file.display()));
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| why(&error))? {
            let certificate = certificate.map_err(|error| why(&error))?;
            roots.add(certificate).map_err(|error| why(&error))?;
        }
        if roots.len() == before {
            return Err(fault(format!("{}: holds no certificate", file.display())));
        }
    }
    if roots.is_empty() {
        return Err(fault("the system has no CA certificates; name a file".to_owned()));
    }
    Ok(roots)
}
