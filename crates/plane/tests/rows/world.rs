//! The control plane under test and what a user does to it.

use std::cell::Cell;
use std::fmt::Debug;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use holdfast_api::engine::{Instance, Migration};
use holdfast_api::names::label;
use holdfast_api::vm::VmPhase;
use holdfast_api::{VirtualMachine, VirtualMachineOperation};
use holdfast_env::ambient::{self, Ambient};
use holdfast_env::{Clock, Entropy, Timestamp};
use holdfast_kubelith::store::SharedJournal;
use holdfast_kubelith::{PlaneParts, inprocess, plane};
use holdfast_plane::Identity;
use holdfast_reconcile::Metrics;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::nodes::{self, Nodes};

/// Namespace of the tests.
pub const NS: &str = "default";
/// Longest wait for anything, on the paused clock.
const DEADLINE: Duration = Duration::from_secs(1500);
/// How often a condition is looked at, in the beginning and later.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Wall clock and randomness of everything in one test.
struct Paused {
    start: Instant,
    drawn: Cell<u64>,
}

impl Ambient for Paused {
    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.start.elapsed()).unwrap();
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + passed
    }
    fn random_u64(&self) -> u64 {
        let mut z = self.drawn.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.drawn.set(z);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn dies_at(&self, _: &str) -> bool {
        false
    }
    fn mutant(&self, _: &str) -> bool {
        false
    }
}

/// The platform.
pub struct World {
    pub client: Client,
    pub nodes: Rc<Nodes>,
    /// What the controllers show operators.
    pub metrics: Metrics,
    controller: Client,
    controllers: JoinHandle<()>,
    _storage: tempfile::TempDir,
}

/// Runs a test against a fresh platform of nodes n1, n2, n3.
pub fn on_a_platform<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let world = Paused { start: Instant::now(), drawn: Cell::new(1) };
        let _world = ambient::install(Rc::new(world));
        test(World::start().await).await;
    });
}

fn run_controllers(client: Client, metrics: Metrics) -> JoinHandle<()> {
    let config = holdfast_controllers::Config {
        identity: "one".to_owned(),
        entropy: Entropy::seeded(7),
        metrics,
        ..Default::default()
    };
    tokio::spawn(async move { drop(holdfast_controllers::run(client, config).await) })
}

impl World {
    async fn start() -> Self {
        let storage = tempfile::tempdir().unwrap();
        let contents = holdfast_plane::contents(&["10.66.10.0/24".to_owned()]);
        let journal = Box::new(SharedJournal::new());
        let mut parts = PlaneParts::inline(journal, contents, Clock::Real, Entropy::seeded(7));
        parts.hooks.admission = holdfast_plane::admission();
        let app = plane::open(parts).unwrap();
        let client = |who: Identity<'_>| inprocess::client(&app, who.user());
        let loops = holdfast_kubelith_loops::Config {
            storage: Some(holdfast_kubelith_loops::Storage::in_home(storage.path())),
            root_ca_pem: Some("pem".to_owned()),
            ..holdfast_kubelith_loops::Config::default()
        };
        let for_loops = client(Identity::Loops);
        tokio::spawn(async move { drop(holdfast_kubelith_loops::run(for_loops, loops).await) });
        let controller = client(Identity::Controller);
        let metrics = Metrics::default();
        let controllers = run_controllers(controller.clone(), metrics.clone());
        let admin = client(Identity::Admin);
        let nodes = Nodes::start(admin.clone()).await;
        tokio::task::spawn_local(nodes::play(nodes.clone()));
        Self { client: admin, nodes, metrics, controller, controllers, _storage: storage }
    }

    /// Ends the controllers as a crash would and starts new ones.
    pub async fn restart_controllers(&mut self) {
        self.controllers.abort();
        let _ = (&mut self.controllers).await;
        self.controllers = run_controllers(self.controller.clone(), self.metrics.clone());
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NS)
    }

    pub fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    /// Lets time pass.
    pub async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Creates an object of a users' kind; the answer of the API server.
    pub async fn try_create<K>(&self, meta: Value, spec: Value) -> Result<K, String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let object = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": meta, "spec": spec,
        });
        let object = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.map_err(|error| error.to_string())
    }

    pub async fn create<K>(&self, name: &str, spec: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        self.try_create(json!({"name": name}), spec).await.unwrap()
    }

    pub async fn patch<K>(&self, name: &str, body: Value) -> Result<K, String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let done = self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(body)).await;
        done.map_err(|error| error.to_string())
    }

    pub async fn delete<K>(&self, name: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().get_opt(name).await.unwrap()
    }

    /// Waits until `is` holds for the object (or its absence), and returns it.
    pub async fn until<K>(&self, name: &str, what: &str, is: impl Fn(Option<&K>) -> bool) -> Option<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let end = Instant::now() + DEADLINE;
        let mut pause = LOOK.0;
        loop {
            let object = self.get::<K>(name).await;
            if is(object.as_ref()) {
                return object;
            }
            if Instant::now() >= end {
                let object = serde_json::to_string_pretty(&object).unwrap();
                panic!("{name}: {what} did not happen: {object}\n{}", self.state().await);
            }
            tokio::time::sleep(pause).await;
            pause = LOOK.1.min(pause + pause / 8);
        }
    }

    /// What there is, for people who look for a failure.
    async fn state(&self) -> String {
        let mut text = String::new();
        for migration in self.migrations().await {
            text += &format!("{}\n", serde_json::to_string(&migration).unwrap());
        }
        for operation in self.operations("").await {
            text += &format!("{}\n", serde_json::to_string(&operation).unwrap());
        }
        for instance in self.api::<Instance>().list(&Default::default()).await.unwrap() {
            text += &format!("{}\n", serde_json::to_string(&instance).unwrap());
        }
        text
    }

    /// A ready disk on shared storage, or node-bound storage.
    pub async fn disk(&self, name: &str, shared: bool) {
        let class = if shared { "shared" } else { "local" };
        let claim = json!({"size": "64Mi", "storageClassName": class});
        self.create::<holdfast_api::VirtualDisk>(name, json!({ "persistentVolumeClaim": claim })).await;
    }

    /// A VM with the disk of its own name; `change` is merged into its spec.
    pub async fn vm(&self, name: &str, change: Value) -> VirtualMachine {
        self.create(name, spec(name, change)).await
    }

    /// Disk and VM, up to Running on `node`.
    pub async fn running(&self, name: &str, node: Option<&str>, change: Value) -> VirtualMachine {
        if let Some(node) = node {
            self.only(node).await;
        }
        self.disk(name, true).await;
        self.vm(name, change).await;
        let vm = self.phase(name, VmPhase::Running).await;
        if node.is_some() {
            self.cordon_all(false).await;
        }
        vm
    }

    /// Cordons every node but one.
    pub async fn only(&self, node: &str) {
        for name in nodes::NAMES {
            self.cordon(name, name != node).await;
        }
    }

    pub async fn cordon_all(&self, cordoned: bool) {
        for name in nodes::NAMES {
            self.cordon(name, cordoned).await;
        }
    }

    pub async fn cordon(&self, node: &str, cordoned: bool) {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": cordoned}}));
        self.cluster::<Node>().patch(node, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn label_node(&self, node: &str, key: &str, value: Option<&str>) {
        let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
        self.cluster::<Node>().patch(node, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn phase(&self, name: &str, phase: VmPhase) -> VirtualMachine {
        let is = |vm: Option<&VirtualMachine>| vm.and_then(|vm| vm.status.as_ref()?.phase) == Some(phase);
        self.until(name, &format!("phase {phase}"), is).await.unwrap()
    }

    pub async fn condition(&self, name: &str, type_: &str, wanted: &str) -> VirtualMachine {
        let is = |vm: Option<&VirtualMachine>| vm.is_some_and(|vm| condition(vm, type_) == wanted);
        self.until(name, &format!("{type_}={wanted}"), is).await.unwrap()
    }

    pub async fn instance(&self, name: &str) -> Instance {
        self.get(name).await.unwrap()
    }

    /// The launcher pods of a VM, sorted by name.
    pub async fn launchers(&self, vm: &str) -> Vec<Pod> {
        let list = self.api::<Pod>().list(&Default::default()).await.unwrap();
        let is = |pod: &Pod| pod.labels().get(label::VM_NAME).map(String::as_str) == Some(vm);
        list.items.into_iter().filter(is).collect()
    }

    /// Creates an operation.
    pub async fn operate(
        &self,
        name: &str,
        type_: &str,
        vm: &str,
    ) -> Result<VirtualMachineOperation, String> {
        self.try_create(json!({"name": name}), json!({"type": type_, "virtualMachineName": vm})).await
    }

    /// Waits for the phase of an operation, and returns it.
    pub async fn operation(&self, name: &str, phase: &str) -> VirtualMachineOperation {
        let is = |op: Option<&VirtualMachineOperation>| {
            op.and_then(|op| op.status.as_ref()).is_some_and(|status| status.phase.to_string() == phase)
        };
        self.until(name, &format!("operation {phase}"), is).await.unwrap()
    }

    pub async fn operations(&self, prefix: &str) -> Vec<VirtualMachineOperation> {
        let all = self.api::<VirtualMachineOperation>().list(&Default::default()).await.unwrap().items;
        all.into_iter().filter(|op| op.name_any().starts_with(prefix)).collect()
    }

    pub async fn migrations(&self) -> Vec<Migration> {
        self.api::<Migration>().list(&Default::default()).await.unwrap().items
    }

    /// Events about an object, as `Type Reason: text`. They are written a moment after what they tell.
    pub async fn events(&self, name: &str) -> Vec<String> {
        self.pass(1).await;
        let all = self.api::<Event>().list(&Default::default()).await.unwrap().items;
        all.into_iter()
            .filter(|event| event.involved_object.name.as_deref() == Some(name))
            .map(|event| {
                let part = |text: Option<String>| text.unwrap_or_default();
                format!("{} {}: {}", part(event.type_), part(event.reason), part(event.message))
            })
            .collect()
    }
}

/// Merges the second value into the first.
pub fn merge(into: &mut Value, patch: &Value) {
    match (into.as_object_mut(), patch.as_object()) {
        (Some(map), Some(patch)) => {
            for (key, value) in patch {
                merge(map.entry(key.clone()).or_insert(json!({})), value);
            }
        }
        _ => *into = patch.clone(),
    }
}

/// The spec of a small VM with the disk of its own name.
pub fn spec(name: &str, change: Value) -> Value {
    let mut spec = json!({
        "virtualMachineClassName": "host", "cpu": {"cores": 1}, "memory": {"size": "256Mi"},
        "blockDeviceRefs": [{"kind": "VirtualDisk", "name": name}],
    });
    merge(&mut spec, &change);
    spec
}

/// A condition as `status/reason`; empty if absent.
pub fn condition(vm: &VirtualMachine, type_: &str) -> String {
    let all = vm.status.iter().flat_map(|status| &status.conditions);
    { all }.find(|c| c.type_ == type_).map(|c| format!("{}/{}", c.status, c.reason)).unwrap_or_default()
}

/// The message of a condition.
pub fn message(vm: &VirtualMachine, type_: &str) -> String {
    let all = vm.status.iter().flat_map(|status| &status.conditions);
    { all }.find(|c| c.type_ == type_).map(|c| c.message.clone()).unwrap_or_default()
}

/// The condition `Completed` of an operation as `status/reason`.
pub fn completed(operation: &VirtualMachineOperation) -> String {
    let all = operation.status.iter().flat_map(|status| &status.conditions);
    let found = { all }.find(|c| c.type_ == "Completed");
    found.map(|c| format!("{}/{}", c.status, c.reason)).unwrap_or_default()
}
