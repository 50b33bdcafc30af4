//! A server, the controllers, and the roles the test plays.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use holdfast_api::engine::{ExitCause, Instance, InstanceState, Report, ReportState};
use holdfast_api::names::{PLATFORM_NAMESPACE, label};
use holdfast_api::vm::{BlockDeviceKind, BlockDeviceRef, VirtualMachineSpec, VmPhase};
use holdfast_api::vmclass::VirtualMachineClassSpec;
use holdfast_api::{ModuleConfig, VirtualDisk, VirtualMachine, VirtualMachineClass};
use holdfast_controllers::{Config, engine, evacuation, fronts, vmclass, vmip, vmipl};
use holdfast_env::{Clock, Entropy};
use holdfast_kubelith::server::Hooks;
use holdfast_kubelith::testing::Server;
use holdfast_reconcile::{Metrics, Runtime};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolumeClaim, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Namespace of the tests.
pub const NS: &str = "shop";
/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// A control plane with running controllers; gone when dropped.
pub struct World {
    pub client: Client,
    controllers: tokio::task::JoinHandle<()>,
    _server: Server,
}

impl Drop for World {
    fn drop(&mut self) {
        self.controllers.abort();
    }
}

fn spawn_controllers(client: Client) -> tokio::task::JoinHandle<()> {
    let config = Config::default();
    let mut runtime = Runtime::new(client, Clock::Real, Entropy::real(), Metrics::default());
    let instance = engine::instance::InstanceController::new(runtime.caches(), &config);
    let vm = fronts::deckhouse::vm::VmController::new(runtime.caches(), &config);
    let class = vmclass::VmClassController::new(runtime.caches());
    let address = vmip::VmipController::new(runtime.caches());
    let lease = vmipl::VmiplController::new(runtime.caches());
    let operation = fronts::deckhouse::vmop::VmopController::new(runtime.caches());
    let migration = engine::migration::MigrationController::new(runtime.caches(), &config);
    let slots = engine::slots::SlotsController::new(runtime.caches());
    let evacuation = evacuation::EvacuationController::new(runtime.caches());
    runtime.add(operation).add(migration).add(slots).add(evacuation);
    runtime.add(instance).add(vm).add(class).add(address).add(lease);
    tokio::spawn(runtime.run())
}

impl World {
    pub async fn start() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let crds = holdfast_api::crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect();
        let server = Server::with(crds, Hooks::default()).await.unwrap();
        let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let world = Self { controllers: spawn_controllers(client.clone()), client, _server: server };
        world.furnish().await;
        world
    }

    /// Ends the controllers as a crash would and starts new ones.
    pub async fn restart_controllers(&mut self) {
        self.controllers.abort();
        let _ = (&mut self.controllers).await;
        self.controllers = spawn_controllers(self.client.clone());
    }

    async fn furnish(&self) {
        for namespace in [NS, PLATFORM_NAMESPACE] {
            let body = json!({"metadata": {"name": namespace}});
            let api: Api<Namespace> = Api::all(self.client.clone());
            api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.ok();
        }
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        self.create(&account).await;
        let settings: ModuleConfig = serde_json::from_value(json!({
            "apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig", "metadata": {"name": "virtualization"},
            "spec": {"enabled": true, "version": 1, "settings": {"virtualMachineCIDRs": ["10.66.10.0/24"]}},
        }))
        .unwrap();
        let api: Api<ModuleConfig> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &settings).await.unwrap();
        let api: Api<VirtualMachineClass> = Api::all(self.client.clone());
        let class = VirtualMachineClass::new("host", VirtualMachineClassSpec::default());
        api.create(&PostParams::default(), &class).await.unwrap();
        for node in ["n1", "n2", "n3"] {
            self.node(node).await;
        }
    }

    async fn node(&self, name: &str) {
        let body = json!({
            "metadata": {"name": name, "labels": {label::SCHEDULABLE: "true", "kubernetes.io/hostname": name}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        self.boot(name, "boot-a").await;
    }

    /// The agent of a node takes the node's fence Lease under a boot id.
    pub async fn boot(&self, node: &str, boot_id: &str) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), PLATFORM_NAMESPACE);
        let name = format!("fence-{node}");
        let spec = json!({"holderIdentity": format!("node/{node}/{boot_id}")});
        if api.get_opt(&name).await.unwrap().is_some() {
            let patch = Patch::Merge(json!({"spec": spec}));
            api.patch(&name, &PatchParams::default(), &patch).await.unwrap();
        } else {
            let body = json!({"metadata": {"name": name}, "spec": spec});
            api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NS)
    }

    /// A ready disk on storage that is shared or not.
    pub async fn disk(&self, name: &str, shared: bool) {
        let mode = if shared { "ReadWriteMany" } else { "ReadWriteOnce" };
        let claim = format!("d8v-vd-{name}");
        let body = json!({
            "metadata": {"name": claim},
            "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
        });
        let claims: Api<PersistentVolumeClaim> = self.api();
        claims.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
        let disks: Api<VirtualDisk> = self.api();
        disks.create(&PostParams::default(), &VirtualDisk::new(name, Default::default())).await.unwrap();
        let status = json!({"status": {
            "phase": "Ready", "capacity": "1Gi", "target": {"persistentVolumeClaimName": claim},
        }});
        disks.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    pub async fn vm(&self, name: &str, disk: &str, change: impl FnOnce(&mut VirtualMachineSpec)) {
        let mut spec =
            VirtualMachineSpec { virtual_machine_class_name: "host".into(), ..VirtualMachineSpec::default() };
        spec.cpu.cores = 1;
        spec.memory.size = "256Mi".into();
        spec.block_device_refs =
            vec![BlockDeviceRef { kind: BlockDeviceKind::VirtualDisk, name: disk.into() }];
        change(&mut spec);
        let api: Api<VirtualMachine> = self.api();
        api.create(&PostParams::default(), &VirtualMachine::new(name, spec)).await.unwrap();
    }

    pub async fn create<K>(&self, object: &K) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        self.api::<K>().create(&PostParams::default(), object).await.unwrap()
    }

    pub async fn delete<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until `is` holds for the object (or its absence), and returns it.
    pub async fn until<K>(&self, name: &str, what: &str, is: impl Fn(Option<&K>) -> bool) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = self.api();
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let object = api.get_opt(name).await.unwrap();
            if is(object.as_ref()) {
                return object;
            }
            assert!(tokio::time::Instant::now() < end, "{name}: {what} did not happen: {object:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn phase(&self, name: &str, phase: VmPhase) -> VirtualMachine {
        let is = |vm: Option<&VirtualMachine>| vm.and_then(|vm| vm.status.as_ref()?.phase) == Some(phase);
        self.until(name, &format!("phase {phase}"), is).await.unwrap()
    }

    pub async fn state(&self, name: &str, epoch: i64, state: InstanceState) -> Instance {
        let is = |i: Option<&Instance>| {
            i.and_then(|i| i.status.as_ref())
                .is_some_and(|s| s.state == Some(state) && s.observed_epoch == epoch)
        };
        self.until(name, &format!("epoch {epoch} {state:?}"), is).await.unwrap()
    }

    /// The launcher pods of a VM, sorted by name.
    pub async fn launchers(&self, vm: &str) -> Vec<Pod> {
        let list = self.api::<Pod>().list(&Default::default()).await.unwrap();
        let is = |pod: &Pod| pod.labels().get(label::VM_NAME).map(String::as_str) == Some(vm);
        list.items.into_iter().filter(is).collect()
    }

    /// Waits for a pod that nobody has bound, binds it and reports its containers ready.
    pub async fn schedule(&self, vm: &str, node: &str) -> Pod {
        let end = tokio::time::Instant::now() + DEADLINE;
        let pod = loop {
            let unbound = |pod: &Pod| {
                pod.spec.as_ref().is_none_or(|s| s.node_name.is_none())
                    && pod.metadata.deletion_timestamp.is_none()
            };
            if let Some(pod) = self.launchers(vm).await.into_iter().find(unbound) {
                break pod;
            }
            assert!(tokio::time::Instant::now() < end, "no pod of {vm} to schedule");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name_any(), "namespace": NS},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let request =
            http_request(&format!("/api/v1/namespaces/{NS}/pods/{}/binding", pod.name_any()), &binding);
        self.client.request::<Value>(request).await.unwrap();
        let status = json!({"status": {"phase": "Running", "conditions": [
            {"type": "ContainersReady", "status": "True"}, {"type": "PodScheduled", "status": "True"},
        ]}});
        self.pod_status(&pod.name_any(), &status).await;
        self.api::<Pod>().get(&pod.name_any()).await.unwrap()
    }

    pub async fn pod_status(&self, name: &str, status: &Value) {
        self.api::<Pod>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// What an agent writes into the Instance.
    pub async fn agent(&self, name: &str, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<Instance>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The agent of the claimed node reports.
    pub async fn report(&self, name: &str, state: ReportState, cause: Option<ExitCause>) {
        let instance = self.api::<Instance>().get(name).await.unwrap();
        let claim = instance.status.as_ref().and_then(|s| s.claim.clone()).expect("claimed");
        let report = Report {
            epoch: claim.epoch,
            pod_uid: claim.pod_uid.clone(),
            state,
            cause,
            cgroup_empty: state == ReportState::Ended,
            ..Report::default()
        };
        let mut status = json!({"report": report});
        if state == ReportState::Running {
            let pod =
                self.launchers(name).await.into_iter().find(|p| p.uid().as_ref() == Some(&claim.pod_uid));
            status["node"] = json!(claim.node);
            status["activePod"] = json!({"name": pod.map(|p| p.name_any()), "uid": claim.pod_uid});
            status["runtime"] = json!({"startedAt": "2026-01-01T00:00:00Z", "qemuVersion": "10.0.2"});
        }
        self.agent(name, status).await;
    }

    /// Plays a start up to Running.
    pub async fn run(&self, vm: &str, epoch: i64, node: &str) -> VirtualMachine {
        self.schedule(vm, node).await;
        self.state(vm, epoch, InstanceState::Booting).await;
        self.report(vm, ReportState::Running, None).await;
        self.phase(vm, VmPhase::Running).await
    }

    /// The node runtime lets go of pods that are being deleted.
    pub async fn reap(&self, vm: &str) {
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            let all = self.launchers(vm).await;
            let deleting = all.iter().filter(|p| p.metadata.deletion_timestamp.is_some());
            for pod in deleting.filter(|p| p.metadata.finalizers.as_ref().is_none_or(Vec::is_empty)) {
                let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                let _ = self.api::<Pod>().delete(&pod.name_any(), &now).await;
            }
            if all.is_empty() {
                return;
            }
            assert!(tokio::time::Instant::now() < end, "pods of {vm} stay: {all:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn http_request(path: &str, body: &Value) -> http::Request<Vec<u8>> {
    http::Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(body).unwrap())
        .unwrap()
}

/// Selected conditions of a VM as `type=status/reason`.
pub fn conditions(vm: &VirtualMachine) -> BTreeMap<String, String> {
    let all = vm.status.iter().flat_map(|status| &status.conditions);
    all.map(|c| (c.type_.clone(), format!("{}/{}", c.status, c.reason))).collect()
}
