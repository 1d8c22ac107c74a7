//! The operating system's randomness, from which sids, tokens and request ids are made.

use crate::matrix::Refusal;

/// `N` bytes of it (CVE-2019-11842: a predictable generator gave tokens away).
pub fn bytes<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the operating system gives no randomness");
        Refusal::internal()
    })?;
    Ok(bytes)
}
