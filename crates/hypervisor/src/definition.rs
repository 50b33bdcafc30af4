//! The definition: everything that decides what the guest sees, resolved and frozen at power-on.
//!
//! Both sides of a migration build their command line from the same definition, never from the current
//! spec, because QEMU silently accepts a different CPU model, serial, MAC or UUID on the target (spec
//! hypervisor.md §10.9). [`Definition::hash`] is what the two sides compare.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The definition format this build writes.
pub const FORMAT: u32 = 1;

/// A machine as QEMU shall emulate it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Definition {
    /// Version of this structure; see [`FORMAT`].
    pub format: u32,
    /// Name of the process's guest, `namespace_name`; shown in process lists and QMP.
    pub name: String,
    /// Firmware UUID the guest reads through DMI.
    pub uuid: String,
    /// Versioned machine type such as `pc-q35-10.0`. Never an alias: it must not change while the guest lives.
    pub machine: String,
    /// What executes guest code.
    pub accelerator: Accelerator,
    /// CPU model and topology.
    pub cpu: Cpu,
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// virtio-scsi and virtio-net (true), or SATA and e1000 (spec vm-lifecycle.md §7.2).
    pub paravirtual: bool,
    /// The network card; absent for a machine without network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nic: Option<Nic>,
    /// Disks and CD-ROMs in the order of the VM's list.
    pub disks: Vec<Disk>,
    /// The provisioning disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
}

/// What executes guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator; slow, works everywhere.
    Tcg,
}

impl Accelerator {
    /// The name used in labels, status and on QEMU's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// CPU model and topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cpu {
    /// QEMU's model name.
    pub model: String,
    /// Properties appended to the model, in order, such as `+aes` or `migratable=on`.
    pub features: Vec<String>,
    /// Refuse to start when the host lacks a feature of a named model.
    pub enforce: bool,
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores_per_socket: u32,
}

impl Cpu {
    /// Number of virtual CPUs.
    pub fn count(&self) -> u32 {
        self.sockets * self.cores_per_socket
    }
}

/// The firmware that boots the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", deny_unknown_fields)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF from read-only `code`; variables start as a copy of `vars`.
    #[serde(rename_all = "camelCase")]
    Efi {
        /// Path of the code image on the node.
        code: PathBuf,
        /// Path of the variable template on the node.
        vars: PathBuf,
        /// Where the variables are kept over power-off, the same path in every pod of this VM. Without it they
        /// live in the launcher's run directory and start from the template at every power-on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kept: Option<PathBuf>,
        /// Secure Boot: variables are writable only from system management mode.
        secure_boot: bool,
    },
}

/// The network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nic {
    /// MAC address, lower-case hex with colons.
    pub mac: String,
}

/// A disk or CD-ROM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// Stable name within the machine, such as `vd-root`.
    pub id: String,
    /// Path inside the pod; the same in every pod of this VM.
    pub path: PathBuf,
    /// A block device rather than a file.
    #[serde(default, skip_serializing_if = "is_false")]
    pub block_device: bool,
    /// Serial number seen by the guest; empty for none.
    pub serial: String,
    /// SCSI target on controller 0 (SATA port when not paravirtual).
    pub scsi_id: u32,
    /// Place in the boot order, from 1; absent: never booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_index: Option<u32>,
    /// The guest cannot write.
    pub read_only: bool,
    /// Appears as a CD-ROM drive.
    pub cdrom: bool,
}

/// The provisioning disk, built by the launcher into its run directory (see [`crate::seed`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seed {
    /// SCSI target, after those of the disks.
    pub scsi_id: u32,
    /// SHA-256 of the image, lower-case hex: the target must rebuild it byte for byte.
    pub sha256: String,
}

fn is_false(b: &bool) -> bool {
    !*b
}

/// Why a definition cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("machine definition: {0}")]
pub struct InvalidDefinition(pub String);

impl Definition {
    /// SHA-256 over the canonical form (JSON with this structure's field order), lower-case hex.
    pub fn hash(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("invariant: a definition holds only JSON types");
        hex(&Sha256::digest(canonical))
    }

    /// Checks everything that would let one value break out of its argument or clash with another.
    pub fn check(&self) -> Result<(), InvalidDefinition> {
        let fail = |text: String| Err(InvalidDefinition(text));
        if self.format != FORMAT {
            return fail(format!("format {} is not {FORMAT}", self.format));
        }
        let words = [
            ("name", &self.name),
            ("uuid", &self.uuid),
            ("machine", &self.machine),
            ("cpu.model", &self.cpu.model),
        ];
        for (field, value) in words {
            if value.is_empty() || !value.chars().all(is_plain) {
                return fail(format!("{field} {value:?} has characters outside A-Z a-z 0-9 . _ - :"));
            }
        }
        if let Some(bad) = self.cpu.features.iter().find(|f| f.contains(',') || f.is_empty()) {
            return fail(format!("cpu feature {bad:?} is empty or holds a comma"));
        }
        if !(1..=248).contains(&self.cpu.count()) {
            return fail(format!("{} vCPUs are outside 1..248", self.cpu.count()));
        }
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(1 << 20) {
            return fail(format!("memory of {} bytes is not a whole number of MiB", self.memory_bytes));
        }
        if let Some(nic) = &self.nic
            && !is_mac(&nic.mac)
        {
            return fail(format!("MAC {:?} is not six hex octets", nic.mac));
        }
        self.check_disks()
    }

    fn check_disks(&self) -> Result<(), InvalidDefinition> {
        let limit = if self.paravirtual { 256 } else { 6 };
        let mut ids = std::collections::BTreeSet::new();
        let mut targets: std::collections::BTreeSet<u32> = self.seed.iter().map(|s| s.scsi_id).collect();
        for disk in &self.disks {
            if disk.id.is_empty() || !disk.id.chars().all(is_plain) || !ids.insert(&disk.id) {
                return Err(InvalidDefinition(format!(
                    "disk id {:?} is empty, repeated or not plain",
                    disk.id
                )));
            }
            if !targets.insert(disk.scsi_id) {
                return Err(InvalidDefinition(format!(
                    "address {} of disk {} is taken",
                    disk.scsi_id, disk.id
                )));
            }
            if !disk.serial.chars().all(is_plain) || disk.serial.len() > 36 {
                return Err(InvalidDefinition(format!("serial {:?} of disk {}", disk.serial, disk.id)));
            }
        }
        match targets.last() {
            Some(last) if *last >= limit => {
                Err(InvalidDefinition(format!("disk address {last} is beyond the last one, {}", limit - 1)))
            }
            _ => Ok(()),
        }
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':')
}

fn is_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    octets.len() == 6 && octets.iter().all(|o| o.len() == 2 && o.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small machine with disks of these ids.
    pub(crate) fn machine(disks: &[&str]) -> Definition {
        let disk = |(n, id): (u32, &&str)| Disk {
            id: (*id).to_owned(),
            path: format!("/disks/{id}/disk.img").into(),
            block_device: false,
            serial: format!("{n:032x}"),
            scsi_id: n,
            boot_index: Some(n + 1),
            read_only: false,
            cdrom: false,
        };
        Definition {
            format: FORMAT,
            name: "default_linux-vm".into(),
            uuid: "8f5c3f0e-5d0f-5e0a-9c55-0d6c6a4d7c11".into(),
            machine: "pc-q35-10.0".into(),
            accelerator: Accelerator::Tcg,
            cpu: Cpu {
                model: "Nehalem".into(),
                features: vec![],
                enforce: true,
                sockets: 1,
                cores_per_socket: 2,
            },
            memory_bytes: 256 << 20,
            firmware: Firmware::Bios,
            paravirtual: true,
            nic: None,
            disks: (0..).zip(disks).map(disk).collect(),
            seed: None,
        }
    }

    #[test]
    fn hash_changes_with_every_field_and_survives_a_round_trip() {
        let d = machine(&["a"]);
        let back: Definition = serde_json::from_str(&serde_json::to_string(&d).unwrap()).unwrap();
        assert_eq!(d.hash(), back.hash());
        let value = serde_json::to_value(&d).unwrap();
        let reread: Definition = serde_json::from_value(value).unwrap();
        assert_eq!(d.hash(), reread.hash());
        let mut other = d.clone();
        other.disks[0].serial.push('0');
        assert_ne!(d.hash(), other.hash());
    }

    #[test]
    fn values_that_break_out_of_their_argument_are_refused() {
        type Case = (&'static str, fn(&mut Definition));
        let cases: [Case; 9] = [
            ("name", |d| d.name = "a,b".into()),
            ("uuid", |d| d.uuid = "x y".into()),
            ("machine", |d| d.machine = "pc-q35-10.0,smm=on".into()),
            ("model", |d| d.cpu.model = String::new()),
            ("feature", |d| d.cpu.features = vec!["+a,+b".into()]),
            ("serial", |d| d.disks[0].serial = "a,b".into()),
            ("id", |d| d.disks[1].id = d.disks[0].id.clone()),
            ("address", |d| d.disks[1].scsi_id = 0),
            ("mac", |d| d.nic = Some(Nic { mac: "1:2".into() })),
        ];
        machine(&["a", "b"]).check().unwrap();
        for (what, change) in cases {
            let mut d = machine(&["a", "b"]);
            change(&mut d);
            assert!(d.check().is_err(), "{what}");
        }
    }
}
