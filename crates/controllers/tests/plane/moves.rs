//! Moves: eviction operations, drains, what is called off.

use holdfast_api::VirtualMachineOperation;
use holdfast_api::engine::{Instance, Migration, MigrationState};
use holdfast_api::vm::VmPhase;
use holdfast_api::vmop::{VirtualMachineOperationSpec, VmopPhase, VmopType};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::world::World;

async fn evict(world: &World, vm: &str, name: &str) {
    let spec = VirtualMachineOperationSpec {
        type_: VmopType::Evict,
        virtual_machine_name: vm.into(),
        force: None,
        migrate: None,
    };
    world.create(&VirtualMachineOperation::new(name, spec)).await;
}

async fn operation(world: &World, name: &str, phase: VmopPhase) -> VirtualMachineOperation {
    let is = |op: Option<&VirtualMachineOperation>| {
        op.and_then(|op| op.status.as_ref()).map(|s| s.phase) == Some(phase)
    };
    world.until(name, &format!("operation {phase}"), is).await.unwrap()
}

async fn migration(world: &World, name: &str, state: MigrationState) -> Migration {
    let is = |m: Option<&Migration>| m.and_then(|m| m.status.as_ref()?.state) == Some(state);
    world.until(name, &format!("migration {state:?}"), is).await.unwrap()
}

async fn write_migration(world: &World, name: &str, status: serde_json::Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    world.api::<Migration>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

/// Both agents play a whole move, beginning at the hand-off.
async fn play(world: &World, vm: &str, name: &str) {
    let handed = migration(world, name, MigrationState::Preparing).await.status.unwrap();
    let named = |i: Option<&Instance>| {
        i.and_then(|i| i.status.as_ref()?.migration.as_ref())
            .is_some_and(|m| m.name == name && m.end.is_none())
    };
    world.until::<Instance>(vm, "Instance names the move", named).await;
    write_migration(world, name, json!({"source": {"startedAt": "2026-01-01T00:00:01Z"}})).await;
    world.agent(vm, json!({"migration": {"start": "2026-01-01T00:00:01Z"}})).await;
    world.phase(vm, VmPhase::Migrating).await;
    let target = handed.target.unwrap();
    let instance = world.api::<Instance>().get(vm).await.unwrap();
    let epoch = instance.spec.epoch;
    let claim = json!({"node": target.node, "bootID": "boot-a", "podUID": target.pod_uid, "epoch": epoch});
    world
        .agent(
            vm,
            json!({
                "node": target.node, "claim": claim, "evacuationNodeName": null, "evacuationSource": null,
                "activePod": {"name": target.pod_name, "uid": target.pod_uid},
                "report": {"epoch": epoch, "podUID": target.pod_uid, "state": "Running"},
                "migration": {"end": "2026-01-01T00:00:02Z", "result": "Succeeded"},
            }),
        )
        .await;
    // The source's launcher ends.
    let source = handed.source.unwrap();
    world.pod_status(&source.pod_name, &json!({"status": {"phase": "Succeeded"}})).await;
}

async fn running(world: &World, vm: &str, node: &str) {
    world.disk(vm, true).await;
    world.vm(vm, vm, |_| ()).await;
    world.run(vm, 1, node).await;
}

#[tokio::test]
async fn an_evict_operation_moves_the_vm() {
    let world = World::start().await;
    running(&world, "web", "n1").await;
    evict(&world, "web", "go").await;
    let target = world.schedule("web", "n2").await;
    play(&world, "web", "vmop-go").await;
    operation(&world, "go", VmopPhase::Completed).await;
    migration(&world, "vmop-go", MigrationState::Done).await;
    let vm = world.phase("web", VmPhase::Running).await;
    let status = vm.status.unwrap();
    assert_eq!(status.node_name.as_deref(), Some("n2"));
    assert_eq!(status.migration_state.unwrap().source.unwrap().node.as_deref(), Some("n1"));
    // The source pod goes, the target stays.
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let left = world.launchers("web").await;
        if left.len() == 1 && left[0].uid() == target.uid() {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{left:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn deleting_the_operation_aborts_the_move_and_waits_for_the_source() {
    let world = World::start().await;
    running(&world, "web", "n1").await;
    evict(&world, "web", "go").await;
    world.schedule("web", "n2").await;
    migration(&world, "vmop-go", MigrationState::Preparing).await;
    write_migration(&world, "vmop-go", json!({"source": {"startedAt": "2026-01-01T00:00:01Z"}})).await;
    world.delete::<VirtualMachineOperation>("go").await;
    let asked =
        |m: Option<&Migration>| m.is_some_and(|m| m.status.as_ref().is_some_and(|s| s.abort.is_some()));
    world.until::<Migration>("vmop-go", "abort asked", asked).await;
    assert!(world.api::<VirtualMachineOperation>().get_opt("go").await.unwrap().is_some(), "waits");
    write_migration(&world, "vmop-go", json!({"source": {"abortedAt": "2026-01-01T00:00:02Z"}})).await;
    world.until::<VirtualMachineOperation>("go", "operation gone", |op| op.is_none()).await;
    let vm = world.phase("web", VmPhase::Running).await;
    assert_eq!(vm.status.unwrap().node_name.as_deref(), Some("n1"));
}

async fn cordon(world: &World, node: &str, cordoned: bool) {
    let nodes: Api<Node> = Api::all(world.client.clone());
    let patch = Patch::Merge(json!({"spec": {"unschedulable": cordoned}}));
    nodes.patch(node, &PatchParams::default(), &patch).await.unwrap();
}

fn evacuations(all: &[VirtualMachineOperation]) -> Vec<&VirtualMachineOperation> {
    all.iter().filter(|op| op.name_any().starts_with("evacuation-")).collect()
}

#[tokio::test]
async fn a_marked_vm_is_evacuated_one_at_a_time_and_uncordon_calls_the_rest_off() {
    let world = World::start().await;
    running(&world, "one", "n1").await;
    running(&world, "two", "n1").await;
    cordon(&world, "n1", true).await;
    for vm in ["one", "two"] {
        world.agent(vm, json!({"evacuationNodeName": "n1", "evacuationSource": "Eviction"})).await;
    }
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    let (placing, queued) = loop {
        let all = world.api::<Migration>().list(&Default::default()).await.unwrap().items;
        let of = |state| {
            let is = |m: &&Migration| m.status.as_ref().and_then(|s| s.state) == Some(state);
            all.iter().find(is).map(|m| (m.name_any(), m.spec.instance.name.clone()))
        };
        if let (Some(placing), Some(queued)) = (of(MigrationState::Placing), of(MigrationState::Queued)) {
            break (placing, queued);
        }
        assert!(tokio::time::Instant::now() < end, "{all:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let operations = world.api::<VirtualMachineOperation>().list(&Default::default()).await.unwrap().items;
    assert_eq!(evacuations(&operations).len(), 2);
    world.schedule(&placing.1, "n2").await;
    play(&world, &placing.1, &placing.0).await;
    migration(&world, &placing.0, MigrationState::Done).await;
    migration(&world, &queued.0, MigrationState::Placing).await;
    cordon(&world, "n1", false).await;
    let unmarked = |i: Option<&Instance>| {
        i.is_some_and(|i| i.status.as_ref().is_some_and(|s| s.evacuation_node_name.is_none()))
    };
    world.until::<Instance>(&queued.1, "mark taken back", unmarked).await;
    world.until::<Migration>(&queued.0, "move called off", |m| m.is_none()).await;
    let stays = world.phase(&queued.1, VmPhase::Running).await;
    assert_eq!(stays.status.unwrap().node_name.as_deref(), Some("n1"));
}
