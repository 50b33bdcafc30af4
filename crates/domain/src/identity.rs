//! What identifies a VM to its guest: firmware UUID, MAC, host name, disk serials. All derived, so
//! they are the same after every restart and move (vm-lifecycle.md §6.2, §7.2, §9.7).

use std::fmt::Write as _;

use md5::{Digest as _, Md5};
use sha2::Sha256;
use uuid::Uuid;

/// Namespace of Holdfast's name-based UUIDs; any fixed value would do, it must never change.
const UUID_NAMESPACE: Uuid = Uuid::from_u128(0x6d1f_3b0e_52a4_4c9b_9c3e_70f5_8d2a_41c7);

/// Longest host name.
const HOSTNAME_MAX: usize = 63;

/// Firmware UUID: from namespace and name, so a re-created VM keeps it.
#[must_use]
pub fn firmware_uuid(namespace: &str, name: &str) -> String {
    Uuid::new_v5(&UUID_NAMESPACE, format!("{namespace}/{name}").as_bytes()).to_string()
}

/// Locally administered unicast MAC, from the VM's uid.
#[must_use]
pub fn mac(vm_uid: &str) -> String {
    let hash = Sha256::digest(format!("mac/{vm_uid}"));
    let octets = [(hash[0] & 0xfc) | 0x02, hash[1], hash[2], hash[3], hash[4], hash[5]];
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// Host name: the VM's name up to the first dot, cut to 63 characters.
#[must_use]
pub fn hostname(vm_name: &str) -> String {
    let first = vm_name.split('.').next().unwrap_or_default();
    first.chars().take(HOSTNAME_MAX).collect::<String>().trim_end_matches('-').to_owned()
}

/// Serial number of a disk: lower-case hex MD5 of the object's uid.
#[must_use]
pub fn disk_serial(object_uid: &str) -> String {
    Md5::digest(object_uid).iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_depends_on_namespace_and_name_only() {
        assert_eq!(firmware_uuid("a", "b"), firmware_uuid("a", "b"));
        assert_ne!(firmware_uuid("a", "b"), firmware_uuid("b", "a"));
        assert!(Uuid::parse_str(&firmware_uuid("a", "b")).is_ok());
    }

    // INV-4
    #[test]
    fn macs_are_locally_administered_unicast_and_differ_per_vm() {
        let all: std::collections::BTreeSet<String> = (0..1000).map(|n| mac(&format!("uid-{n}"))).collect();
        assert_eq!(all.len(), 1000);
        for mac in all {
            let first = u8::from_str_radix(&mac[..2], 16).unwrap();
            assert_eq!(first & 3, 2, "{mac}");
            assert_eq!(mac.len(), 17);
        }
    }

    #[test]
    fn serials_are_32_hex_digits() {
        assert_eq!(disk_serial("abc"), "900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn host_names_stop_at_the_first_dot() {
        assert_eq!(hostname("web.shop"), "web");
        assert_eq!(hostname(&"x".repeat(80)).len(), 63);
    }
}
