//! Boot order under BIOS.
//!
//! SeaBIOS tries only the first hard disk of the order, but the API promises that the next device is tried
//! when one cannot boot. So the launcher looks for the boot signature before it starts QEMU and puts the
//! first hard disk that has one in front of those without (spec hypervisor.md §6). UEFI falls through itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::definition::{Definition, Firmware};

/// Whether the disk's first sector ends with the boot signature `55 AA`. Disks are raw.
pub fn has_boot_signature(path: &Path) -> io::Result<bool> {
    let mut sector = [0; 512];
    match File::open(path)?.read_exact_at(&mut sector, 0) {
        Ok(()) => Ok(sector[510..] == [0x55, 0xaa]),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Renumbers boot indexes: devices keep their order, but hard disks without a signature come after
/// everything else. `bootable` tells for each hard disk, by id, whether it has one. Changes nothing when
/// no hard disk has one, and nothing under UEFI.
pub fn reorder(definition: &mut Definition, bootable: impl Fn(&str) -> bool) {
    if !matches!(definition.firmware, Firmware::Bios) {
        return;
    }
    let mut order: Vec<usize> =
        (0..definition.disks.len()).filter(|i| definition.disks[*i].boot_index.is_some()).collect();
    order.sort_by_key(|i| definition.disks[*i].boot_index);
    let dead = |i: &usize| !definition.disks[*i].cdrom && !bootable(&definition.disks[*i].id);
    if order.iter().all(|i| definition.disks[*i].cdrom || dead(i)) {
        return;
    }
    let (last, mut first): (Vec<usize>, Vec<usize>) = order.iter().copied().partition(dead);
    first.extend(last);
    for (index, disk) in (1..).zip(first) {
        definition.disks[disk].boot_index = Some(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::machine;

    fn order(firmware: Firmware, cdroms: &[&str], bootable: &[&str]) -> Vec<Option<u32>> {
        let mut d = machine(&["a", "b", "c"]);
        d.firmware = firmware;
        for disk in &mut d.disks {
            disk.cdrom = cdroms.contains(&disk.id.as_str());
        }
        reorder(&mut d, |id| bootable.contains(&id));
        d.disks.iter().map(|disk| disk.boot_index).collect()
    }

    #[test]
    fn the_first_disk_with_a_signature_leads() {
        let bios = || Firmware::Bios;
        assert_eq!(order(bios(), &[], &["a"]), [Some(1), Some(2), Some(3)]);
        assert_eq!(order(bios(), &[], &["b"]), [Some(2), Some(1), Some(3)]);
        assert_eq!(order(bios(), &[], &["b", "c"]), [Some(3), Some(1), Some(2)]);
        assert_eq!(order(bios(), &[], &[]), [Some(1), Some(2), Some(3)]);
        assert_eq!(order(bios(), &["a"], &["c"]), [Some(1), Some(3), Some(2)]);
    }

    #[test]
    fn uefi_is_left_alone() {
        let efi = Firmware::Efi { code: "/c".into(), vars: "/v".into(), kept: None, secure_boot: false };
        assert_eq!(order(efi, &[], &["b"]), [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn signature_is_read_from_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, [0; 100]).unwrap();
        assert!(!has_boot_signature(&path).unwrap());
        let mut sector = vec![0; 1024];
        std::fs::write(&path, &sector).unwrap();
        assert!(!has_boot_signature(&path).unwrap());
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(&path, &sector).unwrap();
        assert!(has_boot_signature(&path).unwrap());
    }
}
