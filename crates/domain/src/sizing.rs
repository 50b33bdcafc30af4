//! What a VM asks of a node: CPU request and limit, memory with overhead (vm-lifecycle.md §4.2, §4.4).

use holdfast_api::Quantity;
use holdfast_api::engine::Resources;
use holdfast_api::vm::VirtualMachineSpec;
use holdfast_api::vmclass::VirtualMachineClassSpec;

use crate::admission::default_fraction;

const MIB: i64 = 1 << 20;

/// Fraction of a core, percent, when the VM names none.
pub const FRACTION_DEFAULT_PCT: i64 = 100;

/// Holdfast's launcher process, MiB.
const LAUNCHER_MIB: i64 = 32;
/// QEMU without guest memory: code, device models, migration buffers, MiB.
const QEMU_MIB: i64 = 96;
/// Translation cache of a guest without hardware virtualisation (`tb-size=128`), MiB. Counted
/// always: the node, and with it the accelerator, is not known when the pod is made.
const TRANSLATION_MIB: i64 = 128;
/// Each vCPU thread, MiB.
const VCPU_MIB: i64 = 8;
/// Video memory, MiB.
const VIDEO_MIB: i64 = 16;

/// Percent of a core from the text of `coreFraction`; 100 if absent or unreadable.
#[must_use]
pub fn fraction_pct(text: Option<&str>) -> i64 {
    text.and_then(|text| text.strip_suffix('%'))
        .and_then(|number| number.parse().ok())
        .filter(|pct| (1..=100).contains(pct))
        .unwrap_or(FRACTION_DEFAULT_PCT)
}

/// CPU request in thousandths of a core: ceil(cores × 1000 × fraction / 100).
#[must_use]
pub fn cpu_request_milli(cores: i32, fraction_pct: i64) -> i64 {
    let thousandths = i64::from(cores) * 1000 * fraction_pct;
    (thousandths + 99) / 100
}

/// Memory of the pod beyond the guest's, bytes.
#[must_use]
pub fn memory_overhead_bytes(cores: i32, memory_bytes: i64) -> i64 {
    let fixed = LAUNCHER_MIB + QEMU_MIB + TRANSLATION_MIB + VIDEO_MIB;
    let page_tables = memory_bytes / 512;
    fixed * MIB + i64::from(cores) * VCPU_MIB * MIB + page_tables
}

/// Guest memory in bytes; 0 if unreadable, which admission refuses.
#[must_use]
pub fn memory_bytes(size: &Quantity) -> i64 {
    size.value().unwrap_or_default()
}

/// Percent of a core that a VM of a class is guaranteed: its own fraction, else the class's default one, else all.
#[must_use]
pub fn effective_pct(spec: &VirtualMachineSpec, class: &VirtualMachineClassSpec) -> i64 {
    let policies = class.sizing_policies.as_deref().unwrap_or_default();
    match spec.cpu.core_fraction.as_deref() {
        Some(own) => fraction_pct(Some(own)),
        None => default_fraction(policies, spec.cpu.cores).map_or(FRACTION_DEFAULT_PCT, i64::from),
    }
}

/// What the launcher pod of a VM of a class asks of a node.
#[must_use]
pub fn resources(spec: &VirtualMachineSpec, class: &VirtualMachineClassSpec) -> Resources {
    let cores = spec.cpu.cores;
    let memory = memory_bytes(&spec.memory.size);
    Resources {
        cpu_request_milli: cpu_request_milli(cores, effective_pct(spec, class)),
        cpu_limit_milli: i64::from(cores) * 1000,
        memory_bytes: memory + memory_overhead_bytes(cores, memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_requests_round_up() {
        for (cores, pct, want) in [(4, 20, 800), (1, 10, 100), (1, 100, 1000), (3, 33, 990), (1, 1, 10)] {
            assert_eq!(cpu_request_milli(cores, pct), want, "{cores} at {pct}%");
        }
    }

    #[test]
    fn fractions_are_read_and_default_to_a_whole_core() {
        for (text, want) in
            [(None, 100), (Some("5%"), 5), (Some("100%"), 100), (Some("0%"), 100), (Some("x"), 100)]
        {
            assert_eq!(fraction_pct(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_fraction_that_is_left_open_is_the_classs() {
        let policies = serde_json::json!([
            {"cores": {"min": 1, "max": 4}, "coreFractions": [20, 100], "defaultCoreFraction": 20},
            {"cores": {"min": 5, "max": 8}},
        ]);
        let policies = Some(serde_json::from_value(policies).unwrap());
        let class =
            VirtualMachineClassSpec { sizing_policies: policies, ..VirtualMachineClassSpec::default() };
        for (cores, own, want) in [(2, None, 20), (2, Some("100%"), 100), (6, None, 100), (9, None, 100)] {
            let mut spec = VirtualMachineSpec::default();
            spec.cpu.cores = cores;
            spec.cpu.core_fraction = own.map(str::to_owned);
            assert_eq!(effective_pct(&spec, &class), want, "{cores} cores, {own:?}");
        }
    }

    #[test]
    fn pod_memory_is_size_plus_overhead() {
        let mut spec = VirtualMachineSpec::default();
        spec.cpu.cores = 2;
        spec.memory.size = "1Gi".into();
        let resources = resources(&spec, &VirtualMachineClassSpec::default());
        let size = 1 << 30;
        assert_eq!(resources.memory_bytes, size + memory_overhead_bytes(2, size));
        assert_eq!((resources.cpu_request_milli, resources.cpu_limit_milli), (2000, 2000));
    }
}
