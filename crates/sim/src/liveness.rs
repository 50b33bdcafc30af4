//! What must become true once faults have stopped: operations end, VMs are as their owners want them,
//! drained nodes are empty or somebody says why, and nobody has anything left to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_kubelith::core::ListOptions;
use serde_json::Value;

use crate::world::World;

/// Within this time of the world all of it must be true.
pub const BOUND: Duration = Duration::from_secs(45 * 60);

/// All objects of a kind, as the API server has them.
#[must_use]
pub fn objects(world: &World, group: &str, plural: &str) -> Vec<Value> {
    let Some(app) = world.plane_app() else { return Vec::new() };
    let registry = app.core.registry();
    let Some(served) = registry.preferred(group, plural) else { return Vec::new() };
    let found = app.core.list(served, &ListOptions::default());
    let items = found.map(|found| found.items).unwrap_or_default();
    items.iter().filter_map(|object| serde_json::from_slice(&object.json).ok()).collect()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// What is not true yet; empty when all is well.
#[must_use]
pub fn unfinished(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    if world.plane_app().is_none() {
        return vec!["the API server is down".to_owned()];
    }
    let public = "virtualization.deckhouse.io";
    for operation in objects(world, public, "virtualmachineoperations") {
        if !operation["metadata"]["deletionTimestamp"].is_null() {
            left.push(format!("operation {} is being deleted", text(&operation, "/metadata/name")));
        }
        let phase = text(&operation, "/status/phase");
        if !matches!(phase, "Completed" | "Failed" | "Superseded") {
            let name = text(&operation, "/metadata/name");
            left.push(format!("operation {name} is {phase:?}: {}", conditions(&operation)));
        }
    }
    for migration in objects(world, "internal.virtualization.deckhouse.io", "migrations") {
        if migration["status"]["finishedAt"].is_null() {
            let state = text(&migration, "/status/state");
            left.push(format!("Migration {} is {state:?}", text(&migration, "/metadata/name")));
        }
    }
    let nodes = objects(world, "", "nodes");
    let is_open = |name: &str| {
        let node = nodes.iter().find(|node| node["metadata"]["name"] == *name);
        node.is_some_and(|node| node["spec"]["unschedulable"] != Value::Bool(true))
    };
    for instance in objects(world, "internal.virtualization.deckhouse.io", "instances") {
        let marked = text(&instance, "/status/evacuationNodeName");
        if !marked.is_empty() && is_open(marked) && world.drains.values().all(|node| node != marked) {
            let name = text(&instance, "/metadata/name");
            left.push(format!("{name} is still to leave {marked}, which is open again"));
        }
    }
    let open = nodes.iter().filter(|node| node["spec"]["unschedulable"] != Value::Bool(true)).count();
    let maintenances = objects(world, "nodemaintenance.medik8s.io", "nodemaintenances");
    left.extend(maintenances.iter().filter_map(|maintenance| maintenance_unfinished(maintenance, open)));
    for node in &nodes {
        let name = text(node, "/metadata/name");
        let label = &node["metadata"]["labels"]["remediation.medik8s.io/exclude-from-remediation"];
        if !label.is_null() && maintenances.iter().all(|m| text(m, "/spec/nodeName") != name) {
            left.push(format!("{name} is kept closed by a maintenance that does not exist"));
        }
    }
    let mut runs: BTreeMap<String, u32> = BTreeMap::new();
    for (run_dir, _) in world.machines.executing() {
        let vm = world.vm_of_pod.get(crate::start::pod_of(&run_dir)).cloned().unwrap_or_default();
        *runs.entry(vm).or_default() += 1;
    }
    let failed: BTreeSet<String> = objects(world, public, "virtualdisks")
        .iter()
        .filter(|disk| text(disk, "/status/phase") == "Failed")
        .map(|disk| text(disk, "/metadata/name").to_owned())
        .collect();
    for vm in objects(world, public, "virtualmachines") {
        let key = format!("{}/{}", text(&vm, "/metadata/namespace"), text(&vm, "/metadata/name"));
        let count = runs.remove(&key).unwrap_or_default();
        // These say so; only their owners can help them: no address is left, the disk could not be made.
        let waits_for_address = conditions(&vm).contains("VirtualMachineIPAddressNotReady");
        if count == 0 && waits_for_address && world.cidr == crate::start::FEW_ADDRESSES {
            continue;
        }
        if failed.contains(&format!("{}-root", text(&vm, "/metadata/name"))) && count == 0 {
            continue;
        }
        if let Some(why) = vm_unfinished(&vm, count, open) {
            left.push(format!("VM {key}: {why}{}", engine(world, &key)));
        }
    }
    for (vm, count) in runs {
        left.push(format!("{count} guests of {vm} run, which does not exist"));
    }
    for node in world.drains.values() {
        let stuck =
            world.machines.executing().into_iter().filter(|(run_dir, _)| on_node(world, run_dir, node));
        if stuck.count() == 0 || open > 0 {
            left.push(format!("the drain of {node} has not ended"));
        }
    }
    left
}

fn maintenance_unfinished(maintenance: &Value, open_nodes: usize) -> Option<String> {
    let name = text(maintenance, "/metadata/name");
    if !maintenance["metadata"]["deletionTimestamp"].is_null() {
        return Some(format!("the maintenance of {name} is being deleted"));
    }
    let phase = text(maintenance, "/status/phase");
    let ended = phase == "Succeeded" || open_nodes == 0;
    (!ended).then(|| {
        format!("the maintenance of {name} is {phase:?}: {}", text(maintenance, "/status/lastError"))
    })
}

fn on_node(world: &World, run_dir: &std::path::Path, node: &str) -> bool {
    world.nodes.get(node).is_some_and(|node| run_dir.starts_with(&node.pods_dir))
}

fn vm_unfinished(vm: &Value, count: u32, open_nodes: usize) -> Option<String> {
    if !vm["metadata"]["deletionTimestamp"].is_null() {
        return Some("is being deleted".to_owned());
    }
    let phase = text(vm, "/status/phase");
    let policy = text(vm, "/spec/runPolicy");
    let wanted = match phase {
        "Running" => 1,
        "Stopped" => 0,
        // Says why in its conditions: no node takes it.
        "Starting" | "Pending" if open_nodes == 0 || is_pinned(vm) => return None,
        other => return Some(format!("phase {other:?}: {}", conditions(vm))),
    };
    if count != wanted {
        return Some(format!("phase {phase}, but {count} guests run"));
    }
    match (policy, phase) {
        ("AlwaysOn", "Stopped") => Some("is Stopped, but its policy is AlwaysOn".to_owned()),
        ("AlwaysOff", "Running") => Some("is Running, but its policy is AlwaysOff".to_owned()),
        _ => None,
    }
}

/// What the engine knows of a VM, for whoever has to find out why.
fn engine(world: &World, key: &str) -> String {
    let status = world.checker.instances().get(key).map(|instance| &instance["status"]);
    let said = |path: &str| status.and_then(|s| s.get(path)).map(Value::to_string).unwrap_or_default();
    format!("; claim {}, report {}, pods {}", said("claim"), said("report"), said("pods"))
}

/// Its placement names a node, which may be closed.
fn is_pinned(vm: &Value) -> bool {
    vm["spec"]["nodeSelector"].as_object().is_some_and(|selector| !selector.is_empty())
}

fn conditions(vm: &Value) -> String {
    let all = vm["status"]["conditions"].as_array();
    let bad = all.into_iter().flatten().filter(|condition| condition["status"] != "True");
    let show = |c: &Value| format!("{} {}: {}", text(c, "/type"), text(c, "/reason"), text(c, "/message"));
    bad.map(show).collect::<Vec<_>>().join("; ")
}
