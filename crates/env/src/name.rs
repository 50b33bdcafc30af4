//! Names of objects that controllers create: derived, so that a repeated creation after a crash
//! finds the object of the first try instead of making a second one (first-slice.md §1).

use sha2::{Digest, Sha256};

/// Letters and digits that cannot form words or be mistaken for each other, as Kubernetes uses.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Number of derived characters.
const LENGTH: usize = 5;

/// Longest name of most objects that become part of a label or host name.
const NAME_MAX: usize = 63;

/// Five characters derived from the owner, the purpose and the attempt.
#[must_use]
pub fn suffix(owner_uid: &str, purpose: &str, attempt: u64) -> String {
    let mut hash = Sha256::new();
    for part in [owner_uid.as_bytes(), b"\0", purpose.as_bytes(), b"\0", &attempt.to_be_bytes()] {
        hash.update(part);
    }
    let digest = hash.finalize();
    digest.iter().take(LENGTH).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// `prefix` + `-` + [`suffix`]; the prefix is cut so that the name keeps within 63 characters.
#[must_use]
pub fn derived_name(prefix: &str, owner_uid: &str, purpose: &str, attempt: u64) -> String {
    let room = NAME_MAX - LENGTH - 1;
    let cut: String = prefix.chars().take(room).collect();
    format!("{}-{}", cut.trim_end_matches(['-', '.']), suffix(owner_uid, purpose, attempt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_repeat_and_depend_on_every_part() {
        let name = derived_name("virt-launcher-a", "u", "pod", 1);
        assert_eq!(name, derived_name("virt-launcher-a", "u", "pod", 1));
        assert!(name.starts_with("virt-launcher-a-") && name.len() == "virt-launcher-a-".len() + 5);
        for other in [
            derived_name("virt-launcher-a", "v", "pod", 1),
            derived_name("virt-launcher-a", "u", "other", 1),
            derived_name("virt-launcher-a", "u", "pod", 2),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn a_long_prefix_is_cut_to_a_legal_name() {
        let name = derived_name(&"x".repeat(80), "u", "pod", 1);
        assert_eq!(name.len(), 63);
    }
}
