//! Objects that a new platform starts with.

use serde_json::{Value, json};

use crate::home::Facts;

/// Group, plural, namespace, object: created where missing, never changed afterwards.
#[must_use]
pub fn initial(facts: &Facts) -> Vec<(String, String, String, Value)> {
    let cidrs: Vec<String> = facts.vm_cidrs.iter().map(ToString::to_string).collect();
    let settings = json!({
        "apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig",
        "metadata": {"name": "virtualization"},
        "spec": {"enabled": true, "version": 1, "settings": {"virtualMachineCIDRs": cidrs}},
    });
    vec![("deckhouse.io".to_owned(), "moduleconfigs".to_owned(), String::new(), settings)]
}
