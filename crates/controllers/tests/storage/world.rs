//! The control plane under test and the roles the test plays.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_api::import::{Outcome, Request, SOURCE_DIR, Source, TARGET_DIR};
use holdfast_api::names::{PLATFORM_NAMESPACE, label};
use holdfast_api::{ClusterVirtualImage, ModuleConfig, VirtualImage};
use holdfast_controllers::{Config, image, vd, vmclass, vmip, vmipl};
use holdfast_env::{Clock, Entropy};
use holdfast_kubelith::server::Hooks;
use holdfast_kubelith::testing::Server;
use holdfast_reconcile::{Metrics, Runtime};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Namespace of the tests.
pub const NS: &str = "shop";
const DEADLINE: Duration = Duration::from_secs(60);

pub struct World {
    pub client: Client,
    pub home: tempfile::TempDir,
    _tasks: JoinSet<()>,
    _server: Server,
}

impl World {
    pub async fn start() -> Self {
        let crds = holdfast_api::crds().iter().map(|crd| serde_json::to_value(crd).unwrap()).collect();
        let server = Server::with(crds, Hooks::default()).await.unwrap();
        let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let home = tempfile::tempdir().unwrap();
        for namespace in [NS, "mall", PLATFORM_NAMESPACE] {
            let body = json!({"metadata": {"name": namespace}});
            let api: Api<Namespace> = Api::all(client.clone());
            api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.ok();
        }
        let mut tasks = JoinSet::new();
        let loops = holdfast_kubelith_loops::Config {
            storage: Some(holdfast_kubelith_loops::Storage::in_home(home.path())),
            ..Default::default()
        };
        let (for_loops, for_node) = (client.clone(), client.clone());
        tasks.spawn(async move { drop(holdfast_kubelith_loops::run(for_loops, loops).await) });
        tasks.spawn(play_node(for_node));
        let config = Config::default();
        let mut runtime = Runtime::new(client.clone(), Clock::Real, Entropy::real(), Metrics::default());
        let caches = runtime.caches();
        let (class, address, lease) = (
            vmclass::VmClassController::new(caches),
            vmip::VmipController::new(caches),
            vmipl::VmiplController::new(caches),
        );
        let disk = vd::VdController::new(caches, &config);
        let local = image::ImageController::<VirtualImage>::new(caches, &config);
        let global = image::ImageController::<ClusterVirtualImage>::new(caches, &config);
        runtime.add(class).add(address).add(lease).add(disk).add(local).add(global);
        tasks.spawn(runtime.run());
        Self { client, home, _tasks: tasks, _server: server }
    }

    pub async fn settings(&self, settings: Value) {
        let api: Api<ModuleConfig> = Api::all(self.client.clone());
        let object = json!({
            "apiVersion": "deckhouse.io/v1alpha1", "kind": "ModuleConfig", "metadata": {"name": "virtualization"},
            "spec": {"enabled": true, "version": 1, "settings": settings},
        });
        let params = PatchParams::apply("test").force();
        api.patch("virtualization", &params, &Patch::Apply(object)).await.unwrap();
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    /// Directory of the volume behind a claim.
    pub async fn folder(&self, namespace: &str, claim: &str) -> Option<PathBuf> {
        folder(&self.client, namespace, claim).await
    }
}

/// Creates an object of a kind from its `spec`.
pub async fn create<K>(api: &Api<K>, name: &str, spec: Value)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + serde::Serialize,
{
    let object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
    });
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

/// Waits until `is` holds for the object (or its absence), and returns it.
pub async fn until<K>(api: &Api<K>, name: &str, what: &str, is: impl Fn(Option<&K>) -> bool) -> Option<K>
where
    K: Clone + Debug + DeserializeOwned,
{
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        let object = api.get_opt(name).await.unwrap();
        if is(object.as_ref()) {
            return object;
        }
        assert!(tokio::time::Instant::now() < end, "{name}: {what} did not happen: {object:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn folder(client: &Client, namespace: &str, claim: &str) -> Option<PathBuf> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let claim = claims.get_opt(claim).await.unwrap()?;
    if claim.status?.phase.as_deref() != Some("Bound") {
        return None;
    }
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = volumes.get_opt(&claim.spec?.volume_name?).await.unwrap()?;
    Some(PathBuf::from(volume.spec?.host_path?.path))
}

/// Scheduler and node runtime for importer pods: runs each as soon as its volumes are bound.
async fn play_node(client: Client) {
    let pods: Api<Pod> = Api::all(client.clone());
    loop {
        for pod in pods.list(&Default::default()).await.map(|list| list.items).unwrap_or_default() {
            let own: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            if pod.metadata.deletion_timestamp.is_some() {
                let now = DeleteParams::default().grace_period(0);
                let _ = own.delete(&pod.name_any(), &now).await;
                continue;
            }
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let ours = pod.labels().contains_key(label::IMPORT_OWNER_UID);
            if ours && matches!(phase, None | Some("Pending")) {
                run_pod(&client, &own, &pod).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn run_pod(client: &Client, api: &Api<Pod>, pod: &Pod) {
    let namespace = pod.namespace().unwrap_or_default();
    let spec = pod.spec.clone().unwrap();
    let mut folders = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        let Some(claim) = &volume.persistent_volume_claim else { continue };
        let Some(folder) = folder(client, &namespace, &claim.claim_name).await else { return };
        folders.push((volume.name.clone(), folder));
    }
    let mut request: Request = serde_json::from_str(&spec.containers[0].args.clone().unwrap()[1]).unwrap();
    let place = |path: &str, dir: &str, name: &str| {
        let folder = folders.iter().find(|(known, _)| known == name).map(|(_, folder)| folder);
        let file = Path::new(path).strip_prefix(dir).unwrap();
        folder.expect("the pod mounts it").join(file).display().to_string()
    };
    request.target = request.target.map(|path| place(&path, TARGET_DIR, "target"));
    if let Source::File { path } = &mut request.source {
        *path = place(path, SOURCE_DIR, "source");
    }
    let scratch = tempfile::tempdir().unwrap();
    let result = tokio::task::spawn_blocking(move || holdfast_importer::task::run(&request, scratch.path()))
        .await
        .unwrap();
    let (phase, outcome) = match result {
        Ok(facts) => ("Succeeded", Outcome::Done(facts)),
        Err(error) => ("Failed", Outcome::Failed { message: error.to_string() }),
    };
    let message = serde_json::to_string(&outcome).unwrap();
    let status = json!({"status": {"phase": phase, "containerStatuses": [{
        "name": "importer", "image": "x", "imageID": "x", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 0, "message": message}},
    }]}});
    // The pod may be gone by now.
    let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await;
}
