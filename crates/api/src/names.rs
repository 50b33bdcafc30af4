//! Labels, annotations, finalizers, secret types, object and field-manager names
//! (api.md §0.5, first-slice.md §5). Every text that two programs must agree on is here once.

/// Namespace of the platform's own objects (leases, images of cvi, importer pods of cvi).
pub const PLATFORM_NAMESPACE: &str = "holdfast-system";
/// Name of the ModuleConfig with Holdfast's settings.
pub const MODULE_CONFIG: &str = "virtualization";

/// Label keys and fixed values.
pub mod label {
    /// On launcher pods: name of the VM. Drains select on exactly this key.
    pub const VM_NAME: &str = "vm.kubevirt.internal.virtualization.deckhouse.io/name";
    /// On launcher pods: [`LAUNCHER`].
    pub const ROLE: &str = "kubevirt.internal.virtualization.deckhouse.io";
    /// Value of [`ROLE`] on launcher pods.
    pub const LAUNCHER: &str = "virt-launcher";
    /// On launcher pods: uid of the Instance.
    pub const CREATED_BY: &str = "kubevirt.internal.virtualization.deckhouse.io/created-by";
    /// On nodes: `true` while the node's agent is alive.
    pub const SCHEDULABLE: &str = "kubevirt.internal.virtualization.deckhouse.io/schedulable";
    /// On launcher pods: epoch of the Instance that the pod belongs to.
    pub const EPOCH: &str = "internal.virtualization.deckhouse.io/epoch";
    /// On target launcher pods: uid of the Migration.
    pub const MIGRATION_UID: &str = "internal.virtualization.deckhouse.io/migration-uid";
    /// On automatic addresses and on operations: uid of the VM.
    pub const VM_UID: &str = "virtualization.deckhouse.io/virtual-machine-uid";
    /// On leases: uid of the address that holds it; empty when released.
    pub const IP_ADDRESS_UID: &str = "virtualization.deckhouse.io/virtual-machine-ip-address-uid";
    /// On launcher pods, empty value: asks the node not to shut down.
    pub const INHIBIT_SHUTDOWN: &str = "pod.deckhouse.io/inhibit-node-shutdown";
    /// Prefix on nodes: `<prefix><feature>=true`.
    pub const CPU_FEATURE_PREFIX: &str = "cpu-feature.node.virtualization.deckhouse.io/";
    /// Prefix on nodes: `<prefix><model>=true`.
    pub const CPU_MODEL_PREFIX: &str = "cpu-model.node.virtualization.deckhouse.io/";
    /// On importer pods and their claims: uid of the vd, vi or cvi.
    pub const IMPORT_OWNER_UID: &str = "internal.virtualization.deckhouse.io/import-owner-uid";
}

/// Annotation keys.
pub mod annotation {
    /// On vmclass, only value `true`: this class is the default one.
    pub const DEFAULT_CLASS: &str = "virtualmachineclass.virtualization.deckhouse.io/is-default-class";
    /// On vmop, `true`: created because of a drain or of load shifting.
    pub const EVACUATION: &str = "virtualization.deckhouse.io/evacuation";
    /// On evacuation vmops: `drain` or `rebalance`.
    pub const EVACUATION_CAUSE: &str = "virtualization.deckhouse.io/evacuation-cause";
    /// On evacuation vmops: the node the rebalancer prefers.
    pub const EVACUATION_TARGET: &str = "virtualization.deckhouse.io/evacuation-target";
    /// On vmop, `true`: created by a firmware update or a placement change.
    pub const WORKLOAD_UPDATE: &str = "virtualization.deckhouse.io/workload-update";
    /// On the ModuleConfig, any value: running VMs are not moved to a new launcher image.
    pub const DISABLE_FIRMWARE_UPDATE: &str = "virtualization.deckhouse.io/disable-firmware-update";
    /// On launcher pods and Instances: source of `status.versions.qemu`.
    pub const QEMU_VERSION: &str = "versions.virtualization.deckhouse.io/qemu-version";
    /// On StorageClasses: marks the cluster's default class.
    pub const DEFAULT_STORAGE_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
}

/// Finalizers.
pub mod finalizer {
    /// On vm: until Instance and launcher pods are gone.
    pub const VM_CLEANUP: &str = "virtualization.deckhouse.io/vm-cleanup";
    /// On vmclass: until no VM names the class.
    pub const VMCLASS_CLEANUP: &str = "virtualization.deckhouse.io/vmclass-cleanup";
    /// On vd: until storage and helper objects are cleaned.
    pub const VD_CLEANUP: &str = "virtualization.deckhouse.io/vd-cleanup";
    /// On vi: until storage and helper objects are cleaned.
    pub const VI_CLEANUP: &str = "virtualization.deckhouse.io/vi-cleanup";
    /// On cvi: until storage and helper objects are cleaned.
    pub const CVI_CLEANUP: &str = "virtualization.deckhouse.io/cvi-cleanup";
    /// On vd: while at least one VM mounts it.
    pub const VD_PROTECTION: &str = "virtualization.deckhouse.io/vd-protection";
    /// On vi: while at least one VM mounts it.
    pub const VI_PROTECTION: &str = "virtualization.deckhouse.io/vi-protection";
    /// On cvi: while at least one VM mounts it.
    pub const CVI_PROTECTION: &str = "virtualization.deckhouse.io/cvi-protection";
    /// On vmbda: until the device is detached.
    pub const VMBDA_CLEANUP: &str = "virtualization.deckhouse.io/vmbda-cleanup";
    /// On vmip: until no VM uses it.
    pub const VMIP_CLEANUP: &str = "virtualization.deckhouse.io/vmip-cleanup";
    /// On vmipl: until released.
    pub const VMIPL_CLEANUP: &str = "virtualization.deckhouse.io/vmipl-cleanup";
    /// On vmop: until the migration is torn down, or while a power operation runs.
    pub const VMOP_CLEANUP: &str = "virtualization.deckhouse.io/vmop-cleanup";
    /// On evacuation vmops: until they are finished.
    pub const VMOP_EVACUATION: &str = "virtualization.deckhouse.io/vmop-protection-by-evacuation-controller";
    /// On launcher pods: until the pod's end is proved.
    pub const POD_PROTECTION: &str = "virtualization.deckhouse.io/pod-protection";
    /// On claims behind a VM's disks: until instance and pods are gone.
    pub const PVC_PROTECTION: &str = "virtualization.deckhouse.io/pvc-protection";
    /// On Instances: until every launcher pod is gone.
    pub const INSTANCE_CLEANUP: &str = "internal.virtualization.deckhouse.io/instance-cleanup";
    /// On Migrations: until both sides are settled.
    pub const MIGRATION_CLEANUP: &str = "internal.virtualization.deckhouse.io/migration-cleanup";
}

/// Types and keys of provisioning Secrets.
pub mod secret {
    /// Type of a cloud-init Secret.
    pub const CLOUD_INIT_TYPE: &str = "provisioning.virtualization.deckhouse.io/cloud-init";
    /// Type of a sysprep Secret.
    pub const SYSPREP_TYPE: &str = "provisioning.virtualization.deckhouse.io/sysprep";
    /// Accepted keys of a cloud-init Secret.
    pub const CLOUD_INIT_KEYS: [&str; 2] = ["userData", "userdata"];
    /// Accepted keys of a sysprep Secret.
    pub const SYSPREP_KEYS: [&str; 2] = ["unattend.xml", "autounattend.xml"];
}

/// Names and name prefixes of created objects.
pub mod object {
    /// Prefix of a launcher pod: `virt-launcher-<vm>-xxxxx`.
    pub const LAUNCHER_POD_PREFIX: &str = "virt-launcher-";
    /// Container that runs the guest.
    pub const LAUNCHER_CONTAINER: &str = "compute";
    /// Image name (without tag) of the launcher.
    pub const LAUNCHER_IMAGE: &str = "holdfast/launcher";
    /// Image name (without tag) of the importer.
    pub const IMPORTER_IMAGE: &str = "holdfast/importer";
    /// Container of an importer pod.
    pub const IMPORTER_CONTAINER: &str = "importer";
    /// Prefix of an importer pod: `importer-<vd, vi or cvi>-xxxxx`.
    pub const IMPORTER_POD_PREFIX: &str = "importer-";
    /// Readiness gate of launcher pods, written by the engine.
    pub const UNPAUSED_GATE: &str = "kubevirt.io/virtual-machine-unpaused";
    /// Prefix of evacuation operations.
    pub const EVACUATION_PREFIX: &str = "evacuation-";
    /// Prefix of operations after a firmware update.
    pub const FIRMWARE_UPDATE_PREFIX: &str = "firmware-update-";
    /// Prefix of operations after a placement change.
    pub const NODE_PLACEMENT_PREFIX: &str = "nodeplacement-update-";
    /// Prefix of the Migration of an operation.
    pub const VMOP_MIGRATION_PREFIX: &str = "vmop-";
    /// Storage class that every node reaches (ReadWriteMany, default).
    pub const SHARED_STORAGE_CLASS: &str = "shared";
    /// Node-bound storage class (ReadWriteOnce).
    pub const LOCAL_STORAGE_CLASS: &str = "local";
    /// File that holds a disk on a Filesystem volume (raw, sparse).
    pub const DISK_IMAGE_FILE: &str = "disk.img";
}

/// The inside of a launcher pod: what the engine (pod template), the node runtime, the agent and the
/// launcher agree on.
pub mod launcher_pod {
    /// emptyDir volume with the launcher's sockets and records; the agent finds launchers by it.
    pub const RUN_VOLUME: &str = "run";
    /// Where [`RUN_VOLUME`] is mounted.
    pub const RUN_DIR: &str = "/var/run/holdfast/run";
    /// Directory below which every disk's claim is mounted: `<VOLUMES_DIR>/<disk id>`, and the pod's
    /// volume is named by the disk's id.
    pub const VOLUMES_DIR: &str = "/volumes";

    /// The pod's volume for UEFI variables, mounted below [`VOLUMES_DIR`] too. No disk has this id.
    pub const NVRAM_VOLUME: &str = "nvram";

    /// Path of the UEFI variables that were made from a template of this name. Secure Boot has another
    /// template, with its keys enrolled, and so variables of its own.
    #[must_use]
    pub fn nvram_path(template: &str) -> String {
        format!("{VOLUMES_DIR}/{NVRAM_VOLUME}/{template}")
    }

    /// Path of a disk's image inside the pod; the same in every pod of the VM.
    #[must_use]
    pub fn disk_path(disk_id: &str) -> String {
        format!("{VOLUMES_DIR}/{disk_id}/{}", super::object::DISK_IMAGE_FILE)
    }
}

/// Kind of a claim with a VM's UEFI variables, for [`claim_name`].
pub const NVRAM_CLAIM: &str = "nvram";

/// Name of the claim that holds a disk or image: `d8v-<vd, vi or cvi>-<name>-<uid>`, the name cut
/// so that the whole keeps within 253 characters. The claim through which another namespace sees a
/// cluster image has the same name.
pub fn claim_name(kind: &str, name: &str, uid: &str) -> String {
    let room = 253usize.saturating_sub("d8v---".len() + kind.len() + uid.len());
    let cut: String = name.chars().take(room).collect();
    format!("d8v-{kind}-{}-{uid}", cut.trim_end_matches(['-', '.']))
}
