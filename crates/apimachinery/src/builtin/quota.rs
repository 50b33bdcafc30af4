//! ResourceQuota: what objects use, and when that is too much (KS §16.6). Scopes are not supported.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::field::{FieldError, key};
use crate::quantity::{Format, Quantity};

/// Amounts by the names that `spec.hard` has for them.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds with a name of their own beside `count/KIND`.
const COUNTED: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// What an object uses of the quotas of its namespace.
#[must_use]
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let one = Quantity::whole(1, Format::DecimalSi);
    let mut usage = Usage::from([(count_of(group, plural), one)]);
    if group.is_empty() && COUNTED.contains(&plural) {
        usage.insert(plural.to_owned(), one);
    }
    match (group, plural) {
        ("", "pods") if !matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) => {
            usage.insert("pods".to_owned(), one);
            for (prefix, field) in [("requests", "requests"), ("limits", "limits")] {
                for (resource, amount) in pod_total(object, field) {
                    if prefix == "requests" && !is_extended(&resource) {
                        usage.insert(resource.clone(), amount);
                    }
                    usage.insert(format!("{prefix}.{resource}"), amount);
                }
            }
        }
        ("", "persistentvolumeclaims") => claim(object, &mut usage),
        _ => {}
    }
    usage
}

/// `count/pods`, `count/virtualmachines.virtualization.deckhouse.io`.
fn count_of(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

fn is_extended(resource: &str) -> bool {
    resource.contains('/')
}

/// Sum of the containers, at least the largest init container.
fn pod_total(pod: &Value, field: &str) -> Usage {
    let mut total = Usage::new();
    let amounts = |container: &Value| -> Vec<(String, Quantity)> {
        let all = container["resources"][field].as_object();
        let read =
            |(name, amount): (&String, &Value)| Some((name.clone(), Quantity::from_value(amount).ok()?));
        all.into_iter().flatten().filter_map(read).collect()
    };
    for (name, amount) in pod["spec"]["containers"].as_array().into_iter().flatten().flat_map(amounts) {
        let sum = total.get(&name).map_or(amount, |sum| *sum + amount);
        total.insert(name, sum);
    }
    for (name, amount) in pod["spec"]["initContainers"].as_array().into_iter().flatten().flat_map(amounts) {
        let most = total.get(&name).map_or(amount, |sum| (*sum).max(amount));
        total.insert(name, most);
    }
    total
}

fn claim(claim: &Value, usage: &mut Usage) {
    let Ok(size) = Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]) else { return };
    usage.insert("requests.storage".to_owned(), size);
    if let Some(class) = claim["spec"]["storageClassName"].as_str().filter(|class| !class.is_empty()) {
        let of_class = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{of_class}/requests.storage"), size);
        usage.insert(format!("{of_class}/persistentvolumeclaims"), Quantity::whole(1, Format::DecimalSi));
    }
}

/// Whether objects of a kind can use what is limited under `name`.
#[must_use]
pub fn concerns(name: &str, group: &str, plural: &str) -> bool {
    if name == count_of(group, plural) {
        return true;
    }
    let of_claims = name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/");
    match (group, plural) {
        ("", "persistentvolumeclaims") => of_claims || name == plural,
        ("", "pods") => {
            let compute = matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage");
            compute
                || (!of_claims && (name.starts_with("requests.") || name.starts_with("limits.")))
                || name.starts_with("hugepages-")
        }
        ("", _) => COUNTED.contains(&plural) && name == plural,
        _ => false,
    }
}

/// What `after` uses more (or less) than `before`; nothing where both are equal.
#[must_use]
pub fn difference(after: &Usage, before: &Usage) -> Usage {
    let names: BTreeSet<&String> = after.keys().chain(before.keys()).collect();
    let amount = |usage: &Usage, name: &String| usage.get(name).copied().unwrap_or(Quantity::ZERO);
    let differences =
        names.into_iter().map(|name| (name.clone(), amount(after, name) - amount(before, name)));
    differences.filter(|(_, amount)| amount.signum() != 0).collect()
}

/// Amounts as they stand in `spec.hard` and `status.used`.
#[must_use]
pub fn read(amounts: &Value) -> Usage {
    let all = amounts.as_object().into_iter().flatten();
    { all }.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

/// The status of a quota whose namespace uses `used`.
#[must_use]
pub fn status(quota: &Value, used: &Usage) -> Value {
    let hard = read(&quota["spec"]["hard"]);
    let amounts = |of: &dyn Fn(&str, Quantity) -> Quantity| -> Map<String, Value> {
        hard.iter().map(|(name, limit)| (name.clone(), json!(of(name, *limit).to_string()))).collect()
    };
    json!({
        "hard": amounts(&|_, limit| limit),
        "used": amounts(&|name, _| used.get(name).copied().unwrap_or(Quantity::ZERO)),
    })
}

/// Why a quota refuses that its namespace uses `more`; the object is `after`.
#[must_use]
pub fn refusal(quota: &Value, group: &str, plural: &str, after: &Value, more: &Usage) -> Option<String> {
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    let (hard, used) = (read(&quota["spec"]["hard"]), read(&quota["status"]["used"]));
    if (group, plural) == ("", "pods") && more.contains_key("pods") {
        let missing = missing(&hard, after);
        if !missing.is_empty() {
            return Some(format!("failed quota: {name}: must specify {}", missing.join("; ")));
        }
    }
    let amount = |usage: &Usage, name: &String| usage.get(name).copied().unwrap_or(Quantity::ZERO);
    let exceeded = hard.iter().filter(|(name, limit)| {
        let more = amount(more, name);
        more.signum() > 0 && amount(&used, name) + more > **limit
    });
    let exceeded: Vec<&String> = exceeded.map(|(name, _)| name).collect();
    let show = |usage: &Usage| {
        let each = exceeded.iter().map(|name| format!("{name}={}", amount(usage, name)));
        each.collect::<Vec<_>>().join(",")
    };
    (!exceeded.is_empty()).then(|| {
        format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            show(more),
            show(&used),
            show(&hard)
        )
    })
}

/// Compute resources that the quota limits and a container leaves open: `limits.cpu for: main`.
fn missing(hard: &Usage, pod: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for name in hard.keys() {
        let (field, resource) = match name.split_once('.') {
            Some((field @ ("requests" | "limits"), resource)) => (field, resource),
            _ => ("requests", name.as_str()),
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        let lists = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array());
        let without =
            lists.into_iter().flatten().flatten().filter(|c| c["resources"][field][resource].is_null());
        let names: Vec<&str> = without.filter_map(|c| c["name"].as_str()).collect();
        if !names.is_empty() {
            missing.push(format!("{name} for: {}", names.join(",")));
        }
    }
    missing
}

pub(super) fn validate(quota: &Value, errors: &mut Vec<FieldError>) {
    for (name, amount) in quota["spec"]["hard"].as_object().into_iter().flatten() {
        let field = key("spec.hard", name);
        match Quantity::from_value(amount) {
            Err(_) => errors.push(FieldError::invalid(field, amount, "must be a quantity")),
            Ok(amount) if amount.signum() < 0 => errors.push(FieldError::invalid(
                field,
                &json!(amount.to_string()),
                "must be greater than or equal to 0",
            )),
            Ok(number) if is_count(name) && !number.is_integer() => {
                errors.push(FieldError::invalid(field, amount, "must be an integer"));
            }
            Ok(_) => {}
        }
    }
    for scopes in ["scopes", "scopeSelector"] {
        if !quota["spec"][scopes].is_null() {
            let why =
                "this server has no scopes of quotas: leave the field out, the quota then counts all objects";
            errors.push(FieldError::forbidden(format!("spec.{scopes}"), why));
        }
    }
}

fn is_count(name: &str) -> bool {
    name == "pods" || name.starts_with("count/") || COUNTED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, containers: &[(&str, Value)]) -> Value {
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, resources)| json!({"name": name, "resources": resources}))
            .collect();
        json!({"spec": {"containers": containers}, "status": {"phase": phase}})
    }

    fn shown(usage: &Usage) -> BTreeMap<&str, String> {
        usage.iter().map(|(name, amount)| (name.as_str(), amount.to_string())).collect()
    }

    #[test]
    fn a_pod_uses_the_sum_of_its_containers_until_it_has_ended() {
        let resources =
            json!({"requests": {"cpu": "100m", "memory": "64Mi", "x.io/kvm": "1"}, "limits": {"cpu": 1}});
        let running = pod("Running", &[("a", resources.clone()), ("b", resources.clone())]);
        let used = usage("", "pods", &running);
        let want = [
            ("count/pods", "1"),
            ("cpu", "200m"),
            ("limits.cpu", "2"),
            ("memory", "128Mi"),
            ("pods", "1"),
            ("requests.cpu", "200m"),
            ("requests.memory", "128Mi"),
            ("requests.x.io/kvm", "2"),
        ];
        assert_eq!(shown(&used), want.map(|(name, amount)| (name, amount.to_owned())).into());
        assert!(used.keys().all(|name| concerns(name, "", "pods")), "{used:?}");
        let ended = usage("", "pods", &pod("Failed", &[("a", resources)]));
        assert_eq!(shown(&ended), [("count/pods", "1".to_owned())].into());
        let less = difference(&ended, &used);
        assert_eq!(less["pods"].signum(), -1);
        assert!(!less.contains_key("count/pods"));
    }

    #[test]
    fn claims_count_by_class_and_other_kinds_by_their_names() {
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        let used = usage("", "persistentvolumeclaims", &claim);
        for (name, amount) in [
            ("requests.storage", "1Gi"),
            ("fast.storageclass.storage.k8s.io/requests.storage", "1Gi"),
            ("fast.storageclass.storage.k8s.io/persistentvolumeclaims", "1"),
            ("persistentvolumeclaims", "1"),
            ("count/persistentvolumeclaims", "1"),
        ] {
            assert_eq!(used[name].to_string(), amount, "{name}");
            assert!(concerns(name, "", "persistentvolumeclaims"), "{name}");
        }
        assert_eq!(
            shown(&usage("g.io", "things", &json!({}))),
            [("count/things.g.io", "1".to_owned())].into()
        );
        assert!(!concerns("requests.storage", "", "pods") && !concerns("pods", "", "secrets"));
    }

    // KS-A73: the text.
    #[test]
    fn too_much_is_refused_with_names_and_amounts() {
        let quota = json!({
            "metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.memory": "1Gi"}},
            "status": {"used": {"pods": "2", "requests.memory": "512Mi"}},
        });
        let pod = |memory: Value| pod("Pending", &[("main", json!({"requests": {"memory": memory}}))]);
        let refused = |pod: &Value| refusal(&quota, "", "pods", pod, &usage("", "pods", pod));
        let text = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2";
        assert_eq!(refused(&pod(json!("512Mi"))).as_deref(), Some(text));
        let text = "exceeded quota: q, requested: pods=1,requests.memory=513Mi, used: pods=2,requests.memory=512Mi, \
                    limited: pods=2,requests.memory=1Gi";
        assert_eq!(refused(&pod(json!("513Mi"))).as_deref(), Some(text));
        let text = "failed quota: q: must specify requests.memory for: main";
        assert_eq!(refused(&pod(Value::Null)).as_deref(), Some(text));
        let map = json!({});
        assert_eq!(refusal(&quota, "", "configmaps", &map, &usage("", "configmaps", &map)), None);
    }

    #[test]
    fn limits_are_quantities_and_there_are_no_scopes() {
        let mut errors = Vec::new();
        let hard = json!({"pods": "1.5", "requests.cpu": "-1", "limits.cpu": "x", "requests.memory": "1Gi"});
        validate(&json!({"spec": {"hard": hard, "scopes": ["Terminating"]}}), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        for part in ["spec.hard[pods]", "spec.hard[requests.cpu]", "spec.hard[limits.cpu]", "spec.scopes"] {
            assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
        }
    }
}
