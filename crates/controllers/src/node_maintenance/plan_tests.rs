use std::sync::Arc;

use holdfast_api::NodeMaintenance;
use holdfast_api::maintenance::{
    DRAIN_TAINT, EXCLUDE_LABEL, LEASE_HOLDER, LEASE_NAMESPACE, NodeMaintenanceSpec, PodReference,
    UNSCHEDULABLE_TAINT,
};
use holdfast_api::names::label;
use holdfast_env::Timestamp;
use holdfast_reconcile::Answer;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
        "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running"},
    })
}

fn launcher(vm: &str) -> Value {
    let mut pod = pod(&format!("virt-launcher-{vm}"));
    pod["metadata"]["labels"] = json!({ label::ROLE: label::LAUNCHER });
    pod
}

fn owned(name: &str, kind: &str, phase: &str) -> Value {
    let mut pod = pod(name);
    let owner = json!({"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true});
    pod["metadata"]["ownerReferences"] = json!([owner]);
    pod["status"]["phase"] = json!(phase);
    pod
}

fn observed(pods: &[Value]) -> Observed {
    let spec = NodeMaintenanceSpec { node_name: "n1".into(), reason: None };
    let mut object = NodeMaintenance::new("nm", spec);
    object.metadata.uid = Some("uid-nm".into());
    object.metadata.resource_version = Some("1".into());
    let mut node = Node::default();
    node.metadata.name = Some("n1".into());
    node.metadata.uid = Some("uid-n1".into());
    let parse = |pod: &Value| Arc::new(serde_json::from_value::<Pod>(pod.clone()).unwrap());
    Observed {
        now: at(0),
        object: Arc::new(object),
        node: Some(Arc::new(node)),
        lease: None,
        lease_namespace: LEASE_NAMESPACE.into(),
        lease_namespace_exists: false,
        pods: pods.iter().map(parse).collect(),
        answers: [].into(),
        closed_by_another: false,
    }
}

fn merge(into: &mut Value, patch: &Value) {
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

fn patched<K: serde::Serialize + serde::de::DeserializeOwned>(object: &K, body: &Value) -> Arc<K> {
    let mut value = serde_json::to_value(object).unwrap();
    merge(&mut value, body);
    Arc::new(serde_json::from_value(value).unwrap())
}

impl Observed {
    /// What the API server would make of a plan; `refuse` answers evictions.
    fn apply(&mut self, plan: &Plan, refuse: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut told = Vec::new();
        if let Some(status) = &plan.status {
            self.object = patched(&*self.object, &status.body);
        }
        for effect in &plan.effects {
            match effect {
                Effect::Create(create) if create.object.api.kind == "Namespace" => {
                    self.lease_namespace_exists = true;
                }
                Effect::Create(create) => {
                    assert!(self.lease.is_none());
                    let lease = serde_json::from_value::<Lease>(create.object.value.clone()).unwrap();
                    self.lease = Some(Arc::new(lease));
                }
                Effect::Patch(patch) => match patch.target.api.kind.as_str() {
                    "Node" => self.node = Some(patched(&**self.node.as_ref().unwrap(), &patch.body)),
                    "Lease" => self.lease = Some(patched(&**self.lease.as_ref().unwrap(), &patch.body)),
                    _ => self.object = patched(&*self.object, &patch.body),
                },
                Effect::Delete { target, .. } => {
                    assert_eq!(target.api.kind, "Lease");
                    self.lease = None;
                }
                Effect::Evict(target) => {
                    let refused = refuse(&target.name);
                    told.push(format!("evict {}", target.name));
                    let uid = target.uid.clone().unwrap();
                    if refused.is_none() {
                        self.pods.retain(|pod| pod.metadata.uid.as_ref() != Some(&uid));
                    }
                    self.answers.insert(uid, Answer { at: self.now, refused });
                }
                Effect::Event(note) => told.push(format!("{} {}", note.about.api.kind, note.reason)),
            }
        }
        told
    }

    /// Passes until nothing is left to do at this instant.
    fn settle(&mut self, refuse: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..20 {
            let plan = plan(self);
            if plan.is_empty() {
                return told;
            }
            told.extend(self.apply(&plan, &refuse));
        }
        panic!("no end: {told:?}");
    }

    fn status(&self) -> NodeMaintenanceStatus {
        self.object.status.clone().unwrap_or_default()
    }

    fn phase(&self) -> &'static str {
        self.status().phase.map_or("", MaintenancePhase::as_str)
    }

    /// Cordon, taints and label: all there, or none.
    fn closed(&self) -> bool {
        let node = serde_json::to_value(&**self.node.as_ref().unwrap()).unwrap();
        let keys: Vec<&str> = node["spec"]["taints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|t| t["key"].as_str())
            .collect();
        let all = [
            keys.contains(&DRAIN_TAINT),
            keys.contains(&UNSCHEDULABLE_TAINT),
            node["spec"]["unschedulable"] == true,
            node["metadata"]["labels"][EXCLUDE_LABEL] == "true",
        ];
        assert!(all == [all[0]; 4], "closed in part: {node}");
        all[0]
    }

    fn held_by(&mut self, holder: &str) {
        let renewed = holdfast_api::Time(self.now);
        let lease = json!({
            "metadata": {"name": "node-n1", "namespace": LEASE_NAMESPACE, "uid": "uid-l"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 60, "renewTime": renewed},
        });
        // A Lease counts microseconds.
        let text = lease.to_string().replace("Z\"", ".000000Z\"");
        self.lease = Some(Arc::new(serde_json::from_str::<Lease>(&text).unwrap()));
    }

    fn delete(&mut self) {
        Arc::make_mut(&mut self.object).metadata.deletion_timestamp = Some(Time(self.now));
    }
}

fn never(_: &str) -> Option<String> {
    None
}

/// What the eviction handler says of a VM.
fn moves(name: &str) -> Option<String> {
    name.starts_with("virt-launcher-").then(|| "Eviction triggered evacuation of VMI".to_owned())
}

// MM M1, M2 (decision), M7, M8
#[test]
fn a_node_is_closed_and_emptied_and_says_how_far_it_is() {
    let mut o = observed(&[
        launcher("web"),
        owned("api", "ReplicaSet", "Running"),
        pod("bare"),
        owned("log", "DaemonSet", "Running"),
    ]);
    let told = o.settle(moves);
    let mut pods = told.iter().filter(|t| t.starts_with("evict")).map(String::as_str).collect::<Vec<_>>();
    pods.sort_unstable();
    assert_eq!(pods, ["evict api", "evict bare", "evict virt-launcher-web"]);
    assert_eq!(told.iter().filter(|t| *t == "NodeMaintenance BeginMaintenance").count(), 1);
    let status = o.status();
    assert!(o.closed() && o.phase() == "Running");
    assert_eq!((status.total_pods, status.eviction_pods, status.drain_progress), (4, 3, 66));
    assert_eq!(status.pending_pods, ["virt-launcher-web"]);
    let reference = PodReference { namespace: "shop".into(), name: "virt-launcher-web".into() };
    assert_eq!(status.pending_pods_refs, [reference]);
    let text =
        "error when evicting pods/\"virt-launcher-web\" -n \"shop\": Eviction triggered evacuation of VMI";
    assert_eq!(status.last_error.as_deref(), Some(text));
    let lease = o.lease.clone().unwrap();
    assert_eq!(lease.metadata.name.as_deref(), Some("node-n1"));
    let spec = lease.spec.as_ref().unwrap();
    assert_eq!(spec.holder_identity.as_deref(), Some(LEASE_HOLDER));
    assert_eq!(spec.lease_duration_seconds, Some(3600));
    let owner = &o.object.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str()), ("Node", "uid-n1"));

    // Not before five seconds; then again, without end.
    o.now = at(4);
    let quiet = plan(&o);
    assert!(quiet.is_empty());
    assert_eq!(quiet.wake, Some(at(5)));
    for round in 1..50 {
        o.now = at(5 * round);
        assert_eq!(o.settle(moves), ["evict virt-launcher-web"]);
        assert_eq!(o.phase(), "Running");
        let written = o.status().last_update.unwrap().0;
        assert!(o.now.duration_since(written).as_secs() < 30, "it moves");
    }

    // The VM has left: its launcher is final and may be evicted, or is gone.
    assert_eq!(o.status().drain_progress, 66);
    o.now = at(255);
    assert_eq!(o.settle(never), ["evict virt-launcher-web", "NodeMaintenance SucceedMaintenance"]);
    let status = o.status();
    assert_eq!((o.phase(), status.drain_progress, status.last_error), ("Succeeded", 100, None));
    assert!(status.pending_pods.is_empty() && status.pending_pods_refs.is_empty());
    assert_eq!((status.total_pods, status.eviction_pods), (4, 3));
}

#[test]
fn what_leaves_is_what_kubectl_would_evict() {
    let mut mirror = pod("m");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    for (pod, leaves) in [
        (pod("bare"), true),
        (launcher("a"), true),
        (owned("a", "ReplicaSet", "Running"), true),
        (owned("a", "Job", "Succeeded"), true),
        (owned("a", "DaemonSet", "Running"), false),
        (owned("a", "DaemonSet", "Pending"), false),
        (owned("a", "DaemonSet", "Failed"), true),
        (mirror, false),
    ] {
        let parsed: Pod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(drain::has_to_leave(&parsed), leaves, "{pod}");
    }
}

#[test]
fn pods_that_end_slowly_are_waited_for_and_named_when_late() {
    let mut ending = pod("slow");
    ending["metadata"]["deletionTimestamp"] = json!(holdfast_api::Time(at(60)));
    let mut o = observed(&[ending]);
    let told = o.settle(never);
    assert!(!told.iter().any(|t| t.starts_with("evict")), "{told:?}");
    assert_eq!((o.phase(), o.status().last_error), ("Running", None));
    o.now = at(91);
    o.settle(never);
    assert!(o.status().last_error.unwrap().contains("to terminate: its grace period is over"));
    assert_eq!(o.status().pending_pods, ["slow"]);
}

#[test]
fn long_lists_of_errors_are_cut() {
    let pods: Vec<Value> = (0..30).map(|n| pod(&format!("p{n:02}"))).collect();
    let mut o = observed(&pods);
    o.settle(|_| Some("no".to_owned()));
    let text = o.status().last_error.unwrap();
    assert!(text.starts_with("[error when evicting pods/\"p00\" -n \"shop\": no, "), "{text}");
    assert!(text.ends_with(", and 20 more]"), "{text}");
    assert_eq!(o.status().pending_pods.len(), 30);
}

// MM M9, M10 (decision)
#[test]
fn deletion_brings_the_node_back() {
    for refuse in [moves as fn(&str) -> Option<String>, never] {
        let mut o = observed(&[launcher("web")]);
        let other = json!({"spec": {"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}});
        o.node = Some(patched(&**o.node.as_ref().unwrap(), &other));
        o.settle(refuse);
        assert!(o.closed());
        o.delete();
        let told = o.settle(refuse);
        assert_eq!(told, ["Node UncordonNode", "NodeMaintenance RemovedMaintenance"]);
        assert!(!o.closed() && o.lease.is_none());
        let taints = o.node.as_ref().unwrap().spec.as_ref().unwrap().taints.as_ref().unwrap();
        assert!(taints.len() == 1 && taints[0].key == "dedicated", "others' taints stay");
        assert!(o.object.metadata.finalizers.as_ref().is_none_or(Vec::is_empty));
    }
}

#[test]
fn deletion_leaves_alone_what_is_not_its_own() {
    // Never begun: the node was cordoned by a user, the lease is another's.
    let mut o = observed(&[]);
    o.lease_namespace_exists = true;
    o.held_by("fencer");
    let cordoned = json!({"spec": {"unschedulable": true}});
    o.node = Some(patched(&**o.node.as_ref().unwrap(), &cordoned));
    o.settle(never);
    o.delete();
    assert_eq!(o.settle(never), ["NodeMaintenance RemovedMaintenance"]);
    assert!(o.lease.is_some());
    assert_eq!(o.node.as_ref().unwrap().spec.as_ref().unwrap().unschedulable, Some(true));

    // Two objects for the node, by a race of two creations: the other one holds it.
    let mut o = observed(&[]);
    o.settle(never);
    o.delete();
    o.closed_by_another = true;
    o.settle(never);
    assert!(o.closed() && o.lease.is_some());

    // The node is gone.
    let mut o = observed(&[]);
    o.settle(never);
    o.delete();
    o.node = None;
    assert_eq!(o.settle(never), ["NodeMaintenance RemovedMaintenance"]);
    assert!(o.lease.is_none());
}

// MM M11 (decision)
#[test]
fn a_lease_of_another_is_waited_for() {
    let mut o = observed(&[pod("a")]);
    o.lease_namespace_exists = true;
    o.held_by("fencer");
    for second in 0..59 {
        o.now = at(second);
        let told = o.settle(never);
        assert!(!told.iter().any(|t| t.starts_with("evict")), "{told:?}");
        assert!(!o.closed());
        assert_eq!((o.phase(), o.status().error_on_lease_count), ("Running", 0));
        assert!(o.status().last_error.unwrap().contains("held by fencer"));
    }
    assert!(plan(&o).wake <= Some(at(60)));
    let released = json!({"spec": {"holderIdentity": ""}});
    let mut free = o.clone();
    free.lease = Some(patched(&**free.lease.as_ref().unwrap(), &released));
    let mut late = o;
    late.now = at(60);
    for mut o in [free, late] {
        assert_eq!(o.settle(never), ["evict a", "NodeMaintenance SucceedMaintenance"]);
        assert!(o.closed());
        let spec = o.lease.as_ref().unwrap().spec.clone().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some(LEASE_HOLDER), Some(1)));
    }
}

// MM M12 (decision)
#[test]
fn a_lease_lost_on_the_way_ends_the_maintenance() {
    let mut o = observed(&[launcher("web"), pod("a")]);
    o.settle(moves);
    assert_eq!(o.status().drain_progress, 50);
    o.held_by("fencer");
    for (second, count, phase) in
        [(0, 1, "Running"), (3, 1, "Running"), (5, 2, "Running"), (10, 3, "Running"), (15, 4, "Failed")]
    {
        o.now = at(second);
        let told = o.settle(moves);
        assert_eq!((o.status().error_on_lease_count, o.phase()), (count, phase), "{second}");
        assert!(!told.iter().any(|t| t.starts_with("evict")), "nothing more leaves");
        assert_eq!(o.closed(), phase == "Running");
        let failed = vec!["Node UncordonNode", "NodeMaintenance FailedMaintenance"];
        assert_eq!(told, if phase == "Failed" { failed } else { vec![] });
    }
    let text = "maintenance failed: lease could not be extended after 4 attempts";
    assert!(o.status().last_error.unwrap().starts_with(text));

    // The write that opens the node is not lost with a controller.
    o.now = at(16);
    assert!(plan(&o).is_empty());
    let half = closing::close(o.node.as_ref().unwrap()).unwrap();
    o.node = Some(patched(&**o.node.as_ref().unwrap(), &half.body));
    o.settle(moves);
    assert!(!o.closed());

    // Free again: the object is still there and goes on.
    let released = json!({"spec": {"holderIdentity": null}});
    o.lease = Some(patched(&**o.lease.as_ref().unwrap(), &released));
    o.settle(moves);
    assert!(o.closed());
    assert_eq!((o.phase(), o.status().error_on_lease_count), ("Running", 0));
}

// MM M13 (decision): `nodes "n1" not found` if nobody deletes the object.
#[test]
fn without_its_node_a_maintenance_fails_for_good() {
    let mut o = observed(&[launcher("web")]);
    o.settle(moves);
    let mut replaced = (**o.node.as_ref().unwrap()).clone();
    replaced.metadata.uid = Some("uid-later".into());
    for later in [None, Some(Arc::new(replaced))] {
        let mut o = o.clone();
        o.node = later;
        assert_eq!(o.settle(moves), ["NodeMaintenance FailedMaintenance"]);
        assert_eq!(o.phase(), "Failed");
        assert_eq!(o.status().last_error.as_deref(), Some("nodes \"n1\" not found"));
        o.now = at(3600);
        let plan = plan(&o);
        assert!(plan.is_empty() && plan.wake.is_none());
    }
}

// MM M14 (decision): nothing is known of earlier evictions.
#[test]
fn a_new_controller_goes_on() {
    let mut o = observed(&[launcher("web"), pod("a")]);
    o.settle(moves);
    let before = o.status();
    o.answers.clear();
    assert_eq!(o.settle(moves), ["evict virt-launcher-web"]);
    assert_eq!(o.status(), before);
}

// MM M15 (decision)
#[test]
fn the_object_wins_over_an_uncordon() {
    for refuse in [moves as fn(&str) -> Option<String>, never] {
        let mut o = observed(&[launcher("web")]);
        o.settle(refuse);
        let phase = o.phase();
        let open = json!({"spec": {"unschedulable": null, "taints": null}});
        o.node = Some(patched(&**o.node.as_ref().unwrap(), &open));
        assert_eq!(o.settle(refuse), Vec::<String>::new());
        assert!(o.closed());
        assert_eq!(o.phase(), phase);
    }
    // A VM that came in between leaves again; other pods (somebody looks at the node) may stay.
    let mut o = observed(&[]);
    o.settle(never);
    let parse = |pod: Value| Arc::new(serde_json::from_value::<Pod>(pod).unwrap());
    o.pods = vec![parse(pod("debugger"))];
    assert_eq!(o.settle(never), Vec::<String>::new());
    o.pods.push(parse(launcher("late")));
    o.settle(moves);
    assert_eq!(o.phase(), "Running");
    let status = o.status();
    assert!(status.total_pods >= status.eviction_pods && status.eviction_pods >= 1);
}

#[test]
fn the_lease_is_renewed_as_long_as_the_object_exists() {
    let mut o = observed(&[]);
    o.settle(never);
    assert_eq!(o.phase(), "Succeeded");
    let renewed =
        |o: &Observed| o.lease.as_ref().unwrap().spec.as_ref().unwrap().renew_time.clone().unwrap().0;
    for second in (0..20_000).step_by(100) {
        o.now = at(second);
        assert_eq!(o.settle(never), Vec::<String>::new());
        assert!(o.now.duration_since(renewed(&o)).as_secs() <= 900);
        assert!(plan(&o).wake.is_some_and(|wake| wake > o.now), "looks again in time");
    }
}
