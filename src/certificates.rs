//! The certificate of the identity door: the operator's, or one of a CA that the shim makes at its first start.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::config::{Config, IdentityTls};
use crate::serve::{Tls, TlsError};

/// Why the identity door has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot write {}: give the shim's user a state_dir it may write to", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a private key: remove the folder to have a new CA made", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("a certificate cannot be made")]
    Make(#[from] rcgen::Error),
}

/// What the identity door shows. Without files of the operator's: a certificate for the host of `identity.name`, made
/// anew at every start by the CA kept in `state_dir/tls`. The homeserver has to trust that CA: `ca.pem` is it alone,
/// `ca-bundle.pem` it and the system's, for `SSL_CERT_FILE`.
pub fn identity(config: &Config) -> Result<ServerConfig, CertificateError> {
    match &config.identity.tls {
        IdentityTls::Files(files) => Ok(Tls::read(files)?),
        IdentityTls::Generated => {
            let folder = config.state_dir.join("tls");
            make_folder(&folder)?;
            let key = ca_key(&folder)?;
            publish(&folder, &key)?;
            let (chain, key) = leaf(&config.identity.name, key)?;
            Ok(Tls::server_config(chain, key)?)
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), CertificateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    // One that was there before may be open to others.
    let closed = made.and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)));
    closed.map_err(|source| CertificateError::Write { path: folder.to_owned(), source })
}

/// The CA's key: kept, since the homeserver was told to trust it.
fn ca_key(folder: &Path) -> Result<KeyPair, CertificateError> {
    let path = folder.join("ca.key");
    match fs::read_to_string(&path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| CertificateError::Key { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            write(&path, &key.serialize_pem(), 0o600)?;
            // What was signed by an earlier key is worth nothing now.
            write(&folder.join("ca.pem"), &ca_params()?.self_signed(&key)?.pem(), 0o644)?;
            Ok(key)
        }
        Err(source) => Err(CertificateError::Read { path, source }),
    }
}

/// Writes what the homeserver is given, where it is not there yet. The system's roots may have changed since.
fn publish(folder: &Path, key: &KeyPair) -> Result<(), CertificateError> {
    let path = folder.join("ca.pem");
    let ca = match fs::read_to_string(&path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pem = ca_params()?.self_signed(key)?.pem();
            write(&path, &pem, 0o644)?;
            pem
        }
        Err(source) => return Err(CertificateError::Read { path, source }),
    };
    let system = rustls_native_certs::load_native_certs();
    if system.certs.is_empty() {
        tracing::warn!("this system has no CA certificates: ca-bundle.pem holds the shim's own alone");
    }
    let bundle = system.certs.iter().map(|certificate| pem(certificate)).collect::<String>() + &ca;
    write(&folder.join("ca-bundle.pem"), &bundle, 0o644)
}

fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = dated(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "threepid-shim identity door CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn leaf(identity_name: &str, ca_key: KeyPair) -> Result<ChainAndKey, rcgen::Error> {
    let host = host(identity_name);
    let mut names = vec![host.to_owned()];
    names.extend(["localhost", "127.0.0.1", "::1"].into_iter().filter(|name| *name != host).map(str::to_owned));
    let mut params = dated(names)?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &Issuer::new(ca_params()?, ca_key))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((vec![certificate.der().clone()], key))
}

/// A private CA on one host: nothing is gained by its running out while the homeserver still needs the shim. The last
/// year that certificates write with two digits, which the oldest OpenSSL reads.
fn dated(names: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = date_time_ymd(2019, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    Ok(params)
}

/// `host` of `host[:port]`, without the brackets of an IPv6 address.
fn host(name: &str) -> &str {
    if let Some(rest) = name.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    if name.parse::<IpAddr>().is_ok() {
        return name;
    }
    name.split(':').next().unwrap_or(name)
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n").collect::<String>();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
}

/// Whole or not at all: written beside, synced, then renamed into place.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let beside = path.with_extension("new");
    let written = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    written().map_err(|source| CertificateError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_identity_name_is_what_a_certificate_names() {
        for (name, expected) in [
            ("localhost:8091", "localhost"),
            ("shim.internal", "shim.internal"),
            ("127.0.0.1:8091", "127.0.0.1"),
            ("[::1]:8091", "::1"),
            ("::1", "::1"),
        ] {
            assert_eq!(host(name), expected);
            assert!(leaf(name, KeyPair::generate().unwrap()).is_ok());
        }
    }

    #[test]
    fn a_ca_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state/tls");
        let start = || {
            make_folder(&folder).unwrap();
            let key = ca_key(&folder).unwrap();
            publish(&folder, &key).unwrap();
            (fs::read_to_string(folder.join("ca.pem")).unwrap(), key.serialize_pem())
        };
        let first = start();
        assert_eq!(start(), first);
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(""), mode("ca.key"), mode("ca.pem")), (0o700, 0o600, 0o644));
        assert!(fs::read_to_string(folder.join("ca-bundle.pem")).unwrap().ends_with(&first.0));
        fs::remove_file(folder.join("ca.pem")).unwrap();
        assert_ne!(start().0, "");
        fs::write(folder.join("ca.key"), "damaged").unwrap();
        assert!(matches!(ca_key(&folder), Err(CertificateError::Key { .. })));
    }
}
