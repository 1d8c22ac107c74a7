//! Files that the configuration names: secrets, certificates and keys, the operator's templates.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::config::fault::Wrong;
use crate::config::{Secret, Template};
use crate::matrix::Digest;

/// Far more than any secret, certificate chain or template needs.
const LARGEST: u64 = 1024 * 1024;

/// What a file holds, and what the operator should know about it.
pub(crate) struct Found<T> {
    pub(crate) value: T,
    pub(crate) warning: Option<Wrong>,
}

/// A secret alone in a file; the end of its line does not belong to it.
pub(crate) fn secret(path: &Path) -> Result<Found<Secret>, Wrong> {
    let text = utf8(path, read(path)?)?;
    let secret = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if secret.is_empty() {
        return Err(Wrong::new(format!("{} is empty", path.display()), "write the secret into it"));
    }
    Ok(Found { value: Secret(secret.to_owned()), warning: others_may_read(path) })
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let wrong = || Wrong::new(format!("{} holds no certificate in PEM", path.display()), "write the path of one");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    chain.map_err(|_broken| wrong()).and_then(|chain| if chain.is_empty() { Err(wrong()) } else { Ok(chain) })
}

pub(crate) fn private_key(path: &Path) -> Result<Found<PrivateKeyDer<'static>>, Wrong> {
    let value = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_broken| {
        Wrong::new(
            format!("{} holds no private key in PEM", path.display()),
            "write the path of one without a password",
        )
    })?;
    Ok(Found { value, warning: others_may_read(path) })
}

/// Whether the key is the first certificate's.
pub(crate) fn belong_together(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Result<(), Wrong> {
    let pair = CertifiedKey::from_der(chain, key.clone_key(), &aws_lc_rs::default_provider());
    pair.map(drop).map_err(|error| {
        let write = "write a certificate and the private key it was made for";
        Wrong::new(format!("cannot be used with its private key: {error}"), write)
    })
}

/// Every file of the folder, by name.
pub(crate) fn templates(directory: &Path, may_be_absent: bool) -> Result<BTreeMap<String, Template>, Wrong> {
    let files = match files(directory) {
        Err(error) if may_be_absent && error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        files => files.map_err(|error| unreadable(directory, &error))?,
    };
    files.into_iter().map(|(name, path)| Ok((name, Template { text: utf8(&path, read(&path)?)?, path }))).collect()
}

/// What is at the path now: a file's content, or a folder's files with theirs. Of one that is too large to be read, its
/// size. A pipe is left alone: it would be empty for whoever wants to read it.
pub(crate) fn digest(path: &Path) -> Option<Digest> {
    let found = fs::metadata(path).ok()?;
    if found.is_dir() {
        let listed = files(path).ok()?.into_iter().map(|(name, path)| (name, digest(&path)));
        let listed = listed.map(|(name, content)| format!("{name}/{}", content.as_ref().map_or("", Digest::as_hex)));
        return Some(Digest::of(listed.collect::<Vec<_>>().join("/").as_bytes()));
    }
    if found.len() > LARGEST {
        return Some(Digest::of(&found.len().to_be_bytes()));
    }
    found.is_file().then(|| fs::read(path).ok()).flatten().map(|content| Digest::of(&content))
}

/// Hidden files are left out: editors and mounted Kubernetes volumes keep their own there.
fn files(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with('.') && path.is_file() {
            files.insert(name, path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, Wrong> {
    bytes(path, LARGEST)
}

/// A file of at most `largest` bytes.
pub(crate) fn bytes(path: &Path, largest: u64) -> Result<Vec<u8>, Wrong> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.len() > largest {
        let size = if largest == LARGEST { "1 MiB".to_owned() } else { format!("{} KiB", largest / 1024) };
        return Err(Wrong::new(format!("{} is larger than {size}", path.display()), "write the path of another file"));
    }
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, Wrong> {
    String::from_utf8(bytes)
        .map_err(|_bytes| Wrong::new(format!("{} is not UTF-8", path.display()), "write it in UTF-8"))
}

fn unreadable(path: &Path, error: &io::Error) -> Wrong {
    Wrong::new(format!("{} cannot be read: {error}", path.display()), "write a path that the shim may read")
}

pub(crate) fn others_may_read(path: &Path) -> Option<Wrong> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    let wrong = || {
        Wrong::new(format!("every user of this machine may read {}", path.display()), "take it from others (chmod o-r)")
    };
    (mode & 0o004 != 0).then(wrong)
}
