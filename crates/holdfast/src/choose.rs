//! Choosing what a home needs of the machine so that it collides with nothing there: pure functions
//! of what is in use.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;

use crate::home::{Facts, NodeFacts};

/// What is taken on the machine.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    /// Destinations of routes and networks of addresses.
    pub networks: Vec<Ipv4Net>,
    /// Names of network links.
    pub links: Vec<String>,
    /// Whether IPv4 forwarding is on.
    pub forwarding: bool,
}

impl InUse {
    fn overlaps(&self, net: &Ipv4Net) -> bool {
        self.networks.iter().any(|used| overlap(used, net))
    }
}

/// Whether two networks share an address. A default route does not count as use.
#[must_use]
pub fn overlap(used: &Ipv4Net, net: &Ipv4Net) -> bool {
    used.prefix_len() > 0 && (used.contains(&net.network()) || net.contains(&used.network()))
}

/// Chooses everything. `draw` gives random numbers, `ports` free ports for
/// the API server and the metrics page.
///
/// # Errors
/// When something given collides, or nothing free is left.
pub fn facts(
    names: Vec<String>,
    vm_cidrs: &[Ipv4Net],
    in_use: &InUse,
    ports: (u16, u16),
    mut draw: impl FnMut() -> u32,
) -> anyhow::Result<Facts> {
    let vm_cidrs = self::vm_cidrs(vm_cidrs, in_use)?;
    let id = (0..100)
        .map(|_| format!("{:04x}", draw() & 0xffff))
        .find(|id| !in_use.links.iter().any(|link| link.starts_with(&format!("hf{id}"))))
        .context("no free id for the home: remove leftover links named hf…")?;
    let start = draw() & 0xff;
    let node_subnet = (0..=255_u32)
        .map(|step| {
            let third = u8::try_from((start + step) & 0xff).expect("invariant: masked to a byte");
            Ipv4Net::new_assert(Ipv4Addr::new(10, 199, third, 0), 24)
        })
        .find(|net| !in_use.overlaps(net) && !vm_cidrs.iter().any(|cidr| overlap(cidr, net)))
        .context("no free network of 10.199.0.0/16 for the nodes: all are routed on this machine")?;
    let base = u32::from(node_subnet.network());
    let nodes = names
        .into_iter()
        .zip(1_usize..)
        .map(|(name, index)| {
            let offset = u32::try_from(index).expect("invariant: at most 64 nodes") + 10;
            NodeFacts { name, index, address: Ipv4Addr::from(base + offset) }
        })
        .collect();
    Ok(Facts {
        version: Facts::VERSION,
        id,
        api_port: ports.0,
        metrics_port: ports.1,
        node_subnet,
        vm_cidrs,
        nodes,
        switched_forwarding_on: !in_use.forwarding,
    })
}

/// The given CIDRs if free; else the seeds' `10.66.10.0/24` and `10.66.20.0/24`, or the same of the
/// next /16 that is free.
fn vm_cidrs(given: &[Ipv4Net], in_use: &InUse) -> anyhow::Result<Vec<Ipv4Net>> {
    for (index, net) in given.iter().enumerate() {
        if net.trunc() != *net || !(8..=30).contains(&net.prefix_len()) {
            bail!("--vm-cidr {net}: give a network address with a prefix of 8 to 30, e.g. {}", net.trunc());
        }
        if in_use.overlaps(net) {
            bail!("--vm-cidr {net} is routed on this machine already (see `ip route`): choose another one");
        }
        if given[..index].iter().any(|other| overlap(other, net)) {
            bail!("--vm-cidr {net} overlaps another one");
        }
    }
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    (66..=250)
        .map(|second| {
            [10, 20].map(|third| Ipv4Net::new_assert(Ipv4Addr::new(10, second, third, 0), 24)).to_vec()
        })
        .find(|nets| !nets.iter().any(|net| in_use.overlaps(net)))
        .context("no free network for VM addresses: choose one with --vm-cidr")
}

/// Whether what a home has chosen earlier is still free; names the collision.
///
/// # Errors
/// When a network of the home is in use by something else.
pub fn check(facts: &Facts, in_use: &InUse) -> anyhow::Result<()> {
    for net in facts.vm_cidrs.iter().chain([&facts.node_subnet]) {
        if let Some(used) = in_use.networks.iter().find(|used| overlap(used, net)) {
            bail!(
                "network {net} of this home is in use on this machine (route {used}), perhaps by another \
                 home that was started meanwhile: stop that one (`holdfast --home DIR down`), then repeat"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn choose(given: &[Ipv4Net], in_use: &InUse) -> anyhow::Result<Facts> {
        let mut numbers = [0x1a2b, 7, 8, 9].into_iter();
        facts(vec!["a".to_owned(), "b".to_owned()], given, in_use, (26_000, 26_001), move || {
            numbers.next().unwrap()
        })
    }

    #[test]
    fn a_free_machine_gets_the_addresses_of_the_seeds() {
        let default_route = InUse { networks: vec![net("0.0.0.0/0")], ..InUse::default() };
        let facts = choose(&[], &default_route).unwrap();
        assert_eq!(facts.vm_cidrs, [net("10.66.10.0/24"), net("10.66.20.0/24")]);
        assert_eq!(facts.id, "1a2b");
        assert_eq!(facts.node_subnet, net("10.199.7.0/24"));
        assert_eq!(facts.nodes[1].address, Ipv4Addr::new(10, 199, 7, 12));
        assert!(facts.switched_forwarding_on);
    }

    #[test]
    fn a_second_home_takes_the_next_ones() {
        let in_use = InUse {
            networks: vec![net("10.66.20.0/24"), net("10.199.7.0/24"), net("10.67.0.0/16")],
            links: vec!["hf1a2bn1".to_owned()],
            forwarding: true,
        };
        let mut numbers = [0x1a2b, 0x00ff, 7].into_iter();
        let facts =
            facts(vec!["a".to_owned()], &[], &in_use, (26_000, 26_001), move || numbers.next().unwrap())
                .unwrap();
        assert_eq!(facts.id, "00ff");
        assert_eq!(facts.vm_cidrs[0], net("10.68.10.0/24"));
        assert_eq!(facts.node_subnet, net("10.199.8.0/24"));
        assert!(!facts.switched_forwarding_on);
    }

    #[test]
    fn given_networks_are_checked() {
        let in_use = InUse { networks: vec![net("10.1.0.0/16")], ..InUse::default() };
        for (given, part) in [
            (vec![net("10.1.2.0/24")], "routed on this machine"),
            (vec![net("10.2.2.5/24")], "10.2.2.0/24"),
            (vec![net("10.2.0.0/16"), net("10.2.3.0/24")], "overlaps"),
        ] {
            let error = choose(&given, &in_use).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(choose(&[net("10.2.0.0/16")], &in_use).unwrap().vm_cidrs, [net("10.2.0.0/16")]);
    }

    #[test]
    fn a_home_that_slept_finds_out_that_its_network_was_taken() {
        let facts = crate::home::tests::facts();
        assert!(check(&facts, &InUse::default()).is_ok());
        let taken = InUse { networks: vec![net("10.66.0.0/16")], ..InUse::default() };
        assert!(check(&facts, &taken).unwrap_err().to_string().contains("10.66.10.0/24"));
    }
}
