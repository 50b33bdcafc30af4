//! What disks and images have in common: storage classes, and when an object counts as filled.

use serde_json::Value;

use super::{View, name};

const DEFAULT: &str = holdfast_api::names::annotation::DEFAULT_STORAGE_CLASS;

/// A storage class that a spec names must exist.
pub(super) fn check_class(wanted: Option<&str>, view: &dyn View) -> Result<(), String> {
    let Some(wanted) = wanted else { return Ok(()) };
    if view.get("storage.k8s.io", "storageclasses", "", wanted).is_some() {
        return Ok(());
    }
    let classes = view.list("storage.k8s.io", "storageclasses", None);
    let known: Vec<&str> = classes.iter().map(name).collect();
    Err(format!("the StorageClass {wanted:?} was not found, there are: {}", known.join(", ")))
}

/// Whether a default class exists.
pub(super) fn has_default_class(view: &dyn View) -> bool {
    let classes = view.list("storage.k8s.io", "storageclasses", None);
    classes.iter().any(|class| class["metadata"]["annotations"][DEFAULT] == "true")
}

/// Whether the data of a disk or image is complete.
pub(super) fn is_filled(object: &Value) -> bool {
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    matches!(phase, "Ready" | "Resizing" | "PVCLost" | "ImageLost" | "Exporting" | "Migrating")
}
