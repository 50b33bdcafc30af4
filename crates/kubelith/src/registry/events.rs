//! Events live once and are served under two groups (KS 12.5): `v1` is the stored form.

use holdfast_apimachinery::kind::Kind;
use serde_json::{Map, Value};

/// v1 name, events.k8s.io/v1 name.
const FIELDS: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

/// Whether the kind is one of the two Event kinds.
pub(super) fn is_event(kind: &Kind) -> bool {
    kind.kind == "Event" && matches!(kind.group.as_str(), "" | "events.k8s.io")
}

/// v1 to events.k8s.io/v1.
pub(super) fn to_new(event: Value) -> Value {
    rename(event, |old| FIELDS.iter().find(|(v1, _)| *v1 == old).map(|(_, new)| *new))
}

/// events.k8s.io/v1 to v1.
pub(super) fn to_old(event: Value) -> Value {
    rename(event, |new| FIELDS.iter().find(|(_, v)| *v == new).map(|(v1, _)| *v1))
}

fn rename(event: Value, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Value::Object(fields) = event else { return event };
    let renamed: Map<String, Value> =
        fields.into_iter().map(|(key, value)| (name(&key).map_or(key, str::to_owned), value)).collect();
    Value::Object(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_carry_the_same_facts() {
        let v1 = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "message": "m", "count": 2, "reason": "R"});
        let new = to_new(v1.clone());
        assert_eq!(
            new,
            json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod"}, "note": "m", "deprecatedCount": 2, "reason": "R"})
        );
        assert_eq!(to_old(new), v1);
    }
}
