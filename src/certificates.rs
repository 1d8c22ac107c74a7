//! The identity door's certificate: the operator's own, or one of a CA that the shim makes for itself.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivateKeyDer;

use crate::config::{Identity, IdentityTls};
use crate::matrix::Timestamp;
use crate::serve::{Certified, Tls, TlsError, ends};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Nobody renews it: it has to outlive the homeserver that cannot be upgraded.
const CA_LIFETIME: u32 = 20;
/// Signed anew at every start, and while the shim runs when it is `RENEWED` before its end.
const LEAF_LIFETIME: u32 = 5;
/// How long before its end a certificate of ours gives place to another.
const RENEWED: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Clocks of two machines differ.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the identity door has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a usable private key; restore it, or remove the folder and let the homeserver trust the new CA", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: rcgen::Error,
    },
    #[error("{} is there without its ca.key; restore the key, or remove the folder and let the homeserver trust the new CA", path.display())]
    KeyMissing { path: PathBuf },
    #[error("{} does not belong to the ca.key beside it; restore it, or remove it to have it made again", path.display())]
    Mismatch { path: PathBuf },
    #[error("cannot make a certificate for {name:?}")]
    Make {
        name: String,
        #[source]
        source: rcgen::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What the identity door serves TLS with. For a generated certificate `state_dir/tls` then holds `ca.key` and `ca.pem`, made
/// once and kept, and the folder for others `ca.pem` and `ca-bundle.pem`.
pub fn identity(identity: &Identity, state_dir: &Path, now: Timestamp) -> Result<Certified, CertificateError> {
    match &identity.tls {
        IdentityTls::Files(files) => Ok(Tls::read(files)?),
        IdentityTls::Generated { ca_directory } => generated(host_of(&identity.name), state_dir, ca_directory, now),
    }
}

/// Whether a certificate of ours is so near to its end that another is to be made.
pub fn is_to_be_renewed(ends: Option<Timestamp>, now: Timestamp) -> bool {
    ends.is_none_or(|ends| now.until(ends) <= RENEWED)
}

/// The system's roots and ours, for the homeserver's `SSL_CERT_FILE`.
pub fn bundle_in(ca_directory: &Path) -> PathBuf {
    ca_directory.join("ca-bundle.pem")
}

fn generated(host: &str, state_dir: &Path, ca_directory: &Path, now: Timestamp) -> Result<Certified, CertificateError> {
    let make = |source| CertificateError::Make { name: host.to_owned(), source };
    let own = state_dir.join("tls");
    if own != ca_directory {
        folder(&own, 0o700)?;
    }
    // Open to the homeserver, which seldom runs as the shim's user; a key in it is closed by itself.
    folder(ca_directory, 0o755)?;
    let (key, ca_pem) = authority(&own, now, make)?;
    publish(ca_directory, &ca_pem)?;
    // A homeserver may go on reading where the bundle was before.
    if own != ca_directory && bundle_in(&own).exists() {
        publish(&own, &ca_pem)?;
    }
    let leaf_key = KeyPair::generate().map_err(make)?;
    let issuer = Issuer::new(authority_params(now), key);
    let ca_ends = pem::parse(&ca_pem).ok().and_then(|pem| ends(pem.contents()));
    let params = leaf_params(host, now, ca_ends);
    let leaf = params.and_then(|params| params.signed_by(&leaf_key, &issuer)).map_err(make)?;
    let private_key = PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into());
    Ok(Tls::server_config(vec![leaf.der().clone()], private_key)?)
}

/// Makes a folder, or closes one of ours that is more open than it has to be.
fn folder(path: &Path, mode: u32) -> Result<(), CertificateError> {
    let there = path.exists();
    if !there {
        DirBuilder::new().recursive(true).create(path).map_err(file("create", path))?;
    }
    let open = fs::metadata(path).map_err(file("look at", path))?.permissions().mode() & 0o777;
    // Whatever the umask says of a new one. One that is there may be closed further, or be somebody else's.
    if open & !mode != 0 || !there {
        let changed = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        if !there {
            changed.map_err(file("set the mode of", path))?;
        }
    }
    Ok(())
}

/// The CA's key and certificate, from the folder or new in it. The key is written first: a certificate without a key
/// is of no use, a key without a certificate gets one at the next start.
fn authority(
    directory: &Path,
    now: Timestamp,
    make: impl Fn(rcgen::Error) -> CertificateError,
) -> Result<(KeyPair, String), CertificateError> {
    let (key_path, pem_path) = (directory.join("ca.key"), directory.join("ca.pem"));
    let kept = read(&pem_path)?;
    let key = match (read(&key_path)?, &kept) {
        (Some(key), _) => KeyPair::from_pem(&key).map_err(|source| CertificateError::Key { path: key_path, source })?,
        (None, Some(_)) => return Err(CertificateError::KeyMissing { path: pem_path }),
        (None, None) => {
            let key = KeyPair::generate().map_err(&make)?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            key
        }
    };
    let Some(kept) = kept else {
        let certificate = authority_params(now).self_signed(&key).map_err(make)?.pem();
        write(&pem_path, &certificate, 0o644)?;
        return Ok((key, certificate));
    };
    let public = key.public_key_raw();
    let belongs = pem::parse(&kept).is_ok_and(|pem| pem.contents().windows(public.len()).any(|part| part == public));
    if belongs { Ok((key, kept)) } else { Err(CertificateError::Mismatch { path: pem_path }) }
}

/// Our CA alone, and the system's roots and ours in one file: `SSL_CERT_FILE` replaces the system's, and a homeserver
/// needs both.
fn publish(directory: &Path, ca_pem: &str) -> Result<(), CertificateError> {
    let alone = directory.join("ca.pem");
    if read(&alone)?.as_deref() != Some(ca_pem) {
        write(&alone, ca_pem, 0o644)?;
    }
    let system = rustls_native_certs::load_native_certs();
    if system.certs.is_empty() {
        tracing::warn!("no CA certificates found on this system; ca-bundle.pem holds the shim's only");
    }
    let mut bundle: String =
        system.certs.iter().map(|der| pem::encode(&Pem::new("CERTIFICATE", der.to_vec()))).collect();
    bundle.push_str(ca_pem);
    let path = bundle_in(directory);
    if read(&path)?.as_ref() == Some(&bundle) { Ok(()) } else { write(&path, &bundle, 0o644) }
}

/// The same name at every start, so that what the kept key signs fits the kept certificate.
fn authority_params(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "threepid-shim identity CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasting(&mut params, now, YEAR * CA_LIFETIME);
    params
}

/// It does not outlive its CA: its end is then that of both.
fn leaf_params(host: &str, now: Timestamp, ca_ends: Option<Timestamp>) -> Result<CertificateParams, rcgen::Error> {
    let mut names: Vec<String> = vec![host.to_owned()];
    names.extend(["localhost", "127.0.0.1", "::1"].into_iter().filter(|name| *name != host).map(str::to_owned));
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "threepid-shim identity");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let lifetime = YEAR * LEAF_LIFETIME;
    lasting(&mut params, now, ca_ends.map_or(lifetime, |ends| now.until(ends).min(lifetime)));
    Ok(params)
}

fn lasting(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let now = Duration::from_millis(now.as_millis());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + lifetime;
}

/// `localhost` of `localhost:8091`, `::1` of `[::1]:8091`.
pub fn host_of(name: &str) -> &str {
    if let Some(rest) = name.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    if name.parse::<IpAddr>().is_ok() {
        return name;
    }
    name.rsplit_once(':').map_or(name, |(host, _port)| host)
}

fn read(path: &Path) -> Result<Option<String>, CertificateError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

/// Whole or not at all, and never readable by others for a moment.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let beside = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        // Whatever the umask says.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(file("write", path))
}

fn file(what: &'static str, path: &Path) -> impl Fn(io::Error) -> CertificateError {
    move |source| CertificateError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;

    fn named(name: &str, state_dir: &Path) -> Identity {
        Identity {
            name: name.into(),
            allowed_peers: Vec::new(),
            accept_unannounced: false,
            tls: IdentityTls::Generated { ca_directory: state_dir.join("tls") },
        }
    }

    fn now() -> Timestamp {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp::from_millis(u64::try_from(wall.as_millis()).unwrap())
    }

    fn made(name: &str, state_dir: &Path) -> Result<Certified, CertificateError> {
        identity(&named(name, state_dir), state_dir, now())
    }

    /// Whether a client that trusts the bundle's last certificate and expects this name agrees to speak.
    fn trusts(server: Certified, ca_pem: &Path, name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca_pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(server.config).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().ok();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            if client.process_new_packets().is_err() {
                return false;
            }
        }
        true
    }

    #[test]
    fn a_made_certificate_is_trusted_for_its_name_and_for_loopback_only() {
        for (name, host) in [
            ("localhost:8091", "localhost"),
            ("shim.internal", "shim.internal"),
            ("shim.internal:8448", "shim.internal"),
            ("192.0.2.7:8091", "192.0.2.7"),
            ("[2001:db8::7]:8091", "2001:db8::7"),
        ] {
            let state = tempfile::tempdir().unwrap();
            let ca = state.path().join("tls/ca.pem");
            for expected in [host, "localhost", "127.0.0.1", "::1"] {
                assert!(trusts(made(name, state.path()).unwrap(), &ca, expected), "{name}: {expected}");
            }
            assert!(!trusts(made(name, state.path()).unwrap(), &ca, "matrix.org"), "{name}");
        }
    }

    #[test]
    fn the_authority_is_made_once_and_the_homeserver_can_read_all_but_its_key() {
        let state = tempfile::tempdir().unwrap();
        made("localhost:8091", state.path()).unwrap();
        let tls = state.path().join("tls");
        let mode = |name: &str| fs::metadata(tls.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(""), mode("ca.pem"), mode("ca-bundle.pem"), mode("ca.key")], [0o755, 0o644, 0o644, 0o600]);
        let before = fs::read(tls.join("ca.pem")).unwrap();
        let again = made("other:1", state.path()).unwrap();
        assert_eq!(fs::read(tls.join("ca.pem")).unwrap(), before);
        assert!(trusts(again, &tls.join("ca.pem"), "other"));
        let bundle = fs::read_to_string(tls.join("ca-bundle.pem")).unwrap();
        assert!(bundle.ends_with(std::str::from_utf8(&before).unwrap()));
        let mut names: Vec<_> = fs::read_dir(&tls).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["ca-bundle.pem", "ca.key", "ca.pem"]);
    }

    #[test]
    fn what_is_missing_or_spoilt_is_named_and_never_replaced() {
        let state = tempfile::tempdir().unwrap();
        let tls = state.path().join("tls");
        let start = || made("localhost:8091", state.path()).map(|_| ()).map_err(|error| error.to_string());
        start().unwrap();
        let (key, pem) = (fs::read(tls.join("ca.key")).unwrap(), fs::read(tls.join("ca.pem")).unwrap());

        fs::remove_file(tls.join("ca.pem")).unwrap();
        start().unwrap();
        assert_ne!(fs::read(tls.join("ca.pem")).unwrap(), b"", "made again from the key");

        fs::remove_file(tls.join("ca.key")).unwrap();
        assert!(start().unwrap_err().contains("ca.pem is there without its ca.key"));

        fs::write(tls.join("ca.key"), "nonsense").unwrap();
        assert!(start().unwrap_err().contains("ca.key is not a usable private key"));

        fs::write(tls.join("ca.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(start().unwrap_err().contains("ca.pem does not belong to the ca.key"));

        fs::write(tls.join("ca.key"), key).unwrap();
        fs::write(tls.join("ca.pem"), pem).unwrap();
        start().unwrap();

        let file = state.path().join("file");
        fs::write(&file, "").unwrap();
        let error = made("localhost:8091", &file).unwrap_err().to_string();
        assert!(error.contains("cannot create") && error.contains("file/tls"), "{error}");
    }
}
