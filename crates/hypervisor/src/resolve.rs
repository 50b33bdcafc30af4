//! From an Instance's hardware and a node's facts to a definition. Pure.
//!
//! Done once, by the agent of the node where the machine is powered on; the result is stored in
//! `Instance.status.runtime` and used for every later move.

use std::path::PathBuf;

use holdfast_api::engine::{self, CpuModel, Hardware, SeedKind};

use crate::definition::{Accelerator, Cpu, Definition, Disk, FORMAT, Firmware, InvalidDefinition, Nic, Seed};
use crate::qmp::QemuVersion;

/// Directory in the launcher pod below which each disk's claim is mounted, under the disk's id.
pub const DISKS_DIR: &str = "/var/run/holdfast/disks";
/// Name of the image on a Filesystem volume.
pub const DISK_FILE: &str = "disk.img";

/// Path of a disk inside the launcher pod: the same in every pod of the VM.
pub fn disk_path(id: &str) -> PathBuf {
    PathBuf::from(DISKS_DIR).join(id).join(DISK_FILE)
}

/// What a node contributes to a new machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// What executes guest code here (hypervisor.md §3).
    pub accelerator: Accelerator,
    /// Version pinned into the machine type: the lowest of all nodes, so that every node can receive it.
    pub machine_version: QemuVersion,
    /// Directory of the OVMF images.
    pub ovmf_dir: PathBuf,
}

/// Why hardware cannot be turned into a machine here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// This build or node cannot do it; the text says what and what to do.
    #[error("{0}")]
    Unsupported(String),
    /// The result would be refused by every QEMU.
    #[error(transparent)]
    Invalid(#[from] InvalidDefinition),
}

/// The versioned machine type of a QEMU, such as `pc-q35-10.0`.
pub fn machine_type(version: QemuVersion) -> String {
    format!("pc-q35-{}.{}", version.major, version.minor)
}

/// Resolves `hardware`. `name` becomes the guest's name in the process list: `namespace_vm`.
/// `seed_sha256` is the digest of the provisioning image built from the Instance's seed, if it has one.
pub fn resolve(
    name: &str,
    hardware: &Hardware,
    facts: &NodeFacts,
    seed_sha256: Option<&str>,
) -> Result<Definition, ResolveError> {
    let unsupported = |text: String| Err(ResolveError::Unsupported(text));
    if !matches!(hardware.machine.as_str(), "" | "q35") {
        return unsupported(format!("machine type {:?} is not available; use q35", hardware.machine));
    }
    if hardware.seed.as_ref().is_some_and(|s| s.kind == SeedKind::Sysprep) {
        return unsupported(
            "provisioning by Sysprep is not available yet; use UserData or UserDataRef".into(),
        );
    }
    let disks = hardware.disks.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
    let next = disks.iter().map(|d| d.scsi_id + 1).max().unwrap_or(0);
    let seed = match (&hardware.seed, seed_sha256) {
        (Some(_), Some(sha256)) => Some(Seed { scsi_id: next, sha256: sha256.to_owned() }),
        (Some(_), None) => return unsupported("provisioning data was not read".into()),
        (None, _) => None,
    };
    let definition = Definition {
        format: FORMAT,
        name: name.to_owned(),
        uuid: hardware.uuid.clone(),
        machine: machine_type(facts.machine_version),
        accelerator: facts.accelerator,
        cpu: cpu(&hardware.cpu, facts.accelerator)?,
        memory_bytes: u64::try_from(hardware.memory_bytes).unwrap_or_default(),
        firmware: firmware(hardware.firmware, facts),
        paravirtual: hardware.paravirtualization,
        nic: hardware.nic.as_ref().map(|n| Nic { mac: n.mac.to_ascii_lowercase() }),
        disks,
        seed,
    };
    definition.check()?;
    Ok(definition)
}

fn disk(d: &engine::Disk) -> Result<Disk, ResolveError> {
    let scsi_id = u32::try_from(d.scsi_id)
        .map_err(|_| ResolveError::Unsupported(format!("disk {} has the address {}", d.id, d.scsi_id)))?;
    Ok(Disk {
        id: d.id.clone(),
        path: disk_path(&d.id),
        block_device: false,
        serial: d.serial.clone(),
        scsi_id,
        boot_index: u32::try_from(d.boot_index).ok().filter(|i| *i > 0),
        read_only: d.read_only || d.cdrom,
        cdrom: d.cdrom,
    })
}

fn firmware(wanted: engine::Firmware, facts: &NodeFacts) -> Firmware {
    let efi = |code: &str, vars: &str, secure_boot| Firmware::Efi {
        code: facts.ovmf_dir.join(code),
        vars: facts.ovmf_dir.join(vars),
        secure_boot,
    };
    match wanted {
        engine::Firmware::Bios => Firmware::Bios,
        engine::Firmware::Efi => efi("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", false),
        engine::Firmware::EfiWithSecureBoot => efi("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd", true),
    }
}

/// Models whose features the translator has in full (spec hypervisor.md §6).
pub const TCG_MODELS: [&str; 11] = [
    "qemu64",
    "max",
    "kvm64",
    "core2duo",
    "Conroe",
    "Penryn",
    "Nehalem",
    "Westmere",
    "Opteron_G1",
    "Opteron_G2",
    "qemu32",
];

fn cpu(c: &engine::Cpu, accelerator: Accelerator) -> Result<Cpu, ResolveError> {
    let count = |n: i32| u32::try_from(n).unwrap_or_default();
    let mut features: Vec<String> = c.features.iter().map(|f| format!("{f}=on")).collect();
    let (model, enforce) = match (c.model, accelerator, c.model_name.as_deref()) {
        // `host` does not exist without hardware virtualisation; `max` is all the translator can do.
        (CpuModel::Host | CpuModel::HostPassthrough, Accelerator::Tcg, _) => ("max", false),
        (CpuModel::Host, Accelerator::Kvm, _) => {
            features.insert(0, "migratable=on".into());
            ("host", false)
        }
        (CpuModel::HostPassthrough, Accelerator::Kvm, _) => {
            features.insert(0, "migratable=off".into());
            ("host", false)
        }
        (CpuModel::Named, Accelerator::Tcg, Some(name)) if !TCG_MODELS.contains(&name) => {
            return Err(ResolveError::Unsupported(format!(
                "CPU model {name} needs hardware virtualisation (KVM), which this node does not have; \
                 without it these work: {}",
                TCG_MODELS.join(", ")
            )));
        }
        (CpuModel::Named, _, Some(name)) => (name, true),
        (CpuModel::Named, _, None) => {
            return Err(ResolveError::Unsupported("the CPU model has no name".into()));
        }
    };
    Ok(Cpu {
        model: model.to_owned(),
        features,
        enforce,
        sockets: count(c.sockets),
        cores_per_socket: count(c.cores_per_socket),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(accelerator: Accelerator) -> NodeFacts {
        let machine_version = QemuVersion { major: 10, minor: 0, micro: 2 };
        NodeFacts { accelerator, machine_version, ovmf_dir: "/usr/share/OVMF".into() }
    }

    fn hardware() -> Hardware {
        Hardware {
            machine: "q35".into(),
            cpu: engine::Cpu { sockets: 1, cores_per_socket: 2, ..Default::default() },
            memory_bytes: 256 << 20,
            uuid: "8f5c3f0e-5d0f-5e0a-9c55-0d6c6a4d7c11".into(),
            nic: Some(engine::Nic { mac: "F6:E1:74:94:01:02".into(), address: "10.66.10.14".into() }),
            disks: vec![engine::Disk { id: "vd-root".into(), boot_index: 1, ..Default::default() }],
            seed: Some(engine::Seed { instance_id: "i".into(), hostname: "h".into(), ..Default::default() }),
            paravirtualization: true,
            ..Default::default()
        }
    }

    #[test]
    fn hardware_becomes_a_definition() {
        let d = resolve("ns_vm", &hardware(), &facts(Accelerator::Tcg), Some("ab")).unwrap();
        assert_eq!(d.machine, "pc-q35-10.0");
        assert_eq!(d.cpu.model, "max");
        assert_eq!(d.nic.unwrap().mac, "f6:e1:74:94:01:02");
        assert_eq!(d.disks[0].path, PathBuf::from("/var/run/holdfast/disks/vd-root/disk.img"));
        assert_eq!(d.seed.unwrap().scsi_id, 1);
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_a_sentence() {
        let cases: [(&str, fn(&mut Hardware)); 4] = [
            ("q35", |h| h.machine = "pc".into()),
            ("Sysprep", |h| h.seed.as_mut().unwrap().kind = SeedKind::Sysprep),
            ("KVM", |h| {
                h.cpu.model = CpuModel::Named;
                h.cpu.model_name = Some("EPYC".into());
            }),
            ("MiB", |h| h.memory_bytes = 1000),
        ];
        for (word, change) in cases {
            let mut h = hardware();
            change(&mut h);
            let text = resolve("ns_vm", &h, &facts(Accelerator::Tcg), Some("ab")).unwrap_err().to_string();
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn host_model_under_kvm_can_move() {
        let d = resolve("ns_vm", &hardware(), &facts(Accelerator::Kvm), Some("ab")).unwrap();
        assert_eq!((d.cpu.model.as_str(), &d.cpu.features[..]), ("host", &["migratable=on".to_owned()][..]));
    }
}
