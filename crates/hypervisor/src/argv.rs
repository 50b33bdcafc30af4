//! From a definition to QEMU's arguments: a pure function, fixed by golden files.
//!
//! Every address, id and queue count is written out, so that the other side of a migration gets the same
//! machine (spec hypervisor.md §6, §10.9). Only what may differ between the sides comes from [`Runtime`].

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::definition::{Accelerator, Definition, Disk, Firmware, InvalidDefinition};

/// Name of the first monitor's socket in the run directory.
pub const MONITOR_SOCKET: &str = "qmp.sock";
/// Name of the second monitor's socket, used out of band when the first one hangs.
pub const MONITOR_OOB_SOCKET: &str = "qmp-oob.sock";
/// Name of the serial console's socket.
pub const SERIAL_SOCKET: &str = "serial.sock";
/// Name of the guest agent's socket.
pub const AGENT_SOCKET: &str = "guest-agent.sock";
/// Name of the VNC socket.
pub const VNC_SOCKET: &str = "vnc.sock";
/// Name of the provisioning image.
pub const SEED_IMAGE: &str = "seed.img";
/// Name of UEFI variables that are not kept elsewhere.
pub const EFI_VARS: &str = "efivars.fd";

/// Translation cache of a TCG guest, MiB: more brings no speed, less slows the guest (spec hypervisor.md §18).
pub const TCG_CACHE_MIB: u32 = 128;

/// Root ports at power-on; ports cannot be added later, so spare ones are kept for hot-plug.
const ROOT_PORTS: u32 = 8;
const PORT_DISKS: u32 = 0;
const PORT_SERIAL: u32 = 1;
const PORT_BALLOON: u32 = 2;
const PORT_RNG: u32 = 3;
const PORT_NIC: u32 = 4;
const PORT_USB: u32 = 5;

/// What belongs to one process and not to the machine.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Directory of sockets and per-process files. Relative paths are seen from QEMU's working directory.
    pub run_dir: PathBuf,
    /// The tap device, inherited by QEMU.
    pub tap_fd: Option<RawFd>,
    /// Wait for a migration instead of booting.
    pub incoming: bool,
    /// Let QEMU confine itself with seccomp.
    pub sandbox: bool,
}

/// Builds QEMU's arguments, without the program's name.
pub fn argv(d: &Definition, rt: &Runtime) -> Result<Vec<OsString>, InvalidDefinition> {
    d.check()?;
    let mut a = Args::default();
    frame(&mut a, d, rt);
    processor(&mut a, d);
    firmware(&mut a, d, rt);
    for n in 0..ROOT_PORTS {
        let first = if n == 0 { ",multifunction=on" } else { "" };
        a.device(format!(
            "pcie-root-port,id=rp{n},bus=pcie.0,chassis={},port={n},addr=0x2.{n}{first}",
            n + 1
        ));
    }
    monitors(&mut a, rt);
    consoles(&mut a, rt);
    small_devices(&mut a);
    disks(&mut a, d, rt);
    nic(&mut a, d, rt)?;
    if rt.incoming {
        a.pair("-incoming", "defer");
    }
    Ok(a.0)
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }
    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
    fn device(&mut self, value: impl Into<OsString>) {
        self.pair("-device", value);
    }
    /// `head` followed by a path, in which QEMU wants commas doubled, and `tail`.
    fn with_path(&mut self, name: &str, head: &str, path: &std::path::Path, tail: &str) {
        use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
        let mut value = head.as_bytes().to_vec();
        for byte in path.as_os_str().as_bytes() {
            value.push(*byte);
            if *byte == b',' {
                value.push(b',');
            }
        }
        value.extend_from_slice(tail.as_bytes());
        self.pair(name, OsString::from_vec(value));
    }
}

fn frame(a: &mut Args, d: &Definition, rt: &Runtime) {
    a.pair("-name", format!("guest={},debug-threads=on", d.name));
    // `-S`: only the launcher lets the guest run, on both sides of a migration.
    for flag in ["-S", "-nodefaults", "-no-user-config"] {
        a.flag(flag);
    }
    a.pair("-display", "none");
    a.pair("-msg", "timestamp=on");
    // `reboot=shutdown` is set over QMP once the guest runs: firmware may reset the machine before that.
    a.pair("-action", "shutdown=pause,reboot=reset,panic=pause,watchdog=reset");
    if rt.sandbox {
        a.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
}

fn processor(a: &mut Args, d: &Definition) {
    let smm = match &d.firmware {
        Firmware::Efi { secure_boot: true, .. } => "on",
        Firmware::Efi { secure_boot: false, .. } | Firmware::Bios => "auto",
    };
    let pflash = match &d.firmware {
        Firmware::Efi { .. } => ",pflash0=efi-code,pflash1=efi-vars",
        Firmware::Bios => "",
    };
    a.pair(
        "-machine",
        format!("{},usb=off,vmport=off,dump-guest-core=off,smm={smm},memory-backend=ram0{pflash}", d.machine),
    );
    match d.accelerator {
        Accelerator::Kvm => a.pair("-accel", "kvm"),
        Accelerator::Tcg => a.pair("-accel", format!("tcg,tb-size={TCG_CACHE_MIB}")),
    }
    let mut cpu = d.cpu.model.clone();
    for feature in &d.cpu.features {
        cpu.push(',');
        cpu.push_str(feature);
    }
    if d.cpu.enforce {
        cpu.push_str(",enforce=on");
    }
    a.pair("-cpu", cpu);
    let count = d.cpu.count();
    a.pair(
        "-smp",
        format!(
            "{count},sockets={},cores={},threads=1,maxcpus={count}",
            d.cpu.sockets, d.cpu.cores_per_socket
        ),
    );
    let mib = d.memory_bytes >> 20;
    a.pair("-m", format!("size={mib}M"));
    a.pair("-object", format!("memory-backend-memfd,id=ram0,size={mib}M,share=on"));
    a.pair("-uuid", d.uuid.as_str());
    a.pair("-smbios", format!("type=1,manufacturer=Holdfast,product=Virtual Machine,uuid={}", d.uuid));
    a.pair("-rtc", "base=utc,driftfix=slew");
    a.pair("-boot", "strict=on");
}

fn firmware(a: &mut Args, d: &Definition, rt: &Runtime) {
    let Firmware::Efi { code, secure_boot, kept, .. } = &d.firmware else { return };
    a.with_path("-blockdev", "driver=file,node-name=efi-code-f,read-only=on,filename=", code, "");
    a.pair("-blockdev", "driver=raw,node-name=efi-code,file=efi-code-f,read-only=on");
    // Firmware shares its variables with any other writer, so no lock of QEMU's guards them: that one QEMU runs
    // (INV-1) is what makes it one writer.
    let vars = kept.clone().unwrap_or_else(|| rt.run_dir.join(EFI_VARS));
    a.with_path("-blockdev", "driver=file,node-name=efi-vars-f,filename=", &vars, "");
    a.pair("-blockdev", "driver=raw,node-name=efi-vars,file=efi-vars-f");
    if *secure_boot {
        a.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
    }
}

fn monitors(a: &mut Args, rt: &Runtime) {
    for (id, socket) in [("mon0", MONITOR_SOCKET), ("mon1", MONITOR_OOB_SOCKET)] {
        let head = format!("socket,id={id},server=on,wait=off,path=");
        a.with_path("-chardev", &head, &rt.run_dir.join(socket), "");
        a.pair("-mon", format!("chardev={id},mode=control"));
    }
}

fn consoles(a: &mut Args, rt: &Runtime) {
    a.with_path("-chardev", "socket,id=ser0,server=on,wait=off,path=", &rt.run_dir.join(SERIAL_SOCKET), "");
    a.pair("-serial", "chardev:ser0");
    a.device("VGA,id=vga0,bus=pcie.0,addr=0x1");
    a.with_path("-vnc", "unix:", &rt.run_dir.join(VNC_SOCKET), "");
    a.device(format!("virtio-serial-pci,id=vser0,bus=rp{PORT_SERIAL}"));
    a.with_path("-chardev", "socket,id=agent0,server=on,wait=off,path=", &rt.run_dir.join(AGENT_SOCKET), "");
    a.device("virtserialport,bus=vser0.0,nr=1,chardev=agent0,id=agentport0,name=org.qemu.guest_agent.0");
}

fn small_devices(a: &mut Args) {
    a.device(format!("virtio-balloon-pci,id=balloon0,bus=rp{PORT_BALLOON},free-page-reporting=on"));
    a.pair("-object", "rng-builtin,id=rng0");
    a.device(format!("virtio-rng-pci,rng=rng0,id=rngdev0,bus=rp{PORT_RNG}"));
    a.device(format!("qemu-xhci,id=usb0,bus=rp{PORT_USB}"));
    a.device("usb-tablet,id=tablet0,bus=usb0.0,port=1");
    a.device("pvpanic-pci,id=panic0,bus=pcie.0,addr=0x1e");
}

fn disks(a: &mut Args, d: &Definition, rt: &Runtime) {
    if d.paravirtual {
        // A fixed queue count: the automatic one depends on -smp and breaks migration.
        a.device(format!("virtio-scsi-pci,id=scsi0,bus=rp{PORT_DISKS},num_queues=4"));
    }
    for disk in &d.disks {
        blockdev(a, disk);
        disk_device(a, disk, d.paravirtual);
    }
    if let Some(seed) = &d.seed {
        let node = format!("d{}", seed.scsi_id);
        let head = format!("driver=file,node-name={node}f,read-only=on,filename=");
        a.with_path("-blockdev", &head, &rt.run_dir.join(SEED_IMAGE), "");
        a.pair("-blockdev", format!("driver=raw,node-name={node},file={node}f,read-only=on"));
        let address = address(seed.scsi_id, d.paravirtual);
        let (disk, _) = models(d.paravirtual);
        a.device(format!("{disk},{address},drive={node},id=cloudinit"));
    }
}

fn blockdev(a: &mut Args, disk: &Disk) {
    let node = format!("d{}", disk.scsi_id);
    let driver = if disk.block_device { "host_device" } else { "file" };
    let read_only = if disk.read_only || disk.cdrom { ",read-only=on" } else { "" };
    let options = format!("aio=threads,discard=unmap,cache.direct=on{read_only}");
    let head = format!("driver={driver},node-name={node}f,{options},filename=");
    a.with_path("-blockdev", &head, &disk.path, "");
    a.pair(
        "-blockdev",
        format!("driver=raw,node-name={node},file={node}f,discard=unmap,cache.direct=on{read_only}"),
    );
}

fn models(paravirtual: bool) -> (&'static str, &'static str) {
    if paravirtual { ("scsi-hd", "scsi-cd") } else { ("ide-hd", "ide-cd") }
}

fn address(id: u32, paravirtual: bool) -> String {
    if paravirtual { format!("bus=scsi0.0,scsi-id={id},lun=0") } else { format!("bus=ide.{id}") }
}

fn disk_device(a: &mut Args, disk: &Disk, paravirtual: bool) {
    let (hd, cd) = models(paravirtual);
    let model = if disk.cdrom { cd } else { hd };
    let mut value = format!(
        "{model},{},drive=d{},id={},werror=report,rerror=report",
        address(disk.scsi_id, paravirtual),
        disk.scsi_id,
        disk.id
    );
    if !disk.cdrom {
        value.push_str(",write-cache=on");
    }
    if !disk.serial.is_empty() {
        // SATA keeps 20 characters and refuses more.
        let kept = if paravirtual { disk.serial.as_str() } else { &disk.serial[..disk.serial.len().min(20)] };
        value.push_str(&format!(",serial={kept}"));
        if paravirtual {
            // Without it QEMU cuts the id seen below /dev/disk/by-id to 20 characters.
            value.push_str(&format!(",device_id={kept}"));
        }
    }
    if let Some(index) = disk.boot_index {
        value.push_str(&format!(",bootindex={index}"));
    }
    a.device(value);
}

fn nic(a: &mut Args, d: &Definition, rt: &Runtime) -> Result<(), InvalidDefinition> {
    let Some(nic) = &d.nic else { return Ok(()) };
    let Some(fd) = rt.tap_fd else {
        return Err(InvalidDefinition("has a network card, but no tap device was handed over".into()));
    };
    a.pair("-netdev", format!("tap,id=net0,fd={fd},vhost=off"));
    let model = if d.paravirtual { "virtio-net-pci" } else { "e1000" };
    let bus = if d.paravirtual { format!("rp{PORT_NIC}") } else { "pcie.0,addr=0x1c".to_owned() };
    // An empty romfile: no PXE, which would delay every boot.
    a.device(format!("{model},netdev=net0,id=nic0,mac={},bus={bus},romfile=", nic.mac));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::tests::machine;
    use crate::definition::{Nic, Seed};

    fn runtime() -> Runtime {
        Runtime { run_dir: ".".into(), tap_fd: Some(17), incoming: false, sandbox: true }
    }

    fn efi(secure_boot: bool) -> Firmware {
        Firmware::Efi {
            code: "/usr/share/OVMF/code.fd".into(),
            vars: "/usr/share/OVMF/vars.fd".into(),
            kept: None,
            secure_boot,
        }
    }

    /// One argument a line, a value behind its option.
    fn text(d: &Definition, rt: &Runtime) -> String {
        let mut text = String::new();
        for word in argv(d, rt).unwrap() {
            let word = word.into_string().unwrap();
            let separator = if text.is_empty() { "" } else { "\n" };
            text += if word.starts_with('-') && !word.starts_with("-1") { separator } else { " " };
            text += &word;
        }
        text + "\n"
    }

    fn golden(name: &str, got: &str) {
        let path = format!("{}/src/argv/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(format!("{}/src/argv", env!("CARGO_MANIFEST_DIR"))).unwrap();
            std::fs::write(&path, got).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            got, wanted,
            "{path}; run with UPDATE=1 if the change is meant (running guests cannot move then)"
        );
    }

    /// The usual machine: address, two disks, provisioning.
    fn usual() -> Definition {
        let mut d = machine(&["vd-root", "cvi-tools"]);
        d.nic = Some(Nic { mac: "f6:e1:74:94:01:02".into() });
        d.disks[1].cdrom = true;
        d.disks[1].read_only = true;
        d.seed = Some(Seed { scsi_id: 2, sha256: "ab".into() });
        d
    }

    #[test]
    fn command_lines_are_as_recorded() {
        golden("bios", &text(&usual(), &runtime()));
        golden("efi", &text(&Definition { firmware: efi(false), ..usual() }, &runtime()));
        golden("efi-secure-boot", &text(&Definition { firmware: efi(true), ..usual() }, &runtime()));
        let mut kept = Definition { firmware: efi(false), ..usual() };
        if let Firmware::Efi { kept, .. } = &mut kept.firmware {
            *kept = Some("/volumes/nvram/vars.fd".into());
        }
        golden("efi-kept", &text(&kept, &runtime()));
        golden("not-paravirtual", &text(&Definition { paravirtual: false, ..usual() }, &runtime()));
        let mut kvm = Definition { accelerator: Accelerator::Kvm, ..usual() };
        kvm.cpu.model = "host".into();
        kvm.cpu.features = vec!["migratable=on".into()];
        kvm.cpu.enforce = false;
        golden("kvm", &text(&kvm, &runtime()));
        let old = Definition { machine: "pc-q35-7.2".into(), ..usual() };
        golden("machine-7.2", &text(&old, &runtime()));
    }

    // Spec hypervisor.md §10.9: both sides get the same machine.
    #[test]
    fn the_target_differs_only_in_what_belongs_to_the_process() {
        let source = text(&usual(), &runtime());
        let other = Runtime { tap_fd: Some(9), incoming: true, ..runtime() };
        let target = text(&usual(), &other);
        let expected = source.replace("fd=17", "fd=9") + "-incoming defer\n";
        assert_eq!(target, expected);
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        let mut d = machine(&["a"]);
        d.disks[0].path = "/odd,path/disk.img".into();
        assert!(text(&d, &runtime()).contains("filename=/odd,,path/disk.img"));
    }

    #[test]
    fn a_card_without_a_tap_is_refused() {
        let rt = Runtime { tap_fd: None, ..runtime() };
        assert!(argv(&usual(), &rt).unwrap_err().to_string().contains("tap"));
    }
}
