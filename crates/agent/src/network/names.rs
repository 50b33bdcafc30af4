//! Names and small value types of a VM's network: tap names, MAC addresses.

use std::fmt;
use std::str::FromStr;

/// Hardware address every node's tap shows to its guest, the same on all nodes, so that the guest's
/// neighbour entry of its gateway stays valid after a move (hypervisor.md §13.1).
pub const GATEWAY_MAC: Mac = Mac([0xee; 6]);

/// Prefix of the taps this crate creates; nothing else may carry it inside a node.
pub const TAP_PREFIX: &str = "vm";

/// An Ethernet hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not six hexadecimal octets.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("hardware address {0:?} is not six octets like 52:54:00:12:34:56")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(bad()),
        }
    }
}

/// Name of the tap of a VM: `vm` + the first 8 hexadecimal digits of the Instance's uid
/// (first-slice.md §5). It is the same on every node, so source and target of a move agree.
pub fn tap_name(instance_uid: &str) -> String {
    let digits: String =
        instance_uid.chars().filter(char::is_ascii_hexdigit).take(8).collect::<String>().to_ascii_lowercase();
    format!("{TAP_PREFIX}{digits}")
}

/// Whether a link of this name is one of ours.
pub fn is_tap_name(name: &str) -> bool {
    name.strip_prefix(TAP_PREFIX)
        .is_some_and(|rest| rest.len() == 8 && rest.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_read_and_shown() {
        let mac: Mac = "52:54:00:AB:0c:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:0c:01");
        for bad in ["", "52:54:00", "52:54:00:ab:0c:01:02", "zz:54:00:ab:0c:01", "5:54:0:ab:0c:01"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tap_names_derive_from_the_instance_uid() {
        let tap = tap_name("9F86d081-884c-4d63-a1a7-93d2e6b5f0ab");
        assert_eq!(tap, "vm9f86d081");
        assert!(is_tap_name(&tap));
        assert!(!is_tap_name("vmnet"));
        assert!(!is_tap_name("eth0"));
        assert!(!is_tap_name("vm9f86d0811"));
    }
}
