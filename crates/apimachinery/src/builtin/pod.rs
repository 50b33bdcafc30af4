//! Pods: defaults and the status of a new pod (KS §12.2).

use serde_json::{Value, json};

use super::core::set_default;
use crate::quantity::Quantity;

/// Lists of containers in a pod spec.
pub(super) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub(super) fn default(pod: &mut Value) {
    if pod["spec"].is_object() {
        default_spec(pod);
    }
}

fn default_spec(pod: &mut Value) {
    for (name, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
        ("enableServiceLinks", json!(true)),
    ] {
        set_default(pod, "/spec", name, value);
    }
    if pod["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    }
    // Both names of the service account mirror each other.
    let account = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|n| pod["spec"][*n].as_str().filter(|a| !a.is_empty()))
        .map(str::to_owned);
    if let Some(account) = account {
        pod["spec"]["serviceAccountName"] = json!(account);
        pod["spec"]["serviceAccount"] = json!(account);
    }
    let host_network = pod["spec"]["hostNetwork"] == json!(true);
    for list in CONTAINER_LISTS {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            default_container(container, host_network);
        }
    }
    for volume in pod["spec"].get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let image = container["image"].as_str().unwrap_or_default();
    let tagged = image.rsplit('/').next().unwrap_or_default();
    let policy = if image.contains('@') || (tagged.contains(':') && !tagged.ends_with(":latest")) {
        "IfNotPresent"
    } else {
        "Always"
    };
    for (name, value) in [
        ("imagePullPolicy", json!(policy)),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
        ("resources", json!({})),
    ] {
        set_default(container, "", name, value);
    }
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        set_default(port, "", "protocol", json!("TCP"));
        if host_network {
            let number = port["containerPort"].clone();
            set_default(port, "", "hostPort", number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            let probe = &mut container[probe];
            for (name, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                set_default(probe, "", name, json!(value));
            }
            if probe["httpGet"].is_object() {
                set_default(&mut probe["httpGet"], "", "path", json!("/"));
                set_default(&mut probe["httpGet"], "", "scheme", json!("HTTP"));
            }
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if variable["valueFrom"]["fieldRef"].is_object() {
            set_default(variable, "/valueFrom/fieldRef", "apiVersion", json!("v1"));
        }
    }
    default_requests(container);
}

/// Requests follow limits where they are missing.
fn default_requests(container: &mut Value) {
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    if !limits.is_empty() {
        let requests = &mut container["resources"]["requests"];
        if !requests.is_object() {
            *requests = json!({});
        }
        for (name, limit) in limits {
            set_default(requests, "", &name, limit);
        }
    }
}

fn default_volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |map| map.keys().filter(|key| *key != "name").count());
    if sources == 0 {
        volume["emptyDir"] = json!({});
    }
    for (source, mode) in [
        ("secret", "defaultMode"),
        ("configMap", "defaultMode"),
        ("downwardAPI", "defaultMode"),
        ("projected", "defaultMode"),
    ] {
        if volume[source].is_object() {
            set_default(&mut volume[source], "", mode, json!(0o644));
        }
    }
    if volume["hostPath"].is_object() && volume["hostPath"]["type"].is_null() {
        volume["hostPath"]["type"] = json!("");
    }
    let items = |source: &mut Value| {
        for item in source.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            if item["fieldRef"].is_object() {
                set_default(item, "/fieldRef", "apiVersion", json!("v1"));
            }
        }
    };
    if volume["downwardAPI"].is_object() {
        items(&mut volume["downwardAPI"]);
    }
    for source in volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut).into_iter().flatten()
    {
        if source["serviceAccountToken"].is_object() {
            set_default(source, "/serviceAccountToken", "expirationSeconds", json!(3600));
        }
        if source["downwardAPI"].is_object() {
            items(&mut source["downwardAPI"]);
        }
    }
}

/// A new pod is Pending and gets its QoS class.
pub(super) fn create(pod: &mut Value) {
    let class = qos(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
}

/// Guaranteed: every container limits cpu and memory and requests the same. BestEffort: nobody
/// requests or limits anything. Else Burstable.
fn qos(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            for resource in ["cpu", "memory"] {
                let amount = |kind: &str| {
                    Quantity::from_value(&container["resources"][kind][resource])
                        .ok()
                        .filter(|q| *q > Quantity::ZERO)
                };
                let (request, limit) = (amount("requests"), amount("limits"));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request == limit;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_bodies_are_read_as_go_reads_them() {
        let kind = |name: &str| crate::kind::builtins().into_iter().find(|k| k.kind == name).expect("served");
        let claim = kind("PersistentVolumeClaim");
        let mut body = json!({"metadata": {"name": "c", "labels": {}, "creationTimestamp": null}, "spec": {"resources": {"requests": {"storage": "10240Mi"}}, "volumeName": null}});
        assert_eq!(claim.check_types(&body), Ok(()));
        claim.default(&mut body);
        assert_eq!(
            body,
            json!({"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": "10Gi"}}, "volumeMode": "Filesystem"}})
        );
        let pod = kind("Pod");
        for (body, text) in [
            (
                json!({"spec": {"hostNetwork": "yes"}}),
                "json: cannot unmarshal string into Go struct field spec.hostNetwork of type bool",
            ),
            (
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "abc"}}}]}}),
                "quantities must match the regular expression",
            ),
            (json!({"metadata": {"creationTimestamp": "now"}}), "parsing time \"now\" as"),
        ] {
            let refused = pod.check_types(&body).expect_err("refused");
            assert!(
                refused.code == 400
                    && refused
                        .message
                        .starts_with(&format!("Pod in version \"v1\" cannot be handled as a Pod: {text}")),
                "{}",
                refused.message
            );
        }
    }
}
