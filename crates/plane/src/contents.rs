//! What the control plane holds from its first moment on.

use holdfast_api::names::PLATFORM_NAMESPACE;
use holdfast_kubelith::Contents;
use serde_json::{Value, json};

/// Definitions of every kind, the platform's namespace, and the settings with the networks of the VMs
/// (`10.66.10.0/24`).
///
/// Settings are created where missing and never changed afterwards.
#[must_use]
pub fn contents(vm_cidrs: &[String]) -> Contents {
    let crd = |crd| serde_json::to_value(crd).expect("invariant: a definition is JSON");
    Contents {
        crds: holdfast_api::crds().iter().map(crd).collect(),
        namespaces: vec![PLATFORM_NAMESPACE.to_owned()],
        objects: vec![settings(vm_cidrs)],
    }
}

fn settings(vm_cidrs: &[String]) -> (String, String, String, Value) {
    let settings = json!({
        "apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig",
        "metadata": {"name": "virtualization"},
        "spec": {"enabled": true, "version": 1, "settings": {"virtualMachineCIDRs": vm_cidrs}},
    });
    ("deckhouse.io".to_owned(), "moduleconfigs".to_owned(), String::new(), settings)
}
