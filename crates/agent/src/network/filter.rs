//! Anti-spoofing: what a guest may send through its tap (hypervisor.md §13.5, INV-12).
//!
//! One nftables table of family `netdev` a node, replaced as a whole in one transaction, so that a
//! crash never leaves a half-written filter and leftovers vanish with the next write.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::names::Mac;

/// One guest's identity on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guest {
    /// Its tap; must exist when the filter is loaded.
    pub tap: String,
    /// The only hardware address it may use.
    pub mac: Mac,
    /// The only address it may use.
    pub address: Ipv4Addr,
}

/// Loading a filter failed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The program could not be run.
    #[error("cannot run nft to load the anti-spoofing filter; is nftables installed?")]
    Run(#[source] std::io::Error),
    /// nft refused the rules.
    #[error("nft refused the anti-spoofing filter of table {table}: {message}")]
    Refused {
        /// The table.
        table: String,
        /// What nft said.
        message: String,
    },
}

/// The complete rules of a node in nft's language; loading them replaces whatever the table held.
pub fn rules(table: &str, gateway: Ipv4Addr, guests: &[Guest]) -> String {
    // "add" before "delete" makes the deletion succeed whether or not the table exists.
    let mut text = format!("add table netdev {table}\ndelete table netdev {table}\n");
    if guests.is_empty() {
        return text;
    }
    let _ = writeln!(text, "table netdev {table} {{");
    for Guest { tap, mac, address } in guests {
        let _ = write!(
            text,
            "  chain {tap} {{
    type filter hook ingress device \"{tap}\" priority -500; policy drop;
    ether saddr != {mac} drop
    arp operation {{ request, reply }} arp saddr ether {mac} arp saddr ip {{ {address}, 0.0.0.0 }} accept
    ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
    ip saddr {address} ip daddr {gateway} udp sport 68 udp dport 67 accept
    ip saddr {address} ip daddr {gateway} ip protocol icmp accept
    ip saddr {address} ip daddr {gateway} drop
    ip saddr {address} accept
  }}
"
        );
    }
    text.push_str("}\n");
    text
}

/// Loads rules in one transaction.
///
/// # Errors
/// nft is missing, or refuses the rules (its message is in the error).
pub async fn load(table: &str, rules: &str) -> Result<(), FilterError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(FilterError::Run)?;
    let mut stdin = nft.stdin.take().expect("invariant: stdin was piped");
    // A refusal closes the pipe early; what nft says then explains more than the broken pipe.
    let _ = stdin.write_all(rules.as_bytes()).await;
    drop(stdin);
    let output = nft.wait_with_output().await.map_err(FilterError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(FilterError::Refused { table: table.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_guests_has_no_table() {
        let text = rules("holdfast_ab12", Ipv4Addr::new(169, 254, 1, 1), &[]);
        assert_eq!(text, "add table netdev holdfast_ab12\ndelete table netdev holdfast_ab12\n");
    }

    #[test]
    fn every_guest_gets_its_own_chain_that_drops_by_default() {
        let guest = |n: u8| Guest {
            tap: format!("vm0000000{n}"),
            mac: Mac([2, 0, 0, 0, 0, n]),
            address: Ipv4Addr::new(10, 66, 10, n),
        };
        let text = rules("t", Ipv4Addr::new(169, 254, 1, 1), &[guest(1), guest(2)]);
        assert_eq!(text.matches("policy drop;").count(), 2);
        assert!(text.contains("device \"vm00000001\""));
        assert!(text.contains("ip saddr 10.66.10.2 accept"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
