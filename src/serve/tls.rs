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

use crate::config::TlsFiles;

/// HTTP/2 as ALPN calls it.
pub(super) const HTTP2: &[u8] = b"h2";

/// What new handshakes use. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

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
    pub fn new(config: ServerConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// From now on new handshakes use this; open connections keep what they have.
    pub fn replace(&self, config: ServerConfig) {
        self.0.store(Arc::new(config));
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.load_full())
    }

    /// The same, for a door that speaks HTTP/2 as well.
    pub fn with_http2(mut config: ServerConfig) -> ServerConfig {
        config.alpn_protocols.insert(0, HTTP2.to_vec());
        config
    }

    /// The chain and the key of two PEM files.
    pub fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
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
    ) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}
