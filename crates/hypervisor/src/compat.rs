//! May a running machine continue under another QEMU? Asked before a move, because QEMU itself accepts
//! most differences silently (spec hypervisor.md §10.9).

use crate::definition::{Accelerator, Definition};
use crate::qmp::QemuVersion;

/// What a node offers to machines that arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver {
    /// Its accelerator.
    pub accelerator: Accelerator,
    /// Its QEMU.
    pub qemu: QemuVersion,
}

/// Lists everything that stands against running `definition`, now under QEMU `source`, on `receiver`.
/// Empty: it may move. Each entry is a sentence for people.
pub fn objections(definition: &Definition, source: QemuVersion, receiver: Receiver) -> Vec<String> {
    let mut found = vec![];
    if definition.accelerator != receiver.accelerator {
        found.push(format!(
            "the VM runs with accelerator {}, the target has {}",
            definition.accelerator, receiver.accelerator
        ));
    }
    let here = (receiver.qemu.major, receiver.qemu.minor);
    if machine_version(&definition.machine).is_some_and(|needed| needed > here) {
        found.push(format!(
            "the VM's machine type {} is newer than QEMU {} on the target",
            definition.machine, receiver.qemu
        ));
    }
    // `max` and `host` are whatever a QEMU can give: a newer one gives all that the older one gave, an older one
    // may take from the guest what it uses already.
    let floating = matches!(definition.cpu.model.as_str(), "max" | "host");
    if floating && (source.major, source.minor) > here {
        found.push(format!(
            "CPU model {} may have less under an older QEMU: {source} on the source, {} on the target",
            definition.cpu.model, receiver.qemu
        ));
    }
    found
}

/// The version in a machine type such as `pc-q35-10.0`.
fn machine_version(machine: &str) -> Option<(u32, u32)> {
    let (major, minor) = machine.rsplit('-').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
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

    fn version(text: &str) -> QemuVersion {
        text.parse().unwrap()
    }

    fn found(
        edit: impl FnOnce(&mut Definition),
        source: &str,
        accelerator: Accelerator,
        qemu: &str,
    ) -> String {
        let mut d = machine(&[]);
        edit(&mut d);
        objections(&d, version(source), Receiver { accelerator, qemu: version(qemu) }).join("; ")
    }

    #[test]
    fn each_objection_is_named_and_equal_nodes_have_none() {
        let max = |d: &mut Definition| d.cpu.model = "max".into();
        let old = |d: &mut Definition| d.machine = "pc-q35-7.2".into();
        let tcg = Accelerator::Tcg;
        assert_eq!(found(|_| (), "10.0.2", tcg, "10.0.2"), "");
        assert_eq!(found(max, "10.0.2", tcg, "10.0.5"), "");
        assert_eq!(found(old, "10.0.2", tcg, "7.2.22"), "");
        assert!(found(|_| (), "10.0.2", Accelerator::Kvm, "10.0.2").contains("accelerator tcg"));
        assert!(found(|_| (), "10.0.2", tcg, "7.2.22").contains("newer than QEMU 7.2.22"));
        assert_eq!(found(max, "10.0.2", tcg, "10.1.0"), "");
        let old_max = |d: &mut Definition| {
            old(d);
            max(d);
        };
        assert!(found(old_max, "10.0.2", tcg, "9.2.0").contains("CPU model max"));
    }

    #[test]
    fn differences_name_the_field() {
        let (a, mut b) = (machine(&["a"]), machine(&["a"]));
        assert_eq!(differences(&a, &b), [""; 0]);
        b.memory_bytes += 1 << 20;
        assert_eq!(differences(&a, &b), ["memoryBytes: 268435456 against 269484032"]);
    }
}
