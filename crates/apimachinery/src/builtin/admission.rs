//! Built-in admission that needs other objects; the caller looks them up.

use serde_json::{Value, json};

use crate::status::{GroupResource, Status};

/// Default time a pod stays on a node that is not ready, in seconds.
const TOLERATION_SECONDS: i64 = 300;
/// Lifetime of the token mounted into pods, in seconds.
const TOKEN_SECONDS: i64 = 3607;
const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What pod admission must know.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodFacts<'a> {
    /// The ServiceAccount the pod names (or `default`), if it exists.
    pub service_account: Option<&'a Value>,
    /// All PriorityClasses.
    pub priority_classes: &'a [Value],
    /// Five random bytes for the token volume's name.
    pub entropy: [u8; 5],
}

/// ServiceAccount, Priority and default tolerations of a new pod.
///
/// # Errors
/// 403 with the texts of KS §12.2.
pub fn pod_create(pod: &mut Value, facts: PodFacts<'_>) -> Result<(), Status> {
    if !pod["spec"].is_object() {
        return Ok(());
    }
    let mirror = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
    if !mirror {
        service_account(pod, facts)?;
    }
    priority(pod, facts.priority_classes)?;
    default_tolerations(pod);
    Ok(())
}

/// Name of the ServiceAccount a pod wants.
#[must_use]
pub fn service_account_of(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().filter(|n| !n.is_empty()).unwrap_or("default")
}

fn refuse(pod: &Value, why: &str) -> Status {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    Status::forbidden(&GroupResource::new("", "pods"), name, why)
}

fn service_account(pod: &mut Value, facts: PodFacts<'_>) -> Result<(), Status> {
    let name = service_account_of(pod).to_owned();
    let Some(account) = facts.service_account else {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        return Err(refuse(
            pod,
            &format!(
                "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
            ),
        ));
    };
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let mounts = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mounts {
        mount_token(pod, facts.entropy);
    }
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && let Some(secrets) =
            account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|s| !s.is_empty()))
    {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    Ok(())
}

/// The projected volume `kube-api-access-xxxxx`, mounted where no container has its own mount.
fn mount_token(pod: &mut Value, entropy: [u8; 5]) {
    let volume = crate::names::generate("kube-api-access-", entropy);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            if let Some(mounts) = mounts.as_array_mut()
                && !mounts.iter().any(|m| m["mountPath"] == TOKEN_MOUNT)
            {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT}));
                used = true;
            }
        }
    }
    if !used {
        return;
    }
    let volumes = &mut pod["spec"]["volumes"];
    if !volumes.is_array() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

fn priority(pod: &mut Value, classes: &[Value]) -> Result<(), Status> {
    let wanted = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if wanted.is_empty() {
        classes.iter().filter(|c| c["globalDefault"] == json!(true)).min_by_key(|c| c["value"].as_i64())
    } else {
        let found = classes.iter().find(|c| c["metadata"]["name"] == json!(wanted));
        Some(found.ok_or_else(|| refuse(pod, &format!("no PriorityClass with name {wanted} was found")))?)
    };
    let value = class.map_or(0, |c| c["value"].as_i64().unwrap_or_default());
    if let Some(given) = pod["spec"]["priority"].as_i64()
        && given != value
    {
        return Err(refuse(
            pod,
            &format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ),
        ));
    }
    let policy =
        class.and_then(|c| c["preemptionPolicy"].as_str()).unwrap_or("PreemptLowerPriority").to_owned();
    if let (true, Some(class)) = (wanted.is_empty(), class) {
        pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
    }
    pod["spec"]["priority"] = json!(value);
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = json!(policy);
    }
    Ok(())
}

fn default_tolerations(pod: &mut Value) {
    let tolerations = &mut pod["spec"]["tolerations"];
    if !tolerations.is_array() {
        *tolerations = json!([]);
    }
    let Some(list) = tolerations.as_array_mut() else {
        return;
    };
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covers = |t: &Value| {
            let key = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && matches!(effect, "NoExecute" | "")
        };
        if !list.iter().any(covers) {
            list.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
}

/// New node: taint `node.kubernetes.io/not-ready:NoSchedule`.
pub fn node_create(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let taints = &mut node["spec"]["taints"];
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(list) = taints.as_array_mut()
        && !list.iter().any(|t| t["key"] == "node.kubernetes.io/not-ready" && t["effect"] == "NoSchedule")
    {
        list.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
    }
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let list = &mut object["metadata"]["finalizers"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|f| f == finalizer)
    {
        list.push(json!(finalizer));
    }
}

/// New claim: default StorageClass (the newest of several), protection finalizer.
pub fn claim_create(claim: &mut Value, storage_classes: &[Value]) {
    add_finalizer(claim, "kubernetes.io/pvc-protection");
    let beta = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].is_string();
    if !claim["spec"].is_object() || claim["spec"]["storageClassName"].is_string() || beta {
        return;
    }
    let is_default = |class: &&Value| {
        class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    };
    let newest = storage_classes
        .iter()
        .filter(is_default)
        .max_by_key(|c| c["metadata"]["creationTimestamp"].as_str().unwrap_or_default());
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
}

/// New volume: protection finalizer.
pub fn volume_create(volume: &mut Value) {
    add_finalizer(volume, "kubernetes.io/pv-protection");
}
