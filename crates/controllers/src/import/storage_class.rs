//! Which storage class and access mode a claim gets (vm-lifecycle.md §8.5).

use holdfast_api::names::annotation;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

/// Provisioner of the embedded platform's class `shared`: every node reaches its volumes.
const SHARED_PROVISIONER: &str = "holdfast.local/shared";
/// Annotation of a class that overrides what is known about its provisioner.
const ACCESS_MODE: &str = "virtualdisk.virtualization.deckhouse.io/access-mode";
/// Provisioners known to give ReadWriteMany on Filesystem volumes.
const SHARED: [&str; 4] =
    [SHARED_PROVISIONER, "nfs.csi.k8s.io", "rook-ceph.cephfs.csi.ceph.com", "cephfs.csi.ceph.com"];

/// The class chosen and how it is used; the volume mode is Filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Name of the class.
    pub class: String,
    /// `ReadWriteMany` or `ReadWriteOnce`.
    pub access_mode: &'static str,
}

/// The wanted class, else the cluster's default one.
///
/// # Errors
/// A sentence: there is no such class, or it is being deleted, or there is no default class.
pub fn choose(classes: &[StorageClass], wanted: Option<&str>) -> Result<Choice, String> {
    let class = match wanted {
        Some(name) => classes
            .iter()
            .find(|class| class.name_any() == name)
            .ok_or_else(|| format!("The StorageClass {name:?} was not found."))?,
        None => default(classes).ok_or(
            "The default StorageClass was not found in either the cluster or the module settings: specify a \
             StorageClass name or mark a class as default.",
        )?,
    };
    if class.metadata.deletion_timestamp.is_some() {
        return Err(format!("The StorageClass {:?} is terminating.", class.name_any()));
    }
    let marked = class.annotations().get(ACCESS_MODE).map(String::as_str);
    let shared = match marked {
        Some(mode) => mode == "ReadWriteMany",
        None => SHARED
            .iter()
            .any(|known| class.provisioner == *known || class.provisioner.ends_with(&format!(".{known}"))),
    };
    let access_mode = if shared { "ReadWriteMany" } else { "ReadWriteOnce" };
    Ok(Choice { class: class.name_any(), access_mode })
}

/// The default class: of several the newest, then the first by name.
fn default(classes: &[StorageClass]) -> Option<&StorageClass> {
    let is_default = |class: &&StorageClass| {
        class.annotations().get(annotation::DEFAULT_STORAGE_CLASS).is_some_and(|value| value == "true")
    };
    let born = |class: &StorageClass| class.metadata.creation_timestamp.clone();
    classes
        .iter()
        .filter(is_default)
        .max_by(|a, b| born(a).cmp(&born(b)).then_with(|| b.name_any().cmp(&a.name_any())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(name: &str, provisioner: &str, default: bool, born: &str) -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "creationTimestamp": born,
                "annotations": {annotation::DEFAULT_STORAGE_CLASS: default.to_string()},
            },
            "provisioner": provisioner,
        }))
        .unwrap()
    }

    #[test]
    fn wanted_then_default() {
        let early = "2026-01-01T00:00:00Z";
        let late = "2026-01-02T00:00:00Z";
        let classes = [
            class("shared", SHARED_PROVISIONER, true, early),
            class("local", "holdfast.local/local", false, early),
        ];
        let choice = |wanted| choose(&classes, wanted).map(|c| format!("{} {}", c.class, c.access_mode));
        assert_eq!(choice(None).unwrap(), "shared ReadWriteMany");
        assert_eq!(choice(Some("local")).unwrap(), "local ReadWriteOnce");
        assert_eq!(choice(Some("fast")).unwrap_err(), "The StorageClass \"fast\" was not found.");
        assert!(
            choose(&classes[1..], None).unwrap_err().starts_with("The default StorageClass was not found")
        );
        let several =
            [class("b", "x", true, late), class("a", "x", true, late), class("c", "x", true, early)];
        assert_eq!(choose(&several, None).unwrap().class, "a");
    }
}
