//! Rules of images (api.md A8, A9).

use holdfast_api::vi::{ImageStorage, VirtualImage};

use super::storage::{check_class, has_default_class, is_filled};
use super::{Operation, Request, Verdict, View, check_plain_name, is_being_deleted, parse};

pub(super) fn validate_local(request: &Request<'_>, view: &dyn View) -> Verdict {
    let mut warnings = check_plain_name(request)?;
    let new: VirtualImage = parse(request.object)?;
    if new.spec.storage == ImageStorage::Kubernetes {
        warnings.push("spec.storage Kubernetes is deprecated: use PersistentVolumeClaim".to_owned());
    }
    let Some(old) = request.old else {
        check_storage(&new, view)?;
        return Ok(warnings);
    };
    if old["spec"] == request.object["spec"] {
        return Ok(Vec::new());
    }
    if is_being_deleted(request.object) {
        return Err("the spec of an image that is being deleted cannot be changed".to_owned());
    }
    let before: VirtualImage = parse(old)?;
    if is_filled(old) {
        if before.spec.data_source != new.spec.data_source {
            return Err("the data source cannot be changed if the VirtualImage has already been provisioned"
                .to_owned());
        }
        return Err(
            "the storage cannot be changed if the VirtualImage has already been provisioned".to_owned()
        );
    }
    check_storage(&new, view)?;
    Ok(warnings)
}

fn check_storage(image: &VirtualImage, view: &dyn View) -> Result<(), String> {
    match image.spec.storage {
        ImageStorage::ContainerRegistry => return Ok(()),
        ImageStorage::PersistentVolumeClaim | ImageStorage::Kubernetes => (),
    }
    let class =
        image.spec.persistent_volume_claim.as_ref().and_then(|claim| claim.storage_class_name.as_deref());
    check_class(class, view)?;
    if class.is_none() && !has_default_class(view) {
        return Err("no storage class is given and the cluster has no default one: set \
                    spec.persistentVolumeClaim.storageClassName"
            .to_owned());
    }
    Ok(())
}

pub(super) fn validate_cluster(request: &Request<'_>) -> Verdict {
    let warnings = check_plain_name(request)?;
    let Some(old) = request.old else { return Ok(warnings) };
    if old["spec"] == request.object["spec"] {
        return Ok(Vec::new());
    }
    if is_being_deleted(request.object) {
        return Err("the spec of an image that is being deleted cannot be changed".to_owned());
    }
    if is_filled(old) && request.operation == Operation::Update {
        return Err(
            "ClusterVirtualImage is in a Ready state: configuration changes are not available".to_owned()
        );
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use serde_json::{Value, json};

    fn image(name: &str, url: &str, storage: &str, phase: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"storage": storage, "dataSource": {"type": "HTTP", "http": {"url": url}}},
            "status": {"phase": phase},
        })
    }

    fn world() -> World {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        let class = json!({"metadata": {"name": "shared", "annotations": annotations}});
        World::default().with("storage.k8s.io", "storageclasses", class)
    }

    // VL-D18 (images)
    #[test]
    fn creation() {
        let decide = |world: &World, name: &str, storage: &str| {
            decide(world, "virtualimages", &image(name, "https://h/x", storage, "Pending"), None)
        };
        assert_eq!(decide(&world(), "i", "ContainerRegistry"), Ok(vec![]));
        assert_eq!(decide(&world(), "i", "PersistentVolumeClaim"), Ok(vec![]));
        assert_eq!(decide(&world(), "i", "Kubernetes").unwrap().len(), 1);
        assert!(decide(&world(), "my.image", "ContainerRegistry").unwrap_err().contains("contains a dot"));
        assert!(
            decide(&World::default(), "i", "PersistentVolumeClaim").unwrap_err().contains("no default one")
        );
        assert_eq!(decide(&World::default(), "i", "ContainerRegistry"), Ok(vec![]));
    }

    // VL-D17
    #[test]
    fn a_ready_image_keeps_its_source() {
        for (resource, phase, fine) in [
            ("virtualimages", "Ready", false),
            ("virtualimages", "Failed", true),
            ("clustervirtualimages", "Ready", false),
            ("clustervirtualimages", "Provisioning", true),
        ] {
            let old = image("i", "https://h/x", "ContainerRegistry", phase);
            let new = image("i", "https://h/y", "ContainerRegistry", phase);
            assert_eq!(decide(&world(), resource, &new, Some(&old)).is_ok(), fine, "{resource} {phase}");
            assert!(decide(&world(), resource, &old, Some(&old)).is_ok());
        }
    }
}
