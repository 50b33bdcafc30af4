//! Rules of addresses and leases (api.md A5, A6, vm-lifecycle.md §9.5).

use std::net::Ipv4Addr;

use holdfast_api::condition::find;
use holdfast_api::settings::{ModuleConfig, Subnet, VirtualizationSettings};
use holdfast_api::vmip::{IpAddressType, VirtualMachineIPAddress, VmipPhase};
use holdfast_api::vmipl::{VirtualMachineIPAddressLease, VmiplPhase, lease_address, lease_name};
use holdfast_api::{GROUP, names};

use super::{Operation, Request, Verdict, View, is_being_deleted, name, parse};

/// The configured subnets.
pub(super) fn subnets(view: &dyn View) -> Vec<Subnet> {
    let config = view.get("deckhouse.io", "moduleconfigs", "", names::MODULE_CONFIG);
    let config = config.and_then(|config| parse::<ModuleConfig>(&config).ok());
    VirtualizationSettings::find(config.iter()).subnets()
}

pub(super) fn validate_address(request: &Request<'_>, view: &dyn View) -> Verdict {
    let new: VirtualMachineIPAddress = parse(request.object)?;
    let old: Option<VirtualMachineIPAddress> = request.old.map(parse).transpose()?;
    if is_being_deleted(request.object) || old.as_ref().is_some_and(|old| old.spec == new.spec) {
        return Ok(Vec::new());
    }
    let subnets = subnets(view);
    if subnets.is_empty() {
        return Err(
            "no subnets for virtual machines are configured: set spec.settings.virtualMachineCIDRs of \
                    ModuleConfig virtualization"
                .to_owned(),
        );
    }
    let address = demanded(&new)?;
    let in_range = address.is_none_or(|address| subnets.iter().any(|net| net.is_usable(address)));
    let out_of_range = || {
        let list: Vec<_> = subnets.iter().map(ToString::to_string).collect();
        format!("the static address is not a usable one of the configured subnets {}", list.join(", "))
    };
    match (request.operation, &old) {
        (Operation::Update, Some(old)) => {
            keep_bound(old, &new)?;
            Ok(if in_range { Vec::new() } else { vec![out_of_range()] })
        }
        _ if !in_range => Err(out_of_range()),
        _ => {
            if let Some(address) = address {
                not_leased(address, request, view)?;
            }
            Ok(Vec::new())
        }
    }
}

/// The static address; the form of the spec is checked here because it is one rule in words.
fn demanded(new: &VirtualMachineIPAddress) -> Result<Option<Ipv4Addr>, String> {
    match (new.spec.type_, &new.spec.static_ip) {
        (IpAddressType::Auto, None) => Ok(None),
        (IpAddressType::Auto, Some(_)) => {
            Err("type Auto takes no staticIP: remove it or use type Static".to_owned())
        }
        (IpAddressType::Static, None) => Err("type Static needs staticIP".to_owned()),
        (IpAddressType::Static, Some(text)) => {
            text.parse().map(Some).map_err(|_| format!("{text:?} is not a valid IPv4 address"))
        }
    }
}

fn keep_bound(old: &VirtualMachineIPAddress, new: &VirtualMachineIPAddress) -> Result<(), String> {
    let status = old.status.clone().unwrap_or_default();
    let bound = find(&status.conditions, "Bound").is_some_and(|bound| bound.status == "True")
        || matches!(status.phase, Some(VmipPhase::Bound | VmipPhase::Attached));
    if !bound {
        return Ok(());
    }
    let current = status.address.unwrap_or_default();
    match (old.spec.type_, new.spec.type_) {
        (IpAddressType::Auto, IpAddressType::Static) if new.spec.static_ip.as_ref() == Some(&current) => {
            Ok(())
        }
        (IpAddressType::Auto, IpAddressType::Static) => Err(format!(
            "only type change Auto->Static with the current address is allowed: cannot change current address {current} to {}",
            new.spec.static_ip.clone().unwrap_or_default()
        )),
        (IpAddressType::Static, IpAddressType::Auto) => {
            Err("only type change Auto->Static is allowed while the address is bound".to_owned())
        }
        _ if old.spec.static_ip != new.spec.static_ip => {
            Err(format!("the static address cannot be changed while it is bound: it is {current}"))
        }
        _ => Ok(()),
    }
}

/// Released leases do not count: whether they may be taken is decided when they are.
fn not_leased(address: Ipv4Addr, request: &Request<'_>, view: &dyn View) -> Result<(), String> {
    let Some(lease) = view.get(GROUP, "virtualmachineipaddressleases", "", &lease_name(address)) else {
        return Ok(());
    };
    let lease: VirtualMachineIPAddressLease = parse(&lease)?;
    let holder = lease.spec.virtual_machine_ip_address_ref.unwrap_or_default();
    let released = lease.status.and_then(|status| status.phase) == Some(VmiplPhase::Released);
    let ours = holder.name == name(request.object) && holder.namespace == request.namespace;
    if released || holder.name.is_empty() || ours {
        return Ok(());
    }
    Err(format!(
        "the address {address} has already been allocated by VirtualMachineIPAddress/{} in ns/{}",
        holder.name, holder.namespace
    ))
}

pub(super) fn validate_lease(request: &Request<'_>) -> Verdict {
    let name = name(request.object);
    if request.operation == Operation::Create && lease_address(name).is_none() {
        return Err(format!(
            "the name {name:?} does not stand for an IPv4 address: the form is ip-10-66-10-14"
        ));
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use super::*;
    use serde_json::{Value, json};

    fn vmip(spec: Value, address: Option<&str>) -> Value {
        let mut vmip = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        if let Some(address) = address {
            vmip["status"] = json!({"phase": "Bound", "address": address});
        }
        vmip
    }

    fn lease(holder: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": "ip-10-66-10-14"},
            "spec": {"virtualMachineIPAddressRef": {"name": holder, "namespace": "mall"}},
            "status": {"phase": phase},
        })
    }

    #[test]
    fn creation() {
        let world = || World::default().subnets(&["10.66.10.0/24"]);
        let leased =
            |holder, phase| world().with(GROUP, "virtualmachineipaddressleases", lease(holder, phase));
        let fixed = |address: &str| json!({"type": "Static", "staticIP": address});
        for (what, world, spec, refused) in [
            ("automatic", world(), json!({"type": "Auto"}), ""),
            ("static", world(), fixed("10.66.10.14"), ""),
            ("no subnets", World::default(), json!({"type": "Auto"}), "no subnets"),
            ("static without address", world(), json!({"type": "Static"}), "needs staticIP"),
            (
                "automatic with address",
                world(),
                json!({"type": "Auto", "staticIP": "10.66.10.14"}),
                "takes no staticIP",
            ),
            ("no address", world(), fixed("10.66.10.300"), "not a valid IPv4 address"),
            // VL-N12 (admission)
            ("out of range", world(), fixed("10.66.11.14"), "not a usable one"),
            ("broadcast", world(), fixed("10.66.10.255"), "not a usable one"),
            // VL-N5
            (
                "held",
                leased("db", "Bound"),
                fixed("10.66.10.14"),
                "already been allocated by VirtualMachineIPAddress/db in ns/mall",
            ),
            ("released", leased("", "Released"), fixed("10.66.10.14"), ""),
        ] {
            let verdict = decide(&world, "virtualmachineipaddresses", &vmip(spec, None), None);
            match refused {
                "" => assert_eq!(verdict, Ok(vec![]), "{what}"),
                text => assert!(verdict.as_ref().unwrap_err().contains(text), "{what}: {verdict:?}"),
            }
        }
    }

    // VL-N11
    #[test]
    fn a_bound_address_keeps_its_address() {
        let world = World::default().subnets(&["10.66.10.0/24"]);
        let auto = json!({"type": "Auto"});
        let fixed = |address: &str| json!({"type": "Static", "staticIP": address});
        for (what, old, new, fine) in [
            ("to static, same", auto.clone(), fixed("10.66.10.14"), true),
            ("to static, other", auto.clone(), fixed("10.66.10.15"), false),
            ("to automatic", fixed("10.66.10.14"), auto.clone(), false),
            ("static changed", fixed("10.66.10.14"), fixed("10.66.10.15"), false),
            ("unchanged", auto.clone(), auto, true),
        ] {
            let (old, new) = (vmip(old, Some("10.66.10.14")), vmip(new, Some("10.66.10.14")));
            assert_eq!(decide(&world, "virtualmachineipaddresses", &new, Some(&old)).is_ok(), fine, "{what}");
        }
        let (old, new) = (vmip(fixed("10.66.10.14"), None), vmip(fixed("10.1.1.1"), None));
        let warnings = decide(&world, "virtualmachineipaddresses", &new, Some(&old)).unwrap();
        assert_eq!(warnings.len(), 1, "an update out of range is a warning only");
    }

    #[test]
    fn lease_names() {
        for (name, fine) in [("ip-10-66-10-14", true), ("ip-10-66-10", false), ("web", false)] {
            let lease = json!({"metadata": {"name": name}, "spec": {}});
            assert_eq!(
                decide(&World::default(), "virtualmachineipaddressleases", &lease, None).is_ok(),
                fine,
                "{name}"
            );
        }
    }
}
