use std::collections::BTreeMap;

use holdfast_api::engine::{
    Disk, InstanceMigration, InstanceSpec, Migration, MigrationSpec, MigrationStatus, MigrationTarget, Nvram,
    Runtime, Side,
};
use holdfast_env::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PodStatus};
use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn instance(epoch: i64, power: Power) -> Instance {
    let mut instance = Instance::new("web", InstanceSpec { epoch, power, ..InstanceSpec::default() });
    instance.metadata.namespace = Some("shop".into());
    instance.metadata.uid = Some("uid-web".into());
    instance.metadata.resource_version = Some("1".into());
    instance.metadata.finalizers = Some(vec![finalizer::INSTANCE_CLEANUP.into()]);
    instance
}

fn observed(instance: Instance) -> Observed {
    Observed {
        now: at(0),
        jitter: 0,
        instance: Arc::new(instance),
        pods: Vec::new(),
        migration: None,
        boots: BTreeMap::from([("n1".into(), "boot-a".into())]),
        image: "holdfast/launcher:1.0".into(),
        refused: None,
    }
}

fn pod_of(instance: &Instance, node: Option<&str>, phase: &str) -> Pod {
    let mut pod = launcher_pod::build(instance, "holdfast/launcher:1.0");
    pod.metadata.uid = Some(format!("uid-{}", pod.metadata.name.as_deref().unwrap()));
    pod.metadata.resource_version = Some("7".into());
    pod.spec.as_mut().unwrap().node_name = node.map(str::to_owned);
    pod.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
    pod
}

/// Runs the plan's status and effects on the observed world, as the API would.
fn settle(o: &mut Observed) -> Plan {
    let plan = plan(o);
    let mut value = serde_json::to_value(&*o.instance).unwrap();
    if let Some(status) = &plan.status {
        merge(&mut value, &status.body);
    }
    for effect in &plan.effects {
        match effect {
            Effect::Create(create) if create.object.api.kind == "PersistentVolumeClaim" => {}
            Effect::Create(create) => {
                let mut pod: Pod = serde_json::from_value(create.object.value.clone()).unwrap();
                pod.metadata.uid = Some(format!("uid-{}", pod.metadata.name.as_deref().unwrap()));
                pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
                o.pods.push(Arc::new(pod));
            }
            Effect::Patch(patch) if patch.target.api.kind == "Instance" => merge(&mut value, &patch.body),
            Effect::Patch(patch) => {
                for pod in &mut o.pods {
                    if pod.metadata.name.as_deref() == Some(&patch.target.name) {
                        let mut json = serde_json::to_value(&**pod).unwrap();
                        merge(&mut json, &patch.body);
                        *pod = Arc::new(serde_json::from_value(json).unwrap());
                    }
                }
            }
            Effect::Delete { target, .. } => {
                for pod in o.pods.iter_mut().filter(|pod| pod.metadata.name.as_deref() == Some(&target.name))
                {
                    Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(o.now));
                }
            }
            Effect::Evict(_) | Effect::Event(_) => {}
        }
    }
    // Deleted and held by nobody: gone.
    o.pods.retain(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            || pod.metadata.finalizers.as_ref().is_some_and(|all| !all.is_empty())
    });
    o.instance = Arc::new(serde_json::from_value(value).unwrap());
    plan
}

fn merge(into: &mut serde_json::Value, patch: &serde_json::Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(map), Some(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    map.remove(key);
                } else {
                    merge(map.entry(key.clone()).or_insert(json!({})), value);
                }
            }
        }
        _ => *into = patch.clone(),
    }
}

fn state(o: &Observed) -> InstanceState {
    o.instance.status.as_ref().and_then(|status| status.state).unwrap()
}

fn edit(o: &mut Observed, change: impl FnOnce(&mut Instance)) {
    let mut instance = (*o.instance).clone();
    change(&mut instance);
    o.instance = Arc::new(instance);
}

fn report(o: &mut Observed, report: Report) {
    let claim = o.instance.status.as_ref().unwrap().claim.clone().unwrap();
    let epoch = o.instance.spec.epoch;
    edit(o, |instance| {
        let status = instance.status.as_mut().unwrap();
        status.report = Some(Report { epoch, pod_uid: claim.pod_uid, ..report });
    });
}

fn bind(o: &mut Observed, node: &str) {
    let mut pod = (*o.pods[0]).clone();
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    o.pods[0] = Arc::new(pod);
}

fn started() -> Observed {
    let mut o = observed(instance(1, Power::On));
    settle(&mut o);
    bind(&mut o, "n1");
    settle(&mut o);
    report(&mut o, Report { state: ReportState::Running, ..Report::default() });
    edit(&mut o, |instance| {
        let runtime = Runtime { started_at: Some(Time(at(0))), ..Runtime::default() };
        instance.status.as_mut().unwrap().runtime = Some(runtime);
    });
    settle(&mut o);
    o
}

#[test]
fn a_start_goes_through_placing_booting_running_and_then_rests() {
    let mut o = observed(instance(1, Power::On));
    let first = settle(&mut o);
    assert_eq!(state(&o), InstanceState::Placing);
    assert_eq!(first.effects.len(), 1, "one pod is created in the same pass: {first:?}");
    settle(&mut o);
    assert!(plan(&o).is_empty(), "nothing to do until the scheduler acts");
    bind(&mut o, "n1");
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Booting);
    let claim = o.instance.status.as_ref().unwrap().claim.clone().unwrap();
    assert_eq!((claim.node.as_str(), claim.boot_id.as_str(), claim.epoch), ("n1", "boot-a", 1));
    assert_eq!(Some(claim.pod_uid.as_str()), o.pods[0].metadata.uid.as_deref());
    report(&mut o, Report { state: ReportState::Running, ..Report::default() });
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Running);
    let gate = o.pods[0].status.as_ref().unwrap().conditions.as_ref().unwrap();
    assert_eq!(
        (gate[0].type_.as_str(), gate[0].status.as_str()),
        ("kubevirt.io/virtual-machine-unpaused", "True")
    );
    settle(&mut o);
    let rest = plan(&o);
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn a_pod_that_waits_for_a_node_gives_way_when_the_vm_wants_another() {
    let mut o = observed(instance(1, Power::On));
    settle(&mut o);
    let host = "kubernetes.io/hostname";
    edit(&mut o, |instance| {
        instance.spec.placement.node_selector.insert(host.into(), "n2".into());
    });
    for _ in 0..4 {
        settle(&mut o);
    }
    let selectors: Vec<_> =
        o.pods.iter().map(|pod| pod.spec.as_ref().unwrap().node_selector.clone().unwrap()).collect();
    assert_eq!(selectors.len(), 1);
    assert_eq!(selectors[0].get(host).map(String::as_str), Some("n2"));
    assert!(plan(&o).is_empty(), "{:?}", plan(&o));
}

#[test]
fn a_vm_that_never_ran_is_ended_at_once() {
    let mut o = observed(instance(0, Power::Off));
    settle(&mut o);
    let exit = o.instance.status.as_ref().unwrap().exit.clone().unwrap();
    assert_eq!((state(&o), exit.cause), (InstanceState::Ended, ExitCause::NeverStarted));
    assert!(o.pods.is_empty());
}

// INV-3
#[test]
fn no_claim_without_a_live_agent_on_the_node() {
    let mut o = observed(instance(1, Power::On));
    settle(&mut o);
    bind(&mut o, "n9");
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Placing);
    assert_eq!(o.instance.status.as_ref().unwrap().reason.as_deref(), Some(reason::AGENT_MISSING));
}

// INV-3
#[test]
fn once_claimed_only_a_proof_ends_it() {
    for (what, change) in [
        ("pod gone", Box::new(|o: &mut Observed| o.pods.clear()) as Box<dyn Fn(&mut Observed)>),
        (
            "pod failed",
            Box::new(|o| {
                let instance = o.instance.clone();
                let mut pod = pod_of(&instance, Some("n1"), "Failed");
                pod.metadata.uid = o.pods[0].metadata.uid.clone();
                o.pods = vec![Arc::new(pod)];
            }),
        ),
        ("lease gone", Box::new(|o| o.boots.clear())),
        (
            "end without an empty cgroup",
            Box::new(|o| report(o, Report { state: ReportState::Ended, ..Report::default() })),
        ),
        (
            "report of another pod",
            Box::new(|o| {
                edit(o, |instance| {
                    let status = instance.status.as_mut().unwrap();
                    status.report = Some(Report {
                        epoch: 1,
                        pod_uid: "other".into(),
                        state: ReportState::Ended,
                        cgroup_empty: true,
                        ..Report::default()
                    });
                });
            }),
        ),
        (
            "report of another epoch",
            Box::new(|o| {
                edit(o, |instance| {
                    let status = instance.status.as_mut().unwrap();
                    let report = status.report.as_mut().unwrap();
                    report.epoch = 0;
                    report.state = ReportState::Ended;
                    report.cgroup_empty = true;
                });
            }),
        ),
    ] {
        let mut o = started();
        edit(&mut o, |instance| instance.spec.power = Power::Off);
        change(&mut o);
        settle(&mut o);
        assert_ne!(state(&o), InstanceState::Ended, "{what}");
    }
}

#[test]
fn the_agents_report_ends_it_and_the_pod_goes() {
    let mut o = started();
    let ended = Report {
        state: ReportState::Ended,
        cause: Some(ExitCause::GuestShutdown),
        cgroup_empty: true,
        ..Report::default()
    };
    report(&mut o, ended);
    settle(&mut o);
    let exit = o.instance.status.as_ref().unwrap().exit.clone().unwrap();
    assert_eq!((exit.cause, exit.proof.kind), (ExitCause::GuestShutdown, ProofKind::AgentReport));
    assert_eq!(exit.proof.node.as_deref(), Some("n1"));
    settle(&mut o);
    assert!(o.pods.is_empty());
    settle(&mut o);
    assert!(plan(&o).is_empty());
}

#[test]
fn a_node_that_comes_back_under_another_boot_id_proves_the_end() {
    let mut o = started();
    o.boots.insert("n1".into(), "boot-b".into());
    settle(&mut o);
    let exit = o.instance.status.as_ref().unwrap().exit.clone().unwrap();
    assert_eq!((exit.cause, exit.proof.kind), (ExitCause::NodeLost, ProofKind::NodeRebooted));
}

/// A target pod of a move, and with `handed_over` everything that lets its agent act.
fn with_target(o: &mut Observed, handed_over: bool) {
    let mut target = pod_of(&o.instance, Some("n2"), "Running");
    target.metadata.name = Some("target".into());
    target.metadata.uid = Some("uid-target".into());
    target.metadata.labels.as_mut().unwrap().insert(label::MIGRATION_UID.into(), "m".into());
    o.pods.push(Arc::new(target));
    if !handed_over {
        return;
    }
    let mut migration = Migration::new("move", MigrationSpec::default());
    migration.metadata.uid = Some("m".into());
    let target = MigrationTarget { pod_uid: "uid-target".into(), ..MigrationTarget::default() };
    migration.status = Some(MigrationStatus { target: Some(target), ..MigrationStatus::default() });
    o.migration = Some(Arc::new(migration));
    edit(o, |instance| {
        let status = instance.status.as_mut().unwrap();
        let source = status.claim.clone().unwrap().pod_uid;
        status.migration = Some(InstanceMigration {
            uid: "m".into(),
            name: "move".into(),
            source: Side { pod_uid: source, ..Side::default() },
            target: Side { pod_uid: "uid-target".into(), ..Side::default() },
            ..InstanceMigration::default()
        });
    });
}

#[test]
fn a_launcher_that_comes_is_listed_when_there_is_more_to_say() {
    let mut o = started();
    with_target(&mut o, true);
    let listed = plan(&o);
    assert!(listed.status.is_some() && !listed.patience.is_zero(), "{listed:?}");
    let mut off = o.clone();
    let stopped = Arc::make_mut(&mut off.instance);
    stopped.status.as_mut().unwrap().report.as_mut().unwrap().state = ReportState::Paused;
    assert!(plan(&off).patience.is_zero(), "another state is news");
}

fn target_ended(o: &mut Observed) {
    let migration = Arc::make_mut(o.migration.as_mut().unwrap());
    migration.status.as_mut().unwrap().target.as_mut().unwrap().ended_at = Some(Time(at(1)));
}

// MM F14 (the loss is proved by the node's return, not by fencing)
#[test]
fn a_rebooted_source_proves_nothing_until_nothing_of_the_target_is_left() {
    let mut o = started();
    with_target(&mut o, true);
    o.boots.insert("n1".into(), "boot-b".into());
    settle(&mut o);
    assert_ne!(state(&o), InstanceState::Ended);
    assert_eq!(o.instance.status.as_ref().unwrap().pods[1].role, PodRole::Target);
    // A phase in the API, or a pod that is gone, is not the agent's word.
    Arc::make_mut(&mut o.pods[1]).status =
        Some(PodStatus { phase: Some("Failed".into()), ..PodStatus::default() });
    settle(&mut o);
    assert_ne!(state(&o), InstanceState::Ended);
    o.pods.pop();
    settle(&mut o);
    assert_ne!(state(&o), InstanceState::Ended);
    target_ended(&mut o);
    settle(&mut o);
    let exit = o.instance.status.as_ref().unwrap().exit.clone().unwrap();
    assert_eq!((exit.cause, exit.proof.kind), (ExitCause::NodeLost, ProofKind::NodeRebooted));
}

#[test]
fn a_target_that_was_not_handed_anything_delays_nothing() {
    let mut o = started();
    with_target(&mut o, false);
    o.boots.insert("n1".into(), "boot-b".into());
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Ended);
}

#[test]
fn without_its_migration_the_pods_of_a_move_are_what_is_looked_at() {
    let mut o = started();
    with_target(&mut o, true);
    o.migration = None;
    o.boots.insert("n1".into(), "boot-b".into());
    settle(&mut o);
    assert_ne!(state(&o), InstanceState::Ended);
    o.pods.pop();
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Ended);
}

#[test]
fn a_vm_that_has_moved_keeps_running_before_the_targets_first_report() {
    let mut o = started();
    edit(&mut o, |instance| {
        let status = instance.status.as_mut().unwrap();
        status.claim.as_mut().unwrap().pod_uid = "uid-target".into();
        status.migration = Some(holdfast_api::engine::InstanceMigration {
            result: Some(MigrationResult::Succeeded),
            target: holdfast_api::engine::Side { pod_uid: "uid-target".into(), ..Default::default() },
            ..Default::default()
        });
    });
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Running);
    report(&mut o, Report { state: ReportState::Starting, ..Report::default() });
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Running);
}

#[test]
fn a_pod_whose_container_was_never_started_goes_when_the_vm_shall_stop() {
    let mut o = observed(instance(1, Power::On));
    settle(&mut o);
    bind(&mut o, "n1");
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Booting);
    edit(&mut o, |instance| instance.spec.power = Power::Off);
    let plan = plan(&o);
    assert!(plan.effects.iter().any(|effect| matches!(effect, Effect::Delete { .. })), "{plan:?}");
}

#[test]
fn stopping_and_deleting_wait_for_the_report() {
    let mut o = started();
    edit(&mut o, |instance| instance.metadata.deletion_timestamp = Some(Time(at(1))));
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Stopping);
    assert_eq!(o.instance.spec.power, Power::Off, "agents look at spec.power");
    assert!(o.instance.metadata.finalizers.as_ref().is_some_and(|all| !all.is_empty()));
    let ended = Report {
        state: ReportState::Ended,
        cause: Some(ExitCause::GuestShutdown),
        cgroup_empty: true,
        ..Report::default()
    };
    report(&mut o, ended);
    settle(&mut o);
    assert_eq!(o.instance.status.as_ref().unwrap().exit.as_ref().unwrap().cause, ExitCause::PlatformStop);
    settle(&mut o);
    settle(&mut o);
    assert!(o.pods.is_empty());
    assert!(o.instance.metadata.finalizers.as_ref().is_none_or(Vec::is_empty), "finalizer goes last");
}

#[test]
fn a_pod_deleted_by_hand_is_an_eviction() {
    let mut o = started();
    let mut pod = (*o.pods[0]).clone();
    pod.metadata.deletion_timestamp = Some(Time(at(1)));
    o.pods[0] = Arc::new(pod);
    settle(&mut o);
    assert_eq!(state(&o), InstanceState::Stopping);
    assert_eq!(o.instance.status.as_ref().unwrap().reason.as_deref(), Some(reason::POD_TERMINATING));
    let ended = Report {
        state: ReportState::Ended,
        cause: Some(ExitCause::GuestShutdown),
        cgroup_empty: true,
        ..Report::default()
    };
    report(&mut o, ended);
    let before = o.clone();
    settle(&mut o);
    assert_eq!(o.instance.status.as_ref().unwrap().exit.as_ref().unwrap().cause, ExitCause::Evicted);

    // The guest powered off by itself, and its final pod was evicted before the end was told.
    let mut o = before;
    let mut pod = (*o.pods[0]).clone();
    let terminated = json!({"containerStatuses": [{"name": "compute", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": 0, "finishedAt": at(0)}}}]});
    pod.status = Some(serde_json::from_value(terminated).unwrap());
    o.pods[0] = Arc::new(pod);
    settle(&mut o);
    assert_eq!(o.instance.status.as_ref().unwrap().exit.as_ref().unwrap().cause, ExitCause::GuestShutdown);
}

#[test]
fn failed_starts_are_delayed_more_and_more_and_forgotten_once_it_runs() {
    let mut o = observed(instance(1, Power::On));
    let failed = || Report {
        state: ReportState::Ended,
        cause: Some(ExitCause::StartFailed),
        detail: "no such disk".into(),
        cgroup_empty: true,
        ..Report::default()
    };
    for (round, delay) in [(1, 10), (2, 40), (3, 90)] {
        settle(&mut o);
        bind(&mut o, "n1");
        settle(&mut o);
        report(&mut o, failed());
        settle(&mut o);
        settle(&mut o);
        let failures = o.instance.status.as_ref().unwrap().start_failures.clone().unwrap();
        assert_eq!(failures.count, round);
        assert_eq!(failures.retry_at, Some(Time(backoff::after(o.now, delay))));
        edit(&mut o, |instance| instance.spec.epoch += 1);
        let waiting = settle(&mut o);
        assert_eq!(state(&o), InstanceState::Waiting);
        assert_eq!(waiting.wake, failures.retry_at.as_ref().map(|time| time.0));
        assert!(o.pods.is_empty());
        o.now = waiting.wake.unwrap();
    }
    settle(&mut o);
    bind(&mut o, "n1");
    settle(&mut o);
    report(&mut o, Report { state: ReportState::Running, ..Report::default() });
    settle(&mut o);
    assert_eq!(o.instance.status.as_ref().unwrap().start_failures, None);
}

#[test]
fn stopping_before_the_claim_ends_at_once_and_removes_the_pod() {
    let mut o = observed(instance(1, Power::On));
    settle(&mut o);
    edit(&mut o, |instance| instance.spec.power = Power::Off);
    settle(&mut o);
    let exit = o.instance.status.as_ref().unwrap().exit.clone().unwrap();
    assert_eq!((exit.cause, exit.proof.kind), (ExitCause::PlatformStop, ProofKind::NeverStarted));
    settle(&mut o);
    assert!(o.pods.is_empty());
}

#[test]
fn a_new_epoch_forgets_the_agents_rows_of_the_last() {
    let mut o = started();
    report(
        &mut o,
        Report {
            state: ReportState::Ended,
            cause: Some(ExitCause::GuestReset),
            cgroup_empty: true,
            ..Report::default()
        },
    );
    settle(&mut o);
    settle(&mut o);
    edit(&mut o, |instance| instance.spec.epoch = 2);
    settle(&mut o);
    let status = o.instance.status.clone().unwrap();
    assert_eq!((status.observed_epoch, status.state), (2, Some(InstanceState::Placing)));
    assert!(
        status.claim.is_none()
            && status.exit.is_none()
            && status.report.is_none()
            && status.runtime.is_none()
    );
}

#[test]
fn labels_and_annotations_follow_the_vm_and_never_touch_the_platforms() {
    let mut o = started();
    edit(&mut o, |instance| {
        let labels = &mut instance.spec.metadata.labels;
        labels.insert("app".into(), "web".into());
        labels.insert(label::EPOCH.into(), "99".into());
        instance.spec.metadata.annotations.insert("note".into(), "x".into());
        instance
            .spec
            .metadata
            .annotations
            .insert("kubectl.kubernetes.io/last-applied-configuration".into(), "y".into());
    });
    settle(&mut o);
    let labels = o.pods[0].metadata.labels.clone().unwrap();
    let annotations = o.pods[0].metadata.annotations.clone().unwrap();
    assert_eq!((labels["app"].as_str(), labels[label::EPOCH].as_str()), ("web", "1"));
    assert_eq!(annotations["note"], "x");
    assert!(!annotations.contains_key("kubectl.kubernetes.io/last-applied-configuration"));
    assert!(plan(&o).is_empty());
    edit(&mut o, |instance| {
        instance.spec.metadata.labels.clear();
        instance.spec.metadata.annotations.clear();
    });
    settle(&mut o);
    let labels = o.pods[0].metadata.labels.clone().unwrap();
    assert!(!labels.contains_key("app") && labels.contains_key(label::ROLE));
    assert!(!o.pods[0].metadata.annotations.as_ref().unwrap().contains_key("note"));
    assert!(plan(&o).is_empty());
}

#[test]
fn the_pod_is_what_the_drain_and_the_node_expect() {
    let mut source = instance(3, Power::On);
    source.spec.grace_period_seconds = 60;
    source.spec.hardware.disks = vec![Disk {
        id: "vd-root".into(),
        claim: "d8v-vd-root-1".into(),
        read_only: false,
        ..Disk::default()
    }];
    let pod = launcher_pod::build(&source, "holdfast/launcher:1.2");
    let labels = pod.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["vm.kubevirt.internal.virtualization.deckhouse.io/name"], "web");
    assert_eq!(labels["kubevirt.internal.virtualization.deckhouse.io"], "virt-launcher");
    let owner = &pod.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.controller), ("Instance", Some(true)));
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.termination_grace_period_seconds, Some(90));
    assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    assert_eq!(spec.containers[0].image.as_deref(), Some("holdfast/launcher:1.2"));
    let without_limit: Vec<_> = spec.tolerations.iter().flatten().map(|t| t.toleration_seconds).collect();
    assert_eq!(without_limit, [None, None]);
    let mounts: Vec<_> =
        spec.containers[0].volume_mounts.iter().flatten().map(|m| m.mount_path.as_str()).collect();
    assert_eq!(mounts, [holdfast_api::names::launcher_pod::RUN_DIR, "/volumes/vd-root"]);
}

#[test]
fn uefi_variables_get_a_claim_that_goes_with_the_instance() {
    let claims = |plan: &Plan| -> Vec<PersistentVolumeClaim> {
        let creates = plan.effects.iter().filter_map(|effect| match effect {
            Effect::Create(create) => Some(create),
            _ => None,
        });
        let claims = creates.filter(|create| create.object.api.kind == "PersistentVolumeClaim");
        claims.map(|create| serde_json::from_value(create.object.value.clone()).unwrap()).collect()
    };
    let mut o = observed(instance(1, Power::On));
    let shared = Nvram { claim: "d8v-nvram-web".into(), storage_class: Some("fast".into()), shared: true };
    edit(&mut o, |i| i.spec.hardware.nvram = Some(shared));
    let plan = settle(&mut o);
    let [claim] = &claims(&plan)[..] else { panic!("{plan:?}") };
    let spec = claim.spec.as_ref().unwrap();
    assert_eq!(spec.access_modes.as_deref(), Some(&["ReadWriteMany".to_owned()][..]));
    assert_eq!(spec.storage_class_name.as_deref(), Some("fast"));
    assert_eq!(claim.metadata.owner_references.as_ref().unwrap()[0].uid, "uid-web");
    let pod = o.pods[0].spec.as_ref().unwrap();
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == "nvram").unwrap();
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "d8v-nvram-web");
    let mounts = pod.containers[0].volume_mounts.iter().flatten();
    assert!(mounts.into_iter().any(|mount| mount.mount_path == "/volumes/nvram"));

    let mut bios = observed(instance(1, Power::On));
    assert!(claims(&settle(&mut bios)).is_empty());
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Bind,
    Report(ReportState, bool),
    PowerOff,
    Delete,
    DeletePod,
    LosePod,
    PodFails,
    Reboot,
    HandOver,
    TargetEnds,
    LeaseGone,
    Time,
    NextEpoch,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Bind),
        4 => (
            prop_oneof![
                Just(ReportState::Starting),
                Just(ReportState::Running),
                Just(ReportState::Paused),
                Just(ReportState::Ended)
            ],
            any::<bool>()
        ).prop_map(|(state, empty)| Act::Report(state, empty)),
        1 => Just(Act::PowerOff),
        1 => Just(Act::Delete),
        1 => Just(Act::DeletePod),
        1 => Just(Act::LosePod),
        1 => Just(Act::PodFails),
        1 => Just(Act::Reboot),
        1 => Just(Act::HandOver),
        1 => Just(Act::TargetEnds),
        1 => Just(Act::LeaseGone),
        2 => Just(Act::Time),
        2 => Just(Act::NextEpoch),
    ]
}

fn perform(o: &mut Observed, act: Act) {
    match act {
        Act::Bind => {
            if let Some(pod) = o.pods.iter_mut().find(|pod| node_of(pod).is_none()) {
                Arc::make_mut(pod).spec.as_mut().unwrap().node_name = Some("n1".into());
            }
        }
        Act::Report(state, cgroup_empty) => {
            if o.instance.status.as_ref().is_some_and(|status| status.claim.is_some()) {
                let cause = (state == ReportState::Ended).then_some(ExitCause::Crash);
                report(o, Report { state, cgroup_empty, cause, ..Report::default() });
            }
        }
        Act::PowerOff => edit(o, |instance| instance.spec.power = Power::Off),
        Act::Delete => edit(o, |instance| instance.metadata.deletion_timestamp = Some(Time(at(1)))),
        Act::DeletePod => {
            for pod in &mut o.pods {
                Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(at(1)));
            }
        }
        Act::LosePod => o.pods.clear(),
        Act::PodFails => {
            for pod in &mut o.pods {
                Arc::make_mut(pod).status =
                    Some(PodStatus { phase: Some("Failed".into()), ..PodStatus::default() });
            }
        }
        Act::Reboot => {
            let boot = format!("boot-{}", o.now.as_nanosecond());
            o.boots.insert("n1".into(), boot);
        }
        Act::HandOver => {
            let running = o.instance.status.as_ref().is_some_and(|s| s.state == Some(InstanceState::Running));
            if running && o.migration.is_none() {
                with_target(o, true);
            }
        }
        Act::TargetEnds => {
            if o.migration.is_some() {
                target_ended(o);
            }
        }
        Act::LeaseGone => o.boots.clear(),
        Act::Time => o.now = backoff::after(o.now, 400),
        Act::NextEpoch => {
            let ended = o.instance.status.as_ref().is_some_and(|s| s.state == Some(InstanceState::Ended));
            let current =
                o.instance.status.as_ref().is_some_and(|s| s.observed_epoch == o.instance.spec.epoch);
            if ended && current && o.instance.metadata.deletion_timestamp.is_none() {
                edit(o, |instance| {
                    instance.spec.epoch += 1;
                    instance.spec.power = Power::On;
                });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    // INV-1, INV-3
    #[test]
    fn whatever_happens_an_epoch_is_claimed_once_and_ends_only_with_a_proof(acts in prop::collection::vec(act(), 1..60)) {
        let mut o = observed(instance(1, Power::On));
        let mut claims: BTreeMap<i64, String> = BTreeMap::new();
        for act in acts {
            perform(&mut o, act);
            let before = o.instance.status.clone().unwrap_or_default();
            settle(&mut o);
            let status = o.instance.status.clone().unwrap();
            if let Some(claim) = &status.claim {
                let first = claims.entry(claim.epoch).or_insert_with(|| claim.pod_uid.clone());
                prop_assert_eq!(&*first, &claim.pod_uid, "one pod an epoch");
            }
            if status.state == Some(InstanceState::Ended) && before.state != Some(InstanceState::Ended) {
                let exit = status.exit.clone().unwrap();
                match (&status.claim, exit.proof.kind) {
                    (None, ProofKind::NeverStarted) => {}
                    (Some(_), ProofKind::NodeRebooted) => {
                        let ended = |m: &Arc<Migration>| {
                            m.status.as_ref().unwrap().target.as_ref().unwrap().ended_at.is_some()
                        };
                        let handed_over = status.migration.is_some();
                        prop_assert!(!handed_over || o.migration.as_ref().is_some_and(ended));
                    }
                    (Some(claim), ProofKind::AgentReport) => {
                        let report = status.report.unwrap();
                        prop_assert!(report.cgroup_empty && report.pod_uid == claim.pod_uid);
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            for _ in 0..4 {
                settle(&mut o);
            }
            let rest = plan(&o);
            prop_assert!(rest.is_empty(), "the settled world needs nothing: {:?}", rest);
        }
    }
}
