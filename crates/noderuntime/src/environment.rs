//! Environment and arguments of a container: literals, downward API, keys of ConfigMaps and Secrets,
//! and `$(NAME)` in values and arguments.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};

use crate::volumes::Lookup;

/// What the node adds to the downward API.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts<'a> {
    /// Node name.
    pub name: &'a str,
    /// Node address, also the pod's.
    pub ip: &'a str,
}

/// Builds the whole environment. Programs get `PATH`, `HOSTNAME` and `TERMINATION_LOG_PATH`; nothing
/// else is inherited.
///
/// # Errors
/// A sentence naming variable and missing source.
pub async fn build(
    pod: &Pod,
    container: &Container,
    node: NodeFacts<'_>,
    termination_log: &str,
    lookup: &Lookup,
) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("HOSTNAME".to_owned(), pod.metadata.name.clone().unwrap_or_default()),
        ("TERMINATION_LOG_PATH".to_owned(), termination_log.to_owned()),
    ]);
    if container.env_from.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(format!("container {}: envFrom is not available here", container.name));
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &env)),
            (None, None) => Some(String::new()),
            (None, Some(source)) => from_source(pod, container, node, source, lookup)
                .await
                .map_err(|why| format!("container {}: env {}: {why}", container.name, variable.name))?,
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// Arguments with `$(NAME)` replaced.
#[must_use]
pub fn arguments(container: &Container, env: &BTreeMap<String, String>) -> Vec<String> {
    container.args.iter().flatten().map(|arg| expand(arg, env)).collect()
}

async fn from_source(
    pod: &Pod,
    container: &Container,
    node: NodeFacts<'_>,
    source: &EnvVarSource,
    lookup: &Lookup,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(pod, node, &field.field_path).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_value(container, &field.resource).map(Some);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(key) = &source.config_map_key_ref {
        let data = lookup.config_map(namespace, &key.name).await?;
        return pick(data, &key.name, &key.key, key.optional);
    }
    if let Some(key) = &source.secret_key_ref {
        let data = lookup.secret(namespace, &key.name).await?;
        return pick(data, &key.name, &key.key, key.optional);
    }
    Err("its valueFrom is not available here".to_owned())
}

fn pick(
    data: Option<BTreeMap<String, Vec<u8>>>,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    let value = data.as_ref().and_then(|data| data.get(key));
    match value {
        Some(bytes) => {
            String::from_utf8(bytes.clone()).map(Some).map_err(|_| format!("key {key} of {name} is not text"))
        }
        None if optional == Some(true) => Ok(None),
        None if data.is_none() => Err(format!("{name} not found")),
        None => Err(format!("{name} has no key {key}")),
    }
}

/// Value of a downward API field.
///
/// # Errors
/// For a field that is not served.
pub fn field_value(pod: &Pod, node: NodeFacts<'_>, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "spec.nodeName" => node.name.to_owned(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" | "status.podIP" | "status.hostIPs" | "status.podIPs" => node.ip.to_owned(),
        _ => {
            let (map, rest) = if let Some(rest) = path.strip_prefix("metadata.labels['") {
                (metadata.labels.as_ref(), rest)
            } else if let Some(rest) = path.strip_prefix("metadata.annotations['") {
                (metadata.annotations.as_ref(), rest)
            } else {
                return Err(format!("fieldRef {path} is not available here"));
            };
            let key = rest.strip_suffix("']").ok_or_else(|| format!("fieldRef {path} is malformed"))?;
            map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
        }
    })
}

fn resource_value(container: &Container, resource: &str) -> Result<String, String> {
    let (which, name) = resource.split_once('.').unwrap_or((resource, ""));
    let resources = container.resources.as_ref();
    let map = match which {
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        _ => return Err(format!("resourceFieldRef {resource} is not available here")),
    };
    let quantity = map.and_then(|map| map.get(name)).map_or("0", |q| q.0.as_str());
    let milli = milli_of(quantity).ok_or_else(|| format!("quantity {quantity:?} is malformed"))?;
    // Rounded up to whole units, as a divisor of 1 does.
    Ok(milli.div_ceil(1000).to_string())
}

/// A Kubernetes quantity in thousandths; `None` if malformed or negative.
#[must_use]
pub fn milli_of(quantity: &str) -> Option<u128> {
    let split = quantity.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut nano: u128 = if whole.is_empty() { 0 } else { whole.parse::<u128>().ok()? };
    nano = nano.checked_mul(1_000_000_000)?;
    if !fraction.is_empty() {
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        nano = nano.checked_add(digits.parse::<u128>().ok()?)?;
    }
    let (times, per): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10_u128.checked_pow(exponent)?, 1)
        }
    };
    Some(nano.checked_mul(times)? / per / 1_000_000)
}

/// Replaces `$(NAME)` by the variable; unknown names stay, `$$(NAME)` becomes `$(NAME)`.
#[must_use]
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|tail| tail.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, want) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$", "$"),
            ("a$b", "a$b"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &env), want, "{text}");
        }
    }

    #[test]
    fn quantities() {
        for (text, want) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("1.5", Some(1500)),
            ("1Gi", Some(1_073_741_824_000)),
            ("1e3", Some(1_000_000)),
            ("", None),
            ("1X", None),
        ] {
            assert_eq!(milli_of(text), want, "{text}");
        }
    }

    #[test]
    fn downward_fields() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a/b": "c"}}}))
        .unwrap();
        let node = NodeFacts { name: "node-1", ip: "10.0.0.2" };
        for (path, want) in [
            ("metadata.uid", "u"),
            ("spec.nodeName", "node-1"),
            ("status.podIP", "10.0.0.2"),
            ("metadata.labels['a/b']", "c"),
            ("metadata.annotations['none']", ""),
        ] {
            assert_eq!(field_value(&pod, node, path).unwrap(), want);
        }
        assert!(field_value(&pod, node, "spec.hostname").is_err());
    }
}
