//! Moves: migration-and-maintenance.md §12.1, §12.2, §12.4, §12.5.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_api::engine::MigrationState;
use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualDisk, VirtualMachine, VirtualMachineOperation};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use crate::nodes::Moves;
use crate::world::{World, completed, condition, message, on_a_platform};

/// Unfinished moves with a slot: (source, target if known).
async fn under_way(world: &World) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    for migration in world.migrations().await {
        let status = migration.status.unwrap_or_default();
        let state = status.state.unwrap_or_default();
        if state >= MigrationState::Placing && !state.is_final() {
            let target = status.target.map(|target| target.node).filter(|node| !node.is_empty());
            all.push((status.source.unwrap_or_default().node, target));
        }
    }
    all
}

/// Watches the limits until all operations named are Completed.
async fn watch_limits(world: &World, names: &[String], limit: usize) {
    loop {
        let now = under_way(world).await;
        assert!(now.len() <= limit, "{now:?}");
        let sources: BTreeSet<_> = now.iter().map(|(source, _)| source).collect();
        assert_eq!(sources.len(), now.len(), "one a source: {now:?}");
        let targets: Vec<_> = now.iter().filter_map(|(_, target)| target.as_ref()).collect();
        assert_eq!(targets.iter().collect::<BTreeSet<_>>().len(), targets.len(), "one a target: {now:?}");
        let mut with_target: BTreeMap<String, usize> = BTreeMap::new();
        for pod in world.api::<Pod>().list(&Default::default()).await.unwrap() {
            let target = pod.labels().contains_key(holdfast_api::names::label::MIGRATION_UID);
            let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
            if target && phase == "Pending" {
                *with_target.entry(pod.name_any()).or_default() += 1;
            }
        }
        assert!(with_target.len() <= limit);
        let operations = world.operations("").await;
        let done = |name: &String| {
            let is = |op: &&VirtualMachineOperation| op.name_any() == *name;
            let op = operations.iter().find(is).unwrap();
            op.status.as_ref().is_some_and(|s| s.phase.to_string() == "Completed")
        };
        if names.iter().all(done) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(70)).await;
    }
}

// MM-O3, MM-O13, MM-S5, MM-O24, MM-O26
#[test]
fn a_move_goes_elsewhere_and_leaves_a_record() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.cordon("n3", true).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("go", "Evict", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        // The list of pods follows.
        world.pass(1).await;
        let vm = world.phase("web", VmPhase::Migrating).await;
        let pods = vm.status.clone().unwrap().virtual_machine_pods;
        let active: Vec<bool> = pods.iter().map(|pod| pod.active).collect();
        assert_eq!(active.iter().filter(|active| **active).count(), 1);
        assert_eq!(pods.len(), 2, "{pods:?}");
        let source = vm.status.unwrap().migration_state.unwrap().source.unwrap();
        assert_eq!(pods.iter().find(|pod| pod.active).map(|pod| &pod.name), source.pod.as_ref());
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        let done = world.operation("go", "Completed").await;
        assert_eq!(completed(&done), "True/Completed");
        let uid = "virtualization.deckhouse.io/virtual-machine-uid";
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(done.labels().get(uid), vm.metadata.uid.as_ref());
        let signal = done.status.unwrap().conditions.into_iter().find(|c| c.type_ == "SignalSent").unwrap();
        assert_eq!(signal.status, "True");
        let one = |vm: Option<&VirtualMachine>| {
            vm.and_then(|vm| vm.status.as_ref()).is_some_and(|s| s.virtual_machine_pods.len() == 1)
        };
        let status = world.until("web", "one pod", one).await.unwrap().status.unwrap();
        assert_eq!(status.node_name.as_deref(), Some("n2"), "never n1 itself");
        let state = status.migration_state.unwrap();
        let (source, target) = (state.source.unwrap(), state.target.unwrap());
        assert_eq!(serde_json::to_value(state.result).unwrap(), "Succeeded");
        assert!(source.node.is_some() && source.pod.is_some() && target.node.is_some());
        assert_eq!(target.pod.as_ref(), Some(&status.virtual_machine_pods[0].name));
        assert!(status.virtual_machine_pods[0].active);
        assert!(state.start_timestamp.is_some() && state.end_timestamp.is_some());
        // A failed one is not repeated.
        world.cordon_all(true).await;
        world.operate("nowhere", "Evict", "web").await.unwrap();
        let failed = world.operation("nowhere", "Failed").await;
        world.pass(600).await;
        assert_eq!(world.operation("nowhere", "Failed").await.status, failed.status);
        assert_eq!(world.operations("").await.len(), 2);
    });
}

// MM-O7, VL-D15
#[test]
fn a_disk_of_one_node_keeps_its_vm_there() {
    on_a_platform(async |world| {
        world.disk("web", false).await;
        world.vm("web", json!({})).await;
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(condition(&vm, "Migratable"), "False/VirtualMachineDisksNotMigratable");
        world.operate("go", "Evict", "web").await.unwrap();
        let failed = world.operation("go", "Failed").await;
        assert_eq!(completed(&failed), "False/OperationFailed");
        let text =
            &failed.status.unwrap().conditions.into_iter().find(|c| c.type_ == "Completed").unwrap().message;
        assert!(text.contains("not migratable"), "{text}");
    });
}

// MM-O8, MM-O9, MM-O10, MM-O11
#[test]
fn one_eviction_at_a_time() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        let (a, b) = tokio::join!(world.operate("a", "Evict", "web"), world.operate("b", "Evict", "web"));
        let accepted = [a.is_ok(), b.is_ok()];
        world.phase("web", VmPhase::Migrating).await;
        let again = world.operate("c", "Evict", "web").await;
        assert!(again.unwrap_err().contains("must finish first"));
        let first = if accepted[0] { "a" } else { "b" };
        let edit = world.patch::<VirtualMachineOperation>(first, json!({"spec": {"force": true}})).await;
        assert!(edit.unwrap_err().contains("immutable"));
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        let mut targets = BTreeSet::new();
        world.operation(first, "Completed").await;
        for pod in world.launchers("web").await {
            targets.extend(pod.labels().get(holdfast_api::names::label::MIGRATION_UID).cloned());
        }
        assert_eq!(targets.len(), 1);
        for operation in world.operations("").await {
            let phase = operation.status.as_ref().unwrap().phase.to_string();
            assert!(operation.name_any() == first || phase == "Failed", "{operation:?}");
        }
        let spec = json!({"type": "Start", "virtualMachineName": "web", "force": true});
        let forced = world.try_create::<VirtualMachineOperation>(json!({"name": "s"}), spec).await;
        assert!(forced.unwrap_err().contains("cannot be forced"));
    });
}

// MM-O15, MM-L1, MM-L12, MM-S13
#[test]
fn five_moves_from_one_node_go_one_by_one() {
    on_a_platform(async |world| {
        world.only("n1").await;
        for n in 0..5 {
            world.running(&format!("v{n}"), None, json!({})).await;
        }
        world.cordon_all(false).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        let mut names: Vec<String> = (0..5).map(|n| format!("go-{n}")).collect();
        for (n, name) in names.iter().enumerate() {
            world.operate(name, "Evict", &format!("v{n}")).await.unwrap();
        }
        world.pass(10).await;
        let queued = world.operation("go-4", "Pending").await;
        assert_eq!(completed(&queued), "False/MigrationPending");
        let conditions = queued.status.unwrap().conditions;
        let text = &conditions.iter().find(|c| c.type_ == "Completed").unwrap().message;
        assert!(text.contains("outbound slot on source node \"n1\""), "{text}");
        let vm = world.get::<VirtualMachine>("v4").await.unwrap();
        assert_eq!(vm.status.as_ref().unwrap().phase, Some(VmPhase::Running));
        assert_eq!(condition(&vm, "Migrating"), "False/Pending");
        // The last one is taken out of the queue.
        assert_eq!(world.launchers("v4").await.len(), 1);
        world.delete::<VirtualMachineOperation>("go-4").await;
        world.until::<VirtualMachineOperation>("go-4", "gone", |op| op.is_none()).await;
        assert_eq!(world.launchers("v4").await.len(), 1);
        names.pop();
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        world.operate("again", "Evict", "v4").await.unwrap();
        names.push("again".to_owned());
        watch_limits(&world, &names, 1).await;
    });
}

// MM-L2
#[test]
fn moves_of_three_nodes_share_the_cluster() {
    on_a_platform(async |world| {
        let mut names = Vec::new();
        for node in ["n1", "n2", "n3"] {
            world.only(node).await;
            for n in 0..3 {
                world.running(&format!("{node}-{n}"), None, json!({})).await;
            }
        }
        world.cordon_all(false).await;
        for node in ["n1", "n2", "n3"] {
            for n in 0..3 {
                let vm = format!("{node}-{n}");
                names.push(format!("go-{vm}"));
                world.operate(&format!("go-{vm}"), "Evict", &vm).await.unwrap();
            }
        }
        watch_limits(&world, &names, 3).await;
    });
}

// MM-L5, MM-L7, MM-L10
#[test]
fn a_busy_node_blocks_itself_only_and_slots_survive_the_controller() {
    on_a_platform(async |mut world| {
        world.running("stuck", Some("n1"), json!({})).await;
        world.running("next", Some("n1"), json!({})).await;
        world.running("other", Some("n2"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        let selector = json!({"nodeSelector": {"none": "such"}});
        let spec = json!({"type": "Migrate", "virtualMachineName": "stuck", "migrate": selector});
        world.create::<VirtualMachineOperation>("stuck", spec).await;
        let unschedulable = |op: Option<&VirtualMachineOperation>| {
            op.is_some_and(|op| completed(op) == "False/TargetUnschedulable")
        };
        world.until("stuck", "unschedulable", unschedulable).await;
        let began = holdfast_env::now();
        world.operate("next", "Evict", "next").await.unwrap();
        world.operate("other", "Evict", "other").await.unwrap();
        world.operation("other", "InProgress").await;
        world.restart_controllers().await;
        world.pass(60).await;
        assert_eq!(under_way(&world).await.len(), 2, "as before");
        world.operation("next", "Pending").await;
        world.operation("stuck", "Failed").await;
        world.operation("next", "InProgress").await;
        let waited = holdfast_env::now().duration_since(began).as_secs();
        assert!((290..330).contains(&waited), "{waited} s");
        assert!(world.launchers("stuck").await.len() <= 2);
    });
}

// MM-L8, MM-L9
#[test]
fn the_cluster_limit_counts_ready_nodes() {
    on_a_platform(async |world| {
        for node in ["n1", "n2", "n3"] {
            world.running(node, Some(node), json!({})).await;
        }
        world.nodes.wishes.borrow_mut().moves = Moves::Held;
        world.nodes.wishes.borrow_mut().silent.insert("n3".to_owned());
        world.pass(90).await;
        for vm in ["n1", "n2", "n3"] {
            world.operate(vm, "Evict", vm).await.unwrap();
        }
        let says = |op: Option<&VirtualMachineOperation>| {
            let conditions = op.into_iter().flat_map(|op| op.status.iter().flat_map(|s| &s.conditions));
            { conditions }.any(|c| c.message.contains("cluster limit of 2"))
        };
        world.until("n3", "two nodes", says).await;
        world.nodes.wishes.borrow_mut().silent.clear();
        world.cordon("n3", true).await;
        world.operation("n3", "InProgress").await;
        let now = under_way(&world).await;
        assert_eq!(now.len(), 3, "a cordon does not change the number: {now:?}");
    });
}

// MM-O22
#[test]
fn a_vm_that_moves_can_be_deleted() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("go", "Evict", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        world.delete::<VirtualMachine>("web").await;
        world.until::<VirtualMachine>("web", "gone", |vm| vm.is_none()).await;
        assert!(world.launchers("web").await.is_empty());
        assert!(world.get::<holdfast_api::engine::Instance>("web").await.is_none());
        let free = |disk: Option<&VirtualDisk>| {
            disk.and_then(|disk| disk.status.as_ref())
                .is_some_and(|status| status.attached_to_virtual_machines.is_empty())
        };
        world.until("web", "no leftover attachment", free).await;
    });
}

// MM-O23
#[test]
fn a_stop_overtakes_an_eviction() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("go", "Evict", "web").await.unwrap();
        world.phase("web", VmPhase::Migrating).await;
        world.operate("stop", "Stop", "web").await.unwrap();
        let superseded = world.operation("go", "Superseded").await;
        assert_eq!(completed(&superseded), "True/Superseded");
        world.operation("stop", "Completed").await;
        world.phase("web", VmPhase::Stopped).await;
        while !world.launchers("web").await.is_empty() {
            world.pass(1).await;
        }
    });
}

// MM-F1, MM-F25
#[test]
fn a_move_without_a_target_fails_and_the_vm_stays() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.cordon_all(true).await;
        let started = world.instance("web").await.status.unwrap().runtime.unwrap().started_at;
        world.operate("lost", "Evict", "web").await.unwrap();
        world.operation("lost", "InProgress").await;
        let target = loop {
            let pods = world.launchers("web").await;
            let is = |pod: &&Pod| pod.labels().contains_key(holdfast_api::names::label::MIGRATION_UID);
            if let Some(pod) = pods.iter().find(is) {
                break pod.name_any();
            }
            world.pass(1).await;
        };
        world.delete::<Pod>(&target).await;
        world.operation("lost", "Failed").await;
        let began = holdfast_env::now();
        world.operate("late", "Evict", "web").await.unwrap();
        let failed = world.operation("late", "Failed").await;
        assert_eq!(completed(&failed), "False/TargetUnschedulable");
        let waited = holdfast_env::now().duration_since(began).as_secs();
        assert!((299..310).contains(&waited), "{waited} s");
        let vm = world.phase("web", VmPhase::Running).await;
        assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
        let instance = world.instance("web").await;
        assert_eq!((instance.spec.epoch, instance.status.unwrap().runtime.unwrap().started_at), (1, started));
    });
}

// MM-S11
#[test]
fn a_new_start_forgets_the_last_move() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.operate("go", "Evict", "web").await.unwrap();
        world.operation("go", "Completed").await;
        world.operate("restart", "Restart", "web").await.unwrap();
        world.operation("restart", "Completed").await;
        let vm = world.phase("web", VmPhase::Running).await;
        assert!(vm.status.unwrap().migration_state.is_none());
    });
}

// MM-P3, MM-P8, MM-P16, MM-P17. Parts of the other rows of §12.4: what is handed to the source.
#[test]
fn policy_and_force_decide_about_throttling() {
    on_a_platform(async |world| {
        world.running("web", None, json!({})).await;
        let mut n = 0;
        for (policy, force, wanted) in [
            ("AlwaysSafe", None, Some(false)),
            ("AlwaysSafe", Some(true), None),
            ("PreferSafe", Some(true), Some(true)),
            ("AlwaysForced", None, Some(true)),
            ("AlwaysForced", Some(false), None),
            ("PreferForced", Some(false), Some(false)),
        ] {
            n += 1;
            let name = format!("go-{n}");
            world
                .patch::<VirtualMachine>("web", json!({"spec": {"liveMigrationPolicy": policy}}))
                .await
                .unwrap();
            world.pass(5).await;
            let mut spec = json!({"type": "Evict", "virtualMachineName": "web"});
            if let Some(force) = force {
                spec["force"] = json!(force);
            }
            world.create::<VirtualMachineOperation>(&name, spec).await;
            let Some(wanted) = wanted else {
                let failed = world.operation(&name, "Failed").await;
                assert_eq!(completed(&failed), "False/NotApplicableForLiveMigrationPolicy");
                assert!(!world.migrations().await.iter().any(|m| m.name_any() == format!("vmop-{name}")));
                continue;
            };
            world.operation(&name, "Completed").await;
            world.phase("web", VmPhase::Running).await;
            assert_eq!(throttles(&world, &name).await, Some(wanted), "{policy} {force:?}");
        }
        // Queued behind another move: the new policy counts. In transfer: the old one stays.
        world.running("blocker", None, json!({})).await;
        let node = world.phase("web", VmPhase::Running).await.status.unwrap().node_name.unwrap();
        world.running("first", Some(&node), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("first", "Evict", "first").await.unwrap();
        world.phase("first", VmPhase::Migrating).await;
        let policy = |policy: &str| json!({"spec": {"liveMigrationPolicy": policy}});
        world.patch::<VirtualMachine>("web", policy("AlwaysSafe")).await.unwrap();
        world.pass(5).await;
        world.operate("queued", "Evict", "web").await.unwrap();
        world.operation("queued", "Pending").await;
        world.patch::<VirtualMachine>("web", policy("AlwaysForced")).await.unwrap();
        world.patch::<VirtualMachine>("first", policy("AlwaysForced")).await.unwrap();
        world.pass(5).await;
        assert_eq!(throttles(&world, "first").await, Some(false));
        world.nodes.wishes.borrow_mut().moves = Moves::Through;
        world.operation("first", "Completed").await;
        world.operation("queued", "Completed").await;
        assert_eq!(throttles(&world, "queued").await, Some(true));
        assert_eq!(throttles(&world, "first").await, Some(false));
    });
}

async fn throttles(world: &World, operation: &str) -> Option<bool> {
    let all = world.migrations().await;
    let migration = all.into_iter().find(|m| m.name_any() == format!("vmop-{operation}"))?;
    Some(migration.status?.config?.auto_converge)
}

// MM-O28
#[test]
fn a_move_under_way_shows_as_the_users_guide_prints_it() {
    on_a_platform(async |world| {
        world.running("web", Some("n1"), json!({})).await;
        world.nodes.wishes.borrow_mut().moves = Moves::Copying;
        world.operate("go", "Evict", "web").await.unwrap();
        let vm = world.condition("web", "Migrating", "True/InProgress").await;
        assert!(!message(&vm, "Migrating").is_empty());
        let status = serde_json::to_value(vm.status.unwrap()).unwrap();
        let state = &status["migrationState"];
        assert_eq!(state["source"]["node"], "n1");
        assert!(state["target"]["node"].is_string() && state["startTimestamp"].is_string(), "{state}");
        assert!(state["endTimestamp"].is_null());
    });
}
