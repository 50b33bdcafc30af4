//! May a running machine continue under another QEMU? Asked before a move, because QEMU itself accepts
//! most differences silently (spec hypervisor.md §10.9).

use crate::definition::{Accelerator, Definition};
use crate::qmp::QemuVersion;

/// What a node offers to machines that arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Its accelerator.
    pub accelerator: Accelerator,
    /// Its QEMU.
    pub qemu: QemuVersion,
    /// Machine types its QEMU knows.
    pub machines: Vec<String>,
}

/// Lists everything that stands against running `definition`, started by QEMU `source`, on `receiver`.
/// Empty: it may move. Each entry is a sentence for people.
pub fn objections(definition: &Definition, source: QemuVersion, receiver: &Receiver) -> Vec<String> {
    let mut found = vec![];
    if definition.accelerator != receiver.accelerator {
        found.push(format!(
            "the VM runs with accelerator {}, the target has {}",
            definition.accelerator, receiver.accelerator
        ));
    }
    if !receiver.machines.contains(&definition.machine) {
        found.push(format!(
            "the VM's machine type {} is unknown to QEMU {} on the target",
            definition.machine, receiver.qemu
        ));
    }
    // `max` and `host` mean another CPU under another version or on another node.
    let floating = matches!(definition.cpu.model.as_str(), "max" | "host");
    let same_series = (source.major, source.minor) == (receiver.qemu.major, receiver.qemu.minor);
    if floating && !same_series {
        found.push(format!(
            "CPU model {} depends on the QEMU version: {source} here, {} on the target",
            definition.cpu.model, receiver.qemu
        ));
    }
    found
}

/// Lists differences between two definitions that must be equal, by field.
pub fn differences(a: &Definition, b: &Definition) -> Vec<String> {
    let value =
        |d: &Definition| serde_json::to_value(d).expect("invariant: a definition holds only JSON types");
    let (a, b) = (value(a), value(b));
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return vec![] };
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| {
            let show = |v: Option<&serde_json::Value>| v.map_or("nothing".to_owned(), ToString::to_string);
            format!("{key}: {} against {}", show(a.get(key)), show(b.get(key)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::machine;

    fn version(major: u32, minor: u32) -> QemuVersion {
        QemuVersion { major, minor, micro: 0 }
    }

    fn receiver() -> Receiver {
        Receiver { accelerator: Accelerator::Tcg, qemu: version(10, 0), machines: vec!["pc-q35-10.0".into()] }
    }

    #[test]
    fn equal_nodes_have_no_objection() {
        assert_eq!(objections(&machine(&[]), version(10, 0), &receiver()), [""; 0]);
    }

    #[test]
    fn each_difference_is_named() {
        let mut d = machine(&[]);
        d.cpu.model = "max".into();
        let old = Receiver {
            accelerator: Accelerator::Kvm,
            qemu: version(7, 2),
            machines: vec!["pc-q35-7.2".into()],
        };
        let found = objections(&d, version(10, 0), &old);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn differences_name_the_field() {
        let (a, mut b) = (machine(&["a"]), machine(&["a"]));
        assert_eq!(differences(&a, &b), [""; 0]);
        b.memory_bytes += 1 << 20;
        assert_eq!(differences(&a, &b), ["memoryBytes: 268435456 against 269484032"]);
    }
}
