use super::*;
use crate::storage::provision::{self, SHARED_PROVISIONER};

fn claim(name: &str, extra: Value) -> Claim {
    let mut value = json!({
        "metadata": {"namespace": "shop", "name": name, "uid": format!("u-{name}"), "finalizers": [CLAIM_PROTECTION]},
        "spec": {"storageClassName": "shared", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn volume(name: &str, extra: Value) -> Volume {
    let mut value = json!({
        "metadata": {"name": name, "uid": format!("u-{name}"), "finalizers": [VOLUME_PROTECTION]},
        "spec": {"storageClassName": "shared", "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "capacity": {"storage": "2Gi"}},
        "status": {"phase": "Available"},
    });
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn held_by(claim: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": "shop", "name": claim, "uid": format!("u-{claim}")}}})
}

fn node(name: &str, ready: &str) -> Arc<Node> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap(),
    )
}

fn world(claims: Vec<Claim>, volumes: Vec<Volume>) -> World {
    let mut classes: Vec<Arc<StorageClass>> = provision::classes().into_iter().map(Arc::new).collect();
    let lazy = json!({"metadata": {"name": "lazy"}, "provisioner": LOCAL_PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer"});
    let foreign = json!({"metadata": {"name": "foreign"}, "provisioner": "csi.example"});
    classes.push(Arc::new(serde_json::from_value(lazy).unwrap()));
    classes.push(Arc::new(serde_json::from_value(foreign).unwrap()));
    World {
        claims,
        volumes,
        classes,
        pods: Vec::new(),
        nodes: vec![node("n1", "True"), node("n2", "True"), node("n3", "False")],
        provisions: true,
    }
}

fn texts(world: &World) -> Vec<String> {
    world.plan().iter().map(ToString::to_string).collect()
}

// KS-A74: static bind takes the smallest fit; steps in order; nothing to do when settled.
#[test]
fn claims_take_the_smallest_fitting_volume() {
    let small = volume("small", json!({"spec": {"capacity": {"storage": "512Mi"}}}));
    let fits = volume("fits", json!({}));
    let large = volume("large", json!({"spec": {"capacity": {"storage": "9Gi"}}}));
    let other_class =
        volume("other", json!({"spec": {"storageClassName": "x", "capacity": {"storage": "1Gi"}}}));
    let all = vec![small, large, fits, other_class];
    assert_eq!(texts(&world(vec![claim("a", json!({}))], all)), ["reserve volume fits for shop/a"]);

    let held = volume("fits", held_by("a"));
    assert_eq!(texts(&world(vec![claim("a", json!({}))], vec![held.clone()])), ["bind shop/a to fits"]);

    let pointing = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "fits"}});
    assert_eq!(
        texts(&world(vec![claim("a", pointing.clone())], vec![held])),
        ["claim shop/a is Bound", "volume fits is Bound"]
    );

    let mut bound = pointing;
    merge(
        &mut bound,
        json!({"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "capacity": {"storage": "2Gi"}}}),
    );
    let mut settled = held_by("a");
    merge(&mut settled, json!({"status": {"phase": "Bound"}}));
    assert!(texts(&world(vec![claim("a", bound)], vec![volume("fits", settled)])).is_empty());
}

#[test]
fn two_claims_do_not_take_one_volume() {
    let found =
        texts(&world(vec![claim("a", json!({})), claim("b", json!({}))], vec![volume("v", json!({}))]));
    assert_eq!(found, ["reserve volume v for shop/a", "make a volume for shop/b on all nodes"]);
}

// KS-A74: dynamic provisioning, WaitForFirstConsumer, foreign provisioners.
#[test]
fn volumes_are_made_as_the_class_says() {
    let one = |extra: Value| texts(&world(vec![claim("a", extra)], vec![]));
    assert_eq!(one(json!({})), ["make a volume for shop/a on all nodes"]);
    assert_eq!(one(json!({"spec": {"storageClassName": "local"}})), ["make a volume for shop/a on n1"]);
    assert_eq!(one(json!({"spec": {"storageClassName": "lazy"}})), ["tell shop/a WaitForFirstConsumer"]);
    assert_eq!(
        one(
            json!({"spec": {"storageClassName": "lazy"}, "metadata": {"annotations": {SELECTED_NODE: "n2"}}})
        ),
        ["make a volume for shop/a on n2"]
    );
    assert_eq!(
        one(
            json!({"spec": {"storageClassName": "lazy"}, "metadata": {"annotations": {SELECTED_NODE: "gone"}}})
        ),
        ["forget the node of shop/a"]
    );
    assert_eq!(one(json!({"spec": {"storageClassName": "foreign"}})), ["leave shop/a to csi.example"]);
    assert_eq!(one(json!({"spec": {"storageClassName": "nope"}})), ["tell shop/a ProvisioningFailed"]);
    assert_eq!(
        one(json!({"spec": {"storageClassName": "nope"}, "status": {"phase": null}})),
        ["claim shop/a is Pending"]
    );
}

#[test]
fn local_volumes_go_to_the_emptiest_ready_node() {
    let on_n1 = volume(
        "v1",
        json!({
            "metadata": {"annotations": {PROVISIONED_BY: LOCAL_PROVISIONER}},
            "spec": {"storageClassName": "local", "claimRef": {"namespace": "shop", "name": "x", "uid": "u-x"},
                     "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}},
            "status": {"phase": "Bound"},
        }),
    );
    let x = claim(
        "x",
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "v1", "storageClassName": "local"},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "capacity": {"storage": "2Gi"}}}),
    );
    let asks = claim("a", json!({"spec": {"storageClassName": "local"}}));
    assert_eq!(texts(&world(vec![x, asks], vec![on_n1])), ["make a volume for shop/a on n2"]);
}

// KS-A74: protection finalizers and reclaim Delete/Retain.
#[test]
fn released_volumes_follow_their_policy() {
    let made = |policy: &str, phase: &str, deleting: bool| {
        let mut extra = held_by("gone");
        merge(
            &mut extra,
            json!({"metadata": {"annotations": {PROVISIONED_BY: SHARED_PROVISIONER}},
                   "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}}),
        );
        if deleting {
            merge(&mut extra, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        }
        texts(&world(vec![], vec![volume("v", extra)]))
    };
    assert_eq!(made("Delete", "Bound", false), ["volume v is Released"]);
    assert_eq!(made("Delete", "Released", false), ["remove volume v"]);
    assert_eq!(made("Delete", "Released", true), ["remove volume v"]);
    assert!(made("Retain", "Released", false).is_empty());
    assert_eq!(made("Retain", "Released", true), ["unprotect v"]);
}

#[test]
fn claims_in_use_stay() {
    let going = claim("a", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let pod = |phase: &str, node: Value| -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "p"}, "status": {"phase": phase},
                "spec": {"containers": [], "nodeName": node, "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "a"}}]}}))
            .unwrap(),
        )
    };
    let mut w = world(vec![going], vec![]);
    assert_eq!(texts(&w), ["unprotect shop/a"]);
    w.pods = vec![pod("Running", json!("n1"))];
    assert!(texts(&w).is_empty());
    w.pods = vec![pod("Succeeded", json!("n1")), pod("Pending", Value::Null)];
    assert_eq!(texts(&w), ["unprotect shop/a"]);
}

#[test]
fn a_claim_whose_volume_vanished_is_lost() {
    let orphan = claim("a", json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}));
    assert_eq!(texts(&world(vec![orphan], vec![])), ["claim shop/a is Lost"]);
    let early = claim("a", json!({"spec": {"volumeName": "v"}}));
    assert!(texts(&world(vec![early], vec![])).is_empty());
}
