//! What a class's status says and when its finalizer goes. Pure.

use std::collections::BTreeMap;

use holdfast_api::names::finalizer;
use holdfast_api::vm::VirtualMachineSpec;
use holdfast_api::vmclass::{
    ClassCpu, CpuType, Discovered, InUse, Ready, VirtualMachineClassSpec, VirtualMachineClassStatus,
    VmClassPhase,
};
use holdfast_api::{Quantity, VirtualMachineClass};
use holdfast_domain::placement;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Conditions, Create, Effect, NoteKind, Patch, Plan};

/// What a class depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Instant of the pass.
    pub now: Timestamp,
    /// Name of the class.
    pub name: String,
    /// The class; `None` if a default class is missing.
    pub class: Option<VirtualMachineClass>,
    /// All nodes, sorted by name.
    pub nodes: Vec<NodeFacts>,
    /// VMs that name the class, as `namespace/name`, sorted; not looked at unless the class is being deleted.
    pub users: Vec<String>,
}

/// What matters about a node.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its agent is alive.
    pub schedulable: bool,
    /// Allocatable `cpu` and `memory`.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The classes every installation has: both without sizing policies and without node selector
/// (architecture.md §10).
#[must_use]
pub fn defaults() -> Vec<VirtualMachineClass> {
    let model = ClassCpu { type_: CpuType::Model, model: Some("Nehalem".into()), ..ClassCpu::default() };
    let host = ClassCpu { type_: CpuType::Host, ..ClassCpu::default() };
    [("generic", model), ("host", host)]
        .map(|(name, cpu)| {
            let spec = VirtualMachineClassSpec { cpu, ..VirtualMachineClassSpec::default() };
            VirtualMachineClass::new(name, spec)
        })
        .into()
}

/// Decides.
#[must_use]
pub fn plan(o: &Observed) -> Plan {
    let Some(class) = &o.class else {
        let mut plan = Plan::quiet("default class is missing");
        if let Some(default) = defaults().into_iter().find(|d| d.metadata.name.as_deref() == Some(&o.name)) {
            plan.then(Create::of(&default));
        }
        return plan;
    };
    if class.metadata.deletion_timestamp.is_some() && o.users.is_empty() {
        let mut plan = Plan::quiet("no VM names the class any more");
        if let Some(patch) = Patch::remove_finalizer(class, finalizer::VMCLASS_CLEANUP) {
            plan.then(patch);
        }
        return plan;
    }
    let mut plan = Plan::default();
    let old = class.status.clone().unwrap_or_default();
    let new = status(o, class, &old);
    node_events(&mut plan, class, &old, &new);
    plan.set_status(class, class.status.as_ref(), &new);
    plan.because(format!("{} with {} nodes", new.phase, new.available_nodes.len()));
    if class.metadata.deletion_timestamp.is_none()
        && let Some(patch) = Patch::add_finalizer(class, finalizer::VMCLASS_CLEANUP)
    {
        plan.then(patch);
    }
    plan
}

/// The first few, and how many more there are.
fn some_of(users: &[String]) -> String {
    const SHOWN: usize = 20;
    match users.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} more", users[..SHOWN].join(", ")),
        None => users.join(", "),
    }
}

fn status(
    o: &Observed,
    class: &VirtualMachineClass,
    old: &VirtualMachineClassStatus,
) -> VirtualMachineClassStatus {
    let nodes = suitable(class, &o.nodes);
    let mut conditions = Conditions::carry(&old.conditions, class.metadata.generation, o.now);
    let (ready, message) = readiness(class.spec.cpu.type_, nodes.is_empty());
    conditions.is(ready, message);
    if class.spec.cpu.type_ == CpuType::Discovery {
        conditions.is(Discovered::DiscoveryFailed, "Discovery of CPU features is not available yet.");
    } else {
        conditions.is(Discovered::DiscoverySkip, "The CPU type needs no discovery.");
    }
    let deleting = class.metadata.deletion_timestamp.is_some();
    if deleting {
        let message = format!("The class is in use by {}.", some_of(&o.users));
        conditions.is(InUse::VirtualMachineClassInUse, message);
    }
    VirtualMachineClassStatus {
        phase: if deleting {
            VmClassPhase::Terminating
        } else if ready == Ready::SuitableNodesFound {
            VmClassPhase::Ready
        } else {
            VmClassPhase::Pending
        },
        max_allocatable_resources: largest(&nodes),
        available_nodes: nodes.into_iter().map(|node| node.name.clone()).collect(),
        cpu_features: None,
        conditions: conditions.finish(),
        observed_generation: class.metadata.generation,
    }
}

/// Nodes with a living agent that have the CPU and satisfy the class's node selector.
fn suitable<'n>(class: &VirtualMachineClass, nodes: &'n [NodeFacts]) -> Vec<&'n NodeFacts> {
    match class.spec.cpu.type_ {
        CpuType::Discovery | CpuType::Features => return Vec::new(),
        CpuType::Host | CpuType::HostPassthrough | CpuType::Model => (),
    }
    let rules = placement::merge(&VirtualMachineSpec::default(), &class.spec);
    let fits =
        |node: &&NodeFacts| node.schedulable && placement::node_satisfies(&rules, &node.name, &node.labels);
    nodes.iter().filter(fits).collect()
}

fn readiness(cpu: CpuType, no_node: bool) -> (Ready, &'static str) {
    match cpu {
        CpuType::Host | CpuType::HostPassthrough => (Ready::SuitableNodesFound, ""),
        CpuType::Model if no_node => (
            Ready::NoSuitableNodesFound,
            "No matching nodes found: no node with a running agent has this CPU model and satisfies the \
             node selector.",
        ),
        CpuType::Model => (Ready::SuitableNodesFound, ""),
        CpuType::Discovery | CpuType::Features => (
            Ready::NoCpuFeaturesEnabled,
            "CPU types Discovery and Features are not available yet: use Host, HostPassthrough or Model.",
        ),
    }
}

fn largest(nodes: &[&NodeFacts]) -> BTreeMap<String, Quantity> {
    let mut largest: BTreeMap<String, Quantity> = BTreeMap::new();
    for (resource, quantity) in nodes.iter().flat_map(|node| &node.allocatable) {
        let known = largest.get(resource).and_then(|known| known.milli().ok());
        if quantity.milli().ok() > known {
            largest.insert(resource.clone(), quantity.clone());
        }
    }
    largest
}

fn node_events(
    plan: &mut Plan,
    class: &VirtualMachineClass,
    old: &VirtualMachineClassStatus,
    new: &VirtualMachineClassStatus,
) {
    let (before, after) = (&old.available_nodes, &new.available_nodes);
    if before == after {
        return;
    }
    if after.is_empty() {
        plan.then(Effect::event(
            class,
            NoteKind::Warning,
            "AvailableNodesListEmpty",
            "No node can run VMs of this class any more.",
        ));
        return;
    }
    let added: Vec<_> = after.iter().filter(|node| !before.contains(node)).map(String::as_str).collect();
    let removed: Vec<_> = before.iter().filter(|node| !after.contains(node)).map(String::as_str).collect();
    let message =
        format!("Available nodes changed: added [{}], removed [{}].", added.join(", "), removed.join(", "));
    plan.then(Effect::event(class, NoteKind::Normal, "NodesWereUpdated", message));
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::condition;
    use holdfast_api::vmclass::ClassNodeSelector;
    use k8s_openapi::api::core::v1::NodeSelectorRequirement;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn node(name: &str, labels: &[(&str, &str)], cpu: &str, memory: &str) -> NodeFacts {
        NodeFacts {
            name: name.into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            schedulable: true,
            allocatable: [("cpu".into(), cpu.into()), ("memory".into(), memory.into())].into(),
        }
    }

    fn observed(cpu: ClassCpu, nodes: Vec<NodeFacts>) -> Observed {
        let spec = VirtualMachineClassSpec { cpu, ..VirtualMachineClassSpec::default() };
        let mut class = VirtualMachineClass::new("c", spec);
        class.metadata.generation = Some(3);
        class.metadata.uid = Some("uid".into());
        let now = Timestamp::from_second(1_000).unwrap();
        Observed { now, name: "c".into(), class: Some(class), nodes, users: Vec::new() }
    }

    fn cpu(type_: CpuType, model: Option<&str>) -> ClassCpu {
        ClassCpu { type_, model: model.map(str::to_owned), ..ClassCpu::default() }
    }

    fn status_of(o: &Observed) -> VirtualMachineClassStatus {
        status(o, o.class.as_ref().unwrap(), &VirtualMachineClassStatus::default())
    }

    #[test]
    fn readiness_by_cpu_type() {
        let nehalem = "cpu-model.node.virtualization.deckhouse.io/Nehalem";
        let nodes = || vec![node("a", &[(nehalem, "true")], "4", "8Gi"), node("b", &[], "8", "4Gi")];
        for (type_, model, nodes, phase, available) in [
            (CpuType::Host, None, Vec::new(), VmClassPhase::Ready, ""),
            (CpuType::Host, None, nodes(), VmClassPhase::Ready, "a b"),
            (CpuType::HostPassthrough, None, nodes(), VmClassPhase::Ready, "a b"),
            (CpuType::Model, Some("Nehalem"), nodes(), VmClassPhase::Ready, "a"),
            (CpuType::Model, Some("EPYC"), nodes(), VmClassPhase::Pending, ""),
            (CpuType::Features, None, nodes(), VmClassPhase::Pending, ""),
            (CpuType::Discovery, None, nodes(), VmClassPhase::Pending, ""),
        ] {
            let status = status_of(&observed(cpu(type_, model), nodes));
            assert_eq!(status.phase, phase, "{type_} {model:?}");
            assert_eq!(status.available_nodes.join(" "), available, "{type_} {model:?}");
            assert!(condition::find(&status.conditions, "Ready").is_some());
        }
    }

    #[test]
    fn a_node_without_agent_or_off_the_selector_does_not_count() {
        let mut o = observed(cpu(CpuType::Host, None), vec![node("a", &[("rack", "1")], "1", "1Gi")]);
        o.nodes.push(node("b", &[("rack", "2")], "1", "1Gi"));
        o.nodes.push(NodeFacts { schedulable: false, ..node("c", &[("rack", "1")], "1", "1Gi") });
        let rule = NodeSelectorRequirement {
            key: "rack".into(),
            operator: "In".into(),
            values: Some(vec!["1".into()]),
        };
        let selector = ClassNodeSelector { match_labels: None, match_expressions: Some(vec![rule]) };
        o.class.as_mut().unwrap().spec.node_selector = Some(selector);
        assert_eq!(status_of(&o).available_nodes, ["a"]);
    }

    #[test]
    fn maxima_are_per_resource() {
        let nodes = vec![node("a", &[], "3900m", "8Gi"), node("b", &[], "8", "4Gi")];
        let status = status_of(&observed(cpu(CpuType::Host, None), nodes));
        assert_eq!(status.max_allocatable_resources["cpu"].0, "8");
        assert_eq!(status.max_allocatable_resources["memory"].0, "8Gi");
    }

    #[test]
    fn a_class_in_use_stays_until_the_last_vm_lets_go() {
        let mut o = observed(cpu(CpuType::Host, None), Vec::new());
        let class = o.class.as_mut().unwrap();
        class.metadata.finalizers = Some(vec![finalizer::VMCLASS_CLEANUP.into()]);
        class.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(900).unwrap()));
        o.users = vec!["shop/web".into()];
        let busy = plan(&o);
        assert!(busy.effects.is_empty());
        let status = busy.status.unwrap().body;
        assert_eq!(status["status"]["phase"], "Terminating");
        assert!(status.to_string().contains("The class is in use by shop/web."));
        o.users = (0..25).map(|n| format!("shop/web-{n}")).collect();
        let status = plan(&o).status.unwrap().body.to_string();
        assert!(status.contains("shop/web-19 and 5 more.") && !status.contains("web-20"));
        o.users.clear();
        assert!(
            matches!(&plan(&o).effects[..], [Effect::Patch(patch)] if patch.body["metadata"]["finalizers"] == serde_json::json!([]))
        );
    }

    #[test]
    fn the_settled_world_needs_nothing() {
        let mut o = observed(cpu(CpuType::Host, None), vec![node("a", &[], "1", "1Gi")]);
        let status = status_of(&o);
        let class = o.class.as_mut().unwrap();
        class.status = Some(status);
        class.metadata.finalizers = Some(vec![finalizer::VMCLASS_CLEANUP.into()]);
        assert!(plan(&o).is_empty());
    }

    #[test]
    fn missing_default_classes_are_created_without_policies() {
        for name in ["generic", "host"] {
            let now = Timestamp::from_second(1).unwrap();
            let o = Observed { now, name: name.into(), class: None, nodes: Vec::new(), users: Vec::new() };
            let plan = plan(&o);
            let [Effect::Create(create)] = &plan.effects[..] else { panic!("{plan:?}") };
            assert_eq!(create.object.value["metadata"]["name"], name);
            assert!(create.object.value["spec"].get("sizingPolicies").is_none());
            assert!(create.object.value["spec"].get("nodeSelector").is_none());
        }
    }
}
