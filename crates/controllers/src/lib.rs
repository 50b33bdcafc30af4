//! All controllers of the product and the entry point that runs them while this process leads.
//!
//! | Controller | Writes the status of | Watches besides | Folder |
//! |---|---|---|---|
//! | `instance` | Instance | launcher pods, fence Leases | `engine/instance` |
//! | `migration` | Migration; `Instance.status.migration` | Instance, target pods | `engine/migration` |
//! | `slots` | Migration: slot and hand-off | all Migrations, target pods, Node | `engine/slots` |
//! | `evacuation` | Instance: evacuation rows | VirtualMachine, vmop, Migration, Node, NodeMaintenance | `evacuation` |
//! | `placement` | none, creates vmops | Instance, VirtualMachine, vmop, Node, Pod, Namespace | `placement_update` |
//! | `firmware` | none, creates vmops | Instance, VirtualMachine, vmop, Node, ModuleConfig | `firmware` |
//! | `nodemaintenance` | NodeMaintenance | Node, Pod, Lease, Namespace | `node_maintenance` |
//! | `vmclass` | VirtualMachineClass | Node, VirtualMachine | `vmclass` |
//! | `vd` | VirtualDisk | claims, importer pods, images, StorageClass, VirtualMachine | `vd`, `import` |
//! | `vi`, `cvi` | VirtualImage, ClusterVirtualImage | as `vd`, and volumes | `image`, `import` |
//! | `vmip` | VirtualMachineIPAddress | leases, VirtualMachine, ModuleConfig | `vmip` |
//! | `vmipl` | VirtualMachineIPAddressLease | VirtualMachineIPAddress, ModuleConfig | `vmipl` |
//! | `vm` | VirtualMachine | Instance, Migration, class, disks, images, claims, vmip, Secret, vmop | `fronts/deckhouse/vm` |
//! | `vmop` | VirtualMachineOperation | VirtualMachine, Instance, Migration | `fronts/deckhouse/vmop` |
//!
//! Field manager of each: `holdfast-<controller>`. One controller writes one kind's status; nobody
//! else does (INV-8), except for the rows of Instance and Migration whose writer is named there.

pub mod engine;
pub mod evacuation;
pub mod firmware;
pub mod fronts;
pub mod image;
pub mod import;
pub mod indexes;
pub mod metrics;
pub mod node_maintenance;
pub mod operations;
pub mod placement_update;
pub mod unready;
pub mod vd;
pub mod vmclass;
pub mod vmip;
pub mod vmipl;

use std::time::Duration;

use holdfast_api::names::PLATFORM_NAMESPACE;
use holdfast_env::{Clock, Entropy};
use holdfast_reconcile::lease::{Leader, LeaderConfig};
use holdfast_reconcile::{Metrics, Runtime};
use tracing::warn;

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Identity in the leader election. A supervisor that makes sure that only one controller of
    /// its home runs gives the same identity at each start: the new one then leads at once.
    pub identity: String,
    /// How long leadership lasts without renewal.
    pub lease_duration: Duration,
    /// Tag of the `holdfast/*` images, the version of this build.
    pub version: String,
    /// Namespace of the Leases of nodes in maintenance.
    pub lease_namespace: String,
    /// Source of timestamps.
    pub clock: Clock,
    /// Source of everything random.
    pub entropy: Entropy,
    /// What operators see ([`metrics`]); the caller serves it.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            identity: format!("pid-{}", std::process::id()),
            lease_duration: Duration::from_secs(15),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lease_namespace: holdfast_api::maintenance::LEASE_NAMESPACE.to_owned(),
            clock: Clock::Real,
            entropy: Entropy::real(),
            metrics: Metrics::default(),
        }
    }
}

/// Takes part in the election and runs all controllers while leading.
///
/// # Errors
/// When leadership is lost: every controller has been stopped by then, the caller ends the process
/// or calls again.
pub async fn run(client: kube::Client, config: Config) -> anyhow::Result<()> {
    let lease = LeaderConfig {
        namespace: PLATFORM_NAMESPACE.to_owned(),
        name: "controller".to_owned(),
        identity: config.identity.clone(),
        duration: config.lease_duration,
    };
    let leader = Leader::new(client.clone(), lease, config.clock.clone());
    leader.acquire().await;
    let runtime = assemble(client, &config);
    let lost = tokio::select! {
        biased;
        lost = leader.hold() => lost,
        () = runtime.run() => "all controllers ended".to_owned(),
    };
    warn!(%lost, "leadership ended, controllers stopped");
    anyhow::bail!("controllers stopped: {lost}")
}

/// The table of controllers: one line each.
fn assemble(client: kube::Client, config: &Config) -> Runtime {
    let mut runtime =
        Runtime::new(client, config.clock.clone(), config.entropy.clone(), config.metrics.clone());
    let instance = engine::instance::InstanceController::new(runtime.caches(), config);
    let migration = engine::migration::MigrationController::new(runtime.caches(), config);
    let slots = engine::slots::SlotsController::new(runtime.caches());
    runtime.add(instance).add(migration).add(slots);
    let vm = fronts::deckhouse::vm::VmController::new(runtime.caches(), config);
    runtime.add(vm);
    let vmop = fronts::deckhouse::vmop::VmopController::new(runtime.caches());
    runtime.add(vmop);
    let evacuation = evacuation::EvacuationController::new(runtime.caches());
    let placement = placement_update::PlacementController::new(runtime.caches());
    let firmware = firmware::FirmwareController::new(runtime.caches(), config);
    let maintenance = node_maintenance::NodeMaintenanceController::new(runtime.caches(), config);
    runtime.add(evacuation).add(placement).add(firmware).add(maintenance);
    let vmclass = vmclass::VmClassController::new(runtime.caches());
    let vmip = vmip::VmipController::new(runtime.caches());
    let vmipl = vmipl::VmiplController::new(runtime.caches());
    runtime.add(vmclass).add(vmip).add(vmipl);
    let vd = vd::VdController::new(runtime.caches(), config);
    let vi = image::ImageController::<holdfast_api::VirtualImage>::new(runtime.caches(), config);
    let cvi = image::ImageController::<holdfast_api::ClusterVirtualImage>::new(runtime.caches(), config);
    runtime.add(vd).add(vi).add(cvi);
    metrics::Sources::new(runtime.caches()).shown_by(&config.metrics, &config.clock);
    runtime
}
