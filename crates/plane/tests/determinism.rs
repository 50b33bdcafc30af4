//! The whole control plane in one runtime without sockets, threads or wall clock: the same seed gives
//! the same history, byte for byte.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use holdfast_env::ambient::{self, Ambient};
use holdfast_env::{Clock, Entropy, Timestamp};
use holdfast_kubelith::store::{Record, SharedJournal};
use holdfast_kubelith::{PlaneParts, inprocess, plane};
use holdfast_plane::Identity;
use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::core::gvk::GroupVersionKind;
use serde_json::{Value, json};
use tokio::time::Instant;

/// A wall clock that follows the runtime's, and a small generator.
struct World {
    start: Instant,
    drawn: Cell<u64>,
}

impl Ambient for World {
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

fn node(name: &str) -> Value {
    let amount = json!({"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                       "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubevirt.internal.virtualization.deckhouse.io/schedulable": "true"}},
        "status": {"capacity": amount, "allocatable": amount, "conditions": [ready],
                   "nodeInfo": {"bootID": "b", "machineID": "", "systemUUID": "", "kernelVersion": "", "osImage": "",
                       "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "",
                       "operatingSystem": "linux", "architecture": "amd64"}},
    })
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}}]}})
}

fn user_kind(client: &kube::Client, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("virtualization.deckhouse.io", "v1alpha2", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &format!("{}s", kind.to_lowercase()));
    Api::namespaced_with(client.clone(), "default", &resource)
}

fn user_object(kind: &str, name: &str, spec: Value) -> DynamicObject {
    let object = json!({"apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": kind,
                        "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// What people and nodes do.
async fn act(client: kube::Client) {
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::default_namespaced(client.clone()));
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let params = PostParams::default();
    for name in ["n1", "n2", "n3"] {
        let made = nodes.create(&params, &serde_json::from_value(node(name)).unwrap()).await.unwrap();
        let status = json!({"status": node(name)["status"]});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let taints = json!({"metadata": {"resourceVersion": null}, "spec": {"taints": null}});
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(taints)).await.unwrap();
        let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": made.metadata.uid}});
        leases.create(&params, &serde_json::from_value(lease).unwrap()).await.unwrap();
    }
    for n in 0..12 {
        pods.create(&params, &serde_json::from_value(pod(&format!("p{n}"))).unwrap()).await.unwrap();
    }
    let disk = user_object("VirtualDisk", "root", json!({"persistentVolumeClaim": {"size": "64Mi"}}));
    user_kind(&client, "VirtualDisk").create(&params, &disk).await.unwrap();
    let machine = json!({
        "virtualMachineClassName": "generic", "cpu": {"cores": 1}, "memory": {"size": "256Mi"},
        "blockDeviceRefs": [{"kind": "VirtualDisk", "name": "root"}],
    });
    let machine = user_object("VirtualMachine", "web", machine);
    user_kind(&client, "VirtualMachine").create(&params, &machine).await.unwrap();
    // Two nodes go on reporting, the third falls silent and loses its pods.
    for beat in 0..40 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = (holdfast_env::now()).to_string();
        for name in ["n1", "n2", "n3"] {
            if name == "n3" && beat > 3 {
                continue;
            }
            let renew = json!({"spec": {"renewTime": format!("{}.000000Z", &now[..19])}});
            leases.patch(name, &PatchParams::default(), &Patch::Merge(renew)).await.unwrap();
        }
    }
}

fn history(seed: u64, storage: &Path) -> Vec<Record> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let journal = SharedJournal::new();
    runtime.block_on(async {
        let world = World { start: Instant::now(), drawn: Cell::new(seed) };
        let _world = ambient::install(Rc::new(world));
        let contents = holdfast_plane::contents(&["10.66.10.0/24".to_owned()]);
        let entropy = Entropy::seeded(seed);
        let mut parts =
            PlaneParts::inline(Box::new(journal.clone()), contents, Clock::Real, entropy.clone());
        parts.hooks.admission = holdfast_plane::admission();
        let app = plane::open(parts).unwrap();
        let loops = holdfast_kubelith_loops::Config {
            storage: Some(holdfast_kubelith_loops::Storage::in_home(storage)),
            root_ca_pem: Some("pem".to_owned()),
            ..holdfast_kubelith_loops::Config::default()
        };
        let controllers =
            holdfast_controllers::Config { identity: "one".to_owned(), entropy, ..Default::default() };
        let client = |who: Identity<'_>| inprocess::client(&app, who.user());
        let admin = client(Identity::Admin);
        tokio::select! {
            biased;
            () = act(admin.clone()) => {}
            ended = holdfast_kubelith_loops::run(client(Identity::Loops), loops) => panic!("{ended:?}"),
            ended = holdfast_controllers::run(client(Identity::Controller), controllers) => panic!("{ended:?}"),
        }
        let pods = Api::<Pod>::default_namespaced(admin.clone()).list(&ListParams::default()).await.unwrap();
        let on = |node: &str| {
            pods.iter().filter(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some(node)).count()
        };
        assert!(on("n1") >= 3 && on("n2") >= 3, "{} on n1, {} on n2", on("n1"), on("n2"));
        let machine = user_kind(&admin, "VirtualMachine").get("web").await.unwrap();
        assert!(machine.data["status"]["phase"].is_string(), "{:?}", machine.data);
    });
    journal.records()
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let storage = tempfile::tempdir().unwrap();
    let (first, second) = (history(7, storage.path()), history(7, storage.path()));
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(a, b, "histories part at revision {}", a.rev);
    }
    assert_eq!(first.len(), second.len());
    assert!(first.len() > 300, "only {} writes: the controllers did nothing", first.len());
    let other = history(8, storage.path());
    assert!(first != other, "the seed must matter");
}
