//! stub
use crate::config::Config;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct CertificateError;
pub fn identity(_: &Config) -> Result<rustls::ServerConfig, CertificateError> {
    unimplemented!()
}
