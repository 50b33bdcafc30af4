//! Which routes a node (or the host) should have, computed purely from what the API says, from what
//! is plugged here and from the hints that agents give each other during a move (INV-4, INV-9).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// How long a hint outlives the moment it came when the API shows no open migration, in seconds.
/// The flip's API write normally follows within milliseconds; after this time the API alone counts.
pub const HINT_LIFETIME_S: u64 = 60;

/// What the API says about the network of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// uid of the Instance.
    pub uid: String,
    /// The VM's address.
    pub address: Ipv4Addr,
    /// The node the VM runs on, or is about to start on; none when it has ended.
    pub node: Option<String>,
    /// Whether a live migration is open.
    pub moving: bool,
}

/// A direct message of a migration's source agent: "this VM's traffic now belongs to that node".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Node that owns the traffic now.
    pub node: String,
    /// Address of that node, for the time before the nodes are known.
    pub node_address: Ipv4Addr,
    /// Seconds since it arrived.
    pub age_s: u64,
    /// The node the API named when it came; once the API changes its mind the hint is spent.
    pub instead_of: Option<String>,
}

/// Everything the decision needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Name of this node; none on the host, where no VM is ever local.
    pub here: Option<String>,
    /// VMs of the whole platform.
    pub vms: Vec<Vm>,
    /// Address of each node.
    pub nodes: BTreeMap<String, Ipv4Addr>,
    /// Hints by VM address.
    pub hints: BTreeMap<Ipv4Addr, Hint>,
    /// Taps present here, by VM address.
    pub taps: BTreeMap<Ipv4Addr, String>,
    /// The pools of VM addresses.
    pub pools: BTreeSet<Ipv4Net>,
    /// Whether `vms` and `nodes` were read from the API since the start of this program. Before that,
    /// routes that exist are right until somebody says otherwise.
    pub complete: bool,
}

/// Where packets for one destination go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// To the guest behind this tap.
    Tap(String),
    /// To the node with this address.
    Via(Ipv4Addr),
    /// Dropped: an address of the pool that no VM uses must not leave the node (VL §9.8).
    Drop,
}

/// The node whose traffic it is: a live hint wins over the API.
fn owner<'a>(vm: &'a Vm, hint: Option<&'a Hint>) -> Option<&'a str> {
    let api = vm.node.as_deref()?;
    match hint {
        Some(hint) if hint_is_live(vm, hint) => Some(&hint.node),
        _ => Some(api),
    }
}

/// Whether a hint still counts: the API has not changed its mind since, and either the migration is
/// open or the hint is fresh (its API write is on the way).
pub fn hint_is_live(vm: &Vm, hint: &Hint) -> bool {
    vm.node == hint.instead_of && (vm.moving || hint.age_s < HINT_LIFETIME_S)
}

/// The routes that should exist. A VM whose owner is this node but whose tap is absent gets none,
/// likewise one whose node's address is not known.
pub fn routes(o: &Observed) -> BTreeMap<Ipv4Net, Hop> {
    let mut routes: BTreeMap<Ipv4Net, Hop> = BTreeMap::new();
    if o.here.is_some() {
        routes.extend(o.pools.iter().map(|pool| (pool.trunc(), Hop::Drop)));
    }
    for vm in &o.vms {
        let Some(owner) = owner(vm, o.hints.get(&vm.address)) else { continue };
        let hop = if Some(owner) == o.here.as_deref() {
            o.taps.get(&vm.address).cloned().map(Hop::Tap)
        } else {
            o.nodes.get(owner).copied().map(Hop::Via)
        };
        if let Some(hop) = hop {
            routes.insert(Ipv4Net::from(vm.address), hop);
        }
    }
    if !o.complete {
        for (address, hint) in &o.hints {
            let here = Some(hint.node.as_str()) == o.here.as_deref();
            let tap = o.taps.get(address).cloned().map(Hop::Tap);
            let hop = if here { tap } else { Some(Hop::Via(hint.node_address)) };
            routes.extend(hop.map(|hop| (Ipv4Net::from(*address), hop)));
        }
    }
    routes
}

/// The difference that turns the routes that exist into the desired ones: first what to set
/// (replacing), then what to remove. As long as the API was not read nothing is removed.
pub fn difference(
    present: &BTreeMap<Ipv4Net, Hop>,
    desired: &BTreeMap<Ipv4Net, Hop>,
    complete: bool,
) -> (Vec<(Ipv4Net, Hop)>, Vec<Ipv4Net>) {
    let set = desired
        .iter()
        .filter(|(net, hop)| present.get(net) != Some(hop))
        .map(|(net, hop)| (*net, hop.clone()))
        .collect();
    let superfluous = |net: &&Ipv4Net| complete && !desired.contains_key(net);
    let remove = present.keys().filter(superfluous).copied().collect();
    (set, remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 66, 10, 14);

    fn world(here: &str) -> Observed {
        Observed {
            here: (!here.is_empty()).then(|| here.to_owned()),
            nodes: [("a", 1), ("b", 2), ("c", 3)]
                .map(|(name, last)| (name.to_owned(), Ipv4Addr::new(10, 0, 0, last)))
                .into(),
            complete: true,
            ..Observed::default()
        }
    }

    fn vm(node: Option<&str>, moving: bool) -> Vm {
        Vm { uid: "u".into(), address: ADDRESS, node: node.map(str::to_owned), moving }
    }

    fn hint(node: &str, instead_of: &str, age_s: u64) -> Hint {
        Hint {
            node: node.into(),
            node_address: Ipv4Addr::new(10, 0, 0, 9),
            age_s,
            instead_of: Some(instead_of.into()),
        }
    }

    fn show(o: &Observed) -> String {
        match routes(o).get(&Ipv4Net::from(ADDRESS)) {
            None => "none".into(),
            Some(Hop::Tap(tap)) => format!("tap {tap}"),
            Some(Hop::Via(via)) => format!("via {via}"),
            Some(Hop::Drop) => "drop".into(),
        }
    }

    #[test]
    fn route_table() {
        // what, here, API's node, moving, hint, tap present, expected
        type Row = (&'static str, &'static str, Option<&'static str>, bool, Option<Hint>, bool, &'static str);
        let rows: &[Row] = &[
            ("runs here", "a", Some("a"), false, None, true, "tap vmu"),
            ("runs here, tap not there yet", "a", Some("a"), false, None, false, "none"),
            ("runs elsewhere", "a", Some("b"), false, None, false, "via 10.0.0.2"),
            ("seen from the host", "", Some("b"), false, None, false, "via 10.0.0.2"),
            ("ended", "a", None, false, None, true, "none"),
            ("node unknown", "a", Some("z"), false, None, false, "none"),
            ("target before the switch", "b", Some("a"), true, None, true, "via 10.0.0.1"),
            ("target at the switch", "b", Some("a"), true, Some(hint("b", "a", 0)), true, "tap vmu"),
            ("source at the switch", "a", Some("a"), true, Some(hint("b", "a", 0)), true, "via 10.0.0.2"),
            (
                "third node at the switch",
                "c",
                Some("a"),
                true,
                Some(hint("b", "a", 0)),
                false,
                "via 10.0.0.2",
            ),
            (
                "long stop-and-wait stays",
                "c",
                Some("a"),
                true,
                Some(hint("b", "a", 900)),
                false,
                "via 10.0.0.2",
            ),
            ("flipped in the API", "c", Some("b"), false, Some(hint("b", "a", 1)), false, "via 10.0.0.2"),
            (
                "API moved on, hint spent",
                "a",
                Some("c"),
                false,
                Some(hint("b", "a", 1)),
                false,
                "via 10.0.0.3",
            ),
            (
                "hint newer than the watch",
                "c",
                Some("a"),
                false,
                Some(hint("b", "a", 3)),
                false,
                "via 10.0.0.2",
            ),
            (
                "stale hint, nothing open",
                "c",
                Some("a"),
                false,
                Some(hint("b", "a", 61)),
                false,
                "via 10.0.0.1",
            ),
            ("hint of an ended VM", "c", None, false, Some(hint("b", "a", 1)), false, "none"),
        ];
        for (what, here, node, moving, hint, tap, expected) in rows {
            let mut o = world(here);
            o.vms = vec![vm(*node, *moving)];
            o.hints.extend(hint.clone().map(|h| (ADDRESS, h)));
            if *tap {
                o.taps.insert(ADDRESS, "vmu".into());
            }
            assert_eq!(&show(&o), expected, "{what}");
        }
    }

    #[test]
    fn unused_addresses_of_the_pool_are_dropped_on_nodes_only() {
        let pool: Ipv4Net = "10.66.10.0/24".parse().unwrap();
        let mut o = world("a");
        o.pools.insert(pool);
        assert_eq!(routes(&o).get(&pool), Some(&Hop::Drop));
        o.here = None;
        assert!(routes(&o).is_empty());
    }

    #[test]
    fn before_the_api_was_read_only_direct_words_count_and_nothing_is_removed() {
        let mut o = world("a");
        o.complete = false;
        o.hints.insert(ADDRESS, hint("b", "a", 0));
        assert_eq!(show(&o), "via 10.0.0.9");
        o.hints.insert(ADDRESS, hint("a", "b", 0));
        assert_eq!(show(&o), "none", "no tap yet");
        o.taps.insert(ADDRESS, "vmu".into());
        assert_eq!(show(&o), "tap vmu");
        let other = Ipv4Net::from(Ipv4Addr::new(10, 66, 10, 99));
        let present = BTreeMap::from([(other, Hop::Drop)]);
        assert!(difference(&present, &BTreeMap::new(), false).1.is_empty());
    }

    #[test]
    fn difference_sets_and_removes_only_what_differs() {
        let net = |last: u8| Ipv4Net::from(Ipv4Addr::new(10, 66, 10, last));
        let via = |last: u8| Hop::Via(Ipv4Addr::new(10, 0, 0, last));
        let present = BTreeMap::from([(net(1), via(1)), (net(2), via(1)), (net(3), via(1))]);
        let desired = BTreeMap::from([(net(1), via(1)), (net(2), via(2)), (net(4), via(1))]);
        let (set, remove) = difference(&present, &desired, true);
        assert_eq!(set, [(net(2), via(2)), (net(4), via(1))]);
        assert_eq!(remove, [net(3)]);
        let (set, remove) = difference(&desired, &desired, true);
        assert!(set.is_empty() && remove.is_empty(), "a settled node plans nothing");
    }
}
