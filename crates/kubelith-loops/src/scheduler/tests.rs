//! Tables over the whole decision: a few nodes, some placed pods, one pod to place.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::picture::Picture;
use super::place::{Verdict, place};
use super::snapshot::{Cluster, requests};
use crate::cache::{self, Caches};

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

fn node(name: &str, extra: Value) -> Arc<Node> {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
    });
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn pod(name: &str, extra: Value) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "labels": {}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
    });
    merge(&mut value, extra);
    Arc::new(serde_json::from_value(value).unwrap())
}

fn three(extra: [Value; 3]) -> Vec<Arc<Node>> {
    let names = ["n1", "n2", "n3"];
    names.into_iter().zip(extra).map(|(name, extra)| node(name, extra)).collect()
}

fn plain() -> Vec<Arc<Node>> {
    three([json!({}), json!({}), json!({})])
}

fn on(node: &str, name: &str, extra: Value) -> Arc<Pod> {
    let mut all = json!({"spec": {"nodeName": node}, "status": {"phase": "Running"}});
    merge(&mut all, extra);
    pod(name, all)
}

/// What a placement sees of a cluster.
fn seen(cluster: &Cluster) -> Vec<String> {
    let show = |info: &super::snapshot::NodeInfo| {
        let mut pods: Vec<_> = info.pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
        pods.sort();
        let used: Vec<_> = info.used.iter().filter(|(_, amount)| **amount != 0).collect();
        let free = info.allocatable("cpu");
        format!("{} {pods:?} {used:?} {} {} {free}", info.name(), info.scored_cpu, info.scored_memory)
    };
    cluster.nodes.iter().map(show).collect()
}

// What is brought up to date change by change is what would be made anew from all objects.
#[test]
fn a_picture_kept_up_to_date_is_the_same_as_a_new_one() {
    let mut cluster = Cluster::default();
    let mut random = 7_u64;
    let mut draw = |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % most
    };
    let mut nodes: std::collections::BTreeMap<String, Arc<Node>> = std::collections::BTreeMap::new();
    let mut pods: std::collections::BTreeMap<String, Arc<Pod>> = std::collections::BTreeMap::new();
    let rules = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}}}});
    for _ in 0..2000 {
        let (n, p) = (format!("n{}", draw(4)), format!("p{}", draw(9)));
        match draw(5) {
            0 => {
                let state = node(&n, json!({"status": {"allocatable": {"cpu": (1 + draw(8)).to_string()}}}));
                cluster.set_node(state.clone());
                nodes.insert(n, state);
            }
            1 => {
                cluster.remove_node(&n);
                nodes.remove(&n);
            }
            2 => {
                let uid = format!("u-{p}");
                cluster.remove(&uid);
                assert!(!cluster.has(&uid));
                pods.remove(&p);
            }
            _ => {
                let placed = on(&n, &p, if draw(2) == 0 { rules.clone() } else { json!({}) });
                cluster.put(&n, placed.clone());
                pods.insert(p, placed);
            }
        }
        let all: Vec<Arc<Pod>> = pods.values().cloned().collect();
        let fresh = Cluster::new(nodes.values().cloned().collect(), &all);
        assert_eq!(seen(&cluster), seen(&fresh));
        assert_eq!(cluster.ruled().count(), fresh.ruled().count());
    }
}

#[test]
fn of_an_assumed_pod_only_what_the_cache_shows_is_left() {
    let caches = Arc::new(Caches::default());
    let mut picture = Picture::new(caches.clone());
    let assumed = pod("p", json!({}));
    let show = |pod: Option<Arc<Pod>>| caches.pods.set(cache::key(&*assumed), pod);
    caches.nodes.set((String::new(), "n1".to_owned()), Some(node("n1", json!({}))));
    caches.nodes.set((String::new(), "n2".to_owned()), Some(node("n2", json!({}))));
    show(Some(assumed.clone()));
    picture.refresh();
    picture.cluster.put("n1", assumed.clone());
    // Gone while its binding was on its way.
    show(None);
    picture.refresh();
    picture.cluster.put("n1", assumed.clone());
    picture.forget(&assumed);
    assert_eq!(picture.cluster.placed().count(), 0, "no ghost that keeps others away");
    // Bound by somebody else.
    picture.cluster.put("n1", assumed.clone());
    show(Some(on("n2", "p", json!({}))));
    picture.forget(&assumed);
    assert_eq!(picture.cluster.placed().count(), 1);
    assert!(picture.cluster.placed().all(|(node, _)| node.name() == "n2"));
    picture.refresh();
    assert_eq!(picture.cluster.placed().count(), 1);
}

fn verdict(nodes: Vec<Arc<Node>>, placed: &[Arc<Pod>], pod: &Pod) -> String {
    show(place(pod, &Cluster::new(nodes, placed), 0))
}

fn show(verdict: Verdict) -> String {
    match verdict {
        Verdict::Node { name, .. } => name,
        Verdict::AwaitVolumes => "waits for volumes".to_owned(),
        Verdict::Nowhere(text) => text,
    }
}

// KS-A68: the texts of the reference scheduler.
#[test]
fn refusals_are_counted_and_sorted() {
    let asks = pod("p", json!({}));
    assert_eq!(verdict(vec![], &[], &asks), "no nodes available to schedule pods");
    let nodes = three([
        json!({"spec": {"unschedulable": true}}),
        json!({"status": {"allocatable": {"cpu": "500m"}}}),
        json!({"status": {"allocatable": {"cpu": "500m", "memory": "1Mi"}}}),
    ]);
    assert_eq!(
        verdict(nodes, &[], &asks),
        "0/3 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, 2 Insufficient cpu."
    );
    let nodes = three([
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}),
        json!({"status": {"allocatable": {"pods": "0"}}}),
    ]);
    assert_eq!(
        verdict(nodes, &[], &asks),
        "0/3 nodes are available: 1 Too many pods, 2 node(s) had untolerated taint(s)."
    );
}

// KS-A67: resources, extended ones, pods, init containers, sidecars and overhead included.
#[test]
fn resources_must_fit() {
    let full: Vec<Arc<Pod>> = (0..4).map(|n| on("n1", &format!("f{n}"), json!({}))).collect();
    let one = || vec![node("n1", json!({}))];
    assert_eq!(verdict(one(), &full, &pod("p", json!({}))), "0/1 nodes are available: 1 Insufficient cpu.");
    let done: Vec<Arc<Pod>> =
        (0..4).map(|n| on("n1", &format!("f{n}"), json!({"status": {"phase": "Succeeded"}}))).collect();
    assert_eq!(verdict(one(), &done, &pod("p", json!({}))), "n1");
    let kvm = pod(
        "p",
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"devices/kvm": "1"}}}]}}),
    );
    assert_eq!(verdict(one(), &[], &kvm), "0/1 nodes are available: 1 Insufficient devices/kvm.");
    let with_kvm = vec![node("n1", json!({"status": {"allocatable": {"devices/kvm": "1"}}}))];
    assert_eq!(verdict(with_kvm, &[], &kvm), "n1");

    let request = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let shaped = pod(
        "p",
        json!({"spec": {
            "overhead": {"cpu": "10m"},
            "initContainers": [
                {"name": "i1", "resources": request("500m")},
                {"name": "side", "restartPolicy": "Always", "resources": request("200m")},
                {"name": "i2", "resources": request("900m")},
            ],
            "containers": [{"name": "a", "resources": request("300m")}, {"name": "b", "resources": request("400m")}],
        }}),
    );
    assert_eq!(requests(&shaped)["cpu"], 1110);
}

// KS-A67, KS-A69: node selectors and affinity as their fields say.
#[test]
fn node_affinity() {
    let zones = || {
        three([
            json!({"metadata": {"labels": {"zone": "a"}}}),
            json!({"metadata": {"labels": {"zone": "b"}}}),
            json!({"metadata": {"labels": {"zone": "c"}}}),
        ])
    };
    let selected = pod("p", json!({"spec": {"nodeSelector": {"zone": "b"}}}));
    assert_eq!(verdict(zones(), &[], &selected), "n2");
    let nowhere = pod("p", json!({"spec": {"nodeSelector": {"zone": "z"}}}));
    assert_eq!(
        verdict(zones(), &[], &nowhere),
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    );
    let required = |values: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": values}]}]}}}}})
    };
    assert_eq!(verdict(zones(), &[], &pod("p", required(json!(["c"])))), "n3");
    let preferred = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["c"]}]}}]}}}});
    assert_eq!(verdict(zones(), &[], &pod("p", preferred)), "n3");
}

fn term(app: &str) -> Value {
    json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}})
}

fn app(name: &str) -> Value {
    json!({"metadata": {"labels": {"app": name}}})
}

fn affine(kind: &str, app: &str) -> Value {
    json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term(app)]}}}})
}

// KS-A67, KS-A69: affinity attracts, anti-affinity repels, in both directions.
#[test]
fn pod_affinity() {
    let web = on("n2", "web", app("web"));
    assert_eq!(verdict(plain(), std::slice::from_ref(&web), &pod("p", affine("podAffinity", "web"))), "n2");
    assert_eq!(
        verdict(plain(), &[], &pod("p", affine("podAffinity", "web"))),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    // The first of a group that wants to be together may start anywhere.
    let mut first = affine("podAffinity", "web");
    merge(&mut first, app("web"));
    assert_eq!(verdict(vec![node("n1", json!({}))], &[], &pod("p", first)), "n1");

    let anti = pod("p", affine("podAntiAffinity", "web"));
    assert_ne!(verdict(plain(), std::slice::from_ref(&web), &anti), "n2");
    assert_eq!(
        verdict(vec![node("n2", json!({}))], &[web], &anti),
        "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."
    );
    // A placed pod's rule holds for newcomers too.
    let shy = on("n1", "shy", affine("podAntiAffinity", "web"));
    assert_eq!(
        verdict(vec![node("n1", json!({}))], &[shy], &pod("p", app("web"))),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    // Only its own namespace counts, unless named.
    let other = on("n2", "web", json!({"metadata": {"namespace": "other", "labels": {"app": "web"}}}));
    assert_eq!(
        verdict(plain(), std::slice::from_ref(&other), &pod("p", affine("podAffinity", "web"))),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    let mut named = term("web");
    named["namespaces"] = json!(["other"]);
    let named = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [named]}}}});
    assert_eq!(verdict(plain(), &[other], &pod("p", named)), "n2");
}

#[test]
fn preferred_pod_affinity_weighs() {
    let web = on("n3", "web", app("web"));
    let prefer = |kind: &str| {
        json!({"spec": {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": term("web")}]}}}})
    };
    assert_eq!(verdict(plain(), std::slice::from_ref(&web), &pod("p", prefer("podAffinity"))), "n3");
    let two = vec![
        node("n1", json!({"status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}})),
        node("n3", json!({})),
    ];
    assert_eq!(verdict(two, &[web], &pod("p", prefer("podAntiAffinity"))), "n1");
}

// KS-A67: topology spread, hard and soft.
#[test]
fn topology_spread() {
    let spread = |when: &str| {
        let mut value = json!({"spec": {"topologySpreadConstraints": [{
            "topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}}]}});
        merge(&mut value, app("web"));
        pod("p", value)
    };
    let placed = [on("n1", "a", app("web")), on("n2", "b", app("web"))];
    assert_eq!(verdict(plain(), &placed, &spread("DoNotSchedule")), "n3");
    assert_eq!(verdict(plain(), &placed, &spread("ScheduleAnyway")), "n3");
    let small = three([json!({}), json!({}), json!({"status": {"allocatable": {"cpu": "10m"}}})]);
    assert_eq!(
        verdict(small, &placed, &spread("DoNotSchedule")),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match pod topology spread constraints."
    );
    let unlabelled = vec![node("n1", json!({"metadata": {"labels": null}}))];
    assert_eq!(
        verdict(unlabelled, &[], &spread("DoNotSchedule")),
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
}

// KS-A67: tolerations open cordoned and tainted nodes; PreferNoSchedule only weighs.
#[test]
fn taints_and_cordons() {
    let tolerant = pod("p", json!({"spec": {"tolerations": [{"operator": "Exists"}]}}));
    let cordoned = vec![node(
        "n1",
        json!({"spec": {"unschedulable": true, "taints": [
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}}),
    )];
    assert_eq!(verdict(cordoned, &[], &tolerant), "n1");
    let mild = three([
        json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}}),
        json!({"spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}]}}),
        json!({}),
    ]);
    assert_eq!(verdict(mild, &[], &pod("p", json!({}))), "n3");
}

#[test]
fn the_emptiest_node_wins() {
    let placed = [on("n1", "a", json!({})), on("n2", "b", json!({}))];
    assert_eq!(verdict(plain(), &placed, &pod("p", json!({}))), "n3");
}

#[test]
fn host_ports_are_exclusive() {
    let port =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let placed = [on("n1", "a", port.clone())];
    assert_eq!(
        verdict(vec![node("n1", json!({}))], &placed, &pod("p", port)),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
}

// KS-A67: claims decide where a pod may go.
#[test]
fn volumes_decide() {
    let asks = pod(
        "p",
        json!({"spec": {"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}),
    );
    let mut cluster = Cluster::new(plain(), &[]);
    assert_eq!(
        show(place(&asks, &cluster, 0)),
        "0/3 nodes are available: persistentvolumeclaim \"data\" not found."
    );
    let put = |claim: Value, cluster: &mut Cluster| {
        cluster
            .claims
            .insert(("shop".to_owned(), "data".to_owned()), Arc::new(serde_json::from_value(claim).unwrap()));
    };
    put(json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "now"}}), &mut cluster);
    assert_eq!(
        show(place(&asks, &cluster, 0)),
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    );
    let lazy = json!({"metadata": {"name": "lazy"}, "provisioner": "x", "volumeBindingMode": "WaitForFirstConsumer"});
    cluster.classes.insert("lazy".to_owned(), Arc::new(serde_json::from_value(lazy).unwrap()));
    put(json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "lazy"}}), &mut cluster);
    let Verdict::Node { claims, .. } = place(&asks, &cluster, 0) else { panic!("a node is chosen") };
    assert_eq!(claims, ["data"]);
    put(
        json!({"metadata": {"name": "data", "annotations": {super::SELECTED_NODE: "n1"}}, "spec": {"storageClassName": "lazy"}}),
        &mut cluster,
    );
    assert_eq!(show(place(&asks, &cluster, 0)), "waits for volumes");

    put(
        json!({"metadata": {"name": "data"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}),
        &mut cluster,
    );
    let volume = json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]}]}]}}}});
    cluster.volumes.insert("v".to_owned(), Arc::new(serde_json::from_value(volume).unwrap()));
    assert_eq!(show(place(&asks, &cluster, 0)), "n2");
}

mod laws {
    //! What must hold for any cluster, not only for the tables.

    use proptest::prelude::*;

    use super::*;

    proptest! {
        // A chosen node never gets more than it has, whatever the order and the ties.
        #[test]
        fn nobody_is_overcommitted(sizes in prop::collection::vec((1u32..3000, 1u32..4096), 1..40), tie in any::<u64>()) {
            let mut cluster = Cluster::new(plain(), &[]);
            for (n, (cpu, memory)) in sizes.iter().enumerate() {
                let asks = pod(&format!("p{n}"), json!({"spec": {"containers": [
                    {"name": "c", "resources": {"requests": {"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")}}}]}}));
                if let Verdict::Node { name, .. } = place(&asks, &cluster, tie) {
                    cluster.put(&name, asks);
                }
            }
            for info in &cluster.nodes {
                for resource in ["cpu", "memory"] {
                    prop_assert!(info.used.get(resource).copied().unwrap_or(0) <= info.allocatable(resource));
                }
                prop_assert!(info.pods.len() <= 10);
            }
        }

        // Pods of a group that must be apart are never together; a spread never exceeds its skew; and
        // a refusal names as many nodes as there are.
        #[test]
        fn rules_hold_after_every_placement(apps in prop::collection::vec(0usize..4, 1..24), tie in any::<u64>()) {
            let mut cluster = Cluster::new(plain(), &[]);
            for (n, kind) in apps.iter().enumerate() {
                let small = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "10m"}}}]}});
                let mut extra = match kind {
                    0 => affine("podAntiAffinity", "apart"),
                    1 => json!({"spec": {"topologySpreadConstraints": [{
                        "topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app": "spread"}}}]}}),
                    2 => affine("podAffinity", "together"),
                    _ => json!({}),
                };
                merge(&mut extra, small);
                merge(&mut extra, app(["apart", "spread", "together", "plain"][*kind]));
                let asks = pod(&format!("p{n}"), extra);
                match place(&asks, &cluster, tie.wrapping_add(n as u64)) {
                    Verdict::Node { name, .. } => cluster.put(&name, asks),
                    Verdict::AwaitVolumes => prop_assert!(false, "there are no volumes"),
                    Verdict::Nowhere(text) => {
                        let counted: usize = text
                            .trim_start_matches("0/3 nodes are available: ")
                            .split(", ")
                            .filter_map(|part| part.split(' ').next()?.parse::<usize>().ok())
                            .sum();
                        prop_assert_eq!(counted, 3, "{}", text);
                    }
                }
            }
            let count = |info: &super::super::snapshot::NodeInfo, app: &str| {
                let of = |p: &&Arc<Pod>| p.metadata.labels.as_ref().is_some_and(|l| l["app"] == app);
                info.pods.iter().filter(of).count()
            };
            let per_node = |app: &str| cluster.nodes.iter().map(|info| count(info, app)).collect::<Vec<_>>();
            prop_assert!(per_node("apart").iter().all(|n| *n <= 1));
            let spread = per_node("spread");
            prop_assert!(spread.iter().max().unwrap() - spread.iter().min().unwrap() <= 1);
            prop_assert!(per_node("together").iter().filter(|n| **n > 0).count() <= 1);
        }
    }
}
