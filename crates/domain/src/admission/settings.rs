//! Rules of ModuleConfig (failure-and-rebalancing.md §5.4, vm-lifecycle.md §9.1).

use std::net::Ipv4Addr;

use holdfast_api::settings::{KNOWN_SETTINGS, ModuleConfig, Subnet, VirtualizationSettings};
use holdfast_api::vmipl::lease_address;
use holdfast_api::{GROUP, names};
use serde_json::Value;

use super::{Request, Verdict, View, is_being_deleted, name, parse};

pub(super) fn validate(request: &Request<'_>, view: &dyn View) -> Verdict {
    if is_being_deleted(request.object) {
        return Ok(Vec::new());
    }
    let config: ModuleConfig = parse(request.object)?;
    if let Some(version) = config.spec.version.filter(|version| *version != 1) {
        return Err(format!("spec.version {version} is not known: the settings have version 1"));
    }
    if name(request.object) != names::MODULE_CONFIG {
        let text = format!(
            "there is no module {:?} here: the only one is {:?}",
            name(request.object),
            names::MODULE_CONFIG
        );
        return if request.old.is_none() { Err(text) } else { Ok(vec![text]) };
    }
    let given = config.spec.settings.unwrap_or_default();
    let unknown = given
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
        .find(|key| !KNOWN_SETTINGS.contains(&key.as_str()));
    if let Some(key) = unknown {
        let known = KNOWN_SETTINGS.join(", ");
        return Err(format!("spec.settings.{key} is not available (yet): the settings are {known}"));
    }
    let given = if given.is_null() { Value::Object(serde_json::Map::new()) } else { given };
    let settings: VirtualizationSettings =
        serde_json::from_value(given).map_err(|error| format!("spec.settings: {error}"))?;
    if settings.address_retention_seconds.is_some_and(|seconds| seconds < 0) {
        return Err("spec.settings.addressRetentionSeconds must not be negative".to_owned());
    }
    if let Some(image) = &settings.launcher_image {
        launcher_image(image)?;
    }
    let moves = settings.live_migration.clone().unwrap_or_default();
    for (key, seconds) in [
        ("completionTimeoutPerGiB", moves.completion_timeout_per_gib),
        ("progressTimeout", moves.progress_timeout),
    ] {
        if seconds.is_some_and(|seconds| seconds < 1) {
            return Err(format!("spec.settings.liveMigration.{key} must be at least 1 second"));
        }
    }
    subnets(&settings, view)?;
    Ok(Vec::new())
}

/// An image reference with a tag or a digest: one without either could become another image unseen.
fn launcher_image(image: &str) -> Result<(), String> {
    let name = image.rsplit('/').next().unwrap_or_default();
    let plain = image.chars().all(|c| c.is_ascii_alphanumeric() || "._-/:@".contains(c));
    match name.split_once(['@', ':']) {
        Some((name, version)) if plain && !name.is_empty() && !version.is_empty() => Ok(()),
        _ => Err(format!(
            "spec.settings.launcherImage: {image:?} is not an image with a tag or digest, such as \
             holdfast/launcher:1.2.0"
        )),
    }
}

fn subnets(settings: &VirtualizationSettings, view: &dyn View) -> Result<(), String> {
    let field = "spec.settings.virtualMachineCIDRs";
    let subnets = settings
        .virtual_machine_cidrs
        .iter()
        .map(|text| Subnet::parse(text).map_err(|error| format!("{field}: {error}")))
        .collect::<Result<Vec<_>, _>>()?;
    for (n, one) in subnets.iter().enumerate() {
        if let Some(other) = subnets[n + 1..].iter().find(|other| one.overlaps(**other)) {
            return Err(format!("{field}: {one} and {other} overlap"));
        }
    }
    for node in view.list("", "nodes", None) {
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let inside = addresses.filter_map(|entry| entry["address"].as_str()?.parse::<Ipv4Addr>().ok());
        if let Some((net, address)) = inside
            .into_iter()
            .find_map(|address| subnets.iter().find(|net| net.contains(address)).map(|net| (net, address)))
        {
            return Err(format!("{field}: {net} contains the address {address} of node {:?}", name(&node)));
        }
    }
    for lease in view.list(GROUP, "virtualmachineipaddressleases", None) {
        let Some(address) = lease_address(name(&lease)) else { continue };
        let was_covered = super::ip::subnets(view).iter().any(|net| net.is_usable(address));
        if was_covered && !subnets.iter().any(|net| net.is_usable(address)) {
            return Err(format!("{field}: the address {address} is leased, its subnet cannot be removed"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use super::*;
    use serde_json::json;

    fn config(settings: Value) -> Value {
        json!({"metadata": {"name": "virtualization"}, "spec": {"enabled": true, "version": 1, "settings": settings}})
    }

    // VL-N18 (admission): a subnet with a lease cannot be removed.
    #[test]
    fn settings() {
        let node = json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.1.0.2"}]}});
        let lease = json!({"metadata": {"name": "ip-10-66-10-14"}});
        let world = World::default()
            .subnets(&["10.66.10.0/24", "10.66.20.0/24"])
            .with("", "nodes", node)
            .with(GROUP, "virtualmachineipaddressleases", lease);
        for (settings, refused) in [
            (json!({"virtualMachineCIDRs": ["10.66.10.0/24"]}), ""),
            (
                json!({"virtualMachineCIDRs": ["10.66.10.0/24", "10.77.0.0/16"], "addressRetentionSeconds": 5}),
                "",
            ),
            (json!({"virtualMachineCIDRs": ["10.66.20.0/24"]}), "10.66.10.14 is leased"),
            (json!({}), "is leased"),
            (json!({"virtualMachineCIDRs": ["10.66.10.5/24"]}), "not aligned"),
            (json!({"virtualMachineCIDRs": ["x"]}), "not an IPv4 subnet"),
            (json!({"virtualMachineCIDRs": ["10.66.0.0/16", "10.66.10.0/24"]}), "overlap"),
            (
                json!({"virtualMachineCIDRs": ["10.66.10.0/24", "10.1.0.0/24"]}),
                "address 10.1.0.2 of node \"n1\"",
            ),
            (json!({"fencing": {}}), "spec.settings.fencing is not available"),
            (json!({"liveMigration": {"progressTimeout": 0}}), "liveMigration.progressTimeout must be"),
            (json!({"liveMigration": {"completionTimeoutPerGiB": -1}}), "completionTimeoutPerGiB must be"),
            (json!({"liveMigration": {"bandwidth": 1}}), "unknown field `bandwidth`"),
        ] {
            let verdict = decide(&world, "moduleconfigs", &config(settings), None);
            match refused {
                "" => assert_eq!(verdict, Ok(vec![])),
                text => assert!(verdict.as_ref().unwrap_err().contains(text), "{verdict:?}"),
            }
        }
        let other = json!({"metadata": {"name": "descheduler"}, "spec": {"enabled": true}});
        assert!(
            decide(&world, "moduleconfigs", &other, None).unwrap_err().contains("no module \"descheduler\"")
        );
    }
}
