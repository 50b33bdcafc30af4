//! The built-in provisioner: volumes are directories of this machine.
//!
//! Class `shared` (default, ReadWriteMany): `<shared>/<pv>`, reached from every node as a hostPath.
//! Class `local` (ReadWriteOnce): `<nodes>/<node>/storage/local/<pv>`, tied to its node by the volume's
//! node affinity. Pods see a volume only through their own mount, so the directories are writable for
//! any uid; what keeps others out is the home directory above them (mode 0700).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::json;

use super::PROVISIONED_BY;
use crate::Storage;

/// Provisioner of class `shared`.
pub const SHARED_PROVISIONER: &str = "holdfast.local/shared";
/// Provisioner of class `local`.
pub const LOCAL_PROVISIONER: &str = "holdfast.local/local";

/// Whether this process makes volumes of that provisioner.
pub(crate) fn is_built_in(provisioner: &str) -> bool {
    provisioner == SHARED_PROVISIONER || provisioner == LOCAL_PROVISIONER
}

/// The classes a fresh platform has.
pub(crate) fn classes() -> [StorageClass; 2] {
    let class = |name: &str, provisioner: &str, default: bool| {
        let annotations =
            BTreeMap::from([("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned())]);
        StorageClass {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                annotations: default.then_some(annotations),
                ..ObjectMeta::default()
            },
            provisioner: provisioner.to_owned(),
            reclaim_policy: Some("Delete".to_owned()),
            volume_binding_mode: Some("Immediate".to_owned()),
            ..StorageClass::default()
        }
    };
    [class("shared", SHARED_PROVISIONER, true), class("local", LOCAL_PROVISIONER, false)]
}

/// Name of the volume made for a claim: one claim, one name, so that a crash makes no second one.
pub(crate) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// The node a local volume is on.
pub(crate) fn node_of(volume: &PersistentVolume) -> Option<String> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let expressions = required.node_selector_terms.first()?.match_expressions.as_ref()?;
    let host = expressions.iter().find(|e| e.key == "kubernetes.io/hostname")?;
    host.values.as_ref()?.first().cloned()
}

/// Makes the directory and returns the volume to create. Repeating it is harmless.
///
/// # Errors
/// When the claim asks for what directories cannot give, or the directory cannot be made.
pub(crate) async fn make(
    storage: &Storage,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&str>,
) -> anyhow::Result<PersistentVolume> {
    let spec = claim.spec.clone().unwrap_or_default();
    ensure!(
        spec.volume_mode.as_deref().unwrap_or("Filesystem") == "Filesystem",
        "storage class {:?} makes Filesystem volumes only; set volumeMode to Filesystem",
        class.name_any()
    );
    ensure!(
        spec.data_source.is_none() && spec.data_source_ref.is_none(),
        "storage class {:?} cannot copy a data source; leave dataSource empty",
        class.name_any()
    );
    let modes = spec.access_modes.clone().unwrap_or_default();
    let size = spec
        .resources
        .and_then(|r| r.requests)
        .and_then(|r| r.get("storage").cloned())
        .context("the claim asks for no storage size")?;
    let name = volume_name(claim);
    let path = match node {
        Some(node) => {
            ensure!(
                !modes.iter().any(|m| m == "ReadWriteMany"),
                "storage class {:?} keeps a volume on one node and cannot give ReadWriteMany; use class \"shared\"",
                class.name_any()
            );
            local_directory(storage, node)?.join(&name)
        }
        None => storage.shared.join(&name),
    };
    make_directory(&path).await?;
    let mut value = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: class.provisioner}},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": modes,
            "volumeMode": "Filesystem",
            "storageClassName": class.name_any(),
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
            },
        },
    });
    match node {
        Some(node) => {
            value["spec"]["local"] = json!({"path": path});
            let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]);
            value["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}});
        }
        None => value["spec"]["hostPath"] = json!({"path": path, "type": "Directory"}),
    }
    Ok(serde_json::from_value(value)?)
}

fn local_directory(storage: &Storage, node: &str) -> anyhow::Result<PathBuf> {
    ensure!(is_plain(Path::new(node)), "node name {node:?} cannot be a directory name");
    Ok(storage.nodes.join(node).join("storage/local"))
}

async fn make_directory(path: &Path) -> anyhow::Result<()> {
    let context = || format!("making the volume directory {}", path.display());
    let at = path.to_owned();
    let make = move || {
        std::fs::create_dir_all(&at)?;
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o777))
    };
    aside(make).await.with_context(context)
}

/// Does file work on a thread for that, as removing a large file takes long. A simulation has one thread
/// and waits for it.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    if holdfast_env::simulated() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

/// A single, ordinary path component.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// Removes the directory of a released volume; one that is gone already is fine.
///
/// # Errors
/// When the volume names a path that this provisioner would not have chosen, or removing fails.
pub(crate) async fn remove(storage: &Storage, volume: &PersistentVolume) -> anyhow::Result<()> {
    let name = volume.name_any();
    let spec = volume.spec.clone().unwrap_or_default();
    let (path, expected) = match (spec.host_path, spec.local) {
        (Some(source), _) => (source.path, storage.shared.join(&name)),
        (None, Some(source)) => {
            let node = node_of(volume).with_context(|| format!("local volume {name} names no node"))?;
            (source.path, local_directory(storage, &node)?.join(&name))
        }
        (None, None) => bail!("volume {name} has neither hostPath nor local source"),
    };
    ensure!(
        is_plain(Path::new(&name)) && Path::new(&path) == expected,
        "volume {name} is at {path}, not at {}; its data is left alone, remove volume and data by hand",
        expected.display()
    );
    let at = expected.clone();
    match aside(move || std::fs::remove_dir_all(&at)).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("removing the volume directory {}", expected.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(modes: &[&str]) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "data", "uid": "u1"},
            "spec": {"accessModes": modes, "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .unwrap()
    }

    // KS-A74: dynamic provisioning and its removal, on both classes.
    #[tokio::test]
    async fn directories_come_and_go() {
        let home = tempfile::tempdir().unwrap();
        let storage = Storage::in_home(home.path());
        let [shared, local] = classes();

        let volume = make(&storage, &claim(&["ReadWriteMany"]), &shared, None).await.unwrap();
        let path = home.path().join("storage/shared/pvc-u1");
        assert!(path.is_dir());
        assert_eq!(volume.spec.as_ref().unwrap().host_path.as_ref().unwrap().path, path.to_str().unwrap());
        std::fs::write(path.join("disk.img"), "x").unwrap();
        remove(&storage, &volume).await.unwrap();
        assert!(!path.exists());
        remove(&storage, &volume).await.unwrap();

        let volume = make(&storage, &claim(&["ReadWriteOnce"]), &local, Some("n1")).await.unwrap();
        let path = home.path().join("nodes/n1/storage/local/pvc-u1");
        assert!(path.is_dir());
        assert_eq!(node_of(&volume).as_deref(), Some("n1"));
        remove(&storage, &volume).await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn foreign_paths_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let storage = Storage::in_home(home.path());
        let victim = home.path().join("precious");
        std::fs::create_dir(&victim).unwrap();
        let mut volume = make(&storage, &claim(&["ReadWriteMany"]), &classes()[0], None).await.unwrap();
        volume.spec.as_mut().unwrap().host_path.as_mut().unwrap().path = victim.to_str().unwrap().to_owned();
        let error = remove(&storage, &volume).await.unwrap_err();
        assert!(error.to_string().contains("left alone"), "{error}");
        assert!(victim.is_dir());
    }

    #[tokio::test]
    async fn what_a_directory_cannot_give_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let storage = Storage::in_home(home.path());
        let error = make(&storage, &claim(&["ReadWriteMany"]), &classes()[1], Some("n1")).await.unwrap_err();
        assert!(error.to_string().contains("ReadWriteMany"), "{error}");
        let mut block = claim(&["ReadWriteOnce"]);
        block.spec.as_mut().unwrap().volume_mode = Some("Block".to_owned());
        let error = make(&storage, &block, &classes()[0], None).await.unwrap_err();
        assert!(error.to_string().contains("Filesystem"), "{error}");
    }
}
