//! The import machine, driven by a small world that carries out its effects.

use super::*;
use holdfast_api::import::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

fn job(source: From, size: Option<i64>) -> Job {
    Job {
        kind: "vd",
        name: "root".into(),
        uid: "u1".into(),
        generation: 1,
        owner: OwnerReference { kind: "VirtualDisk".into(), uid: "u1".into(), ..Default::default() },
        namespace: "shop".into(),
        source,
        size,
        storage: Choice { class: "shared".into(), access_mode: "ReadWriteMany" },
        version: "1".into(),
    }
}

fn http() -> From {
    From::Http(HttpSource { url: "https://h/disk.qcow2".into(), ..HttpSource::default() })
}

/// Carries out effects on helper objects.
fn carry_out(helpers: &mut Helpers, effects: &[Effect]) -> Vec<String> {
    let mut done = Vec::new();
    for effect in effects {
        match effect {
            Effect::Create(create) if create.object.api.kind == "Pod" => {
                let mut pod: Pod = serde_json::from_value(create.object.value.clone()).unwrap();
                pod.metadata.uid = Some(format!("pod-{}", helpers.pods.len()));
                done.push(format!("create {}", pod.labels()[TASK_LABEL]));
                helpers.pods.push(pod);
            }
            Effect::Create(create) => {
                let mut claim: PersistentVolumeClaim =
                    serde_json::from_value(create.object.value.clone()).unwrap();
                claim.metadata.uid = Some("claim".into());
                let size = &create.object.value["spec"]["resources"]["requests"]["storage"];
                done.push(format!("claim {}", size.as_str().unwrap()));
                helpers.claim = Some(claim);
            }
            Effect::Delete { target, .. } => {
                done.push(format!("delete {}", target.api.kind));
                helpers.pods.retain(|pod| pod.metadata.uid != target.uid);
                if target.api.kind == "PersistentVolumeClaim" {
                    helpers.claim = None;
                }
            }
            Effect::Patch(_) | Effect::Evict(_) | Effect::Event(_) => panic!("{effect:?}"),
        }
    }
    done
}

fn end(helpers: &mut Helpers, phase: &str, message: Option<Value>) {
    let pod = helpers.pods.last_mut().unwrap();
    pod.status = serde_json::from_value(json!({
        "phase": phase,
        "containerStatuses": [{
            "name": "importer", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "message": message.map(|m| m.to_string())}},
        }],
    }))
    .unwrap();
}

fn bind(helpers: &mut Helpers) {
    helpers.claim.as_mut().unwrap().status = serde_json::from_value(json!({"phase": "Bound"})).unwrap();
}

fn done(bytes: u64) -> Option<Value> {
    Some(json!({"result": "done", "format": "qcow2", "virtualSizeBytes": bytes, "storedBytes": 5}))
}

fn request(helpers: &Helpers) -> Request {
    let container = &helpers.pods.last().unwrap().spec.as_ref().unwrap().containers[0];
    let args = container.args.clone().unwrap();
    assert_eq!(args[0], holdfast_api::import::REQUEST_ARGUMENT);
    serde_json::from_str(&args[1]).unwrap()
}

fn step(job: &Job, helpers: &mut Helpers) -> (Outcome, Vec<String>) {
    let (outcome, effects) = job.step(helpers);
    (outcome, carry_out(helpers, &effects))
}

#[test]
fn a_download_of_unknown_size_is_probed_first() {
    let (job, mut helpers) = (job(http(), None), Helpers::default());
    assert_eq!(step(&job, &mut helpers).1, ["create probe"]);
    assert_eq!(request(&helpers).target, None);
    assert!(step(&job, &mut helpers).1.is_empty(), "it waits for the probe");
    end(&mut helpers, "Succeeded", done(2590 << 20));
    assert_eq!(step(&job, &mut helpers).1, ["claim 2590Mi"]);
    assert_eq!(step(&job, &mut helpers).1, ["create import", "delete Pod"]);
    assert_eq!(request(&helpers).size_bytes, Some(2590 << 20));
    end(&mut helpers, "Succeeded", done(2590 << 20));
    assert!(matches!(step(&job, &mut helpers).0, Outcome::Working { .. }), "the claim is not bound");
    bind(&mut helpers);
    assert!(
        matches!(step(&job, &mut helpers), (Outcome::Done(facts), effects) if facts.format == "qcow2" && effects.is_empty())
    );
}

/// A dead server is named whether the size is known (import) or not (probe).
#[test]
fn a_download_that_is_held_up_says_so() {
    for size in [None, Some(5 << 30)] {
        let (job, mut helpers) = (job(http(), size), Helpers::default());
        while !step(&job, &mut helpers).1.is_empty() {}
        helpers.progress =
            Some(Progress { trouble: Some("The download waits.".into()), ..Progress::default() });
        let (outcome, _) = step(&job, &mut helpers);
        assert!(
            matches!(&outcome, Outcome::Working { message, .. } if message == "The download waits."),
            "{size:?}: {outcome:?}"
        );
    }
}

#[test]
fn a_known_size_needs_no_probe() {
    for (source, size) in [(From::Blank, 100 << 20), (http(), 5 << 30)] {
        let (job, mut helpers) = (job(source, Some(size)), Helpers::default());
        assert!(step(&job, &mut helpers).1[0].starts_with("claim "));
        assert_eq!(step(&job, &mut helpers).1, ["create import"]);
        assert_eq!(request(&helpers).size_bytes, Some(size));
    }
}

// VL D6 (decision): as large as the image, refused if smaller, larger if wanted.
#[test]
fn sizes_of_copies() {
    let source = || From::Claim { claim: "c".into(), bytes: 2590 << 20 };
    assert_eq!(step(&job(source(), None), &mut Helpers::default()).1, ["claim 2590Mi"]);
    assert_eq!(step(&job(source(), Some(10 << 30)), &mut Helpers::default()).1, ["claim 10Gi"]);
    let (outcome, effects) = step(&job(source(), Some(1 << 30)), &mut Helpers::default());
    assert_eq!(outcome, Outcome::Failed("The specified pvc size is insufficient: 1Gi < 2590Mi.".into()));
    assert!(effects.is_empty());
}

#[test]
fn a_failure_removes_everything_half_made() {
    let (job, mut helpers) = (job(http(), Some(1 << 30)), Helpers::default());
    step(&job, &mut helpers);
    step(&job, &mut helpers);
    end(&mut helpers, "Failed", Some(json!({"result": "failed", "message": "wrong checksum"})));
    let (outcome, effects) = step(&job, &mut helpers);
    assert_eq!(outcome, Outcome::Failed("wrong checksum".into()));
    assert_eq!(effects, ["delete Pod", "delete PersistentVolumeClaim"]);
}

#[test]
fn a_pod_that_ends_without_a_result_is_repeated() {
    let (job, mut helpers) = (job(http(), Some(1 << 30)), Helpers::default());
    step(&job, &mut helpers);
    step(&job, &mut helpers);
    end(&mut helpers, "Failed", None);
    assert_eq!(step(&job, &mut helpers).1, ["delete Pod"]);
    assert_eq!(step(&job, &mut helpers).1, ["create import"]);
}

#[test]
fn a_changed_spec_starts_from_zero() {
    let (mut job, mut helpers) = (job(http(), Some(1 << 30)), Helpers::default());
    step(&job, &mut helpers);
    step(&job, &mut helpers);
    job.generation = 2;
    let (outcome, effects) = step(&job, &mut helpers);
    assert_eq!(outcome, Outcome::Clearing);
    assert_eq!(effects, ["delete Pod", "delete PersistentVolumeClaim"]);
    assert_eq!(step(&job, &mut helpers).1, ["claim 1Gi"]);
}

#[test]
fn a_dying_claim_is_waited_for() {
    let (job, mut helpers) = (job(http(), Some(1 << 30)), Helpers::default());
    step(&job, &mut helpers);
    let epoch = Time(holdfast_env::Timestamp::UNIX_EPOCH);
    helpers.claim.as_mut().unwrap().metadata.deletion_timestamp = Some(epoch);
    assert!(step(&job, &mut helpers).1.is_empty());
}

#[test]
fn a_source_claim_is_mounted_read_only() {
    let source = From::Claim { claim: "d8v-vi-a-1".into(), bytes: 1 << 20 };
    let (job, mut helpers) = (job(source, None), Helpers::default());
    step(&job, &mut helpers);
    step(&job, &mut helpers);
    let spec = helpers.pods[0].spec.clone().unwrap();
    let volumes = serde_json::to_value(&spec.volumes).unwrap();
    assert!(
        volumes
            .as_array()
            .unwrap()
            .iter()
            .any(|v| { v["persistentVolumeClaim"] == json!({"claimName": "d8v-vi-a-1", "readOnly": true}) })
    );
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert!(helpers.pods[0].metadata.name.as_ref().unwrap().starts_with("importer-root-"));
}
