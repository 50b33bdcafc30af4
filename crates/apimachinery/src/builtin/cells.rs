//! Table cells of built-in kinds (KS §12.1).

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::time::{age, duration_text, parse};

type Now = DateTime<Utc>;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> Value {
    json!(text(&object["metadata"]["name"]))
}

fn created(object: &Value, now: Now) -> Value {
    json!(age(object["metadata"]["creationTimestamp"].as_str(), now))
}

fn or_none(value: &str) -> Value {
    json!(if value.is_empty() { "<none>" } else { value })
}

fn count(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

fn join<'v>(values: impl Iterator<Item = &'v str>) -> String {
    values.collect::<Vec<_>>().join(",")
}

pub(super) fn name_and_age(object: &Value, now: Now) -> Vec<Value> {
    vec![name(object), created(object, now)]
}

pub(super) fn namespace(object: &Value, now: Now) -> Vec<Value> {
    vec![name(object), object["status"]["phase"].clone(), created(object, now)]
}

pub(super) fn config_map(object: &Value, now: Now) -> Vec<Value> {
    vec![
        name(object),
        json!((count(&object["data"]) + count(&object["binaryData"])).to_string()),
        created(object, now),
    ]
}

pub(super) fn secret(object: &Value, now: Now) -> Vec<Value> {
    vec![
        name(object),
        object["type"].clone(),
        json!(count(&object["data"]).to_string()),
        created(object, now),
    ]
}

pub(super) fn lease(object: &Value, now: Now) -> Vec<Value> {
    vec![name(object), json!(text(&object["spec"]["holderIdentity"])), created(object, now)]
}

pub(super) fn role(object: &Value, _: Now) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

pub(super) fn binding(object: &Value, now: Now) -> Vec<Value> {
    let role = format!("{}/{}", text(&object["roleRef"]["kind"]), text(&object["roleRef"]["name"]));
    let subjects = |kind: &str| -> String {
        let of_kind = object["subjects"].as_array().into_iter().flatten().filter(|s| s["kind"] == kind);
        let names: Vec<String> = of_kind
            .map(|s| {
                if kind == "ServiceAccount" {
                    format!("{}/{}", text(&s["namespace"]), text(&s["name"]))
                } else {
                    text(&s["name"]).to_owned()
                }
            })
            .collect();
        names.join(", ")
    };
    vec![
        name(object),
        json!(role),
        created(object, now),
        json!(subjects("User")),
        json!(subjects("Group")),
        json!(subjects("ServiceAccount")),
    ]
}

pub(super) fn priority_class(object: &Value, now: Now) -> Vec<Value> {
    vec![
        name(object),
        json!(object["value"].as_i64().unwrap_or_default()),
        json!(object["globalDefault"].as_bool().unwrap_or_default()),
        created(object, now),
        object["preemptionPolicy"].clone(),
    ]
}

pub(super) fn budget(object: &Value, now: Now) -> Vec<Value> {
    let bound = |value: &Value| match value {
        Value::Null => json!("N/A"),
        Value::String(text) => json!(text),
        other => json!(other.to_string()),
    };
    vec![
        name(object),
        bound(&object["spec"]["minAvailable"]),
        bound(&object["spec"]["maxUnavailable"]),
        json!(object["status"]["disruptionsAllowed"].as_i64().unwrap_or_default()),
        created(object, now),
    ]
}

pub(super) fn quota(object: &Value, now: Now) -> Vec<Value> {
    let hard = object["status"]["hard"].as_object();
    let each = |is_limit: bool| {
        let all = hard.into_iter().flatten();
        let mut shown: Vec<String> = { all }
            .filter(|(name, _)| name.starts_with("limits.") == is_limit)
            .map(|(name, limit)| format!("{name}: {}/{}", text(&object["status"]["used"][name]), text(limit)))
            .collect();
        shown.sort();
        json!(shown.join(", "))
    };
    vec![name(object), each(false), each(true), created(object, now)]
}

pub(super) fn storage_class(object: &Value, now: Now) -> Vec<Value> {
    let annotations = &object["metadata"]["annotations"];
    let is_default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|a| annotations[*a] == "true");
    let shown = if is_default {
        format!("{} (default)", text(&object["metadata"]["name"]))
    } else {
        text(&object["metadata"]["name"]).to_owned()
    };
    vec![
        json!(shown),
        object["provisioner"].clone(),
        object["reclaimPolicy"].clone(),
        object["volumeBindingMode"].clone(),
        json!(object["allowVolumeExpansion"].as_bool().unwrap_or_default()),
        created(object, now),
    ]
}

fn access_modes(modes: &Value) -> Value {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let given: Vec<&str> = modes.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    json!(join(SHORT.iter().filter(|(long, _)| given.contains(long)).map(|(_, short)| *short)))
}

pub(super) fn volume(object: &Value, now: Now) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let claim = match spec["claimRef"].as_object() {
        Some(_) => format!("{}/{}", text(&spec["claimRef"]["namespace"]), text(&spec["claimRef"]["name"])),
        None => String::new(),
    };
    let phase = if object["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else {
        text(&status["phase"])
    };
    vec![
        name(object),
        json!(text(&spec["capacity"]["storage"])),
        access_modes(&spec["accessModes"]),
        json!(text(&spec["persistentVolumeReclaimPolicy"])),
        json!(phase),
        json!(claim),
        json!(text(&spec["storageClassName"])),
        json!(spec["volumeAttributesClassName"].as_str().unwrap_or("<unset>")),
        json!(text(&status["reason"])),
        created(object, now),
        json!(spec["volumeMode"].as_str().unwrap_or("<unset>")),
    ]
}

pub(super) fn claim(object: &Value, now: Now) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let phase = if object["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else {
        text(&status["phase"])
    };
    let bound = !text(&spec["volumeName"]).is_empty();
    vec![
        name(object),
        json!(phase),
        json!(text(&spec["volumeName"])),
        if bound { json!(text(&status["capacity"]["storage"])) } else { json!("") },
        if bound { access_modes(&status["accessModes"]) } else { json!("") },
        json!(text(&spec["storageClassName"])),
        json!(spec["volumeAttributesClassName"].as_str().unwrap_or("<unset>")),
        created(object, now),
        json!(spec["volumeMode"].as_str().unwrap_or("<unset>")),
    ]
}

pub(super) fn service(object: &Value, now: Now) -> Vec<Value> {
    let spec = &object["spec"];
    let ports = spec["ports"].as_array().into_iter().flatten().map(|p| {
        let node = p["nodePort"].as_i64().filter(|n| *n > 0).map_or_else(String::new, |n| format!(":{n}"));
        format!("{}{node}/{}", p["port"], text(&p["protocol"]))
    });
    let ports: Vec<String> = ports.collect();
    let selector: Vec<String> =
        spec["selector"].as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", text(v))).collect();
    let external = match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        _ => join(spec["externalIPs"].as_array().into_iter().flatten().filter_map(Value::as_str)),
    };
    vec![
        name(object),
        json!(text(&spec["type"])),
        or_none(text(&spec["clusterIP"])),
        or_none(&external),
        or_none(&ports.join(",")),
        created(object, now),
        or_none(&selector.join(",")),
    ]
}

pub(super) fn node(object: &Value, now: Now) -> Vec<Value> {
    let (metadata, status) = (&object["metadata"], &object["status"]);
    let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let mut state = match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object["spec"]["unschedulable"] == json!(true) {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = metadata["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(label, value)| match label.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if label == "kubernetes.io/role" => value.as_str().filter(|v| !v.is_empty()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| {
        let found = status["addresses"].as_array().into_iter().flatten().find(|a| a["type"] == kind);
        or_none(found.map_or("", |a| text(&a["address"])))
    };
    let info = |field: &str| match text(&status["nodeInfo"][field]) {
        "" => json!("<unknown>"),
        shown => json!(shown),
    };
    let mut kernel = info("kernelVersion");
    if let (Some(version), architecture @ ("amd64" | "arm64" | "386" | "riscv64" | "s390x" | "ppc64le")) =
        (kernel.as_str(), text(&status["nodeInfo"]["architecture"]))
    {
        kernel = json!(format!("{version} ({architecture})"));
    }
    vec![
        name(object),
        json!(state),
        or_none(&roles.join(",")),
        created(object, now),
        json!(text(&status["nodeInfo"]["kubeletVersion"])),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        kernel,
        info("containerRuntimeVersion"),
    ]
}

/// `reason`, or a signal or exit code, of a terminated state.
fn terminated(state: &Value) -> String {
    match (text(&state["reason"]), state["signal"].as_i64().unwrap_or_default()) {
        ("", 0) => format!("ExitCode:{}", state["exitCode"].as_i64().unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// What kubectl shows as the status of a pod.
fn pod_status(pod: &Value) -> String {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let phase = text(&status["phase"]);
    let mut reason = match text(&status["reason"]) {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let gated = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut reason);
    }
    let initial = spec["initContainers"].as_array().map_or(0, Vec::len);
    let mut initializing = false;
    for (position, container) in status["initContainerStatuses"].as_array().into_iter().flatten().enumerate()
    {
        let state = &container["state"];
        if state["terminated"]["exitCode"].as_i64() == Some(0) && state["terminated"].is_object() {
            continue;
        }
        if container["started"] == json!(true) && container["ready"] == json!(true) {
            continue;
        }
        reason = if state["terminated"].is_object() {
            format!("Init:{}", terminated(&state["terminated"]))
        } else if !matches!(text(&state["waiting"]["reason"]), "" | "PodInitializing") {
            format!("Init:{}", text(&state["waiting"]["reason"]))
        } else {
            format!("Init:{position}/{initial}")
        };
        initializing = true;
        break;
    }
    if !initializing {
        let mut running = false;
        for container in status["containerStatuses"].as_array().into_iter().flatten().rev() {
            let state = &container["state"];
            if !text(&state["waiting"]["reason"]).is_empty() {
                text(&state["waiting"]["reason"]).clone_into(&mut reason);
            } else if state["terminated"].is_object() {
                reason = terminated(&state["terminated"]);
            } else if container["ready"] == json!(true) && state["running"].is_object() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = status["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            if ready { "Running" } else { "NotReady" }.clone_into(&mut reason);
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        if text(&status["reason"]) == "NodeLost" {
            "Unknown".clone_into(&mut reason);
        } else if !matches!(phase, "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut reason);
        }
    }
    reason
}

pub(super) fn pod(object: &Value, now: Now) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let total = spec["containers"].as_array().map_or(0, Vec::len);
    let statuses: Vec<&Value> = status["containerStatuses"].as_array().into_iter().flatten().collect();
    let ready =
        statuses.iter().filter(|c| c["ready"] == json!(true) && c["state"]["running"].is_object()).count();
    let restarts: i64 = statuses.iter().map(|c| c["restartCount"].as_i64().unwrap_or_default()).sum();
    let last = statuses.iter().filter_map(|c| parse(text(&c["lastState"]["terminated"]["finishedAt"]))).max();
    let restarts = match last {
        Some(last) if restarts > 0 => {
            format!("{restarts} ({} ago)", duration_text((now - last).num_seconds()))
        }
        _ => restarts.to_string(),
    };
    let gates = spec["readinessGates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let open = gates
        .iter()
        .filter(|gate| {
            status["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
        })
        .count();
    let ip = status["podIPs"]
        .as_array()
        .and_then(|ips| ips.first())
        .map_or_else(|| text(&status["podIP"]), |ip| text(&ip["ip"]));
    vec![
        name(object),
        json!(format!("{ready}/{total}")),
        json!(pod_status(object)),
        json!(restarts),
        created(object, now),
        or_none(ip),
        or_none(text(&spec["nodeName"])),
        or_none(text(&status["nominatedNodeName"])),
        if gates.is_empty() { json!("<none>") } else { json!(format!("{open}/{}", gates.len())) },
    ]
}

/// Row conditions of finished pods.
pub(crate) fn pod_conditions(object: &Value) -> Option<Value> {
    let (reason, message) = match text(&object["status"]["phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

struct EventView<'v> {
    first: &'v Value,
    last: &'v Value,
    object: &'v Value,
    message: &'v Value,
    source: String,
    count: i64,
}

fn event_cells(event: &Value, view: &EventView<'_>, now: Now) -> Vec<Value> {
    let time = event["eventTime"].as_str();
    let first = view.first.as_str().or(time);
    let last = event["series"]["lastObservedTime"].as_str().or(view.last.as_str()).or(first);
    let target = match (text(&view.object["kind"]), text(&view.object["name"])) {
        (kind, "") => kind.to_lowercase(),
        (kind, name) => format!("{}/{name}", kind.to_lowercase()),
    };
    let count = event["series"]["count"].as_i64().unwrap_or(view.count).max(1);
    vec![
        json!(age(last, now)),
        json!(text(&event["type"])),
        json!(text(&event["reason"])),
        json!(target),
        json!(text(&view.object["fieldPath"])),
        json!(view.source),
        json!(text(view.message).trim()),
        json!(age(first, now)),
        json!(count.to_string()),
        name(event),
    ]
}

fn source(component: &str, host: &str) -> String {
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}

pub(super) fn event(event: &Value, now: Now) -> Vec<Value> {
    let mut from = source(text(&event["source"]["component"]), text(&event["source"]["host"]));
    if from.is_empty() {
        from = source(text(&event["reportingComponent"]), text(&event["reportingInstance"]));
    }
    let view = EventView {
        first: &event["firstTimestamp"],
        last: &event["lastTimestamp"],
        object: &event["involvedObject"],
        message: &event["message"],
        source: from,
        count: event["count"].as_i64().unwrap_or_default(),
    };
    event_cells(event, &view, now)
}

pub(super) fn new_event(event: &Value, now: Now) -> Vec<Value> {
    let mut from =
        source(text(&event["deprecatedSource"]["component"]), text(&event["deprecatedSource"]["host"]));
    if from.is_empty() {
        from = source(text(&event["reportingController"]), text(&event["reportingInstance"]));
    }
    let view = EventView {
        first: &event["deprecatedFirstTimestamp"],
        last: &event["deprecatedLastTimestamp"],
        object: &event["regarding"],
        message: &event["note"],
        source: from,
        count: event["deprecatedCount"].as_i64().unwrap_or_default(),
    };
    event_cells(event, &view, now)
}
