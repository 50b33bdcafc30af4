//! Firmware updates: VMs whose launcher was made from another image than the present one are moved to
//! it, a few at a time, by `firmware-update-*` operations (migration-and-maintenance.md §9).
//!
//! "Firmware" is the launcher image with its QEMU. One key, so one pass decides with everything in
//! view. Start at `plan.rs`.

mod plan;

use std::sync::Arc;

use holdfast_api::ModuleConfig;
use holdfast_api::engine::Instance;
use holdfast_api::names::{annotation, object};
use holdfast_api::settings::VirtualizationSettings;
use holdfast_api::vmop::VirtualMachineOperation;
use holdfast_env::Timestamp;
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::Config;
use crate::engine::slots;
use crate::operations::{Machine, Machines};

pub use plan::plan;

/// Knows the image that a launcher made now runs.
#[derive(Clone, Debug)]
pub struct Launchers {
    settings: Arc<Cache<ModuleConfig>>,
    release: String,
}

impl Launchers {
    /// Opens the cache it needs.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        Self { settings: caches.cache(), release: config.version.clone() }
    }

    /// The settings that hold launchers' image.
    #[must_use]
    pub fn settings(&self) -> &Arc<Cache<ModuleConfig>> {
        &self.settings
    }

    fn read(&self) -> VirtualizationSettings {
        VirtualizationSettings::find(self.settings.all().iter().map(|config| &**config))
    }

    /// The image of a launcher made now.
    #[must_use]
    pub fn image(&self) -> String {
        self.read().launcher_image(&self.release)
    }

    /// Whether running VMs are brought to that image.
    fn is_update_on(&self) -> bool {
        let all = self.settings.all();
        let off = all.iter().any(|config| {
            config.metadata.name.as_deref() == Some(holdfast_api::names::MODULE_CONFIG)
                && config.annotations().contains_key(annotation::DISABLE_FIRMWARE_UPDATE)
        });
        !off && self.read().firmware_update.unwrap_or(true)
    }
}

/// The guest runs in a launcher of another image than `image`. What is not known counts as up to date.
#[must_use]
pub fn is_outdated(instance: &Instance, image: &str) -> bool {
    let Some(status) = &instance.status else { return false };
    let (Some(active), Some(firmware)) = (&status.active_pod, &status.firmware) else { return false };
    firmware.pod_uid == active.uid && firmware.image != image
}

/// Everything the plan depends on.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The instant.
    pub now: Timestamp,
    /// The image that launchers shall run.
    pub image: String,
    /// Whether VMs are moved to it at all.
    pub enabled: bool,
    /// How many moves the cluster does at once.
    pub limit: usize,
    /// VMs that are outdated, and those with an unfinished firmware update.
    pub machines: Vec<Machine>,
}

/// The controller.
#[derive(Debug)]
pub struct FirmwareController {
    launchers: Launchers,
    machines: Machines,
    nodes: Arc<Cache<Node>>,
}

impl FirmwareController {
    /// Opens the caches it needs.
    #[must_use]
    pub fn new(caches: &Caches, config: &Config) -> Self {
        let launchers = Launchers::new(caches, config);
        Self { launchers, machines: Machines::new(caches), nodes: caches.cache() }
    }
}

/// The one key.
fn all() -> Vec<Key> {
    vec![Key::cluster("firmware")]
}

fn is_update(operation: &VirtualMachineOperation) -> bool {
    operation.name_any().starts_with(object::FIRMWARE_UPDATE_PREFIX)
}

impl Controller for FirmwareController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "firmware"
    }

    fn watches(&self, on: &mut Watches) {
        on.map(self.launchers.settings(), |_| all());
        // Of the many changes of Instances only those of outdated ones can open a place or need one.
        let launchers = self.launchers.clone();
        on.map(&self.machines.instances, move |instance| {
            if is_outdated(instance, &launchers.image()) { all() } else { Vec::new() }
        });
        on.map(&self.machines.operations, |op| if is_update(op) { all() } else { Vec::new() });
        on.map(&self.nodes, |_| all());
    }

    async fn observe(&self, _: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let image = self.launchers.image();
        let unfinished = |op: &VirtualMachineOperation| {
            is_update(op) && !op.status.as_ref().is_some_and(|status| status.phase.is_final())
        };
        let mut keys = self.machines.keys(|instance| is_outdated(instance, &image));
        keys.extend(
            self.machines
                .operations
                .filtered(unfinished)
                .iter()
                .map(|op| Key::new(op.namespace().unwrap_or_default(), &op.spec.virtual_machine_name)),
        );
        keys.sort();
        keys.dedup();
        Ok(Some(Observed {
            now: pass.now,
            enabled: self.launchers.is_update_on(),
            limit: self.nodes.filtered(slots::is_able).len(),
            machines: keys.iter().filter_map(|key| self.machines.get(key)).collect(),
            image,
        }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}
