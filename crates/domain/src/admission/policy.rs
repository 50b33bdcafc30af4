//! The sizing policy check (api.md A2.4, vm-lifecycle.md §5.2), used by admission and for the
//! condition `SizingPolicyMatched`.

use holdfast_api::Quantity;
use holdfast_api::vm::VirtualMachineSpec;
use holdfast_api::vmclass::{SizingMemory, SizingPolicy};

use super::cores::{list, percent};

/// Whether the resources of a VM fit the policies of its class.
///
/// # Errors
/// One text with every reason.
pub fn check(vm: &VirtualMachineSpec, class: &str, policies: &[SizingPolicy]) -> Result<(), String> {
    if policies.is_empty() {
        return Ok(());
    }
    let cores = vm.cpu.cores;
    let reasons = match covering(policies, cores) {
        None => vec![format!(
            "its resources do not match any sizing policies: no range fits {cores} cores, the ranges are {}",
            ranges(policies)
        )],
        Some(policy) => failures(vm, policy),
    };
    if reasons.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the virtual machine does not fit the sizing policy of class {class:?}, reason(s): {}. Ask the \
         administrator which sizes the class is for",
        reasons.join("; ")
    ))
}

/// The fraction that a VM without one of its own gets from its class (admission writes it where the class is known
/// when the VM is created), in percent; `None`: the class says nothing.
#[must_use]
pub fn default_fraction(policies: &[SizingPolicy], cores: i32) -> Option<i32> {
    covering(policies, cores)?.default_core_fraction
}

/// The policy whose range of cores holds the number.
pub(super) fn covering(policies: &[SizingPolicy], cores: i32) -> Option<&SizingPolicy> {
    policies
        .iter()
        .find(|policy| policy.cores.as_ref().is_some_and(|range| (range.min..=range.max).contains(&cores)))
}

pub(super) fn ranges(policies: &[SizingPolicy]) -> String {
    let ranges = policies.iter().filter_map(|policy| policy.cores.as_ref());
    ranges.map(|range| format!("{}..{}", range.min, range.max)).collect::<Vec<_>>().join(", ")
}

fn failures(vm: &VirtualMachineSpec, policy: &SizingPolicy) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(fraction) = vm.cpu.core_fraction.as_deref()
        && !policy.core_fractions.is_empty()
        && percent(fraction).is_none_or(|fraction| !policy.core_fractions.contains(&fraction))
    {
        let allowed = list(&policy.core_fractions);
        reasons.push(format!("core fraction {fraction} is not allowed, set one of {allowed}"));
    }
    if let Some(range) = &policy.cores
        && let Some(step) = range.step.filter(|step| *step > 0)
        && vm.cpu.cores != range.max
        && (vm.cpu.cores - range.min) % step != 0
    {
        let below = range.min + (vm.cpu.cores - range.min) / step * step;
        let above = (below + step).min(range.max);
        reasons.push(format!("{} cores do not match the step, use {below} or {above}", vm.cpu.cores));
    }
    if let Some(memory) = &policy.memory {
        memory_failures(vm, memory, &mut reasons);
    }
    reasons
}

fn memory_failures(vm: &VirtualMachineSpec, policy: &SizingMemory, reasons: &mut Vec<String>) {
    let bytes = |quantity: &Option<Quantity>| quantity.as_ref().and_then(|quantity| quantity.value().ok());
    let Ok(size) = vm.memory.size.value() else { return };
    let (min, max, step) = (bytes(&policy.min), bytes(&policy.max), bytes(&policy.step));
    if let Some(text) = outside(size, min, max) {
        reasons.push(format!("memory {} is out of range, set {text}", vm.memory.size));
    } else if let (Some(step), Some(max)) = (step, max)
        && let Some((below, above)) = off_grid(size, min.unwrap_or(0), max, step)
    {
        let (below, above) = (Quantity::from_bytes(below), Quantity::from_bytes(above));
        reasons.push(format!("memory {} does not match the step, use {below} or {above}", vm.memory.size));
    }
    let Some(per_core) = &policy.per_core else { return };
    let cores = i64::from(vm.cpu.cores.max(1));
    let (core_min, core_max) = (bytes(&per_core.min), bytes(&per_core.max));
    if let Some(text) = outside(size / cores, core_min, core_max) {
        let total = outside(i64::MIN, core_min.map(|b| b * cores), core_max.map(|b| b * cores));
        reasons.push(format!(
            "memory {} is not allowed for {cores} cores, set {} in total, that is {text} per core",
            vm.memory.size,
            total.unwrap_or_default()
        ));
    } else if let (Some(step), Some(max)) = (step, core_max)
        && let Some((below, above)) = off_grid(size / cores, core_min.unwrap_or(0), max, step)
    {
        let (below, above) = (Quantity::from_bytes(below * cores), Quantity::from_bytes(above * cores));
        reasons.push(format!(
            "memory {} does not match the step per core, use {below} or {above} in total, or change cores",
            vm.memory.size
        ));
    }
}

/// The range as a sentence part, if the value is outside of it.
fn outside(value: i64, min: Option<i64>, max: Option<i64>) -> Option<String> {
    if min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max) {
        return None;
    }
    let text = Quantity::from_bytes;
    Some(match (min, max) {
        (Some(min), Some(max)) => format!("between {} and {}", text(min), text(max)),
        (Some(min), None) => format!("at least {}", text(min)),
        (None, Some(max)) => format!("at most {}", text(max)),
        (None, None) => return None,
    })
}

/// The neighbours on the grid min, min + step, … and max, if the value is on none of them.
fn off_grid(value: i64, min: i64, max: i64, step: i64) -> Option<(i64, i64)> {
    if step <= 0 || value == max || (value - min) % step == 0 {
        return None;
    }
    let below = min + (value - min) / step * step;
    Some((below, (below + step).min(max)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_json(cores: i32, fraction: Option<&str>, memory: &str, policies: serde_json::Value) -> String {
        let mut vm = VirtualMachineSpec::default();
        vm.cpu.cores = cores;
        vm.cpu.core_fraction = fraction.map(str::to_owned);
        vm.memory.size = memory.into();
        let policies: Vec<SizingPolicy> = serde_json::from_value(policies).unwrap();
        match check(&vm, "burst", &policies) {
            Ok(()) => "fits".to_owned(),
            Err(text) => text.split("reason(s): ").nth(1).unwrap().split(". Ask").next().unwrap().to_owned(),
        }
    }

    // VL-K1: the policy table.
    #[test]
    fn table() {
        let policies = || {
            json!([
                {"cores": {"min": 1, "max": 4}, "memory": {"min": "1Gi", "max": "8Gi", "step": "512Mi"}, "coreFractions": [10, 25, 100]},
                {"cores": {"min": 5, "max": 8, "step": 2}, "memory": {"perCore": {"min": "1Gi", "max": "4Gi"}}, "coreFractions": [50, 100]},
            ])
        };
        for (cores, fraction, memory, expected) in [
            (2, Some("25%"), "2Gi", "fits"),
            (2, None, "8Gi", "fits"),
            (
                9,
                None,
                "8Gi",
                "its resources do not match any sizing policies: no range fits 9 cores, the ranges are 1..4, 5..8",
            ),
            (2, Some("20%"), "2Gi", "core fraction 20% is not allowed, set one of 10%, 25%, 100%"),
            (2, None, "512Mi", "memory 512Mi is out of range, set between 1Gi and 8Gi"),
            (2, None, "1800Mi", "memory 1800Mi does not match the step, use 1536Mi or 2Gi"),
            (7, Some("100%"), "7Gi", "fits"),
            (6, Some("100%"), "8Gi", "6 cores do not match the step, use 5 or 7"),
            (8, Some("100%"), "8Gi", "fits"),
            (
                5,
                None,
                "2Gi",
                "memory 2Gi is not allowed for 5 cores, set between 5Gi and 20Gi in total, that is between 1Gi and 4Gi per core",
            ),
            (
                6,
                Some("10%"),
                "50Gi",
                "core fraction 10% is not allowed, set one of 50%, 100%; 6 cores do not match the step, use 5 or 7; \
                 memory 50Gi is not allowed for 6 cores, set between 6Gi and 24Gi in total, that is between 1Gi and 4Gi per core",
            ),
        ] {
            assert_eq!(
                check_json(cores, fraction, memory, policies()),
                expected,
                "{cores} {fraction:?} {memory}"
            );
        }
        assert_eq!(check_json(200, None, "1Mi", json!([])), "fits");
    }
}
