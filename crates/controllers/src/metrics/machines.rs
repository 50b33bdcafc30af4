//! Metrics of virtual machines and of the nodes they are on.

use std::sync::Arc;

use holdfast_api::VirtualMachine;
use holdfast_api::condition::{ConditionKind as _, find};
use holdfast_api::engine::{EvictionRule, Instance, InstanceState};
use holdfast_api::vm::VmPhase;
use holdfast_api::vm::conditions::{FirmwareUpToDate, Migratable};
use holdfast_domain::eviction;
use holdfast_reconcile::Page;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::{Labels, with};

pub(super) const PHASE: &str = "d8_virtualization_virtualmachine_status_phase";
pub(super) const FIRMWARE: &str = "d8_virtualization_virtualmachine_firmware_up_to_date";
pub(super) const MIGRATABLE: &str = "d8_virtualization_virtualmachine_migratable";
pub(super) const POD: &str = "d8_virtualization_virtualmachine_pod";
pub(super) const INFO: &str = "d8_virtualization_virtualmachine_info";
pub(super) const NON_EVICTABLE: &str = "kubevirt_vmi_non_evictable";
pub(super) const OUTDATED: &str = "kubevirt_vmi_number_of_outdated";
/// Kubernetes' own exporter says the same, where there is one.
pub(super) const UNSCHEDULABLE: &str = "holdfast_node_unschedulable";

const PHASES: [VmPhase; 8] = [
    VmPhase::Pending,
    VmPhase::Starting,
    VmPhase::Running,
    VmPhase::Migrating,
    VmPhase::Stopping,
    VmPhase::Stopped,
    VmPhase::Terminating,
    VmPhase::Pause,
];

struct Row<'a> {
    vm: &'a VirtualMachine,
    name: String,
    namespace: String,
    uid: String,
    node: &'a str,
}

impl<'a> Row<'a> {
    fn new(vm: &'a VirtualMachine) -> Self {
        Self {
            vm,
            name: vm.name_any(),
            namespace: vm.namespace().unwrap_or_default(),
            uid: vm.uid().unwrap_or_default(),
            node: vm.status.as_ref().and_then(|status| status.node_name.as_deref()).unwrap_or_default(),
        }
    }

    fn labels(&self) -> Labels<'_> {
        vec![("name", &self.name), ("namespace", &self.namespace), ("uid", &self.uid), ("node", self.node)]
    }

    /// Status of a condition; `None` if it is not shown.
    fn holds(&self, type_: &str) -> Option<bool> {
        let conditions = self.vm.status.as_ref().map(|status| status.conditions.as_slice());
        find(conditions.unwrap_or_default(), type_).map(|condition| condition.status == "True")
    }

    /// The condition is shown only while it is False.
    fn is_up_to_date(&self) -> bool {
        self.holds(FirmwareUpToDate::TYPE) != Some(false)
    }

    fn phase(&self) -> VmPhase {
        self.vm.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
    }
}

pub(super) fn write(
    page: &mut Page,
    vms: &[Arc<VirtualMachine>],
    instances: &[Arc<Instance>],
    nodes: &[Arc<Node>],
) {
    let rows: Vec<Row<'_>> = vms.iter().map(|vm| Row::new(vm)).collect();
    page.gauge(PHASE, "1 for the phase of the VM, 0 for the others.");
    for row in &rows {
        for phase in PHASES {
            let name = phase.to_string();
            page.whole(&with(&row.labels(), &[("phase", &name)]), i64::from(phase == row.phase()));
        }
    }
    page.gauge(FIRMWARE, "1 unless the VM runs an older build of its launcher or QEMU.");
    for row in &rows {
        page.whole(&row.labels(), i64::from(row.is_up_to_date()));
    }
    page.gauge(MIGRATABLE, "1 if the VM can be moved live.");
    for row in &rows {
        page.whole(&row.labels(), i64::from(row.holds(Migratable::TYPE) == Some(true)));
    }
    page.gauge(POD, "1 for the pod in which the VM runs.");
    for row in &rows {
        let pods = row.vm.status.iter().flat_map(|status| &status.virtual_machine_pods);
        for pod in pods.filter(|pod| pod.active) {
            page.whole(&with(&row.labels(), &[("pod", &pod.name)]), 1);
        }
    }
    page.gauge(INFO, "1 for every VM.");
    for row in &rows {
        let class = ("virtualmachineclass", row.vm.spec.virtual_machine_class_name.as_str());
        page.whole(&with(&row.labels(), &[class]), 1);
    }
    let outdated = rows.iter().filter(|row| !row.is_up_to_date()).count();
    page.gauge(OUTDATED, "VMs that run an older build.")
        .whole(&[], i64::try_from(outdated).unwrap_or(i64::MAX));
    write_non_evictable(page, instances);
    page.gauge(UNSCHEDULABLE, "1 while the node is cordoned.");
    for node in nodes {
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        page.whole(&[("node", &node.name_any())], i64::from(cordoned));
    }
}

fn write_non_evictable(page: &mut Page, instances: &[Arc<Instance>]) {
    page.gauge(NON_EVICTABLE, "1 if a drain would wait for this running VM for ever, as it cannot be moved.");
    for instance in instances {
        let status = instance.status.clone().unwrap_or_default();
        if !matches!(status.state, Some(InstanceState::Running | InstanceState::Paused)) {
            continue;
        }
        let blocks = instance.spec.eviction_rule == EvictionRule::MoveOrBlock;
        let stuck = blocks && eviction::migratable(instance).is_err();
        let (namespace, name) = (instance.namespace().unwrap_or_default(), instance.name_any());
        let node = status.node.unwrap_or_default();
        page.whole(&[("node", &node), ("namespace", &namespace), ("name", &name)], i64::from(stuck));
    }
}
