use std::collections::BTreeSet;

use holdfast_api::engine::{InstanceSpec, InstanceStatus, MigrationSource, MigrationSpec, MigrationStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, rest: Value) -> K {
    let mut value = json!({
        "apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": kind,
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"),
            "creationTimestamp": at(0).to_string()},
    });
    for (key, part) in rest.as_object().unwrap() {
        value[key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn condition(type_: &str, status: &str, second: i64) -> Value {
    json!({"type": type_, "status": status, "reason": "R", "message": "", "lastTransitionTime": at(second).to_string()})
}

fn operation(name: &str, phase: &str, conditions: Value) -> VirtualMachineOperation {
    let spec = json!({"type": "Evict", "virtualMachineName": "web"});
    object(
        "VirtualMachineOperation",
        name,
        json!({"spec": spec, "status": {"phase": phase, "conditions": conditions}}),
    )
}

fn migration(name: &str, class: i32, status: MigrationStatus) -> Migration {
    let mut migration = Migration::new(name, MigrationSpec { class, ..MigrationSpec::default() });
    migration.spec.instance.name = "web".into();
    migration.metadata.namespace = Some("shop".into());
    migration.metadata.uid = Some(format!("uid-{name}"));
    migration.metadata.creation_timestamp = Some(Time(at(0)));
    migration.status = Some(status);
    migration
}

fn sources() -> Sources {
    use holdfast_api::engine::MigrationState::{Copying, Done, Queued, Switching};
    let conditions = json!([condition("SignalSent", "True", 2), condition("Completed", "True", 1)]);
    let operations = [
        operation("done", "Completed", conditions),
        operation(
            "failed",
            "Failed",
            json!([condition("SignalSent", "True", 2), condition("Completed", "False", 3)]),
        ),
        operation("waits", "Pending", json!([])),
    ];
    let vm: VirtualMachine = object(
        "VirtualMachine",
        "web",
        json!({
            "spec": {"virtualMachineClassName": "host", "cpu": {"cores": 1}, "memory": {"size": "1Gi"},
                "blockDeviceRefs": []},
            "status": {"phase": "Running", "nodeName": "n1",
                "virtualMachinePods": [{"name": "p1", "active": true}, {"name": "p2", "active": false}],
                "conditions": [condition("Migratable", "True", 0), condition("FirmwareUpToDate", "False", 0)]},
        }),
    );
    let mut instance = Instance::new("web", InstanceSpec::default());
    instance.metadata.namespace = Some("shop".into());
    instance.spec.hardware.disks = vec![Default::default()];
    instance.status = Some(InstanceStatus {
        state: Some(holdfast_api::engine::InstanceState::Running),
        node: Some("n1".into()),
        ..InstanceStatus::default()
    });
    let stage =
        |state, source| MigrationStatus { state: Some(state), source: Some(source), ..Default::default() };
    let mut over = stage(Done, MigrationSource { started_at: Some(Time(at(4))), ..Default::default() });
    over.finished_at = Some(Time(at(7)));
    let undecided = MigrationSource { gave_up_at: Some(Time(at(5))), ..Default::default() };
    let migrations = [
        migration("vmop-done", 2, over),
        migration("vmop-copies", 1, stage(Copying, MigrationSource::default())),
        migration("vmop-waits", 4, stage(Queued, MigrationSource::default())),
        migration("vmop-hangs", 1, stage(Switching, undecided)),
    ];
    let mut node = Node::default();
    node.metadata.name = Some("n1".into());
    node.spec =
        Some(k8s_openapi::api::core::v1::NodeSpec { unschedulable: Some(true), ..Default::default() });
    Sources {
        operations: Cache::preset(operations),
        vms: Cache::preset([vm]),
        instances: Cache::preset([instance]),
        migrations: Cache::preset(migrations),
        nodes: Cache::preset([node]),
    }
}

fn text() -> String {
    let metrics = Metrics::default();
    sources().shown_by(&metrics, &Clock::Real);
    metrics.text()
}

#[test]
fn every_series_says_what_its_object_says() {
    let text = text();
    let op = |name: &str| {
        format!("name=\"{name}\",namespace=\"shop\",uid=\"uid-{name}\",type=\"Evict\",virtualmachine=\"web\"")
    };
    let vm = "name=\"web\",namespace=\"shop\",uid=\"uid-web\",node=\"n1\"";
    let vmim = |name: &str| format!("vmi=\"web\",vmim=\"{name}\",namespace=\"shop\"");
    let prefix = "d8_virtualization_virtualmachineoperation";
    for line in [
        format!("{prefix}_status_phase{{{},phase=\"Completed\"}} 1", op("done")),
        format!("{prefix}_status_phase{{{},phase=\"Failed\"}} 0", op("done")),
        format!("{prefix}_status_phase{{{},phase=\"Failed\"}} 1", op("failed")),
        format!("{prefix}_created_timestamp_seconds{{{}}} 1800000000", op("waits")),
        format!("{prefix}_started_timestamp_seconds{{{}}} 1800000002", op("done")),
        // The move's own end, not the older time of the condition.
        format!("{prefix}_finished_timestamp_seconds{{{}}} 1800000007", op("done")),
        format!("{prefix}_finished_timestamp_seconds{{{}}} 1800000003", op("failed")),
        format!("d8_virtualization_virtualmachine_status_phase{{{vm},phase=\"Running\"}} 1"),
        format!("d8_virtualization_virtualmachine_status_phase{{{vm},phase=\"Migrating\"}} 0"),
        format!("d8_virtualization_virtualmachine_firmware_up_to_date{{{vm}}} 0"),
        format!("d8_virtualization_virtualmachine_migratable{{{vm}}} 1"),
        format!("d8_virtualization_virtualmachine_pod{{{vm},pod=\"p1\"}} 1"),
        format!("d8_virtualization_virtualmachine_info{{{vm},virtualmachineclass=\"host\"}} 1"),
        "kubevirt_vmi_non_evictable{node=\"n1\",namespace=\"shop\",name=\"web\"} 1".to_owned(),
        "kubevirt_vmi_number_of_outdated 1".to_owned(),
        "holdfast_node_unschedulable{node=\"n1\"} 1".to_owned(),
        "kubevirt_vmi_migrations_in_running_phase 2".to_owned(),
        "kubevirt_vmi_migrations_in_pending_phase 1".to_owned(),
        "holdfast_migration_queue_length{class=\"4\"} 1".to_owned(),
        "holdfast_migration_queue_length{class=\"1\"} 0".to_owned(),
        format!("kubevirt_vmi_migration_succeeded{{{}}} 1", vmim("vmop-done")),
        format!("kubevirt_vmi_migration_start_time_seconds{{{}}} 1800000004", vmim("vmop-done")),
        format!("kubevirt_vmi_migration_end_time_seconds{{{}}} 1800000007", vmim("vmop-done")),
        format!("holdfast_migration_undecided{{{}}} 1", vmim("vmop-hangs")),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
    }
    for no in [
        format!("{prefix}_started_timestamp_seconds{{{}}}", op("waits")),
        "pod=\"p2\"".to_owned(),
        format!("holdfast_migration_undecided{{{}}}", vmim("vmop-done")),
    ] {
        assert!(!text.contains(&no), "{no}\nis in\n{text}");
    }
}

#[test]
fn every_metric_has_one_heading_and_is_listed() {
    let text = text();
    let headings: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let unique: BTreeSet<&str> = headings.iter().copied().collect();
    assert_eq!(headings.len(), unique.len(), "{headings:?}");
    assert!(unique.iter().all(|name| NAMES.contains(name)), "{unique:?}");
    // Counted by the runtime, or only once a move of this process's time is seen.
    let later = |name: &str| name.starts_with("holdfast_controller_") || name == moves::TRANSITIONS;
    for name in NAMES {
        assert!(unique.contains(name) || later(name), "{name} is listed and not exported");
    }
}

#[test]
fn a_move_is_counted_once_a_phase_and_not_again_by_the_next_process() {
    let finished = |second| {
        let mut status = MigrationStatus {
            state: Some(holdfast_api::engine::MigrationState::Done),
            queued_at: Some(Time(at(0))),
            ..Default::default()
        };
        status.finished_at = Some(Time(at(second)));
        Arc::new(migration("m", 1, status))
    };
    let metrics = Metrics::default();
    let transitions = moves::Transitions::new(at(5));
    let count = |phase: &str| metrics.get(moves::TRANSITIONS, &[("phase", phase)]);
    transitions.count(&[finished(9)], &metrics);
    transitions.count(&[finished(9)], &metrics);
    assert_eq!((count("Pending"), count("Succeeded")), (0.0, 1.0));
    assert!(metrics.text().contains("phase=\"Succeeded\",le=\"10\"} 1"));
    assert!(metrics.text().contains("phase=\"Succeeded\",le=\"5\"} 0"));
}
