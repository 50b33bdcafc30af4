//! From an Instance to the definition QEMU is started from.
//!
//! Done once per power-on, on the node of the claim, and stored in `status.runtime`; the target of a
//! move gets the stored one. Pure: what the node offers and what the disks hold comes in as values.

use std::collections::BTreeMap;

use holdfast_api::engine::{self, CpuModel, Instance, SeedKind};
use holdfast_api::names::launcher_pod;
use holdfast_hypervisor::definition::{Accelerator, Cpu, Definition, Disk, FORMAT, Firmware, Nic, Seed};
use holdfast_hypervisor::{bootsector, seed};
use kube::ResourceExt as _;

/// What this node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// Version of QEMU whose machine type a cold start gets, `10.0.2`: the lowest of all nodes.
    pub qemu_version: String,
}

/// The Instance cannot be turned into a machine: a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the VM cannot be built: {0}")]
pub struct Unbuildable(pub String);

fn bad<T>(why: impl Into<String>) -> Result<T, Unbuildable> {
    Err(Unbuildable(why.into()))
}

/// The provisioning files of an Instance, given the text of its user data (from the Secret or inline).
/// Empty without provisioning.
///
/// # Errors
/// The form of provisioning is not supported.
pub fn seed_files(
    instance: &Instance,
    user_data: Option<&str>,
) -> Result<BTreeMap<String, String>, Unbuildable> {
    let Some(seed) = &instance.spec.hardware.seed else { return Ok(BTreeMap::new()) };
    match seed.kind {
        SeedKind::NoCloud => {
            let text = user_data.unwrap_or_default();
            Ok(seed::nocloud(text, &seed.instance_id, &seed.hostname))
        }
        SeedKind::Sysprep => bad("provisioning by a Windows answer file is not available yet"),
    }
}

/// Builds the definition. `bootable` tells for each disk, by id, whether its first sector can boot.
///
/// # Errors
/// The Instance asks for something that cannot be built; the sentence says what.
pub fn build(
    instance: &Instance,
    node: &NodeFacts,
    files: &BTreeMap<String, String>,
    bootable: impl Fn(&str) -> bool,
) -> Result<Definition, Unbuildable> {
    let hardware = &instance.spec.hardware;
    let disks = hardware.disks.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
    let mut definition = Definition {
        format: FORMAT,
        name: format!("{}_{}", instance.namespace().unwrap_or_default(), instance.name_any()),
        uuid: hardware.uuid.clone(),
        machine: machine(&hardware.machine, &node.qemu_version)?,
        accelerator: node.accelerator,
        cpu: cpu(&hardware.cpu, node.accelerator)?,
        memory_bytes: u64::try_from(hardware.memory_bytes)
            .map_err(|_| Unbuildable(format!("memory of {} bytes", hardware.memory_bytes)))?,
        firmware: firmware(hardware.firmware, hardware.nvram.is_some()),
        paravirtual: hardware.paravirtualization,
        nic: hardware.nic.as_ref().map(|nic| Nic { mac: nic.mac.to_ascii_lowercase() }),
        seed: provisioning(files, &disks)?,
        disks,
    };
    bootsector::reorder(&mut definition, bootable);
    definition.check().map_err(|error| Unbuildable(error.0))?;
    Ok(definition)
}

/// The machine type of that version of QEMU; a versioned one stays as it is.
fn machine(family: &str, qemu_version: &str) -> Result<String, Unbuildable> {
    let family = if family.is_empty() { "q35" } else { family };
    if family.starts_with("pc-") {
        return Ok(family.to_owned());
    }
    let mut numbers = qemu_version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    match (family, numbers.next(), numbers.next()) {
        ("q35", Some(major), Some(minor)) => Ok(format!("pc-q35-{major}.{minor}")),
        ("pc", Some(major), Some(minor)) => Ok(format!("pc-i440fx-{major}.{minor}")),
        (_, Some(_), Some(_)) => bad(format!("machine type {family:?} is none of q35, pc")),
        _ => bad(format!("the version of QEMU on this node, {qemu_version:?}, is not readable")),
    }
}

/// Under TCG `host` is no CPU model, and most named models lack features of the translator: they run
/// without what it lacks instead of not at all (hypervisor.md §6).
fn cpu(cpu: &engine::Cpu, accelerator: Accelerator) -> Result<Cpu, Unbuildable> {
    let kvm = accelerator == Accelerator::Kvm;
    let (model, mut features) = match (cpu.model, &cpu.model_name) {
        (CpuModel::Named, Some(name)) => (name.clone(), vec![]),
        (CpuModel::Named, None) => return bad("the CPU model has no name"),
        (CpuModel::Host, _) if kvm => ("host".to_owned(), vec!["migratable=on".to_owned()]),
        (CpuModel::HostPassthrough, _) if kvm => ("host".to_owned(), vec![]),
        (CpuModel::Host | CpuModel::HostPassthrough, _) => ("max".to_owned(), vec![]),
    };
    features.extend(cpu.features.iter().map(|feature| format!("{feature}=on")));
    let count = |n: i32, what: &str| {
        u32::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| Unbuildable(format!("{n} {what}")))
    };
    Ok(Cpu {
        enforce: kvm && cpu.model == CpuModel::Named,
        model,
        features,
        sockets: count(cpu.sockets, "sockets")?,
        cores_per_socket: count(cpu.cores_per_socket, "cores per socket")?,
    })
}

fn firmware(firmware: engine::Firmware, keeps: bool) -> Firmware {
    let efi = |code: &str, vars: &str, secure_boot| Firmware::Efi {
        code: format!("/usr/share/OVMF/{code}").into(),
        vars: format!("/usr/share/OVMF/{vars}").into(),
        kept: keeps.then(|| launcher_pod::nvram_path(vars).into()),
        secure_boot,
    };
    match firmware {
        engine::Firmware::Bios => Firmware::Bios,
        engine::Firmware::Efi => efi("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", false),
        engine::Firmware::EfiWithSecureBoot => efi("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", true),
    }
}

fn disk(disk: &engine::Disk) -> Result<Disk, Unbuildable> {
    Ok(Disk {
        id: disk.id.clone(),
        path: launcher_pod::disk_path(&disk.id).into(),
        block_device: false,
        serial: disk.serial.clone(),
        scsi_id: u32::try_from(disk.scsi_id)
            .map_err(|_| Unbuildable(format!("address {} of disk {}", disk.scsi_id, disk.id)))?,
        boot_index: u32::try_from(disk.boot_index).ok().filter(|index| *index > 0),
        read_only: disk.read_only,
        cdrom: disk.cdrom,
    })
}

/// The provisioning disk comes after all disks.
fn provisioning(files: &BTreeMap<String, String>, disks: &[Disk]) -> Result<Option<Seed>, Unbuildable> {
    if files.is_empty() {
        return Ok(None);
    }
    let image = seed::build(files).map_err(|error| Unbuildable(error.to_string()))?;
    let scsi_id = disks.iter().map(|disk| disk.scsi_id + 1).max().unwrap_or(0);
    Ok(Some(Seed { scsi_id, sha256: seed::sha256(&image) }))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An Instance of a small VM with one disk.
    pub(crate) fn instance() -> Instance {
        let mut instance = Instance::default();
        instance.metadata.name = Some("linux-vm".into());
        instance.metadata.namespace = Some("default".into());
        instance.metadata.uid = Some("9f86d081-884c".into());
        instance.spec.epoch = 1;
        let hardware = &mut instance.spec.hardware;
        hardware.machine = "q35".into();
        hardware.uuid = "1f0c0cf8-0000-4000-8000-000000000001".into();
        hardware.memory_bytes = 256 << 20;
        hardware.paravirtualization = true;
        hardware.cpu.sockets = 1;
        hardware.cpu.cores_per_socket = 2;
        hardware.nic = Some(engine::Nic { mac: "52:54:00:AA:00:01".into(), address: "10.66.10.14".into() });
        hardware.disks = vec![engine::Disk {
            id: "vd-root".into(),
            serial: "abc".into(),
            boot_index: 1,
            ..engine::Disk::default()
        }];
        instance
    }

    fn node(accelerator: Accelerator) -> NodeFacts {
        NodeFacts { accelerator, qemu_version: "10.0.2".into() }
    }

    fn built(edit: impl FnOnce(&mut Instance), accelerator: Accelerator) -> Result<Definition, Unbuildable> {
        let mut instance = instance();
        edit(&mut instance);
        build(&instance, &node(accelerator), &BTreeMap::new(), |_| true)
    }

    #[test]
    fn a_small_vm() {
        let d = built(|_| (), Accelerator::Tcg).unwrap();
        assert_eq!(d.name, "default_linux-vm");
        assert_eq!(d.machine, "pc-q35-10.0");
        assert_eq!(d.cpu.model, "max");
        assert_eq!(d.nic.unwrap().mac, "52:54:00:aa:00:01");
        assert_eq!(d.disks[0].path.to_str(), Some("/volumes/vd-root/disk.img"));
        assert_eq!(d.disks[0].boot_index, Some(1));
        assert!(d.seed.is_none());
    }

    #[test]
    fn the_same_instance_gives_the_same_definition() {
        let hash = || built(|_| (), Accelerator::Tcg).unwrap().hash();
        assert_eq!(hash(), hash());
    }

    #[test]
    fn cpu_models_table() {
        let rows = [
            (CpuModel::Host, None, Accelerator::Kvm, "host +migratable=on enforce=false"),
            (CpuModel::HostPassthrough, None, Accelerator::Kvm, "host + enforce=false"),
            (CpuModel::Host, None, Accelerator::Tcg, "max + enforce=false"),
            (CpuModel::Named, Some("Nehalem"), Accelerator::Kvm, "Nehalem + enforce=true"),
            (CpuModel::Named, Some("Nehalem"), Accelerator::Tcg, "Nehalem + enforce=false"),
        ];
        for (model, name, accelerator, expected) in rows {
            let edit = |i: &mut Instance| {
                i.spec.hardware.cpu.model = model;
                i.spec.hardware.cpu.model_name = name.map(str::to_owned);
            };
            let cpu = built(edit, accelerator).unwrap().cpu;
            let shown = format!("{} +{} enforce={}", cpu.model, cpu.features.join(","), cpu.enforce);
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn uefi_variables_are_kept_where_there_is_a_volume_for_them() {
        let kept = |firmware, nvram: bool| {
            let edit = |i: &mut Instance| {
                i.spec.hardware.firmware = firmware;
                i.spec.hardware.nvram = nvram.then(engine::Nvram::default);
            };
            match built(edit, Accelerator::Tcg).unwrap().firmware {
                Firmware::Efi { kept, .. } => kept.map(|path| path.display().to_string()),
                Firmware::Bios => None,
            }
        };
        assert_eq!(kept(engine::Firmware::Efi, true).as_deref(), Some("/volumes/nvram/OVMF_VARS_4M.fd"));
        let secure = kept(engine::Firmware::EfiWithSecureBoot, true);
        assert_eq!(secure.as_deref(), Some("/volumes/nvram/OVMF_VARS_4M.ms.fd"));
        assert_eq!(kept(engine::Firmware::Efi, false), None);
        assert_eq!(kept(engine::Firmware::Bios, true), None);
    }

    #[test]
    fn what_cannot_be_built_says_why() {
        type Edit = fn(&mut Instance);
        let rows: &[(Edit, &str)] = &[
            (|i| i.spec.hardware.machine = "virt".into(), "machine type"),
            (|i| i.spec.hardware.memory_bytes = -1, "memory"),
            (|i| i.spec.hardware.cpu.sockets = 0, "sockets"),
            (|i| i.spec.hardware.uuid = "a,b".into(), "uuid"),
        ];
        for (edit, expected) in rows {
            let error = built(edit, Accelerator::Tcg).unwrap_err();
            assert!(error.0.contains(expected), "{error}");
        }
    }

    #[test]
    fn provisioning_becomes_a_disk_after_the_others() {
        let mut instance = instance();
        instance.spec.hardware.seed = Some(engine::Seed {
            instance_id: "i-1".into(),
            hostname: "linux-vm".into(),
            ..engine::Seed::default()
        });
        let files = seed_files(&instance, Some("#cloud-config\n")).unwrap();
        assert_eq!(files["user-data"], "#cloud-config\n");
        let d = build(&instance, &node(Accelerator::Tcg), &files, |_| true).unwrap();
        assert_eq!(d.seed.unwrap().scsi_id, 1);
        instance.spec.hardware.seed.as_mut().unwrap().kind = SeedKind::Sysprep;
        assert!(seed_files(&instance, None).is_err());
    }
}
