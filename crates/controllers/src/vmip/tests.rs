//! Tables of the address machine.

use super::*;
use holdfast_api::condition;
use holdfast_api::vmip::VirtualMachineIPAddressSpec;
use holdfast_api::vmipl::VirtualMachineIPAddressLeaseStatus;
use holdfast_env::Entropy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn vmip(type_: IpAddressType, static_ip: Option<&str>) -> VirtualMachineIPAddress {
    let spec = VirtualMachineIPAddressSpec { type_, static_ip: static_ip.map(str::to_owned) };
    let mut vmip = VirtualMachineIPAddress::new("web-7prpx", spec);
    vmip.metadata.namespace = Some("shop".into());
    vmip.metadata.uid = Some("u".into());
    vmip.metadata.generation = Some(1);
    vmip.metadata.finalizers = Some(vec![finalizer::VMIP_CLEANUP.into()]);
    vmip
}

fn observed(vmip: VirtualMachineIPAddress) -> Observed {
    Observed {
        now: at(100),
        vmip,
        lease: None,
        pool: vec![Subnet::parse("10.66.10.0/24").unwrap()],
        taken: BTreeSet::new(),
        users: Vec::new(),
        entropy: Entropy::seeded(1).stream("test"),
    }
}

fn held_by(
    namespace: &str,
    name: &str,
    uid: &str,
    phase: Option<VmiplPhase>,
) -> VirtualMachineIPAddressLease {
    let mut lease = super::lease(&vmip(IpAddressType::Auto, None), Ipv4Addr::new(10, 66, 10, 14));
    lease.metadata.labels = Some([(label::IP_ADDRESS_UID.to_owned(), uid.to_owned())].into());
    lease.metadata.resource_version = Some("5".into());
    lease.spec.virtual_machine_ip_address_ref =
        Some(IpAddressRef { name: name.into(), namespace: namespace.into() });
    lease.status =
        phase.map(|phase| VirtualMachineIPAddressLeaseStatus { phase: Some(phase), ..Default::default() });
    lease
}

/// Phase, reason of `Bound`, and the kinds of effects other than events.
fn outcome(o: &Observed) -> (VmipPhase, String, Vec<&'static str>) {
    let plan = plan(o);
    let old = o.vmip.status.clone().unwrap_or_default();
    let new = status(o, &old, &lease_outcome(o));
    let effects = plan
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Create(_) => Some("create"),
            Effect::Patch(_) => Some("patch"),
            Effect::Delete { .. } => Some("delete"),
            Effect::Evict(_) | Effect::Event(_) => None,
        })
        .collect();
    let reason = condition::find(&new.conditions, "Bound").unwrap().reason.clone();
    (new.phase.unwrap(), reason, effects)
}

#[test]
fn situations() {
    use VmipPhase::{Attached, Bound, Pending};
    let auto = || observed(vmip(IpAddressType::Auto, None));
    let fixed = |ip| observed(vmip(IpAddressType::Static, Some(ip)));
    let assigned = || {
        let mut o = auto();
        o.vmip.status =
            Some(VirtualMachineIPAddressStatus { address: Some("10.66.10.14".into()), ..Default::default() });
        o
    };
    let bound = Some(VmiplPhase::Bound);
    let released = Some(VmiplPhase::Released);
    let with = |mut o: Observed, lease| {
        o.lease = Some(lease);
        o
    };
    let used = |mut o: Observed| {
        o.users = vec![(VmUse::Owner, "web".into())];
        o
    };
    let rows: Vec<(&str, Observed, VmipPhase, &str, &[&str])> = vec![
        ("new automatic", auto(), Pending, "VirtualMachineIPAddressLeaseNotReady", &["create"]),
        ("new static", fixed("10.66.10.14"), Pending, "VirtualMachineIPAddressLeaseNotReady", &["create"]),
        (
            "static out of range",
            fixed("10.1.1.1"),
            Pending,
            "VirtualMachineIPAddressIsOutOfTheValidRange",
            &[],
        ),
        (
            "static, first of the net",
            fixed("10.66.10.0"),
            Pending,
            "VirtualMachineIPAddressIsOutOfTheValidRange",
            &[],
        ),
        (
            "lease made by us, no phase",
            with(auto(), held_by("shop", "web-7prpx", "u", None)),
            Pending,
            "VirtualMachineIPAddressLeaseNotReady",
            &[],
        ),
        ("lease bound", with(assigned(), held_by("shop", "web-7prpx", "u", bound)), Bound, "Bound", &[]),
        (
            "lease bound, VM uses it",
            used(with(assigned(), held_by("shop", "web-7prpx", "u", bound))),
            Attached,
            "Bound",
            &[],
        ),
        (
            "lease bound, never reported",
            with(auto(), held_by("shop", "web-7prpx", "u", bound)),
            Bound,
            "Bound",
            &[],
        ),
        (
            "held by another",
            with(fixed("10.66.10.14"), held_by("shop", "db", "x", bound)),
            Pending,
            "VirtualMachineIPAddressLeaseAlreadyExists",
            &[],
        ),
        (
            "same name, older object",
            with(fixed("10.66.10.14"), held_by("shop", "web-7prpx", "x", bound)),
            Pending,
            "VirtualMachineIPAddressLeaseAlreadyExists",
            &[],
        ),
        // VL N7 (decision): released in the same namespace is taken.
        (
            "released, same namespace",
            with(fixed("10.66.10.14"), held_by("shop", "", "", released)),
            Pending,
            "VirtualMachineIPAddressLeaseNotReady",
            &["patch"],
        ),
        (
            "released, other namespace",
            with(fixed("10.66.10.14"), held_by("mall", "", "", released)),
            Pending,
            "VirtualMachineIPAddressLeaseNotReady",
            &[],
        ),
        ("lease lost", assigned(), Pending, "VirtualMachineIPAddressLeaseLost", &["create"]),
    ];
    for (what, o, phase, reason, effects) in rows {
        assert_eq!(outcome(&o), (phase, reason.to_owned(), effects.to_vec()), "{what}");
    }
}

// VL-N8: the released lease of another namespace is left alone, with a warning.
#[test]
fn a_lease_of_another_namespace_gives_a_warning_event() {
    let mut o = observed(vmip(IpAddressType::Static, Some("10.66.10.14")));
    o.lease = Some(held_by("mall", "", "", Some(VmiplPhase::Released)));
    let plan = plan(&o);
    let reasons: Vec<_> = plan
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Event(note) => Some((note.kind, note.reason.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [(NoteKind::Warning, "VirtualMachineIPAddressLeaseAlreadyExists")]);
    assert_eq!(plan.wake, Some(at(130)));
}

// VL-N17: random, distinct, and not simply the lowest.
#[test]
fn automatic_choice_is_random_and_free() {
    let mut o = observed(vmip(IpAddressType::Auto, None));
    let mut chosen = BTreeSet::new();
    for n in 0..8 {
        o.entropy = Entropy::seeded(n).stream("choice");
        let address = choose(&o)[0];
        assert!(chosen.insert(address), "distinct");
        o.taken.insert(address);
    }
    let lowest: BTreeSet<_> = (1..=8).map(|n| Ipv4Addr::new(10, 66, 10, n)).collect();
    assert_ne!(chosen, lowest);
}

// VL-N1: .1 and .2 of a /30, nothing more.
#[test]
fn a_small_pool_is_used_up_and_then_exhausted() {
    let mut o = observed(vmip(IpAddressType::Auto, None));
    o.pool = vec![Subnet::parse("10.66.10.0/30").unwrap()];
    for _ in 0..2 {
        let address = choose(&o)[0];
        assert!(o.taken.insert(address));
    }
    let all: Vec<_> = o.taken.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["10.66.10.1", "10.66.10.2"]);
    assert_eq!(choose(&o), Vec::<Ipv4Addr>::new());
    assert!(lease_outcome(&o).message.starts_with("No remaining ips"));
}

#[test]
fn the_last_free_address_of_a_large_pool_is_found() {
    let mut o = observed(vmip(IpAddressType::Auto, None));
    let last = Ipv4Addr::new(10, 66, 10, 77);
    o.taken = (1..=254).map(|n| Ipv4Addr::new(10, 66, 10, n)).filter(|a| *a != last).collect();
    assert_eq!(choose(&o)[0], last);
}

// VL N10 (decision): the VM that has the address keeps it although another names it.
#[test]
fn the_recorded_user_keeps_the_address() {
    let mut o = observed(vmip(IpAddressType::Auto, None));
    o.lease = Some(held_by("shop", "web-7prpx", "u", Some(VmiplPhase::Bound)));
    o.vmip.status = Some(VirtualMachineIPAddressStatus {
        address: Some("10.66.10.14".into()),
        virtual_machine_name: Some("v2".into()),
        ..Default::default()
    });
    o.users = vec![(VmUse::Named, "v1".into()), (VmUse::Named, "v2".into())];
    let user = |o: &Observed| {
        let old = o.vmip.status.clone().unwrap();
        status(o, &old, &lease_outcome(o)).virtual_machine_name
    };
    assert_eq!(user(&o).as_deref(), Some("v2"));
    o.users.pop();
    assert_eq!(user(&o).as_deref(), Some("v1"));
}

// VL N16 (decision): in use, it stays; then the finalizer goes.
#[test]
fn deletion_waits_for_the_vm() {
    let mut o = observed(vmip(IpAddressType::Auto, None));
    o.vmip.metadata.deletion_timestamp = Some(Time(at(90)));
    o.users = vec![(VmUse::Named, "web".into())];
    o.lease = Some(held_by("shop", "web-7prpx", "u", Some(VmiplPhase::Bound)));
    let removes = |o: &Observed| plan(o).effects.iter().any(|effect| matches!(effect, Effect::Patch(_)));
    assert!(!removes(&o));
    o.users.clear();
    assert!(removes(&o));
}

#[test]
fn the_settled_world_needs_nothing() {
    let mut o = observed(vmip(IpAddressType::Auto, None));
    o.lease = Some(held_by("shop", "web-7prpx", "u", Some(VmiplPhase::Bound)));
    o.users = vec![(VmUse::Owner, "web".into())];
    let new = status(&o, &VirtualMachineIPAddressStatus::default(), &lease_outcome(&o));
    assert_eq!(new.address.as_deref(), Some("10.66.10.14"));
    o.vmip.status = Some(new);
    assert!(plan(&o).is_empty());
}
