//! A stored world for tests of admission rules.

use super::*;
use serde_json::json;

/// Stored objects: group, resource, object; and whether the control plane is the embedded one.
#[derive(Clone, Debug, Default)]
pub(super) struct World(pub(super) Vec<(&'static str, &'static str, Value)>, pub(super) bool);

impl World {
    pub(super) fn with(mut self, group: &'static str, resource: &'static str, object: Value) -> Self {
        self.0.push((group, resource, object));
        self
    }

    /// ModuleConfig `virtualization` with subnets.
    pub(super) fn subnets(self, cidrs: &[&str]) -> Self {
        let settings = json!({"virtualMachineCIDRs": cidrs});
        let object = json!({"metadata": {"name": "virtualization"}, "spec": {"settings": settings}});
        self.with("deckhouse.io", "moduleconfigs", object)
    }
}

impl View for World {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.list(group, resource, Some(namespace))
            .into_iter()
            .find(|object| object["metadata"]["name"] == name)
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Value> {
        let here = |object: &Value| {
            namespace.is_none_or(|namespace| {
                object["metadata"]["namespace"].as_str().unwrap_or_default() == namespace
            })
        };
        let found = self.0.iter().filter(|(g, r, o)| *g == group && *r == resource && here(o));
        found.map(|(_, _, object)| object.clone()).collect()
    }

    fn is_embedded(&self) -> bool {
        self.1
    }
}

/// Decides a create (`old` absent) or an update.
pub(super) fn decide(
    world: &World,
    resource: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<String>, String> {
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    let group = match resource {
        "moduleconfigs" => "deckhouse.io",
        holdfast_api::maintenance::PLURAL => holdfast_api::maintenance::GROUP,
        _ => GROUP,
    };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let request = Request { operation, group, resource, namespace, is_platform: false, object, old };
    validate(&request, world).map_err(|denied| denied.message)
}
