//! Resources, classes, placement: vm-lifecycle.md §13.3, §13.4, migration-and-maintenance.md §12.9.

use holdfast_api::vm::VmPhase;
use holdfast_api::vmclass::VmClassPhase;
use holdfast_api::{VirtualMachine, VirtualMachineClass};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::{World, condition, on_a_platform, spec};

impl World {
    async fn class(&self, name: &str, spec: Value) -> Result<VirtualMachineClass, String> {
        let object = json!({"apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": "VirtualMachineClass",
            "metadata": {"name": name}, "spec": spec});
        let object = serde_json::from_value(object).unwrap();
        let created = self.cluster::<VirtualMachineClass>().create(&PostParams::default(), &object).await;
        created.map_err(|error| error.to_string())
    }

    async fn edit_class(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.cluster::<VirtualMachineClass>().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn class_in(&self, name: &str, phase: VmClassPhase) -> VirtualMachineClass {
        for _ in 0..6000 {
            let class = self.cluster::<VirtualMachineClass>().get(name).await.unwrap();
            if class.status.as_ref().is_some_and(|status| status.phase == phase) {
                return class;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("class {name} does not become {phase:?}");
    }
}

// VL-U3, VL-U4
#[test]
fn a_fraction_of_cores_is_what_the_pod_requests() {
    on_a_platform(async |world| {
        for (name, cores, fraction, request) in [("a", 4, "20%", "800m"), ("b", 3, "5%", "150m")] {
            let cpu = json!({"cores": cores, "coreFraction": fraction});
            let vm = world.running(name, None, json!({ "cpu": cpu })).await;
            let pod = world.launchers(name).await.remove(0);
            let resources = pod.spec.unwrap().containers[0].resources.clone().unwrap();
            assert_eq!(resources.requests.unwrap()["cpu"].0, request);
            let limit = resources.limits.unwrap()["cpu"].0.clone();
            assert!(limit == cores.to_string() || limit == format!("{cores}000m"), "{limit}");
            let shown = vm.status.unwrap().resources.unwrap().cpu;
            assert_eq!(shown.requested_cores.unwrap().0, request);
            assert_eq!(shown.runtime_overhead.unwrap().0, "0");
        }
    });
}

fn policy() -> Value {
    json!([{"cores": {"min": 1, "max": 4}, "coreFractions": [10, 50, 100],
        "memory": {"min": "256Mi", "max": "8Gi"}}])
}

// VL-K3, VL-K4, VL-K5
#[test]
fn sizing_policies_are_kept() {
    on_a_platform(async |world| {
        world.class("sized", json!({"cpu": {"type": "Host"}, "sizingPolicies": policy()})).await.unwrap();
        let of = |cores: i32, fraction: &str| {
            let cpu = json!({"cores": cores, "coreFraction": fraction});
            spec("web", json!({"virtualMachineClassName": "sized", "cpu": cpu}))
        };
        let refused = world.try_create::<VirtualMachine>(json!({"name": "web"}), of(5, "100%")).await;
        let refused = refused.unwrap_err();
        assert!(refused.contains("do not match any sizing policies"), "{refused}");
        let crossing = json!([{"cores": {"min": 1, "max": 4}}, {"cores": {"min": 4, "max": 8}}]);
        let crossing =
            world.class("crossing", json!({"cpu": {"type": "Host"}, "sizingPolicies": crossing})).await;
        assert!(crossing.unwrap_err().contains("size policy cpu crosses"));
        world.disk("web", true).await;
        world.try_create::<VirtualMachine>(json!({"name": "web"}), of(2, "10%")).await.unwrap();
        world.phase("web", VmPhase::Running).await;
        let mut narrower = policy();
        narrower[0]["coreFractions"] = json!([50, 100]);
        world.edit_class("sized", json!({ "sizingPolicies": narrower })).await;
        world.condition("web", "SizingPolicyMatched", "False/SizingPolicyNotMatched").await;
        let edit = world.patch::<VirtualMachine>("web", json!({"spec": {"runPolicy": "Manual"}})).await;
        assert!(edit.is_err(), "an unrelated edit");
        world.pass(60).await;
        world.phase("web", VmPhase::Running).await;
    });
}

// VL-K6, VL-K7, VL-K9
#[test]
fn a_class_knows_its_nodes_and_its_users() {
    on_a_platform(async |world| {
        let model = "cpu-model.node.virtualization.deckhouse.io/Icelake";
        for node in ["n3", "n1"] {
            world.label_node(node, model, Some("true")).await;
        }
        world.class("icelake", json!({"cpu": {"type": "Model", "model": "Icelake"}})).await.unwrap();
        let class = world.class_in("icelake", VmClassPhase::Ready).await;
        let status = class.status.unwrap();
        assert_eq!(status.available_nodes, ["n1", "n3"]);
        let most = serde_json::to_value(&status.max_allocatable_resources).unwrap();
        assert_eq!((&most["cpu"], &most["memory"]), (&json!("32"), &json!("16Gi")));
        world.class("alpha", json!({"cpu": {"type": "Model", "model": "Alpha"}})).await.unwrap();
        let class = world.class_in("alpha", VmClassPhase::Pending).await;
        let ready = class.status.unwrap().conditions.into_iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "NoSuitableNodesFound"));
        world.disk("waits", true).await;
        world.vm("waits", json!({"virtualMachineClassName": "alpha"})).await;
        world.running("web", None, json!({"virtualMachineClassName": "icelake"})).await;
        let classes = world.cluster::<VirtualMachineClass>();
        classes.delete("icelake", &DeleteParams::default()).await.unwrap();
        let class = world.class_in("icelake", VmClassPhase::Terminating).await;
        let used = class.status.unwrap().conditions.into_iter().find(|c| c.type_ == "InUse").unwrap();
        assert_eq!(used.status, "True");
        world.pass(120).await;
        assert!(classes.get_opt("icelake").await.unwrap().is_some(), "web uses it");
        world.delete::<VirtualMachine>("web").await;
        world.until::<VirtualMachine>("web", "gone", |vm| vm.is_none()).await;
        world.pass(10).await;
        assert!(classes.get_opt("icelake").await.unwrap().is_none());
        let waits = world.phase("waits", VmPhase::Pending).await;
        assert_eq!(condition(&waits, "VirtualMachineClassReady"), "False/VirtualMachineClassNotReady");
    });
}

// VL-K10, VL-K11
#[test]
fn the_class_adds_its_placement_to_the_pod() {
    on_a_platform(async |world| {
        for node in ["n1", "n2", "n3"] {
            world.label_node(node, "a", Some("2")).await;
            world.label_node(node, "e", Some("x")).await;
            world.label_node(node, "t", Some("1")).await;
        }
        let expression = json!([{"key": "e", "operator": "Exists"}]);
        let selector = json!({"matchLabels": {"a": "2"}, "matchExpressions": expression});
        world.class("placed", json!({"cpu": {"type": "Host"}, "nodeSelector": selector})).await.unwrap();
        let term = |key: &str| json!({"matchExpressions": [{"key": key, "operator": "Exists"}]});
        let required = json!({"nodeSelectorTerms": [term("t"), term("u")]});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        let change =
            json!({"virtualMachineClassName": "placed", "nodeSelector": {"a": "1"}, "affinity": affinity});
        let vm = world.running("web", None, change.clone()).await;
        let pod = world.launchers("web").await.remove(0).spec.unwrap();
        assert_eq!(pod.node_selector.unwrap()["a"], "2");
        let node = pod.affinity.unwrap().node_affinity.unwrap();
        let terms = node.required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
        let keys: Vec<Vec<String>> = terms
            .into_iter()
            .map(|term| term.match_expressions.unwrap().into_iter().map(|rule| rule.key).collect())
            .collect();
        assert_eq!(keys, [["t", "e"], ["u", "e"]]);
        assert_eq!(serde_json::to_value(&vm.spec).unwrap()["affinity"], change["affinity"]);
        assert_eq!(vm.spec.node_selector.unwrap()["a"], "1");
    });
}

async fn colours(world: &World) {
    world.label_node("n1", "colour", Some("green")).await;
    world.label_node("n2", "colour", Some("blue")).await;
}

async fn select(world: &World, vm: &str, colour: &str) {
    world.patch::<VirtualMachine>(vm, json!({"spec": {"nodeSelector": {"colour": colour}}})).await.unwrap();
}

async fn on_node(world: &World, vm: &str, node: &str) -> VirtualMachine {
    let is = |vm: Option<&VirtualMachine>| {
        vm.and_then(|vm| vm.status.as_ref()).is_some_and(|status| {
            status.node_name.as_deref() == Some(node) && status.phase == Some(VmPhase::Running)
        })
    };
    world.until(vm, node, is).await.unwrap()
}

const RESTART: &str = "AwaitingRestartToApplyConfiguration";

// VL-C10, VL-C11, MM-C1, MM-C2
#[test]
fn a_changed_selector_moves_the_vm_only_if_its_node_does_not_fit() {
    on_a_platform(async |world| {
        colours(&world).await;
        world.running("web", Some("n1"), json!({})).await;
        let started = world.instance("web").await.status.unwrap().runtime.unwrap().started_at;
        select(&world, "web", "green").await;
        world.pass(300).await;
        assert!(world.operations("").await.is_empty());
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        assert!(vm.status.as_ref().unwrap().restart_awaiting_changes.is_empty());
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
        select(&world, "web", "blue").await;
        let vm = on_node(&world, "web", "n2").await;
        assert_eq!(condition(&vm, RESTART), "False/NoRestartRequired");
        let all = world.operations("").await;
        assert_eq!(all.len(), 1);
        assert!(all[0].name_any().starts_with("nodeplacement-update-"));
        assert_eq!(all[0].spec.type_.to_string(), "Evict");
        let instance = world.instance("web").await;
        assert_eq!((instance.spec.epoch, instance.status.unwrap().runtime.unwrap().started_at), (1, started));
    });
}

// MM-C3
#[test]
fn a_placement_that_no_node_fits_is_tried_again_when_one_does() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        select(&world, "web", "blue").await;
        let mut made = world.operations("nodeplacement-update-").await;
        while made.is_empty() {
            world.pass(1).await;
            made = world.operations("nodeplacement-update-").await;
        }
        let failed = world.operation(&made[0].name_any(), "Failed").await;
        assert_eq!(crate::world::completed(&failed), "False/TargetUnschedulable");
        world.pass(1200).await;
        assert_eq!(world.operations("").await.len(), 1, "not repeated while none fits");
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
        world.label_node("n3", "colour", Some("blue")).await;
        on_node(&world, "web", "n3").await;
    });
}

// MM-C4, MM-C5, MM-C8
#[test]
fn required_rules_about_others_move_a_vm_and_preferred_ones_do_not() {
    on_a_platform(async |world| {
        colours(&world).await;
        world.running("w", Some("n1"), json!({})).await;
        world.patch::<VirtualMachine>("w", json!({"metadata": {"labels": {"app": "w"}}})).await.unwrap();
        world.running("v", Some("n1"), json!({})).await;
        let term =
            json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "w"}}});
        let preferred = json!({"weight": 1, "preference": {"matchExpressions":
            [{"key": "colour", "operator": "In", "values": ["blue"]}]}});
        let node = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}});
        world.patch::<VirtualMachine>("v", json!({"spec": {"affinity": node}})).await.unwrap();
        world.pass(300).await;
        assert!(world.operations("").await.is_empty(), "preferred");
        let away = json!({"virtualMachineAndPodAntiAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
        world.patch::<VirtualMachine>("v", json!({"spec": {"affinity": away}})).await.unwrap();
        let moved = |vm: Option<&VirtualMachine>| {
            vm.and_then(|vm| vm.status.as_ref()?.node_name.as_deref()).is_some_and(|node| node != "n1")
        };
        world.until::<VirtualMachine>("v", "away from w", moved).await;
        world.phase("v", VmPhase::Running).await;
        assert_eq!(world.operations("").await.len(), 1);
        // Two changes within a second: the last one counts in the end.
        select(&world, "w", "blue").await;
        select(&world, "w", "green").await;
        for _ in 0..200 {
            world.pass(2).await;
            let open = world.operations("").await;
            let open = open.iter().filter(|op| !op.status.as_ref().is_some_and(|s| s.phase.is_final()));
            assert!(open.count() <= 1);
        }
        on_node(&world, "w", "n1").await;
        assert!(world.operations("").await.len() <= 3);
    });
}

// VL-C12, MM-C6
#[test]
fn a_vm_that_cannot_move_waits_for_a_restart() {
    on_a_platform(async |world| {
        colours(&world).await;
        world.only("n1").await;
        world.disk("web", false).await;
        world.vm("web", json!({})).await;
        on_node(&world, "web", "n1").await;
        world.cordon_all(false).await;
        select(&world, "web", "blue").await;
        let vm = world.condition("web", RESTART, "True/ChangesPendingRestart").await;
        assert_eq!(condition(&vm, "ConfigurationApplied"), "False/ConfigurationNotApplied");
        world.pass(600).await;
        assert!(world.operations("").await.is_empty());
        on_node(&world, "web", "n1").await;
        let events = world.events("web").await;
        assert!(events.iter().any(|event| event.contains("NodePlacementNotMatched")), "{events:?}");
    });
}

// VL-C18
#[test]
fn a_changed_class_moves_its_vms() {
    on_a_platform(async |world| {
        colours(&world).await;
        let colour = |colour: &str| json!({"nodeSelector": {"matchLabels": {"colour": colour}}});
        let mut class = colour("green");
        class["cpu"] = json!({"type": "Host"});
        world.class("coloured", class).await.unwrap();
        world.class_in("coloured", VmClassPhase::Ready).await;
        world.running("web", None, json!({"virtualMachineClassName": "coloured"})).await;
        on_node(&world, "web", "n1").await;
        world.edit_class("coloured", colour("blue")).await;
        let vm = on_node(&world, "web", "n2").await;
        assert!(vm.status.as_ref().unwrap().restart_awaiting_changes.is_empty());
        assert_eq!(condition(&vm, RESTART), "False/NoRestartRequired");
        assert!(world.operations("").await[0].name_any().starts_with("nodeplacement-update-"));
        assert_eq!(world.instance("web").await.spec.epoch, 1);
    });
}

// VL-C22
#[test]
fn the_placement_manifests_of_the_users_guide() {
    on_a_platform(async |world| {
        world.label_node("n3", "disktype", Some("ssd")).await;
        world.running("a", Some("n1"), json!({})).await;
        let labels = json!({"metadata": {"labels": {"server": "database"}}});
        world.patch::<VirtualMachine>("a", labels).await.unwrap();
        let pod = world.launchers("a").await.remove(0).name_any();
        let labelled = |pod: Option<&k8s_openapi::api::core::v1::Pod>| {
            pod.is_some_and(|pod| pod.labels().contains_key("server"))
        };
        world.until(&pod, "labelled", labelled).await;
        let term = json!({"labelSelector": {"matchLabels": {"server": "database"}},
            "topologyKey": "kubernetes.io/hostname"});
        let disk = json!({"matchExpressions": [{"key": "disktype", "operator": "In", "values": ["ssd"]}]});
        let required = json!({"nodeSelectorTerms": [disk]});
        for (name, affinity) in [
            ("ssd", json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}})),
            (
                "near",
                json!({"virtualMachineAndPodAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
                    [{"weight": 1, "virtualMachineAndPodAffinityTerm": term}]}}),
            ),
            (
                "far",
                json!({"virtualMachineAndPodAntiAffinity":
                    {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}),
            ),
        ] {
            let vm = world.running(name, None, json!({ "affinity": affinity })).await;
            let node = vm.status.unwrap().node_name.unwrap();
            match name {
                "ssd" => assert_eq!(node, "n3"),
                "near" => assert_eq!(node, "n1"),
                _ => assert_ne!(node, "n1"),
            }
        }
    });
}
