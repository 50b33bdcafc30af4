//! The model of a node's kubelet. Decisions and statuses are those of crate `noderuntime`; what is
//! modelled is the machine below: processes that start, hear signals and end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use holdfast_env::watch;
use holdfast_noderuntime::events::Events;
use holdfast_noderuntime::image::Image;
use holdfast_noderuntime::node::{NodeInfo, Timers, keep_alive};
use holdfast_noderuntime::plan::{self, Observed, Step};
use holdfast_noderuntime::record::{ContainerRecord, Exit, PodRecord, State};
use holdfast_noderuntime::status::{self, Facts};
use holdfast_noderuntime::time;
use holdfast_sys::proc::ProcessId;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;

/// What a kubelet asks its machine to do.
#[derive(Clone, Debug)]
pub enum Order {
    /// Start the container of this pod.
    Start {
        /// The pod.
        pod: Arc<Pod>,
    },
    /// SIGTERM.
    Terminate {
        /// The pod's uid.
        uid: String,
    },
    /// SIGKILL.
    Kill {
        /// The pod's uid.
        uid: String,
    },
    /// The pod's directory goes.
    Remove {
        /// The pod's uid.
        uid: String,
    },
}

/// How a container ended: code and termination message.
pub type Ended = (i32, String);

#[derive(Default)]
struct Machine {
    /// Records survive everything, as files do.
    records: BTreeMap<String, PodRecord>,
    ended: BTreeMap<String, Ended>,
    ready: BTreeMap<String, bool>,
    orders: Vec<Order>,
}

/// What a kubelet and its machine share.
#[derive(Clone, Default)]
pub struct Host {
    machine: Arc<Mutex<Machine>>,
    changed: Arc<Notify>,
}

impl Host {
    /// Orders since the last call.
    #[must_use]
    pub fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut self.machine.lock().orders)
    }

    /// A container ended.
    pub fn set_ended(&self, uid: &str, ended: Ended) {
        self.machine.lock().ended.insert(uid.to_owned(), ended);
        self.changed.notify_waiters();
    }

    /// A container became ready.
    pub fn set_ready(&self, uid: &str) {
        self.machine.lock().ready.insert(uid.to_owned(), true);
        self.changed.notify_waiters();
    }

    fn order(&self, order: Order) {
        self.machine.lock().orders.push(order);
    }

    fn record(&self, uid: &str) -> Option<PodRecord> {
        self.machine.lock().records.get(uid).cloned()
    }

    fn save(&self, record: &PodRecord) {
        self.machine.lock().records.insert(record.uid.clone(), record.clone());
    }

    fn uids(&self) -> Vec<String> {
        self.machine.lock().records.keys().cloned().collect()
    }

    fn forget(&self, uid: &str) {
        let mut machine = self.machine.lock();
        machine.records.remove(uid);
        machine.ended.remove(uid);
        machine.ready.remove(uid);
        machine.orders.push(Order::Remove { uid: uid.to_owned() });
    }
}

/// Serves a node until the process ends.
pub async fn run(client: Client, info: NodeInfo, host: Host) {
    let events = Events::start(client.clone(), &info.name);
    tokio::spawn(keep_alive(client.clone(), info.clone(), Timers::default(), events));
    let ours = watcher::Config::default().fields(&format!("spec.nodeName={}", info.name));
    let mut stream = watcher(Api::<Pod>::all(client.clone()), ours)
        .backoff(holdfast_reconcile::Reconnect::remote())
        .boxed();
    let mut workers: BTreeMap<String, watch::Sender<Option<Arc<Pod>>>> = BTreeMap::new();
    let mut listed: BTreeMap<String, Arc<Pod>> = BTreeMap::new();
    let start = |uid: &str, pod: Option<Arc<Pod>>| {
        let (sender, view) = watch::channel(pod);
        let worker =
            Worker { client: client.clone(), info: info.clone(), host: host.clone(), uid: uid.to_owned() };
        tokio::spawn(worker.run(view));
        sender
    };
    while let Some(event) = stream.next().await {
        let Ok(event) = event else { continue };
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => {
                listed.insert(uid_of(&pod), Arc::new(pod));
            }
            watcher::Event::InitDone => {
                for uid in host.uids().into_iter().chain(workers.keys().cloned().collect::<Vec<_>>()) {
                    if !listed.contains_key(&uid) {
                        let worker = workers.entry(uid.clone()).or_insert_with(|| start(&uid, None));
                        worker.send_replace(None);
                    }
                }
                for (uid, pod) in std::mem::take(&mut listed) {
                    let known = workers.entry(uid.clone()).or_insert_with(|| start(&uid, Some(pod.clone())));
                    known.send_replace(Some(pod));
                }
            }
            watcher::Event::Apply(pod) => {
                let (uid, pod) = (uid_of(&pod), Arc::new(pod));
                let known = workers.entry(uid.clone()).or_insert_with(|| start(&uid, Some(pod.clone())));
                known.send_replace(Some(pod));
            }
            watcher::Event::Delete(pod) => {
                if let Some(worker) = workers.remove(&uid_of(&pod)) {
                    worker.send_replace(None);
                }
            }
        }
    }
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

struct Worker {
    client: Client,
    info: NodeInfo,
    host: Host,
    uid: String,
}

impl Worker {
    async fn run(self, mut view: watch::Receiver<Option<Arc<Pod>>>) {
        let mut pod = view.borrow_and_update().clone();
        let Some(mut record) = self.host.record(&self.uid).or_else(|| self.fresh(pod.as_deref()?)) else {
            return;
        };
        record.enter_boot(&self.info.boot_id, &time::now(), |_, _| None);
        self.host.save(&record);
        loop {
            let changed = self.host.changed.clone();
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wake = match self.pass(pod.as_deref(), &mut record).await {
                Ok(Next::Done) => return,
                Ok(Next::Again) => continue,
                Ok(Next::Wait(at)) => at.unwrap_or(Duration::from_secs(3600)),
                Err(_) => Duration::from_secs(1),
            };
            tokio::select! {
                biased;
                Ok(()) = view.changed() => pod = view.borrow_and_update().clone(),
                () = changed => {}
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    fn fresh(&self, pod: &Pod) -> Option<PodRecord> {
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        Some(PodRecord {
            uid: self.uid.clone(),
            namespace: pod.metadata.namespace.clone()?,
            name: pod.metadata.name.clone()?,
            boot_id: self.info.boot_id.clone(),
            start_time: time::now(),
            grace_s: grace.unwrap_or(30),
            term_sent_ms: None,
            containers: plan::container_names(pod)
                .map(|name| (name.to_owned(), ContainerRecord::new()))
                .collect(),
        })
    }

    async fn pass(&self, pod: Option<&Pod>, record: &mut PodRecord) -> kube::Result<Next> {
        self.collect(record);
        let step = plan::next(Observed { pod, record, now_ms: time::now_ms() });
        if let Some(pod) = pod {
            self.write_status(pod, record).await?;
        }
        match step {
            Step::Wait(at) => {
                let left = at.map(|at| u64::try_from(at - time::now_ms()).unwrap_or(0).max(1));
                return Ok(Next::Wait(left.map(Duration::from_millis)));
            }
            Step::Start(name) => {
                if let (Some(pod), Some(container)) = (pod, record.containers.get_mut(&name)) {
                    // One process a container: its number is of no meaning here.
                    let process = ProcessId { pid: 1, start_time: 0 };
                    container.state = State::Running { process, started_at: time::now() };
                    self.host.save(record);
                    self.host.order(Order::Start { pod: Arc::new(pod.clone()) });
                }
            }
            Step::Restart { container, not_before_ms } => {
                if let Some(container) = record.containers.get_mut(&container) {
                    container.attempt += 1;
                    container.state = State::Waiting { not_before_ms };
                }
                self.host.save(record);
            }
            Step::Terminate => {
                record.term_sent_ms = Some(time::now_ms());
                self.host.save(record);
                self.host.order(Order::Terminate { uid: self.uid.clone() });
            }
            Step::Kill => {
                self.host.order(Order::Kill { uid: self.uid.clone() });
                return Ok(Next::Wait(Some(Duration::from_secs(1))));
            }
            Step::DeleteObject => {
                self.delete(record).await?;
                return Ok(Next::Wait(None));
            }
            Step::Forget => {
                self.host.forget(&self.uid);
                return Ok(Next::Done);
            }
        }
        Ok(Next::Again)
    }

    fn collect(&self, record: &mut PodRecord) {
        let Some((code, message)) = self.host.machine.lock().ended.remove(&self.uid) else { return };
        for container in record.containers.values_mut() {
            if let State::Running { started_at, .. } = &container.state {
                let exit = Exit {
                    code,
                    signal: (code > 128).then(|| code - 128),
                    reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
                    message: message.clone(),
                    started_at: started_at.clone(),
                    finished_at: time::now(),
                };
                container.state = State::Exited { exit };
            }
        }
        self.host.save(record);
    }

    async fn write_status(&self, pod: &Pod, record: &PodRecord) -> kube::Result<()> {
        let ready = self.host.machine.lock().ready.contains_key(&self.uid);
        let names = plan::container_names(pod).filter(|name| {
            let running =
                record.containers.get(*name).is_some_and(|c| matches!(c.state, State::Running { .. }));
            running && ready
        });
        let facts = Facts {
            node_ip: self.info.ip.clone(),
            ready: names.map(str::to_owned).collect(),
            hindrance: None,
            now: time::now(),
        };
        let want = status::build(pod, record, &facts);
        let have = serde_json::to_value(&pod.status).unwrap_or_default();
        if status::is_satisfied(&have, &want) {
            return Ok(());
        }
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.uid}, "status": want}));
        tolerate(self.api(record).patch_status(&record.name, &PatchParams::default(), &patch).await)
    }

    async fn delete(&self, record: &PodRecord) -> kube::Result<()> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        tolerate(self.api(record).delete(&record.name, &params).await)
    }

    fn api(&self, record: &PodRecord) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &record.namespace)
    }
}

fn tolerate<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(error) if status::is_gone(&error) => Ok(()),
        other => other.map(drop),
    }
}

enum Next {
    Done,
    Again,
    Wait(Option<Duration>),
}

/// Which program a pod runs.
#[must_use]
pub fn image(pod: &Pod) -> Option<Image> {
    Image::of(pod.spec.as_ref()?.containers.first()?.image.as_deref()?)
}
