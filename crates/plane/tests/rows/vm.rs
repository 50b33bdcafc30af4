//! Life cycle, run policies and operations: vm-lifecycle.md §13.1, §13.2.

use std::collections::BTreeMap;

use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use crate::world::{World, completed, condition, message, on_a_platform, spec};

fn pods_of(vm: &VirtualMachine) -> Vec<String> {
    vm.status.iter().flat_map(|status| &status.virtual_machine_pods).map(|pod| pod.name.clone()).collect()
}

async fn stop(world: &World, vm: &str, operation: &str) {
    world.operate(operation, "Stop", vm).await.unwrap();
    world.operation(operation, "Completed").await;
    world.phase(vm, VmPhase::Stopped).await;
}

// VL-L6, VL-L7
#[test]
fn a_vm_that_no_node_can_take_is_starting_and_says_why() {
    on_a_platform(async |world| {
        world.disk("web", true).await;
        world.vm("web", json!({"nodeSelector": {"zone": "blue"}})).await;
        world.disk("huge", true).await;
        world.vm("huge", json!({"memory": {"size": "64Gi"}})).await;
        for (name, why) in [("web", "node(s) didn't match"), ("huge", "Insufficient memory")] {
            let says = |vm: Option<&VirtualMachine>| {
                vm.is_some_and(|vm| {
                    condition(vm, "Running") == "False/PodNotStarted" && message(vm, "Running").contains(why)
                })
            };
            let vm = world.until(name, "the scheduler's text", says).await.unwrap();
            assert_eq!(vm.status.unwrap().phase, Some(VmPhase::Starting));
        }
        stop(&world, "huge", "stop").await;
        world.label_node("n2", "zone", Some("blue")).await;
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n2"));
    });
}

// VL-L5, VL-I3, VL-I5
#[test]
fn provisioning_waits_for_a_secret_of_the_right_kind() {
    on_a_platform(async |world| {
        let secret = |name: &str, type_: &str, key: &str| {
            let body =
                json!({"metadata": {"name": name}, "type": type_, "stringData": {key: "#cloud-config"}});
            serde_json::from_value::<k8s_openapi::api::core::v1::Secret>(body).unwrap()
        };
        let cloud_init = "provisioning.virtualization.deckhouse.io/cloud-init";
        let api = world.api::<k8s_openapi::api::core::v1::Secret>();
        let params = kube::api::PostParams::default();
        api.create(&params, &secret("opaque", "Opaque", "userData")).await.unwrap();
        api.create(&params, &secret("foo", cloud_init, "foo")).await.unwrap();
        for (name, secret_name) in [("a", "missing"), ("b", "opaque"), ("c", "foo")] {
            world.disk(name, true).await;
            let reference = json!({"kind": "Secret", "name": secret_name});
            world.vm(name, json!({"provisioning": {"type": "UserDataRef", "userDataRef": reference}})).await;
        }
        for (name, text) in [("a", "not found"), ("b", "Unexpected secret type"), ("c", "Invalid secret")] {
            let vm = world.condition(name, "ProvisioningReady", "False/ProvisioningNotReady").await;
            assert!(message(&vm, "ProvisioningReady").contains(text), "{vm:?}");
            assert_eq!(vm.status.unwrap().phase, Some(VmPhase::Pending));
        }
        api.create(&params, &secret("missing", cloud_init, "userData")).await.unwrap();
        world.phase("a", VmPhase::Running).await;
    });
}

// VL-L16
#[test]
fn a_vm_stays_terminating_while_its_pod_exists() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().stubborn.insert("web".to_owned());
        world.running("web", None, json!({"terminationGracePeriodSeconds": 600})).await;
        world.delete::<VirtualMachine>("web").await;
        for _ in 0..59 {
            world.pass(10).await;
            let vm = world.get::<VirtualMachine>("web").await.expect("it waits");
            assert_eq!(vm.status.as_ref().unwrap().phase, Some(VmPhase::Terminating));
            assert!(vm.finalizers().contains(&"virtualization.deckhouse.io/vm-cleanup".to_owned()));
            assert_eq!(world.launchers("web").await.len(), 1);
        }
        world.until::<VirtualMachine>("web", "gone", |vm| vm.is_none()).await;
        assert!(world.launchers("web").await.is_empty());
    });
}

// VL-L17
#[test]
fn five_phase_changes_are_remembered() {
    on_a_platform(async |world| {
        world.running("web", None, json!({})).await;
        for n in 0..2 {
            stop(&world, "web", &format!("stop-{n}")).await;
            world.operate(&format!("start-{n}"), "Start", "web").await.unwrap();
            world.phase("web", VmPhase::Running).await;
        }
        let stats = world.get::<VirtualMachine>("web").await.unwrap().status.unwrap().stats.unwrap();
        let phases: Vec<_> = stats.phases_transitions.iter().map(|t| t.phase).collect();
        use VmPhase::{Running, Starting, Stopped, Stopping};
        assert_eq!(phases, [Running, Stopping, Stopped, Starting, Running]);
        assert!(stats.phases_transitions.is_sorted_by_key(|t| t.timestamp.0));
    });
}

// VL-L19
#[test]
fn without_fencing_a_dead_node_starts_nothing_elsewhere() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        let pod = world.launchers("web").await[0].name_any();
        world.nodes.wishes.borrow_mut().silent.insert("n1".to_owned());
        for _ in 0..60 {
            world.pass(10).await;
            let names: Vec<_> = world.launchers("web").await.iter().map(|pod| pod.name_any()).collect();
            assert_eq!(names, std::slice::from_ref(&pod), "no second launcher pod");
            let status = world.get::<VirtualMachine>("web").await.unwrap().status.unwrap();
            assert_eq!(status.node_name.as_deref(), Some("n1"));
        }
    });
}

// VL-L22
#[test]
fn starts_that_fail_are_tried_again_with_growing_gaps() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().failing.insert("web".to_owned());
        world.disk("web", true).await;
        world.vm("web", json!({})).await;
        world.phase("web", VmPhase::Pending).await;
        let mut pending = 0;
        // When each start was tried, by the number of failures before it.
        let mut starts: BTreeMap<i32, i64> = BTreeMap::new();
        while starts.len() < 7 {
            world.pass(4).await;
            let status = world.instance("web").await.status.unwrap_or_default();
            let Some(failures) = status.start_failures else { continue };
            starts.insert(failures.count, failures.retry_at.unwrap().0.as_second());
            let vm = world.get::<VirtualMachine>("web").await.unwrap();
            if vm.status.as_ref().unwrap().phase == Some(VmPhase::Pending) {
                assert_eq!(condition(&vm, "Running"), "False/InternalVirtualMachineError");
                pending += 1;
            }
        }
        assert!(pending > 100, "Pending nearly all the time: {pending}");
        let times: Vec<i64> = starts.into_values().collect();
        let gaps: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted() && gaps[0] >= 40 && gaps[5] > 250 && gaps[5] <= 305, "{gaps:?}");
    });
}

// VL-L23
#[test]
fn labels_of_the_platform_are_not_for_users() {
    on_a_platform(async |world| {
        let labels = json!({"foo.virtualization.deckhouse.io/x": "1"});
        let refused = world
            .try_create::<VirtualMachine>(json!({"name": "web", "labels": labels}), spec("web", json!({})))
            .await;
        assert!(refused.unwrap_err().contains("virtualization.deckhouse.io"));
    });
}

// VL-L24, VL-C21, VL-X4
#[test]
fn labels_and_annotations_reach_the_running_pod() {
    on_a_platform(async |world| {
        world.running("web", None, json!({"terminationGracePeriodSeconds": 60})).await;
        let pod = world.launchers("web").await.remove(0);
        assert_eq!(pod.spec.as_ref().unwrap().termination_grace_period_seconds, Some(90));
        let meta = json!({"labels": {"tier": "front"}, "annotations": {"note": "x"}});
        world.patch::<VirtualMachine>("web", json!({ "metadata": meta })).await.unwrap();
        let has = |pod: Option<&Pod>| {
            pod.is_some_and(|pod| {
                pod.labels().get("tier").is_some_and(|v| v == "front")
                    && pod.annotations().get("note").is_some_and(|v| v == "x")
            })
        };
        world.until(&pod.name_any(), "labelled", has).await;
        let status = world.get::<VirtualMachine>("web").await.unwrap().status.unwrap();
        assert!(status.restart_awaiting_changes.is_empty());
        assert_eq!(status.phase, Some(VmPhase::Running));
    });
}

// VL-L25
#[test]
fn a_stopped_vm_shows_what_its_spec_says() {
    on_a_platform(async |world| {
        world.running("web", None, json!({"cpu": {"cores": 20}, "memory": {"size": "1Gi"}})).await;
        stop(&world, "web", "stop").await;
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        let topology = vm.status.as_ref().unwrap().resources.as_ref().unwrap().cpu.topology.unwrap();
        assert_eq!((topology.sockets, topology.cores_per_socket), (2, 10));
        assert_eq!(condition(&vm, "Migratable"), "False/VirtualMachineNonMigratable");
        assert_eq!(condition(&vm, "AgentReady"), "");
    });
}

// VL-P7, VL-P25
#[test]
fn a_stopped_vm_and_a_finished_operation_stay_as_they_are() {
    on_a_platform(async |mut world| {
        world.running("web", None, json!({})).await;
        stop(&world, "web", "stop").await;
        let before = world.operation("stop", "Completed").await;
        world.restart_controllers().await;
        world.pass(300).await;
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        assert_eq!(vm.status.unwrap().phase, Some(VmPhase::Stopped));
        assert!(world.launchers("web").await.is_empty());
        let after = world.get::<VirtualMachineOperation>("stop").await.unwrap();
        assert_eq!(after.status, before.status);
        assert_eq!(world.operations("").await.len(), 1);
    });
}

// VL-P15, VL-P22
#[test]
fn one_operation_at_a_time_and_a_finished_one_is_just_deleted() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().stubborn.insert("web".to_owned());
        world.running("web", None, json!({"terminationGracePeriodSeconds": 30})).await;
        world.operate("restart", "Restart", "web").await.unwrap();
        world.operation("restart", "InProgress").await;
        let refused = world.operate("stop", "Stop", "web").await.unwrap_err();
        assert!(refused.contains("\"restart\""), "{refused}");
        world.operation("restart", "Completed").await;
        let pods = pods_of(&world.phase("web", VmPhase::Running).await);
        world.delete::<VirtualMachineOperation>("restart").await;
        assert!(world.get::<VirtualMachineOperation>("restart").await.is_none(), "at once");
        world.pass(60).await;
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        assert_eq!(vm.status.as_ref().unwrap().phase, Some(VmPhase::Running));
        assert_eq!(pods_of(&vm), pods);
    });
}

// VL-P16
#[test]
fn always_off_stops_a_running_vm_gracefully() {
    on_a_platform(async |world| {
        world.nodes.wishes.borrow_mut().stubborn.insert("web".to_owned());
        world.running("web", None, json!({"terminationGracePeriodSeconds": 20})).await;
        world.patch::<VirtualMachine>("web", json!({"spec": {"runPolicy": "AlwaysOff"}})).await.unwrap();
        world.phase("web", VmPhase::Stopping).await;
        world.pass(15).await;
        world.phase("web", VmPhase::Stopping).await;
        world.phase("web", VmPhase::Stopped).await;
        let events = world.events("web").await;
        assert!(events.iter().any(|e| e.contains("Stopped:") && e.contains("AlwaysOff")), "{events:?}");
    });
}

// VL-P20
#[test]
fn a_running_manual_vm_that_becomes_always_on_keeps_running() {
    on_a_platform(async |world| {
        world.disk("web", true).await;
        world.vm("web", json!({"runPolicy": "Manual"})).await;
        world.phase("web", VmPhase::Stopped).await;
        world.operate("start", "Start", "web").await.unwrap();
        let pods = pods_of(&world.phase("web", VmPhase::Running).await);
        world.patch::<VirtualMachine>("web", json!({"spec": {"runPolicy": "AlwaysOn"}})).await.unwrap();
        world.pass(120).await;
        let vm = world.get::<VirtualMachine>("web").await.unwrap();
        let status = vm.status.clone().unwrap();
        assert_eq!((status.phase, pods_of(&vm)), (Some(VmPhase::Running), pods));
        assert!(status.restart_awaiting_changes.is_empty());
    });
}

// VL-L12, VL-P24
#[test]
fn a_manual_vm_stays_off_after_a_crash_and_comes_back_after_a_reboot() {
    on_a_platform(async |world| {
        world.disk("web", true).await;
        world.vm("web", json!({"runPolicy": "Manual"})).await;
        world.phase("web", VmPhase::Stopped).await;
        world.operate("start", "Start", "web").await.unwrap();
        let first = pods_of(&world.phase("web", VmPhase::Running).await);
        world.nodes.end("web", "GuestReset").await;
        let another = |vm: Option<&VirtualMachine>| {
            vm.is_some_and(|vm| {
                vm.status.as_ref().unwrap().phase == Some(VmPhase::Running) && pods_of(vm) != first
            })
        };
        world.until("web", "running again", another).await;
        world.nodes.end("web", "Crash").await;
        world.phase("web", VmPhase::Stopped).await;
        world.pass(600).await;
        world.phase("web", VmPhase::Stopped).await;
        assert!(world.launchers("web").await.is_empty());
        world.operate("again", "Start", "web").await.unwrap();
        world.phase("web", VmPhase::Running).await;
    });
}

// VL-P21
#[test]
fn a_start_waits_for_the_disk() {
    on_a_platform(async |world| {
        world.running("web", None, json!({})).await;
        stop(&world, "web", "stop").await;
        let refs = json!([{"kind": "VirtualDisk", "name": "other"}]);
        world.patch::<VirtualMachine>("web", json!({"spec": {"blockDeviceRefs": refs}})).await.unwrap();
        world.operate("start", "Start", "web").await.unwrap();
        world.phase("web", VmPhase::Pending).await;
        let says = |op: Option<&VirtualMachineOperation>| {
            let conditions = op.into_iter().flat_map(|op| op.status.iter().flat_map(|s| &s.conditions));
            { conditions }.any(|c| c.message.contains("waiting to enter the Starting phase"))
        };
        let waiting = world.until("start", "says that it waits", says).await.unwrap();
        assert_eq!(waiting.status.as_ref().unwrap().phase.to_string(), "InProgress");
        world.disk("other", true).await;
        world.phase("web", VmPhase::Running).await;
        let done = world.operation("start", "Completed").await;
        assert_eq!(completed(&done), "True/OperationCompleted");
    });
}
