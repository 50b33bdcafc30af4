//! Volumes of a pod: where they are on the host, and making them ready (directories, files, owners).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use holdfast_sys::context;
use k8s_openapi::api::core::v1::{
    ConfigMap, KeyToPath, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume,
};
use kube::{Api, Client};

use crate::paths::PodDir;

/// Reads what volumes and variables refer to. Errors are sentences for events.
#[derive(Clone)]
pub struct Lookup {
    client: Client,
}

type Data = BTreeMap<String, Vec<u8>>;

impl Lookup {
    /// With the node's credentials.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// A Secret's data; `None` when there is none.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Data>, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|e| format!("secret {name}: {e}"))?;
        Ok(found.map(|s| s.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()))
    }

    /// A ConfigMap's data and binary data; `None` when there is none.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Data>, String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|e| format!("configmap {name}: {e}"))?;
        Ok(found.map(|map| {
            let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
            let binary = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
            text.chain(binary).collect()
        }))
    }

    /// Directory (or file) behind a claim.
    ///
    /// # Errors
    /// Claim missing, not bound, or bound to a volume this node cannot show.
    async fn claim(&self, namespace: &str, name: &str) -> Result<PathBuf, String> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let claim = claims
            .get_opt(name)
            .await
            .map_err(|e| format!("persistentvolumeclaim {name}: {e}"))?
            .ok_or_else(|| format!("persistentvolumeclaim {name} not found"))?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let Some(volume) = volume.filter(|_| bound) else {
            return Err(format!("persistentvolumeclaim {name} is not bound"));
        };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = volumes
            .get_opt(volume)
            .await
            .map_err(|e| format!("persistentvolume {volume}: {e}"))?
            .ok_or_else(|| format!("persistentvolume {volume} not found"))?;
        let spec = found.spec.unwrap_or_default();
        let path = spec.host_path.map(|v| v.path).or_else(|| spec.local.map(|v| v.path));
        path.map(PathBuf::from).ok_or_else(|| {
            format!("persistentvolume {volume} has neither hostPath nor local: this node cannot mount it")
        })
    }
}

/// Who the pod's files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User of the containers.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Group of the volumes.
    pub fs_group: Option<u32>,
}

impl Owner {
    /// From the pod's and the container's security context.
    ///
    /// # Errors
    /// When an id is out of range, or the container would run as root.
    pub fn of(pod: &Pod, container: usize) -> Result<Self, String> {
        let spec = pod.spec.as_ref();
        let outer = spec.and_then(|spec| spec.security_context.as_ref());
        let inner = spec
            .and_then(|spec| spec.containers.get(container))
            .and_then(|container| container.security_context.as_ref());
        let uid = inner.and_then(|c| c.run_as_user).or(outer.and_then(|c| c.run_as_user));
        let gid = inner.and_then(|c| c.run_as_group).or(outer.and_then(|c| c.run_as_group));
        let id = |name: &str, value: i64| {
            u32::try_from(value).map_err(|_| format!("securityContext.{name} {value} is out of range"))
        };
        let uid = id("runAsUser", uid.unwrap_or(65_534))?;
        if uid == 0 {
            return Err("securityContext.runAsUser 0: containers here never run as root".to_owned());
        }
        let gid = gid.map_or(Ok(uid), |gid| id("runAsGroup", gid))?;
        let fs_group = outer.and_then(|c| c.fs_group).map(|group| id("fsGroup", group)).transpose()?;
        Ok(Self { uid, gid, fs_group })
    }

    fn group(self) -> u32 {
        self.fs_group.unwrap_or(self.gid)
    }
}

/// Makes every volume of the pod ready and returns its place on the host, by volume name.
///
/// # Errors
/// A sentence naming the volume and what is missing; may be tried again.
pub async fn prepare(
    pod: &Pod,
    dir: &PodDir,
    owner: Owner,
    lookup: &Lookup,
) -> Result<BTreeMap<String, PathBuf>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut places = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let place = prepare_one(volume, namespace, dir, owner, lookup)
            .await
            .map_err(|why| format!("volume {:?}: {why}", volume.name))?;
        places.insert(volume.name.clone(), place);
    }
    Ok(places)
}

async fn prepare_one(
    volume: &Volume,
    namespace: &str,
    dir: &PodDir,
    owner: Owner,
    lookup: &Lookup,
) -> Result<PathBuf, String> {
    let text = |error: io::Error| error.to_string();
    if volume.empty_dir.is_some() {
        let place = dir.empty_dir(&volume.name);
        empty_dir(&place, owner).map_err(text)?;
        return Ok(place);
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        let place = lookup.claim(namespace, &claim.claim_name).await?;
        if claim.read_only != Some(true) {
            give_to_group(&place, owner).map_err(text)?;
        }
        return Ok(place);
    }
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let data = lookup.secret(namespace, name).await?;
        let data = required(data, "secret", name, secret.optional)?;
        let place = dir.volume("kubernetes.io~secret", &volume.name);
        let mode = secret.default_mode.unwrap_or(0o644);
        files(&place, select(data, secret.items.as_deref(), mode)?, owner).map_err(text)?;
        return Ok(place);
    }
    if let Some(map) = &volume.config_map {
        let data = lookup.config_map(namespace, &map.name).await?;
        let data = required(data, "configmap", &map.name, map.optional)?;
        let place = dir.volume("kubernetes.io~configmap", &volume.name);
        let mode = map.default_mode.unwrap_or(0o644);
        files(&place, select(data, map.items.as_deref(), mode)?, owner).map_err(text)?;
        return Ok(place);
    }
    Err("this kind of volume is not available here".to_owned())
}

fn required(data: Option<Data>, kind: &str, name: &str, optional: Option<bool>) -> Result<Data, String> {
    match data {
        Some(data) => Ok(data),
        None if optional == Some(true) => Ok(Data::new()),
        None => Err(format!("{kind} {name:?} not found")),
    }
}

/// Files to write: relative path, content, mode.
type Files = Vec<(String, Vec<u8>, u32)>;

fn select(data: Data, items: Option<&[KeyToPath]>, default_mode: i32) -> Result<Files, String> {
    let bits = |mode: i32| {
        u32::try_from(mode)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("mode {mode} is not 0 to 0777"))
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let mode = bits(default_mode)?;
        return Ok(data.into_iter().map(|(key, content)| (key, content, mode)).collect());
    };
    items
        .iter()
        .map(|item| {
            let content = data.get(&item.key).ok_or_else(|| format!("there is no key {:?}", item.key))?;
            let plain =
                Path::new(&item.path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
            if !plain {
                return Err(format!("path {:?} must be relative and without ..", item.path));
            }
            Ok((item.path.clone(), content.clone(), bits(item.mode.unwrap_or(default_mode))?))
        })
        .collect()
}

fn empty_dir(place: &Path, owner: Owner) -> io::Result<()> {
    context(std::fs::create_dir_all(place), || format!("create {}", place.display()))?;
    context(chown(place, Some(owner.uid), Some(owner.group())), || {
        format!("change owner of {}", place.display())
    })?;
    // Not for everybody, unlike kubelet's 0777: sockets of guests live here.
    context(std::fs::set_permissions(place, PermissionsExt::from_mode(0o2770)), || {
        format!("change mode of {}", place.display())
    })
}

/// Lets the pod's group read and write a persistent volume (what `fsGroup` asks for). Two levels
/// are enough for what the platform stores there: a directory of image files.
fn give_to_group(place: &Path, owner: Owner) -> io::Result<()> {
    let metadata = context(std::fs::metadata(place), || format!("look at volume {}", place.display()))?;
    give(place, owner, metadata.is_dir())?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(place)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                give(&entry.path(), owner, false)?;
            }
        }
    }
    Ok(())
}

fn give(path: &Path, owner: Owner, is_dir: bool) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path)?;
    let bits = if is_dir { 0o2770 } else { 0o660 };
    if metadata.gid() != owner.group() {
        context(chown(path, None, Some(owner.group())), || format!("change group of {}", path.display()))?;
    }
    let mode = metadata.mode() & 0o7777;
    if mode & bits != bits {
        context(std::fs::set_permissions(path, PermissionsExt::from_mode(mode | bits)), || {
            format!("change mode of {}", path.display())
        })?;
    }
    Ok(())
}

fn files(place: &Path, files: Files, owner: Owner) -> io::Result<()> {
    empty_dir(place, owner)?;
    for (name, content, mode) in files {
        let path = place.join(&name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        holdfast_sys::durable::write(&path, &content, mode)?;
        chown(&path, Some(owner.uid), Some(owner.group()))?;
        // The mode given at creation was cut by the umask.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn owner_comes_from_the_security_context_and_is_never_root() {
        let pod = |context: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"spec": {"containers": [{"name": "c"}], "securityContext": context}}),
            )
            .unwrap()
        };
        let owner = Owner::of(&pod(json!({"runAsUser": 70_000, "fsGroup": 70_001})), 0).unwrap();
        assert_eq!(owner, Owner { uid: 70_000, gid: 70_000, fs_group: Some(70_001) });
        assert_eq!(Owner::of(&pod(json!({})), 0).unwrap().uid, 65_534);
        assert!(Owner::of(&pod(json!({"runAsUser": 0})), 0).is_err());
        assert!(Owner::of(&pod(json!({"runAsUser": -1})), 0).is_err());
    }

    #[test]
    fn items_select_and_may_not_leave_the_volume() {
        let data = || Data::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let item =
            |key: &str, path: &str| KeyToPath { key: key.to_owned(), path: path.to_owned(), mode: None };
        assert_eq!(select(data(), None, 0o400).unwrap().len(), 2);
        let one = select(data(), Some(&[item("b", "x/y")]), 0o400).unwrap();
        assert_eq!(one, vec![("x/y".to_owned(), b"2".to_vec(), 0o400)]);
        assert!(select(data(), Some(&[item("c", "x")]), 0o400).unwrap_err().contains('c'));
        assert!(select(data(), Some(&[item("a", "../x")]), 0o400).is_err());
    }

    #[test]
    fn volumes_belong_to_the_pod() {
        use std::os::unix::fs::MetadataExt as _;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner { uid: 64_200, gid: 64_200, fs_group: Some(64_201) };
        let place = dir.path().join("secret");
        files(&place, vec![("k".to_owned(), b"v".to_vec(), 0o440)], owner).unwrap();
        let metadata = std::fs::metadata(place.join("k")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (64_200, 64_201, 0o440));
        let disk = dir.path().join("pv");
        std::fs::create_dir(&disk).unwrap();
        std::fs::write(disk.join("disk.img"), b"").unwrap();
        give_to_group(&disk, owner).unwrap();
        let metadata = std::fs::metadata(disk.join("disk.img")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o660), (0, 64_201, 0o660));
    }
}
