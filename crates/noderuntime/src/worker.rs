//! One task per pod: looks, plans, does one step, writes the status, waits for the next reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_sys::asyncfd;
use holdfast_sys::cgroup::{Cgroup, Hierarchies};
use holdfast_sys::pidfd::PidFd;
use holdfast_sys::proc::ProcessId;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::environment::{self, NodeFacts, milli_of};
use crate::events::Events;
use crate::image::Image;
use crate::init::InitClient;
use crate::launch::{Answer, ExitRecord, Launch, Mount, Request, StartKey};
use crate::paths::{NodeDir, PodDir};
use crate::plan::{self, Observed, Step};
use crate::record::{ContainerRecord, Exit, PodRecord, State};
use crate::status::{self, Facts};
use crate::volumes::{self, Lookup, Owner};
use crate::{Config, time};

/// Pause before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a running container that is not ready yet is looked at.
const READY_POLL: Duration = Duration::from_millis(5);
/// Longest termination message kept (as Kubernetes does).
const MAX_MESSAGE: u64 = 4096;

/// What all workers of a node share.
pub struct Shared {
    /// The runtime's configuration.
    pub config: Config,
    /// API client with the node's identity.
    pub client: Client,
    /// The node's init.
    pub init: InitClient,
    /// Event writer.
    pub events: Events,
    /// Node directory.
    pub dir: NodeDir,
    /// Control groups of this machine.
    pub cgroups: Hierarchies,
}

/// A pod as the watch shows it.
pub type View = Option<Arc<Pod>>;

/// Serves one pod until its object and its processes are gone.
pub async fn run(shared: Arc<Shared>, uid: String, mut view: watch::Receiver<View>) {
    let mut worker = loop {
        let pod = view.borrow_and_update().clone();
        match Worker::open(Arc::clone(&shared), &uid, pod) {
            Ok(Some(worker)) => break worker,
            Ok(None) => return,
            Err(error) => {
                // A record that cannot be read: starting anything could double a process.
                tracing::error!(uid, %error, "pod record");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    loop {
        let wake = match worker.pass().await {
            Ok(Next::Done) => return,
            Ok(Next::Again) => Some(Duration::ZERO),
            Ok(Next::Wait(wake)) => wake,
            Err(error) => {
                worker.complain(&error);
                Some(RETRY)
            }
        };
        if worker.wait(&mut view, wake).await {
            worker.pod = view.borrow_and_update().clone();
        }
    }
}

enum Next {
    Done,
    Again,
    Wait(Option<Duration>),
}

struct Worker {
    shared: Arc<Shared>,
    dir: PodDir,
    pod: View,
    record: PodRecord,
    processes: BTreeMap<String, AsyncFd<PidFd>>,
    ready: BTreeSet<String>,
    hindrance: Option<(String, String)>,
    last_event: String,
    last_error: String,
}

impl Worker {
    /// Opens the record, or makes one for a new pod. `None`: neither object nor record, nothing to do.
    fn open(shared: Arc<Shared>, uid: &str, pod: View) -> std::io::Result<Option<Self>> {
        let path = shared.dir.record(uid);
        let now = time::now();
        let record = match (PodRecord::load(&path)?, &pod) {
            (Some(mut record), _) => {
                let exits = shared.dir.exits();
                let exit_of = |container: &str, attempt: u32| {
                    let container = container.to_owned();
                    let key = StartKey { pod_uid: uid.to_owned(), container, attempt };
                    read_exit(&exits.join(key.file_name()))
                };
                if record.enter_boot(&shared.config.node.boot_id, &now, exit_of) {
                    record.save(&path)?;
                }
                record
            }
            (None, Some(pod)) => fresh_record(uid, pod, &shared.config.node.boot_id, now),
            (None, None) => return Ok(None),
        };
        Ok(Some(Self {
            dir: shared.dir.pod(uid),
            shared,
            pod,
            record,
            processes: BTreeMap::new(),
            ready: BTreeSet::new(),
            hindrance: None,
            last_event: String::new(),
            last_error: String::new(),
        }))
    }

    async fn pass(&mut self) -> Result<Next, String> {
        self.ask_about_unknown_starts().await?;
        self.collect_exits().await?;
        self.look_at_readiness();
        let observed = Observed { pod: self.pod.as_deref(), record: &self.record, now_ms: time::now_ms() };
        let step = plan::next(observed);
        self.write_status().await?;
        match step {
            Step::Wait(at) => {
                self.report_refusal();
                let at = at
                    .map(|at| Duration::from_millis(u64::try_from(at - time::now_ms()).unwrap_or(0).max(1)));
                let poll = self.has_unready_container().then_some(READY_POLL);
                Ok(Next::Wait(at.into_iter().chain(poll).min()))
            }
            Step::Start(container) => self.start(&container).await.map(|()| Next::Again),
            Step::Restart { container, not_before_ms } => {
                self.restart(&container, not_before_ms)?;
                Ok(Next::Again)
            }
            Step::Terminate => {
                self.event("Normal", "Killing", "Stopping containers");
                self.signal(Signal::TERM);
                self.record.term_sent_ms = Some(time::now_ms());
                self.save()?;
                Ok(Next::Again)
            }
            Step::Kill => {
                self.kill().await?;
                Ok(Next::Again)
            }
            Step::DeleteObject => {
                self.delete_object().await?;
                Ok(Next::Wait(None))
            }
            Step::Forget => self.forget().map(|()| Next::Done),
        }
    }

    /// Waits for a change of the pod (then `true`), the end of a process, or `wake`.
    async fn wait(&self, view: &mut watch::Receiver<View>, wake: Option<Duration>) -> bool {
        let end = async {
            let ends: Vec<_> = self.processes.values().map(|process| Box::pin(process.readable())).collect();
            if ends.is_empty() {
                std::future::pending::<()>().await;
            }
            let _ = futures::future::select_all(ends).await;
        };
        let timer = async {
            match wake {
                Some(wake) => tokio::time::sleep(wake).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // The sender is dropped after it sent "gone": an error here means no further news.
            Ok(()) = view.changed() => true,
            () = end => false,
            () = timer => false,
        }
    }

    fn key(&self, container: &str) -> StartKey {
        StartKey {
            pod_uid: self.record.uid.clone(),
            container: container.to_owned(),
            attempt: self.record.containers.get(container).map_or(0, |c| c.attempt),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, String> {
        self.shared.init.ask(request).await.map_err(|error| format!("node init: {error}"))
    }

    fn save(&self) -> Result<(), String> {
        let path = self.shared.dir.record(&self.record.uid);
        self.record.save(&path).map_err(|error| error.to_string())
    }

    /// A runtime that died between writing `Starting` and hearing init's answer: init knows.
    async fn ask_about_unknown_starts(&mut self) -> Result<(), String> {
        for name in names_in(&self.record, |state| matches!(state, State::Starting)) {
            let key = self.key(&name);
            match self.ask(&Request::Query { key }).await? {
                Answer::Running { process } => self.set_running(&name, process)?,
                Answer::Exited { exit } => self.set_exited(&name, &exit, None).await?,
                Answer::Unknown | Answer::Failed { .. } | Answer::Done => {
                    self.set(&name, State::Waiting { not_before_ms: 0 });
                    self.save()?;
                }
            }
        }
        // Adopted from a record: the process must be watched again.
        for name in names_in(&self.record, |state| matches!(state, State::Running { .. })) {
            if self.processes.contains_key(&name) {
                continue;
            }
            let Some(State::Running { process, .. }) = self.state(&name) else { continue };
            if let Some(fd) = process.open().and_then(|fd| asyncfd::register_process(fd).ok()) {
                self.processes.insert(name, fd);
            }
        }
        Ok(())
    }

    async fn collect_exits(&mut self) -> Result<(), String> {
        for name in names_in(&self.record, |state| matches!(state, State::Running { .. })) {
            if self.processes.get(&name).is_some_and(|fd| !fd.get_ref().has_ended()) {
                continue;
            }
            let Some(State::Running { started_at, .. }) = self.state(&name) else { continue };
            let started_at = started_at.clone();
            let exit = match self.ask(&Request::Query { key: self.key(&name) }).await? {
                Answer::Exited { exit } => exit,
                // Ended this instant and init has not reaped it yet, or a process of init that is
                // not visible here: ask again, never guess.
                Answer::Running { process } if process.is_alive() => continue,
                Answer::Running { .. } => return Err(format!("{name}: waiting for init to reap it")),
                Answer::Unknown | Answer::Failed { .. } | Answer::Done => self
                    .exit_from_file(&name)
                    .unwrap_or_else(|| ExitRecord { code: 137, signal: None, finished_at: time::now() }),
            };
            self.set_exited(&name, &exit, Some(started_at)).await?;
        }
        Ok(())
    }

    fn exit_from_file(&self, container: &str) -> Option<ExitRecord> {
        read_exit(&self.shared.dir.exits().join(self.key(container).file_name()))
    }

    fn state(&self, container: &str) -> Option<&State> {
        self.record.containers.get(container).map(|c| &c.state)
    }

    fn set(&mut self, container: &str, state: State) {
        self.record.containers.entry(container.to_owned()).or_default().state = state;
    }

    fn set_running(&mut self, name: &str, process: ProcessId) -> Result<(), String> {
        self.set(name, State::Running { process, started_at: time::now() });
        self.save()?;
        if let Some(fd) = process.open() {
            let fd = asyncfd::register_process(fd).map_err(|error| error.to_string())?;
            self.processes.insert(name.to_owned(), fd);
        }
        Ok(())
    }

    /// Records an end, once nothing of the container is left: a QEMU must not outlive the word
    /// "terminated" (INV-1).
    async fn set_exited(
        &mut self,
        name: &str,
        exit: &ExitRecord,
        started_at: Option<String>,
    ) -> Result<(), String> {
        self.end_leftovers(name).await?;
        let first = self.is_first(name);
        let message = read_message(&self.dir.termination_log(name, first));
        let oom = exit.signal == Some(9) && self.cgroup(name).is_some_and(|group| group.was_out_of_memory());
        let reason = match (exit.code, oom) {
            (0, _) => "Completed",
            (_, true) => "OOMKilled",
            _ => "Error",
        };
        let exit = Exit {
            code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message,
            started_at: started_at.unwrap_or_default(),
            finished_at: exit.finished_at.clone(),
        };
        self.processes.remove(name);
        self.ready.remove(name);
        self.set(name, State::Exited { exit });
        self.save()?;
        let _ = self.ask(&Request::Forget { key: self.key(name) }).await;
        Ok(())
    }

    async fn end_leftovers(&self, name: &str) -> Result<(), String> {
        let Some(group) = self.cgroup(name) else { return Ok(()) };
        let text = |error: std::io::Error| error.to_string();
        for _ in 0..400 {
            if group.is_empty().map_err(text)? {
                return Ok(());
            }
            group.kill().map_err(text)?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(format!("container {name}: processes survive SIGKILL"))
    }

    fn cgroup_path(&self, container: &str) -> String {
        format!("{}/{}/{container}", self.shared.config.cgroup, self.record.uid)
    }

    fn cgroup(&self, container: &str) -> Option<Cgroup> {
        self.shared.cgroups.open(&self.cgroup_path(container))
    }

    fn is_first(&self, container: &str) -> bool {
        let first = self.pod.as_deref().and_then(|pod| plan::container_names(pod).next());
        first.is_none_or(|first| first == container)
    }

    fn look_at_readiness(&mut self) {
        let Some(pod) = self.pod.clone() else { return };
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            let name = &container.name;
            let running = matches!(self.state(name), Some(State::Running { .. }));
            let image = Image::of(container.image.as_deref().unwrap_or_default());
            let file = image.and_then(Image::ready_file);
            let ready =
                running && file.is_none_or(|(volume, file)| self.dir.empty_dir(volume).join(file).exists());
            if ready {
                self.ready.insert(name.clone());
            } else if !running {
                self.ready.remove(name);
            }
        }
    }

    fn has_unready_container(&self) -> bool {
        names_in(&self.record, |state| matches!(state, State::Running { .. }))
            .iter()
            .any(|name| !self.ready.contains(name))
    }

    async fn start(&mut self, name: &str) -> Result<(), String> {
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
    ) -> Result<std::path::PathBuf, (String, String)> {
        let config = &self.shared.config;
        let bad = |message: String| ("CreateContainerConfigError".to_owned(), message);
        let io = |error: std::io::Error| ("CreateContainerError".to_owned(), error.to_string());
        let image = container.image.as_deref().and_then(Image::of);
        let image = image.ok_or_else(|| bad("the image is not served here".to_owned()))?;
        let program = image.path(&config.programs);
        if !program.is_file() {
            return Err((
                "ErrImagePull".to_owned(),
                format!("{} is missing: build it (it lies beside the holdfast program)", program.display()),
            ));
        }
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
        let log_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        let node = NodeFacts { name: &config.node.name, ip: &config.node.ip };
        let env = environment::build(pod, container, node, log_path, &lookup).await.map_err(bad)?;
        let log = self.dir.termination_log(&container.name, index == 0);
        fresh_file(&log, owner).map_err(io)?;
        let attempt = self.record.containers.get(&container.name).map_or(0, |c| c.attempt);
        if attempt > 0 {
            let _ = std::fs::rename(self.dir.log(&container.name), self.dir.previous_log(&container.name));
        }
        remove_ready_file(&self.dir, image);
        let launch = Launch {
            program,
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

    fn restart(&mut self, name: &str, not_before_ms: i64) -> Result<(), String> {
        if let Some(container) = self.record.containers.get_mut(name)
            && let State::Exited { exit } = &container.state
        {
            container.last = Some(exit.clone());
            container.attempt += 1;
            container.state = State::Waiting { not_before_ms };
        }
        self.save()?;
        if not_before_ms > time::now_ms() {
            self.event("Warning", "BackOff", &format!("Back-off restarting failed container {name}"));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        for process in self.processes.values() {
            let _ = process.get_ref().signal(signal);
        }
    }

    async fn kill(&mut self) -> Result<(), String> {
        self.signal(Signal::KILL);
        for name in names_in(&self.record, |state| matches!(state, State::Running { .. } | State::Starting)) {
            self.end_leftovers(&name).await?;
            if let Some(process) = self.processes.get(&name) {
                let limit = Duration::from_secs(5);
                let _ = tokio::time::timeout(limit, process.readable()).await;
            }
        }
        Ok(())
    }

    async fn write_status(&mut self) -> Result<(), String> {
        let Some(pod) = self.pod.clone() else { return Ok(()) };
        // What is not served stays as the scheduler left it: Pending, with an event.
        if plan::refusal(&pod).is_some() {
            return Ok(());
        }
        let facts = Facts {
            node_ip: self.shared.config.node.ip.clone(),
            ready: self.ready.clone(),
            hindrance: self.hindrance.clone(),
            now: time::now(),
        };
        let want = status::build(&pod, &self.record, &facts);
        let have = serde_json::to_value(&pod.status).map_err(|error| error.to_string())?;
        if status::is_satisfied(&have, &want) {
            return Ok(());
        }
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.record.uid}, "status": want}));
        let written = self.api().patch_status(&self.record.name, &PatchParams::default(), &patch).await;
        match written {
            Ok(pod) => {
                // The watch brings the same object a little later.
                self.pod = Some(Arc::new(pod));
                Ok(())
            }
            // Gone, or another pod of the same name: the watch will say so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(format!("write pod status: {error}")),
        }
    }

    async fn delete_object(&self) -> Result<(), String> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.record.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api().delete(&self.record.name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(format!("delete pod: {error}")),
        }
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.shared.client.clone(), &self.record.namespace)
    }

    fn forget(&mut self) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        for name in self.record.containers.keys() {
            if let Some(group) = self.cgroup(name) {
                group.remove().map_err(text)?;
            }
        }
        let parent = format!("{}/{}", self.shared.config.cgroup, self.record.uid);
        if let Some(group) = self.shared.cgroups.open(&parent) {
            group.remove().map_err(text)?;
        }
        remove_dir(self.dir.path()).map_err(text)?;
        for (name, container) in &self.record.containers {
            for attempt in 0..=container.attempt {
                let key = StartKey { attempt, ..self.key(name) };
                let _ = std::fs::remove_file(self.shared.dir.exits().join(key.file_name()));
            }
        }
        // Last: as long as the record is there a crash here is repaired.
        holdfast_sys::durable::remove(&self.shared.dir.record(&self.record.uid)).map_err(text)
    }

    fn report_refusal(&mut self) {
        let refusal = self.pod.as_deref().and_then(plan::refusal);
        if let Some((reason, message)) = refusal {
            self.event("Warning", reason, &message);
        }
    }

    /// Writes an event unless it repeats the one before.
    fn event(&mut self, kind: &str, reason: &str, message: &str) {
        let Some(pod) = &self.pod else { return };
        let text = format!("{reason}: {message}");
        if text != self.last_event {
            self.shared.events.pod(pod, kind, reason, message);
            self.last_event = text;
        }
    }

    fn complain(&mut self, error: &str) {
        if error != self.last_error {
            let pod = format!("{}/{}", self.record.namespace, self.record.name);
            tracing::warn!(pod, error, "step failed, trying again");
            error.clone_into(&mut self.last_error);
        }
    }
}

fn fresh_record(uid: &str, pod: &Pod, boot_id: &str, now: String) -> PodRecord {
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    PodRecord {
        uid: uid.to_owned(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        boot_id: boot_id.to_owned(),
        start_time: now,
        grace_s: grace.unwrap_or(30),
        term_sent_ms: None,
        containers: plan::container_names(pod)
            .map(|name| (name.to_owned(), ContainerRecord::new()))
            .collect(),
    }
}

fn read_exit(path: &Path) -> Option<ExitRecord> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn names_in(record: &PodRecord, wanted: impl Fn(&State) -> bool) -> Vec<String> {
    let matching = record.containers.iter().filter(|(_, container)| wanted(&container.state));
    matching.map(|(name, _)| name.clone()).collect()
}

fn mount_of(
    mount: &k8s_openapi::api::core::v1::VolumeMount,
    places: &BTreeMap<String, std::path::PathBuf>,
) -> Result<Mount, String> {
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

fn read_message(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn remove_dir(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            holdfast_sys::context(Err(error), || format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
