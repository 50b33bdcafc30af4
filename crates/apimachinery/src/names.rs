//! Name validators with the Kubernetes texts; generated names (KS §6.1, §6.4).

/// Completes `generateName` with five characters drawn from `entropy` (one byte each).
#[must_use]
pub fn generate(prefix: &str, entropy: [u8; 5]) -> String {
    let _ = (prefix, entropy);
    todo!()
}
