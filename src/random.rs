//! The operating system's randomness, from which sids, tokens and request ids are made.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::matrix::Refusal;

/// `N` bytes of it (CVE-2019-11842: a predictable generator gave tokens away).
pub fn bytes<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // By the system call itself: a root without /dev has none of the files that others fall back to.
        filled += getrandom(rest, GetRandomFlags::empty()).map_err(|error| {
            tracing::error!(%error, "the operating system gives no randomness");
            Refusal::internal()
        })?;
    }
    Ok(bytes)
}
