//! Rules of disks (api.md A7.4).

use holdfast_api::source::ObjectRefKind;
use holdfast_api::{GROUP, Quantity, VirtualDisk};

use super::storage::{check_class, is_filled};
use super::{Operation, Request, Verdict, View, check_plain_name, is_being_deleted, parse};

pub(super) fn validate(request: &Request<'_>, view: &dyn View) -> Verdict {
    let mut warnings = check_plain_name(request)?;
    let new: VirtualDisk = parse(request.object)?;
    let old: Option<VirtualDisk> = request.old.map(parse).transpose()?;
    if let Some(old) = &old {
        if old.spec == new.spec {
            return Ok(Vec::new());
        }
        if is_being_deleted(request.object) {
            return Err("the spec of a disk that is being deleted cannot be changed".to_owned());
        }
    }
    check_size(&new)?;
    if request.operation == Operation::Create {
        check_class(class(&new), view)?;
    }
    if let Some(old) = &old {
        check_change(old, &new, is_filled(request.old.unwrap_or(&serde_json::Value::Null)))?;
        if class(old) != class(&new) {
            check_class(class(&new), view)?;
        }
    }
    warnings.extend(source_warnings(&new, request.namespace, view));
    Ok(warnings)
}

fn class(disk: &VirtualDisk) -> Option<&str> {
    disk.spec.persistent_volume_claim.as_ref()?.storage_class_name.as_deref()
}

fn size(disk: &VirtualDisk) -> Option<&Quantity> {
    disk.spec.persistent_volume_claim.as_ref()?.size.as_ref()
}

fn check_size(disk: &VirtualDisk) -> Result<(), String> {
    match size(disk) {
        None if disk.spec.data_source.is_none() => {
            Err("it is necessary to set spec.persistentVolumeClaim.size to create a blank virtual disk"
                .to_owned())
        }
        None => Ok(()),
        Some(size) => match size.value() {
            Ok(bytes) if bytes > 0 => Ok(()),
            Ok(_) => Err("the virtual disk size must be greater than 0".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}

fn check_change(old: &VirtualDisk, new: &VirtualDisk, filled: bool) -> Result<(), String> {
    if size(old).is_some() && size(new).is_none() {
        return Err("spec.persistentVolumeClaim.size cannot be omitted once set".to_owned());
    }
    if !filled {
        return Ok(());
    }
    if old.spec.data_source != new.spec.data_source {
        return Err(
            "the data source cannot be changed if the VirtualDisk has already been provisioned".to_owned()
        );
    }
    if class(old) != class(new) {
        return Err(
            "the storage class cannot be changed if the VirtualDisk has already been provisioned".to_owned()
        );
    }
    let capacity = old.status.as_ref().and_then(|status| status.capacity.clone()).map(Quantity);
    let current = capacity.or_else(|| size(old).cloned());
    let shrinks = |current: &Quantity, new: &Quantity| Some(new.value().ok()? < current.value().ok()?);
    if let (Some(current), Some(wanted)) = (current, size(new))
        && shrinks(&current, wanted) == Some(true)
    {
        return Err(format!(
            "spec.persistentVolumeClaim.size value ({wanted}) should be greater than or equal to the current value ({current})"
        ));
    }
    Ok(())
}

fn source_warnings(disk: &VirtualDisk, namespace: &str, view: &dyn View) -> Vec<String> {
    let Some(reference) = disk.spec.data_source.as_ref().and_then(|source| source.object_ref.as_ref()) else {
        return Vec::new();
    };
    let image = match reference.kind {
        ObjectRefKind::VirtualImage => view.get(GROUP, "virtualimages", namespace, &reference.name),
        ObjectRefKind::ClusterVirtualImage => view.get(GROUP, "clustervirtualimages", "", &reference.name),
        ObjectRefKind::VirtualDisk | ObjectRefKind::VirtualDiskSnapshot => None,
    };
    let Some(image) = image else { return Vec::new() };
    let mut warnings = Vec::new();
    if image["status"]["cdrom"] == true {
        warnings.push(format!(
            "{} {:?} is an ISO image: a disk cannot be made from it",
            reference.kind, reference.name
        ));
    }
    let unpacked =
        image["status"]["size"]["unpackedBytes"].as_str().and_then(|text| text.parse::<i64>().ok());
    if let (Some(unpacked), Some(Ok(bytes))) = (unpacked, size(disk).map(Quantity::value))
        && bytes < unpacked
    {
        let needed = Quantity::from_bytes(unpacked);
        warnings.push(format!("the size is smaller than the unpacked image ({needed}): the disk will fail"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, decide};
    use serde_json::{Value, json};

    fn vd(name: &str, spec: Value, phase: Option<&str>) -> Value {
        let mut vd = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        if let Some(phase) = phase {
            vd["status"] = json!({"phase": phase, "capacity": "10Gi"});
        }
        vd
    }

    fn size(size: &str) -> Value {
        json!({"persistentVolumeClaim": {"size": size}})
    }

    fn http(url: &str) -> Value {
        json!({"dataSource": {"type": "HTTP", "http": {"url": url}}, "persistentVolumeClaim": {"size": "10Gi"}})
    }

    fn world() -> World {
        World::default().with("storage.k8s.io", "storageclasses", json!({"metadata": {"name": "shared"}}))
    }

    // VL-D2, VL-D18 (disks)
    #[test]
    fn creation() {
        for (name, spec, refused) in [
            ("d", size("100Mi"), ""),
            ("d", http("https://h/x"), ""),
            ("my.disk", size("1Gi"), "contains a dot"),
            ("d", size("0"), "greater than 0"),
            ("d", json!({}), "necessary to set spec.persistentVolumeClaim.size"),
            (
                "d",
                json!({"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "fast"}}),
                "\"fast\" was not found",
            ),
            ("d", json!({"persistentVolumeClaim": {"size": "1Gi", "storageClassName": "shared"}}), ""),
        ] {
            let verdict = decide(&world(), "virtualdisks", &vd(name, spec, None), None);
            match refused {
                "" => assert_eq!(verdict, Ok(vec![]), "{name}"),
                text => assert!(verdict.as_ref().unwrap_err().contains(text), "{verdict:?}"),
            }
        }
    }

    // VL-D9
    #[test]
    fn a_provisioned_disk_only_grows() {
        for (phase, old, new, refused) in [
            ("Ready", size("10Gi"), size("11Gi"), ""),
            (
                "Ready",
                size("10Gi"),
                size("9Gi"),
                "(9Gi) should be greater than or equal to the current value (10Gi)",
            ),
            (
                "Ready",
                http("https://h/x"),
                json!({"dataSource": http("https://h/x")["dataSource"]}),
                "cannot be omitted once set",
            ),
            ("Ready", http("https://h/x"), http("https://h/y"), "data source cannot be changed"),
            ("Pending", http("https://h/x"), http("https://h/y"), ""),
            ("Pending", size("10Gi"), size("9Gi"), ""),
            ("Failed", http("https://h/x"), http("https://h/y"), ""),
        ] {
            let (old, new) = (vd("d", old, Some(phase)), vd("d", new, Some(phase)));
            let verdict = decide(&world(), "virtualdisks", &new, Some(&old));
            match refused {
                "" => assert_eq!(verdict, Ok(vec![]), "{phase}"),
                text => assert!(verdict.as_ref().unwrap_err().contains(text), "{verdict:?}"),
            }
        }
    }

    #[test]
    fn a_disk_being_deleted_keeps_its_spec() {
        let old = vd("d", size("1Gi"), Some("Terminating"));
        let mut new = vd("d", size("2Gi"), Some("Terminating"));
        new["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(decide(&world(), "virtualdisks", &new, Some(&old)).is_err());
        new["spec"] = old["spec"].clone();
        assert!(decide(&world(), "virtualdisks", &new, Some(&old)).is_ok());
    }

    #[test]
    fn images_that_will_not_do_give_warnings() {
        let image = |cdrom: bool| {
            json!({
                "metadata": {"name": "img"},
                "status": {"cdrom": cdrom, "size": {"unpackedBytes": (2590i64 << 20).to_string()}},
            })
        };
        let spec = |size: &str| {
            let source =
                json!({"type": "ObjectRef", "objectRef": {"kind": "ClusterVirtualImage", "name": "img"}});
            json!({"dataSource": source, "persistentVolumeClaim": {"size": size}})
        };
        for (cdrom, size, warnings) in
            [(false, "10Gi", 0), (false, "1Gi", 1), (true, "10Gi", 1), (true, "1Gi", 2)]
        {
            let world = world().with("virtualization.deckhouse.io", "clustervirtualimages", image(cdrom));
            let given = decide(&world, "virtualdisks", &vd("d", spec(size), None), None).unwrap();
            assert_eq!(given.len(), warnings, "{given:?}");
        }
    }
}
