//! One task per pod: looks, plans, does one step, writes the status, waits for the next reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_sys::asyncfd;
use holdfast_sys::cgroup::{Cgroup, Hierarchies};
use holdfast_sys::pidfd::PidFd;
use holdfast_sys::proc::ProcessId;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::events::Events;
use crate::image::Image;
use crate::init::InitClient;
use crate::launch::{Answer, Request, StartKey};
use crate::paths::{NodeDir, PodDir};
use crate::plan::{self, Observed, Step};
use crate::record::{ContainerRecord, PodRecord, State};
use crate::status::{self, Facts};
use crate::{Config, time};

mod end;
mod start;

use end::read_exit;

/// Pause before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a running container that is not ready yet is looked at.
const READY_POLL: Duration = Duration::from_millis(5);

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
            Err(error) if status::is_gone(&error) => Ok(()),
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
            Err(error) if status::is_gone(&error) => Ok(()),
            Err(error) => Err(format!("delete pod: {error}")),
        }
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.shared.client.clone(), &self.record.namespace)
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

fn names_in(record: &PodRecord, wanted: impl Fn(&State) -> bool) -> Vec<String> {
    let matching = record.containers.iter().filter(|(_, container)| wanted(&container.state));
    matching.map(|(name, _)| name.clone()).collect()
}
