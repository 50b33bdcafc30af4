//! The launcher pod of an Instance (vm-lifecycle.md §10.1, §10.2).

use std::collections::BTreeMap;

use holdfast_api::engine::Instance;
use holdfast_api::names::{finalizer, label, launcher_pod, object};
use holdfast_domain::{identity, launcher};
use holdfast_env::derived_name;
use holdfast_reconcile::owner_reference;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, PersistentVolumeClaim,
    PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Pod, PodReadinessGate, PodSecurityContext,
    PodSpec, ResourceRequirements, SecretVolumeSource, Toleration, Volume, VolumeMount,
    VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotation on launcher pods: JSON list of the keys copied from the VM, so that a key that
/// disappears there is removed here, and only such a key.
pub const PROPAGATED: &str = "internal.virtualization.deckhouse.io/propagated";

/// Annotation on launcher pods: the placement they were made for.
const PLACEMENT: &str = "internal.virtualization.deckhouse.io/placement";

/// Size of the claim of UEFI variables, which are half a MiB: below this some provisioners refuse.
const NVRAM_SIZE: &str = "10Mi";

/// How many names are tried for one pod.
const NAMES: u64 = 4;

/// Names to try for the pod of an epoch, best first.
#[must_use]
pub fn names(instance: &Instance, purpose: &str) -> Vec<String> {
    let vm = instance.metadata.name.as_deref().unwrap_or_default();
    let uid = instance.metadata.uid.as_deref().unwrap_or_default();
    let prefix = format!("{}{vm}", object::LAUNCHER_POD_PREFIX);
    (0..NAMES).map(|attempt| derived_name(&prefix, uid, purpose, attempt)).collect()
}

/// Name of what the pod of an epoch is for, the `purpose` of [`names`].
#[must_use]
pub fn purpose(instance: &Instance) -> String {
    format!("epoch-{}", instance.spec.epoch)
}

/// The pod that runs the Instance's present epoch, under the first of its names.
#[must_use]
pub fn build(instance: &Instance, image: &str) -> Pod {
    let spec = &instance.spec;
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    volumes.push(Volume {
        name: launcher_pod::RUN_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    });
    mounts.push(mount(launcher_pod::RUN_VOLUME, launcher_pod::RUN_DIR, false));
    for disk in &spec.hardware.disks {
        volumes.push(claim_volume(&disk.id, &disk.claim, disk.read_only));
        mounts.push(mount(&disk.id, &format!("{}/{}", launcher_pod::VOLUMES_DIR, disk.id), disk.read_only));
    }
    if let Some(nvram) = &spec.hardware.nvram {
        let name = launcher_pod::NVRAM_VOLUME;
        volumes.push(claim_volume(name, &nvram.claim, false));
        mounts.push(mount(name, &format!("{}/{name}", launcher_pod::VOLUMES_DIR), false));
    }
    if let Some(secret) = spec.hardware.seed.as_ref().and_then(|seed| seed.secret_name.clone()) {
        volumes.push(Volume {
            name: launcher::SEED_VOLUME.to_owned(),
            secret: Some(SecretVolumeSource { secret_name: Some(secret), ..SecretVolumeSource::default() }),
            ..Volume::default()
        });
        mounts.push(mount(launcher::SEED_VOLUME, launcher::SEED_DIR, true));
    }
    Pod {
        metadata: metadata(instance),
        spec: Some(PodSpec {
            volumes: Some(volumes),
            ..pod_spec(instance, container(instance, image, mounts))
        }),
        status: None,
    }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn claim_volume(name: &str, claim: &str, read_only: bool) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: read_only.then_some(true),
        }),
        ..Volume::default()
    }
}

/// The claim of the Instance's UEFI variables; it goes with the Instance.
#[must_use]
pub fn nvram_claim(instance: &Instance) -> Option<PersistentVolumeClaim> {
    let nvram = instance.spec.hardware.nvram.as_ref()?;
    let mode = if nvram.shared { "ReadWriteMany" } else { "ReadWriteOnce" };
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(nvram.claim.clone()),
            namespace: instance.metadata.namespace.clone(),
            owner_references: Some(vec![owner_reference(instance)]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![mode.to_owned()]),
            volume_mode: Some("Filesystem".to_owned()),
            storage_class_name: nvram.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(NVRAM_SIZE.to_owned()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

/// Why it ended, in a sentence.
#[must_use]
pub fn failure(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let text = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone()));
    format!(
        "The launcher pod ended before it was claimed: {}",
        text.unwrap_or_else(|| "no reason given".to_owned())
    )
}

/// Whether its processes had ended before somebody asked for its deletion.
#[must_use]
pub fn ended_before_deletion(pod: &Pod) -> bool {
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    let Some(asked) = pod
        .metadata
        .deletion_timestamp
        .as_ref()
        .and_then(|at| at.0.checked_sub(SignedDuration::from_secs(grace)).ok())
    else {
        return false;
    };
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut ends = containers
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.any(|end| end.0 <= asked)
}

/// Whether a pod was made for the placement that its VM wants now. By a record of its own: admission of a cluster
/// may add to a pod's placement.
#[must_use]
pub fn is_placed_as_wanted(instance: &Instance, pod: &Pod) -> bool {
    let made_for = pod.metadata.annotations.as_ref().and_then(|all| all.get(PLACEMENT));
    made_for.is_none_or(|made_for| *made_for == placement(instance))
}

/// Tells one placement from another.
fn placement(instance: &Instance) -> String {
    let spec = &instance.spec.placement;
    let text = serde_json::json!([spec.node_selector, spec.affinity]).to_string();
    format!("{}{}", holdfast_env::suffix(&text, "a", 0), holdfast_env::suffix(&text, "b", 0))
}

fn pod_spec(instance: &Instance, container: Container) -> PodSpec {
    let (spec, placement) = (&instance.spec, &instance.spec.placement);
    let mut node_selector = placement.node_selector.clone();
    node_selector.insert(label::SCHEDULABLE.to_owned(), "true".to_owned());
    let mut tolerations = placement.tolerations.clone();
    tolerations.extend(["not-ready", "unreachable"].map(|taint| Toleration {
        key: Some(format!("node.kubernetes.io/{taint}")),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    }));
    let user = i64::from(launcher::user_id(&spec.owner.uid));
    let spread = placement.topology_spread_constraints.clone();
    PodSpec {
        containers: vec![container],
        hostname: Some(identity::hostname(instance.metadata.name.as_deref().unwrap_or_default())),
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(spec.grace_period_seconds + launcher::GRACE_MARGIN_S),
        readiness_gates: Some(vec![PodReadinessGate { condition_type: object::UNPAUSED_GATE.to_owned() }]),
        node_selector: Some(node_selector),
        affinity: placement.affinity.clone(),
        tolerations: Some(tolerations),
        topology_spread_constraints: (!spread.is_empty()).then_some(spread),
        priority_class_name: placement.priority_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(user),
            run_as_group: Some(user),
            fs_group: Some(user),
            run_as_non_root: Some(true),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

fn container(instance: &Instance, image: &str, mounts: Vec<VolumeMount>) -> Container {
    let resources = &instance.spec.resources;
    let quantity = |text: String| Quantity(text);
    let memory = resources.memory_bytes.to_string();
    let requests = BTreeMap::from([
        ("cpu".to_owned(), quantity(format!("{}m", resources.cpu_request_milli))),
        ("memory".to_owned(), quantity(memory.clone())),
        ("ephemeral-storage".to_owned(), quantity("50M".to_owned())),
    ]);
    let limits = BTreeMap::from([
        ("cpu".to_owned(), quantity(format!("{}m", resources.cpu_limit_milli))),
        ("memory".to_owned(), quantity(memory)),
    ]);
    let value =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    let pod_uid = EnvVar {
        name: launcher::ENV_POD_UID.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.uid".to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
    };
    Container {
        name: object::LAUNCHER_CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        env: Some(vec![
            value(launcher::ENV_INSTANCE_UID, instance.metadata.uid.clone().unwrap_or_default()),
            value(launcher::ENV_EPOCH, instance.spec.epoch.to_string()),
            pod_uid,
            value(launcher::ENV_RUN_DIR, launcher_pod::RUN_DIR.to_owned()),
            value(launcher::ENV_GRACE, instance.spec.grace_period_seconds.to_string()),
        ]),
        resources: Some(ResourceRequirements {
            requests: Some(requests),
            limits: Some(limits),
            ..ResourceRequirements::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// Labels the platform puts on every launcher pod of an Instance.
fn own_labels(instance: &Instance) -> BTreeMap<String, String> {
    let name = instance.metadata.name.as_deref().unwrap_or_default();
    BTreeMap::from([
        (label::VM_NAME.to_owned(), identity::hostname(name)),
        (label::ROLE.to_owned(), label::LAUNCHER.to_owned()),
        (label::CREATED_BY.to_owned(), instance.metadata.uid.clone().unwrap_or_default()),
        (label::EPOCH.to_owned(), instance.spec.epoch.to_string()),
        (label::INHIBIT_SHUTDOWN.to_owned(), String::new()),
    ])
}

fn own_annotations(instance: &Instance) -> BTreeMap<String, String> {
    let name = instance.metadata.name.clone().unwrap_or_default();
    BTreeMap::from([
        ("kubectl.kubernetes.io/default-container".to_owned(), object::LAUNCHER_CONTAINER.to_owned()),
        ("kubevirt.internal.virtualization.deckhouse.io/domain".to_owned(), name),
        (PLACEMENT.to_owned(), placement(instance)),
        ("descheduler.alpha.kubernetes.io/request-evict-only".to_owned(), String::new()),
    ])
}

fn metadata(instance: &Instance) -> ObjectMeta {
    let names = names(instance, &purpose(instance));
    let mut labels = wanted(&instance.spec.metadata.labels);
    let mut annotations = wanted(&instance.spec.metadata.annotations);
    annotations.insert(PROPAGATED.to_owned(), propagated_record(&labels, &annotations));
    labels.extend(own_labels(instance));
    annotations.extend(own_annotations(instance));
    ObjectMeta {
        name: names.into_iter().next(),
        namespace: instance.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![owner_reference(instance)]),
        finalizers: Some(vec![finalizer::POD_PROTECTION.to_owned()]),
        ..ObjectMeta::default()
    }
}

/// Keys of the platform and of kubectl are never taken from a VM.
fn is_ours(key: &str) -> bool {
    let domain = key.split('/').next().unwrap_or_default();
    ["kubectl.kubernetes.io", "virtualization.deckhouse.io", "kubevirt.io"]
        .iter()
        .any(|ours| domain == *ours || domain.ends_with(&format!(".{ours}")))
        || key.starts_with("descheduler.alpha.kubernetes.io/")
        || key == label::INHIBIT_SHUTDOWN
}

fn wanted(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    given.iter().filter(|(key, _)| !is_ours(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn propagated_record(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> String {
    let keys = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>();
    serde_json::json!({ "labels": keys(labels), "annotations": keys(annotations) }).to_string()
}

/// The image a launcher pod runs.
#[must_use]
pub fn image(pod: &Pod) -> Option<&str> {
    let containers = &pod.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == object::LAUNCHER_CONTAINER)?.image.as_deref()
}

/// The change that brings the VM's labels and annotations to a running pod, removals included;
/// `None` if they are there.
#[must_use]
pub fn propagation(instance: &Instance, pod: &Pod) -> Option<serde_json::Value> {
    let have = |map: &Option<BTreeMap<String, String>>| map.clone().unwrap_or_default();
    let (pod_labels, pod_annotations) = (have(&pod.metadata.labels), have(&pod.metadata.annotations));
    let record: serde_json::Value =
        pod_annotations.get(PROPAGATED).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let before = |what: &str| -> Vec<String> {
        record[what].as_array().into_iter().flatten().filter_map(|k| k.as_str().map(str::to_owned)).collect()
    };
    let labels = wanted(&instance.spec.metadata.labels);
    let annotations = wanted(&instance.spec.metadata.annotations);
    let mut label_patch = difference(&pod_labels, &labels, &before("labels"));
    let mut annotation_patch = difference(&pod_annotations, &annotations, &before("annotations"));
    let new_record = propagated_record(&labels, &annotations);
    if pod_annotations.get(PROPAGATED) != Some(&new_record) {
        annotation_patch.insert(PROPAGATED.to_owned(), new_record.into());
    }
    // What the platform owns wins over anything, whatever the record says.
    for key in own_labels(instance).keys() {
        label_patch.remove(key);
    }
    for key in own_annotations(instance).keys() {
        annotation_patch.remove(key);
    }
    let mut metadata = serde_json::Map::new();
    if !label_patch.is_empty() {
        metadata.insert("labels".to_owned(), label_patch.into());
    }
    if !annotation_patch.is_empty() {
        metadata.insert("annotations".to_owned(), annotation_patch.into());
    }
    (!metadata.is_empty()).then(|| serde_json::json!({ "metadata": metadata }))
}

fn difference(
    have: &BTreeMap<String, String>,
    want: &BTreeMap<String, String>,
    before: &[String],
) -> serde_json::Map<String, serde_json::Value> {
    let mut patch = serde_json::Map::new();
    for (key, value) in want {
        if have.get(key) != Some(value) {
            patch.insert(key.clone(), value.clone().into());
        }
    }
    for key in before.iter().filter(|key| !want.contains_key(*key) && have.contains_key(*key)) {
        patch.insert(key.clone(), serde_json::Value::Null);
    }
    patch
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn what_crashed_before_its_pod_was_evicted_has_crashed() {
        let at = |second: i64| Time(holdfast_env::Timestamp::from_second(second).unwrap());
        let pod = |ended: Option<i64>, deleted: i64| {
            let terminated = ended.map(|second| ContainerStateTerminated {
                finished_at: Some(at(second)),
                ..ContainerStateTerminated::default()
            });
            let state = Some(ContainerState { terminated, ..ContainerState::default() });
            let status = ContainerStatus { state, ..ContainerStatus::default() };
            let mut pod = Pod::default();
            pod.metadata.deletion_timestamp = Some(at(deleted));
            pod.metadata.deletion_grace_period_seconds = Some(30);
            pod.status = Some(PodStatus { container_statuses: Some(vec![status]), ..PodStatus::default() });
            pod
        };
        let first = ended_before_deletion;
        assert!(first(&pod(Some(100), 130)), "evicted in the second in which it had crashed");
        assert!(!first(&pod(Some(101), 130)), "killed after its grace period, or by its guest meanwhile");
        assert!(!first(&pod(None, 130)), "it still runs");
    }
}
