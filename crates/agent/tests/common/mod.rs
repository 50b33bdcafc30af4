//! A small cluster in memory: the real control plane, real agents, real launchers; modelled are QEMU, the
//! kernels of the nodes, and the wires. The test plays the controllers. Everything runs on one runtime
//! without a driver for I/O and with a clock that jumps to the next timer.
#![allow(dead_code, reason = "each test file uses its own part of the harness")]

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use holdfast_agent::memory::{Node, Underlay};
use holdfast_agent::{AcceleratorChoice, Config, GATEWAY};
use holdfast_api::engine::{
    self, CpuModel, Instance, InstanceSpec, InstanceStatus, Migration, MigrationSpec, ReportState,
};
use holdfast_api::names::label;
use holdfast_env::ambient::Ambient;
use holdfast_env::{Clock, Entropy, Timestamp};
use holdfast_hypervisor::fake::Fake;
use holdfast_kubelith::http::App;
use holdfast_kubelith::store::SharedJournal;
use holdfast_kubelith::{Hooks, PlaneParts};
use holdfast_launcher::Outside;
use holdfast_plane::Identity;
use holdfast_wire::Id;
use holdfast_wire::launcher::{ExitRecord, SOCKET_MEMORY_IN, SOCKET_MEMORY_OUT};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longest time, on the runtime's clock, that anything here may take.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const VM: Ipv4Addr = Ipv4Addr::new(10, 66, 10, 14);

/// Runs a test where nothing but memory and timers exists. Wall clock and randomness repeat.
pub fn in_memory<T, F: Future<Output = T>>(test: impl FnOnce() -> F) -> T {
    let log = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::INFO);
    // The first test of the process sets it.
    let _ = log.try_init();
    let runtime = runtime();
    let began = runtime.block_on(async { Instant::now() });
    let random = Cell::new(0);
    let _installed = holdfast_env::ambient::install(Rc::new(Repeatable { began, random }));
    runtime.block_on(test())
}

/// A runtime for one process: timers, nothing else.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Lets every process run for about this time.
pub fn run_all(processes: &[&tokio::runtime::Runtime], time: Duration) {
    let turn = Duration::from_millis(5);
    for _ in 0..time.as_millis() / turn.as_millis() {
        for process in processes {
            process.block_on(async { tokio::time::sleep(turn).await });
        }
    }
}

struct Repeatable {
    began: Instant,
    random: Cell<u64>,
}

impl Ambient for Repeatable {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap().checked_add(self.began.elapsed()).unwrap()
    }

    fn random_u64(&self) -> u64 {
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.random.get()
    }

    fn dies_at(&self, _point: &str) -> bool {
        false
    }

    fn mutant(&self, _name: &str) -> bool {
        false
    }
}

pub struct Cluster {
    pub app: Arc<App>,
    /// Everything that was ever written.
    pub journal: SharedJournal,
    pub client: kube::Client,
    pub underlay: Underlay,
    pub qemu: Fake,
    pub dir: tempfile::TempDir,
}

/// One node with its agent.
pub struct Member {
    pub name: String,
    pub address: Ipv4Addr,
    pub outside: Node,
    pods_dir: PathBuf,
    agent: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A launcher and its pod.
pub struct Launched {
    pub pod: Pod,
    pub id: Id,
    pub run: PathBuf,
    pub task: JoinHandle<std::io::Result<Option<ExitRecord>>>,
}

impl Cluster {
    pub async fn new() -> Self {
        let contents = holdfast_plane::contents(&["10.66.10.0/24".to_owned()]);
        let journal = SharedJournal::new();
        let mut parts =
            PlaneParts::inline(Box::new(journal.clone()), contents, Clock::Real, Entropy::seeded(1));
        parts.hooks = Hooks { admission: holdfast_plane::admission(), ..Hooks::default() };
        let app = holdfast_kubelith::plane::open(parts).unwrap();
        let client = holdfast_kubelith::inprocess::client(&app, Identity::Admin.user());
        // Made by a control loop in production; pods need it.
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let account = serde_json::from_value(json!({ "metadata": { "name": "default" } })).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
        Self {
            app,
            journal,
            client,
            underlay: Underlay::default(),
            qemu: Fake::default(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A node and its agent.
    pub async fn node(&self, name: &str, last: u8) -> Member {
        let mut member = self.member(name, last).await;
        member.agent = Some(tokio::spawn(holdfast_agent::run(member.config(self.api(name)))));
        member
    }

    /// A node without an agent.
    pub async fn member(&self, name: &str, last: u8) -> Member {
        let address = Ipv4Addr::new(10, 0, 0, last);
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.clone());
        let node = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let addresses = json!([{ "type": "InternalIP", "address": address.to_string() }]);
        let status = json!({ "status": { "addresses": addresses } });
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let outside = Node::new(name, address, &self.underlay);
        let pods_dir = self.dir.path().join(name);
        Member { name: name.to_owned(), address, outside, pods_dir, agent: None }
    }

    /// The API as the agent of a node reaches it. Belongs to the runtime it is made in.
    pub fn api(&self, node: &str) -> kube::Client {
        holdfast_kubelith::inprocess::client(&self.app, Identity::Agent(node).user())
    }

    /// An Instance that shall run; `edit` changes its hardware.
    pub async fn instance(&self, edit: impl FnOnce(&mut engine::Hardware)) -> Instance {
        let power = engine::Power::On;
        let mut spec = InstanceSpec { epoch: 1, power, grace_period_seconds: 60, ..InstanceSpec::default() };
        let hardware = &mut spec.hardware;
        hardware.machine = "q35".into();
        hardware.uuid = "1f0c0cf8-0000-4000-8000-000000000001".into();
        hardware.memory_bytes = 256 << 20;
        hardware.paravirtualization = true;
        hardware.cpu.model = CpuModel::Host;
        (hardware.cpu.sockets, hardware.cpu.cores_per_socket) = (1, 1);
        hardware.nic = Some(engine::Nic { mac: "52:54:00:aa:00:01".into(), address: VM.to_string() });
        let disk = engine::Disk { id: "vd-root".into(), boot_index: 1, ..engine::Disk::default() };
        hardware.disks = vec![disk];
        edit(hardware);
        self.instances().create(&PostParams::default(), &Instance::new("vm", spec)).await.unwrap()
    }

    pub async fn secret(&self, name: &str, user_data: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "default");
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "type": "provisioning.virtualization.deckhouse.io/cloud-init",
            "stringData": { "userData": user_data } });
        secrets.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(secret)).await.unwrap();
    }

    pub async fn delete_secret(&self, name: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "default");
        secrets.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub fn instances(&self) -> Api<Instance> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub fn migrations(&self) -> Api<Migration> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub async fn set_status(&self, status: Value) {
        let patch = Patch::Merge(json!({ "status": status }));
        self.instances().patch_status("vm", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Starts a launcher pod on a node, as the node's runtime would.
    pub async fn launch(&self, instance: &Instance, node: &Member, name: &str) -> Launched {
        self.launch_in(&Handle::current(), instance, node, name).await
    }

    /// As [`Self::launch`], with the launcher in a process of its own.
    pub async fn launch_in(
        &self,
        process: &Handle,
        instance: &Instance,
        node: &Member,
        name: &str,
    ) -> Launched {
        let uid = instance.uid().unwrap();
        let labels = json!({ label::ROLE: label::LAUNCHER, label::CREATED_BY: uid, label::EPOCH: "1" });
        let pod = json!({
            "metadata": { "name": name, "labels": labels },
            "spec": { "nodeName": node.name, "containers": [{ "name": "compute", "image": "launcher" }] },
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let pod = serde_json::from_value(pod).unwrap();
        let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
        let id = Id { instance_uid: uid, epoch: 1, pod_uid: pod.uid().unwrap() };
        let run = node.pods_dir.join(&id.pod_uid).join("volumes/kubernetes.io~empty-dir/run");
        std::fs::create_dir_all(&run).unwrap();
        let host = node.outside.host.clone();
        host.started(&id.pod_uid);
        let config = holdfast_launcher::Config {
            id: id.clone(),
            run_dir: run.clone(),
            grace_s: 60,
            sandbox: false,
            qemu_version: "10.0.2".into(),
            termination_log: run.join("no-termination-log"),
            outside: Outside {
                sockets: Arc::new(node.outside.sockets.clone()),
                host: Arc::new(LauncherHost),
            },
        };
        let (qemu, pod_uid) = (self.qemu.clone(), id.pod_uid.clone());
        let task = process.spawn(async move {
            let record = holdfast_launcher::run(config, qemu).await;
            host.ended(&pod_uid);
            record
        });
        Launched { pod, id, run, task }
    }

    /// Gives a launcher the claim, as the engine does.
    pub async fn claim(&self, launched: &Launched, node: &Member) {
        let claim = engine::Claim {
            node: node.name.clone(),
            boot_id: format!("boot-{}", node.name),
            pod_uid: launched.id.pod_uid.clone(),
            epoch: 1,
        };
        self.set_status(json!({ "claim": claim })).await;
    }

    /// Creates a Migration that is handed over: both objects name each other and both launchers.
    pub async fn migrate(
        &self,
        instance: &Instance,
        from: (&Launched, &Member),
        to: (&Launched, &Member),
    ) -> Migration {
        let memory = |l: &Launched, name: &str| l.run.join(name).display().to_string();
        self.qemu.relay(&memory(from.0, SOCKET_MEMORY_OUT), &memory(to.0, SOCKET_MEMORY_IN));
        let reference = engine::InstanceRef { name: "vm".into(), uid: instance.uid().unwrap(), epoch: 1 };
        let spec = MigrationSpec { instance: reference, ..MigrationSpec::default() };
        let created = self.migrations().create(&PostParams::default(), &Migration::new("move", spec)).await;
        let created = created.unwrap();
        let status = engine::MigrationStatus {
            config: Some(engine::MigrationConfig {
                bandwidth: 625_000_000,
                downtime_ms: 100,
                completion_timeout_s: 60,
                progress_timeout_s: 30,
                ..Default::default()
            }),
            source: Some(engine::MigrationSource {
                node: from.1.name.clone(),
                pod_name: from.0.pod.name_any(),
                pod_uid: from.0.id.pod_uid.clone(),
                ..Default::default()
            }),
            target: Some(engine::MigrationTarget {
                node: to.1.name.clone(),
                pod_name: to.0.pod.name_any(),
                pod_uid: to.0.id.pod_uid.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let patch = Patch::Merge(json!({ "status": status }));
        self.migrations().patch_status("move", &PatchParams::default(), &patch).await.unwrap();
        let side = |(l, node): (&Launched, &Member)| engine::Side {
            node: node.name.clone(),
            pod: l.pod.name_any(),
            pod_uid: l.id.pod_uid.clone(),
        };
        let named = engine::InstanceMigration {
            uid: created.uid().unwrap(),
            name: "move".into(),
            source: side(from),
            target: side(to),
            ..Default::default()
        };
        // What an earlier move left would stay under a merge.
        self.set_status(json!({ "migration": null })).await;
        self.set_status(json!({ "migration": named })).await;
        created
    }

    /// Waits until the Instance's status fits.
    pub async fn until(&self, what: &str, fits: impl Fn(&InstanceStatus) -> bool) -> InstanceStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.instances().get("vm").await.unwrap().status.unwrap_or_default();
            if fits(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not happen: {status:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_reported(&self, state: ReportState) -> InstanceStatus {
        let what = format!("{state:?}");
        self.until(&what, |s| s.report.as_ref().is_some_and(|r| r.state == state)).await
    }

    /// The only run directory in which a guest executes.
    pub fn executes_in(&self) -> Option<PathBuf> {
        let all = self.qemu.executing();
        assert!(all.len() <= 1, "{all:?}");
        assert_eq!(self.qemu.violations(), Vec::<String>::new());
        all.into_iter().next().map(|(run, _)| run)
    }
}

impl Member {
    /// What its agent is told when it starts.
    pub fn config(&self, client: kube::Client) -> Config {
        Config {
            node: self.name.clone(),
            boot_id: format!("boot-{}", self.name),
            node_address: self.address,
            uplink: "eth0".to_owned(),
            gateway: GATEWAY,
            pods_dir: self.pods_dir.clone(),
            home_id: "abcd".to_owned(),
            client,
            outside: self.outside.outside(),
            host_routes: None,
            pools: vec!["10.66.10.0/24".parse().unwrap()],
            dns: vec![],
            accelerator: AcceleratorChoice::Auto,
            metrics: Default::default(),
        }
    }

    /// Waits until the agent stops.
    pub async fn stopped(self) {
        self.outside.host.stop_agent();
        self.agent.unwrap().await.unwrap().unwrap();
    }
}

/// The machine as launchers of this harness see it.
#[derive(Debug)]
pub struct LauncherHost;

impl holdfast_launcher::host::Host for LauncherHost {
    fn terminations(&self) -> std::io::Result<tokio::sync::mpsc::UnboundedReceiver<()>> {
        Ok(tokio::sync::mpsc::unbounded_channel().1)
    }

    fn has_boot_sector(&self, _path: &std::path::Path) -> std::io::Result<bool> {
        Ok(true)
    }

    fn installed_file(&self, _path: &std::path::Path) -> std::io::Result<Vec<u8>> {
        Ok(vec![])
    }

    fn is_there(&self, _: &std::path::Path) -> bool {
        true
    }

    fn keep(&self, _: &std::path::Path, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}
