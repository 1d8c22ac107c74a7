//! TLS that can be given another certificate while it serves.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use x509_parser::parse_x509_certificate;

use crate::config::TlsFiles;
use crate::matrix::Timestamp;

/// HTTP/2 as ALPN calls it.
pub(super) const HTTP2: &[u8] = b"h2";

/// What new handshakes use. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<Certified>>);

/// A certificate with its key, ready to be shown.
#[derive(Debug, Clone)]
pub struct Certified {
    pub config: Arc<ServerConfig>,
    /// Until when clients take it, as far as that can be read in it.
    pub ends: Option<Timestamp>,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no usable PEM", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("certificate and key cannot be used together")]
    Rejected(#[from] rustls::Error),
}

impl Tls {
    pub fn new(certified: Certified) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(certified)))
    }

    /// From now on new handshakes use this; open connections keep what they have.
    pub fn replace(&self, certified: Certified) {
        self.0.store(Arc::new(certified));
    }

    /// Until when clients take what is shown.
    pub fn ends(&self) -> Option<Timestamp> {
        self.0.load().ends
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.load().config))
    }

    /// The same, for a door that speaks HTTP/2 as well.
    pub fn with_http2(mut certified: Certified) -> Certified {
        Arc::make_mut(&mut certified.config).alpn_protocols.insert(0, HTTP2.to_vec());
        certified
    }

    /// The chain and the key of two PEM files.
    pub fn read(files: &TlsFiles) -> Result<Certified, TlsError> {
        let chain = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| TlsError::Pem { path: files.certificate.clone(), source })?;
        if chain.is_empty() {
            return Err(TlsError::Empty { path: files.certificate.clone() });
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&files.private_key)?)
            .map_err(|source| TlsError::Pem { path: files.private_key.clone(), source })?;
        Self::server_config(chain, key)
    }

    /// TLS 1.2 and up, HTTP/1.1 only. The provider is named here, so that no process-wide default has to be set.
    pub fn server_config(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Certified, TlsError> {
        // Of the first alone: a chain may go on to a root that has ended long ago and that nobody looks at.
        let ends = chain.first().and_then(|leaf| ends(leaf));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Certified { config: Arc::new(config), ends })
    }
}

/// Until when a certificate is good, if that can be read in it.
pub fn ends(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some(Timestamp::from_millis(seconds.saturating_mul(1000)))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}
