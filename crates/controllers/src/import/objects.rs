//! Claim and pods of an import.

use std::collections::BTreeMap;

use base64::Engine as _;
use holdfast_api::Quantity;
use holdfast_api::import::{
    GENERATION_LABEL, REQUEST_ARGUMENT, Request, SCRATCH_DIR, SOURCE_DIR, Source, TARGET_DIR, TASK_IMPORT,
    TASK_LABEL, TASK_PROBE,
};
use holdfast_api::names::label;
use holdfast_api::names::object::{DISK_IMAGE_FILE, IMPORTER_CONTAINER, IMPORTER_IMAGE};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::{From, Job};

/// User and group of importers: no account of the machine, no launcher's.
const IMPORTER_ID: i64 = 999_999_999;

/// Whether a claim is bound.
#[must_use]
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

/// Bytes that a claim asks for.
pub(super) fn requested_bytes(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage")).cloned();
    storage.map(Quantity::from).and_then(|quantity| quantity.value().ok()).unwrap_or_default()
}

fn labels(job: &Job) -> BTreeMap<String, String> {
    [
        (label::IMPORT_OWNER_UID.to_owned(), job.uid.clone()),
        (GENERATION_LABEL.to_owned(), job.generation.to_string()),
    ]
    .into()
}

pub(super) fn claim(job: &Job, bytes: i64) -> PersistentVolumeClaim {
    let value = json!({
        "metadata": {
            "name": job.claim_name(),
            "namespace": job.namespace,
            "labels": labels(job),
            "ownerReferences": [job.owner],
        },
        "spec": {
            "accessModes": [job.storage.access_mode],
            "volumeMode": "Filesystem",
            "storageClassName": job.storage.class,
            "resources": {"requests": {"storage": Quantity::from_bytes(bytes)}},
        },
    });
    serde_json::from_value(value).expect("invariant: the claim has the form of a claim")
}

pub(super) fn probe_pod(job: &Job) -> Pod {
    let request = Request { source: source(job), target: None, size_bytes: None, image: is_image(job) };
    pod(job, TASK_PROBE, &request, false)
}

pub(super) fn import_pod(job: &Job, bytes: i64) -> Pod {
    let request = Request {
        source: source(job),
        target: Some(format!("{TARGET_DIR}/{DISK_IMAGE_FILE}")),
        // An image is exactly as large as its data.
        size_bytes: (!is_image(job)).then_some(bytes),
        image: is_image(job),
    };
    pod(job, TASK_IMPORT, &request, true)
}

fn is_image(job: &Job) -> bool {
    job.kind != "vd"
}

fn source(job: &Job) -> Source {
    match &job.source {
        From::Blank => Source::Blank,
        From::Claim { .. } => Source::File { path: format!("{SOURCE_DIR}/{DISK_IMAGE_FILE}") },
        From::Http(http) => {
            let checksum = http.checksum.clone().unwrap_or_default();
            Source::Http {
                url: http.url.clone(),
                ca_bundle: http.ca_bundle.as_deref().map(pem),
                md5: checksum.md5,
                sha256: checksum.sha256,
            }
        }
    }
}

/// Text of a `caBundle`; one that is no base64 text reaches the importer, which says so.
fn pem(base64_text: &str) -> String {
    base64::engine::general_purpose::STANDARD
        .decode(base64_text.split_ascii_whitespace().collect::<String>())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_else(|| base64_text.to_owned())
}

fn pod(job: &Job, task: &str, request: &Request, with_volumes: bool) -> Pod {
    let mut labels = labels(job);
    labels.insert(TASK_LABEL.to_owned(), task.to_owned());
    let mut volumes = vec![json!({"name": "scratch", "emptyDir": {}})];
    let mut mounts = vec![json!({"name": "scratch", "mountPath": SCRATCH_DIR})];
    if with_volumes {
        volumes.push(json!({"name": "target", "persistentVolumeClaim": {"claimName": job.claim_name()}}));
        mounts.push(json!({"name": "target", "mountPath": TARGET_DIR}));
        if let From::Claim { claim, .. } = &job.source {
            volumes.push(json!({
                "name": "source", "persistentVolumeClaim": {"claimName": claim, "readOnly": true},
            }));
            mounts.push(json!({"name": "source", "mountPath": SOURCE_DIR, "readOnly": true}));
        }
    }
    let request = serde_json::to_string(request).expect("invariant: a request is JSON");
    let value = json!({
        "metadata": {
            "namespace": job.namespace,
            "labels": labels,
            "ownerReferences": [job.owner],
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsUser": IMPORTER_ID, "runAsGroup": IMPORTER_ID, "fsGroup": IMPORTER_ID,
            },
            "containers": [container(job, &request, &mounts)],
            "volumes": volumes,
        },
    });
    serde_json::from_value(value).expect("invariant: the pod has the form of a pod")
}

fn container(job: &Job, request: &str, mounts: &[Value]) -> Value {
    json!({
        "name": IMPORTER_CONTAINER,
        "image": format!("{IMPORTER_IMAGE}:{}", job.version),
        "args": [REQUEST_ARGUMENT, request],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": mounts,
    })
}
