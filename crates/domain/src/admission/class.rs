//! Rules of classes (api.md A2.7).

use holdfast_api::GROUP;
use holdfast_api::VirtualMachineClass;
use holdfast_api::names::annotation::DEFAULT_CLASS;
use holdfast_api::vmclass::SizingPolicy;
use serde_json::Value;

use super::{Operation, Request, Verdict, View, is_being_deleted, name, parse};

pub(super) fn validate(request: &Request<'_>, view: &dyn View) -> Verdict {
    if is_being_deleted(request.object) {
        return Ok(Vec::new());
    }
    let class: VirtualMachineClass = parse(request.object)?;
    let policies = class.spec.sizing_policies.unwrap_or_default();
    if request.operation == Operation::Create && policies.iter().any(|policy| policy.cores.is_none()) {
        return Err("every sizing policy needs cores: say for which numbers of cores it is".to_owned());
    }
    no_overlap(name(request.object), &policies)?;
    for policy in &policies {
        if let Some(fraction) = policy.default_core_fraction
            && !policy.core_fractions.is_empty()
            && !policy.core_fractions.contains(&fraction)
        {
            return Err(format!("defaultCoreFraction {fraction} is not among coreFractions of its policy"));
        }
    }
    default_mark(request.object, view)?;
    Ok(Vec::new())
}

fn no_overlap(class: &str, policies: &[SizingPolicy]) -> Result<(), String> {
    let mut ranges: Vec<_> = policies.iter().filter_map(|policy| policy.cores.as_ref()).collect();
    ranges.sort_by_key(|range| range.min);
    for pair in ranges.windows(2) {
        if pair[1].min <= pair[0].max {
            return Err(format!(
                "vmclass {class} has size policy cpu crosses: the ranges of cores {}..{} and {}..{} overlap",
                pair[0].min, pair[0].max, pair[1].min, pair[1].max
            ));
        }
    }
    Ok(())
}

/// The value that marks the default class, if it is there.
fn mark(class: &Value) -> Option<&str> {
    class["metadata"]["annotations"].get(DEFAULT_CLASS)?.as_str()
}

fn default_mark(class: &Value, view: &dyn View) -> Result<(), String> {
    match mark(class) {
        None => return Ok(()),
        Some("true") => (),
        Some(other) => {
            return Err(format!(
                "the annotation {DEFAULT_CLASS} takes the value \"true\" only, not {other:?}: remove it to unmark the class"
            ));
        }
    }
    let other = view
        .list(GROUP, "virtualmachineclasses", None)
        .into_iter()
        .find(|known| name(known) != name(class) && mark(known) == Some("true"));
    match other {
        None => Ok(()),
        Some(other) => {
            Err(format!("class {:?} is the default one already: remove its annotation first", name(&other)))
        }
    }
}

/// Name of the class marked as default.
pub(super) fn default_name(view: &dyn View) -> Result<String, String> {
    let classes = view.list(GROUP, "virtualmachineclasses", None);
    let marked: Vec<&str> = classes.iter().filter(|class| mark(class) == Some("true")).map(name).collect();
    match marked[..] {
        [one] => Ok(one.to_owned()),
        [] => Err("no virtualMachineClassName is given and no class is marked as default".to_owned()),
        _ => Err(format!(
            "no virtualMachineClassName is given and several classes are marked as default: {}",
            marked.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use super::*;
    use serde_json::json;

    fn class(name: &str, policies: Value, mark: Option<&str>) -> Value {
        let mut class = json!({
            "metadata": {"name": name, "annotations": {}},
            "spec": {"cpu": {"type": "Host"}, "sizingPolicies": policies},
        });
        if let Some(mark) = mark {
            class["metadata"]["annotations"][DEFAULT_CLASS] = json!(mark);
        }
        class
    }

    // VL-K2: overlapping ranges.
    #[test]
    fn policies() {
        for (what, policies, refused) in [
            ("none", json!([]), ""),
            ("apart", json!([{"cores": {"min": 1, "max": 4}}, {"cores": {"min": 5, "max": 8}}]), ""),
            (
                "shared bound",
                json!([{"cores": {"min": 4, "max": 8}}, {"cores": {"min": 1, "max": 4}}]),
                "size policy cpu crosses",
            ),
            (
                "inside",
                json!([{"cores": {"min": 1, "max": 16}}, {"cores": {"min": 2, "max": 3}}]),
                "size policy cpu crosses",
            ),
            ("no cores", json!([{"coreFractions": [5]}]), "needs cores"),
            (
                "default not allowed",
                json!([{"cores": {"min": 1, "max": 4}, "coreFractions": [5], "defaultCoreFraction": 10}]),
                "not among",
            ),
        ] {
            let verdict =
                decide(&World::default(), "virtualmachineclasses", &class("c", policies, None), None);
            match refused {
                "" => assert_eq!(verdict, Ok(vec![]), "{what}"),
                text => assert!(verdict.unwrap_err().contains(text), "{what}"),
            }
        }
    }

    #[test]
    fn one_default_class() {
        let world =
            World::default().with(GROUP, "virtualmachineclasses", class("a", json!([]), Some("true")));
        let decide =
            |name, mark| decide(&world, "virtualmachineclasses", &class(name, json!([]), mark), None);
        assert!(decide("a", Some("true")).is_ok());
        assert!(decide("b", None).is_ok());
        assert!(decide("b", Some("true")).unwrap_err().contains("class \"a\" is the default one already"));
        assert!(decide("b", Some("yes")).unwrap_err().contains("\"true\" only"));
        assert_eq!(default_name(&world).as_deref(), Ok("a"));
        assert!(default_name(&World::default()).is_err());
    }
}
