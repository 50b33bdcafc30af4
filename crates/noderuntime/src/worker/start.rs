//! Starting a container: volumes, environment, launch file, then the request to init.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::Worker;
use crate::environment::{self, NodeFacts, milli_of};
use crate::image::{BUILD_DIR, ENV_QEMU, Image, Unpacked};
use crate::launch::{Answer, Launch, Mount, Request};
use crate::paths::PodDir;
use crate::record::State;
use crate::volumes::{self, Lookup, Owner};

impl Worker {
    /// Starts a container; a start that init knows already is only recorded.
    pub(super) async fn start(&mut self, name: &str) -> Result<(), String> {
        let Some(pod) = self.pod.clone() else { return Ok(()) };
        let spec = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let Some(index) = spec.iter().position(|container| container.name == name) else {
            return Ok(());
        };
        let prepared = self.prepare(&pod, &spec[index], index).await;
        let launch = match prepared {
            Ok(launch) => launch,
            Err((reason, message)) => {
                self.event("Warning", &reason, &message);
                self.hindrance = Some((reason, message.clone()));
                self.write_status().await?;
                return Err(message);
            }
        };
        self.hindrance = None;
        self.set(name, State::Starting);
        self.save()?;
        let request = Request::Start { key: self.key(name), launch, log: self.dir.log(name) };
        match self.ask(&request).await? {
            Answer::Running { process } => self.set_running(name, process)?,
            Answer::Exited { exit } => self.set_exited(name, &exit, None).await?,
            Answer::Failed { error } => {
                self.set(name, State::Waiting { not_before_ms: 0 });
                self.save()?;
                self.event("Warning", "Failed", &format!("Error: {error}"));
                return Err(error);
            }
            Answer::Unknown | Answer::Done => return Err("node init gave no answer".to_owned()),
        }
        let image = spec[index].image.as_deref().unwrap_or_default();
        let pulled = format!("Container image \"{image}\" already present on machine");
        self.event("Normal", "Pulled", &pulled);
        self.event("Normal", "Created", &format!("Created container: {name}"));
        self.event("Normal", "Started", &format!("Started container {name}"));
        Ok(())
    }

    /// Makes volumes and files and writes the launch file. Errors: waiting reason and sentence.
    async fn prepare(
        &mut self,
        pod: &Pod,
        container: &Container,
        index: usize,
    ) -> Result<PathBuf, (String, String)> {
        let config = &self.shared.config;
        let bad = |message: String| ("CreateContainerConfigError".to_owned(), message);
        let io = |error: std::io::Error| ("CreateContainerError".to_owned(), error.to_string());
        let image = container.image.as_deref().and_then(Image::of);
        let image = image.ok_or_else(|| bad("the image is not served here".to_owned()))?;
        let reference = container.image.as_deref().unwrap_or_default();
        let unpacked = Unpacked::find(image, reference, &config.programs, &config.builds)
            .map_err(|why| ("ErrImagePull".to_owned(), why))?;
        let owner = Owner::of(pod, index).map_err(bad)?;
        let lookup = Lookup::new(self.shared.client.clone());
        for dir in [self.dir.path().to_owned(), self.dir.root(), self.dir.path().join("logs")] {
            std::fs::create_dir_all(dir).map_err(io)?;
        }
        let places = volumes::prepare(pod, &self.dir, owner, &lookup)
            .await
            .map_err(|why| ("FailedMount".to_owned(), why))?;
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            mounts.push(mount_of(mount, &places).map_err(bad)?);
        }
        mounts.extend(unpacked.build.map(|source| Mount {
            source,
            target: BUILD_DIR.into(),
            read_only: true,
        }));
        let log_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        let node = NodeFacts { name: &config.node.name, ip: &config.node.ip };
        let mut env = environment::build(pod, container, node, log_path, &lookup).await.map_err(bad)?;
        env.extend(unpacked.qemu.map(|qemu| (ENV_QEMU.to_owned(), qemu.display().to_string())));
        let log = self.dir.termination_log(&container.name, index == 0);
        fresh_file(&log, owner).map_err(io)?;
        let attempt = self.record.containers.get(&container.name).map_or(0, |c| c.attempt);
        if attempt > 0 {
            let _ = std::fs::rename(self.dir.log(&container.name), self.dir.previous_log(&container.name));
        }
        remove_ready_file(&self.dir, image);
        let launch = Launch {
            program: unpacked.program,
            args: environment::arguments(container, &env),
            env,
            work_dir: container.working_dir.as_deref().unwrap_or("/").into(),
            uid: owner.uid,
            gid: owner.gid,
            groups: owner.fs_group.into_iter().chain(kvm_group()).collect(),
            isolated_network: image.is_isolated(),
            root: self.dir.root(),
            mounts,
            termination_log: (log, log_path.into()),
            cgroup: self.cgroup_path(&container.name),
            cpu_request_milli: resource(container, true, "cpu").map(|(milli, _)| milli),
            memory_max_bytes: resource(container, false, "memory").map(|(_, whole)| whole),
        };
        let path = self.dir.launch(&container.name);
        let text = serde_json::to_vec_pretty(&launch).map_err(|error| bad(error.to_string()))?;
        std::fs::write(&path, text).map_err(io)?;
        Ok(path)
    }
}

fn mount_of(mount: &VolumeMount, places: &BTreeMap<String, PathBuf>) -> Result<Mount, String> {
    let place = places.get(&mount.name).ok_or_else(|| format!("there is no volume {:?}", mount.name))?;
    if mount.sub_path_expr.is_some() || mount.mount_propagation.as_deref().is_some_and(|p| p != "None") {
        return Err(format!(
            "volumeMount {}: subPathExpr and mountPropagation are not available here",
            mount.name
        ));
    }
    let sub = mount.sub_path.as_deref().unwrap_or_default();
    let plain = Path::new(sub).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if !plain {
        return Err(format!("volumeMount {}: subPath {sub:?} must be relative and without ..", mount.name));
    }
    Ok(Mount {
        source: if sub.is_empty() { place.clone() } else { place.join(sub) },
        target: mount.mount_path.clone().into(),
        read_only: mount.read_only.unwrap_or(false),
    })
}

/// A request (or limit) in milli-units and whole units, if there is one.
fn resource(container: &Container, request: bool, name: &str) -> Option<(u64, u64)> {
    let resources = container.resources.as_ref()?;
    let map = if request { resources.requests.as_ref()? } else { resources.limits.as_ref()? };
    let milli = milli_of(&map.get(name)?.0)?;
    Some((u64::try_from(milli).ok()?, u64::try_from(milli.div_ceil(1000)).ok()?))
}

/// The group that may use `/dev/kvm`, if one may.
fn kvm_group() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata("/dev/kvm").ok()?;
    (metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0).then(|| metadata.gid())
}

fn fresh_file(path: &Path, owner: Owner) -> std::io::Result<()> {
    std::fs::write(path, b"")?;
    std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))
}

fn remove_ready_file(dir: &PodDir, image: Image) {
    if let Some((volume, file)) = image.ready_file() {
        let _ = std::fs::remove_file(dir.empty_dir(volume).join(file));
    }
}
