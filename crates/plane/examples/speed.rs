//! How fast the control plane answers in process: `cargo run --release -p holdfast-plane --example speed`.

use std::time::{Duration, Instant};

use holdfast_env::{Clock, Entropy};
use holdfast_kubelith::store::SharedJournal;
use holdfast_kubelith::{PlaneParts, inprocess, plane};
use holdfast_plane::Identity;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::core::gvk::GroupVersionKind;
use serde_json::json;

fn parts(journal: &SharedJournal) -> PlaneParts {
    let contents = holdfast_plane::contents(&["10.66.10.0/24".to_owned()]);
    let mut parts = PlaneParts::inline(Box::new(journal.clone()), contents, Clock::Real, Entropy::seeded(1));
    parts.hooks.admission = holdfast_plane::admission();
    parts
}

fn tell(what: &str, count: u32, took: Duration) {
    println!(
        "{what:<44} {:>9.0}/s {:>9.1} µs",
        f64::from(count) / took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / f64::from(count)
    );
}

const ROUNDS: u32 = 20_000;

macro_rules! measure {
    ($what:literal, $i:ident => $body:expr) => {{
        let start = Instant::now();
        for $i in 0..ROUNDS {
            $body.await?;
        }
        tell($what, ROUNDS, start.elapsed());
    }};
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    let journal = SharedJournal::new();
    let start = Instant::now();
    let app = plane::open(parts(&journal))?;
    println!("{:<44} {:>9.1} ms", "open, empty journal", start.elapsed().as_secs_f64() * 1e3);
    drop(app);
    let start = Instant::now();
    let app = plane::open(parts(&journal))?;
    println!("{:<44} {:>9.1} ms", "open, second time", start.elapsed().as_secs_f64() * 1e3);

    let admin = inprocess::client(&app, Identity::Admin.user());
    let client = inprocess::client(&app, Identity::Controller.user());
    let agent = inprocess::client(&app, Identity::Agent("n1").user());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let (post, params) = (PostParams::default(), PatchParams::apply("holdfast-x").force());
    let map = |i: u32| -> ConfigMap {
        serde_json::from_value(
            json!({"metadata": {"name": format!("m{}", i % 100)}, "data": {"n": i.to_string()}}),
        )
        .expect("a map")
    };
    for i in 0..100 {
        maps.create(&post, &map(i)).await?;
    }
    measure!("merge patch of a ConfigMap", i => maps.patch(&format!("m{}", i % 100), &PatchParams::default(), &Patch::Merge(json!({"data": {"n": i.to_string()}}))));
    measure!("get of a ConfigMap", i => maps.get(&format!("m{}", i % 100)));
    let leases: Api<Lease> = Api::default_namespaced(agent);
    let lease: Lease = serde_json::from_value(
        json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 15}}),
    )?;
    leases.create(&post, &lease).await?;
    measure!("merge patch of a Lease, by an agent", i => leases.patch("l", &PatchParams::default(), &Patch::Merge(json!({"spec": {"leaseDurationSeconds": i + 1}}))));
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
    )?;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    accounts.create(&post, &serde_json::from_value(json!({"metadata": {"name": "default"}}))?).await?;
    pods.create(&post, &pod).await?;
    measure!("merge patch of a Pod's status", i => pods.patch_status("p", &PatchParams::default(), &Patch::Merge(json!({"status": {"message": i.to_string()}}))));
    let gvk = GroupVersionKind::gvk("virtualization.deckhouse.io", "v1alpha2", "VirtualMachine");
    let machines: Api<DynamicObject> = Api::default_namespaced_with(admin, &ApiResource::from_gvk(&gvk));
    let machine = |cores: u32| {
        json!({"apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": "VirtualMachine", "metadata": {"name": "web"},
        "spec": {"virtualMachineClassName": "generic", "cpu": {"cores": cores}, "memory": {"size": "256Mi"},
                 "blockDeviceRefs": [{"kind": "VirtualDisk", "name": "root"}]}})
    };
    machines.create(&post, &serde_json::from_value(machine(1))?).await?;
    measure!("merge patch of a VirtualMachine's status", i => machines.patch_status("web", &PatchParams::default(), &Patch::Merge(json!({"status": {"observedGeneration": i}}))));
    measure!("apply of a VirtualMachine", i => machines.patch("web", &params, &Patch::Apply(machine(1 + i % 2))));
    println!("{:<44} {:>9}", "writes", journal.len());
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(run())
}
