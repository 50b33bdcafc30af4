//! Tables of the plan: one node to be drained, two others, and what stands against each VM.

use holdfast_api::drain_plan::DrainPlan;
use holdfast_api::engine::{
    Claim, Disk, EvictionRule, InstanceSpec, InstanceState, InstanceStatus, MigrationPolicy,
};
use holdfast_api::engine::{
    Instance, Migration, MigrationSource, MigrationState, MigrationStatus, MigrationTarget,
};
use holdfast_api::names::label;
use holdfast_domain::migration::BANDWIDTH_BYTES_S;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::{OVERHEAD_S, Observed, plan};

const GIB: i64 = 1 << 30;

fn node(name: &str, memory: &str, spec: Value) -> Node {
    let amount = json!({"cpu": "32", "memory": memory, "pods": "110", "ephemeral-storage": "100Gi"});
    let ready =
        json!({"type": "Ready", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null});
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, label::SCHEDULABLE: "true"}},
        "spec": spec,
        "status": {"allocatable": amount, "capacity": amount, "conditions": [ready]},
    }))
    .unwrap()
}

fn instance(name: &str, node: &str) -> Instance {
    let mut instance = Instance::new(name, InstanceSpec { epoch: 1, ..InstanceSpec::default() });
    instance.metadata.namespace = Some("shop".into());
    instance.metadata.uid = Some(format!("i-{name}"));
    instance.spec.hardware.memory_bytes = GIB;
    instance.spec.resources.memory_bytes = GIB;
    instance.spec.resources.cpu_request_milli = 1000;
    instance.spec.migration_policy = MigrationPolicy::PreferSafe;
    instance.status = Some(InstanceStatus {
        state: Some(InstanceState::Running),
        claim: Some(Claim { node: node.into(), pod_uid: format!("p-{name}"), epoch: 1, ..Claim::default() }),
        ..InstanceStatus::default()
    });
    instance
}

fn launcher(instance: &Instance, node: &str) -> Pod {
    let name = instance.metadata.name.clone().unwrap();
    let mut pod = holdfast_controllers::engine::instance::launcher_pod::build(instance, "1");
    pod.metadata.uid = Some(format!("p-{name}"));
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    pod.status = serde_json::from_value(json!({"phase": "Running"})).unwrap();
    pod
}

/// VMs on n1; n2 and n3 with room for a lot.
fn observed(vms: Vec<Instance>) -> Observed {
    let mut o = Observed { node: "n1".into(), ..Observed::default() };
    for name in ["n1", "n2", "n3"] {
        o.objects.nodes.push(node(name, "16Gi", json!({})));
    }
    for vm in vms {
        o.objects.pods.push(launcher(&vm, "n1"));
        o.instances.push(vm);
    }
    o
}

fn moves(plan: &DrainPlan) -> Vec<(&str, &str)> {
    plan.moves.iter().map(|m| (m.name.as_str(), m.target.as_str())).collect()
}

#[test]
fn moves_come_one_after_another_and_fill_the_emptier_node() {
    let vms = ["c", "a", "b"].map(|name| instance(name, "n1"));
    let mut o = observed(vms.into());
    // n2 carries something already.
    let other = instance("other", "n2");
    o.objects.pods.push(launcher(&other, "n2"));
    o.instances.push(other);
    let plan = plan(&o);
    assert!(plan.goes_through && plan.blocked.is_empty());
    assert_eq!(moves(&plan)[0], ("a", "n3"));
    assert_eq!(plan.moves.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let each = GIB as f64 / BANDWIDTH_BYTES_S as f64 + OVERHEAD_S;
    for (n, planned) in [0.0, 1.0, 2.0].into_iter().zip(&plan.moves) {
        assert!((planned.starts_after_seconds - n * each).abs() < 1e-6, "{planned:?}");
    }
    assert!((plan.total_seconds - 3.0 * each).abs() < 1e-6);
    assert_eq!((plan.limits.cluster, plan.limits.taken), (3, 0));
}

#[test]
fn nothing_leaves_a_node_that_does_not_answer() {
    let mut o = observed(vec![instance("a", "n1")]);
    let here = o.objects.nodes.iter_mut().find(|node| node.metadata.name.as_deref() == Some("n1")).unwrap();
    here.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
    let plan = plan(&o);
    assert!(!plan.goes_through && plan.moves.is_empty());
    assert_eq!((plan.blocked[0].name.as_str(), plan.blocked[0].reason.as_str()), ("a", "NodeUnresponsive"));
}

#[test]
fn what_blocks_is_named_with_its_cure() {
    type Change = fn(&mut Observed);
    fn vm(o: &mut Observed) -> &mut Instance {
        &mut o.instances[0]
    }
    fn refit(o: &mut Observed) {
        o.objects.pods[0] = launcher(&o.instances[0], "n1");
    }
    let cases: [(&str, Change, &str, &str, &str); 9] = [
        (
            "a disk of its node",
            |o| vm(o).spec.hardware.disks = vec![Disk { claim: "c".into(), ..Disk::default() }],
            "NotMigratable",
            "the claim c",
            "stop it: d8 v stop web -n shop",
        ),
        (
            "too big",
            |o| {
                vm(o).spec.resources.memory_bytes = 20 * GIB;
                refit(o);
            },
            "NoNode",
            "2 Insufficient memory",
            "free 4096 MiB of memory on node n2",
        ),
        (
            "the others are cordoned",
            |o| {
                o.objects.nodes[1] = node("n2", "16Gi", json!({"unschedulable": true}));
                o.objects.nodes[2] = node("n3", "16Gi", json!({"unschedulable": true}));
            },
            "NoNode",
            "3 node(s) were unschedulable",
            "uncordon node n3",
        ),
        (
            "tainted",
            |o| {
                let taint = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
                o.objects.nodes[1] = node("n2", "16Gi", taint.clone());
                o.objects.nodes[2] = node("n3", "16Gi", taint);
            },
            "NoNode",
            "2 node(s) had untolerated taint(s)",
            "remove the taint gpu=yes:NoSchedule from node n2, or let the VM tolerate it",
        ),
        (
            "bound by its selector",
            |o| {
                vm(o).spec.placement.node_selector = [("zone".to_owned(), "a".to_owned())].into();
                refit(o);
            },
            "NoNode",
            "2 node(s) didn't match Pod's node affinity/selector",
            "label the node so",
        ),
        (
            "kept apart from VMs on both",
            |o| {
                let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
                vm(o).spec.placement.affinity = serde_json::from_value(affinity).unwrap();
                for node in ["n2", "n3"] {
                    let mut pod = Pod::default();
                    pod.metadata.namespace = Some("shop".into());
                    pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
                    pod.spec = serde_json::from_value(json!({"nodeName": node, "containers": []})).unwrap();
                    o.objects.pods.push(pod);
                }
            },
            "NoNode",
            "2 node(s) didn't match pod anti-affinity rules",
            "move the VMs it keeps away off node n3",
        ),
        (
            "paused",
            |o| vm(o).status.as_mut().unwrap().state = Some(InstanceState::Paused),
            "NotRunning",
            "paused",
            "resume it",
        ),
        (
            "writes faster than the link",
            |o| o.dirty = [("i-web".to_owned(), BANDWIDTH_BYTES_S)].into(),
            "NotConverging",
            "625 MB",
            "PreferForced",
        ),
        (
            "moved by somebody else",
            |o| vm(o).spec.eviction_rule = EvictionRule::BlockAndMark,
            "External",
            "somebody else",
            "have that one move it",
        ),
    ];
    for (what, change, reason, message, cure) in cases {
        let mut o = observed(vec![instance("web", "n1")]);
        change(&mut o);
        let plan = plan(&o);
        assert!(!plan.goes_through && plan.moves.is_empty(), "{what}: {plan:?}");
        let [blocked] = plan.blocked.as_slice() else { panic!("{what}: {plan:?}") };
        assert_eq!(blocked.reason, reason, "{what}");
        assert!(blocked.message.contains(message), "{what}: {}", blocked.message);
        assert!(blocked.cures.iter().any(|c| c.contains(cure)), "{what}: {:?}", blocked.cures);
    }
}

#[test]
fn vms_that_may_stop_do_not_block() {
    for (rule, shared) in [(EvictionRule::Stop, true), (EvictionRule::MoveOrStop, false)] {
        let mut vm = instance("web", "n1");
        vm.spec.eviction_rule = rule;
        vm.spec.hardware.disks = vec![Disk { shared, ..Disk::default() }];
        let plan = plan(&observed(vec![vm]));
        assert!(plan.goes_through, "{plan:?}");
        assert_eq!((plan.moves.len(), plan.stops.len()), (0, 1), "{rule:?}");
    }
}

#[test]
fn a_guest_that_writes_takes_longer_and_one_that_may_be_slowed_arrives() {
    let seconds = |dirty: i64, policy: MigrationPolicy| {
        let mut vm = instance("web", "n1");
        vm.spec.migration_policy = policy;
        let mut o = observed(vec![vm]);
        o.dirty = [("i-web".to_owned(), dirty)].into();
        let plan = plan(&o);
        assert!(plan.goes_through, "{plan:?}");
        plan.total_seconds - OVERHEAD_S
    };
    let idle = seconds(0, MigrationPolicy::PreferSafe);
    let half = seconds(BANDWIDTH_BYTES_S / 2, MigrationPolicy::PreferSafe);
    assert!((half - 2.0 * idle).abs() < 1e-6, "{idle} {half}");
    let forced = seconds(BANDWIDTH_BYTES_S * 2, MigrationPolicy::PreferForced);
    assert!((forced - 2.0 * idle).abs() < 1e-6, "{idle} {forced}");
}

#[test]
fn a_vm_that_follows_another_comes_after_it() {
    // `first` may go anywhere, `a-second` only to where the label of `first` is.
    let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {label::VM_NAME: "first"}}}]}});
    let first = instance("first", "n1");
    let mut second = instance("a-second", "n1");
    second.spec.placement.affinity = serde_json::from_value(affinity).unwrap();
    let o = observed(vec![first, second]);
    assert_eq!(o.objects.pods[0].metadata.labels.as_ref().unwrap()[label::VM_NAME], "first");
    let plan = plan(&o);
    let order: Vec<&str> = plan.moves.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(order, ["first", "a-second"], "{plan:?}");
    assert_eq!(plan.moves[0].target, plan.moves[1].target);
    assert!(plan.moves[1].notes[0].contains("before another VM has moved"));
}

#[test]
fn moves_under_way_come_first_and_those_of_others_count() {
    let mut o = observed(vec![instance("a", "n1"), instance("z", "n1")]);
    let active = |vm: &str, from: &str, to: &str| {
        let mut migration = Migration::default();
        migration.metadata.uid = Some(format!("m-{vm}"));
        migration.spec.instance.uid = format!("i-{vm}");
        migration.status = Some(MigrationStatus {
            state: Some(MigrationState::Copying),
            source: Some(MigrationSource { node: from.into(), ..MigrationSource::default() }),
            target: Some(MigrationTarget { node: to.into(), ..MigrationTarget::default() }),
            ..MigrationStatus::default()
        });
        migration
    };
    o.migrations = vec![active("z", "n1", "n2"), active("elsewhere", "n3", "n2")];
    let plan = plan(&o);
    assert_eq!(moves(&plan)[0], ("z", "n2"));
    assert!(plan.moves[0].under_way && !plan.moves[1].under_way);
    assert!(plan.moves[1].starts_after_seconds > 0.0);
    assert_eq!(plan.limits.taken, 1);
}
