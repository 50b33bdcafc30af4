//! Rules of NodeMaintenance (migration-and-maintenance.md §8.2).

use holdfast_api::maintenance::{GROUP, MaintenancePhase, PLURAL};
use serde_json::Value;

use super::{Request, Verdict, View};

/// Labels of nodes that run a part of the control plane.
const CONTROL_PLANE: [&str; 2] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// Where OpenShift runs etcd, with one disruption budget and one guard pod a member.
const OPENSHIFT_ETCD: &str = "openshift-etcd";

pub(super) fn validate(request: &Request<'_>, view: &dyn View) -> Verdict {
    let node = node_name(request.object);
    if let Some(old) = request.old {
        return if node_name(old) == node {
            Ok(Vec::new())
        } else {
            Err("updating spec.NodeName isn't allowed".to_owned())
        };
    }
    let Some(found) = view.get("", "nodes", "", node) else {
        return Err(format!("invalid nodeName, no node with name {node} found"));
    };
    if view.list(GROUP, PLURAL, None).iter().any(|known| node_name(known) == node) {
        return Err(format!("invalid nodeName, a NodeMaintenance for node {node} already exists"));
    }
    if is_control_plane(&found) && !view.is_embedded() && !quorum_holds_without(node, view) {
        return Err(format!(
            "can not put master/control-plane node into maintenance at this moment, disrupting node {node} will \
             violate etcd quorum"
        ));
    }
    Ok(Vec::new())
}

fn node_name(maintenance: &Value) -> &str {
    maintenance["spec"]["nodeName"].as_str().unwrap_or_default()
}

fn is_control_plane(node: &Value) -> bool {
    CONTROL_PLANE.iter().any(|label| node["metadata"]["labels"].get(*label).is_some())
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

fn quorum_holds_without(node: &str, view: &dyn View) -> bool {
    if view.get("", "namespaces", "", OPENSHIFT_ETCD).is_some() {
        return openshift_allows(node, view);
    }
    let members: Vec<Value> = view.list("", "nodes", None).into_iter().filter(is_control_plane).collect();
    let maintained: Vec<Value> = view.list(GROUP, PLURAL, None);
    let in_maintenance = |name: &str| {
        let failed = MaintenancePhase::Failed.as_str();
        maintained.iter().any(|known| node_name(known) == name && known["status"]["phase"] != failed)
    };
    let works = |member: &&Value| {
        let name = super::name(member);
        name != node && is_ready(member) && !in_maintenance(name)
    };
    members.iter().filter(works).count() > members.len() / 2
}

/// Its budget allows a disruption, or the member on this node is out already.
fn openshift_allows(node: &str, view: &dyn View) -> bool {
    let budgets = view.list("policy", "poddisruptionbudgets", Some(OPENSHIFT_ETCD));
    if budgets.iter().all(|budget| budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) >= 1) {
        return true;
    }
    let guards = view.list("", "pods", Some(OPENSHIFT_ETCD));
    guards.iter().any(|pod| {
        pod["metadata"]["labels"]["app"] == "guard" && pod["spec"]["nodeName"] == node && !is_ready(pod)
    })
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use super::*;
    use serde_json::json;

    fn maintenance(name: &str, node: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"nodeName": node}})
    }

    fn node(name: &str, control_plane: bool, ready: bool) -> Value {
        let labels = if control_plane { json!({CONTROL_PLANE[0]: ""}) } else { json!({}) };
        let ready = json!({"type": "Ready", "status": if ready { "True" } else { "Unknown" }});
        json!({"metadata": {"name": name, "labels": labels}, "status": {"conditions": [ready]}})
    }

    fn cluster(nodes: &[Value]) -> World {
        nodes.iter().fold(World::default(), |world, node| world.with("", "nodes", node.clone()))
    }

    fn create(world: &World, node: &str) -> Result<Vec<String>, String> {
        decide(world, PLURAL, &maintenance("new", node), None)
    }

    // MM M3, M4, M5 (decision)
    #[test]
    fn one_object_a_node_that_exists_and_for_ever() {
        let world = cluster(&[node("n1", false, true), node("n2", false, true)]);
        assert_eq!(create(&world, "n1"), Ok(vec![]));
        assert_eq!(create(&world, "n9"), Err("invalid nodeName, no node with name n9 found".to_owned()));
        let world = world.with(GROUP, PLURAL, maintenance("old", "n1"));
        let text = "invalid nodeName, a NodeMaintenance for node n1 already exists";
        assert_eq!(create(&world, "n1"), Err(text.to_owned()));
        assert_eq!(create(&world, "n2"), Ok(vec![]));
        let (old, mut new) = (maintenance("old", "n1"), maintenance("old", "n1"));
        new["spec"]["reason"] = json!("new memory");
        assert_eq!(decide(&world, PLURAL, &new, Some(&old)), Ok(vec![]));
        new["spec"]["nodeName"] = json!("n2");
        let text = "updating spec.NodeName isn't allowed";
        assert_eq!(decide(&world, PLURAL, &new, Some(&old)), Err(text.to_owned()));
    }

    // MM-M6
    #[test]
    fn a_quorum_of_the_control_plane_must_remain() {
        let text = "can not put master/control-plane node into maintenance at this moment, disrupting node c1 will \
                    violate etcd quorum";
        let of = |ready: &[bool]| {
            let nodes: Vec<Value> = ready
                .iter()
                .enumerate()
                .map(|(n, ready)| node(&format!("c{}", n + 1), true, *ready))
                .collect();
            cluster(&nodes).with("", "nodes", node("w", false, true))
        };
        for (ready, allowed) in [
            (&[true][..], false),
            (&[true, true], false),
            (&[true, true, true], true),
            (&[true, true, false], false),
            // It is out already: what remains decides.
            (&[false, true, true], true),
            (&[true, true, true, true, false], true),
            (&[true, true, true, false, false], false),
        ] {
            let want = if allowed { Ok(vec![]) } else { Err(text.to_owned()) };
            assert_eq!(create(&of(ready), "c1"), want, "{ready:?}");
            assert_eq!(create(&of(ready), "w"), Ok(vec![]), "a worker");
        }
        let three = of(&[true, true, true]);
        let mut failed = maintenance("old", "c2");
        assert_eq!(create(&three.clone().with(GROUP, PLURAL, failed.clone()), "c1"), Err(text.to_owned()));
        failed["status"] = json!({"phase": "Failed"});
        assert_eq!(create(&three.with(GROUP, PLURAL, failed), "c1"), Ok(vec![]));
        let mut embedded = of(&[true]);
        embedded.1 = true;
        assert_eq!(create(&embedded, "c1"), Ok(vec![]), "one process on the machine serves all");
    }

    #[test]
    fn openshift_asks_the_budget_of_etcd() {
        let of = |allowed: Option<i64>, guard_ready: bool| {
            let mut world = cluster(&[node("c1", true, true)]);
            world = world.with("", "namespaces", json!({"metadata": {"name": OPENSHIFT_ETCD}}));
            if let Some(allowed) = allowed {
                let budget = json!({"metadata": {"name": "etcd", "namespace": OPENSHIFT_ETCD},
                    "status": {"disruptionsAllowed": allowed}});
                world = world.with("policy", "poddisruptionbudgets", budget);
            }
            let mut guard = node("etcd-guard-c1", false, guard_ready);
            guard["metadata"]["namespace"] = json!(OPENSHIFT_ETCD);
            guard["metadata"]["labels"] = json!({"app": "guard"});
            guard["spec"] = json!({"nodeName": "c1"});
            create(&world.with("", "pods", guard), "c1").is_ok()
        };
        assert!(of(None, true) && of(Some(1), true) && of(Some(0), false));
        assert!(!of(Some(0), true));
    }
}
