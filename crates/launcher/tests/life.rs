//! One launcher, one real QEMU: start, every way to an end, streams, repeats.

mod common;

use common::*;
use holdfast_wire::Id;
use holdfast_wire::launcher::*;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

struct Vm {
    disk: tempfile::TempDir,
}

impl Vm {
    fn new() -> Vm {
        let disk = tempfile::tempdir().unwrap();
        write_disk(&disk.path().join("disk.img"));
        Vm { disk }
    }
    fn definition(&self) -> holdfast_hypervisor::definition::Definition {
        machine(&[&self.disk.path().join("disk.img")])
    }
}

#[tokio::test]
async fn a_guest_boots_and_its_power_off_is_told() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    assert!(matches!(l.ask(Request::Hello { versions: vec![1] }).await, Answer::Hello { version: 1, .. }));
    let mut console = l.boot(&vm.definition(), OnReset::End).await;
    read_until(&mut console, "Babc").await;
    let state = l.state().await;
    assert_eq!(state.vm, VmState::Running);
    assert_eq!(state.query_status.as_deref(), Some("running"));
    assert_eq!(state.definition_hash, Some(vm.definition().hash()));
    assert_eq!(state.accelerator.as_deref(), Some("tcg"));
    assert!(state.running_since_ms.is_some());
    console.write_all(b"p").await.unwrap();
    let (record, code) = l.ended().await;
    assert_eq!((record.cause, record.ever_ran, code), (Cause::GuestShutdown, true, 0));
}

#[tokio::test]
async fn a_reboot_ends_the_power_on() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    // VL §1.5: the container runtime made the log, the launcher appends one line.
    let log = l.dir.join("termination-log");
    std::fs::write(&log, "").unwrap();
    let mut console = l.boot(&vm.definition(), OnReset::End).await;
    read_until(&mut console, "B").await;
    console.write_all(b"r").await.unwrap();
    let (record, code) = l.ended().await;
    assert_eq!((record.cause, code), (Cause::GuestReset, 0));
    let line = r#"{"event":"SHUTDOWN","details":"{\"guest\":true,\"reason\":\"guest-reset\"}"}"#;
    assert_eq!(std::fs::read_to_string(log).unwrap(), format!("{line}\n"));
}

#[tokio::test]
async fn a_reboot_in_place_goes_on() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    let mut console = l.boot(&vm.definition(), OnReset::InPlace).await;
    read_until(&mut console, "B").await;
    console.write_all(b"r").await.unwrap();
    read_until(&mut console, "B").await;
    assert_eq!(l.state().await.vm, VmState::Running);
}

#[tokio::test]
async fn a_stop_presses_the_power_button() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    // At once: the guest has not enabled its button yet, so the first press is lost.
    l.boot(&vm.definition(), OnReset::End).await;
    l.done(Request::Stop { grace_s: 60, why: StopWhy::Power }).await;
    l.done(Request::Stop { grace_s: 60, why: StopWhy::Power }).await;
    let (record, code) = l.ended().await;
    assert_eq!((record.cause, code), (Cause::PlatformStop, 0));
    assert!(l.log.iter().any(|e| matches!(e, Event::State(s) if s.vm == VmState::Stopping)));
}

#[tokio::test]
async fn a_guest_that_ignores_the_button_is_killed_when_the_grace_period_is_over() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    let mut console = l.boot(&vm.definition(), OnReset::End).await;
    read_until(&mut console, "B").await;
    console.write_all(b"i").await.unwrap();
    read_until(&mut console, "I").await;
    l.done(Request::Stop { grace_s: 1, why: StopWhy::Power }).await;
    let (record, _) = l.ended().await;
    assert_eq!(record.cause, Cause::GraceExpired);
}

#[tokio::test]
async fn a_forced_stop_is_a_platform_stop() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    l.boot(&vm.definition(), OnReset::End).await;
    l.done(Request::Kill { why: StopWhy::Power }).await;
    assert_eq!(l.ended().await.0.cause, Cause::PlatformStop);
}

#[tokio::test]
async fn sigterm_stops_gracefully_as_evicted() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    let mut console = l.boot(&vm.definition(), OnReset::End).await;
    read_until(&mut console, "B").await;
    signal(l.process.id() as i32, Signal::TERM);
    assert_eq!(l.ended().await.0.cause, Cause::Evicted);
}

#[tokio::test]
async fn kill_9_of_qemu_is_a_crash() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    l.boot(&vm.definition(), OnReset::End).await;
    let pid = l.qemu_pid().await;
    signal(pid, Signal::KILL);
    let (record, code) = l.ended().await;
    assert_eq!((record.cause, code), (Cause::Crash, 1));
    assert!(record.detail.contains("signal 9"), "{}", record.detail);
}

#[tokio::test]
async fn qemu_dies_with_its_launcher_and_a_second_life_is_refused() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    l.boot(&vm.definition(), OnReset::End).await;
    let pid = l.qemu_pid().await;
    signal(l.process.id() as i32, Signal::KILL);
    eventually("QEMU outlived its launcher", || !alive(pid)).await;
    let mut again = Launcher::start_in(&l.dir, "pod", "");
    assert_eq!(again.exit_code().await, 1);
    let record: ExitRecord =
        serde_json::from_slice(&std::fs::read(l.dir.join(RECORD_EXIT)).unwrap()).unwrap();
    assert_eq!(record.cause, Cause::Crash);
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mut l = Launcher::start("pod", "").await;
    let why = l.refused(prepare(&machine(&["/nonexistent/disk.img".as_ref()]), None, OnReset::End)).await;
    assert!(why.contains("/nonexistent/disk.img"), "{why}");
    let (record, code) = l.ended().await;
    assert_eq!((record.cause, record.ever_ran, code), (Cause::StartFailed, false, 1));
}

// INV-2: the disk's lock is taken before the guest runs.
#[tokio::test]
async fn a_disk_in_use_is_refused() {
    let vm = Vm::new();
    let mut first = Launcher::start("pod-1", "").await;
    first.done(prepare(&vm.definition(), None, OnReset::End)).await;
    let mut second = Launcher::start("pod-2", "").await;
    let why = second.refused(prepare(&vm.definition(), None, OnReset::End)).await;
    assert!(why.contains("lock"), "{why}");
}

#[tokio::test]
async fn repeats_are_answered_and_strangers_refused() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    assert!(l.refused(Request::Run).await.contains("Prepare"));
    let stranger = Id { epoch: 2, ..l.id.clone() };
    assert!(matches!(l.ask_as(stranger, Request::Query).await, Answer::Refused { .. }));
    l.done(prepare(&vm.definition(), None, OnReset::End)).await;
    l.done(prepare(&vm.definition(), None, OnReset::End)).await;
    let mut other = vm.definition();
    other.memory_bytes *= 2;
    assert!(l.refused(prepare(&other, None, OnReset::End)).await.contains("another definition"));
    l.done(Request::Run).await;
    l.done(Request::Run).await;
    // An agent that was away learns everything on its first frame.
    l.log.clear();
    l.connect().await;
    l.until("state", |e| matches!(e, Event::State(s) if s.vm == VmState::Running)).await.unwrap();
}

// VL-B1: boot falls through to the next disk (spec hypervisor.md §6).
#[tokio::test]
async fn the_first_disk_with_a_boot_sector_boots() {
    let vm = Vm::new();
    let empty = vm.disk.path().join("empty.img");
    std::fs::write(&empty, vec![0; 1 << 20]).unwrap();
    let mut l = Launcher::start("pod", "").await;
    let definition = machine(&[&empty, &vm.disk.path().join("disk.img")]);
    let mut console = l.boot(&definition, OnReset::End).await;
    read_until(&mut console, "B").await;
}

#[tokio::test]
async fn vnc_speaks_rfb_and_the_newest_console_wins() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    let mut first = l.boot(&vm.definition(), OnReset::End).await;
    read_until(&mut first, "B").await;
    let mut vnc = l.stream(StreamKind::Vnc).await;
    read_until(&mut vnc, "RFB 003.008").await;
    let mut second = l.stream(StreamKind::Serial).await;
    read_until(&mut second, "B").await;
    second.write_all(b"p").await.unwrap();
    assert_eq!(l.ended().await.0.cause, Cause::GuestShutdown);
}

// INV-12, VL §10.4: an ordinary user without capabilities is enough.
#[tokio::test]
async fn an_unprivileged_launcher_works_and_stays_small() {
    use std::os::unix::fs::chown;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    const USER: u32 = 1_000_000_123;
    let vm = Vm::new();
    let run = tempfile::tempdir().unwrap();
    for path in [vm.disk.path(), &vm.disk.path().join("disk.img"), run.path()] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    let mut l = Launcher::start_as(run.path(), "pod", Some(USER));
    l.connect().await;
    let mut console = l.boot(&vm.definition(), OnReset::End).await;
    read_until(&mut console, "Babc").await;
    let qemu = l.qemu_pid().await;
    let status = std::fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(field("Uid:"), USER.to_string());
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    // Without QEMU at most 10 MiB of its own (files mapped from disk are shared and not counted).
    let status = std::fs::read_to_string(format!("/proc/{}/status", l.process.id())).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 10 << 10, "{kib} KiB");
    println!("launcher: {kib} KiB anonymous");
}

#[tokio::test]
async fn a_machine_without_paravirtual_devices_boots() {
    let vm = Vm::new();
    let mut l = Launcher::start("pod", "").await;
    let mut definition = vm.definition();
    definition.paravirtual = false;
    let mut console = l.boot(&definition, OnReset::End).await;
    read_until(&mut console, "Babc").await;
}

#[tokio::test]
async fn uefi_starts_with_and_without_secure_boot() {
    let vm = Vm::new();
    let ovmf = std::path::Path::new("/usr/share/OVMF");
    for (code, vars, secure_boot) in
        [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", false), ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", true)]
    {
        let mut l = Launcher::start("pod", "").await;
        let mut definition = vm.definition();
        let (code, vars) = (ovmf.join(code), ovmf.join(vars));
        definition.firmware =
            holdfast_hypervisor::definition::Firmware::Efi { code, vars, kept: None, secure_boot };
        let mut console = l.boot(&definition, OnReset::End).await;
        read_until(&mut console, "BdsDxe").await;
    }
}

#[tokio::test]
async fn uefi_variables_outlive_power_off() {
    let vm = Vm::new();
    let volume = tempfile::tempdir().unwrap();
    let kept = volume.path().join("vars.fd");
    let template = std::path::Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd");
    let mut definition = vm.definition();
    definition.firmware = holdfast_hypervisor::definition::Firmware::Efi {
        code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
        vars: template.into(),
        kept: Some(kept.clone()),
        secure_boot: false,
    };
    let mut l = Launcher::start("pod", "").await;
    let mut console = l.boot(&definition, OnReset::End).await;
    read_until(&mut console, "BdsDxe").await;
    l.done(Request::Kill { why: StopWhy::Power }).await;
    l.ended().await;
    let written = std::fs::read(&kept).unwrap();
    assert!(written != std::fs::read(template).unwrap(), "firmware writes boot entries at its first start");
    let mut l = Launcher::start("next-pod", "").await;
    l.done(prepare(&definition, None, OnReset::End)).await;
    assert!(std::fs::read(&kept).unwrap() == written, "the next power-on finds them");
}
